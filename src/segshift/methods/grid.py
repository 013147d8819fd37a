"""Grids of points over views of an image; the pixels of its file tie all of its views together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from segshift.ops import grid_affine, warp
from segshift.types import Batch


class Grid(NamedTuple):
    """Points laid over a view, the outer ones on its corner pixels: where `upsample` puts what a network says of it.

    Attributes:
        affine: (B, 3, 3) point (x, y, 1) → pixel centre of the file's image.
        size: (h, w) points.
    """

    affine: Float[Tensor, "B 3 3"]
    size: tuple[int, int]

    @staticmethod
    def of(view: Float[Tensor, "B 3 H W"], affine: Float[Tensor, "B 3 3"], size: Sequence[int]) -> Grid:
        """A grid of (h, w) points over a view with its affine."""
        height, width = size
        return Grid(grid_affine(affine, (view.shape[-2], view.shape[-1]), (height, width)), (height, width))

    @staticmethod
    def over(view: Float[Tensor, "B 3 H W"], affine: Float[Tensor, "B 3 3"], resolution: int) -> Grid:
        """A grid of 1 point for `resolution` pixels of a side, rounded up."""
        return Grid.of(view, affine, [-(-side // resolution) for side in view.shape[-2:]])

    def take(
        self, values: Float[Tensor, "B C h w"], grid: Grid, mode: Literal["bilinear", "nearest"]
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
        """Values that lie on another grid, here; and which of this grid's points lie inside that one."""
        return warp(values, grid.affine, self.affine, self.size, mode)

    def read(
        self, pixels: Tensor, affine: Float[Tensor, "B 3 3"]
    ) -> tuple[Float[Tensor, "B h w"], Bool[Tensor, "B h w"]]:
        """A view's pixel values (B, H, W), the nearest one's at each point; and which points lie inside the view."""
        values, inside = warp(pixels[:, None].float(), affine, self.affine, self.size, "nearest")
        return values[:, 0], inside


def carried(batch: Batch, field: str) -> Tensor:
    """A field of a batch.

    Raises:
        ValueError: the batch has none.
    """
    value: Tensor | None = getattr(batch, field)
    if value is None:
        raise ValueError(f"the target batch carries no {field!r}")
    return value
