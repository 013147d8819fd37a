"""`segshift evaluate --published`: generated files with the published names, measured against plain restatements.

The files hold random weights; the networks are restated in `plain_nets` from the files' keys, and the protocol here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain_nets import State, aspp, norm, proda_head, randomise, resnet101
from published_keys import advent, advent_single, caffe_resnet101, deeplab_vgg16, proda, single_level
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from segshift.data.classes import BUILT_IN, read_classes
from segshift.data.tables import CITYSCAPES_IDS
from segshift.engine.inference import Options
from segshift.miniatures import make_pair
from segshift.published import PROTOCOLS, evaluate_published, open_published
from workbench import Outcome, assert_told, segshift

SIZE = (104, 56)
"""(w, h) that images are fed at here: a network of full width at the papers' sizes would take minutes on a CPU."""

CAFFE, IMAGENET = (104.00698793, 116.66876762, 122.67891434), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def caffe(image: Tensor) -> Tensor:
    return torch.stack([255 * image[:, 2 - c] - CAFFE[c] for c in range(3)], dim=1)


def imagenet(image: Tensor) -> Tensor:
    return torch.stack([(image[:, c] - IMAGENET[0][c]) / IMAGENET[1][c] for c in range(3)], dim=1)


def deeplab(main: str, branches: int, style: Callable[[Tensor], Tensor] = caffe) -> Callable[[State, Tensor], Tensor]:
    """Logits of DeepLab-v2 on ResNet-101 from the file's keys; `main` is the classifier's name in it."""
    return lambda state, image: aspp(state, main, resnet101(state, style(image))[1], branches)


def vgg(state: State, image: Tensor) -> Tensor:
    """Logits of AdaptSegNet's VGG-16: convolutions in the order of their numbers, dilated by 2 from 23 on, by 4 in fc6
    and fc7; pools in front of 5, 10 and 17."""
    x = caffe(image)
    for position in sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")}):
        if position in (5, 10, 17):
            x = F.max_pool2d(x, 2, 2)
        dilation = 1 if position < 23 else 2 if position < 29 else 4
        weight, bias = state[f"features.{position}.weight"], state[f"features.{position}.bias"]
        x = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation).relu()
    return aspp(state, "classifier", x, 2)


def proda_logits(state: State, image: Tensor) -> Tensor:
    x = resnet101(state, image)[1]
    if "bn_pretrain.weight" in state:
        x = norm(state, "bn_pretrain", x, 1e-5)
    return proda_head(state, x)[1]


def nested(state: State) -> dict[str, Any]:
    """As ProDA's train.py saves it."""
    return {"ResNet101": {"model_state": state}, "iter": 100, "best_iou": np.float64(0.575)}


@dataclass(frozen=True)
class Case:
    """A kind of published file.

    Attributes:
        release: what --layout says.
        shapes: its tensors.
        logits: the network, restated.
        classes: list that its classes are.
        said: words of the output: what was found.
        file: the tensors as the release saves them.
    """

    release: str
    shapes: Callable[[], dict[str, Tensor]]
    logits: Callable[[State, Tensor], Tensor]
    classes: str
    said: tuple[str, ...]
    file: Callable[[State], Any] = dict


R101 = "deeplab_v2_resnet101, "
CASES = {
    "advent": Case(
        "advent", lambda: advent(19), deeplab("layer6", 4), "cityscapes_19",
        ("layout advent,", R101, "19 classes", "aux true", "aspp_branches 4", "normalisation caffe", "eval_UDA.py"),
    ),
    "advent of one level": Case(
        "advent", lambda: advent_single(16), deeplab("layer6", 4), "cityscapes_16",
        ("layout advent,", "16 classes", "aux false"),
    ),
    "adaptsegnet": Case(
        "adaptsegnet", lambda: advent(19, counters=False), deeplab("layer6", 2), "cityscapes_19",
        ("layout adaptsegnet,", R101, "aux true", "aspp_branches 2", "evaluate_cityscapes.py"),
    ),
    "adaptsegnet of one level": Case(
        "adaptsegnet", lambda: single_level(16, counters=False), deeplab("layer5", 2), "cityscapes_16",
        ("layout adaptsegnet_single,", R101, "16 classes", "aux false", "aspp_branches 2"),
    ),
    "adaptsegnet of VGG-16": Case(
        "adaptsegnet", lambda: deeplab_vgg16(19), vgg, "cityscapes_19",
        ("layout adaptsegnet_vgg16,", "deeplab_v2_vgg16, ", "aspp_branches 2", "normalisation caffe"),
    ),
    "crst": Case(
        "crst", lambda: single_level(19), deeplab("layer5", 4, imagenet), "cityscapes_19",
        ("layout crst,", R101, "normalisation imagenet", "scales 0.9, 1, 1.2, flip", "crst_seg.py"),
    ),
    "proda": Case(
        "proda", lambda: proda(19, bn_clr=True), proda_logits, "cityscapes_19",
        ("layout proda,", "deeplab_v2_resnet101_proda, ", "bn_clr true", "normalisation none", "test.py"), nested,
    ),
    "proda of SYNTHIA, first stage": Case(
        "proda", lambda: proda(16, bn_clr=False), proda_logits, "cityscapes_16",
        ("16 classes", "bn_clr false"), nested,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain file of a miniature of Cityscapes' labelled part, and beside it the pictures."""
    root = tmp_path_factory.mktemp("data")
    make_pair(root, "gta5", read_classes(Path("cityscapes_19")))
    path = root / "cityscapes_val.yaml"
    path.write_text(f"root: '{root / 'cityscapes'}'\nsplit: val\n", encoding="utf-8")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All releases feed images at `SIZE`."""
    for name, protocol in PROTOCOLS.items():
        monkeypatch.setitem(PROTOCOLS, name, replace(protocol, size=SIZE))


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def evaluated(file: Path, case: Case, val: Path, *more: str | Path) -> Outcome:
    return segshift(
        "evaluate", "--published", file, "--layout", case.release, "--domain", val, "--device", "cpu", *more
    )


def pictures(val: Path) -> list[Path]:
    return sorted((val.parent / "cityscapes" / "leftImg8bit" / "val").rglob("*.png"))


def fed(image_file: Path) -> Tensor:
    """An image as networks get it, (1, 3, h, w) in [0, 1]."""
    with Image.open(image_file) as image:
        pixels = np.array(image.resize(SIZE, Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def generated(case: Case, val: Path, seed: int = 1) -> State:
    """Random weights with which no class is best everywhere: the mean logits are taken off."""
    state, image = randomise(case.shapes(), seed), fed(pictures(val)[0])
    if case.release == "proda":
        x = resnet101(state, image)[1]
        x = norm(state, "bn_pretrain", x, 1e-5) if "bn_pretrain.weight" in state else x
        mean, weight = proda_head(state, x)[0].mean((0, 2, 3)), state["layer5.head.1.weight"]
        weight -= (weight[..., 0, 0] @ mean)[:, None, None, None] * (mean / mean.square().sum())[:, None, None]
        return state
    head = next(name for name in ("layer6", "classifier", "layer5") if f"{name}.conv2d_list.0.bias" in state)
    state[f"{head}.conv2d_list.0.bias"] -= case.logits(state, image).mean((0, 2, 3))
    return state


def restated(
    networks: list[Callable[[Tensor], Tensor]], val: Path, classes: str, options: Options | None = None
) -> np.ndarray:
    """The confusion matrix of the mean of networks on the miniature: images resized, logits upsampled by torch's own
    function and averaged, labels read with Pillow from Cityscapes' ids."""
    options, names = options or Options(), BUILT_IN[classes]
    train_ids = np.full(256, 255)
    for value, name in CITYSCAPES_IDS.ids.items():
        if name in names and 0 <= value < 256:
            train_ids[value] = names.index(name)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    for image_file in pictures(val):
        x = fed(image_file)
        label_file = str(image_file).replace("leftImg8bit.png", "gtFine_labelIds.png").replace("leftImg8bit", "gtFine")
        label = train_ids[np.array(Image.open(label_file))]
        total = torch.zeros(())
        for network in networks:
            for scale in options.scales:
                sides = [round(side * scale) for side in x.shape[-2:]]
                view = F.interpolate(x, sides, mode="bilinear", antialias=True) if scale != 1 else x
                flipped = [False, True] if options.flip else [False]
                for flip in flipped:
                    with torch.no_grad():
                        logits = network(view.flip(-1) if flip else view)
                    large = F.interpolate(logits, label.shape, mode="bilinear", align_corners=True)
                    total = total + (large.flip(-1) if flip else large)
        counted = label != 255
        np.add.at(confusion, (label[counted], total.argmax(1)[0].numpy()[counted]), 1)
    return confusion


def equal(found: list[list[int]], wanted: np.ndarray) -> bool:
    """Whether confusion matrices agree but for pixels whose best classes are equal to rounding."""
    assert (wanted.sum(axis=0) > 0).sum() >= 3, "a network that says one class everywhere would prove little"
    return bool(np.abs(np.array(found) - wanted).sum() <= 2e-4 * wanted.sum())


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.usefixtures("small")
def test_a_file_predicts_what_its_network_does(kind: str, val: Path, tmp_path: Path) -> None:
    case = CASES[kind]
    state = generated(case, val)
    tf32: set[bool] = set()
    with register_module_forward_pre_hook(lambda *_: tf32.add(torch.backends.cudnn.allow_tf32)):
        done = evaluated(write(tmp_path / "model.pth", case.file(state)), case, val, "--out", tmp_path / "figures")
    assert (done.code, tf32) == (0, {False}), done.err
    for word in (*case.said, "protocol of the release", "aligned corners", "float32", "not comparable", "256 x 128"):
        assert word in done.out, done.out
    metrics = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    options = Options(scales=(0.9, 1.0, 1.2), flip=True) if case.release == "crst" else Options()
    wanted = restated([lambda image: case.logits(state, image)], val, case.classes, options)
    assert metrics["classes"] == list(BUILT_IN[case.classes])
    assert equal(metrics["confusion"], wanted)
    header, _, row = done.out.splitlines()[-3:]
    figures = dict(zip(re.findall(r"[^|]+", header), re.findall(r"[^|]+", row), strict=True))
    figures = {key.strip(): value.strip() for key, value in figures.items()}
    for name, key in (("mIoU", "miou"), ("mIoU16", "miou16"), ("mIoU13", "miou13")):
        assert figures[name] == f"{100 * metrics[key]:.1f}"
    assert set(BUILT_IN[case.classes]) < set(figures)
    told = json.loads((tmp_path / "figures" / "published.json").read_text())
    assert told["protocol"]
    assert told["files"][0]["net"]["name"] in done.out


@pytest.mark.usefixtures("small")
def test_two_files_are_averaged(val: Path, tmp_path: Path) -> None:
    """AdvEnt+MinEnt: 0.5 of each one's upsampled logits (advent+minent_pretrained.yml)."""
    case = CASES["advent"]
    states = [generated(case, val, seed) for seed in (1, 2)]
    files = [write(tmp_path / f"{name}.pth", state) for name, state in zip(("advent", "minent"), states, strict=True)]
    done = evaluated(files[0], case, val, "--with", files[1], "--out", tmp_path / "figures")
    assert done.code == 0, done.err
    assert "mean of 2 files' logits" in done.out
    assert "| advent + minent |" in done.out
    networks: list[Callable[[Tensor], Tensor]] = [lambda x, state=state: case.logits(state, x) for state in states]  # type: ignore[misc]
    found = json.loads((tmp_path / "figures" / "metrics.json").read_text())["confusion"]
    assert equal(found, restated(networks, val, "cityscapes_19"))
    assert not equal(found, restated(networks[:1], val, "cityscapes_19"))


def test_protocols_are_the_papers() -> None:
    """methods.md section 0.3."""
    assert {name: (protocol.size, protocol.options) for name, protocol in PROTOCOLS.items()} == {
        "advent": ((1024, 512), Options()),
        "adaptsegnet": ((1024, 512), Options()),
        "crst": ((2048, 1024), Options(scales=(0.9, 1.0, 1.2), flip=True)),
        "proda": ((2048, 1024), Options()),
    }


@pytest.mark.usefixtures("small")
def test_options_and_classes_of_ones_own(val: Path, tmp_path: Path) -> None:
    case = CASES["adaptsegnet of VGG-16"]
    state = generated(case, val)
    file = write(tmp_path / "vgg.pth", state)
    done = evaluated(file, case, val, "--flip", "--scales", "0.5,1", "--classes", "cityscapes_19")
    assert done.code == 0, done.err
    assert "protocol NOT of the release" in done.out
    assert "not comparable with published figures: the release has one scale, no flip" in done.out
    measured = evaluate_published([file], "adaptsegnet_vgg16", published_domain(val), options=Options(flip=True))
    assert measured.to_dict()["protocol"] is None
    wanted = restated([lambda image: vgg(state, image)], val, "cityscapes_19", Options(flip=True))
    assert equal(measured.metrics.confusion.tolist(), wanted)
    model = open_published(file, "adaptsegnet").model
    assert model.predict(Image.new("RGB", (90, 50))).ids.shape == (50, 90)


def published_domain(val: Path) -> dict[str, str]:
    return {"root": str(val.parent / "cityscapes"), "split": "val"}


def test_branches_of_the_other_release_are_remarked(tmp_path: Path) -> None:
    """AdaptSegNet's and ADVENT's files have the same names and shapes; only which branches were trained differs."""
    trained = randomise(advent(19), seed=1)
    assert "look trained" in open_published(write(tmp_path / "a.pth", trained), "adaptsegnet").remarks[0]
    assert not open_published(tmp_path / "a.pth", "advent").remarks
    generator = torch.Generator().manual_seed(0)
    for head, branch in ((5, 2), (5, 3), (6, 2), (6, 3)):
        weight = trained[f"layer{head}.conv2d_list.{branch}.weight"]
        trained[f"layer{head}.conv2d_list.{branch}.weight"] = 0.01 * torch.randn(weight.shape, generator=generator)
    assert "look untrained" in open_published(write(tmp_path / "b.pth", trained), "advent").remarks[0]
    assert not open_published(tmp_path / "b.pth", "adaptsegnet").remarks


class Payload:
    """A pickle that would run code where it is read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran.txt"),))


def _changed(**changes: Any) -> Callable[[Path], Any]:
    """ADVENT's file with some tensors replaced, added, or removed (None)."""

    def content(_: Path) -> Any:
        state = {**advent(19), **{key.replace("__", "."): value for key, value in changes.items()}}
        return {key: value for key, value in state.items() if value is not None}

    return content


OF_ADVENT = ("--layout", "advent")
BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], tuple[str, ...]]] = {
    "no checkpoint": (lambda p: [1, 2], OF_ADVENT, ("holds a list", "dictionary of tensors")),
    "pickle with code": (lambda p: {"x": Payload()}, OF_ADVENT, ("cannot be read", "to do")),
    "no tensors": (lambda p: {"epoch": 3}, OF_ADVENT, ("something else than tensors: epoch",)),
    "empty": (lambda p: {}, OF_ADVENT, ("no network of the advent release", "0 tensors")),
    "an initialisation": (lambda p: caffe_resnet101(), OF_ADVENT, ("Scale.conv1.weight", "initialisation")),
    "another release": (lambda p: proda(19, bn_clr=True), OF_ADVENT, ("no network of the advent", "--layout proda")),
    "one level of another": (lambda p: single_level(19), OF_ADVENT, ("adaptsegnet, crst", "--layout adaptsegnet")),
    "advent as proda": (
        lambda p: advent(19), ("--layout", "proda"), ("no network of the proda release", "--layout advent"),
    ),
    "another of its layouts": (
        lambda p: advent(19), ("--layout", "adaptsegnet_vgg16"), ("is of layout adaptsegnet, not adaptsegnet_vgg16",),
    ),
    "a tensor missing": (_changed(layer3__5__conv2__weight=None), OF_ADVENT, ("lacks 1 ", "layer3.5.conv2.weight")),
    "a tensor too many": (_changed(layer7__weight=torch.zeros(1)), OF_ADVENT, ("does not know: layer7.weight",)),
    "a tensor of another shape": (
        _changed(conv1__weight=torch.zeros(64, 3, 3, 3)), OF_ADVENT, ("conv1.weight is (64, 3, 3, 3)",),
    ),
    "a classifier that is a number": (
        _changed(layer6__conv2d_list__0__weight=torch.zeros(())), OF_ADVENT, ("no network of the advent",),
    ),
    "34 classes": (lambda p: advent(34), OF_ADVENT, ("predicts 34 classes", "cityscapes_19", "--classes")),
    "a list of other classes": (
        lambda p: advent(16), (*OF_ADVENT, "--classes", "cityscapes_19"),
        ("cityscapes_19 lists 19 classes", "predicts 16"),
    ),
    "two of different classes": (
        lambda p: advent(19), (*OF_ADVENT, "--with", "{folder}/other.pth"), ("predicts 16 classes", "19"),
    ),
    "an unknown layout": (lambda p: {}, ("--layout", "adven"), ("'adven'", "'advent'")),
    "a layout of pretrained weights": (
        lambda p: {}, ("--layout", "caffe_resnet101"), ("pretrained weights", "net.checkpoint"),
    ),
    "no layout": (lambda p: {}, (), ("without --layout", "adaptsegnet")),
    "with points": (lambda p: {}, (*OF_ADVENT, "--points", "weak.jsonl"), ("--points", "leave them out")),
    "with a run": (lambda p: {}, (*OF_ADVENT, "runs/x"), ("runs/x", "leave one out")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_published_network(case: str, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "file.pth", content(tmp_path))
    if "two" in case:
        write(tmp_path / "other.pth", advent(16))
    given = [argument.format(folder=tmp_path) for argument in arguments]
    before = sorted(tmp_path.rglob("*"))
    done = segshift("evaluate", "--published", file, "--domain", val, "--out", tmp_path / "out", *given)
    assert_told(done, *words)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written, no code of the file ran"


def test_files_and_arguments_that_are_not_there(val: Path, tmp_path: Path) -> None:
    gone = segshift("evaluate", "--published", tmp_path / "gone.pth", "--layout", "advent", "--domain", val)
    assert_told(gone, "gone.pth", "cannot be read", "check the path")
    folder = segshift("evaluate", "--published", tmp_path, "--layout", "advent", "--domain", val)
    assert_told(folder, str(tmp_path), "cannot be read")
    assert_told(segshift("evaluate", "--layout", "advent", "--domain", val), "--layout advent without --published")
    assert_told(segshift("evaluate"), "neither a run nor --published", "segshift evaluate runs/x")
    no_domain = segshift("evaluate", "--published", tmp_path / "gone.pth", "--layout", "advent")
    assert_told(no_domain, "without --domain", "add --domain")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    cut = segshift("evaluate", "--published", tmp_path / "cut.pth", "--layout", "proda", "--domain", val)
    assert_told(cut, "cut.pth", "download it again")


def test_the_whole_of_cityscapes_asks_for_a_split(val: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "vgg.pth", randomise(deeplab_vgg16(19)))
    root = val.parent / "cityscapes"
    assert_told(segshift("evaluate", "--published", file, "--layout", "adaptsegnet", "--domain", root), "split", "val")
