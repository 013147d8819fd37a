"""The report of a run: what it says, that it is self-contained, and that damage costs only what is damaged."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import ADAPTED, SOURCE, mean, metrics, write_run
from page_reader import Reader, change, read
from PIL import Image

from segshift.errors import UserError
from segshift.report import build_report

NASTY = """a<b>&amp;"q"'s' </script><img src=x onerror=alert(1)> ünï 路 {{ 7*7 }} \u202e"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "city-camvid", panels=2)


def test_says_what_was_found(run: Path) -> None:
    _, page = read(run)
    gain = mean(ADAPTED) - mean(SOURCE)
    assert "Adaptation helped" in page.text
    before, after = f"{100 * mean(SOURCE):.1f}", f"{100 * mean(ADAPTED):.1f}"
    sentence = (
        f"On the 48 labelled images of val, advent reached {after} mIoU"
        f" against {before} for source, the source-only control"
    )
    assert f"{sentence}: {100 * gain:.1f} points more." in page.text
    assert f"{100 * gain:+.1f}" in page.text
    assert "Gained most: sky +30.7" in page.text
    assert "Lost most: pole −1.2" in page.text
    for part in (
        "data/city · 120 images",
        "data/camvid/train · 121 images",
        "data/camvid/val · 48 images",
        "source_only",
    ):
        assert part in page.text
    for part in ("1 min 33 s", "200 steps", "torch 2.13.0", "AMD EPYC 7B13", "--method advent", "Learns the classes"):
        assert part in page.text
    assert "even spacing" in page.text
    assert "Missing or damaged" not in page.text


def test_order_of_sections(run: Path) -> None:
    html, _ = read(run)
    places = [html.index(f'id="{name}"') for name in ("verdict", "run", "classes", "panels", "curves", "settings")]
    assert places == sorted(places)


def test_is_self_contained(run: Path) -> None:
    html, page = read(run)
    assert page.loads
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", html)
    assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "default-src 'none'" in html
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_its_script_is_the_one_its_policy_allows(run: Path) -> None:
    html, _ = read(run)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"script-src 'sha256-{digest}'" in html


def test_same_run_same_page(run: Path) -> None:
    assert read(run)[0] == read(run)[0]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_everything_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x <i>&'\" ü", panels=1)
    clean = Reader(build_report(run).read_text(encoding="utf-8")).tags
    scores = metrics()
    scores["classes"][0] = NASTY
    scores["domain"] = NASTY
    scores["models"][NASTY] = scores["models"].pop("advent")
    scores["adapted"] = NASTY
    (run / "metrics.json").write_text(json.dumps(scores))
    change(run / "02-adapt/stage.json", name=NASTY, method=NASTY, purpose=NASTY)
    change(run / "env.json", command=NASTY, machine={NASTY: NASTY}, domains={"source": {"root": NASTY}})
    index = json.loads((run / "panels/index.json").read_text())
    index[0].update(name=NASTY, caption=NASTY)
    (run / "panels/index.json").write_text(json.dumps(index))
    with (run / "02-adapt/log.jsonl").open("a") as log:
        log.write("".join(json.dumps({"step": step, "loss": {NASTY: 1.0}}) + "\n" for step in range(3)))
    (run / "run.yaml").write_text(f"note: {json.dumps(NASTY)}\n</pre></details>{NASTY}: 1\n")
    html, page = read(run)
    assert "<b>&amp;" not in html
    assert "<img src=x" not in html
    assert page.text.count(" ".join(NASTY.split())) >= 8
    # The one more chart has some tags more, but none of a new kind.
    assert set(page.tags) <= set(clean)
    assert page.tags.count("img") == clean.count("img")


def test_names_that_are_no_text(run: Path) -> None:
    change(run / "metrics.json", domain="bad \ud800 name")
    assert "bad ? name" in read(run)[1].text


def test_nan_is_a_dash_and_explained(run: Path) -> None:
    html, page = read(run)
    row = re.search(r'<tr class="absent">(.*?)</tr>', html, re.DOTALL)
    assert row is not None
    assert row[1].count("–") == 4
    assert "nan" not in page.text.lower()
    assert "absent from the ground truth" in page.text


@pytest.mark.parametrize("absent", ["null", "NaN", "Infinity"])
def test_every_way_to_write_nan(run: Path, absent: str) -> None:
    content = (run / "metrics.json").read_text()
    assert "NaN" in content
    (run / "metrics.json").write_text(content.replace("NaN", absent))
    assert "absent from the ground truth" in read(run)[1].text


def test_means_of_the_sixteen_and_thirteen(run: Path) -> None:
    scores = metrics()
    assert "mIoU16" not in read(run)[1].text
    scores["models"]["advent"].update(miou16=0.4321, miou13=0.4987)
    (run / "metrics.json").write_text(json.dumps(scores))
    text = read(run)[1].text
    assert "mIoU16" in text
    assert "43.2" in text
    assert "49.9" in text


@pytest.mark.parametrize(
    ("factor", "helped", "headline", "words"),
    [
        (0.8, False, "Adaptation hurt", "points less"),
        (1.0, False, "No clear difference", "no difference"),
        (1.015, None, "No clear difference", "0.4 points more"),
        (1.015, True, "Adaptation helped", "0.4 points more"),
        (1.1, None, "Adaptation helped", "2.6 points more"),
        (1.1, False, "No clear difference", "2.6 points more"),
        (0.9, True, "Adaptation hurt", "points less"),
    ],
)
def test_verdicts(run: Path, factor: float, helped: bool | None, headline: str, words: str) -> None:
    scores = metrics(tuple(None if value is None else factor * value for value in SOURCE))
    scores["verdict"]["helped"] = helped
    (run / "metrics.json").write_text(json.dumps(scores))
    text = read(run)[1].text
    assert headline in text
    assert words in text


def test_no_labelled_part(run: Path) -> None:
    (run / "metrics.json").unlink()
    html, page = read(run)
    assert "No labelled part: no verdict" in page.text
    assert 'id="classes"' not in html
    assert "vegetation" in page.text, "the legend comes from the model's own file"


def test_no_control(run: Path) -> None:
    scores = metrics()
    del scores["models"]["source"]
    (run / "metrics.json").write_text(json.dumps(scores | {"control": None, "verdict": None}))
    text = read(run)[1].text
    assert "No source-only control: no verdict" in text
    assert "source source_only control" not in text, "it is what the method starts from, no more"
    assert f"advent reached {100 * mean(ADAPTED):.1f} mIoU" in text


def test_a_control_beside_the_stage_that_both_start_from(run: Path) -> None:
    """As the recipes have it: source_only, source_control, then the method."""
    (run / "01-source").rename(run / "01-source_only")
    (run / "02-adapt").rename(run / "03-advent")
    shutil.copytree(run / "01-source_only", run / "02-source_control")
    for folder in ("01-source_only", "02-source_control", "03-advent"):
        change(run / folder / "stage.json", name=folder[3:])
    scores = metrics()
    scores["models"] = {"source_control": scores["models"]["source"], "advent": scores["models"]["advent"]}
    (run / "metrics.json").write_text(json.dumps(scores | {"control": "source_control"}))
    index = json.loads((run / "panels/index.json").read_text())
    for entry in index:
        entry["miou"] = {"source_control": 0.25, "advent": 0.4}
    (run / "panels/index.json").write_text(json.dumps(index))
    html, page = read(run)
    assert f"against {100 * mean(SOURCE):.1f} for source_control, the source-only control: " in page.text
    assert html.count('<span class="pill">control</span>') == 1
    assert "source_control source_only control" in page.text, "the stage, its method, what it is in this run"
    assert "source_control · 25.0 mIoU" in page.text
    assert page.text.count("Losses of") == 3
    assert "Missing or damaged" not in page.text


def test_the_control_is_marked_where_nothing_was_measured(run: Path) -> None:
    (run / "metrics.json").unlink()
    (run / "run.yaml").write_text("control: source\n")
    assert read(run)[0].count('<span class="pill">control</span>') == 1
    (run / "run.yaml").write_text("control: null\n")
    assert '<span class="pill">control</span>' not in read(run)[0]


def test_source_alone(run: Path) -> None:
    shutil.rmtree(run / "02-adapt")
    scores = metrics()
    scores["models"] = {"source": scores["models"]["source"]}
    domain = {"domain": "/home/me/data/camvid/val"}
    (run / "metrics.json").write_text(json.dumps(scores | domain | {"control": None, "adapted": "source"}))
    html, page = read(run)
    assert "Trained on the source alone: no verdict" in page.text
    assert f"On the 48 labelled images of camvid/val, source reached {100 * mean(SOURCE):.1f} mIoU." in page.text
    assert "Adapted" not in page.text.split("Panels")[0]
    assert html.count('scope="col"') == 3


def test_one_point_is_no_curve(run: Path) -> None:
    for log in run.glob("*/log.jsonl"):
        log.write_text('{"step": 5, "loss": {"seg": 2.0}}\n{"step": 5, "val": {"miou": 0.3}}\n')
    _, page = read(run)
    assert "mIoU while training" not in page.text
    assert "Losses of adapt" in page.text


def test_further_models(run: Path) -> None:
    scores = metrics()
    scores["models"]["advent+minent"] = {**scores["models"]["advent"], "miou": 0.4567}
    (run / "metrics.json").write_text(json.dumps(scores))
    text = read(run)[1].text
    assert "Also measured" in text
    assert "advent+minent 45.7" in text


def test_unfinished_run(run: Path) -> None:
    for name in ("metrics.json", "env.json"):
        (run / name).unlink()
    shutil.rmtree(run / "panels")
    shutil.rmtree(run / "02-adapt/model")
    change(run / "02-adapt/stage.json", done=False)
    lines = (run / "02-adapt/log.jsonl").read_text().splitlines()[:70]
    (run / "02-adapt/log.jsonl").write_text("\n".join(lines) + '\n{"step": 69, "lo')
    text = read(run)[1].text
    for part in (
        "Not finished: no verdict yet",
        "not finished",
        "step 68 of 200",
        "1 damaged line",
        "env.json is missing",
    ):
        assert part in text
    assert "This run has no panels" in text
    assert "Losses of adapt" in text


def test_only_settings(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    text = read(tmp_path)[1].text
    assert "No stage has been run yet" in text
    assert "Seed 3" in text


def test_stages_set_aside_are_left_out(run: Path) -> None:
    shutil.copytree(run / "02-adapt", run / "02-adapt.1.aside")
    shutil.copytree(run / "02-adapt", run / ".02-adapt.99.tmp")
    assert read(run)[1].tags.count("polyline") == 10


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "other"])
def test_what_is_no_run(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("hello")
    elif kind != "missing":
        path.mkdir()
    if kind == "other":
        (path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="x"):
        build_report(path)
    assert not (path / "report.html").exists()


def test_damaged_pictures(run: Path) -> None:
    whole = (run / "panels/000-control.png").read_bytes()
    (run / "panels/000-control.png").write_bytes(whole[: len(whole) // 2])
    (run / "panels/000-image.jpg").write_bytes(b"no picture")
    (run / "panels/001-adapted.png").unlink()
    _, page = read(run)
    assert page.tags.count("img") == 2 * 5 - 3 + 1
    assert "000-control.png is damaged" in page.text
    assert "001-adapted.png is missing" in page.text


def test_files_outside_the_run_stay_outside(run: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(run.parent / "secret.png")
    (run / "panels/link.png").symlink_to(run.parent / "secret.png")
    index = json.loads((run / "panels/index.json").read_text())
    index[0]["image"] = "../../secret.png"
    index[0]["truth"] = str(run.parent / "secret.png")
    index[0]["control"] = "link.png"
    index[1]["image"] = "bad\0name.png"
    (run / "panels/index.json").write_text(json.dumps(index))
    assert read(run)[1].tags.count("img") == 2 * 5 - 4 + 1


def test_class_colours_stay_exact_and_photographs_become_jpeg(run: Path) -> None:
    html, _ = read(run)
    uris = re.findall(r'<img src="data:image/(\w+);base64,', html)
    assert uris == ["jpeg", "png", "png", "jpeg", "png"] * 2


def test_stays_small(tmp_path: Path) -> None:
    run = write_run(tmp_path / "big", panels=12)
    noise = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=1)
    for path in (run / "panels").glob("*-*.*"):
        path.unlink()
        path.hardlink_to(tmp_path / "noise.png")
    report = build_report(run)
    assert report.stat().st_size < 6_000_000
    assert "Missing or damaged" not in report.read_text(encoding="utf-8")


def test_leaves_panels_out_rather_than_grow(tmp_path: Path) -> None:
    run = write_run(tmp_path / "many", panels=1)
    noise = np.random.default_rng(0).integers(0, 256, (240, 240, 3)).astype(np.uint8)
    for path in (run / "panels").glob("*-*.*"):
        Image.fromarray(noise).save(path, "PNG")
    entry = json.loads((run / "panels/index.json").read_text())
    (run / "panels/index.json").write_text(json.dumps(entry * 60))
    report = build_report(run)
    assert report.stat().st_size < 6_000_000
    assert "of 60 panels are shown" in report.read_text(encoding="utf-8")


def test_long_logs_stay_small(run: Path) -> None:
    rng = random.Random(0)
    with (run / "02-adapt/log.jsonl").open("w") as log:
        for step in range(0, 250_000, 10):
            log.write(json.dumps({"step": step, "loss": {"seg": rng.random() if step != 5000 else math.nan}}) + "\n")
    html, page = read(run)
    assert max(len(points) for points in re.findall(r'points="([^"]*)"', html)) < 12_000
    assert "1 value (not finite" in page.text
    assert "200k" in page.text


def test_wrong_units_are_not_shown(run: Path) -> None:
    scores = metrics()
    scores["models"]["advent"]["miou"] = 31.2
    (run / "metrics.json").write_text(json.dumps(scores))
    text = read(run)[1].text
    assert "no mIoU in [0, 1] for advent" in text
    assert "3120" not in text
