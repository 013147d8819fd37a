"""ProDA from the command line: warm-up, soft labels, prototypes, denoising, labels and distillation in one command."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rounds_runs import BASE, bytes_of, command, did, small_net
from segshift.artefacts.prototypes import Prototypes, read_prototypes, write_prototypes
from segshift.artefacts.soft_labels import open_soft_labels
from segshift.data.images import as_float, load_resized
from segshift.engine.model import load_model
from segshift.errors import UserError
from workbench import NAMES, Pair, assert_told, make_pair, segshift, weights

assert small_net

STAGES: list[dict[str, Any]] = [
    {"name": "start", "method": "source_only", "steps": 2},
    {"name": "soft", "produce": "soft_labels", "init": "start"},
    {"name": "means", "produce": "prototypes", "init": "start", "settings": {"minimum_pixels": 1}},
    {"name": "denoise", "method": "proda", "init": "start", "soft_labels": "soft", "prototypes": "means", "steps": 2},
    {"name": "hard", "produce": "pseudo_labels", "init": "denoise", "settings": {"rule": "argmax"}},
    {"name": "student", "method": "distill", "init": "denoise", "teacher": "denoise", "labels": "hard", "steps": 2},
]


def settings(**changes: Any) -> dict[str, Any]:
    return {**BASE, "panels": 0, "stages": copy.deepcopy(STAGES), **changes}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = make_pair(tmp_path_factory.mktemp("proda") / "data")
    done = segshift(*command(pair, settings()))
    assert did(done) == dict.fromkeys((stage["name"] for stage in STAGES), "made")
    assert "soft labels: " in done.err, "their size is announced"
    assert " MB at most" in done.err
    return pair


def test_soft_labels_are_the_networks(pair: Pair) -> None:
    folder = next(pair.run.glob("*-soft"))
    labels = open_soft_labels(folder, NAMES)
    for path in (folder / "soft").rglob("*.npz"):
        soft = labels.read(str(path.relative_to(folder / "soft").with_suffix("")))
        assert soft.shape[2] == len(NAMES)
        assert np.allclose(soft.sum(axis=2), 1, atol=1e-6)


def test_prototypes_are_means_over_images(pair: Pair) -> None:
    """Restated with a plain loop over images and classes."""
    found = read_prototypes(next(pair.run.glob("*-means")), NAMES)
    net = load_model(next(pair.run.glob("*-start"))).net
    vectors: dict[int, list[torch.Tensor]] = {}
    for path in sorted((pair.target / "images").rglob("*.png")):
        pixels, _ = load_resized(path, tuple(BASE["size"]))
        with torch.no_grad():
            answer = net(as_float(pixels)[None])
        best = answer.logits[0].argmax(dim=0)
        for k in best.unique().tolist():
            vectors.setdefault(k, []).append(answer.features[0][:, best == k].mean(dim=1))
    assert found.images.tolist() == [len(vectors.get(k, [])) for k in range(len(NAMES))]
    for k, means in vectors.items():
        assert torch.allclose(found.means[k], torch.stack(means).mean(dim=0), atol=1e-5)
    assert found.present.tolist() == [k in vectors for k in range(len(NAMES))]


def test_again_everything_is_skipped_and_a_damaged_artefact_is_made_anew(pair: Pair) -> None:
    before = {kind: bytes_of(next(pair.run.glob(f"*-{kind}"))) for kind in ("soft", "means")}
    trained = weights(pair.run, "06-student")
    assert set(did(segshift(*command(pair, settings()))).values()) == {"skipped"}
    file = next((next(pair.run.glob("*-soft")) / "soft").rglob("*.npz"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    (next(pair.run.glob("*-means")) / "prototypes.safetensors").unlink()
    done = did(segshift(*command(pair, settings())))
    assert done == {stage["name"]: "anew" if stage["name"] in before else "skipped" for stage in STAGES}
    assert {kind: bytes_of(next(pair.run.glob(f"*-{kind}"))) for kind in before} == before
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights(pair.run, "06-student").items())


@pytest.mark.parametrize(
    ("stage", "key", "words"),
    [
        ("denoise", "soft_labels", ("denoise", "'soft_full'", "produce: soft_labels")),
        ("denoise", "prototypes", ("denoise", "prototypes", "produce: prototypes")),
        ("student", "teacher", ("student", "another network", "`teacher`")),
        ("student", "labels", ("student", "'pseudo_label'", "produce: pseudo_labels")),
    ],
)
def test_what_is_not_named_is_told_before_anything_is_trained(
    tmp_path: Path, stage: str, key: str, words: tuple[str, ...]
) -> None:
    pair = make_pair(tmp_path / "data")
    content = settings()
    next(each for each in content["stages"] if each["name"] == stage).pop(key)
    assert_told(segshift(*command(pair, content)), *words)
    assert not list(pair.run.glob("*-start"))


@pytest.mark.parametrize(("key", "value"), [("soft_labels", "means"), ("prototypes", "soft"), ("teacher", "soft")])
def test_a_stage_of_another_kind_is_refused(tmp_path: Path, key: str, value: str) -> None:
    pair = make_pair(tmp_path / "data")
    content = settings()
    next(each for each in content["stages"] if each["name"] == "denoise")[key] = value
    assert_told(segshift(*command(pair, content)), "denoise", f"{key} '{value}'", "no earlier")


def test_prototypes_that_do_not_fit(tmp_path: Path) -> None:
    good = Prototypes(torch.ones(2, 3), torch.tensor([1, 0]))
    write_prototypes(tmp_path, good, ("a", "b"))
    assert torch.equal(read_prototypes(tmp_path, ("a", "b")).means, good.means)
    with pytest.raises(UserError, match="classes a, b"):
        read_prototypes(tmp_path, ("a", "c"))
    write_prototypes(tmp_path, Prototypes(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)), ("a", "b"))
    with pytest.raises(UserError, match="of no class"):
        read_prototypes(tmp_path, ("a", "b"))
    write_prototypes(tmp_path, Prototypes(torch.full((2, 3), torch.nan), good.images), ("a", "b"))
    with pytest.raises(UserError, match="not finite"):
        read_prototypes(tmp_path, ("a", "b"))
    (tmp_path / "prototypes.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        read_prototypes(tmp_path, ("a", "b"))
