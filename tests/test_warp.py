"""Warps against places computed by hand: on coordinate grids to a hundredth of a pixel, on labels exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.data.views import Draw, ViewSettings, affine_of, cut_map, draw
from segshift.ops import grid_affine, upsample, warp
from segshift.types import IGNORE

Size = tuple[int, int]

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def affines(draw: st.DrawFn, low: float = 0.3, high: float = 3.0) -> Tensor:
    """(1, 3, 3) float64: scale, shear, flip, rotation, shift, each of any size that a view may have."""
    turn, shear = draw(st.floats(-math.pi, math.pi)), draw(st.floats(-0.5, 0.5))
    scale = [draw(st.floats(low, high)) * draw(st.sampled_from([1, -1])) for _ in range(2)]
    shift = [draw(st.floats(-30, 30)) for _ in range(2)]
    cos, sin = math.cos(turn), math.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, shift
    return torch.from_numpy(matrix)[None]


def shifted(x: float, y: float, step_x: float = 1.0, step_y: float = 1.0) -> Tensor:
    return torch.tensor([[[step_x, 0, x], [0, step_y, y], [0, 0, 1.0]]])


def flipped(width: int) -> Tensor:
    return shifted(width - 1, 0, -1)


EYE = shifted(0, 0)


def coordinates(size: Size) -> Tensor:
    """(1, 2, h, w) column and row of each pixel."""
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    return torch.stack([columns, rows])[None]


def at(affine: Tensor, size: Size) -> Tensor:
    """(2, h, w) float64: where an affine takes the pixels of a grid; restated without the library."""
    matrix, result = affine[0].double().numpy(), np.zeros((2, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            result[:, y, x] = (matrix @ [x, y, 1])[:2]
    return torch.from_numpy(result)


def places(before: Tensor, after: Tensor, size: Size) -> Tensor:
    """(2, h, w) float64: column and row in the map that pixels of the other grid come from."""
    return at(torch.from_numpy(np.linalg.inv(before[0].double().numpy()))[None] @ after.double(), size)


def beyond(place: Tensor, size: Size) -> Tensor:
    """(h, w) how many pixels a place lies beyond the outermost centres; negative within them."""
    far = torch.tensor([size[1] - 1, size[0] - 1]).view(2, 1, 1)
    return torch.maximum(-place, place - far).amax(dim=0)


# ---- places


@settings(max_examples=150)
@given(affines(), affines(), SIZES, SIZES)
def test_a_coordinate_grid_lands_where_the_affines_say(before: Tensor, after: Tensor, small: Size, large: Size) -> None:
    """The file's coordinates seen from one grid and warped to another are that grid's own."""
    values, inside = warp(coordinates(small), before, after, large)
    wanted = places(before, after, large)
    far = beyond(wanted, small)
    clamped = torch.stack([wanted[0].clamp(0, small[1] - 1), wanted[1].clamp(0, small[0] - 1)])
    error = (values[0] - clamped).abs().amax(dim=0)
    assert (error[inside[0]] < 0.01).all()
    assert (values[0][:, ~inside[0]] == 0).all()
    assert inside[0][far < 0.5].all()
    assert not inside[0][far > 0.502].any()


@settings(max_examples=60)
@given(affines(), affines(), SIZES, SIZES)
def test_coordinates_of_the_file_agree_in_both_grids(before: Tensor, after: Tensor, small: Size, large: Size) -> None:
    of_file = at(before, small).float()[None]
    values, inside = warp(of_file, before, after, large)
    within = inside[0] & (beyond(places(before, after, large), small) < -1e-6)
    assert ((values[0] - at(after, large)).abs().amax(dim=0)[within] < 0.01).all()


@settings(max_examples=60)
@given(affines(), affines(), SIZES, SIZES)
def test_nearest_takes_the_pixel_that_holds_the_place(before: Tensor, after: Tensor, small: Size, large: Size) -> None:
    values, inside = warp(coordinates(small).long(), before, after, large, "nearest", outside=-7)
    wanted = places(before, after, large)
    assert values.dtype == torch.int64
    off = (values[0] - wanted).abs().amax(dim=0)
    assert (off[inside[0]] < 0.502).all()
    assert (values[0][:, ~inside[0]] == -7).all()
    assert torch.equal(inside, warp(coordinates(small), before, after, large)[1])


def views_of(seed: int, size: Size) -> tuple[ViewSettings, Draw, Tensor, Size]:
    """A view with everything, its affine for a file of another size than the working size."""
    generator = torch.Generator().manual_seed(seed)
    view = ViewSettings(size=(size[1], size[0]), crop=(int(0.44 * size[1]), size[0] // 2), scale=(0.4, 1.5), flip=True)
    chance = draw(view, generator)
    original = (int(0.93 * size[0]), int(0.93 * size[1]))
    return view, chance, torch.from_numpy(affine_of(view, chance, original))[None], original


@pytest.mark.parametrize("seed", range(6))
def test_float32_affines_are_precise_enough_for_images_2048_wide(seed: int) -> None:
    view, chance, affine, original = views_of(seed, (1024, 2048))
    assert affine.dtype == torch.float32
    full = ViewSettings(size=view.size)
    of_full = torch.from_numpy(affine_of(full, draw(full, torch.Generator()), original))[None]
    shape = (view.shape[1], view.shape[0])
    columns = torch.arange(2048.0).expand(1, 1, 1024, 2048)
    rows = torch.arange(1024.0).view(-1, 1).expand(1, 1, 1024, 2048)
    values, inside = warp(torch.cat([columns, rows], dim=1), of_full, affine, shape)
    # In whole numbers of the draw, in float64.
    x = np.arange(shape[1])
    x = (view.shape[0] - 1 - x if chance.flip else x) + chance.offset[0]
    wanted_x = (x + 0.5) * 2048 / chance.scaled[0] - 0.5
    wanted_y = (np.arange(shape[0]) + chance.offset[1] + 0.5) * 1024 / chance.scaled[1] - 0.5
    wanted = np.broadcast_to(np.stack(np.meshgrid(wanted_x, wanted_y)).clip(0, [[[2047]], [[1023]]]), (2, *shape))
    error = np.abs(values[0].double().numpy() - wanted)[:, inside[0].numpy()]
    assert error.size > 1000
    assert error.max() < 2e-3


def test_a_quarter_turn() -> None:
    """The frame's x is the grid's y: a turn that no sign or axis may be mistaken in."""
    x = torch.arange(12.0).view(1, 1, 3, 4)
    turn = torch.tensor([[[0.0, 1, 0], [-1, 0, 2], [0, 0, 1]]])  # grid (x, y) -> map column y, map row 2 - x
    values, inside = warp(x, EYE, turn, (4, 3))
    assert inside.all()
    assert torch.equal(values[0, 0], torch.rot90(x[0, 0], -1))
    back, _ = warp(values, turn, EYE, (3, 4))
    assert torch.equal(back, x)


def test_a_shear_and_a_translation() -> None:
    x = coordinates((5, 30))
    sheared = torch.tensor([[[1.0, 0.25, 3.5], [0, 1, 0], [0, 0, 1]]])
    values, _ = warp(x, EYE, sheared, (5, 20))
    wanted = torch.arange(20.0) + 0.25 * torch.arange(5.0).view(-1, 1) + 3.5
    torch.testing.assert_close(values[0, 0], wanted, atol=1e-4, rtol=0)
    assert torch.equal(warp(x, sheared, sheared, (5, 20))[0], x[..., :20])


@settings(max_examples=60)
@given(affines(0.7, 1.4), affines(0.7, 1.4), affines(0.7, 1.4))
def test_two_warps_are_one(first: Tensor, second: Tensor, third: Tensor) -> None:
    """Coordinates are linear, so interpolating twice loses nothing where all is seen."""
    size = (30, 35)
    between, seen = warp(coordinates(size), first, second, size)
    twice, inside = warp(between, second, third, size)
    once, within = warp(coordinates(size), first, third, size)
    whole, _ = warp((seen & (beyond(places(first, second, size), size) < 0)).float()[None], second, third, size)
    clear = inside & within & (whole[:, 0] > 1 - 1e-6) & (beyond(places(second, third, size), size) < 0)
    assert ((twice - once).abs().amax(dim=1)[clear] < 0.01).all()


# ---- what is exact


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (9, 13), (65, 129)])
@pytest.mark.parametrize("seed", range(4))
def test_a_grid_warped_to_itself_is_the_same_bit_for_bit(size: Size, seed: int) -> None:
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * 1e3
    x[0, 0, 0] = 0
    affine = views_of(seed, (1000, 2000))[2]
    for mode in ("bilinear", "nearest"):
        values, inside = warp(x, affine, affine, size, mode)
        assert torch.equal(values, x)
        assert inside.all()


def test_whole_pixels_are_copied() -> None:
    x = torch.randn(1, 2, 11, 17, generator=torch.Generator().manual_seed(0))
    cropped, inside = warp(x, EYE, shifted(3, 2), (6, 9))
    assert torch.equal(cropped, x[:, :, 2:8, 3:12])
    assert inside.all()
    assert torch.equal(warp(x, EYE, flipped(17), (11, 17))[0], x.flip(3))
    assert torch.equal(warp(x, EYE, flipped(17) @ shifted(1, 0), (11, 16))[0], x.flip(3)[..., 1:])
    assert torch.equal(warp(x, EYE, shifted(0, 0, 2, 2), (6, 9))[0], x[..., ::2, ::2])
    padded, inside = warp(x, EYE, shifted(-2, -1), (13, 20))
    assert torch.equal(padded, F.pad(x, (2, 1, 1, 1)))
    assert torch.equal(inside[0], F.pad(torch.ones(11, 17), (2, 1, 1, 1)) == 1)


def test_of_all_warps_only_those_of_whole_pixels_are_copies() -> None:
    """A difference of scale too small to see at the first pixel moves the last one."""
    x = coordinates((3, 1000))
    values, _ = warp(x, EYE, shifted(0, 0, 0.9995), (3, 1000))
    torch.testing.assert_close(values[0, 0, 0], 0.9995 * torch.arange(1000.0), atol=2e-3, rtol=0)
    values, _ = warp(x, EYE, shifted(0.1, 0), (3, 1000))
    torch.testing.assert_close(values[0, 0, 0, :-1], torch.arange(999.0) + 0.1, atol=2e-3, rtol=0)


@settings(max_examples=120)
@given(st.integers(0, 100_000), st.integers(3, 40), st.integers(3, 70))
def test_labels_are_those_of_the_view(seed: int, height: int, width: int) -> None:
    """The library's own views, pixel by pixel: the full image's labels warped to a view are the view's labels."""
    view, chance, affine, original = views_of(seed, (height, width))
    labels = torch.randint(19, (height, width), generator=torch.Generator().manual_seed(seed))
    full = ViewSettings(size=view.size)
    of_full = torch.from_numpy(affine_of(full, draw(full, torch.Generator()), original))[None]
    wanted = torch.from_numpy(cut_map(labels.numpy(), view, chance, IGNORE).copy())
    found, inside = warp(labels[None, None], of_full, affine, tuple(wanted.shape), "nearest", outside=IGNORE)
    assert torch.equal(found[0, 0], wanted)
    assert torch.equal(inside[0], wanted != IGNORE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_nearest_keeps_the_type(dtype: torch.dtype) -> None:
    x = (torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    values, _ = warp(x, EYE, shifted(-0.3, 0.2, 0.4, 0.4), (12, 15), "nearest")
    assert values.dtype == dtype
    assert set(values.flatten().tolist()) <= set(x.flatten().tolist()) | {0}


def test_nearest_of_ties_is_right_and_below() -> None:
    x = coordinates((8, 8)).long()
    values, _ = warp(x, EYE, shifted(0.5, 0.5, 2, 2), (4, 4), "nearest")
    assert values[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert values[0, 1, :, 0].tolist() == [1, 3, 5, 7]
    values, _ = warp(x, EYE, flipped(8) @ shifted(0.5, 0.5, 2, 2), (4, 4), "nearest")
    assert values[0, 0, 0].tolist() == [7, 5, 3, 1]
    slightly, _ = warp(x, EYE, shifted(0.4998, 0.4998, 2, 2), (4, 4), "nearest")
    assert slightly[0, 0, 0].tolist() == [1, 3, 5, 7]
    clearly, _ = warp(x, EYE, shifted(0.49, 0.49, 2, 2), (4, 4), "nearest")
    assert clearly[0, 0, 0].tolist() == [0, 2, 4, 6]


# ---- coarse grids

GRIDS = [
    ((9, 17), (65, 129)),
    ((16, 32), (128, 256)),
    ((5, 7), (5, 7)),
    ((1, 1), (4, 6)),
    ((1, 5), (7, 33)),
    ((2, 1), (9, 5)),
]


@pytest.mark.parametrize(("small", "large"), GRIDS)
@pytest.mark.parametrize("seed", range(2))
def test_a_grids_affine_is_where_upsample_puts_it(small: Size, large: Size, seed: int) -> None:
    affine = views_of(seed, (1024, 2048))[2] if seed else EYE
    coarse = torch.randn(1, 3, *small, generator=torch.Generator().manual_seed(seed))
    values, inside = warp(coarse, grid_affine(affine, large, small), affine, large)
    assert inside.all()
    torch.testing.assert_close(values, upsample(coarse, large), atol=2e-4, rtol=1e-4)


@settings(max_examples=60)
@given(affines(0.5, 2), affines(0.5, 2), st.tuples(st.integers(2, 9), st.integers(2, 9)), st.integers(2, 8))
def test_coordinates_of_a_coarse_grid_are_the_files(before: Tensor, after: Tensor, small: Size, stride: int) -> None:
    """From coarse grid to another view in one warp, as by upsampling first."""
    large = (stride * (small[0] - 1) + 1, stride * (small[1] - 1) + 1)
    coarse = at(before, large).float()[None, :, ::stride, ::stride]
    values, inside = warp(coarse, grid_affine(before, large, small), after, (20, 20), margin=0.5 / stride)
    far = beyond(places(before, after, (20, 20)), large)
    assert ((values[0] - at(after, (20, 20))).abs().amax(dim=0)[far < -1e-6] < 0.01).all()
    assert torch.equal(inside[0][(far - 0.5).abs() > 0.02], (far < 0.5)[(far - 0.5).abs() > 0.02])


def test_grid_affine_of_a_batch() -> None:
    views = torch.cat([EYE, flipped(129)])
    grids = grid_affine(views, (65, 129), (9, 17))
    assert grids.dtype == torch.float64
    corners = torch.tensor([[0.0, 0, 1], [16, 8, 1], [3, 2, 1]], dtype=torch.float64).T
    assert (grids[0] @ corners).T[:, :2].tolist() == [[0, 0], [128, 64], [24, 16]]
    assert (grids[1] @ corners).T[:, :2].tolist() == [[128, 0], [0, 64], [104, 16]]


def test_a_side_of_one_cell_covers_the_view() -> None:
    coarse = torch.ones(1, 1, 1, 1)
    grid = grid_affine(EYE, (8, 6), (1, 1))
    assert (grid[0] @ torch.tensor([0.0, 0, 1], dtype=torch.float64)).tolist() == [2.5, 3.5, 1]
    assert warp(coarse, grid, EYE, (8, 6))[1].all()
    assert not warp(coarse, grid, shifted(-1, 0), (8, 1))[1].any()
    with pytest.raises(ValueError, match="has no place"):
        grid_affine(EYE, (1, 6), (2, 3))
