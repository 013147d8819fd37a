"""Maps of pixels taken from one view of an image to another.

A view's affine matrix takes its pixel centres (x, y, 1) to a frame that all views of an image share: the pixel centres
of its file (`Batch.affine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

_UNCERTAIN = 2.5e-4
"""Pixels by which a place may be off: float32 affines of images 2048 wide are up to 2e-4 (tests/test_warp.py)."""


def warp(
    x: Shaped[Tensor, "B C H W"],
    from_affine: Float[Tensor, "B 3 3"],
    to_affine: Float[Tensor, "B 3 3"],
    size: Sequence[int],
    mode: Literal["bilinear", "nearest"] = "bilinear",
    outside: float = 0,
    margin: float = 0.5,
) -> tuple[Shaped[Tensor, "B C h w"], Bool[Tensor, "B h w"]]:
    """Take a map from its grid to another grid of the same image: pixel q gets x at from_affine^-1 to_affine q.

    A map (C, H, W) covers the area of its pixels, half a pixel beyond the outermost centres, where it stays constant.
    Places closer to it than a 4000th of a pixel count as inside, and so for ties: of two equally near pixels `nearest`
    takes the right or lower one, as labels are resized. Where a grid differs from the other by whole pixels and flips
    alone, values are copied exactly. `bilinear` places are right to 5e-4 pixels of a map 2048 wide.

    Args:
        x: (B, C, H, W); of floating point for `bilinear`.
        from_affine: (B, 3, 3) of the grid of x; of a network's coarse grid: `grid_affine`.
        to_affine: (B, 3, 3) of the grid wanted. Last rows are (0, 0, 1).
        size: (h, w) rows and columns of the grid wanted.
        mode: `bilinear`, differentiable in x, or `nearest`, for labels.
        outside: value where the grid lies outside x; `IGNORE` for labels.
        margin: how many pixels of x its area goes beyond the outermost centres. Of a network's coarse grid, whose
            corner centres are those of the view, half a view's pixel: 0.5 / stride.

    Returns:
        values (B, C, h, w), float32 for `bilinear` and of x's type for `nearest`; inside (B, h, w): where x was seen.

    Raises:
        ValueError: an affine that is singular, not finite or not affine, other numbers of images, an unknown mode, or
            integers to be interpolated.
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be bilinear or nearest, got {mode}")
    if mode == "bilinear" and not x.is_floating_point():
        raise ValueError(f"values of type {x.dtype} cannot be interpolated: use nearest")
    matrices = _relative(from_affine, to_affine, len(x))
    values = []
    inside = torch.empty(len(x), *size, dtype=torch.bool, device=x.device)
    for image, matrix in enumerate(matrices.tolist()):
        places = _places(matrix, size, x.device)
        inside[image] = _within(places, x.shape[2:], margin + _UNCERTAIN)
        if mode == "nearest":
            seen = _nearest(x[image : image + 1], places)
        elif _is_whole(matrix, size):
            seen = _nearest(x[image : image + 1].float(), places)
        else:
            seen = _bilinear(x[image : image + 1].float(), places)
        values.append(seen.masked_fill_(~inside[image], outside))
    return torch.cat(values) if values else x.new_empty(0, x.shape[1], *size), inside


def _relative(from_affine: Tensor, to_affine: Tensor, images: int) -> Float[Tensor, "B 3 3"]:
    """from_affine^-1 to_affine in float64 on the CPU."""
    if len(from_affine) != images or len(to_affine) != images:
        raise ValueError(f"{images} maps with {len(from_affine)} and {len(to_affine)} affines")
    before, after = from_affine.double().cpu(), to_affine.double().cpu()
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ValueError("an affine is not finite")
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if not ((before[:, 2] == last).all() and (after[:, 2] == last).all()):
        raise ValueError("the last row of an affine is not (0, 0, 1)")
    solution: Tensor
    solution, failed = torch.linalg.solve_ex(before, after)
    if failed.any():
        raise ValueError(f"the affine of map {int(failed.nonzero()[0])} is singular: {before[failed != 0][0].tolist()}")
    return solution


def _places(matrix: list[list[float]], size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns and rows (h, w) in the map, float64, of each pixel of a grid."""
    columns = torch.arange(size[1], dtype=torch.float64, device=device)
    rows = torch.arange(size[0], dtype=torch.float64, device=device).unsqueeze(1)
    x, y = (columns * a + (rows * b + c) for a, b, c in matrix[:2])
    return x, y


def _within(places: tuple[Tensor, Tensor], shape: Sequence[int], margin: float) -> Tensor:
    x, y = places
    return (x >= -margin) & (x <= shape[1] - 1 + margin) & (y >= -margin) & (y <= shape[0] - 1 + margin)


def _is_whole(matrix: list[list[float]], size: Sequence[int]) -> bool:
    """Whether every pixel of the grid falls on a pixel of the map."""
    spans = (size[1] - 1, size[0] - 1, 1)
    return all(
        sum(abs(a - round(a)) * span for a, span in zip(row, spans, strict=True)) < _UNCERTAIN for row in matrix[:2]
    )


def _nearest(x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    height, width = x.shape[2:]
    column, row = (
        (place + (0.5 + _UNCERTAIN)).floor().clamp(0, side - 1).long()
        for place, side in zip(places, (width, height), strict=True)
    )
    index = row * width + column
    return x.flatten(2).index_select(2, index.flatten()).view(*x.shape[:2], *index.shape)


def _bilinear(x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    # grid_sample with aligned corners takes the first and last centre of a side for -1 and 1; `border` keeps places
    # beyond them at the value of the border.
    spans = (max(x.shape[3] - 1, 1), max(x.shape[2] - 1, 1))
    grid = torch.stack([(place * (2 / span) - 1) for place, span in zip(places, spans, strict=True)], dim=-1)
    seen: Tensor = F.grid_sample(x, grid.float().unsqueeze(0), "bilinear", padding_mode="border", align_corners=True)
    return seen


def grid_affine(
    affine: Float[Tensor, "B 3 3"], view_size: Sequence[int], grid_size: Sequence[int]
) -> Float[Tensor, "B 3 3"]:
    """The affine of a coarse grid that `upsample` maps onto a view: their corner pixels have the same centres.

    A side of a single pixel covers the view, with its centre in the middle.

    Args:
        affine: (B, 3, 3) of the view.
        view_size: (H, W) of the view.
        grid_size: (h, w) of the grid, as of a network's output.

    Returns:
        (B, 3, 3) float64.

    Raises:
        ValueError: a side of the view has one pixel and the grid's more.
    """
    scale = torch.eye(3, dtype=torch.float64, device=affine.device)
    for axis, (pixels, cells) in enumerate(zip(reversed(view_size), reversed(grid_size), strict=True)):
        if pixels == 1 and cells > 1:
            raise ValueError(f"a grid {tuple(grid_size)} has no place in a view {tuple(view_size)}")
        scale[axis, axis] = (pixels - 1) / (cells - 1) if cells > 1 else pixels
        scale[axis, 2] = 0 if cells > 1 else (pixels - 1) / 2
    return affine.double() @ scale
