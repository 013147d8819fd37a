"""The control trains on the source for as long as the adaptation; changing it or leaving it out trains nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from segshift import api, recipes
from segshift.config import RunSettings, validated
from segshift.engine.metrics import Metrics
from segshift.methods import METHODS
from segshift.outcome import verdict_of
from workbench import Outcome, Pair, assert_whole, copy_run, make_pair, read_json, segshift, weights

OURS = ("cpu", "demo")
"""Groups of recipes whose adaptations all start from `source_only`; for those of papers see test_recipes.py."""
ADAPTING = [name for name in recipes.names() if name.partition("/")[0] in OURS and recipes.read(name).get("control")]
STAGES = ["01-source_only", "02-source_control", "03-advent"]
LEARN = "learn the classes from the labelled source images"


def folders(run: Path) -> list[str]:
    """The run's stages, those set aside left out."""
    return sorted(path.name for path in run.glob("[0-9][0-9]-*") if path.suffix != ".aside")


def did(outcome: Outcome) -> dict[str, str]:
    """What became of each stage: trained, skipped or reused."""
    assert outcome.code == 0, outcome
    found = dict(re.findall(r"^\[\d/\d\] (\w+): (finished before|reused|\S+)", outcome.err, re.MULTILINE))
    words = {"finished before": "skipped", "reused": "reused"}
    return {name: words.get(said, "trained") for name, said in found.items()}


@pytest.fixture
def run(trained: Pair, tmp_path: Path) -> Path:
    """A copy of the finished run, with no other run beside it."""
    return copy_run(trained, tmp_path / "runs" / "y")


# ---- the recipes


def test_every_adaptation_has_a_control() -> None:
    adapting = {f"cpu/{name}" for name in METHODS if name != "source_only"}
    assert set(ADAPTING) == adapting | {"cpu/proda_ablation", "demo/demo"}


@pytest.mark.parametrize("name", ADAPTING)
def test_the_control_trains_as_long_as_the_adaptation_and_from_the_same_weights(name: str) -> None:
    settings = validated(RunSettings, recipes.read(name), name)
    start, control, *adapting = settings.stages
    rounds = [stage for stage in adapting if stage.method]
    if settings.ablation:  # its branches beside the way to the result have no control of their own
        by_name, way = {stage.name: stage for stage in rounds}, [rounds[-1]]
        while way[0].init in by_name:
            way.insert(0, by_name[way[0].init])
        rounds = way
    assert settings.control == control.name == "source_control"
    assert (start.name, start.method, start.init) == ("source_only", "source_only", None)
    assert control.method == "source_only"
    assert [stage.init for stage in (control, *rounds)] == [start.name, start.name, *(r.name for r in rounds[:-1])]
    assert control.steps == sum(stage.steps for stage in rounds)
    for stage in rounds:
        assert control.settings["optimizer"] == stage.settings["optimizer"], "the network learns at the same rate"
    assert control.purpose
    assert start.purpose == LEARN


# ---- what builds on what


def test_another_control_trains_the_control_alone(trained: Pair, run: Path) -> None:
    before = read_json(run / "metrics.json")
    done = segshift(*trained.adapt("source_control.steps=3", val=True), "--out", run)
    assert did(done) == {"source_only": "skipped", "source_control": "trained", "advent": "skipped"}
    assert (run / "02-source_control.1.aside").is_dir()
    assert folders(run) == STAGES
    after = read_json(run / "metrics.json")
    assert after["models"]["advent"] == before["models"]["advent"]
    assert after["models"]["source_control"] != before["models"]["source_control"], "the new control is measured"
    assert_whole(run)


def test_another_start_trains_control_and_adaptation(trained: Pair, run: Path) -> None:
    done = segshift(*trained.adapt("source_only.steps=3", val=True), "--out", run)
    assert did(done) == {"source_only": "trained", "source_control": "trained", "advent": "trained"}
    assert folders(run) == STAGES


def test_another_adaptation_trains_the_adaptation_alone(trained: Pair, run: Path) -> None:
    done = segshift(*trained.adapt("advent.steps=3", val=True), "--out", run)
    assert did(done) == {"source_only": "skipped", "source_control": "skipped", "advent": "trained"}


def test_what_was_set_aside_is_taken_back(trained: Pair, run: Path) -> None:
    before = read_json(run / "metrics.json")
    assert segshift(*trained.adapt("source_only.steps=3", val=True), "--out", run).code == 0
    done = segshift(*trained.adapt(val=True), "--out", run)
    assert did(done) == {"source_only": "reused", "source_control": "reused", "advent": "reused"}
    assert "02-source_control.1.aside" in "".join(done.err.split())
    for stage in STAGES:
        for name, tensor in weights(run, stage).items():
            assert torch.equal(tensor, weights(trained.run, stage)[name]), f"{stage}: {name}"
    assert read_json(run / "metrics.json") == before
    assert_whole(run)


# ---- without the control


def test_no_control_leaves_its_stage_out(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    done = segshift(*pair.adapt(val=True), "--no-control")
    assert did(done) == {"source_only": "trained", "advent": "trained"}
    assert folders(pair.run) == ["01-source_only", "02-advent"]
    metrics = read_json(pair.run / "metrics.json")
    assert metrics["control"] is None
    assert set(metrics["models"]) == {"source_only", "advent"}, "the stages on the way are measured too"
    assert "no control to compare with" in done.out
    assert "No source-only control: no verdict" in (pair.run / "report.html").read_text()
    assert not list((pair.run / "panels").glob("*-control.png"))


def test_leaving_the_control_out_and_asking_for_it_again_trains_nothing(trained: Pair, run: Path) -> None:
    before = read_json(run / "metrics.json")
    without = segshift(*trained.adapt(val=True), "--no-control", "--out", run)
    assert did(without) == {"source_only": "skipped", "advent": "reused"}
    assert folders(run) == ["01-source_only", "02-advent"]
    assert (run / "02-source_control.1.aside").is_dir()
    assert set(read_json(run / "metrics.json")["models"]) == {"source_only", "advent"}
    again = segshift(*trained.adapt(val=True), "--out", run)
    assert did(again) == {"source_only": "skipped", "source_control": "reused", "advent": "reused"}
    assert folders(run) == STAGES
    assert read_json(run / "metrics.json") == before
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(trained.run)[name]), name


def test_adding_the_control_later_trains_it_alone(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    assert segshift(*pair.adapt(val=True), "--no-control").code == 0
    alone = weights(pair.run, "02-advent")
    done = segshift(*pair.adapt(val=True))
    assert did(done) == {"source_only": "skipped", "source_control": "trained", "advent": "reused"}
    assert "points" in done.out
    for name, tensor in weights(pair.run).items():
        assert torch.equal(tensor, alone[name]), name


@pytest.mark.parametrize("name", ADAPTING)
def test_no_control_of_every_recipe(name: str) -> None:
    whole, without = api.compose(recipe=name), api.compose(recipe=name, control=False)
    assert without.control is None
    assert without.stages == tuple(stage for stage in whole.stages if stage.name != "source_control")


def test_a_control_that_is_needed_is_trained_without_being_one(tmp_path: Path) -> None:
    """Settings of one's own may compare with the very stage that the adaptation starts from."""
    path = tmp_path / "settings.yaml"
    stage = "{{name: {0}, method: {1}, steps: 1, init: {2}}}"
    stages = ", ".join(stage.format(*of) for of in (("a", "source_only", "null"), ("b", "advent", "a")))
    path.write_text(f"control: a\nstages: [{stages}]\n")
    assert [stage.name for stage in api.compose(path, control=False).stages] == ["a", "b"]
    path.write_text(f"control: b\nstages: [{stages}]\n")
    assert [stage.name for stage in api.compose(path, control=False).stages] == ["a", "b"], "the last one is the result"
    assert api.compose(path, control=False).control is None


# ---- what the stages are for, in words


def test_the_purpose_of_a_stage_is_its_own_or_its_methods(trained: Pair) -> None:
    said = [read_json(trained.run / stage / "stage.json")["purpose"] for stage in STAGES]
    asked = [stage.purpose for stage in api.compose(method="advent").stages]
    assert said == [LEARN, asked[1], METHODS["advent"].purpose]
    assert "for as long as the adaptation" in said[1]
    assert asked[2] == "", "the recipe leaves it to the method"
    page = (trained.run / "report.html").read_text()
    for purpose in said:
        assert purpose[1:].split("'")[0] in page


def test_a_purpose_is_told_and_trains_nothing_anew(trained: Pair, run: Path, tmp_path: Path) -> None:
    done = segshift(*trained.adapt("source_control.purpose=go on alone", val=True), "--out", run)
    assert did(done) == {"source_only": "skipped", "source_control": "skipped", "advent": "skipped"}
    fresh = segshift(*trained.adapt("source_only.purpose=begin here"), "--out", tmp_path / "elsewhere" / "x")
    assert "source_only: begin here" in fresh.err
    assert read_json(tmp_path / "elsewhere" / "x" / "01-source_only" / "stage.json")["purpose"] == "begin here"


def test_a_stage_that_is_no_control_does_not_call_itself_one() -> None:
    """The method's own words stand at the shared start, at controls and at runs on the source alone."""
    assert "control" not in METHODS["source_only"].purpose


# ---- the verdict


def _measured(miou: float) -> Metrics:
    """Two classes of which one is found in a share of its pixels."""
    hit = round(1000 * miou)
    return Metrics(("a", "b"), np.array([[hit, 1000 - hit], [0, 0]]), 1)


def test_the_verdict_names_the_control() -> None:
    measured = {"source_only": 0.9, "source_control": 0.5, "advent": 0.6}
    verdict = verdict_of("source_control", "advent", {name: _measured(value) for name, value in measured.items()})
    assert verdict["gain"] == pytest.approx(0.1)
    assert "advent 60.0 mIoU" in verdict["text"]
    assert "source_control (the source-only control) 50.0" in verdict["text"]
    assert "90.0" not in verdict["text"]
    worse = verdict_of("source_control", "advent", {"source_control": _measured(0.6), "advent": _measured(0.5)})
    assert worse["state"] == "hurt"
    assert "use the model of source_control" in worse["text"]
