"""Runs side by side: the best is named only where the numbers measure the same thing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_run import SOURCE, metrics, write_run
from page_reader import Reader, change
from PIL import Image

from segshift.errors import UserError
from segshift.report import compare_runs


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    less = tuple(None if value is None else 1.05 * value for value in SOURCE)
    worse = tuple(None if value is None else 0.8 * value for value in SOURCE)
    return [
        write_run(tmp_path / "a<1>", panels=2),
        write_run(tmp_path / "b", method="minent", adapted=less, quality=0.6, panels=3),
        write_run(tmp_path / "c", method="adaptsegnet", adapted=worse, quality=0.3, panels=2),
    ]


def test_page(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "page.html"
    assert compare_runs(runs, out) == out
    html = out.read_text(encoding="utf-8")
    assert html.count("best-pill") - html.split("</style>")[0].count("best-pill") == 1
    assert "Adaptation hurt" in html
    assert "a&lt;1&gt;" in html
    assert "<1>" not in html
    assert "Not measured alike" not in html
    assert not re.search(r"https?://", html)
    # Two images in common (b has a third), each with image, truth, the predictions and the errors of the one control
    # and of the three results, and the entropy of these.
    assert len(re.findall(r'<img src="data:', html)) == 2 * (2 + 4 + 4 + 3)
    assert out.stat().st_size < 6_000_000


def test_folder_as_target(runs: list[Path], tmp_path: Path) -> None:
    assert compare_runs(runs[:2], tmp_path) == tmp_path / "compare.html"


@pytest.mark.parametrize("what", ["images", "domain", "classes", "root"])
def test_no_best_among_what_is_not_measured_alike(runs: list[Path], tmp_path: Path, what: str) -> None:
    scores = metrics()
    if what == "images":
        scores["models"]["advent"]["images"] = 7
    elif what == "domain":
        scores["domain"] = "night"
    elif what == "classes":
        scores["classes"][3] = "wall"
    else:
        environment = json.loads((runs[0] / "env.json").read_text())
        environment["domains"]["val"]["root"] = "elsewhere"
        (runs[0] / "env.json").write_text(json.dumps(environment))
    (runs[0] / "metrics.json").write_text(json.dumps(scores))
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8").split("</style>")[1]
    assert "Not measured alike" in html
    assert "best-pill" not in html
    assert "value best" not in html


def test_other_controls_are_not_called_one(runs: list[Path], tmp_path: Path) -> None:
    scores = metrics()
    scores["models"]["source"]["miou"] = 0.2
    (runs[0] / "metrics.json").write_text(json.dumps(scores))
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    header = re.findall(r"<thead>.*?</thead>", html, re.DOTALL)[-1]
    assert "Source-only" not in header


def test_runs_without_scores_and_of_one_name(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "metrics.json").unlink()
    twin = write_run(tmp_path / "other" / "a<1>", panels=1)
    html = compare_runs([*runs, twin], tmp_path).read_text(encoding="utf-8")
    assert "other/a&lt;1&gt;" in html
    assert "No labelled part: no verdict" in html


def test_needs_two_runs(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two run folders"):
        compare_runs(runs[:1], tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        compare_runs([runs[0], tmp_path / "nothing"], tmp_path)
    assert not (tmp_path / "compare.html").exists()


def test_a_runs_settings_are_no_page(runs: list[Path]) -> None:
    before = (runs[0] / "run.yaml").read_bytes()
    with pytest.raises(UserError, match=r"run\.yaml"):
        compare_runs(runs[:2], runs[0] / "run.yaml")
    assert (runs[0] / "run.yaml").read_bytes() == before


# ---- the same images


def matrix(html: str) -> str:
    found: list[str] = re.findall(r'<article class="panel matrix">.*?</article>', html, re.DOTALL)
    return found[0]


def alts(html: str) -> list[str]:
    return re.findall(r'alt="([^"]*)"', matrix(html))


def test_controls_that_differ_are_each_named_by_their_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, panels=2) for name in "ab"]
    panels = runs[1] / "panels"
    first = json.loads((panels / "index.json").read_text())[0]
    (panels / first["control"]).write_bytes((panels / first["truth"]).read_bytes())
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    heads = Reader(re.findall(r"<thead>.*?</thead>", matrix(html), re.DOTALL)[0]).text
    assert heads.startswith("Image Source-only of a ")
    assert "Source-only of b" in heads


def test_the_same_image_in_columns_of_models(tmp_path: Path) -> None:
    named = [("a", "advent", 0.9), ("b", "minent", 0.5)]
    runs = [write_run(tmp_path / n, method=m, quality=q, panels=2, certainty=True) for n, m, q in named]
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    heads = Reader(re.findall(r"<thead>.*?</thead>", matrix(html), re.DOTALL)[0]).text
    assert re.fullmatch(r"Image Source-only [\d.]+ mIoU a [\d.]+ mIoU b [\d.]+ mIoU", heads)
    said = alts(html)
    image = "seq0/frame_0000"
    assert [alt.split(" of ")[0] for alt in said[:2]] == ["Image", "Source-only"]
    assert f"Ground truth of {image}" in said
    assert f"Entropy of Source-only of {image}, mean 0.30" in said
    assert f"Entropy of a of {image}, mean 0.20" in said
    wrong = {
        name: float(re.search(rf"Errors of {name} of {image}, ([\d.]+) % wrong", matrix(html))[1])  # type: ignore[index]
        for name in ("Source-only", "a", "b")
    }
    truth, guess = (
        np.asarray(Image.open(runs[0] / "panels" / f"000-{kind}.png").convert("RGB")) for kind in ("truth", "adapted")
    )
    assert wrong["a"] == pytest.approx(100 * (truth != guess).any(axis=-1).mean(), abs=0.051)
    assert wrong["a"] < wrong["b"] < 100
    assert 'aria-label="Colour scale of the maps: dark is sure (entropy 0), bright is not (entropy 1)"' in html


def test_images_that_most_runs_have_come_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, panels=count) for name, count in (("a", 3), ("b", 3), ("c", 3))]
    index = json.loads((runs[2] / "panels" / "index.json").read_text())
    (runs[2] / "panels" / "index.json").write_text(json.dumps(index[2:]))
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    names = re.findall(r'<article class="panel matrix">\s*<h3><bdi>([^<]+)', html)
    assert names == ["seq1/frame_0002", "seq0/frame_0000", "seq0/frame_0001"]


def test_without_truth_there_are_no_errors(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, panels=1, certainty=True) for name in ("a", "b")]
    for run in runs:
        (run / "metrics.json").unlink()
        index = json.loads((run / "panels" / "index.json").read_text())
        for entry in index:
            entry["truth"] = None
        (run / "panels" / "index.json").write_text(json.dumps(index))
    said = alts(compare_runs(runs, tmp_path).read_text(encoding="utf-8"))
    assert not any("Errors" in alt or "truth" in alt for alt in said)
    assert sum(alt.startswith("Entropy of") for alt in said) == 3


# ---- what differs


def settings(run: Path, old: str, new: str) -> None:
    text = (run / "run.yaml").read_text()
    assert old in text
    (run / "run.yaml").write_text(text.replace(old, new))


def test_settings_that_differ(runs: list[Path], tmp_path: Path) -> None:
    settings(runs[0], "- name: adapt\n  steps: 200", "- name: align\n  steps: 300\n  settings: {weight: 0.5}")
    settings(runs[1], "stages:", "val: {}\nstages:\n- {name: labels, produce: pseudo_labels, settings: {portion: 0.2}}")
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    found = re.findall(
        r"<tr>.*?</tr>", re.findall(r'<section id="settings".*?</section>', html, re.DOTALL)[0], re.DOTALL
    )
    rows = [Reader(row).text for row in found[1:]]
    assert "result: steps 300 200 200" in rows
    assert "result: weight 0.5 – –" in rows
    assert "labels – pseudo_labels –" in rows
    assert "method advent minent adaptsegnet" in rows
    assert not any(row.startswith(("seed", "view", "result: name", "labels:")) for row in rows)


def test_settings_that_hold_themselves(runs: list[Path], tmp_path: Path) -> None:
    with open(runs[0] / "run.yaml", "a") as file:
        file.write("odd: &x [*x]\n")
    page = Reader(compare_runs(runs, tmp_path / "compare.html").read_text())
    assert "run.yaml is not valid YAML (its aliases (*) hold themselves" in page.text


def test_no_settings_that_differ(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "run.yaml").write_text((runs[0] / "run.yaml").read_text())
    assert 'id="settings"' not in compare_runs(runs[:2], tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 0", "seed: 7", "The seeds differ (a&lt;1&gt;: 7, b: 0, c: 0)"),
        ("data/city", "data/gta", "The source images come from different folders (a&lt;1&gt;: data/gta, b: data/city"),
        ("deeplab_lite", "deeplab_v2", "The networks differ (a&lt;1&gt;: deeplab_v2, b: deeplab_lite"),
    ],
)
def test_runs_that_were_not_trained_alike(runs: list[Path], tmp_path: Path, old: str, new: str, said: str) -> None:
    """The best is still named: it was measured alike."""
    settings(runs[0], old, new)
    (runs[0] / "env.json").write_text((runs[0] / "env.json").read_text().replace(old, new))
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8").split("</style>")[1]
    assert said in html
    assert "Not trained alike" in html
    assert "Not measured alike" not in html
    assert "best-pill" in html


def test_other_numbers_of_steps(runs: list[Path], tmp_path: Path) -> None:
    for run, steps in zip(runs, (200, 500, 200), strict=True):
        for folder, init in (("01-source", ""), ("02-adapt", "source")):
            change(run / folder / "stage.json", steps=steps, init=init)
        change(
            run / "metrics.json",
            adapted="adapt",
            models={**metrics()["models"], "adapt": metrics()["models"]["advent"]},
        )
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    assert "different numbers of training steps (a&lt;1&gt;: 400, b: 1000, c: 400)" in html


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("size: [640, 480]", "in different sizes (a&lt;1&gt;: 640, 480, b: 320, 240"),
        ("evaluation: {flip: true}", "in different ways"),
    ],
)
def test_other_ways_of_measuring_make_no_best(runs: list[Path], tmp_path: Path, line: str, said: str) -> None:
    key = line.split(":")[0]
    for place, run in enumerate(runs):
        given = line if place == 0 else "size: [320, 240]" if key == "size" else "evaluation: {flip: false}"
        settings(run, "stages:", f"{given}\nstages:")
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8").split("</style>")[1]
    assert said in html
    assert "Not measured alike" in html
    assert "best-pill" not in html


# ---- the common control


def test_gains_over_the_common_control(runs: list[Path], tmp_path: Path) -> None:
    """A run without a control of its own is compared with the others' where it trained as long, else with none."""
    for run, name in zip(runs, ("advent", "minent", "adaptsegnet"), strict=True):
        change(run / "01-source" / "stage.json", steps=400, init="")
        (run / "02-adapt").rename(run / f"02-{name}")
        change(run / f"02-{name}" / "stage.json", name=name, steps=400, init="")
    scores = json.loads((runs[1] / "metrics.json").read_text())
    del scores["models"]["source"]
    change(runs[1] / "metrics.json", control=None, models=scores["models"])
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    table = re.findall(r'<section id="classes".*?</section>', html, re.DOTALL)[0]
    assert "the gain over the common control" in table
    road = Reader(re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL)[0]).text
    assert road.split()[:5] == ["road", "61.2", "74.8", "+13.6", "64.3"]
    assert "+3.1" in road
    change(runs[1] / "02-minent" / "stage.json", steps=500)
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    assert "+3.1" not in re.findall(r'<section id="classes".*?</section>', html, re.DOTALL)[0]


def test_curves_of_all_runs(runs: list[Path], tmp_path: Path) -> None:
    html = compare_runs(runs, tmp_path).read_text(encoding="utf-8")
    curves = re.findall(r'<section id="curves".*?</section>', html, re.DOTALL)[0]
    titles = re.findall(r"<figcaption><b>([^<]+)", curves)
    assert titles == ["mIoU while training", "Loss segmentation", "Loss adversarial", "Loss discriminator"]
    key = Reader(re.findall(r'<ul class="key">.*?</ul>', curves, re.DOTALL)[0]).text
    assert key == "a<1> b c Source-only"
