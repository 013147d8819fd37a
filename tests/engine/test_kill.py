"""kill -9 at any moment, the same command again: weights, optimisers, log and model equal an undisturbed run's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import (
    Die,
    Shell,
    assert_same_end,
    assert_same_training,
    kill_at_moments,
    kill_at_random,
    undisturbed_run,
    write_data,
)

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 8
STAGES = ("01-source_only", "02-source_control", "03-advent")
MOMENTS: list[Die] = [  # function, which call of it in one go of the command, when
    ("os.replace", 1, "before"),
    ("os.replace", 2, "before"),
    ("Stream.write", "01-source_only/.checkpoint", "half"),
    ("Stream.write", 9, "half"),
    ("os.replace", "01-source_only/checkpoint.pt", "after"),
    ("os.fsync", 4, "before"),
    ("os.fsync", 5, "after"),
    ("os.replace", 4, "before"),
    ("os.fsync", 6, "after"),
    ("os.replace", 5, "after"),
    ("os.fsync", 9, "before"),
    ("Stream.write", "02-source_control/.checkpoint", "before"),
    ("Path.write_bytes", "02-source_control/model/.model", "half"),
    ("Stream.write", "03-advent/.checkpoint", "half"),
    ("os.replace", "03-advent/checkpoint.pt", "after"),
    ("Stream.write", 9, "before"),
    ("Path.write_bytes", "03-advent/model/.model", "half"),
    ("os.replace", "03-advent/stage.json", "after"),
]


ARGUMENTS = [
    "--method=advent",
    *(f"--set={name}.steps={STEPS}" for name in ("source_only", "source_control", "advent")),
    *("--set=size=[64,48]", "--set=batch_size=1", "--set=workers=1", "--set=panels=0", "--set=checkpoint_every=2"),
    *("--set=log_every=3", "--set=validate_every=4", "--set=net.options.weights=none", "--set=advent.prior.weight=1"),
]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("kill")
    write_data(folder)
    shell = Shell(folder, ARGUMENTS)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def undisturbed(shell: Shell) -> tuple[Path, float]:
    return undisturbed_run(shell)


def assert_same(killed: Path, undisturbed: Path) -> None:
    for stage in STAGES:
        assert_same_training(killed / stage, undisturbed / stage, STEPS)
    assert_same_end(killed, undisturbed)


def test_the_undisturbed_run_says_something(undisturbed: tuple[Path, float]) -> None:
    lines = [json.loads(line) for line in (undisturbed[0] / STAGES[-1] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 8]
    assert [line["step"] for line in lines if "val" in line] == [4, 8]
    assert lines[0]["loss"]["adversarial"] > 0


def test_killed_at_random_moments(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    reference, seconds = undisturbed
    kill_at_random(shell, KILLS, seconds, lambda run: assert_same(run, reference))


def test_killed_while_writing(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    """Half a checkpoint, a whole one without its name, a name without the next record …"""
    out = shell.folder / "writing" / "run"
    kill_at_moments(shell, out, MOMENTS)
    assert_same(out, undisturbed[0])
