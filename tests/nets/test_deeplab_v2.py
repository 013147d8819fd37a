"""DeepLab-v2: output sizes of methods.md section 0.5, and restatements of each network in plain functions."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from plain_nets import aspp, proda_head, randomise, resnet101, vgg16
from published_keys import advent, proda, torchvision_vgg16
from torch import nn

from segshift.errors import UserError
from segshift.nets import NETS, load_published
from segshift.nets.deeplab_v2 import DeepLabV2ResNet101, deeplab_v2_resnet101, deeplab_v2_vgg16
from segshift.nets.deeplab_v2_proda import deeplab_v2_resnet101_proda
from segshift.nets.resnet import Aspp

CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)

# methods.md section 0.5
SIZES = [
    ((512, 1024), (65, 129)),
    ((720, 1280), (91, 161)),
    ((760, 1280), (96, 161)),
    ((512, 896), (65, 113)),
    ((1024, 2048), (129, 257)),
    ((512, 512), (65, 65)),
]


@pytest.mark.parametrize(("size", "grid"), SIZES)
@pytest.mark.parametrize("name", ["deeplab_v2_resnet101", "deeplab_v2_resnet101_proda"])
def test_output_sizes_of_resnet(name: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        prediction = NETS[name](19)(torch.empty(1, 3, *size))
    assert prediction.logits.shape == (1, 19, *grid)
    assert prediction.features.shape == (1, 2048 if name == "deeplab_v2_resnet101" else 256, *grid)
    assert prediction.aux is None


def test_output_sizes_of_vgg_and_of_the_auxiliary_head() -> None:
    with torch.device("meta"):
        prediction = NETS["deeplab_v2_vgg16"](19)(torch.empty(2, 3, 517, 1030))
        assert prediction.logits.shape == (2, 19, 64, 128)
        assert prediction.features.shape == (2, 1024, 64, 128)
        multi = NETS["deeplab_v2_resnet101"](16, aux=True)(torch.empty(1, 3, 512, 1024))
        assert multi.aux is not None
        assert multi.aux.shape == (1, 16, 65, 129)


def test_stride_is_on_the_first_1x1_and_dilations_are_the_stages() -> None:
    with torch.device("meta"):
        backbone = deeplab_v2_resnet101(19).backbone
    for stage, stride, dilation in (("layer1", 1, 1), ("layer2", 2, 1), ("layer3", 1, 2), ("layer4", 1, 4)):
        blocks = list(getattr(backbone, stage))
        assert [b.conv1.stride for b in blocks] == [(stride, stride)] + [(1, 1)] * (len(blocks) - 1)
        assert {b.conv2.stride for b in blocks} == {(1, 1)}
        assert {b.conv2.dilation for b in blocks} == {b.conv2.padding for b in blocks} == {(dilation, dilation)}
    assert backbone.maxpool.ceil_mode


@pytest.fixture(scope="module")
def multi_level() -> tuple[DeepLabV2ResNet101, dict[str, torch.Tensor]]:
    state = randomise(advent(5))
    net = deeplab_v2_resnet101(5, aux=True)
    load_published(net, state, "advent")
    return net.eval(), state


def test_resnet_equals_a_plain_restatement(
    multi_level: tuple[DeepLabV2ResNet101, dict[str, torch.Tensor]],
) -> None:
    net, state = multi_level
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    bgr = torch.stack([255 * image[:, 2 - c] - CAFFE_MEAN[c] for c in range(3)], dim=1)
    with torch.no_grad():
        prediction = net(image)
        layer3, layer4 = resnet101(state, bgr)
        main, aux = aspp(state, "layer6", layer4, 4), aspp(state, "layer5", layer3, 4)
    for ours, plain in ((prediction.features, layer4), (prediction.logits, main), (prediction.aux, aux)):
        assert ours is not None
        assert ours.shape[2:] == (7, 9)
        scale = float(plain.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(ours / scale, plain / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("active", [2, 4])
def test_aspp_sums_its_active_branches(active: Literal[2, 4]) -> None:
    torch.manual_seed(0)
    head = Aspp(8, 3, active)
    for branch in head.branches:
        nn.init.normal_(branch.get_parameter("bias"))
    x = torch.randn(2, 8, 30, 31)
    expected = torch.zeros(2, 3, 30, 31)
    for branch, dilation in list(zip(head.branches, (6, 12, 18, 24), strict=True))[:active]:
        weight, bias = branch.get_parameter("weight"), branch.get_parameter("bias")
        expected = expected + F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(head(x), expected)
    head(x).sum().backward()
    used = [p.grad is not None for branch in head.branches for p in branch.parameters()]
    trained = [p.requires_grad for branch in head.branches for p in branch.parameters()]
    assert used == trained == [True] * (2 * active) + [False] * (8 - 2 * active)


def test_aspp_starts_as_the_releases_do() -> None:
    torch.manual_seed(0)
    weights = torch.cat([b.get_parameter("weight").flatten() for b in Aspp(64, 19).branches])
    assert abs(float(weights.detach().std()) - 0.01) < 2e-4


def test_other_numbers_of_branches_are_refused() -> None:
    with pytest.raises(UserError, match="aspp_branches is 3"):
        Aspp(8, 3, 3)  # type: ignore[arg-type]


def test_vgg_equals_a_plain_restatement() -> None:
    state = randomise({k: v for k, v in torchvision_vgg16().items() if k.startswith("features")})
    dropped = {k: v for k, v in torchvision_vgg16().items() if k.startswith("classifier")}
    net = deeplab_v2_vgg16(4, normalisation="imagenet").eval()
    load_published(net, {**state, **dropped}, "torchvision_vgg16")
    image = torch.rand(1, 3, 43, 57, generator=torch.Generator().manual_seed(4))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        prediction = net(image)
        x = vgg16(state, (image - mean[:, None, None]) / std[:, None, None])
        for layer in (net.fc6, net.fc7):
            assert (layer.dilation, layer.out_channels) == ((4, 4), 1024)
            x = F.conv2d(x, layer.weight, layer.bias, padding=4, dilation=4).relu()
        logits = net.classifier(x)
    assert prediction.features.shape == (1, 1024, 5, 7)
    torch.testing.assert_close(prediction.features, x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction.logits, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bn_clr", [False, True])
def test_proda_equals_a_plain_restatement(bn_clr: bool) -> None:
    state = randomise(proda(5, bn_clr))
    net = deeplab_v2_resnet101_proda(5, bn_clr=bn_clr).eval()
    load_published(net, {"ResNet101": {"model_state": state}, "iter": 7}, "proda")
    image = torch.rand(1, 3, 41, 50, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        prediction = net(image)
        _, x = resnet101(state, image)
        if bn_clr:
            mean, var, weight, bias = (
                state[f"bn_pretrain.{part}"][:, None, None]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        features, logits = proda_head(state, x)
    torch.testing.assert_close(prediction.features, features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.logits, logits, atol=1e-4, rtol=1e-4)


def test_proda_features_are_behind_the_dropout() -> None:
    torch.manual_seed(0)
    net = deeplab_v2_resnet101_proda(3)
    net.head.train()
    features = torch.cat([net.head(torch.randn(1, 2048, 3, 3)) for _ in range(4)])
    gone = (features == 0).all(dim=(2, 3)).float().mean()
    assert 0.05 < gone < 0.15


@pytest.mark.parametrize("name", sorted(NETS))
def test_heads_and_backbone_share_out_the_parameters(name: str) -> None:
    with torch.device("meta"):
        net = NETS[name](7, weights="none") if name == "deeplab_lite" else NETS[name](7)
    head = {id(p) for p in net.head_parameters()}
    backbone = {id(p) for p in net.backbone_parameters()}
    assert not head & backbone
    assert head | backbone == {id(p) for p in net.parameters()}
    # AdaptSegNet trains all of VGG at one rate; all other classifiers learn faster.
    classifier = {id(p) for p in net.get_submodule("classifier").parameters()}
    assert classifier <= (backbone if name == "deeplab_v2_vgg16" else head)
