"""ProDA from the command line: warm-up, soft labels, prototypes, denoising, labels and distillation in one command."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rounds_runs import BASE, bytes_of, command, did, small_net
from segshift.artefacts.prototypes import Prototypes, read_prototypes, write_prototypes
from segshift.artefacts.soft_labels import open_soft_labels
from segshift.data.images import load_resized
from segshift.data.tensors import as_float
from segshift.engine.model import load_model
from segshift.errors import UserError
from segshift.nets import NETS
from segshift.types import Prediction
from small_net import SmallNet
from workbench import NAMES, Pair, assert_told, make_pair, read_json, segshift, weights, write_classes

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
    return {**BASE, "panels": 0, "keep_checkpoints": True, "stages": copy.deepcopy(STAGES), **changes}


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


# ---- at the edges


def stage_folder(pair: Pair, name: str, run: Path | None = None) -> Path:
    return next((run or pair.run).glob(f"[0-9][0-9]-{name}"))


def losses(pair: Pair, name: str) -> list[dict[str, float]]:
    lines = (stage_folder(pair, name) / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def trained(pair: Pair, name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(stage_folder(pair, name) / "checkpoint.pt", weights_only=True)["method"]
    return state


class ShyNet(SmallNet):
    """Never predicts the last class: on this target it is absent."""

    def forward(self, image: torch.Tensor) -> Prediction:
        prediction = super().forward(image)
        logits = prediction.logits.clone()
        logits[:, -1] -= 1e4
        return Prediction(logits, prediction.features)


def test_a_class_that_the_target_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "shy", ShyNet)
    pair = make_pair(tmp_path / "data")
    done = segshift(*command(pair, settings(net={"name": "shy"})))
    assert set(did(done).values()) == {"made"}
    known = read_prototypes(stage_folder(pair, "means"), NAMES)
    assert not known.present[-1]
    assert known.present.any()
    state = trained(pair, "denoise")
    assert not state["present"][-1]
    assert torch.equal(state["prototypes"][-1], torch.zeros_like(state["prototypes"][-1]))
    assert not torch.equal(state["prototypes"], known.means), "the others moved"
    assert read_json(stage_folder(pair, "hard") / "statistics.json")["predicted"][-1] == 0


def test_prototypes_of_no_class_are_told_with_their_remedy(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "data")
    told = segshift(*command(pair, settings(), "means.minimum_pixels=100000"))
    assert_told(told, "are of no class", "minimum_pixels", "to do")
    assert not (stage_folder(pair, "denoise") / "checkpoint.pt").exists()
    assert set(did(segshift(*command(pair, settings()))).values()) == {"skipped", "made"}, "and then it goes on"


def test_crops_without_a_single_label(tmp_path: Path) -> None:
    """All below the threshold in stage 1, and no label sure enough for distillation: the target teaches nothing."""
    pair = make_pair(tmp_path / "data")
    content = settings()
    stages = {stage["name"]: stage for stage in content["stages"]}
    stages["denoise"]["settings"] = {"threshold": 1.0, "structure_weight": 0}
    stages["hard"]["settings"] = {"rule": "fixed", "value": 1.0}
    assert set(did(segshift(*command(pair, content))).values()) == {"made"}
    assert all(line["pseudo"] == 0 < line["seg"] for line in losses(pair, "denoise"))
    assert read_json(stage_folder(pair, "hard") / "statistics.json")["labelled"][-1] == [0] * len(NAMES)
    assert all(line["pseudo"] == 0 < line["seg"] for line in losses(pair, "student"))


def test_a_temperature_of_zero_is_no_denoising_and_no_structure(tmp_path: Path) -> None:
    """All classes that have a prototype are equally near: the labels are those of the soft labels alone."""
    pair = make_pair(tmp_path / "data")
    found = []
    for own in ({"temperature": 0}, {"denoise": False}):
        content = settings()
        content["stages"][3]["settings"] = own
        assert segshift(*command(pair, content)).code == 0
        found.append(losses(pair, "denoise"))
    assert [line["structure"] for line in found[0]] == [0, 0]
    assert found[1][0]["structure"] > 0
    assert found[0][0]["pseudo"] == pytest.approx(found[1][0]["pseudo"], rel=1e-6), "in the first step"


ANEW: dict[str, tuple[str, Any]] = {
    "another size": ("size", [96, 64]),
    "other classes": ("classes", ["road", "sky", "car", "bike"]),
}


@pytest.mark.parametrize("case", ANEW)
def test_what_was_made_before_a_change_is_not_used_after_it(tmp_path: Path, case: str) -> None:
    """Between the stages that produce and those that train on it: stopped where the prototypes are of no use."""
    pair, (key, value) = make_pair(tmp_path / "data"), ANEW[case]
    assert segshift(*command(pair, settings(), "means.minimum_pixels=100000")).code == 2
    stopped = {folder.name for folder in pair.run.glob("[0-9][0-9]-*")}
    assert stopped == {"01-start", "02-soft", "03-means", "04-denoise"}
    if key == "classes":
        write_classes(pair.classes, value)
    changed = {key: value} if key == "size" else {}
    done = segshift(*command(pair, settings(**changed)))
    assert did(done) == dict.fromkeys((stage["name"] for stage in STAGES), "made")
    assert {f"{name}.1.aside" for name in stopped} <= {folder.name for folder in pair.run.iterdir()}
    index = read_json(stage_folder(pair, "soft") / "soft_labels.json")
    assert index["grid"] == ([24, 16] if key == "size" else [16, 12])
    assert index["classes"] == (value if key == "classes" else list(NAMES))


def with_foreign(pair: Pair, name: str, other: Path) -> None:
    """The files of an artefact of another run in place of a stage's, seal and all; what was trained on it is gone."""
    ours, theirs = stage_folder(pair, name), stage_folder(pair, name, other)
    for path in list(ours.iterdir()):
        if path.name != "stage.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    record = (ours / "stage.json").read_bytes()
    shutil.copytree(theirs, ours, dirs_exist_ok=True)
    (ours / "stage.json").unlink()
    (ours / "stage.json").write_bytes(record)
    shutil.rmtree(stage_folder(pair, "denoise"))


@pytest.mark.parametrize(("name", "words"), [("soft", "the soft labels in"), ("means", "the prototypes in")])
def test_an_artefact_of_another_class_list_is_refused(tmp_path: Path, name: str, words: str) -> None:
    """A person copied it here. It is whole, so only its list of classes tells."""
    pair, other = make_pair(tmp_path / "data"), tmp_path / "elsewhere" / "run"
    assert segshift(*command(pair, settings())).code == 0
    write_classes(pair.classes, ("road", "sky", "car", "bike"))
    assert segshift(*command(pair, settings(), out=other)).code == 0
    write_classes(pair.classes, NAMES)
    with_foreign(pair, name, other)
    told = segshift(*command(pair, settings()))
    assert_told(told, words, "road, sky, car, bike", "wanted: those of this run: road, sky, car, person", "to do")
    assert not (stage_folder(pair, "denoise") / "checkpoint.pt").exists()
    shutil.rmtree(stage_folder(pair, name))  # as the message says
    done = did(segshift(*command(pair, settings())))
    assert {stage for stage, word in done.items() if word == "made"} == {name, "denoise"}


def test_soft_labels_of_another_size_are_laid_over_the_image(tmp_path: Path) -> None:
    pair, other = make_pair(tmp_path / "data"), tmp_path / "elsewhere" / "run"
    assert segshift(*command(pair, settings())).code == 0
    usual = losses(pair, "denoise")
    assert segshift(*command(pair, settings(), "size=[96,64]", out=other)).code == 0
    with_foreign(pair, "soft", other)
    assert did(segshift(*command(pair, settings())))["denoise"] == "made"
    found = losses(pair, "denoise")
    assert found != usual
    assert all(line["pseudo"] > 0 for line in found)


def test_prototypes_of_another_network_than_the_start_are_told(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "data")
    content = settings()
    content["stages"].insert(1, {"name": "other", "method": "source_only", "init": "start", "steps": 1})
    content["stages"][3]["init"] = "other"
    done = segshift(*command(pair, content))
    assert set(did(done).values()) == {"made"}
    assert "note: denoise starts from start, and its prototypes are of features of other" in done.err
    assert "note" not in segshift(*command(pair, settings(), out=tmp_path / "as_it_is")).err
