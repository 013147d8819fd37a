"""Is there room on the disk? What a run will write is known, within a fifth, before its first step."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rounds_runs import BASE, settings_of, small_net
from segshift import api
from segshift.artefacts.pseudo_labels import write_ids, write_palette, write_soft
from segshift.engine.labelling import PASS_COLOURS, LabelSettings
from segshift.engine.model import build_net
from segshift.engine.pipeline import Stage, run_stages, unfinished
from segshift.engine.producing import SoftLabelSettings
from segshift.errors import UserError
from segshift.room import Need, Sizes, at_most, check_room, produced
from segshift.run import Run
from segshift.types import ClassSet
from test_proda_runs import STAGES as PRODA
from workbench import assert_told, make_pair, segshift, small_disk

assert small_net

LITE = {"name": "deeplab_lite", "options": {"width": 16, "weights": "none"}}
ADVENT = [
    {"name": "source_only", "method": "source_only", "steps": 1},
    {
        "name": "advent", "method": "advent", "init": "source_only", "steps": 3,
        "settings": {"optimizer": {"kind": "adamw"}},
    },
]  # fmt: skip
RUNS: dict[str, list[dict[str, Any]]] = {"advent": ADVENT, "cbst": settings_of("cbst")["stages"], "proda": PRODA}

Told = Callable[[], dict[str, Need]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the last run reckoned with, by stage."""
    seen: list[dict[str, Need]] = []

    def record(out: Path, needs: dict[str, Need]) -> str | None:
        seen.append(needs)
        return check_room(out, needs)

    monkeypatch.setattr("segshift.run.check_room", record)
    return lambda: seen[-1]


def _free(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 10**12) -> list[Path]:
    """Let every disk have so many bytes free; the places that were asked for."""
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(total=total, used=total - free, free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


def _run(tmp_path: Path, changes: dict[str, Any]) -> Run:
    """A tiny run in runs/x, or what is there already of it, on the data of `make_pair`."""
    data: dict[str, Any] = {
        "source": tmp_path / "source",
        "target": tmp_path / "target",
        "classes": tmp_path / "classes.json",
    }
    if not data["source"].exists():
        make_pair(tmp_path)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return Run(api.compose(path, **data), tmp_path / "runs" / "x", torch.device("cpu"), lambda line: None)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- against what runs write


@pytest.mark.parametrize("kind", RUNS)
def test_what_a_run_writes_is_foretold(kind: str, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and models of every stage, and the most that lies there at a time: measured whenever a file gets its
    name, since the one that it replaces is there still."""
    replace, most = os.replace, 0

    def measured(source: Path, target: Path) -> None:
        nonlocal most
        most = max(most, _bytes(tmp_path / "runs"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", measured)
    keeps = kind != "advent"
    run = _run(tmp_path, {"net": LITE, "checkpoint_every": 2, "keep_checkpoints": keeps, "stages": RUNS[kind]})
    run.train()
    foretold = at_most(told().values())
    assert 0.8 * foretold < most < 1.02 * foretold, (most, foretold)
    for stage in run.methods:
        # The checkpoint holds optimisers, discriminators and teachers too.
        files = [run.folder(stage) / "checkpoint.pt"] * keeps + [run.folder(stage) / "model" / "model.safetensors"]
        assert sum(file.stat().st_size for file in files) == pytest.approx(told()[stage].stays, rel=0.02), stage
    run.train()
    assert not told(), "finished stages count nothing"


@pytest.mark.parametrize("classes", [4, 19])
def test_labels_that_cannot_be_compressed(tmp_path: Path, classes: int) -> None:
    rng, shape, size = np.random.default_rng(0), (192, 256), (256, 192)
    palette = ClassSet(tuple(map(str, range(classes))), tuple((k, k, k) for k in range(classes)))
    asked = {"voting": {"passes": 3}, "split": {}, "soft_alpha": 0.25}
    for image in range(2):
        write_ids(tmp_path / f"{image}.png", rng.integers(0, classes + 1, shape, np.uint8), palette)
        write_ids(tmp_path / f"full{image}.png", rng.integers(0, classes, shape, np.uint8), palette)
        write_palette(tmp_path / f"passes{image}.png", rng.integers(0, 5, shape, np.uint8), PASS_COLOURS)
        write_soft(tmp_path / f"{image}.npz", rng.random((*shape, classes), np.float32))
    need = produced(LabelSettings.model_validate(asked), build_net("small", classes, {}), 2, size)
    assert 0.8 * need.stays < _bytes(tmp_path) < need.stays


@pytest.mark.parametrize("name", ["deeplab_lite", "deeplab_v2_vgg16", "deeplab_v2_resnet101"])
def test_soft_labels_are_on_the_grid_of_the_network(name: str) -> None:
    """It is found by two strips of an image, since a whole one takes a large network seconds."""
    net = build_net(name, 3, {"weights": "none"} if name == "deeplab_lite" else {}).train()
    need = produced(SoftLabelSettings(), net, 5, (101, 70))
    assert net.training
    with torch.no_grad():
        cells = math.prod(net.eval()(torch.zeros(1, 3, 70, 101)).logits.shape[-2:])
    assert need.stays == 5 * (4096 + 3 * cells)


def test_the_cache_counts_until_it_is_there(tmp_path: Path, told: Told) -> None:
    run = _run(tmp_path, {"cache": True, "stages": ADVENT})
    run.train()
    assert told()["cache"].stays == pytest.approx(_bytes(run.root / "cache"), rel=0.1)
    shutil.rmtree(run.folder("advent"))
    run.train()
    assert list(told()) == ["cache", "advent"]
    assert told()["cache"] == Need(0, 0)


# ---- which stages count


def test_only_what_is_left_counts(tmp_path: Path) -> None:
    def stage(name: str, *, fails: bool = False, **settings: Any) -> Stage:
        def run(folder: Path) -> None:
            (folder / "half").write_bytes(bytes(5000))
            if fails:
                raise UserError("stopped")

        return Stage(name, settings, f"{name} is for the test", run, after=())

    root, say = tmp_path / "one", list[str]().append
    stages = [stage("first"), stage("second", fails=True), stage("third")]
    assert unfinished(root, stages) == {"first": 0, "second": 0, "third": 0}
    with pytest.raises(UserError):
        run_stages(root, stages, say)
    left = unfinished(root, stages)
    assert list(left) == ["second", "third"]
    assert left["second"] > 5000
    assert left["third"] == 0
    other = [stage("first"), stage("second", seed=1), stage("third")]
    assert unfinished(root, other) == {"second": 0, "third": 0}, "another stage's files are set aside and stay"
    assert unfinished(tmp_path / "two", stages) == {"second": 0, "third": 0}, "the first is taken over from run one"


def test_a_checkpoint_lies_beside_the_one_before_it_and_beside_the_model() -> None:
    sizes = Sizes(model=100, checkpoint=300, reads_target=False)
    once = sizes.need(several=False, keeps=False, there=0)
    assert (once.stays, once.peak, once.sure) == (100, 400, 400)
    often = sizes.need(several=True, keeps=True, there=0)
    assert (often.stays, often.peak, often.sure) == (400, 600, 600)
    # A checkpoint is there: maybe the last one, then the model alone is missing.
    going_on = sizes.need(several=False, keeps=False, there=305)
    assert (going_on.peak, going_on.sure) == (600, 100)
    assert at_most([once]) == 400
    assert at_most([once, often]) == 100 + 600
    assert at_most([often, once]) == 400 + 400
    assert at_most([going_on]) == 600 - 305
    assert at_most([going_on, once]) == 600 - 305, "what the first leaves is less than what is there of it"
    assert at_most([]) == 0


# ---- what is said


def test_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 10**9
    needs = {"start": Need(gigabyte, 3 * gigabyte, 3 * gigabyte), "labels": Need(gigabyte, 6 * gigabyte)}
    asked = _free(monkeypatch, 7 * gigabyte)
    assert check_room(tmp_path, needs) is None
    assert asked == [tmp_path]
    for free in (7 * gigabyte - 1, 3 * gigabyte):
        _free(monkeypatch, free)
        line = check_room(tmp_path, needs) or ""
        assert line.startswith(f"note: the run will write up to 7.0 GB below {tmp_path}, ")
    assert "3.0 GB are free there: free some space" in line
    _free(monkeypatch, 3 * gigabyte - 1)
    with pytest.raises(UserError, match=r"has 2.9 GB free, and the stage start alone writes 3.0 GB") as stop:
        check_room(tmp_path, needs)
    assert stop.value.wanted == "7.0 GB for what is left of the run"
    assert check_room(tmp_path, {}) is None
    _free(monkeypatch, 0, total=0)
    assert check_room(tmp_path, needs) is None, "a disk that does not say"


def test_the_checkpoint_of_a_stage_that_goes_on_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(model=100 * 10**6, checkpoint=300 * 10**6, reads_target=False)
    one, two = (sizes.need(several=False, keeps=False, there=there) for there in (300 * 10**6, 0))
    _free(monkeypatch, 350 * 10**6)
    assert check_room(tmp_path, {"one": one, "two": two}) is None
    _free(monkeypatch, 200 * 10**6)
    assert "300.0 MB" in (check_room(tmp_path, {"one": one, "two": two}) or "")
    _free(monkeypatch, 200 * 10**6 - 1)
    with pytest.raises(UserError, match=r"the stage two alone writes 400\.0 MB"):
        check_room(tmp_path, {"one": one, "two": two})
    with pytest.raises(UserError, match="the stage two"):
        check_room(tmp_path, {"one": sizes.need(several=False, keeps=True, there=300 * 10**6), "two": two})


def test_a_run_that_may_be_too_large_begins_and_says_so(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    run = _run(tmp_path, {"stages": ADVENT})
    run.say = lines.append
    run.train()
    most = at_most(told().values())
    assert not any("note:" in line for line in lines)
    shutil.rmtree(run.root)
    lines.clear()
    _free(monkeypatch, most - 1)
    run.train()
    assert lines[0].startswith("note: the run will write up to ")
    assert f"below {run.root}, " in lines[0]
    assert lines[1].startswith("[1/2] source_only")
    assert run.folder("advent").exists()


def test_a_run_that_cannot_end_does_not_begin(tmp_path: Path) -> None:
    """A disk as large as a checkpoint."""
    pair = make_pair(tmp_path)
    with small_disk(pair.run.parent, 1 << 20) as disk:
        told = segshift(*pair.adapt())
        assert_told(told, f"the disk of {pair.run} has", "the stage ", "free some space", "--out")
        assert _bytes(disk) == 0, "nothing was written"


def test_a_dry_run_asks_for_the_disk_that_it_is_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    asked = _free(monkeypatch, 1)
    done = segshift("adapt", "--method", "minent", "--dry-run", "--device", "cpu")
    assert_told(done, f"the disk of {temporary}", "0.0 MB free", "free some space")
    assert [path.is_relative_to(temporary) for path in asked] == [True]
    asked = _free(monkeypatch, 1)
    kept = tmp_path / "kept"
    assert_told(
        segshift("adapt", "--method", "minent", "--dry-run", "--out", kept, "--device", "cpu"), f"the disk of {kept}"
    )
