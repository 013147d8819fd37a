"""The pseudo-labels of each round: numbers, words, pictures, and that damage costs only its part."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_labels import PASS_COLOURS, write_rounds_run
from fake_run import CLASSES, write_run
from page_reader import change, content, problems_of, read, rounds
from PIL import Image

from segshift.report import build_report, compare_runs
from segshift.report.reading import read_run
from segshift.report.rounds import PASS_COLOURS as SHOWN_COLOURS
from segshift.report.rounds import coverage_rows
from segshift.report.values import below_one

PLAIN, RICH = "03-labels_1", "05-labels_2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_run(tmp_path_factory.mktemp("whole") / "rounds")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "rounds")


def test_order_of_sections(run: Path) -> None:
    html, page = read(run)
    names = ("verdict", "run", "stages", "classes", "panels", "labels", "curves", "settings")
    places = [html.index(f'id="{name}"') for name in names]
    assert places == sorted(places)
    assert "Missing or damaged" not in page.text


def test_a_run_without_labels_has_nothing_of_it(tmp_path: Path) -> None:
    html, page = read(write_run(tmp_path / "plain", panels=1))
    body = html.split("</style>")[1].split("<script>")[0]
    assert not re.search("pseudo|labels|per stage|class=.round|chain|voting", body, re.IGNORECASE)
    assert page.tags.count("details") == 1


def test_how_much_is_labelled(run: Path) -> None:
    plain, rich = rounds(read(run)[0])
    counted = content(run, f"{RICH}/statistics.json")
    total = [f"{100 * sum(row) / counted['pixels']:.1f}" for row in counted["labelled"]]
    assert f"labels_2 {total[0]} → {total[-1]} % of the pixels labelled" in rich
    assert f"All classes of all pixels {total[0]} → {total[-1]}" in rich
    alone, voted = (100 * counted["labelled"][row][0] / counted["predicted"][0] for row in (0, -1))
    predicted = 100 * counted["predicted"][0] / counted["pixels"]
    assert f"road {predicted:.1f} % {alone:.1f} → {voted:.1f} 0.9999 sidewalk" in rich
    assert "bicyclist – – none taken" in rich
    assert "none taken: nothing is labelled as this class" in rich
    only = content(run, f"{PLAIN}/statistics.json")
    assert f"road {predicted:.1f} % {100 * only['labelled'][0][0] / only['predicted'][0]:.1f} 0.9999" in plain
    assert "voting" not in plain.lower()
    assert "most confident 30 % of the pixels predicted as it" in rich
    assert "Made with the network of tpld_1. tpld_2 trains on them." in rich
    assert "Made with the network of source_only. tpld_1 trains on them." in plain


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("global", "one threshold for all classes: the most confident 30 % of all pixels Images"),
        ("quantile", "above the lowest 50 % of its confidences; no threshold is above 0.9 Images"),
        ("fixed", "one fixed threshold for all classes, 0.95 Images"),
        ("argmax", "the best class of every pixel, however unsure the network is Images"),
        ("some_other", "Rule some other Images"),
    ],
)
def test_rules_in_words(run: Path, rule: str, said: str) -> None:
    change(run / f"{RICH}/thresholds.json", rule=rule)
    assert said in rounds(read(run)[0])[1]
    if rule == "global":
        change(run / f"{RICH}/thresholds.json", portion=None)
        assert "Rule global Images" in rounds(read(run)[0])[1]


def test_bars_in_the_colours_of_the_classes(run: Path) -> None:
    html, _ = read(run)
    last = html[html.rindex('<details class="round"') :]
    road = re.search(r"<bdi>road</bdi>.*?</tr>", last, re.DOTALL)
    assert road is not None
    bars = re.findall(r'<i( class="voted")? style="color:#804080;width:([\d.]+)%"></i>', road[0])
    counted = content(run, f"{RICH}/statistics.json")
    alone, voted = (counted["labelled"][row][0] / counted["predicted"][0] for row in (0, -1))
    assert [name for name, _ in bars] == ["", ' class="voted"']
    assert [float(width) for _, width in bars] == pytest.approx([100 * alone, 100 * (voted - alone)], abs=0.06)


def test_quality_before_and_after_each_pass(run: Path) -> None:
    plain, rich = rounds(read(run)[0])
    rows = content(run, f"{RICH}/quality.json")["rows"]
    assert "How often" not in plain
    first, last = rows[0], rows[3]
    for row in rows[1:4]:
        added = row["added"]
        words = f"{100 * row['coverage']:.1f} {100 * row['precision']:.1f}"
        said = f"{row['name'].capitalize()} {words} +{100 * added['coverage']:.1f} {100 * added['precision']:.1f} right"
        assert said in rich
    wider, truer = (100 * (last[key] - first[key]) for key in ("coverage", "precision"))
    assert f"({wider:+.1f} points), and the share of right ones among them" in rich
    assert f"({truer:+.1f} points).".replace("-", "−") in rich
    assert "on 12 images of data/camvid/train" in rich
    assert f"{100 * last['precision']:.1f} % of these right" in rich, "in the line that is seen when folded"
    road = [row["classes"][0] for row in rows]
    cells = " ".join(f"{100 * c['precision']:.1f} covers {100 * c['coverage']:.1f}" for c in road)
    assert f"road {cells}" in rich.split("by class")[1]


def test_easy_and_hard_images(run: Path) -> None:
    plain, rich = rounds(read(run)[0])
    cutoff = content(run, f"{RICH}/statistics.json")["easy_cutoff"]
    assert f"4 easy , 8 hard : an image is easy with a score of at least {cutoff:.3f}" in rich
    assert "4 of 12 images easy" in rich
    assert "easy" not in plain.lower()
    entries = content(run, f"{RICH}/panels/index.json")
    hard = next(entry for entry in entries if entry["easy"] is False)
    assert f"score {hard['score']:.3f} · discriminator {hard['discriminator']:.2f}" in rich
    assert rich.count("Full labels the best class of every pixel") == sum(entry["easy"] for entry in entries)


@pytest.mark.parametrize(("easy", "said"), [(True, "12 easy , 0 hard"), (False, "0 easy , 12 hard")])
def test_an_empty_part_of_a_split(run: Path, easy: bool, said: str) -> None:
    counted = content(run, f"{RICH}/statistics.json")
    for entry in counted["per_image"]:
        entry["easy"] = easy
    change(run / f"{RICH}/statistics.json", per_image=counted["per_image"], easy_cutoff=None)
    text = rounds(read(run)[0])[1]
    assert said in text
    assert "at least" not in text


def test_pictures_and_their_legend(run: Path) -> None:
    html, page = read(run)
    entries = content(run, f"{RICH}/panels/index.json")
    shown = sum(name is not None for entry in entries for name in entry["files"].values())
    assert page.tags.count("img") == 2 * 5 + 4 * 2 + shown + 1
    plain, rich = rounds(html)
    assert "Labels after voting" not in plain
    legend = "What voting added: thresholds voting pass 1 voting pass 2 voting pass 3 not labelled"
    assert legend in rich
    assert "What voting added" not in plain
    assert rich.count("What voting added blue, yellow, red: pass 1, 2, 3") == 4
    assert "bicyclist not labelled; in the truth: ignored What" in rich
    assert "bicyclist not labelled seq0" in plain
    colours = re.findall(r'<i style="background:(#\w+)"></i>(?:thresholds|voting pass)', html)
    assert colours == ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in PASS_COLOURS[:4]]
    assert SHOWN_COLOURS == PASS_COLOURS
    kinds = re.findall(r'data-kind="(\w+)"', html[html.rindex('class="shots') :])
    assert kinds[:5] == ["image", "sparse", "densified", "added", "truth"]


@pytest.mark.parametrize(
    ("passes", "last"),
    [(1, "voting pass 1"), (4, "voting pass 4"), (5, "voting pass 4 and later"), (9, "voting pass 4 and later")],
)
def test_legend_of_few_and_many_passes(run: Path, passes: int, last: str) -> None:
    (run / f"{RICH}/quality.json").unlink()
    counted = content(run, f"{RICH}/statistics.json")["labelled"]
    change(run / f"{RICH}/statistics.json", labelled=counted[:1] + [counted[-1]] * passes)
    text = rounds(read(run)[0])[1].split("What voting added:")[1].split("not labelled")[0]
    assert text.strip().endswith(last)
    assert text.count("voting pass") == min(passes, 4)


def test_labels_beyond_the_predictions(run: Path) -> None:
    """CBST's label can differ from the prediction: a class may get more labels than it has predictions."""
    counted = content(run, f"{PLAIN}/statistics.json")
    counted["labelled"][0][0] = 3 * counted["predicted"][0]
    change(run / f"{PLAIN}/statistics.json", labelled=counted["labelled"])
    html, _ = read(run)
    assert "road 28.4 % 300.0 0.9999" in rounds(html)[0]
    assert "above 100 where pixels predicted as another class get this label" in rounds(html)[0]
    assert "above 100" not in rounds(html)[1]
    assert max(float(width) for width in re.findall(r"width:([\d.]+)%", html)) <= 100


def test_no_pixel_is_labelled(run: Path) -> None:
    counted = content(run, f"{PLAIN}/statistics.json")
    nothing = [{**entry, "labelled": 0.0} for entry in counted["per_image"]]
    change(run / f"{PLAIN}/statistics.json", labelled=[[0] * len(CLASSES)], per_image=nothing)
    text = rounds(read(run)[0])[0]
    assert "labels_1 0.0 % of the pixels labelled" in text
    assert "12 without any label" in text


def test_everything_is_escaped(run: Path) -> None:
    nasty = "</script><img src=x onerror=alert(1)> {{ 7*7 }} ü"
    clean = set(read(run)[1].tags)
    change(run / f"{RICH}/stage.json", name=nasty, init=nasty)
    change(run / f"{RICH}/thresholds.json", rule=nasty, classes=[nasty, *CLASSES[1:]])
    quality = content(run, f"{RICH}/quality.json")
    quality["rows"][0]["name"] = quality["domain"] = nasty
    (run / f"{RICH}/quality.json").write_text(json.dumps(quality))
    entries = content(run, f"{RICH}/panels/index.json")
    entries[0].update(name=nasty, caption=nasty)
    (run / f"{RICH}/panels/index.json").write_text(json.dumps(entries))
    html, page = read(run)
    assert "<img src=x" not in html
    assert page.text.count("alert(1)") >= 6
    assert set(page.tags) <= clean


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def other(path: Path) -> None:
    path.write_text("[3]")


LOST: dict[str, tuple[str, str]] = {
    "stage.json": ("tpld_2 trains on them.", "How often the labels are right"),
    "thresholds.json": ("class-balanced", "How often the labels are right"),
    "statistics.json": ("All classes", "How often the labels are right"),
    "quality.json": ("How often the labels are right", "All classes"),
    "panels/index.json": ("What voting added", "All classes"),
}
"""File → what goes with it, and what stays."""


@pytest.mark.parametrize("damage", [gone, cut, other])
@pytest.mark.parametrize("name", LOST)
def test_damage_costs_only_its_own_part(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / RICH / name)
    html, page = read(run)
    plain, rich = rounds(html)
    lost, kept = LOST[name]
    assert kept in rich
    # Where stage.json is lost, run.yaml and the folder's name still tell what the stage is.
    assert name == "stage.json" or lost not in rich
    assert "All classes" in plain
    assert "mIoU per stage" in page.text
    silent = (damage is gone and name == "quality.json") or (
        damage is other and name in ("stage.json", "panels/index.json")
    )
    assert silent or RICH in problems_of(html)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("thresholds.json", {"thresholds": [0.5]}, "1 thresholds for 11 classes"),
        ("statistics.json", {"predicted": [1, 2, 3]}, "its counts do not fit 11 classes"),
        ("statistics.json", {"labelled": [[1] * 11, [1] * 10]}, "its counts do not fit 11 classes"),
        ("statistics.json", {"predicted": [10**400] * 11}, "its counts do not fit 11 classes"),
        ("quality.json", {"rows": []}, "holds no rows"),
    ],
)
def test_files_that_do_not_fit_are_named(run: Path, file: str, values: dict[str, Any], said: str) -> None:
    change(run / RICH / file, **values)
    html, _ = read(run)
    assert f"{RICH}/{file}" in problems_of(html)
    assert said in problems_of(html)


def test_wrong_units_are_not_shown(run: Path) -> None:
    quality = content(run, f"{RICH}/quality.json")
    quality["rows"][0].update(coverage=35.2, precision=95.9)
    (run / f"{RICH}/quality.json").write_text(json.dumps(quality))
    text = rounds(read(run)[0])[1]
    assert "3520" not in text
    assert "9590" not in text


def test_damaged_pictures_and_files_outside(run: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(run.parent / "secret.png")
    (run / f"{RICH}/panels/000-sparse.png").write_bytes(b"no picture")
    (run / f"{RICH}/panels/001-added.png").unlink()
    entries = content(run, f"{RICH}/panels/index.json")
    before = read(run)[1].tags.count("img")
    entries[2]["files"]["truth"] = "../../../secret.png"
    (run / f"{RICH}/panels/index.json").write_text(json.dumps(entries))
    html, page = read(run)
    assert page.tags.count("img") == before - 1
    assert f"{RICH}/panels/000-sparse.png is damaged" in problems_of(html)
    assert f"{RICH}/panels/001-added.png is missing" in problems_of(html)
    assert "secret.png is missing" in problems_of(html)


def test_an_unfinished_stage_lacks_nothing(run: Path) -> None:
    for path in (run / RICH).rglob("*"):
        if path.is_file() and path.name != "stage.json":
            path.unlink()
    change(run / f"{RICH}/stage.json", done=False)
    html, _ = read(run)
    assert "labels_2 not finished" in rounds(html)[1]
    assert "Nothing can be shown of these labels" in rounds(html)[1]
    assert problems_of(html).count(RICH) == 1


def test_classes_come_from_the_run_where_thresholds_are_lost(run: Path) -> None:
    (run / f"{RICH}/thresholds.json").unlink()
    rows = coverage_rows(read_run(run).labels[1])
    assert [row.name for row in rows] == list(CLASSES)
    assert rows[0].colour == "#804080"
    (run / "metrics.json").unlink()
    rows = coverage_rows(read_run(run).labels[1])
    assert rows[3].name == "class 3"


def test_stays_small(tmp_path: Path) -> None:
    run = write_rounds_run(tmp_path / "big", panels=2)
    noise = Image.effect_noise((1024, 512), 90).convert("RGB")
    noise.save(tmp_path / "noise.png", compress_level=1)
    for path in run.glob("*/panels/*-*.*"):
        path.unlink()
        path.hardlink_to(tmp_path / "noise.png")
    assert build_report(run).stat().st_size < 6_000_000


def test_such_runs_can_be_compared(run: Path, tmp_path: Path) -> None:
    other_run = write_run(tmp_path / "advent", panels=2)
    html = compare_runs([run, other_run], tmp_path).read_text(encoding="utf-8")
    assert "tpld" in html


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "0.500"), (0.9994, "0.999"), (0.99996, "0.99996"), (1.0, "1.000"), (0.9999999, "1.000000"), (None, "–")],
)
def test_thresholds_close_to_one(value: float | None, said: str) -> None:
    assert below_one(value) == said
