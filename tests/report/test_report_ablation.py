"""The ablation in the report: its figures, its bars, its words, and that damage costs only its part."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_ablation import IOU, NAMES, reached, write_ablation_run
from fake_run import CLASSES, mean, write_run
from page_reader import change, content, part, problems_of, read

from segshift.report.ablation import Ablation, ablation
from segshift.report.charts import bar_chart
from segshift.report.reading import read_run

MIOU = {stage: 100 * mean(reached(stage)) for stage in IOU}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ablation_run(tmp_path_factory.mktemp("whole") / "ablation", panels=1)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "ablation")


def table(run: Path) -> Ablation:
    found = ablation(read_run(run))
    assert found is not None
    return found


def signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def edit(run: Path, place: int, **values: Any) -> None:
    rows = content(run, "metrics.json")["ablation"]
    rows[place] |= values
    change(run / "metrics.json", ablation=rows)


def bars(html: str) -> list[tuple[float, float]]:
    """(y, height) of the chart's bars."""
    found = re.findall(r'<rect class="c0" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)">', html)
    return [(float(y), float(height)) for y, height in found]


# ---- what it says


def test_the_table(run: Path) -> None:
    html, page = read(run)
    text = part(html, "ablation")
    names, stages = list(NAMES.values()), list(NAMES)
    assert text.startswith("Ablation mIoU in percent on val")
    assert f"1 {names[0]} source_only {MIOU['source_only']:.1f} – –" in text
    for place in range(1, len(stages)):
        stage, above = stages[place], stages[place - 1]
        gain = MIOU[stage] - MIOU[above]
        interval = f"{signed(gain - 1.1)} to {signed(gain + 0.9)}"
        start = "source_only" if stage == "warm_up" else "denoise" if stage == "distill_2" else "warm_up"
        best = " best" if stage == "distill_2" else ""
        unclear = "≈ " if stage == "symmetric" else ""
        said = f"{place + 1} {names[place]}{best} {stage} from {start} {MIOU[stage]:.1f} {signed(gain)}"
        assert f"{said} {unclear}{interval} {signed(MIOU[stage] - MIOU['source_only'])}" in text
    assert "Over source-only" in text
    assert "Missing or damaged" not in page.text


def test_the_words(run: Path) -> None:
    text = part(read(run)[0], "ablation")
    assert "measured on the 48 labelled images of val." in text
    assert f"“+ denoising” gains most, {signed(MIOU['weighed'] - MIOU['symmetric'])} points." in text
    assert f"No clear difference by “+ symmetric cross-entropy” ({signed(MIOU['symmetric'] - MIOU['offline'])})" in text
    assert "Lost by" not in text
    assert "against source_control" in text, "what longer training alone brings is told of"
    edit(run, 3, interval=[-0.02, -0.01])
    scores = content(run, "metrics.json")
    scores["models"]["symmetric"]["miou"] = scores["models"]["offline"]["miou"] - 0.013
    (run / "metrics.json").write_text(json.dumps(scores))
    assert "Lost by “+ symmetric cross-entropy” (−1.3)." in part(read(run)[0], "ablation")


def test_a_gain_below_half_a_point_is_none_whatever_its_interval(run: Path) -> None:
    scores = content(run, "metrics.json")
    scores["models"]["symmetric"]["miou"] = scores["models"]["offline"]["miou"] + 0.004
    (run / "metrics.json").write_text(json.dumps(scores))
    edit(run, 3, interval=[0.001, 0.007])
    assert [row.unclear for row in table(run).rows] == [False, False, False, True, False, False, False]
    edit(run, 3, interval=None)
    assert table(run).rows[3].unclear
    assert table(run).rows[3].interval == ""


def test_by_class(run: Path) -> None:
    text = part(read(run)[0], "ablation").split("By class")[1]
    for index in (0, 5, 9):
        shares = [100 * (reached(stage)[index] or 0.0) for stage in NAMES]
        cells = [f"{shares[0]:.1f}", *(f"{b:.1f} {signed(b - a)}" for a, b in itertools.pairwise(shares))]
        assert f"{CLASSES[index]} {' '.join(cells)}".replace("−0.0", "0.0").replace("+0.0", "0.0") in text
    assert "bicyclist – – – – – – –" in text
    lines = {line.name: [best for _, _, best in line.cells] for line in table(run).classes}
    assert lines["vehicle"] == [True, *[False] * 6], "the class that loses"
    assert lines["sky"] == [*[False] * 6, True]
    assert not any(lines["bicyclist"])


def test_bars_are_as_long_as_the_gains(run: Path) -> None:
    html = read(run)[0]
    found = bars(html)
    gains = [MIOU[stage] - MIOU["source_only"] for stage in NAMES]
    assert len(found) == len(gains)
    assert found[0][1] == 0
    scale = found[-1][1] / gains[-1]
    assert [height for _, height in found] == pytest.approx([scale * gain for gain in gains], abs=0.05)
    foot = found[0][0]
    assert [y + height for y, height in found] == pytest.approx([foot] * len(found), abs=0.02)
    levels = re.findall(r'<line class="level" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', html)
    assert [float(level[2]) for level in levels] == [y for y, _ in found[:-1]], "each at the top of the bar before it"
    assert all(float(start) < float(end) for start, end, *_ in levels)
    chart = html[html.index('aria-label="Gain over source-only') :]
    words = re.findall(r'text-anchor="middle">([\d.]+)</text>', chart[: chart.index("</figure>")])
    assert words == [*"1234567", *(f"{MIOU[stage]:.1f}" for stage in NAMES)]


def test_bars_of_losses_hang_down() -> None:
    chart = bar_chart("t", "s", [("a", 0.0, "30"), ("b", -0.02, "28"), ("c", None, "–"), ("d", 0.01, "31")])
    first, second, last = chart.bars
    zero = {label: at for at, label in chart.y_ticks}["0.0"]
    assert (first.top, first.bottom) == (zero, zero)
    assert second.top == last.bottom == zero
    assert second.bottom - second.top == pytest.approx(2 * (last.bottom - last.top), abs=0.03)
    assert second.mark[1] > second.bottom, "its words stand below it"
    assert last.before is None, "what is before it is not known"
    assert chart.bottom > second.mark[1]
    assert last.mark[1] > chart.top - 6
    alone = bar_chart("t", "s", [("a", None, "–")])
    assert alone.bars == ()


def test_the_stages_of_the_branches_are_in_its_table_alone(run: Path) -> None:
    text = part(read(run)[0], "stages")
    for name in ("source_only", "source_control", "warm_up", "denoise", "distill_2"):
        assert name in text
    for name in ("offline", "symmetric", "weighed"):
        assert name not in text
    assert "distill_2 result best" in text
    scores = content(run, "metrics.json")
    scores["models"]["weighed"]["miou"] = 0.99
    (run / "metrics.json").write_text(json.dumps(scores))
    html = read(run)[0]
    assert "best" not in part(html, "stages"), "a branch is"
    assert "+ denoising best" in part(html, "ablation")


def test_where_it_stands(run: Path) -> None:
    html = read(run)[0]
    places = [html.index(f'<section id="{name}"') for name in ("run", "stages", "ablation", "classes", "panels")]
    assert places == sorted(places)


# ---- what is missing or damaged


def test_a_run_without_one_has_nothing_of_it(tmp_path: Path) -> None:
    html, _ = read(write_run(tmp_path / "plain", panels=1))
    body = html.split("</style>")[1].split("<script>")[0]
    assert not re.search("ablation|<rect", body, re.IGNORECASE)


@pytest.mark.parametrize("value", [None, 5, "text", {}, []])
def test_an_ablation_that_is_none(run: Path, value: Any) -> None:
    change(run / "metrics.json", ablation=value)
    html, page = read(run)
    assert 'id="ablation"' not in html
    assert "Missing or damaged" not in page.text


def test_a_row_without_its_model(run: Path) -> None:
    scores = content(run, "metrics.json")
    del scores["models"]["symmetric"]
    (run / "metrics.json").write_text(json.dumps(scores))
    html = read(run)[0]
    assert "metrics.json has no figures of symmetric, a row of its ablation" in problems_of(html)
    rows = table(run).rows
    assert [row.miou is None for row in rows] == [False, False, False, True, False, False, False]
    assert rows[4].gain is None, "it is not compared with another row instead"
    assert rows[4].total is not None
    assert len(bars(html)) == 6
    assert "4 + symmetric cross-entropy symmetric from warm_up – –" in part(html, "ablation")


def test_without_the_first_row_there_are_no_bars(run: Path) -> None:
    edit(run, 0, stage="elsewhere")
    html = read(run)[0]
    assert bars(html) == []
    assert all(row.total is None for row in table(run).rows)
    assert f"3 + offline pseudo-labels offline from warm_up {MIOU['offline']:.1f}" in part(html, "ablation")


def test_nothing_of_it_is_measured(run: Path) -> None:
    rows = [{"stage": "a", "name": "b"}, 7, {"stage": None}]
    change(run / "metrics.json", ablation=rows)
    html = read(run)[0]
    assert 'id="ablation"' not in html
    assert "no figures of a, " in problems_of(html)
    assert "no figures of a nameless stage" in problems_of(html)


@pytest.mark.parametrize("interval", ["text", [1], [None, 2], [0.1, "x"], {"low": 0}])
def test_a_damaged_interval_costs_itself(run: Path, interval: Any) -> None:
    edit(run, 2, interval=interval)
    assert [bool(row.interval) for row in table(run).rows] == [False, True, False, True, True, True, True]


def test_names_are_text_and_not_html(run: Path) -> None:
    edit(run, 4, name="<script>alert(1)</script>")
    html = read(run)[0]
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)") == 4, "table, words, the bar's title, by class"


def test_stages_that_are_not_there(run: Path) -> None:
    for folder in run.glob("[0-9]*"):
        shutil.rmtree(folder)
    (run / "run.yaml").unlink()
    text = part(read(run)[0], "ablation")
    assert f"2 warm-up warm_up {MIOU['warm_up']:.1f}" in text
    assert "from" not in text.split("Over source-only")[1].split("Gain over")[0]


def test_a_row_is_named_after_its_stage_where_it_has_no_name(run: Path) -> None:
    edit(run, 4, name=None)
    assert table(run).rows[4].name == "weighed"
    assert f"5 weighed from warm_up {MIOU['weighed']:.1f}" in part(read(run)[0], "ablation")
