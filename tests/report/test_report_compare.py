"""Runs side by side: the best is named only where the numbers measure the same thing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_run import SOURCE, metrics, write_run

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
    # Two images in common (b has a third), each with image, truth, the one control and three adapted.
    assert len(re.findall(r'<img src="data:', html)) == 2 * 6 + 2 - 2
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
