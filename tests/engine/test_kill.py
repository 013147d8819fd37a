"""kill -9 at any moment, the same command again: weights, optimisers, log and model equal an undisturbed run's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 8
STAGES = ("01-source_only", "02-source_control", "03-advent")
MOMENTS = [  # function, which call of it in one go of the command, when
    ("os.replace", 1, "before"),
    ("os.replace", 2, "before"),
    ("Path.write_bytes", 1, "half"),
    ("Path.write_bytes", 2, "half"),
    ("Path.write_bytes", 1, "after"),
    ("os.fsync", 4, "before"),
    ("os.fsync", 5, "after"),
    ("os.replace", 4, "before"),
    ("os.fsync", 6, "after"),
    ("os.replace", 5, "after"),
    ("os.fsync", 9, "before"),
    ("Path.write_bytes", 2, "before"),
    ("Path.write_bytes", 1, "half"),  # the model of the second stage
    ("Path.write_bytes", 3, "half"),  # the third stage from here on
    ("Path.write_bytes", 1, "after"),
    ("Path.write_bytes", 2, "before"),
    ("Path.write_bytes", 3, "half"),  # its model
    ("os.replace", 3, "after"),
]


class Shell:
    """The command line, a fresh process each time (see kill_driver.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("kill_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def adapt(
        self,
        out: Path,
        kill: Callable[[int], None] = lambda pid: None,
        die: tuple[str, int, str] | None = None,
    ) -> int:
        """Run `segshift adapt`; `kill` is called with its process id. Its exit code, or minus the signal."""
        settings = [
            *(f"{name}.steps={STEPS}" for name in ("source_only", "source_control", "advent")),
            *("size=[64,48]", "batch_size=1", "workers=1", "panels=0", "checkpoint_every=2", "log_every=3"),
            *("validate_every=4", "net.options.weights=none", "advent.prior.weight=1"),
        ]
        data = [f"--{name}={self.folder / name}" for name in ("source", "target", "val")]
        argv = ["adapt", *data, f"--classes={self.folder / 'classes.txt'}", "--method=advent", f"--out={out}"]
        argv += [f"--set={setting}" for setting in settings]
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
        self.process.wait(timeout=30)
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


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("kill")
    write_data(folder)
    shell = Shell(folder)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def undisturbed(shell: Shell) -> tuple[Path, float]:
    """A run that nobody disturbs, and its seconds."""
    out = shell.folder / "undisturbed" / "run"
    start = time.monotonic()
    assert shell.adapt(out) == 0
    return out, time.monotonic() - start


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def assert_same(killed: Path, undisturbed: Path) -> None:
    for stage in STAGES:
        ours, theirs = (torch.load(run / stage / "checkpoint.pt", weights_only=True) for run in (killed, undisturbed))
        assert list(theirs) == ["method", "optimizers", "loop"]
        for part in theirs:
            assert equal(ours[part], theirs[part]), f"{stage}: {part}"
        assert theirs["loop"]["step"] == STEPS
        for file in ("log.jsonl", "model/model.safetensors", "model/config.json"):
            assert (killed / stage / file).read_bytes() == (undisturbed / stage / file).read_bytes(), f"{stage}: {file}"
        assert json.loads((killed / stage / "stage.json").read_text())["done"]
    assert names(killed) == names(undisturbed), "nothing half-written is left, nothing was set aside"
    measured = [json.loads((run / "metrics.json").read_text())["models"] for run in (killed, undisturbed)]
    assert measured[0] == measured[1]


def names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def test_the_undisturbed_run_says_something(undisturbed: tuple[Path, float]) -> None:
    lines = [json.loads(line) for line in (undisturbed[0] / STAGES[-1] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 8]
    assert [line["step"] for line in lines if "val" in line] == [4, 8]
    assert lines[0]["loss"]["adversarial"] > 0


def test_killed_at_random_moments(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    rng, (reference, seconds) = random.Random(0), undisturbed
    kills, attempt = 0, 0
    finished: list[int] = []
    while kills < KILLS or not finished or finished[-1] != attempt:
        # Apart, since runs beside each other reuse each other's stages.
        out = shell.folder / f"killed{attempt}" / "run"
        # From the first moment to well into the work, so that each go gets a bit further and the next one goes on.
        delay = rng.uniform(0.0, 0.45 * seconds) if kills < KILLS else 1e9

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
            assert_same(out, reference)
            finished.append(attempt)
            attempt += kills < KILLS
        else:
            kills += 1
    assert kills == KILLS


def _alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_while_writing(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    """Half a checkpoint, a whole one without its name, a name without the next record …"""
    out = shell.folder / "writing" / "run"
    for moment in MOMENTS:
        assert shell.adapt(out, die=moment) == -signal.SIGKILL, f"the run was done before {moment}"
    assert shell.adapt(out) == 0
    assert_same(out, undisturbed[0])
