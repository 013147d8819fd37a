"""ProDA's ablation: one command, one table; what it shares with ProDA is trained once, whichever comes first."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from segshift import api, recipes
from segshift.config import RunSettings, validated
from segshift.engine.model import load_model
from segshift.errors import UserError
from segshift.run import Run
from small_net import small_net
from workbench import NAMES, Outcome, Pair, assert_told, assert_whole, make_pair, read_json, segshift, weights

assert small_net

WHOLE, SHORT = (validated(RunSettings, recipes.read(name), name) for name in ("cpu/proda_ablation", "cpu/proda"))
STAGES = {stage.name: stage for stage in WHOLE.stages}
SHARED = [stage.name for stage in SHORT.stages]
BRANCHES: dict[str, dict[str, Any]] = {
    "offline": {"denoise": False, "structure_weight": 0, "alpha": 1, "beta": 0},
    "symmetric": {"denoise": False, "structure_weight": 0},
    "weighed": {"structure_weight": 0},
}
"""What each branch sets otherwise than ProDA's stage 1."""

ROWS = {
    "source_only": "source-only",
    "warm_up": "warm-up",
    "offline": "+ offline pseudo-labels",
    "symmetric": "+ symmetric cross-entropy",
    "weighed": "+ denoising",
    "denoise": "+ structure learning",
    "distill_2": "+ distillation",
}
TINY = (
    "net.name=small", "size=[64,48]", "batch_size=1", "workers=0", "panels=1", "validate_every=0", "log_every=1",
    "precision=fp32", "labels_2.value=0.3",
)  # fmt: skip


# ---- the recipe


def test_the_ablation_shares_proda_s_stages() -> None:
    """Whoever changes one recipe changes the other: equal settings are what makes a stage's reuse possible."""
    assert {name: STAGES.get(name) for name in SHARED} == {stage.name: stage for stage in SHORT.stages}
    others = {"about", "stages", "ablation"}
    assert WHOLE.model_dump(exclude=others) == SHORT.model_dump(exclude=others)
    assert set(STAGES) - set(SHARED) == set(BRANCHES)
    assert WHOLE.stages[-1].name == SHORT.stages[-1].name, "the same result"


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_is_stage_1_with_less(name: str) -> None:
    whole, branch = STAGES["denoise"], STAGES[name]
    assert branch.settings == {**whole.settings, **BRANCHES[name]}
    uses = {"prototypes": None} if "denoise" in BRANCHES[name] else {}
    changed = {"name": name, "settings": branch.settings, "purpose": branch.purpose, **uses}
    assert branch == whole.model_copy(update=changed)
    assert branch.purpose, "the method's own words are of the whole of it"


def test_the_table_is_the_papers() -> None:
    assert {row.stage: row.name for row in WHOLE.ablation} == ROWS
    assert [row.stage for row in WHOLE.ablation] == list(ROWS)
    assert [STAGES[name].init for name in (*BRANCHES, "denoise")] == ["warm_up"] * 4
    assert {STAGES[name].steps for name in BRANCHES} == {STAGES["denoise"].steps}
    assert STAGES["soft"].init == STAGES["means"].init == "warm_up"


# ---- the setting


def settings(ablation: Any, **more: Any) -> RunSettings:
    stages = [
        {"name": "start", "method": "source_only", "steps": 1},
        {"name": "labels", "produce": "pseudo_labels", "init": "start"},
        {"name": "learn", "method": "self_training", "steps": 1, "init": "start", "labels": "labels"},
        {"name": "again", "method": "self_training", "steps": 1, "init": "learn", "labels": "labels"},
    ]
    return validated(RunSettings, {"stages": stages, "ablation": ablation, **more}, "run.yaml")


def rows(*stages: str) -> list[dict[str, str]]:
    return [{"stage": stage} for stage in stages]


@pytest.mark.parametrize(
    ("ablation", "words"),
    [
        (rows("start", "laern"), ("'laern' is no training stage", "did you mean 'learn'?")),
        (rows("start", "zzz"), ("'zzz' is no training stage", "known: again, learn")),
        (rows("start", "labels"), ("'labels' makes pseudo_labels", "known: again, learn")),
        (rows("start", "learn", "start"), ("'start' has two rows", "known: again")),
        (rows("start"), ("one row, 'start'", "second stage")),
        ([*rows("start"), {"stage": "learn", "name": "start"}], ("two rows are called 'start'", "`name`")),
        ([*rows("start"), {"stage": "learn", "nam": "x"}], ("ablation.1.nam", "'name'")),
        ([*rows("start"), {"name": "x"}], ("ablation.1.stage: missing",)),
        (5, ("ablation", "found 5")),
    ],
)
def test_a_wrong_ablation_is_told_of(ablation: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as told:
        settings(ablation)
    for word in ("run.yaml", "ablation", "mend these settings", *words):
        assert word in str(told.value)


def test_a_row_has_its_stages_name_where_it_has_none() -> None:
    found = settings([*rows("learn"), {"stage": "start", "name": " from the start "}])
    assert [row.title for row in found.ablation] == ["learn", "from the start"]
    assert settings([*rows("learn"), {"stage": "start", "name": "two\nlines"}]).ablation[1].title == "two lines"


def test_a_control_that_is_a_row_is_trained_without_being_one(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    stages = [
        {"name": "a", "method": "source_only", "steps": 1},
        {"name": "b", "method": "source_only", "steps": 1, "init": "a"},
        {"name": "c", "method": "advent", "steps": 1, "init": "a"},
    ]
    content: dict[str, Any] = {"control": "b", "stages": stages}
    path.write_text(json.dumps(content))
    assert [stage.name for stage in api.compose(path, control=False).stages] == ["a", "c"]
    path.write_text(json.dumps(content | {"ablation": rows("b", "c")}))
    without = api.compose(path, control=False)
    assert [stage.name for stage in without.stages] == ["a", "b", "c"]
    assert without.control is None


# ---- the run


def command(pair: Pair, recipe: str, out: Path, *sets: str, val: bool = True) -> list[str | Path]:
    short = [f"{stage.name}.steps=2" for stage in (WHOLE if "ablation" in recipe else SHORT).stages if stage.method]
    # The method's own name is what most people type.
    chosen = ["--method", "proda"] if recipe == "cpu/proda" else ["--recipe", recipe]
    given = [word for value in (*TINY, *short, *sets) for word in ("--set", value)]
    return ["adapt", *chosen, *pair.data(val), "--out", out, "--device", "cpu", *given]


def did(outcome: Outcome) -> dict[str, str]:
    """What became of each stage: made, skipped or reused."""
    assert outcome.code == 0, outcome
    found = dict(re.findall(r"^\[\d+/\d+\] (\w+): (finished before|reused|\S+)", outcome.err, re.MULTILINE))
    return {name: {"finished before": "skipped", "reused": "reused"}.get(said, "made") for name, said in found.items()}


def folder(run: Path, stage: str) -> Path:
    (found,) = (path for path in run.glob(f"[0-9][0-9]-{stage}") if path.suffix != ".aside")
    return found


def contents(stage: Path) -> dict[str, tuple[int, bytes]]:
    """The files of a stage: inode and bytes."""
    found = {}
    for path in stage.rglob("*"):
        # What is measured of labels afterwards, their pictures and the record are a run's own.
        if path.is_file() and path.name not in ("stage.json", "quality.json") and "panels" not in path.parts:
            found[str(path.relative_to(stage))] = (path.stat().st_ino, path.read_bytes())
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny pair on which the whole recipe has run."""
    pair = make_pair(tmp_path_factory.mktemp("ablation") / "data")
    done = segshift(*command(pair, "cpu/proda_ablation", pair.run))
    assert did(done) == dict.fromkeys(STAGES, "made")
    assert_whole(pair.run)
    return pair


def test_every_row_is_measured(pair: Pair) -> None:
    metrics = read_json(pair.run / "metrics.json")
    assert set(metrics["models"]) == {*ROWS, "source_control"}
    table = metrics["ablation"]
    assert [(row["stage"], row["name"]) for row in table] == list(ROWS.items())
    assert [table[0][key] for key in ("over_above", "over_first", "interval")] == [None] * 3
    for above, row in itertools.pairwise(table):
        assert row["over_above"] == pytest.approx(row["miou"] - above["miou"])
        assert row["over_first"] == pytest.approx(row["miou"] - table[0]["miou"])
        low, high = row["interval"]
        assert low <= high
    for row in table:
        measured = api.evaluate(folder(pair.run, row["stage"]))
        assert measured.miou == row["miou"] == metrics["models"][row["stage"]]["miou"]
    assert len({row["miou"] for row in table}) == len(table), "no row is another's network"


def test_the_rows_are_in_metrics_csv_and_md(pair: Pair) -> None:
    models = read_json(pair.run / "metrics.json")["models"]
    lines = {line["class"]: line for line in csv.DictReader((pair.run / "metrics.csv").read_text().splitlines())}
    assert set(NAMES) < set(lines)
    for stage in ROWS:
        assert float(lines["mean"][f"iou of {stage}"]) == pytest.approx(100 * models[stage]["miou"], abs=0.006)
        for name, iou in zip(NAMES, models[stage]["iou"], strict=True):
            assert float(lines[name][f"iou of {stage}"]) == pytest.approx(100 * iou, abs=0.006)
    assert [line["iou"] for line in lines.values()] == [line["iou of distill_2"] for line in lines.values()]
    text = (pair.run / "metrics.md").read_text()
    assert "| ablation | stage | mIoU | over the row above | 95 % interval | over source-only |" in text
    miou, above = (100 * models[stage]["miou"] for stage in ("weighed", "symmetric"))
    first = 100 * models["source_only"]["miou"]
    line = next(line for line in text.splitlines() if line.startswith("| + denoising |"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["+ denoising", "weighed", f"{miou:.1f}", f"{miou - above:+.1f}"]
    assert cells[5] == f"{miou - first:+.1f}"


def test_the_report_has_the_table_and_the_chart(pair: Pair) -> None:
    page = (pair.run / "report.html").read_text()
    shown = page[page.index('<section id="ablation"') :]
    shown = shown[: shown.index("</section>")]
    for row in read_json(pair.run / "metrics.json")["ablation"]:
        assert row["name"].replace("+ ", "+\u00a0") in shown
        assert f"{100 * row['miou']:.1f}" in shown
    assert shown.count("<rect ") == len(ROWS)
    for name in NAMES:
        assert f"<bdi>{name}</bdi>" in shown
    assert "Missing or damaged" not in page


def test_the_branches_start_from_the_warm_up(pair: Pair) -> None:
    """What their networks are before the first step."""
    run = Run(api.compose(pair.run / "run.yaml"), pair.run, torch.device("cpu"), lambda text: None)
    start = load_model(folder(pair.run, "warm_up")).net.state_dict()
    for name in (*BRANCHES, "denoise"):
        method = run.build(next(stage for stage in run.settings.stages if stage.name == name))
        found = method.predictor().state_dict()
        assert all(torch.equal(tensor, start[key]) for key, tensor in found.items()), name
        teacher = [key for key in method.state_dict() if key.startswith("teacher.")]
        assert bool(teacher) == ("denoise" not in BRANCHES.get(name, {})), "the fixed labels need no teacher"


def test_proda_beside_it_trains_nothing(pair: Pair) -> None:
    other = pair.root / "runs" / "proda"
    assert did(segshift(*command(pair, "cpu/proda", other))) == dict.fromkeys(SHARED, "reused")
    for name in SHARED:
        ours, theirs = (contents(folder(run, name)) for run in (pair.run, other))
        assert ours == theirs, f"{name}: hard links"
    metrics = [read_json(run / "metrics.json") for run in (pair.run, other)]
    assert "ablation" not in metrics[1]
    assert "distill_2" in metrics[1]["models"]
    for name, model in metrics[1]["models"].items():
        assert model == metrics[0]["models"][name]


def test_beside_proda_it_trains_the_branches_alone(pair: Pair) -> None:
    apart = Pair(pair.root / "apart")
    first, second = apart.root / "runs" / "proda", apart.root / "runs" / "ablation"
    assert did(segshift(*command(pair, "cpu/proda", first))) == dict.fromkeys(SHARED, "made")
    found = did(segshift(*command(pair, "cpu/proda_ablation", second)))
    assert found == {name: "made" if name in BRANCHES else "reused" for name in STAGES}
    for name in SHARED:
        assert contents(folder(first, name)) == contents(folder(second, name)), name
    for name in BRANCHES:
        ours, theirs = (weights(run, folder(run, name).name) for run in (pair.run, second))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    metrics = [read_json(run / "metrics.json")["ablation"] for run in (pair.run, second)]
    assert metrics[0] == metrics[1]


# ---- what the setting does not do


def test_another_table_trains_nothing(pair: Pair) -> None:
    """Rows are measured anew where they are others, and named anew for nothing."""
    run = pair.root / "elsewhere" / "x"
    assert set(did(segshift(*command(pair, "cpu/proda_ablation", run, val=True))).values()) == {"made"}
    before = read_json(run / "metrics.json")
    named = "ablation=[{stage: warm_up, name: before}, {stage: denoise, name: after}]"
    done = segshift(*command(pair, "cpu/proda_ablation", run, named))
    assert did(done) == dict.fromkeys(STAGES, "skipped")
    after = read_json(run / "metrics.json")
    assert [row["name"] for row in after["ablation"]] == ["before", "after"]
    assert "offline" not in after["models"]
    assert all(model == before["models"][name] for name, model in after["models"].items())
    measured = (run / "evaluation.json").read_bytes()
    assert did(segshift(*command(pair, "cpu/proda_ablation", run, named.replace("after", "later|on")))) == did(done)
    assert (run / "evaluation.json").read_bytes() == measured
    assert read_json(run / "metrics.json")["ablation"][1]["name"] == "later|on"
    assert "| later\\|on | denoise |" in (run / "metrics.md").read_text()
    assert "later|on" in (run / "report.html").read_text()
    none = segshift(*command(pair, "cpu/proda_ablation", run, "ablation=[]"))
    assert did(none) == did(done)
    assert "ablation" not in read_json(run / "metrics.json")
    assert 'id="ablation"' not in (run / "report.html").read_text()
    assert_whole(run)


@pytest.mark.parametrize("damage", [{"ablation": []}, {"ablation": None}, {"models": {}}])
def test_a_damaged_evaluation_is_made_anew(pair: Pair, damage: dict[str, Any]) -> None:
    path = pair.run / "evaluation.json"
    before, metrics = read_json(path), read_json(pair.run / "metrics.json")
    path.write_text(json.dumps(before | damage))
    assert set(did(segshift(*command(pair, "cpu/proda_ablation", pair.run))).values()) == {"skipped"}
    assert read_json(path) == before
    assert read_json(pair.run / "metrics.json") == metrics


def test_without_a_labelled_part_there_is_no_table(pair: Pair) -> None:
    run = pair.root / "runs" / "unlabelled"
    done = segshift(*command(pair, "cpu/proda_ablation", run, val=False))
    assert set(did(done).values()) == {"reused"}
    assert not (run / "metrics.json").exists()
    assert 'id="ablation"' not in (run / "report.html").read_text()


def test_a_wrong_row_on_the_command_line(pair: Pair) -> None:
    run = pair.root / "runs" / "wrong"
    done = segshift(*command(pair, "cpu/proda_ablation", run, "ablation=[{stage: warm_up}, {stage: denois}]"))
    assert_told(done, "cpu/proda_ablation", "'denois'", "did you mean 'denoise'?", "to do")
    assert not run.exists()


# ---- the results page


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parent.parent / "bench" / "real_pair.py"
    spec = importlib.util.spec_from_file_location("real_pair", path)
    assert spec is not None
    assert spec.loader is not None
    sys.path.append(str(path.parent))  # as where the program is started, for what it imports beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_pair"] = module
    spec.loader.exec_module(module)
    return module


def figures(runs: Path, name: str, seed: int, **miou: float) -> None:
    path = runs / f"{name}-{seed}" / "metrics.json"
    path.parent.mkdir(parents=True)
    models = {stage: {"miou": value, "classes": ["a"], "iou": [value]} for stage, value in miou.items()}
    path.write_text(json.dumps({"adapted": list(miou)[-1], "models": models}))


def test_the_table_of_the_results_page(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.ablation_table(tmp_path, [0, 1]) == []
    reached = dict(zip(ROWS, (0.40, 0.45, 0.47, 0.46, 0.50, 0.51, 0.55), strict=True))
    for seed in (0, 1):
        figures(tmp_path, "proda_ablation", seed, **{stage: value + 0.02 * seed for stage, value in reached.items()})
    figures(tmp_path, "oracle", 0, source_only=0.60)
    head, _, *lines = bench.ablation_table(tmp_path, [0, 1])
    assert head == "| row | seeds | mIoU | over the row above | over source_only | of the gap |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in cells] == list(ROWS.values())
    assert cells[0] == ["source-only", "0, 1", "41.0 ± 1.4", "", "+0.0", "0 %"]
    assert cells[3] == ["+ symmetric cross-entropy", "0, 1", "47.0 ± 1.4", "-1.0", "+6.0", "30 %"]
    assert cells[6] == ["+ distillation", "0, 1", "56.0 ± 1.4", "+4.0", "+15.0", "75 %"]


def test_the_bench_runs_the_ablation(bench: ModuleType) -> None:
    (row,) = (row for row in bench.ROWS if row.name == "proda_ablation")
    (words,) = bench.commands(row, "data", "runs", 3)
    assert words[:4] == ["segshift", "adapt", "--recipe", "cpu/proda_ablation"]
    assert words[-2:] == ["--out", "runs/proda_ablation-3"]
    proda = next(row for row in bench.ROWS if row.name == "proda")
    (others,) = bench.commands(proda, "data", "runs", 3)
    assert words[4:-2] == others[4:-2], "the same data and values, so that stages are shared"
    assert all(bench.commands(part, "data", "runs", 3) == [] for part in bench.ABLATION)
    assert [part.of for part in bench.ABLATION] == [("proda_ablation", stage) for stage in ROWS]
