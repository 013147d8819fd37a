"""Runs the command line again and again in forks of one process, so that twenty runs pay for one import of torch.

Says its own process id when it is ready. Then it reads a job a line from standard input,
{"argv": […], "output": file, "die": [function, which, moment] or null}, and answers with two lines: the process id, and
the exit code (negative: the signal). With "die" the process kills itself with SIGKILL at a call of a function, the
which-th one or, where that is a text, the first one in whose arguments it occurs: before it, after it, or half-way
(Path.write_bytes and Path.write_text: half a file is there; Stream.write: half of a part of a checkpoint).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # seconds of import, which torch puts off until the first optimiser is made

import segshift.api
from segshift import cli
from segshift.engine import checkpoint, produce
from segshift.methods import adaptsegnet
from segshift.nets import NETS, PatchDiscriminator

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_net import SmallNet


class Stream(io.FileIO):
    """The file that a checkpoint is written to; its `write` is Python's, so that it can be replaced."""

    def write(self, data: Any) -> int:
        return super().write(data)


MODULES: dict[str, Any] = {"os": os, "Path": Path, "shutil": shutil, "Stream": Stream}


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(name: str, which: int | str, moment: str) -> None:
    """Replace a function, "os.fsync" say, by one that ends this process at a call of it."""
    module, _, function = name.partition(".")
    original: Callable[..., Any] = getattr(MODULES[module], function)
    owner, calls = os.getpid(), 0

    def mortal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if os.getpid() != owner:
            return original(*args, **kwargs)
        calls += isinstance(which, int) or which in " ".join(map(str, args))
        if calls < (which if isinstance(which, int) else 1):
            return original(*args, **kwargs)
        if moment == "half":
            path, data = args
            original(path, data[: len(data) // 2], **kwargs)
        if moment == "after":
            original(*args, **kwargs)
        kill_self()
        raise AssertionError("nothing survives SIGKILL")

    setattr(MODULES[module], function, mortal)


def child(job: dict[str, Any]) -> int:
    """The forked process: the command line with its output in a file."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(0)
    if job["die"]:
        die_at(*job["die"])
    sys.argv = ["segshift", *job["argv"]]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def main() -> None:
    assert segshift.api
    assert torch._dynamo
    torch.set_num_threads(1)
    produce.SAVE_EVERY = 2  # of four images
    NETS["small"] = SmallNet
    vars(checkpoint)["open"] = Stream
    # At its usual width a stage with a discriminator takes most of a run's time, and so most of the kills.
    vars(adaptsegnet)["PatchDiscriminator"] = partial(PatchDiscriminator, width=4)
    answer(os.getpid())
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        answer(pid)
        answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
