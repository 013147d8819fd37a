"""Rounds that cannot be: one screen that names the stage and the remedy, before anything is trained. And the truth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rounds_runs import STAGES, add_truth, command, did, settings_of, small_net
from segshift.config import RunSettings
from segshift.setup import Domains, open_domains
from test_images_only import UNREADABLE, _Watch
from workbench import Pair, assert_told, assert_whole, make_pair, read_json, segshift

assert small_net
Stages = list[dict[str, Any]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


def stage(number: int, **changes: Any) -> Callable[[Stages], object]:
    """A stage with other settings; None takes one away."""

    def change(stages: Stages) -> None:
        for key, value in changes.items():
            stages[number].pop(key, None) if value is None else stages[number].update({key: value})

    return change


SOURCE, LABELS_1, FIRST, LABELS_2, LAST = range(5)

WRONG: dict[str, tuple[str, Callable[[Stages], object], tuple[str, ...]]] = {
    # kind, what is wrong, words of the message
    "no labels": (
        "cbst", stage(FIRST, labels=None), ("cbst_1", "'pseudo_label'", "produce: pseudo_labels", "`labels`")
    ),
    "no labels and none made": (
        "cbst", lambda stages: [stages.pop(3), stages.pop(1), stages[1].pop("labels"), stages[2].pop("labels")],
        ("cbst_1", "no stage makes", "produce: pseudo_labels"),
    ),
    "phase 2 without a split": (
        "tpld", stage(LABELS_2, settings={}), ("tpld", "'easy'", "labels_2 does not make", "set labels_2.split")
    ),
    "lrent without soft labels": (
        "crst", stage(LABELS_1, settings={}), ("crst_1", "'soft_label'", "labels_1 does not", "set labels_1.soft_alpha")
    ),
    "labels that name a training stage": (
        "cbst", stage(LAST, labels="cbst_1"), ("'cbst'", "labels 'cbst_1'", "no earlier", "labels_1")
    ),
    "labels that name no stage": (
        "cbst", stage(LAST, labels="lables_2"), ("labels 'lables_2'", "did you mean 'labels_2'?")
    ),
    "labels that come later": ("cbst", stage(FIRST, labels="labels_2"), ("labels 'labels_2'", "no earlier")),
    "labels made by a labels stage": (
        "cbst", stage(LABELS_2, init="labels_1"), ("'labels_2'", "init 'labels_1'", "no earlier training stage")
    ),
    "training that starts from a labels stage": (
        "cbst", stage(LAST, init="labels_2"), ("'cbst'", "init 'labels_2'", "no earlier training stage")
    ),
    "labels by no network": ("cbst", stage(LABELS_1, init=None), ("'labels_1'", "`init`", "whose network")),
    "steps on a labels stage": ("cbst", stage(LABELS_1, steps=5), ("'labels_1'", "steps")),
    "labels on a labels stage": ("cbst", stage(LABELS_2, labels="labels_1"), ("'labels_2'", "labels")),
    "training without steps": ("cbst", stage(LAST, steps=None), ("'cbst'", "steps")),
    "a method and labels": ("cbst", stage(LABELS_1, method="cbst"), ("'labels_1'", "either `method`", "`produce`")),
    "neither a method nor labels": ("cbst", stage(LABELS_1, produce=None), ("'labels_1'", "either `method`")),
    "another product": ("cbst", stage(LABELS_1, produce="labels"), ("stages.1.produce", "'labels'", "pseudo_labels")),
    "the last stage makes labels": ("cbst", lambda stages: stages.pop(), ("last stage", "'labels_2'", "must follow")),
    "two stages of one name": ("cbst", stage(LABELS_2, name="labels_1"), ("two stages", "'labels_1'")),
    "unknown setting of labels": (
        "cbst", stage(LABELS_1, settings={"porton": 0.2}), ("labels_1", "'porton'", "did you mean 'portion'?")
    ),
    "unknown setting of voting": (
        "tpld", stage(LABELS_1, settings={"voting": {"windw": 3}}), ("labels_1", "voting.windw", "'window'")
    ),
    "setting of a stage among those of labels": (
        "cbst", stage(LABELS_1, settings={"labls": "x"}), ("labels_1", "'labls'", "'labels'")
    ),
    "portion above 1": (
        "cbst", stage(LABELS_1, settings={"portion": 1.2}), ("labels_1", "portion", "1.2", "equal to 1")
    ),
    "share of easy images above 1": (
        "tpld", stage(LABELS_2, settings={"split": {"value": 30}}), ("labels_2", "split", "at most 1", "threshold")
    ),
    "even window": ("tpld", stage(LABELS_1, settings={"voting": {"window": 8}}), ("labels_1", "voting.window", "9")),
    "unknown rule": ("cbst", stage(LABELS_1, settings={"rule": "median"}), ("labels_1", "rule", "'median'")),
    "mining at an impossible rate": (
        "cbst", stage(LAST, target_augment={"crop": [40, 40], "mine": 80}), ("target_augment.mine", "80")
    ),
    "weight of lrent in the wrong place": (
        "crst", stage(LAST, settings={"regulariser": "lrent", "weight": 0.25}), ("stage crst", "lrent", "labels stage")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_rounds_that_cannot_be(pair: Pair, case: str) -> None:
    kind, change, words = WRONG[case]
    content = settings_of(kind)
    change(content["stages"])
    told = segshift(*command(pair, content))
    assert_told(told, *words, "to do")
    assert not pair.run.exists(), "written before the settings were looked at"


def test_a_labels_stage_that_is_no_control(pair: Pair) -> None:
    content = settings_of("cbst") | {"control": "labels_1"}
    assert_told(segshift(*command(pair, content)), "control 'labels_1'", "no training stage", "to do")
    assert not pair.run.exists()


# ---- the truth


@pytest.fixture(scope="session")
def watch() -> _Watch:
    return _Watch()


def _spoiled(pair: Pair, kind: str) -> dict[Path, bytes]:
    """Labels of the truth that cannot be read, and what was in their place."""
    whole = {}
    for path in sorted((add_truth(pair) / "labels").iterdir()):
        whole[path] = path.read_bytes()
        path.unlink()
        UNREADABLE[kind](path)
    return whole


def one_round() -> dict[str, Any]:
    content = settings_of("cbst")
    return content | {"stages": content["stages"][:3], "panels": 1}


def made(word: str = "made") -> dict[str, str]:
    return dict.fromkeys(STAGES["cbst"][:3], word)


@pytest.mark.parametrize(("kind", "val"), [("garbage", True), ("pipes", False)])
def test_a_truth_that_cannot_be_read_costs_the_figures_only(pair: Pair, kind: str, val: bool) -> None:
    whole, folder = _spoiled(pair, kind), pair.run / "02-labels_1"
    done = segshift(*command(pair, one_round(), truth=True, val=val))
    assert did(done) == made()
    assert "labels_1: not everything about these pseudo-labels can be shown" in done.err
    assert "truth/labels/000.png" in done.err
    assert (pair.run / "metrics.json").exists() == val
    assert not (folder / "quality.json").exists(), "the truth was asked for, not val"
    (shown,) = read_json(folder / "panels" / "index.json")
    assert set(shown["files"]) == {"image", "sparse"}, "the pictures that need no truth are there"
    assert all((folder / "panels" / name).is_file() for name in shown["files"].values())
    assert_whole(pair.run)
    for path, data in whole.items():
        path.unlink()
        path.write_bytes(data)
    done = segshift(*command(pair, one_round(), truth=True, val=val))
    assert did(done) == made("skipped"), "nothing is trained again"
    assert read_json(folder / "quality.json")["domain"] == str(pair.root / "truth")
    (shown,) = read_json(folder / "panels" / "index.json")
    assert (folder / "panels" / shown["files"]["truth"]).is_file()


def test_training_never_opens_a_truth(pair: Pair, watch: _Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are listed when the run begins; from then on, and until everything is trained, none is opened."""
    folder, touched = add_truth(pair) / "labels", list[str]()
    with ExitStack() as watching:

        def opened(settings: RunSettings) -> Domains:
            domains = open_domains(settings)
            assert domains.truth is not None
            watching.enter_context(watch.guard(folder))
            return domains

        def finish(run: Any) -> None:
            assert (run.root / "03-cbst_1" / "model" / "model.safetensors").exists()
            touched.extend(watch.touched)
            with pytest.raises(PermissionError):
                (folder / "000.png").read_bytes()

        monkeypatch.setattr("segshift.run.open_domains", opened)
        monkeypatch.setattr("segshift.api.finish", finish)
        done = segshift(*command(pair, one_round(), "validate_every=1", truth=True))
    assert did(done) == made()
    assert touched == []


def test_labels_are_measured_on_val_where_there_is_no_truth_and_not_at_all_without(pair: Pair) -> None:
    content, folder = one_round(), pair.run / "02-labels_1"
    content["stages"][1]["settings"] = {"split": {"mode": "threshold", "value": 1e9}}
    done = segshift(*command(pair, content, val=False))
    assert did(done) == made()
    assert not (folder / "quality.json").exists()
    assert all("truth" not in entry["files"] for entry in read_json(folder / "panels" / "index.json"))
    assert segshift(*command(pair, content, "panels=0")).code == 0
    quality = read_json(folder / "quality.json")
    assert (quality["domain"], quality["images"]) == (str(pair.val), 2)
    last = quality["rows"][-1]
    figures = ("full labels of easy images", 0, None)
    assert (last["name"], last["coverage"], last["precision"]) == figures, "by the score that was asked for"
    add_truth(pair)
    for fewer in (False, True):
        if fewer:
            for part in ("images", "labels"):
                (pair.root / "truth" / part / "002.png").unlink()
        before, quality = quality, {}
        done = segshift(*command(pair, content, "panels=0", truth=True))
        assert did(done) == made("skipped"), "no part of what a stage is"
        quality = read_json(folder / "quality.json")
        assert quality["fingerprint"] != before["fingerprint"], "measured on other images"
    assert (quality["domain"], quality["images"]) == (str(pair.root / "truth"), 2)


def test_figures_go_with_what_they_were_measured_on(pair: Pair) -> None:
    """Dropped, or replaced by what cannot be read: no figures of the labels that were there before."""
    content, quality = one_round() | {"panels": 0}, pair.run / "02-labels_1" / "quality.json"
    assert segshift(*command(pair, content)).code == 0
    assert read_json(quality)["domain"] == str(pair.val)
    done = segshift(*command(pair, content, val=False))
    assert did(done) == made("skipped")
    assert not quality.exists()
    assert segshift(*command(pair, content)).code == 0
    assert quality.exists()
    _spoiled(pair, "garbage")
    assert "not everything" in segshift(*command(pair, content, truth=True)).err
    assert not quality.exists()


def test_a_truth_without_labels_is_refused_before_training(pair: Pair) -> None:
    shutil.rmtree(add_truth(pair) / "labels")
    assert_told(segshift(*command(pair, "cbst", truth=True)), "'truth'", "labels", "to do")
    assert not pair.run.exists()


def test_a_run_among_the_images_of_the_truth_is_refused(pair: Pair) -> None:
    root = add_truth(pair)
    out = root / "images" / "run"
    assert_told(segshift(*command(pair, "cbst", truth=True, out=out)), "truth", "--out", "to do")
    assert not out.exists()
