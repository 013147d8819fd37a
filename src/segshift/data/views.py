"""Views: how a training step sees an image (size, scale, crop, flip, colours) and where each of its pixels is from.

Pixel centres have whole coordinates: resizing W pixels to w takes the centre x to (x + 0.5) * W / w - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from segshift.data.images import Size, nearest_indices
from segshift.types import IGNORE

PADDING = (124, 116, 104)
"""Colour outside the image where a crop is larger: ImageNet's mean, which the networks' normalisation takes to zero."""

_BLUR_KERNEL = 9
"""Side of the Gaussian's window in pixels: at the largest sigma (1.15) it holds 3.5 sigma to each side."""


class ViewSettings(BaseModel):
    """How images of a domain are seen in training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: tuple[int, int] = Field(description="working size (w, h) to which every image is resized first")
    crop: tuple[int, int] | None = Field(None, description="(w, h) of a random crop; None: `size`")
    scale: tuple[float, float] = Field((1.0, 1.0), description="range of the random scale, uniform, before the crop")
    flip: bool = Field(False, description="mirror left to right with probability one half")
    jitter: float = Field(
        0.0, ge=0, le=1, description="brightness, contrast, saturation within 1 ± this, hue within ± half a turn × this"
    )
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur, sigma 0.15-1.15 px as in DACS")
    mine: float = Field(0.0, ge=0, le=1, description="probability that a crop is laid around a pixel of a rare class")

    @model_validator(mode="after")
    def _check(self) -> ViewSettings:
        if min(self.size) < 1 or min(self.crop or (1, 1)) < 1:
            raise ValueError("size and crop must be at least 1 pixel a side")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must be (low, high) with 0 < low <= high")
        return self

    @property
    def shape(self) -> Size:
        """(w, h) of the view."""
        return self.crop or self.size


@dataclass(frozen=True)
class Draw:
    """What chance decided for one view.

    Attributes:
        scaled: (w, h) of the image after random scaling.
        offset: (x, y) of the crop in it; negative where the crop is larger than the image.
        flip: mirrored.
        colours: factors of brightness, contrast, saturation (1 is neutral) and the turn of the hue in radians (0).
        sigma: of the blur in pixels; 0: none.
    """

    scaled: Size
    offset: tuple[int, int]
    flip: bool
    colours: tuple[float, float, float, float]
    sigma: float


def draw(view: ViewSettings, generator: torch.Generator) -> Draw:
    """Decide one view. Always takes the same number of random numbers, so one setting does not shift another's."""
    u = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
    factor = view.scale[0] + (view.scale[1] - view.scale[0]) * u[0]
    scaled = (max(1, round(view.size[0] * factor)), max(1, round(view.size[1] * factor)))

    def place(room: int, chance: float) -> int:
        # Inside a larger image, or the image somewhere inside a larger crop.
        return int(chance * (room + 1)) if room >= 0 else -int(chance * (1 - room))

    return Draw(
        scaled,
        (place(scaled[0] - view.shape[0], u[1]), place(scaled[1] - view.shape[1], u[2])),
        view.flip and u[3] < 0.5,
        (
            1 + view.jitter * (2 * u[4] - 1),
            1 + view.jitter * (2 * u[5] - 1),
            1 + view.jitter * (2 * u[6] - 1),
            np.pi * view.jitter * (2 * u[7] - 1),
        ),
        0.15 + u[9] if u[8] < view.blur else 0.0,
    )


def affine_of(view: ViewSettings, chance: Draw, original: tuple[int, int]) -> Float32[np.ndarray, "3 3"]:
    """The matrix that takes a pixel centre (x, y, 1) of the view to the pixel centre of the file's image.

    Args:
        view: the settings.
        chance: the draw.
        original: (H, W) of the file's image.
    """
    matrix = np.eye(3)
    for axis, whole in ((0, original[1]), (1, original[0])):
        step = whole / chance.scaled[axis]
        matrix[axis, axis] = step
        matrix[axis, 2] = (chance.offset[axis] + 0.5) * step - 0.5
    if chance.flip:
        matrix = matrix @ np.array([[-1.0, 0, view.shape[0] - 1], [0, 1, 0], [0, 0, 1]])
    return matrix.astype(np.float32)


def _window(chance: Draw, view: ViewSettings) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of the scaled image that are seen, and where they stand in the view."""
    spans = []
    for axis in (1, 0):
        first = max(0, chance.offset[axis])
        last = min(chance.scaled[axis], chance.offset[axis] + view.shape[axis])
        spans.append((slice(first, last), slice(first - chance.offset[axis], last - chance.offset[axis])))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def cut(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"] | None, view: ViewSettings, chance: Draw
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"] | None]:
    """The geometric part of a view: scale (bicubic, nearest for the label), crop, flip.

    Args:
        image: at the working size.
        label: train ids at the working size, or None.
        view: the settings.
        chance: the draw.

    Returns:
        image and label of the view; outside the image they are `PADDING` and `IGNORE`.
    """
    rows, columns, to_rows, to_columns = _window(chance, view)
    height, width = image.shape[:2]
    if chance.scaled == (width, height):
        seen = image[rows, columns]
    else:
        step_x, step_y = width / chance.scaled[0], height / chance.scaled[1]
        box = (columns.start * step_x, rows.start * step_y, columns.stop * step_x, rows.stop * step_y)
        box = (box[0], box[1], min(box[2], width), min(box[3], height))
        target = (columns.stop - columns.start, rows.stop - rows.start)
        # A box of the unscaled image is resized: the pixels outside the crop are never made.
        seen = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC, box=box))
    if seen.shape[:2] != (view.shape[1], view.shape[0]):
        padded = np.empty((view.shape[1], view.shape[0], 3), np.uint8)
        padded[:] = PADDING
        padded[to_rows, to_columns] = seen
        seen = padded
    if chance.flip:
        seen = seen[:, ::-1]
    return seen, None if label is None else cut_map(label, view, chance, IGNORE)


def cut_map(values: np.ndarray, view: ViewSettings, chance: Draw, outside: int) -> np.ndarray:
    """The geometric part of a view for values that must not be mixed: labels, or distributions over classes.

    Args:
        values: (h, w) or (h, w, K) at the working size.
        view: the settings.
        chance: the draw.
        outside: value where the view shows nothing of the image.

    Returns:
        (H, W) or (H, W, K) of the view, each pixel the nearest one's value.
    """
    rows, columns, to_rows, to_columns = _window(chance, view)
    height, width = values.shape[:2]
    ys, xs = nearest_indices(chance.scaled[1], height)[rows], nearest_indices(chance.scaled[0], width)[columns]
    seen: np.ndarray = values[ys[:, None], xs[None]]
    if seen.shape[:2] != (view.shape[1], view.shape[0]):
        padded = np.full((view.shape[1], view.shape[0], *values.shape[2:]), outside, values.dtype)
        padded[to_rows, to_columns] = seen
        seen = padded
    return seen[:, ::-1] if chance.flip else seen


def centred(
    view: ViewSettings,
    chance: Draw,
    label: UInt8[np.ndarray, "h w"],
    classes: Sequence[int],
    generator: torch.Generator,
) -> Draw:
    """Patch mining: the same view with its crop around a random pixel of a random one of `classes`, moved to lie inside
    the image; unchanged with a probability of 1 - `view.mine`, and where the label has none of them.

    Source: Zou et al. (CBST), ECCV 2018, section 4.4, as released with CRST (methods.md section 5).
    """
    u = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    present = [k for k in classes if (label == k).any()]
    if not present or u[0] >= view.mine:
        return chance
    ys, xs = np.nonzero(label == present[int(u[1] * len(present))])
    place = int(u[2] * len(ys))
    offset = []
    for axis, found in ((0, xs[place]), (1, ys[place])):
        room = chance.scaled[axis] - view.shape[axis]
        middle = int((found + 0.5) * chance.scaled[axis] / label.shape[1 - axis])
        # Where the image is smaller than the crop it stays where chance put it.
        offset.append(min(max(middle - view.shape[axis] // 2, 0), room) if room >= 0 else chance.offset[axis])
    return replace(chance, offset=(offset[0], offset[1]))


def recolour(image: Float[Tensor, "B 3 H W"], view: ViewSettings, chances: list[Draw]) -> Float[Tensor, "B 3 H W"]:
    """The photometric part of views, for a whole batch at once: brightness, contrast, saturation, hue, then blur.

    Args:
        image: float32 in [0, 1].
        view: the settings.
        chances: B draws.

    Returns:
        the batch, in [0, 1].
    """
    if view.jitter == 0 and view.blur == 0:
        return image
    # Imported here: kornia takes a fifth of a second, and most views need none of it.
    from kornia import enhance, filters

    if view.jitter > 0:
        brightness, contrast, saturation, hue = torch.tensor([c.colours for c in chances], dtype=torch.float32).T
        image = enhance.adjust_brightness_accumulative(image, brightness)
        image = enhance.adjust_contrast_with_mean_subtraction(image, contrast)
        image = enhance.adjust_saturation_with_gray_subtraction(image, saturation)
        image = enhance.adjust_hue(image, hue)
    blurred = [i for i, chance in enumerate(chances) if chance.sigma > 0]
    if blurred:
        sigma = torch.tensor([[chances[i].sigma] * 2 for i in blurred])
        image = image.clone()
        image[blurred] = filters.gaussian_blur2d(image[blurred], (_BLUR_KERNEL, _BLUR_KERNEL), sigma)
    return image.clamp_(0, 1)
