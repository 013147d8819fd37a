"""The evidence for `segshift select`: correlation, regret, the checks, and the section of the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from segshift.engine.selection import agreement
from segshift.engine.tallies import against_the_others
from segshift.selecting import FIGURES, RULE


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    monkeypatch.delitem(sys.modules, "selection", raising=False)
    import selection

    return selection


def evidence(bench: ModuleType, miou: list[float], **columns: list[float | None]) -> Any:
    figures = tuple(
        dict.fromkeys(FIGURES) | {key: values[i] for key, values in columns.items()} for i in range(len(miou))
    )
    names = tuple(f"run{i}-0/x" for i in range(len(miou)))
    return bench.Evidence(names, tuple(f"run{i}" for i in range(len(miou))), figures, (False,) * len(miou), tuple(miou))


def kept(seed: int, images: int = 2) -> np.ndarray:
    p = np.random.default_rng(seed).random((images, 3, 4, 5)) ** 4
    logs: np.ndarray = np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float16)
    return logs


def test_spearman_is_pearsons_correlation_of_the_ranks(bench: ModuleType) -> None:
    first, second = [3.0, 1.0, 2.0, 10.0], [30.0, 20.0, 10.0, 400.0]
    # 1 - 6 sum d² / n (n² - 1), where no two values are equal: d = 0, 1, 1, 0.
    assert bench.spearman(first, second) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert bench.spearman(first, [-(x**3) for x in first]) == pytest.approx(-1)
    assert bench.spearman(first, [1.0] * 4) is None


def test_regret_is_what_the_choice_costs_and_collapsed_ones_are_no_choice(bench: ModuleType) -> None:
    made = evidence(bench, [50.0, 52.0, 47.0], entropy=[0.2, 0.3, 0.1], effective=[4.0, 5.0, 3.0])
    assert bench.chosen_by(made, "entropy") == 2, "lower is better"
    assert bench.regret(made, lambda e: bench.chosen_by(e, "entropy")) == pytest.approx(5)
    assert bench.regret(made, bench.chosen_by_rule) == 0
    fallen = bench.Evidence(made.names, made.families, made.figures, (False, True, False), made.miou)
    assert bench.chosen_by_rule(fallen) == 0
    assert bench.chosen_by(fallen, "effective") == 0


def test_votes_within_a_part_are_those_of_select(bench: ModuleType) -> None:
    answers = [kept(seed) for seed in range(4)]
    made = evidence(bench, [1.0, 2.0, 3.0, 4.0], effective=[1.0, 2.0, 3.0, 4.0])
    part = bench.Votes(answers).within(made, [0, 2, 3])
    for place, counts in enumerate(against_the_others([answers[i] for i in (0, 2, 3)], [True] * 3)):
        assert counts is not None
        assert part.figures[place]["consensus_miou"] == pytest.approx(agreement(counts).miou)
    assert part.miou == (1.0, 3.0, 4.0)


def test_families_and_runs_are_found_by_their_names(bench: ModuleType, tmp_path: Path) -> None:
    assert bench._family("proda_ablation-0/weighed") == bench._family("proda-1/07-distill_2.1.aside") == "proda"
    assert bench._family("cbst-0/source_control") == "source_only"
    for name in ("oracle-0", "cbst-1", "source_only-0", "mine-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text("")
    assert [run.name for run in bench.runs_of(tmp_path)] == ["source_only-0", "cbst-1"]


def test_the_page_has_the_measured_figures_and_nothing_where_nothing_was_measured(
    bench: ModuleType, tmp_path: Path
) -> None:
    assert bench.section(tmp_path) == []
    made = evidence(bench, [50.0, 53.0, 47.0, 51.0], effective=[4.0, 5.0, 3.0, 4.5], shift_source=[0.2, 0.1, 0.3, 0.4])
    labelled = bench.Evidence(made.names, ("a", "weak_points_10", "b", "c"), made.figures, made.collapsed, made.miou)
    content = {"images": ["0", "1"], "rule": list(RULE)}
    found = bench.studied(labelled, content, [kept(seed) for seed in range(4)])
    (tmp_path / bench.FILE).write_text(json.dumps(found))
    lines = bench.section(tmp_path)
    rule = next(line for line in lines if line.startswith("| **rule"))
    assert rule == "| **rule of `select`** | | **0.0** | run1-0/x | | **1.0** | run0-0/x |"
    text = "\n".join(lines)
    assert "4 trained stages" in text
    assert "3 stages whose training saw no label" in text
    assert f"| {FIGURES['effective'][0]} (+) | +1.00 | 0.0 | run1-0/x | +1.00 | 0.0 | run3-0/x |" in text
