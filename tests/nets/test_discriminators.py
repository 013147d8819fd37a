"""The discriminators of patches and of categories: shapes, restatement, refusal of what does not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segshift.nets import CategoryDiscriminators, PatchDiscriminator


@pytest.mark.parametrize(
    ("size", "patches"), [((32, 32), (1, 1)), ((64, 97), (2, 3)), ((512, 1024), (16, 32)), ((63, 95), (1, 2))]
)
def test_shape_is_the_floor_of_size_over_32(size: tuple[int, int], patches: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert PatchDiscriminator(19)(torch.empty(2, 19, *size)).shape == (2, 1, *patches)


def test_equals_its_description() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(5, width=8)
    x = torch.randn(2, 5, 64, 48)
    expected = x
    parameters = list(net.parameters())
    for weight, bias in zip(parameters[:8:2], parameters[1:8:2], strict=True):
        expected = F.conv2d(expected, weight, bias, stride=2, padding=1)
        expected = torch.where(expected > 0, expected, 0.2 * expected)
    expected = F.conv2d(expected, parameters[8], parameters[9], stride=2, padding=1)
    torch.testing.assert_close(net(x), expected)
    assert [tuple(p.shape) for p in parameters[::2]] == [
        (8, 5, 4, 4), (16, 8, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (1, 64, 4, 4)
    ]  # fmt: skip


def test_published_width_and_size() -> None:
    """64, 128, 256, 512 channels as in the AdaptSegNet release."""
    convs = [m for m in PatchDiscriminator(19).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 128, 256, 512, 1]


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_too_small_an_input_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"at least 32x32 pixels, got {size[0]}x{size[1]}"):
        PatchDiscriminator(3)(torch.zeros(1, 3, *size))


def test_other_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 3 channels, the input has 4"):
        PatchDiscriminator(3)(torch.zeros(1, 4, 32, 32))


def perceptron(net: CategoryDiscriminators, k: int) -> torch.nn.Sequential:
    """Class k's layers as torch's own."""
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[k].T)
            linear.bias.copy_(bias[k, 0])
        layers += [linear, torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*layers[:-1])


def test_categories_are_perceptrons_of_their_own() -> None:
    torch.manual_seed(0)
    net = CategoryDiscriminators(4, 6, width=5)
    features = torch.randn(3, 4, 6).requires_grad_()
    scores = net(features)
    assert scores.shape == (3, 4)
    for k in range(4):
        torch.testing.assert_close(scores[:, k], perceptron(net, k)(features[:, k])[:, 0])
    scores[:, 2].sum().backward()
    assert features.grad is not None
    assert [bool(features.grad[:, k].any()) for k in range(4)] == [False, False, True, False]
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert [bool(parameter.grad[k].any()) for k in range(4)] == [False, False, True, False]


def test_categories_start_like_linear_layers() -> None:
    torch.manual_seed(0)
    net = CategoryDiscriminators(19, 128)
    assert [tuple(w.shape) for w in net.weights] == [(19, 128, 256), (19, 256, 256), (19, 256, 1)]
    for weight, bias, inputs in zip(net.weights, net.biases, (128, 256, 256), strict=True):
        assert 0.9 < weight.abs().max() * inputs**0.5 <= 1
        assert bias.abs().max() * inputs**0.5 <= 1
        assert weight.std().item() * inputs**0.5 == pytest.approx(3**-0.5, rel=0.05)


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 3, 6)])
def test_other_categories_or_features_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"take 4 classes of 6 features, the input has {shape[1]} of {shape[2]}"):
        CategoryDiscriminators(4, 6)(torch.zeros(shape))
