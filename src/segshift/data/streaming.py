"""Work done ahead of its use in other processes: in order, with errors that stay readable and workers that end."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from multiprocessing import AuthenticationError
from types import TracebackType
from typing import Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from segshift.errors import UserError

T = TypeVar("T")


class _Tasks(Dataset[object], Generic[T]):
    """A function of a whole number as torch's DataLoader wants it; a `UserError` is returned, not raised."""

    def __init__(self, task: Callable[[int], T]) -> None:
        self.task = task

    def __getitem__(self, index: int) -> T | UserError:
        try:
            return self.task(index)
        except UserError as error:
            # Raised in a worker, torch would rebuild it from the text of its traceback.
            return error


def _as_is(value: T) -> T:
    return value


def _nothing() -> None:
    return None


def _tell_but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The thread that hands results over tells its errors so; that Ctrl-C ended the parent while it fetched is none."""
    if not issubclass(kind, EOFError | OSError | AuthenticationError):
        sys.__excepthook__(kind, error, trace)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    sys.excepthook = _tell_but_lost_connections
    # Ctrl-C reaches the whole process group: the parent alone decides, and its handlers are none of the workers'.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


_SOCKET, _OWN = 107, 32
"""Bytes that a socket's path has at most, and those that multiprocessing adds to the folder of temporary files."""


def _check_room_for_sockets() -> None:
    """Results come through sockets among the temporary files; where their paths are too long, nothing ever arrives."""
    folder, most = tempfile.gettempdir(), _SOCKET - _OWN
    if len(os.fsencode(folder)) > most:
        raise UserError(
            f"the path of the folder for temporary files is too long for sockets between processes: {folder}",
            f"{most} bytes at most",
            "set the environment variable TMPDIR to a shorter one (TMPDIR=/tmp), or `--set workers=0`",
        )


def stream(
    task: Callable[[int], T], order: Sequence[int], *, workers: int, pin: bool = False
) -> Generator[T, None, None]:
    """The results of `task` for each number of `order`, in this order.

    Closing the iterator ends the workers. The global random state is neither read nor changed.

    Args:
        task: a function of one number that can be pickled.
        order: numbers.
        workers: processes, each with one torch thread, that run ahead by two results; 0: in this process.
        pin: put results into page-locked memory (ignored without a CUDA device).

    Raises:
        UserError: raised by the task, a worker was killed, or the path for temporary files is too long for workers.
    """
    if workers:
        _check_room_for_sockets()
    loader = DataLoader(
        _Tasks(task),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin and torch.cuda.is_available(),
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),
    )
    results = iter(loader)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise UserError(
                    f"a process that reads images was killed ({str(error).splitlines()[0]})",
                    "enough memory",
                    "set `workers: 0`; in a container also allow more shared memory (docker run --shm-size=4g)",
                ) from error
            if isinstance(result, UserError):
                raise result
            yield cast(T, result)
    finally:
        # The destructor would do this, but the traceback of an error or of Ctrl-C keeps the iterator alive.
        shut_down: Callable[[], None] = getattr(results, "_shutdown_workers", _nothing)
        shut_down()
