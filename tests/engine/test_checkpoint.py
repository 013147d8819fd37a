"""Checkpoints: what does not fit is an error that names the file; a full disk keeps the old one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from segshift.engine import checkpoint
from segshift.engine.checkpoint import LoopState
from segshift.engine.trainer import Loop, train
from segshift.errors import UserError
from tiny import TinyNet, build, pairs

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def saved(folder: Path) -> Path:
    method = build("source_only")
    optimizers = {name: t.optimizer for name, t in method.tuned().items()}
    checkpoint.save(folder / "checkpoint.pt", method, optimizers, LoopState(0, 0, {}))
    return folder / "checkpoint.pt"


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half": damage_half,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "no_dict": lambda path: torch.save([1, 2], path),
    "no_keys": lambda path: torch.save({"method": {}}, path),
    "other_net": lambda path: checkpoint.save(path, build("source_only", TinyNet(aux=True)), {}, LoopState(0, 0, {})),
    "other_method": lambda path: checkpoint.save(path, build("advent"), {}, LoopState(0, 0, {})),
    "no_optimizer": lambda path: checkpoint.save(path, build("source_only"), {}, LoopState(0, 0, {})),
    "other_pickle": lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n."),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path)
    DAMAGE[kind](path)
    with pytest.raises(UserError, match=r"checkpoint\.pt") as caught:
        train(build("source_only"), pairs, Loop(steps=2, seed=1, device=torch.device("cpu")), tmp_path)
    assert "delete it" in caught.value.remedy
    assert not (tmp_path / "log.jsonl").exists()


class SmallDisk(io.FileIO):
    """A file on a disk with room for so many bytes; then comes `stop`."""

    def __init__(self, path: Path, mode: str, room: int, stop: BaseException) -> None:
        super().__init__(path, mode)
        self._room, self._stop = room, stop

    def write(self, data: ReadableBuffer) -> int:
        self._room -= len(memoryview(data))
        if self._room < 0:
            raise self._stop
        return super().write(data)


@pytest.mark.parametrize(
    ("stop", "told"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["full disk", "second Ctrl-C"],
)
def test_what_stops_the_writing_is_told_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, told: type[BaseException]
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    for room in range(0, len(before), 1000):
        monkeypatch.setattr(checkpoint, "open", partial(SmallDisk, room=room, stop=stop), raising=False)
        with pytest.raises(told, match="disk is full" if told is UserError else None):
            saved(tmp_path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        saved(tmp_path)
    assert not os.listdir(tmp_path)


def test_only_tensors_and_numbers_are_written(tmp_path: Path) -> None:
    """So that it loads with weights_only=True, which runs no code of the file."""
    content = torch.load(saved(tmp_path), weights_only=True)
    assert list(content) == ["method", "optimizers", "loop"]
    assert content["loop"] == {"step": 0, "log_bytes": 0, "sums": {}}
