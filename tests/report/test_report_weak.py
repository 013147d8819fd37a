"""Weak labels in the report: figures of tags, gains, attention, collapse; and that damage costs only its part."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_run import ADAPTED, CLASSES, SOURCE, write_run
from fake_weak import CONTROL, FOLDER, PRESENT, content, network, part, write_log, write_weak_run
from page_reader import Reader, change, problems_of, read
from page_reader import part as section
from test_report_browser import CONTRAST, LONG, browser, opened
from test_report_damage import damaged, junk

if not hasattr(browser, "__name__"):
    raise AssertionError("the fixture of test_report_browser is used here")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weak_run(tmp_path_factory.mktemp("whole") / "weak")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "weak"))


def show(run: Path, **over: Any) -> str:
    """The section's text with another tags.json."""
    (run / FOLDER / "tags.json").write_text(json.dumps(content(**over)), encoding="utf-8")
    return section(read(run)[0], "weak")


def rows(html: str, table: str) -> list[list[str]]:
    """The cells of the first table of a class, as text."""
    found = re.search(rf'<table class="[^"]*\b{table}\b.*?</table>', html, re.DOTALL)
    assert found
    lines = re.findall(r"<tr.*?</tr>", found[0], re.DOTALL)
    return [[Reader(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)] for line in lines]


# ---- tags


def test_what_is_said_of_tags(run: Path) -> None:
    html, page = read(run)
    said = section(html, "weak")
    assert "It learned from a person's points and tags of 367 images." in said
    assert "where its pooled probability is above 0.2" in said
    assert (
        "against a person's tags of 100 images of camvid/train, of 367; the stage learned from these very tags" in said
    )
    assert "weak_labels guesses 6.8 tags an image (5.2); 7.5 classes are there." in said
    assert "95.6 % of its tags are right (91.2 %), and they name 87.3 % of the classes that are there (63.4 %)." in said
    assert "In brackets: source_only, which it started from." in said
    assert "Missing or damaged" not in page.text
    assert html.index('id="panels"') < html.index('id="weak"') < html.index('id="curves"')


def test_the_table_of_tags(run: Path) -> None:
    head, *lines, total = rows(read(run)[0], "tagged")
    assert head == ["Class", "Images", "Precision: before → after", "Recall: before → after"]
    assert len(lines) == len(CLASSES)
    assert lines[0] == ["road", "90", "91.2 → 95.6", "63.4 → 87.3"]
    assert lines[9] == ["vehicle", str(PRESENT[9]), "82.2 → 86.6", "54.4 → 78.3"]
    assert lines[10] == ["bicyclist", "0", "– → –", "– → –"]
    assert total == ["All classes over all tags of all images", "749", "91.2 → 95.6", "63.4 → 87.3"]


def test_without_a_network_before(run: Path) -> None:
    said = show(run, parts=[part(networks=[network("weak_labels", 0.956, 0.873, 6.8)])])
    assert "In brackets" not in said
    assert "weak_labels guesses 6.8 tags an image; 7.5 classes" in said
    assert rows(read(run)[0], "tagged")[1] == ["road", "90", "95.6", "87.3"]


def test_by_labels(run: Path) -> None:
    said = show(run, parts=[part(), part("labels", "/data/camvid/val", of=100)])
    where = "against the labels of 100 images of camvid/val, which training never sees; a class is there with at least"
    assert f"{where} 50 pixels" in said
    assert said.count("Are guessed tags right?") == 2
    html = read(run)[0]
    assert re.findall(r'<details class="by-class"( open)?><summary>By class', html) == [" open", ""]


def test_unseen_tags(run: Path) -> None:
    said = show(run, mode="pseudo", named=None, parts=[part(learned=False)])
    assert "the stage learned from none of them" in said
    assert "It learned from tags that the network itself guesses, in every step anew." in said
    assert "Classes that a person tagged or clicked count as well" not in said


def test_precision_means_nothing_where_every_image_shows_every_class(run: Path) -> None:
    words = "Each of these images shows every class"
    assert words not in section(read(run)[0], "weak")
    assert words in show(run, parts=[part(present=[100] * 11)])
    assert words not in show(run, parts=[part(present=[100] * 10 + [99])])


def test_no_tags_guessed(run: Path) -> None:
    none = {**network("weak_labels", 0.0, 0.0, 0.0), "precision": None}
    said = show(run, parts=[part(networks=[network("source_only", 0.9, 0.8, 5.0), none])])
    assert "weak_labels guesses no tags here." in said
    assert "nan" not in said.lower()
    assert "None" not in said


def test_nothing_known_of_tags(run: Path) -> None:
    html = read(run)[0]
    assert "Are guessed tags right?" in html
    (run / FOLDER / "tags.json").write_text(json.dumps({**content(), "parts": []}), encoding="utf-8")
    said = section(read(run)[0], "weak")
    assert "Are guessed tags right?" not in said
    assert "Which classes gained" in said


# ---- gains


def test_classes_by_what_they_gained(run: Path) -> None:
    html = read(run)[0]
    head, *lines = rows(html, "gained")
    assert head == ["Class named by weak labels in", "IoU", "Over source_control", "Over source_only"]
    order = sorted(range(10), key=lambda k: -((ADAPTED[k] or 0) - (CONTROL[k] or 0)))
    assert [line[0].split(" ")[0] for line in lines] == [CLASSES[k] for k in order] + ["bicyclist"]
    first = order[0]
    gain = 100 * ((ADAPTED[first] or 0) - (CONTROL[first] or 0))
    assert lines[0][1:] == [f"{100 * (ADAPTED[first] or 0):.1f}", f"{gain:+.1f}", f"{gain + 1:+.1f}"]
    assert lines[0][0] == f"{CLASSES[first]} {300 + first} images · {400 + first} points"
    by_name = {line[0].split(" ")[0]: line for line in lines}
    assert by_name["vehicle"][0] == "vehicle 309 images · 1 point"
    assert by_name["bicyclist"][0] == "bicyclist 1 image"
    assert by_name["pole"][2] == "−2.2"
    said = section(html, "weak")
    assert "9 of 10 classes gained over source_control, most sky +29.7, " in said
    assert "; 1 lost, most pole −2.2." in said


def test_without_a_control_gains_are_over_the_start(run: Path) -> None:
    change(run / "metrics.json", control=None)
    change(run / "02-source_control" / "stage.json", method="source_only")
    head, *lines = rows(read(run)[0], "gained")
    assert head[2:] == ["Over source_only"]
    assert lines[0][2] == f"{100 * ((ADAPTED[7] or 0) - (SOURCE[7] or 0)):+.1f}"


def test_all_gained(run: Path) -> None:
    models = json.loads((run / "metrics.json").read_text())["models"]
    models["weak_labels"]["iou"] = [None if iou is None else iou + 0.05 for iou in CONTROL]
    change(run / "metrics.json", models=models)
    assert "10 of 10 classes gained over source_control" in section(read(run)[0], "weak")
    assert "; none lost." in section(read(run)[0], "weak")


def test_pseudo_tags_name_nothing(run: Path) -> None:
    show(run, named=None, mode="pseudo")
    head, *lines = rows(read(run)[0], "gained")
    assert head[0] == "Class"
    assert all(line[0] in CLASSES for line in lines)


@pytest.mark.parametrize("missing", ["metrics.json", "the stage's model"])
def test_unmeasured(run: Path, missing: str) -> None:
    if missing == "metrics.json":
        (run / "metrics.json").unlink()
    else:
        models = json.loads((run / "metrics.json").read_text())["models"]
        change(run / "metrics.json", models={k: v for k, v in models.items() if k != "weak_labels"})
    said = section(read(run)[0], "weak")
    assert "Which classes gained" not in said
    assert "Are guessed tags right?" in said


# ---- attention


def test_attention(run: Path) -> None:
    html = read(run)[0]
    said = section(html, "weak")
    assert "seq0/frame_0000 · +12.3 IoU points over source_control" in said
    assert said.count("source_only p 0.41 · half on 12 %") == 2
    assert said.count("weak_labels p 0.93 · half on 3.1 %") == 2
    assert "Image 1 point " in said
    figures = re.findall(r'data-kind="(\w+)" data-name="(road|sidewalk)"', html)
    assert figures == [(kind, name) for name in ("road", "sidewalk") for kind in ("image", "before", "after")]
    assert html.count('src="data:image/jpeg') >= 6


def test_without_pictures(run: Path) -> None:
    shutil.rmtree(run / FOLDER / "attention")
    html, page = read(run)
    assert "Attention" not in section(html, "weak")
    assert "Missing or damaged" not in page.text


def test_a_missing_picture_is_named(run: Path) -> None:
    (run / FOLDER / "attention" / "001-map1.jpg").unlink()
    html, _ = read(run)
    assert f"{FOLDER}/attention/001-map1.jpg is missing" in problems_of(html)
    assert len(re.findall(r'class="tile" data-kind="(?:before|after)"', html)) == 3


def test_pictures_from_outside_are_not_embedded(run: Path) -> None:
    shutil.copy(run / FOLDER / "attention" / "000-map0.jpg", run / "secret.jpg")
    index = run / FOLDER / "attention" / "index.json"
    index.write_text(index.read_text().replace("000-map0.jpg", "../../secret.jpg"))
    html, _ = read(run)
    assert "secret.jpg is missing" in problems_of(html)


# ---- figures of the log


def test_curves_of_the_log_s_figures(run: Path) -> None:
    html = read(run)[0]
    said = section(html, "weak")
    assert "Classes taken for present in an image 9 → 7.4" in said
    assert "Mean pooled logit 0.1 → 0.9" in said
    assert "Classes that a person tagged or clicked count as well." in said
    assert "collapsed" not in said
    assert "present" not in section(html, "curves"), "they are no losses"


@pytest.mark.parametrize(
    ("end", "there", "word"),
    [
        (0.0, 7.5, "almost none."),
        (0.49, 7.5, "almost none."),
        (0.51, 7.5, ""),
        (10.49, 7.5, ""),
        (10.51, 7.5, "almost all 11."),
        (11.0, 7.5, "almost all 11."),
        (11.0, None, "almost all 11."),
        (11.0, 10.6, ""),
        (0.1, 0.3, ""),
    ],
)
def test_collapse_is_warned_of(run: Path, end: float, there: float | None, word: str) -> None:
    write_log(run, [5.0, *[end] * 200])
    said = show(run, parts=[part(per_image=there)] if there is not None else [])
    assert ("The tags have collapsed" in said) == bool(word)
    if word:
        assert f"at the end {end:.1f} classes are taken for present in an image, which is {word}" in said


def test_a_collapse_that_was_overcome_is_none(run: Path) -> None:
    write_log(run, [*[11.0] * 60, *[7.5] * 60])
    assert "collapsed" not in show(run)


# ---- whatever there is


def test_other_runs_have_no_section(tmp_path: Path) -> None:
    html, _ = read(write_run(tmp_path / "plain", panels=1))
    assert 'id="weak"' not in html


def test_a_run_that_has_just_begun(run: Path) -> None:
    for name in ("tags.json", "log.jsonl"):
        (run / FOLDER / name).unlink()
    shutil.rmtree(run / FOLDER / "attention")
    (run / "metrics.json").unlink()
    html, page = read(run)
    assert 'id="weak"' not in html
    assert "tags.json" not in page.text
    write_log(run, [5.0, 6.0])
    said = section(read(run)[0], "weak")
    assert "Classes taken for present in an image" in said


@pytest.mark.parametrize(
    "text", ['{"parts": [', "[]", "3", '{"parts": [{}], "classes": ["a"]}', '{"classes": 3, "x": 1}']
)
def test_a_damaged_file_costs_its_part(run: Path, text: str) -> None:
    (run / FOLDER / "tags.json").write_text(text, encoding="utf-8")
    html, _ = read(run)
    said = section(html, "weak")
    assert "Are guessed tags right?" not in said
    assert "Which classes gained" in said
    assert "Attention" in said
    if text not in ("[]", "3"):
        assert f"{FOLDER}/tags.json" in problems_of(html)


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_leaves_a_page(run: Path, seed: int) -> None:
    rng = random.Random(seed)
    for path in (run / FOLDER / "tags.json", run / FOLDER / "attention" / "index.json"):
        known = json.loads(path.read_text())
        path.write_text(json.dumps(junk(rng) if seed % 5 == 0 else damaged(rng, known)), encoding="utf-8")
    html, _ = read(run)
    assert html.rstrip().endswith("</html>")
    said = section(html, "weak")
    assert not re.search(r"nan\b ?(%|→|tags|image)|[→+−] ?nan\b", said)
    assert "None" not in said


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, run: Path, width: int, scheme: str) -> None:
    for path in (run / "metrics.json", run / FOLDER / "tags.json", run / FOLDER / "attention" / "index.json"):
        path.write_text(path.read_text().replace("sidewalk", LONG).replace("frame_0001", LONG))
    write_log(run, [11.0] * 30)
    read(run)
    messages: list[str] = []
    page = opened(browser, run / "report.html", width, messages, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll("#weak *")].filter((e) => !e.closest(".scroll, svg")
        && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""
    assert page.evaluate(beyond) == []
    tops = page.evaluate(
        "[...document.querySelectorAll('.pairs .tiles')][0].querySelectorAll('img').values()"
        ".map((e) => e.getBoundingClientRect().y).toArray()"
    )
    assert len(tops) == 3
    assert max(tops) - min(tops) < 1, "side by side"
    assert page.locator("#weak .warning").is_visible()
    assert page.evaluate(CONTRAST) == []
    page.locator('#weak .tile[data-kind="before"]').first.click()
    assert page.locator("#v-caption").inner_text() == "source_only"
    page.locator("#v-next").click()
    assert page.locator("#v-caption").inner_text() == "weak_labels"
    assert messages == []
    page.close()
