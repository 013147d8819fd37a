"""Upsampling against torch's own interpolation, the polynomial decay, and freezing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segshift.ops import frozen, poly, upsample


def interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.double(), size=size, mode="bilinear", align_corners=True).float()


SIZES = [
    ((9, 17), (65, 129)),
    ((5, 7), (5, 7)),
    ((1, 1), (4, 6)),
    ((3, 4), (1, 1)),
    ((1, 5), (7, 1)),
    ((4, 6), (11, 13)),
    ((33, 20), (9, 7)),
    ((2, 2), (3, 2)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_upsample_equals_interpolate(small: tuple[int, int], large: tuple[int, int]) -> None:
    logits = torch.randn(2, 3, *small, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upsample(logits, large), interpolate(logits, large), atol=2e-5, rtol=1e-5)


@settings(max_examples=40)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_upsample_equals_interpolate_at_any_size(small: tuple[int, int], large: tuple[int, int]) -> None:
    logits = torch.randn(1, 2, *small, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upsample(logits, large), interpolate(logits, large), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_upsample_gradient_equals_that_of_interpolate(small: tuple[int, int], large: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(2, 3, *small, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(2, 3, *large, generator=generator)
    (upsample(ours, large) * weight).sum().backward()  # type: ignore[no-untyped-call]
    (interpolate(theirs, large) * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_upsample_of_channels_last_and_of_slices() -> None:
    logits = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    wanted = interpolate(logits, (20, 31))
    torch.testing.assert_close(
        upsample(logits.to(memory_format=torch.channels_last), (20, 31)), wanted, atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(upsample(logits[:, 1:3], (20, 31)), wanted[:, 1:3], atol=2e-5, rtol=1e-5)


def test_upsample_is_float32_under_bfloat16_autocast() -> None:
    logits = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        large = upsample(logits, (50, 50))
        of_bfloat16 = upsample(logits.bfloat16(), (50, 50))
    assert large.dtype == of_bfloat16.dtype == torch.float32
    torch.testing.assert_close(large, interpolate(logits, (50, 50)), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(of_bfloat16, interpolate(logits.bfloat16(), (50, 50)), atol=2e-5, rtol=1e-5)


def test_upsample_first_used_in_inference_mode_trains_afterwards() -> None:
    size = (83, 71)  # of no other test: the weights of a size are kept
    with torch.inference_mode():
        upsample(torch.ones(1, 1, 7, 5), size)
    logits = torch.ones(1, 1, 7, 5, requires_grad=True)
    upsample(logits, size).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.sum().item() == pytest.approx(83 * 71, rel=1e-5)


def test_upsample_repeats_bit_for_bit() -> None:
    logits = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upsample(logits, (50, 50)), upsample(logits, (50, 50)))


def test_poly() -> None:
    assert poly(0, 100) == 1.0
    assert poly(50, 100) == pytest.approx(0.5**0.9)
    assert poly(120_000, 250_000) == pytest.approx((1 - 120_000 / 250_000) ** 0.9)
    assert poly(30, 100, power=2.0) == pytest.approx(0.49)
    assert [poly(step, 100, power=0.0) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]
    assert poly(100, 100) == 0.0
    assert poly(101, 100) == 0.0


def test_frozen_stops_gradients_of_parameters_but_not_of_inputs() -> None:
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    inputs = torch.ones(1, 3, requires_grad=True)
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        scores = module(inputs).sum() + other(inputs).sum()
    assert module.weight.requires_grad
    assert not module.bias.requires_grad  # as before
    scores.backward()
    assert module.weight.grad is None
    assert other.weight.grad is not None
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad[0], module.weight.sum(0) + other.weight.sum(0))


def test_frozen_thaws_after_an_error() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="stop"), frozen(module):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in module.parameters())


def test_upsample_in_a_fresh_process_under_inference_mode() -> None:
    """The order matters once a process, hence a process of its own."""
    program = (
        "import torch; from segshift.ops import upsample\n"
        "with torch.inference_mode(): upsample(torch.ones(1, 1, 2, 2), (4, 4))\n"
        "x = torch.ones(1, 1, 2, 2, requires_grad=True)\n"
        "upsample(x, (4, 4)).sum().backward(); print(x.grad.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(16)
