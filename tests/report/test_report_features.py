"""The feature picture in the report: its dots, its figures, its words, and that damage costs only its part."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import CLASSES, PALETTE, SOURCE, mean, write_run
from page_reader import Reader, change, part, problems_of, read
from test_report_browser import browser, opened
from test_report_damage import damaged, junk

from segshift.report.features import LINE, _layers, features, path_of, placed
from segshift.report.reading import read_run

if not hasattr(browser, "__name__"):
    raise AssertionError("the fixture of test_report_browser is used here")

PER_CLASS = 40
SEEN = 10
"""Classes that have points; the last one is absent."""


def entry(name: str, spread: float, value: float, nearest: float, seed: int, domains: int = 1) -> dict[str, Any]:
    """A stage's map: a cloud a class on a ring, tight or loose."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(SEEN), PER_CLASS), domains)
    angle = 2 * np.pi * labels / SEEN
    places = 500 + 330 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + spread * rng.normal(size=(len(labels), 2))
    x, y = np.clip(np.rint(places), 0, 1000).astype(int).T.tolist()
    hearts = [[k, round(500 + 330 * math.cos(2 * math.pi * k / SEEN)), 500] for k in range(SEEN)]
    return {
        "name": name, "compactness": value, "by_class": [*[value + 0.01 * k for k in range(SEEN)], None],
        "nearest": nearest, "gap": None if domains == 1 else 0.37, "explained": 0.42,
        "hearts": hearts, "class": labels.tolist(), "x": x, "y": y,
    }  # fmt: skip


def picture(count: int = 1, /, **over: Any) -> dict[str, Any]:
    """The content of a features.json of two stages."""
    named = [("val", "/data/camvid/val", 40), ("source", "/data/city", 1)][:count]
    content = {
        "fingerprint": "4be1", "asked": {"embed": "pca", "stages": None, "domains": None}, "embed": "pca",
        "classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE], "units": 1000,
        "domains": [{"name": n, "root": root, "images": i, "classes_by": "truth"} for n, root, i in named],
        "domain": [d for d in range(count) for _ in range(SEEN * PER_CLASS)],
        "stages": [
            entry("source", 90, 0.61, 0.7, 0, count),
            entry("adapt", 30, 0.34, 0.93, 1, count),
        ],
    }  # fmt: skip
    return {**content, **over}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "city-camvid", panels=1)


def show(run: Path, content: dict[str, Any]) -> tuple[str, Reader]:
    (run / "features.json").write_text(json.dumps(content), encoding="utf-8")
    return read(run)


def dots(path: str) -> list[tuple[int, int]]:
    """Where an SVG path has its dots: moves and lines are walked as a browser does."""
    found, at = [], [0, 0]
    for command, rest in re.findall(r"([mha])([^mha]*)", path):
        numbers = [int(number) for number in re.findall(r"-?\d+", rest)]
        if command == "m":
            at = [at[0] + numbers[0], at[1] + numbers[1]]
        elif command == "h":
            assert numbers == [0]
            found.append((at[0], at[1]))
        else:
            radius, same, turn, large, clockwise, right, down = numbers
            # From its left end the long way, clockwise: the middle is a radius to the right.
            assert (radius, turn, large, clockwise, right, down) == (same, 0, 1, 1, 0, 1)
            found.append((at[0] + radius, at[1]))
            at[1] += down
    return found


@pytest.mark.parametrize(
    ("same", "said"),
    [
        ([True, True], "All maps have the same axes and the same scale"),
        ([True, False], "Each map has its own scale and is turned to lie like the one before it"),
        ([None, None], "Each map has its own scale and is turned to lie like the one before it"),
    ],
)
def test_axes_are_told_of(run: Path, same: list[bool | None], said: str) -> None:
    content = picture()
    for stage, value in zip(content["stages"], same, strict=True):
        stage["same_axes"] = value
    assert said in part(show(run, content)[0], "features")
    content["stages"].append({**content["stages"][1], "name": "last", "same_axes": False})
    if same == [True, True]:
        assert "the same scale, but last" in part(show(run, content)[0], "features")


def maps(html: str) -> list[str]:
    return re.findall(r'<figure class="map">.*?</figure>', html, re.DOTALL)


# ---- what it says


def test_the_section(run: Path) -> None:
    html, page = show(run, picture())
    said = part(html, "features")
    assert "Features PCA of what the networks see in val (camvid/val, 40 images)" in said
    sentence = "The classes are more compact in the features of adapt than in those of source (0.34 against 0.61;"
    assert sentence in said
    assert "93 % of the points are nearest to the mean of their own class, against 70 %." in said
    assert "in the colour of its true class: 400 cells of val (camvid/val, 40 images)" in said
    assert "Compactness is the mean distance of a class's points to their mean, over the mean distance between" in said
    first, second = (Reader(figure).text for figure in maps(html))
    assert "source compactness 0.61" in first
    assert "adapt compactness 0.34" in second
    assert "70 % nearest to own class" in first
    assert "42 % of the variance" in second
    assert "domain gap" not in said
    assert "Missing or damaged" not in page.text
    assert html.index('id="panels"') < html.index('id="features"') < html.index('id="curves"')


def test_mIoU_of_the_stages_that_were_measured(run: Path) -> None:
    html, _ = show(run, picture())
    first, second = (Reader(figure).text for figure in maps(html))
    assert f"mIoU {100 * mean(SOURCE):.1f}" in first
    assert "mIoU" not in second  # the measured model of this run is called advent


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((0.5, 0.6), "less compact in the features of adapt than in"),
        ((0.5, 0.505), "as compact in the features of adapt as"),
    ],
)
def test_words_follow_the_figures(run: Path, values: tuple[float, float], word: str) -> None:
    content = picture()
    for stage, value in zip(content["stages"], values, strict=True):
        stage["compactness"] = value
    html, _ = show(run, content)
    assert word in part(html, "features")


def test_without_truth_it_says_so(run: Path) -> None:
    content = picture()
    content["domains"][0] |= {"name": "target", "root": "/data/camvid/train", "classes_by": "prediction"}
    said = part(show(run, content)[0], "features")
    assert "By the networks' own predictions the classes are more compact" in said
    assert "the class that the network itself predicts there" in said
    assert "They were chosen by what adapt says." in said
    assert "true class" not in said


def test_what_cannot_be_said_is_a_dash_and_no_number(run: Path) -> None:
    content = picture()
    for stage in content["stages"]:
        stage |= {"compactness": None, "nearest": None, "by_class": [None] * len(CLASSES)}
    html, _ = show(run, content)
    said = part(html, "features")
    assert said.count("compactness –") == 2
    assert "nan" not in said.lower()
    assert "nearest to own" not in said
    assert "Compactness of each class" not in said


@pytest.mark.parametrize(("embed", "word"), [("tsne", "t-SNE"), ("umap", "UMAP")])
def test_other_maps_say_how_to_read_them(run: Path, embed: str, word: str) -> None:
    content = picture(embed=embed)
    for stage in content["stages"]:
        stage["explained"] = None
    said = part(show(run, content)[0], "features")
    assert f"Features {word} of what" in said
    assert "how far groups lie apart, and how large they are, says little" in said
    assert "variance" not in said


def test_a_second_domain_is_rings(run: Path) -> None:
    html, _ = show(run, picture(2))
    said = part(html, "features")
    assert "Rings are cells of source (data/city, 1 image)." in said
    assert "see in val (camvid/val, 40 images) and source (data/city, 1 image)" in said
    assert "val (target) source" in said, "a key of the marks"
    assert "The gap to the other domain is 0.37, against 0.37" in said
    figure = maps(html)[0]
    found = re.findall(r'<path class="other" stroke="#\w+" d="([^"]+)"', figure)
    assert sum(map(len, map(dots, found))) == SEEN * PER_CLASS
    assert figure.rindex('class="other"') < figure.index("<path stroke="), "what is measured lies on top"


def test_a_run_without_a_picture(run: Path) -> None:
    html, page = read(run)
    assert 'id="features"' not in html
    assert "Missing or damaged" not in page.text


# ---- dots and names


def test_every_point_is_drawn_once_in_its_colour(run: Path) -> None:
    content = picture()
    html, _ = show(run, content)
    for figure, stage in zip(maps(html), content["stages"], strict=True):
        wanted: dict[str, list[tuple[int, int]]] = {}
        for k, x, y in zip(stage["class"], stage["x"], stage["y"], strict=True):
            wanted.setdefault("#{:02x}{:02x}{:02x}".format(*PALETTE[k]), []).append((x, y))
        found: dict[str, list[tuple[int, int]]] = {}
        for colour, path in re.findall(r'<path stroke="(#\w+)" d="([^"]+)"', figure):
            found.setdefault(colour, []).extend(dots(path))
        assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in wanted.items()}


def test_many_classes_are_drawn_in_one_pass() -> None:
    """A picture may have thousands of classes and tens of thousands of points."""

    class Counted(list[int]):
        passes = 0

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return super().__iter__()

    labels = Counted(k % 500 for k in range(2000))
    layers = _layers(
        [(k, k) for k in range(2000)], labels, [k % 2 for k in range(2000)], [(k % 256, 0, 0) for k in range(500)]
    )
    assert sum(layer.path.count("m") for layer in layers if not layer.other) == 1000
    assert labels.passes == 1


def test_no_class_lies_on_top_of_all_others(run: Path) -> None:
    """Colours take turns, so that where classes overlap each of them is seen."""
    html, _ = show(run, picture())
    colours = re.findall(r'<path stroke="(#\w+)"', maps(html)[0])
    assert len(colours) > 3 * SEEN
    assert colours[:SEEN] == colours[SEEN : 2 * SEEN]


@pytest.mark.parametrize("rings", [False, True])
def test_paths_are_walked_to_their_places(rings: bool) -> None:
    rng = random.Random(0)
    places = [(rng.randrange(1001), rng.randrange(1001)) for _ in range(200)]
    assert dots(path_of(places, rings)) == places
    assert not re.search(r"[^mha \d-]", path_of(places, rings))


def test_it_is_small(run: Path) -> None:
    """Two thousand points in four maps, anywhere: the worst case for relative steps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, SEEN, 2000).tolist()
    stages = [
        {**entry(f"s{i}", 1, 0.5, 0.5, i), "class": labels, **{a: rng.integers(0, 1001, 2000).tolist() for a in "xy"}}
        for i in range(4)
    ]
    before = len(read(run)[0])
    html, _ = show(run, picture(stages=stages, domain=[0] * 2000))
    assert len(maps(html)) == 4
    assert len(html) - before < 150_000


def test_names_stand_at_their_classes_and_on_no_other_name(run: Path) -> None:
    content = picture()
    (run / "features.json").write_text(json.dumps(content), encoding="utf-8")
    shown = features(read_run(run), [])
    assert shown is not None
    names = shown.maps[0].names
    assert len(names) >= 4
    hearts = {CLASSES[k]: (x, y) for k, x, y in content["stages"][0]["hearts"]}
    for name in names:
        x, y = hearts[name.text]
        assert abs(name.y - y) < 3 * LINE
        assert abs(name.x - x) < 130
    for one in names:
        for other in names:
            assert one is other or abs(one.y - other.y) > 0.8 * LINE or abs(one.x - other.x) > 100


def test_names_stay_inside_and_give_way() -> None:
    inside = placed([("vegetation", 1000, 0), ("road", 0, 1000)])  # type: ignore[list-item]
    assert [(name.text, 100 < name.x < 900 or name.text == "road", 0 < name.y < 1000) for name in inside] == [
        ("vegetation", True, True),
        ("road", True, True),
    ]
    crowd = placed([("building", 500, 500)] * 9)  # type: ignore[list-item]
    assert 2 <= len(crowd) < 9
    assert len({name.y for name in crowd}) == len(crowd)
    assert [name.text for name in placed([("x" * 300, 500, 500)])] == ["x" * 300]  # type: ignore[list-item]


# ---- damage


def test_nasty_names_are_text(run: Path) -> None:
    nasty = "</svg><script>alert(1)</script>&\"'"
    content = picture(classes=[nasty, *CLASSES[1:]])
    content["stages"][0]["name"] = nasty
    content["domains"][0]["root"] = nasty
    html, page = show(run, content)
    assert html.count("<script>") == 1
    assert "alert(1)" in page.text
    assert all(load.startswith("data:") for load in page.loads)
    assert not any(name.startswith("on") for name, _ in page.attributes)


@pytest.mark.parametrize(
    "over",
    [
        {"stages": []}, {"stages": None}, {"units": 0}, {"units": "x"}, {"domain": [0]}, {"domain": None},
        {"domains": []}, {"classes": []}, {"classes": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_picture_is_left_out_and_named(run: Path, over: dict[str, Any]) -> None:
    html, _ = show(run, picture(**over))
    assert 'id="features"' not in html
    assert "features.json is damaged: its maps cannot be shown" in problems_of(html)
    assert 'id="classes"' in html


@pytest.mark.parametrize("key", ["class", "x", "y"])
@pytest.mark.parametrize(
    "wrong", [[1], None, "x", [-1] * SEEN * PER_CLASS, [1e9] * SEEN * PER_CLASS], ids=lambda w: str(w)[:9]
)
def test_a_damaged_map_is_named(run: Path, key: str, wrong: Any) -> None:
    content = picture()
    content["stages"][1][key] = wrong
    html, _ = show(run, content)
    assert 'id="features"' not in html
    assert "features.json is damaged" in problems_of(html)


def test_no_json(run: Path) -> None:
    (run / "features.json").write_text('{"stages": [', encoding="utf-8")
    html, _ = read(run)
    assert 'id="features"' not in html
    assert "features.json cannot be read" in problems_of(html)


@pytest.mark.parametrize("seed", range(25))
def test_any_damage_leaves_a_page(run: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = picture(stages=[entry("a", 20, 0.5, 0.5, 0)])
    for key in ("class", "x", "y"):
        content["stages"][0][key] = content["stages"][0][key][:12]
    content["domain"] = [0] * 12
    broken = junk(rng) if seed % 5 == 0 else damaged(rng, content)
    (run / "features.json").write_text(json.dumps(broken), encoding="utf-8")
    html, page = read(run)
    assert html.rstrip().endswith("</html>")
    assert "nan" not in part(html, "features").lower() if 'id="features"' in html else "Features" not in page.text


def test_huge_files_are_refused(run: Path) -> None:
    many = 30_000
    stage = {**entry("a", 1, 0.5, 0.5, 0), **{key: [1] * many for key in ("class", "x", "y")}}
    html, _ = show(run, picture(stages=[stage], domain=[0] * many))
    assert "features.json is damaged" in problems_of(html)


# ---- in a browser


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, run: Path, width: int, scheme: str) -> None:
    long = "a_stage_with_a_very_long_name_without_any_place_to_break_it"
    content = picture(2)
    content["stages"] = [{**stage, "name": f"{long}_{i}"} for i, stage in enumerate(content["stages"] * 2)]
    show(run, content)
    change(run / "env.json")
    said: list[str] = []
    page = opened(browser, run / "report.html", width, said, scheme)
    page.evaluate("document.querySelectorAll('#features details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll("#features *")].filter((e) => !e.closest(".scroll, svg")
        && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""
    assert page.evaluate(beyond) == []
    boxes = page.evaluate("[...document.querySelectorAll('.map svg')].map((e) => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == 4
    assert boxes[0]["y"] == boxes[1]["y"], "side by side"
    assert all(abs(box["width"] - box["height"]) < 1 and box["width"] > 130 for box in boxes)
    shown = page.evaluate("getComputedStyle(document.querySelector('.map text')).display")
    assert (shown == "none") == (width < 560)
    # A dark class must be seen in dark mode too: its maps keep a light ground.
    ground = page.evaluate("getComputedStyle(document.querySelector('.map svg')).backgroundColor")
    assert min(int(level) for level in re.findall(r"\d+", ground)[:3]) > 180
    assert said == []
    page.close()
