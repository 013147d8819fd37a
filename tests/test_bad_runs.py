"""Damaged checkpoints, run folders in the way, full and read-only disks, a loss that is no number."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segshift.room import check_room
from workbench import (
    Pair,
    assert_told,
    assert_whole,
    copy_run,
    cut_short,
    environment,
    label,
    make_pair,
    mount,
    picture,
    read_json,
    save,
    segshift,
    small_disk,
    weights,
)


def _grown(folder: Path) -> None:
    mount(folder, "remount,size=1g")


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0, 1.2, 1.6, 2.0])
def test_full_disk(trained: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Somebody fills the disk after the check for room, but for so many checkpoints: it is full at the start, in the
    first or in the second checkpoint."""
    size = (trained.run / "01-source_only" / "checkpoint.pt").stat().st_size
    pair = make_pair(tmp_path)
    command = pair.adapt("checkpoint_every=1", "source_only.steps=3", method="source_only")
    assert segshift(*command).code == 0
    expected = weights(pair.run, "01-source_only")
    shutil.rmtree(pair.run)
    with small_disk(pair.root / "runs", 4 * size) as disk:
        ballast = disk / "ballast.bin"

        def check_then_fill(*given: Any) -> str | None:
            line = check_room(*given)
            _fill(disk, int(share * size) + 4096)
            return line

        with monkeypatch.context() as patch:
            patch.setattr("segshift.run.check_room", check_then_fill)
            assert_told(segshift(*command), "the disk is full", str(pair.run), "free some space")
        assert_whole(pair.run)
        checkpoint = pair.run / "01-source_only" / "checkpoint.pt"
        assert checkpoint.exists() == (share > 1), "the checkpoint before the full disk stays"
        ballast.unlink()
        assert segshift(*command).code == 0
        assert_whole(disk)
        for name, tensor in weights(pair.run, "01-source_only").items():
            assert torch.equal(tensor, expected[name]), name


def test_full_disk_while_results_are_written(trained: Pair, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16384) as disk:
        told = segshift("predict", trained.run, trained.target / "images", "--out", disk / "out")
        assert_told(told, "the disk is full", "free some space")
        assert_whole(disk)
        _grown(disk)
        assert segshift("predict", trained.run, trained.target / "images", "--out", disk / "out").code == 0
        assert len(list((disk / "out" / "ids").iterdir())) == 3
    with small_disk(tmp_path / "small", 4096) as disk:
        told = segshift("check", *trained.data(), "--out", disk / "check")
        assert "Traceback" not in told.out + told.err
        assert "the disk is full" in told.out + told.err
        assert_whole(disk)


def test_full_disk_while_answers_of_models_are_kept(trained: Pair, tmp_path: Path) -> None:
    """They were written into a mapping of the file once: a full disk then killed the process without a word."""
    with small_disk(tmp_path / "disk", 65536) as disk:
        command = ("select", trained.run, "--out", disk / "out")
        assert_told(segshift(*command), "the disk is full", "free some space")
        assert_whole(disk)
        assert not list((disk / "out" / "answers").glob("*.npy"))
        _grown(disk)
        assert segshift(*command).code == 0


def test_figures_are_told_though_a_full_disk_cannot_keep_them(trained: Pair, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        _fill(disk, 0)
        done = segshift("evaluate", trained.run, "--with", trained.run / "01-source_only", "--out", disk / "out")
        assert_told(done, "the disk is full")
        assert "| x + 01-source_only |" in done.out
        assert_whole(disk)


@pytest.mark.parametrize("group", ["gta5_cityscapes", "synthia_cityscapes"])
def test_full_disk_while_miniatures_are_drawn(tmp_path: Path, group: str) -> None:
    with small_disk(tmp_path / "disk", 32768) as disk:
        told = segshift("adapt", "--recipe", f"{group}/minent_vgg16", "--dry-run", "--out", disk / "out")
        assert_told(told, "the disk is full", str(disk))


def test_a_source_only_model_never_passes_for_the_adapted_one(trained: Pair, tmp_path: Path) -> None:
    """Stopped between two stages, or the last one set aside to be made anew: the next folder is not there yet."""
    run = copy_run(trained, tmp_path / "y")
    last = max(run.glob("[0-9]*"))
    last.rename(last.with_name(f"{last.name}.1.aside"))
    before = max(path for path in run.glob("[0-9]*") if path.suffix != ".aside")
    assert_told(segshift("evaluate", run), "is not finished", last.name, before.name)
    assert segshift("evaluate", before, "--domain", trained.val).code == 0


def _fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for so many bytes; the file to remove to free it."""
    ballast = disk / "ballast.bin"
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)) == 1 << 16:
                pass
        file.truncate(max(0, file.tell() - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 8192, 20480, 45056])
def test_full_disk_while_a_trained_run_is_reported(trained: Pair, tmp_path: Path, leave: int) -> None:
    with small_disk(tmp_path / "runs", 1 << 26) as disk:
        run = copy_run(trained, disk / "y")
        shutil.rmtree(run / "panels")
        for name in ("report.html", "metrics.json", "evaluation.json"):
            (run / name).unlink()
        ballast = _fill(disk, leave)
        command = [*trained.adapt(val=True), "--out", run]
        assert_told(segshift(*command), "the disk is full", "free some space")
        assert_whole(run)
        ballast.unlink()
        done = segshift(*command)
        assert done.code == 0, done
        assert_whole(run)
        assert (run / "report.html").exists()
        assert (run / "metrics.json").exists()


@pytest.mark.parametrize("verb", ["adapt", "predict", "check", "compare", "report", "evaluate"])
def test_read_only_disk(trained: Pair, tmp_path: Path, verb: str) -> None:
    with small_disk(tmp_path / "disk", 1 << 26) as disk:
        run = copy_run(trained, disk / "run") if verb == "report" else trained.run
        mount(disk, "remount,ro")
        out: list[str | Path] = ["--out", disk / "out"]
        commands: dict[str, list[str | Path]] = {
            "adapt": [*trained.adapt(), *out],
            "predict": ["predict", run, trained.target / "images", *out],
            "check": ["check", *trained.data(), *out],
            "compare": ["compare", run, run, "--out", disk / "compare.html"],
            "report": ["report", run],
            "evaluate": ["evaluate", run, *out],
        }
        assert_told(segshift(*commands[verb]), "no permission to write", str(disk), "to do")


def test_run_folder_that_is_a_file(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    pair.run.parent.mkdir()
    pair.run.write_text("x")
    assert_told(segshift(*pair.adapt()), "runs/x", "is a file", "choose another name")
    assert pair.run.read_text() == "x"


def test_run_folder_below_a_file(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    pair.run.parent.write_text("x")
    assert_told(segshift(*pair.adapt()), "runs", "to do")


def test_folder_that_cannot_be_changed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    pair.run.mkdir(parents=True)
    done = subprocess.run(["chattr", "+i", str(pair.run)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED HERE: a folder that cannot be changed; {done.stderr.strip()}")
    try:
        assert_told(segshift(*pair.adapt()), "no permission to write", "runs/x", "choose another --out")
    finally:
        subprocess.run(["chattr", "-i", str(pair.run)], check=True)


CHECKPOINTS: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda own, other: cut_short(own),
    "zero bytes": lambda own, other: own.write_bytes(b""),
    "text": lambda own, other: own.write_text("hello"),
    "a list": lambda own, other: torch.save([1, 2], own),
    "without its parts": lambda own, other: torch.save({"method": {}}, own),
    "another method's": lambda own, other: shutil.copy(other, own),
}


def _unfinished(trained: Pair, run: Path) -> Path:
    """A copy of the run whose last stage is marked as not done; its checkpoint."""
    copy_run(trained, run)
    record = run / "03-advent" / "stage.json"
    record.write_text(json.dumps(read_json(record) | {"done": False}))
    return Path(shutil.copy(trained.run / "03-advent" / "checkpoint.pt", run / "03-advent"))


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint_that_does_not_fit(trained: Pair, tmp_path: Path, case: str) -> None:
    run = tmp_path / "runs" / "y"
    CHECKPOINTS[case](_unfinished(trained, run), trained.run / "01-source_only" / "checkpoint.pt")
    told = segshift(*trained.adapt(), "--out", run)
    assert_told(told, "03-advent/checkpoint.pt", "delete it to train this stage anew")


def test_stage_without_its_checkpoint_is_trained_anew(trained: Pair, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "y"
    _unfinished(trained, run).unlink()
    assert segshift(*trained.adapt(), "--out", run).code == 0
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(trained.run)[name]), name


def test_damaged_records_cost_only_themselves(trained: Pair, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "y"
    copy_run(trained, run)
    for path in (run / "03-advent" / "stage.json", run / "evaluation.json", run / "metrics.json"):
        path.write_text("{")
    done = segshift(*trained.adapt(val=True), "--out", run)
    assert done.code == 0, done
    assert "set aside" in done.err
    assert read_json(run / "metrics.json")["models"]
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(trained.run)[name]), name


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    command = pair.adapt("source_only.steps=6", "checkpoint_every=1", "source_only.optimizer.lr=1.e+30")
    assert_told(
        segshift(*command), "source_only, step", "not finite", "images: source 00", "source_only.optimizer.lr", "clip"
    )
    assert_whole(pair.run)
    assert not (pair.run / "01-source_only" / "model").exists()
    assert [path.name for path in pair.run.glob("[0-9][0-9]-*")] == ["01-source_only"]


def test_file_that_breaks_while_training(tmp_path: Path) -> None:
    """A damaged file that the first look does not reach stops the stage; mended, the stage goes on."""
    pair = make_pair(tmp_path)
    for index in range(3, 20):
        save(pair.image("source", index), picture(index))
        save(pair.label("source", index), label(index))
    # What a power cut leaves: the right length, zeros at the end. Pillow alone would decode it.
    broken = pair.label("source", 2)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    command = pair.adapt("source_only.steps=20", "checkpoint_every=5", method="source_only")
    assert_told(segshift(*command), "source/labels/002.png", "cannot be decoded", "to do")
    assert_whole(pair.run)
    assert (pair.run / "01-source_only" / "stage.json").exists()
    broken.write_bytes(whole)
    done = segshift(*command)
    assert done.code == 0, done


def test_two_processes_in_one_run(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    command = pair.adapt("source_only.steps=100000", "checkpoint_every=5", method="source_only")
    args = [sys.executable, "-m", "segshift", *map(str, command)]
    first = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert first.stderr is not None
        assert "source_only" in first.stderr.readline()
        assert_told(segshift(*command), "another segshift works on", "runs/x", "another --out")
        while not (pair.run / "01-source_only" / "checkpoint.pt").exists():
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGTERM)
        _, err = first.communicate(timeout=120)
        assert first.returncode == 130, err
        assert "run the same command to go on" in err
        assert "Traceback" not in err
        assert_whole(pair.run)
    finally:
        first.kill()
        first.wait()
