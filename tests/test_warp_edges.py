"""Warps at the border of a map, in batches, in other types and layouts, backwards, and what is refused."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segshift.ops import warp
from segshift.types import IGNORE
from test_warp import EYE, Size, flipped, shifted

# ---- edges


@pytest.mark.parametrize("size", [(12, 20), (3, 5), (7, 11), (30, 8)])
def test_resizing_is_that_of_pixel_areas(size: Size) -> None:
    """What `views` and F.interpolate without aligned corners do; no border is lost when a map grows."""
    x = torch.randn(1, 2, 6, 10, generator=torch.Generator().manual_seed(0))
    step_y, step_x = 6 / size[0], 10 / size[1]
    values, inside = warp(x, EYE, shifted(0.5 * step_x - 0.5, 0.5 * step_y - 0.5, step_x, step_y), size)
    assert inside.all()
    torch.testing.assert_close(
        values, F.interpolate(x, size, mode="bilinear", align_corners=False), atol=1e-5, rtol=1e-4
    )


def test_inside_is_the_area_of_the_pixels() -> None:
    x = torch.ones(1, 1, 4, 4)
    for place, seen in ((-0.49, True), (-0.51, False), (-0.5, True), (3.49, True), (3.51, False), (3.5, True)):
        assert warp(x, EYE, shifted(place, 1), (1, 1))[1].item() is seen, place
        assert warp(x, EYE, shifted(1, place), (1, 1))[1].item() is seen, place
        assert warp(x, EYE, shifted(place, 1), (1, 1), "nearest")[1].item() is seen, place
        assert warp(x, EYE, shifted(place, 1), (1, 1))[0].item() == float(seen), place


def test_a_margin_of_its_own() -> None:
    """A coarse grid's area ends half a pixel of the view, not of the grid, beyond its outermost centres."""
    x = torch.ones(1, 1, 4, 4)
    for place, seen in ((-0.05, True), (-0.07, False), (3.05, True), (3.07, False)):
        assert warp(x, EYE, shifted(place, 1), (1, 1), margin=0.0625)[1].item() is seen
        assert warp(x, EYE, shifted(1, place), (1, 1), margin=0.0625)[1].item() is seen


def test_outside_has_the_value_asked_for() -> None:
    x = torch.ones(1, 2, 3, 3)
    for mode in ("bilinear", "nearest"):
        values, inside = warp(x, EYE, shifted(-1, 0), (3, 3), mode, outside=IGNORE)
        assert (values[:, :, ~inside[0]] == IGNORE).all()
        assert (values[:, :, inside[0]] == 1).all()
        assert inside.sum() == 6
    far, inside = warp(x, EYE, shifted(1e30, -1e30), (3, 3), "nearest")
    assert not inside.any()
    assert (far == 0).all()


def test_what_is_not_a_number_outside_stays_there() -> None:
    x = torch.full((1, 1, 3, 3), math.nan)
    values, inside = warp(x, EYE, shifted(10.5, 0), (2, 2))
    assert not inside.any()
    assert (values == 0).all()


# ---- what it promises


def test_each_image_has_its_own_affine() -> None:
    x = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    after = torch.cat([EYE, flipped(8), shifted(0.3, 0.4)])
    before = torch.cat([EYE, EYE, shifted(0.1, 0)])
    values, inside = warp(x, before, after, (6, 8))
    for i in range(3):
        alone, within = warp(x[i : i + 1], before[i : i + 1], after[i : i + 1], (6, 8))
        assert torch.equal(values[i], alone[0])
        assert torch.equal(inside[i], within[0])
    assert torch.equal(values[0], x[0])
    assert torch.equal(values[1], x[1].flip(2))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("after", [shifted(0.3, -1.4, 0.7, 1.1), shifted(2, 1)])
def test_the_gradient_goes_back_the_same_way(mode: str, after: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 6, 8, generator=generator).requires_grad_()
    values, _ = warp(x, EYE, after, (7, 9), mode)  # type: ignore[arg-type]
    weight, other = torch.randn(1, 3, 7, 9, generator=generator), torch.randn(1, 3, 6, 8, generator=generator)
    (values * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    moved, _ = warp(other, EYE, after, (7, 9), mode)  # type: ignore[arg-type]
    assert (x.grad * other).sum().item() == pytest.approx((moved * weight).sum().item(), rel=1e-4, abs=1e-5)


def test_bilinear_is_of_float32() -> None:
    x = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for after in (EYE, shifted(0.3, 0.4)):
        wanted, _ = warp(x.float(), EYE, after, (5, 7))
        with torch.autocast("cpu", torch.bfloat16):
            values, _ = warp(x, EYE, after, (5, 7))
            assert torch.equal(values, wanted)
        assert values.dtype == torch.float32
        assert torch.equal(warp(x.double(), EYE, after, (5, 7))[0], wanted)


def test_the_map_is_left_as_it_was() -> None:
    x = torch.ones(1, 1, 3, 3)
    for mode in ("bilinear", "nearest"):
        for after in (EYE, shifted(-1, 0), shifted(0.5, 0)):
            warp(x, EYE, after, (3, 3), mode, outside=5)
    assert (x == 1).all()


def test_no_images() -> None:
    none = torch.zeros(0, 3, 3)
    values, inside = warp(torch.zeros(0, 2, 4, 4), none, none, (3, 5))
    assert values.shape == (0, 2, 3, 5)
    assert inside.shape == (0, 3, 5)


def test_maps_in_any_memory_layout() -> None:
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    affine, after = torch.cat([EYE, EYE]), torch.cat([shifted(0.3, 0.4), shifted(1, 1)])
    for mode in ("bilinear", "nearest"):
        wanted, _ = warp(x, affine, after, (9, 9), mode)
        for other in (x.to(memory_format=torch.channels_last), torch.cat([x, x], dim=3)[..., :16]):
            assert torch.equal(warp(other, affine, after, (9, 9), mode)[0], wanted)


UNCHECKED = inspect.unwrap(warp)
"""The function without the annotations' check that conftest.py puts before it: users run it so."""

SINGULAR = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (SINGULAR, EYE, "singular"),
        (EYE * math.nan, EYE, "not finite"),
        (EYE, EYE * math.inf, "not finite"),
        (torch.cat([EYE, EYE]), EYE, r"1 maps with 2 and 1 affines"),
        (EYE, torch.cat([EYE, EYE]), r"1 maps with 1 and 2 affines"),
        (EYE, 2 * EYE, "last row"),
        (EYE + torch.tensor([[0.0, 0, 0], [0, 0, 0], [0.01, 0, 0]]), EYE, "last row"),
    ],
)
def test_affines_that_are_refused(before: Tensor, after: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNCHECKED(torch.ones(1, 1, 3, 3), before, after, (3, 3))


def test_other_uses_that_are_refused() -> None:
    with pytest.raises(ValueError, match="use nearest"):
        warp(torch.ones(1, 1, 3, 3, dtype=torch.int64), EYE, EYE, (3, 3))
    with pytest.raises(ValueError, match="got bicubic"):
        UNCHECKED(torch.ones(1, 1, 3, 3), EYE, EYE, (3, 3), "bicubic")
    flat, inside = warp(torch.ones(1, 1, 3, 3), EYE, SINGULAR, (2, 2))  # a grid may be of no area
    assert inside.all()
    assert (flat == 1).all()
