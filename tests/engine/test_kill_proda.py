"""kill -9 at any moment of ProDA: both networks, prototypes, artefacts and all else equal an undisturbed run's."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
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
STEPS = 8
TRAINED = ("01-source_only", "02-warm_up", "05-proda", "07-distill")
MADE = ("03-soft", "04-means", "06-labels")
PRODA: list[dict[str, Any]] = [
    {"name": "source_only", "method": "source_only"},
    {"name": "warm_up", "method": "adaptsegnet", "init": "source_only"},
    {"name": "soft", "produce": "soft_labels", "init": "warm_up"},
    {"name": "means", "produce": "prototypes", "init": "warm_up", "settings": {"minimum_pixels": 1}},
    {
        "name": "proda",
        "method": "proda",
        "init": "warm_up",
        "soft_labels": "soft",
        "prototypes": "means",
        # So that four steps show in the teacher and in the prototypes.
        "settings": {"ema": 0.9, "prototype_momentum": 0.9, "optimizer": {"lr": 0.01}, "regulariser_weight": 0.1},
    },
    {"name": "labels", "produce": "pseudo_labels", "init": "proda", "settings": {"rule": "fixed", "value": 0.6}},
    {"name": "distill", "method": "distill", "init": "proda", "teacher": "proda", "labels": "labels"},
]

MOMENTS: list[Die] = [  # function, what its arguments hold, when: each in a go of the command, one after the other
    ("os.replace", "02-warm_up/checkpoint.pt", "after"),
    ("Path.write_bytes", "03-soft/soft/.0", "half"),
    ("os.replace", "03-soft/soft/1.npz", "before"),
    ("os.replace", "03-soft/soft/1.npz", "after"),
    ("Path.write_bytes", "03-soft/.produce.state", "half"),
    ("os.replace", "03-soft/produce.state.npz", "after"),
    ("os.fsync", 3, "before"),
    ("os.replace", "03-soft/produce.state.npz", "before"),  # the one after the last image
    ("Path.write_text", "03-soft/.soft_labels", "half"),
    ("os.replace", "03-soft/soft_labels.json", "after"),
    ("Path.write_text", "03-soft/.manifest", "half"),
    ("os.replace", "03-soft/manifest.json", "before"),
    ("os.replace", "03-soft/manifest.json", "after"),
    ("Path.unlink", "03-soft/produce.state.npz", "before"),
    ("Path.unlink", "03-soft/produce.state.npz", "after"),
    ("Path.write_bytes", "04-means/.produce.state", "half"),
    ("os.replace", "04-means/produce.state.npz", "after"),
    ("os.replace", "04-means/produce.state.npz", "before"),  # the one after the last image
    ("Path.write_bytes", "04-means/.prototypes", "half"),
    ("os.replace", "04-means/prototypes.safetensors", "before"),
    ("os.replace", "04-means/prototypes.safetensors", "after"),
    ("Path.write_text", "04-means/.manifest", "half"),
    ("os.replace", "04-means/manifest.json", "before"),
    ("os.replace", "04-means/manifest.json", "after"),
    ("Path.unlink", "04-means/produce.state.npz", "after"),
    ("Stream.write", "05-proda/.checkpoint", "half"),
    ("os.replace", "05-proda/checkpoint.pt", "after"),
    ("os.replace", "05-proda/checkpoint.pt", "before"),  # that of the last step
    ("Path.write_bytes", "05-proda/model/.model", "half"),
    ("os.replace", "06-labels/labels.state.npz", "after"),
    ("os.replace", "07-distill/checkpoint.pt", "before"),
]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("kill_proda")
    write_data(folder)
    stages = [{**stage, "steps": STEPS} if "method" in stage else stage for stage in PRODA]
    write_settings(folder / "proda.yaml", stages, target_augment={"crop": [48, 40], "flip": True})
    shell = Shell(folder, [str(folder / "proda.yaml")])
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
    """Nothing of what is compared is constant: it could not be equal by chance."""
    soft, means = (files_of(undisturbed[0] / stage) for stage in MADE[:2])
    assert soft.keys() == {f"soft/{i}.npz" for i in range(4)} | {"soft_labels.json", "manifest.json"}
    assert len(set(soft.values())) == 6
    assert means.keys() == {"prototypes.safetensors", "manifest.json"}
    start = safetensors.torch.load(means["prototypes.safetensors"])
    assert bool((start["images"] > 0).any())
    state = torch.load(undisturbed[0] / "05-proda" / "checkpoint.pt", weights_only=True)["method"]
    assert not torch.equal(state["prototypes"], start["means"])
    warm = safetensors.torch.load_file(undisturbed[0] / "02-warm_up" / "model" / "model.safetensors")
    for name in ("body.weight", "head.weight"):
        three = [warm[name], state[f"teacher.{name}"], state[f"net.{name}"]]
        assert not any(torch.equal(a, b) for a, b in zip(three, three[1:] + three[:1], strict=True)), name
    line = json.loads((undisturbed[0] / "05-proda" / "log.jsonl").read_text().splitlines()[-1])
    assert min(line["loss"][name] for name in ("seg", "pseudo", "regulariser", "structure")) > 0


def test_killed_at_random_moments(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    reference, seconds = undisturbed
    kill_at_random(shell, KILLS, seconds, lambda run: assert_same(run, reference))


def test_killed_while_writing(shell: Shell, undisturbed: tuple[Path, float]) -> None:
    """Half a soft label, a state ahead of its files, prototypes without their seal …, then while making them anew."""
    out = shell.folder / "writing" / "run"
    kill_at_moments(shell, out, MOMENTS)
    assert_same(out, undisturbed[0])
    (out / "03-soft" / "soft" / "2.npz").unlink()
    (out / "04-means" / "prototypes.safetensors").write_bytes(b"")
    anew: list[Die] = [
        ("shutil.rmtree", "03-soft/soft", "before"),
        ("shutil.rmtree", "03-soft/soft", "after"),
        ("Path.unlink", "03-soft/soft_labels.json", "after"),
        ("Path.unlink", "03-soft/manifest.json", "before"),
        ("Path.unlink", "03-soft/manifest.json", "after"),
        ("os.replace", "03-soft/produce.state.npz", "after"),
        ("Path.unlink", "04-means/prototypes.safetensors", "after"),
        ("Path.unlink", "04-means/manifest.json", "after"),
        ("os.replace", "04-means/prototypes.safetensors", "before"),
    ]
    kill_at_moments(shell, out, anew)
    assert_same(out, undisturbed[0])


def test_soft_labels_that_are_removed_before_the_seal_are_made_again(
    shell: Shell, undisturbed: tuple[Path, float]
) -> None:
    """The state says that all images are done."""
    out = shell.folder / "removed" / "run"
    assert shell.adapt(out, die=("Path.write_text", "03-soft/.soft_labels", "half")) == -signal.SIGKILL
    (out / "03-soft" / "soft" / "1.npz").unlink()
    assert shell.adapt(out) == 0
    assert_same(out, undisturbed[0])
