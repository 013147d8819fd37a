"""Grids of points over views of an image; the pixels of its file tie all of its views together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segshift.ops import grid_affine, warp
from segshift.types import Batch


class Grid(NamedTuple):
    """Points laid over a view, the outer ones on its corner pixels: where `upsample` puts what a network says of it.

    Attributes:
        affine: (B, 3, 3) point (x, y, 1) → pixel centre of the file's image.
        size: (h, w) points.
        margin: half a pixel of the view, in steps of the grid: so far beyond its outer points the view reaches.
    """

    affine: Float[Tensor, "B 3 3"]
    size: tuple[int, int]
    margin: float

    @staticmethod
    def of(view: Float[Tensor, "B 3 H W"], affine: Float[Tensor, "B 3 3"], size: Sequence[int]) -> Grid:
        """A grid of (h, w) points over a view with its affine."""
        height, width = size
        whole = (view.shape[-2], view.shape[-1])
        # A side with a single point is covered by it.
        steps = [(n - 1) / max(1, pixels - 1) if n > 1 else 1.0 for n, pixels in zip(size, whole, strict=True)]
        return Grid(grid_affine(affine, whole, (height, width)), (height, width), max(steps) / 2)

    @staticmethod
    def over(view: Float[Tensor, "B 3 H W"], affine: Float[Tensor, "B 3 3"], resolution: int) -> Grid:
        """A grid of 1 point for `resolution` pixels of a side, rounded up."""
        return Grid.of(view, affine, [-(-side // resolution) for side in view.shape[-2:]])

    def take(
        self, values: Float[Tensor, "B C h w"], grid: Grid
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
        """Values that lie on another grid, at the points of this one; and which of these lie in that one's view."""
        return warp(values, grid.affine, self.affine, self.size, "bilinear", margin=grid.margin)

    def read(
        self, pixels: Int64[Tensor, "B H W"], affine: Float[Tensor, "B 3 3"], outside: int
    ) -> Int64[Tensor, "B h w"]:
        """At each point the value of a view's nearest pixel; `outside` at points that do not lie in the view."""
        return warp(pixels[:, None], affine, self.affine, self.size, "nearest", outside)[0][:, 0]


def carried(batch: Batch, field: str) -> Tensor:
    """A field of a batch.

    Raises:
        ValueError: the batch has none.
    """
    value: Tensor | None = getattr(batch, field)
    if value is None:
        raise ValueError(f"the batch carries no {field!r}")
    return value
