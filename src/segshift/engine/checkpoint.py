"""A training stage's checkpoint: everything that the loop remembers, in one file that is whole or not there."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from segshift.artefacts.store import atomic_path
from segshift.errors import UserError, gist
from segshift.methods.base import Method

FILE = "checkpoint.pt"
"""In a stage's folder, until the stage is finished."""


@dataclass(frozen=True)
class LoopState:
    """What the loop remembers besides the method and its optimisers.

    Attributes:
        step: steps done.
        log_bytes: length of the log when the checkpoint was taken; what lies behind it is undone on resume.
        sums: running sums of the losses since the last log line.
    """

    step: int
    log_bytes: int
    sums: dict[str, Tensor]


def save(path: Path, method: Method, optimizers: dict[str, torch.optim.Optimizer], state: LoopState) -> None:
    """Write the checkpoint atomically.

    Raises:
        UserError: the disk is full or read-only; the previous checkpoint is then untouched.
    """
    content = {
        "method": method.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "loop": {**asdict(state), "sums": state.sums},
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        stream = _Stream(file)
        try:
            torch.save(content, cast(IO[bytes], stream))
        except RuntimeError as error:
            if stream.error is None:
                raise
            raise stream.error from error


@dataclass
class _Stream:
    """A file that remembers why it could not be written to: torch's zip writer tells of a full disk by a RuntimeError
    without errno, as of anything else."""

    file: BinaryIO
    error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def restore(path: Path, method: Method, optimizers: dict[str, torch.optim.Optimizer]) -> LoopState:
    """Load a checkpoint into `method` and `optimizers`.

    Raises:
        UserError: the file is damaged, or of another network, method or class list.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        method.load_state_dict(content["method"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        return LoopState(**content["loop"])
    except (
        AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise UserError(
            f"the checkpoint {path} does not fit: {gist(error)}",
            "a checkpoint that this method, network and class list wrote",
            "delete it to train this stage anew",
        ) from error
