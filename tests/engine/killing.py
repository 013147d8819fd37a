"""What tests of killed runs share: the command line in processes to be killed, tiny data, "equal bit for bit"."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

Die = tuple[str, int | str, str]
"""Function, which call of it (a number, or what the arguments hold), and when: see kill_driver.py."""


class Shell:
    """The command line, a fresh process each time (see kill_driver.py).

    Args:
        folder: with the data of `write_data`.
        argv: arguments of `segshift adapt` besides the data, --out and what keeps the checkpoints, to be compared.
    """

    def __init__(self, folder: Path, argv: Sequence[str]) -> None:
        self.folder = folder
        self.argv = argv
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("kill_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it has imported everything: what is timed from now on are runs

    def adapt(self, out: Path, kill: Callable[[int], None] = lambda pid: None, die: Die | None = None) -> int:
        """Run `segshift adapt`; `kill` is called with its process id. Its exit code, or minus the signal."""
        data = [f"--{name}={self.folder / name}" for name in ("source", "target", "val")]
        argv = [
            "adapt",
            *self.argv,
            "--set=keep_checkpoints=true",
            *data,
            f"--classes={self.folder / 'classes.txt'}",
            f"--out={out}",
        ]
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"argv": argv, "output": str(self.output), "die": die}) + "\n")
        self.process.stdin.flush()
        kill(self._answer())
        code = self._answer()
        assert code in (0, -signal.SIGKILL), self.output.read_text()
        return code

    def _answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=90)
        self.process.stdout.close()


def write_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("source", 5), ("target", 4), ("val", 2)):
        (root / name / "images").mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / "images" / f"{index}.png")
            if name != "target":
                (root / name / "labels").mkdir(exist_ok=True)
                Image.fromarray(pixels[..., 0] // 86).save(root / name / "labels" / f"{index}.png")
    (root / "classes.txt").write_text("road\nsky\ncar\n")


def write_settings(path: Path, stages: Sequence[dict[str, Any]], **changes: Any) -> None:
    """Settings of a small run of these stages."""
    usual = {"size": [64, 48], "net": {"name": "small"}, "batch_size": 1, "workers": 0, "panels": 0}
    rhythm = {"checkpoint_every": 2, "log_every": 3, "precision": "fp32"}
    path.write_text(yaml.safe_dump({**usual, **rhythm, **changes, "stages": stages}))


def undisturbed_run(shell: Shell) -> tuple[Path, float]:
    """A run that nobody disturbs, and its seconds."""
    out = shell.folder / "undisturbed" / "run"
    start = time.monotonic()
    assert shell.adapt(out) == 0
    return out, time.monotonic() - start


def kill_at_random(shell: Shell, kills: int, seconds: float, compare: Callable[[Path], None]) -> None:
    """Kill runs at random moments, `kills` times in all, until each came to its end; the ends are compared.

    Args:
        seconds: that an undisturbed run takes.
    """
    rng, killed, attempt = random.Random(0), 0, 0
    finished: list[int] = []
    while killed < kills or not finished or finished[-1] != attempt:
        # Apart, since runs beside each other reuse each other's stages.
        out = shell.folder / f"killed{attempt}" / "run"
        # From the first moment to well into the work, so that each go gets a bit further and the next one goes on.
        delay = rng.uniform(0.0, 0.45 * seconds) if killed < kills else 1e9

        def kill(pid: int, delay: float = delay) -> None:
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline:
                if not _alive(pid):
                    return
                time.sleep(0.002)
            # It may have come to its end since the last look: then this go counts as finished, not as killed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        if shell.adapt(out, kill) == 0:
            compare(out)
            finished.append(attempt)
            attempt += killed < kills
        else:
            killed += 1


def kill_at_moments(shell: Shell, out: Path, moments: Sequence[Die]) -> None:
    """Kill a run at each moment, one in each go of the command, and bring it to its end."""
    for moment in moments:
        assert shell.adapt(out, die=moment) == -signal.SIGKILL, f"the run was done before {moment}"
    assert shell.adapt(out) == 0


def _alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def assert_same_training(ours: Path, theirs: Path, steps: int) -> None:
    """Two folders of a training stage: weights, optimisers, loop, log, model."""
    own, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (ours, theirs))
    assert list(other) == ["method", "optimizers", "loop"]
    for part in other:
        assert equal(own[part], other[part]), f"{ours.name}: {part}"
    assert other["loop"]["step"] == steps
    for file in ("log.jsonl", "model/model.safetensors", "model/config.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), f"{ours.name}: {file}"
    assert json.loads((ours / "stage.json").read_text())["done"]


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a stage that produces leaves, but the time that it took."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "stage.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same_artefact(ours: Path, theirs: Path) -> None:
    """Two folders of a stage that produces: every file, byte for byte."""
    own, other = files_of(ours), files_of(theirs)
    assert own.keys() == other.keys(), ours.name
    assert [name for name in own if own[name] != other[name]] == [], ours.name
    assert json.loads((ours / "stage.json").read_text())["done"]


def assert_same_end(ours: Path, theirs: Path) -> None:
    """Two runs: the same files, the same figures."""
    assert names(ours) == names(theirs), "nothing half-written is left, nothing was set aside"
    measured = [json.loads((run / "metrics.json").read_text())["models"] for run in (ours, theirs)]
    assert measured[0] == measured[1]


def names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}
