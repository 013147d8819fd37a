"""kill -9 at any moment of two rounds: labels, weights and everything else equal an undisturbed run's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import (
    Die,
    Shell,
    assert_same_artefact,
    assert_same_end,
    assert_same_training,
    files_of,
    kill_at_moments,
    kill_at_random,
    undisturbed_run,
    write_data,
    write_settings,
)

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 4
TRAINED = ("01-source_only", "03-cbst_1", "05-cbst")
MADE = ("02-labels_1", "04-labels_2")
EVERYTHING = {"voting": {"window": 5, "passes": 2}, "split": {"value": 0.5}, "soft_alpha": 0.25}
"""All kinds of files that a labels stage writes."""

MOMENTS: list[Die] = [  # function, what its arguments hold, when: each in a go of the command, one after the other
    ("os.replace", "02-labels_1/stage.json", "after"),
    ("Path.write_bytes", "02-labels_1/.thresholds.state", "half"),
    ("os.replace", "02-labels_1/thresholds.state.npz", "after"),
    ("os.replace", "02-labels_1/thresholds.state.npz", "before"),  # the one after the last image
    ("Path.write_text", "02-labels_1/.thresholds", "half"),
    ("os.replace", "02-labels_1/thresholds.json", "before"),
    ("os.replace", "02-labels_1/thresholds.json", "after"),
    ("os.replace", "02-labels_1/labels/0.png", "before"),
    ("os.replace", "02-labels_1/full/1.png", "after"),
    ("Path.write_bytes", "02-labels_1/soft/.1", "half"),
    ("Path.write_bytes", "02-labels_1/.labels.state", "half"),
    ("os.replace", "02-labels_1/labels.state.npz", "after"),
    ("os.replace", "02-labels_1/passes/3.png", "before"),
    ("os.replace", "02-labels_1/labels.state.npz", "before"),  # the one after the last image
    ("Path.write_text", "02-labels_1/.statistics", "half"),
    ("os.replace", "02-labels_1/statistics.json", "after"),
    ("Path.write_text", "02-labels_1/.manifest", "half"),
    ("os.replace", "02-labels_1/manifest.json", "before"),
    ("os.replace", "02-labels_1/manifest.json", "after"),
    ("Path.unlink", "02-labels_1/thresholds.state.npz", "before"),
    ("Path.unlink", "02-labels_1/thresholds.state.npz", "after"),
    ("Path.unlink", "02-labels_1/labels.state.npz", "after"),
    ("os.replace", "04-labels_2/labels.state.npz", "after"),
    ("os.replace", "04-labels_2/manifest.json", "before"),
    ("os.replace", "05-cbst/checkpoint.pt", "before"),
    ("Path.write_text", "02-labels_1/.quality", "half"),
    ("os.replace", "04-labels_2/quality.json", "before"),
]


ROUNDS: list[dict[str, Any]] = [
    {"name": "source_only", "method": "source_only", "steps": STEPS, "settings": {"optimizer": {"weight_decay": 0.0}}},
    {"name": "labels_1", "produce": "pseudo_labels", "init": "source_only", "settings": EVERYTHING},
    {"name": "cbst_1", "method": "cbst", "steps": STEPS, "init": "source_only", "labels": "labels_1"},
    {"name": "labels_2", "produce": "pseudo_labels", "init": "cbst_1", "settings": {"portion": 0.3}},
    {"name": "cbst", "method": "cbst", "steps": STEPS, "init": "cbst_1", "labels": "labels_2"},
]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("kill_rounds")
    write_data(folder)
    write_settings(folder / "rounds.yaml", ROUNDS, target_augment={"crop": [40, 40], "flip": True, "mine": 0.8})
    shell = Shell(folder, [str(folder / "rounds.yaml")])
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def undisturbed(shell: Shell) -> tuple[Path, float]:
    return undisturbed_run(shell)


def assert_same(killed: Path, undisturbed: Path) -> None:
    for stage in MADE:
        assert_same_artefact(killed / stage, undisturbed / stage)
    for stage in TRAINED:
        assert_same_training(killed / stage, undisturbed / stage, STEPS)
    assert_same_end(killed, undisturbed)


def test_the_undisturbed_run_says_something(undisturbed: tuple[Path, float]) -> None:
    first, second = (undisturbed[0] / stage for stage in MADE)
    parts = {"labels": ".png", "passes": ".png", "full": ".png", "soft": ".npz"}
    wanted = {f"{part}/{i}{end}" for part, end in parts.items() for i in range(4)}
    assert {name for name in files_of(first) if "/" in name} == wanted
    assert {"manifest.json", "quality.json"} <= files_of(first).keys()
    assert len({data for name, data in files_of(second).items() if name.startswith("labels/")}) == 4


def test_killed_at_random_moments(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    reference, seconds = undisturbed
    kill_at_random(shell, KILLS, seconds, lambda run: assert_same(run, reference))


def test_killed_while_writing(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    """Half a state, a label without those that belong to it, everything but the seal …, then while making it anew."""
    out = shell.folder / "writing" / "run"
    kill_at_moments(shell, out, MOMENTS)
    assert_same(out, undisturbed[0])
    (out / "02-labels_1" / "soft" / "2.npz").unlink()
    anew: list[Die] = [
        ("shutil.rmtree", "02-labels_1/full", "before"),
        ("Path.unlink", "02-labels_1/thresholds.json", "after"),
        ("Path.unlink", "02-labels_1/manifest.json", "before"),
        ("os.replace", "02-labels_1/labels.state.npz", "after"),
    ]
    kill_at_moments(shell, out, anew)
    assert_same(out, undisturbed[0])
