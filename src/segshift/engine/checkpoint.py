"""A training stage's checkpoint: everything that the loop remembers, in one file that is whole or not there."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer covers what stopped it, a full disk or a second Ctrl-C, with an error of its own.
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise


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
