"""Smooth maximum and category-wise pooling: restated cell by cell, their properties, gradients, precision, memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segshift.ops import category_pool, classes_in, seen_cells, smooth_max
from segshift.types import IGNORE

SHAPE = (2, 4, 5, 6)
DEPTH = 3


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_mask(seed: int = 3) -> Tensor:
    """(2, 5, 6): of the second image nothing is seen."""
    mask = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[1] = False
    return mask


def cells(image: int, mask: Tensor | None) -> list[tuple[int, int]]:
    """The cells that count: those of the mask, or all where it has none."""
    every = [(i, j) for i in range(SHAPE[2]) for j in range(SHAPE[3])]
    if mask is None or not mask[image].any():
        return every
    return [(i, j) for i, j in every if mask[image, i, j]]


def naive_smooth_max(logits: Tensor, k: float, mask: Tensor | None) -> Tensor:
    out = torch.zeros(SHAPE[:2], dtype=logits.dtype)
    for b in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            values = [math.exp(k * float(logits[b, c, i, j])) for i, j in cells(b, mask)]
            out[b, c] = math.log(sum(values) / len(values)) / k
    return out


def naive_pool(features: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    out = torch.zeros(SHAPE[0], SHAPE[1], DEPTH, dtype=logits.dtype)
    for b in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            weights = {(i, j): math.exp(float(logits[b, c, i, j])) for i, j in cells(b, mask)}
            for (i, j), weight in weights.items():
                out[b, c] += weight / sum(weights.values()) * features[b, :, i, j]
    return out


masks = pytest.mark.parametrize("mask", [None, some_mask()], ids=["whole", "masked"])


@masks
@pytest.mark.parametrize("k", [0.1, 1.0, 7.0])
def test_smooth_max_is_its_formula(k: float, mask: Tensor | None) -> None:
    logits = 2 * normal(*SHAPE, dtype=torch.float64)
    torch.testing.assert_close(smooth_max(logits, k, mask), naive_smooth_max(logits, k, mask))
    found = smooth_max(logits.float(), k, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), naive_smooth_max(logits, k, mask), atol=2e-6 / k, rtol=1e-5)


@masks
def test_category_pool_is_its_formula(mask: Tensor | None) -> None:
    features, logits = normal(2, DEPTH, 5, 6, seed=1, dtype=torch.float64), 2 * normal(*SHAPE, dtype=torch.float64)
    torch.testing.assert_close(category_pool(features, logits, mask), naive_pool(features, logits, mask))
    found = category_pool(features.float(), logits.float(), mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), naive_pool(features, logits, mask), atol=1e-5, rtol=1e-5)


@masks
@pytest.mark.parametrize("k", [0.3, 1.0, 5.0])
def test_gradients(k: float, mask: Tensor | None) -> None:
    logits = normal(*SHAPE, dtype=torch.float64).requires_grad_()
    features = normal(2, DEPTH, 5, 6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: smooth_max(a, k, mask), (logits,))
    assert torch.autograd.gradcheck(lambda f, a: category_pool(f, a, mask), (features, logits))
    assert torch.autograd.gradgradcheck(lambda a: smooth_max(a, k, mask), (logits,))


def test_the_gradient_of_the_smooth_maximum_is_a_softmax() -> None:
    logits = normal(*SHAPE).requires_grad_()
    smooth_max(logits, 3.0).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    wanted = (3 * logits.detach()).flatten(2).softmax(dim=2).view(SHAPE)
    torch.testing.assert_close(logits.grad, wanted)


@settings(max_examples=150)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=30),
    st.floats(0.05, 200),
    st.floats(-50, 50, width=32),
)
def test_between_mean_and_maximum_and_moved_by_a_constant(values: list[float], k: float, shift: float) -> None:
    logits = torch.tensor(values).view(1, 1, 1, -1)
    found = smooth_max(logits, k).item()
    tolerance = 1e-4 + 5e-6 / k
    assert logits.mean().item() - tolerance <= found <= logits.max().item() + tolerance
    assert smooth_max(logits + shift, k).item() == pytest.approx(found + shift, abs=2 * tolerance)
    # It can fall short of the maximum by no more than log n / k, which is what one cell among n makes.
    assert found >= logits.max().item() - math.log(len(values)) / k - tolerance


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(1.01, 30))
def test_grows_with_sharpness_and_with_every_logit(seed: int, k: float, more: float) -> None:
    logits = normal(*SHAPE, seed=seed, dtype=torch.float64)
    assert (smooth_max(logits, k * more) >= smooth_max(logits, k)).all()
    higher = logits.clone()
    higher[0, 1, 2, 3] += 0.5
    assert (smooth_max(higher, k) - smooth_max(logits, k))[0, 1] > 0
    assert torch.equal(smooth_max(higher, k)[1], smooth_max(logits, k)[1])


def test_limits_are_maximum_and_mean() -> None:
    logits = 3 * normal(*SHAPE, dtype=torch.float64)
    torch.testing.assert_close(smooth_max(logits, 1e6), logits.amax(dim=(2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(smooth_max(logits, 1e-6), logits.mean(dim=(2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(smooth_max(logits.float(), 1e4), logits.amax(dim=(2, 3)).float(), atol=1e-3, rtol=0)


def test_the_example_of_the_sheet() -> None:
    """methods.md section 9: 10 of 8192 positions at logit 8, the rest at 0."""
    logits = torch.zeros(1, 1, 64, 128)
    logits[0, 0, 0, :10] = 8
    assert smooth_max(logits, 1.0).item() == pytest.approx(1.53, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_stable_at_any_size_and_precision(dtype: torch.dtype, size: float) -> None:
    """Without taking the maximum off, exp of 89 is infinite in float32 and of 12 in float16."""
    logits = (size * normal(*SHAPE)).to(dtype)
    features = normal(2, DEPTH, 5, 6, seed=1).to(dtype)
    wanted = smooth_max(logits.double(), 1.0)
    found, pooled = smooth_max(logits, 1.0), category_pool(features, logits)
    assert found.dtype == pooled.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled.double(), category_pool(features.double(), logits.double()), atol=1e-5, rtol=1e-4)


def test_autocast_changes_nothing() -> None:
    features, logits = normal(2, DEPTH, 5, 6, seed=1).bfloat16(), normal(*SHAPE).bfloat16()
    plain = smooth_max(logits, 2.0), category_pool(features, logits)
    with torch.autocast("cpu", torch.bfloat16):
        inside = smooth_max(logits, 2.0), category_pool(features, logits)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(-40, 40), st.floats(0, 6))
def test_pooled_features_lie_among_the_features(seed: int, level: float, spread: float) -> None:
    """An absent class has low logits everywhere; its attention still sums to 1 and nothing is divided by 0."""
    features = normal(2, DEPTH, 5, 6, seed=seed)
    logits = level + 10**spread * normal(*SHAPE, seed=seed + 1)
    pooled = category_pool(features, logits)
    low, high = features.amin(dim=(2, 3)), features.amax(dim=(2, 3))
    assert (pooled >= low[:, None] - 1e-5).all()
    assert (pooled <= high[:, None] + 1e-5).all()
    torch.testing.assert_close(category_pool(features, logits + 3.0), pooled, atol=1e-3, rtol=1e-3)


def test_limits_of_the_attention() -> None:
    features, flat, sharp = normal(2, DEPTH, 5, 6), torch.zeros(SHAPE), torch.full(SHAPE, -1e4)
    sharp[:, :, 2, 3] = 0
    torch.testing.assert_close(category_pool(features, flat), features.mean(dim=(2, 3))[:, None].expand(2, 4, DEPTH))
    assert torch.equal(category_pool(features, sharp), features[:, None, :, 2, 3].expand(2, 4, DEPTH))


def test_masked_cells_have_no_part() -> None:
    mask = some_mask()
    features, logits = normal(2, DEPTH, 5, 6, seed=1), normal(*SHAPE)
    other = logits.clone()
    other[0, :, ~mask[0]] = 1e4
    strange = features.clone()
    strange[0, :, ~mask[0]] = -1e4
    assert torch.equal(smooth_max(other, 1.0, mask)[0], smooth_max(logits, 1.0, mask)[0])
    assert torch.equal(category_pool(strange, other, mask)[0], category_pool(features, logits, mask)[0])
    assert torch.equal(smooth_max(logits, 1.0, mask)[1], smooth_max(logits, 1.0)[1]), "nothing seen: taken whole"
    logits.requires_grad_()
    (smooth_max(logits, 1.0, mask).sum() + category_pool(features, logits, mask).sum()).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[0, :, ~mask[0]].any()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_of_classes_times_features_times_cells() -> None:
    batch, classes, depth, cells_ = 2, 19, 256, 33 * 65
    features = torch.randn(batch, depth, 33, 65, requires_grad=True)
    logits = torch.randn(batch, classes, 33, 65, requires_grad=True)
    with Largest() as largest:
        category_pool(features, logits).sum().backward()  # type: ignore[no-untyped-call]
    assert largest.elements <= batch * depth * cells_


def test_a_sharpness_that_is_none_is_refused() -> None:
    for k in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="k must be above 0"):
            smooth_max(normal(*SHAPE), k)


def test_classes_in_a_label() -> None:
    labels = torch.full((3, 4, 5), IGNORE)
    labels[0, 1, 1], labels[0, 3, 4], labels[2, 0] = 2, 0, 3
    assert classes_in(labels, 4).tolist() == [[True, False, True, False], [False] * 4, [False, False, False, True]]


def test_cells_that_see_the_image() -> None:
    seen = torch.zeros(2, 12, 16, dtype=torch.bool)
    seen[0, 5, 9] = True
    found = seen_cells(seen, (3, 4))
    assert found[0].nonzero().tolist() == [[1, 2]]
    assert not found[1].any()
    # Whatever the grid, a seen pixel is seen by some cell.
    assert all(seen_cells(seen, size)[0].any() for size in ((1, 1), (5, 7), (12, 16)))
