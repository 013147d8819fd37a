"""Strong views: random colours and shapes on top of a weak view, and where each of their pixels is from.

Source: Zhang et al. (ProDA), CVPR 2021, section 3.3, and its release (methods.md section 10.4), whose operations are
those of FixMatch (Sohn et al., NeurIPS 2020, appendix D). Where pixels are from is the exact product of what was
applied, in the order of application; the release replays it in another order and keeps one of two equal operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from segshift.data.images import Size

FILL = 127
"""Grey level of what a strong view shows from outside the weak view, and of the part that is cut out."""

_OPAQUE = 255


class StrongSettings(BaseModel):
    """How strong views are made. Defaults: ProDA's release (methods.md section 10.4)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    operations: int = Field(2, ge=0, le=8, description="operations drawn with replacement from the 14 (release: 2)")
    probability: float = Field(0.5, ge=0, le=1, description="that a drawn operation is applied (release: 0.5)")
    strength: tuple[int, int] = Field(
        (1, 9), description="range of the whole number of tenths of the full strength (release: 1 to 9)"
    )
    colours: bool = Field(True, description="the 9 operations on colours; off: they do nothing when drawn")
    shapes: bool = Field(True, description="rotation, shears and translations; off: they do nothing when drawn")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring the weak view (release: 0.5)")
    cutout: float = Field(
        1 / 3, ge=0, le=1, description="side of the cut-out square: a share of the shorter side; 0: none (release: 1/3)"
    )

    @model_validator(mode="after")
    def _check(self) -> StrongSettings:
        if not 0 <= self.strength[0] <= self.strength[1] <= 10:
            raise ValueError(f"strength {self.strength} must be (low, high) with 0 <= low <= high <= 10")
        return self


class Operation(NamedTuple):
    """One step of a strong view: its name and its value in the unit of `_value`."""

    name: str
    value: float


@dataclass(frozen=True)
class StrongDraw:
    """What chance decided for one strong view.

    Attributes:
        size: (w, h) of the view.
        flip: mirrored, before anything else.
        operations: those that are applied, in this order.
        cutout: (left, top, right, bottom) of what is cut out at the end, right and bottom outside it; None: nothing.
    """

    size: Size
    flip: bool
    operations: tuple[Operation, ...]
    cutout: tuple[int, int, int, int] | None


_RECOLOUR: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
}

COLOURS = tuple(_RECOLOUR)
"""Operations that leave every pixel where it is."""

SHAPES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Operations that move pixels."""


def _value(name: str, tenths: int, sign: int, size: Size) -> float:
    """What an operation does at a strength: factors from 0.05 to 0.95, bits kept from 4 to 8, the level from which on
    colours are inverted from 256 down to 0, degrees up to 30, shears up to 0.3, pixels up to 0.3 of the side."""
    if name in ("brightness", "color", "contrast", "sharpness"):
        return (9 * tenths + 5) / 100
    if name == "posterize":
        return 4 + 4 * tenths // 10
    if name == "solarize":
        return 256 - 256 * tenths // 10
    if name == "rotate":
        return sign * 3 * tenths
    if name in ("shear_x", "shear_y"):
        return sign * 3 * tenths / 100
    if name in ("translate_x", "translate_y"):
        return sign * (3 * tenths * size[name == "translate_y"] // 100)
    return 0


def draw_strong(generator: torch.Generator, size: Size, settings: StrongSettings | None = None) -> StrongDraw:
    """Decide one strong view of (w, h) pixels.

    Takes 3 + 4 * `settings.operations` random numbers, whatever they decide, so one setting does not shift another's.
    """
    settings = settings or StrongSettings()
    u = torch.rand(3 + 4 * settings.operations, generator=generator, dtype=torch.float64).tolist()
    names, (low, high) = COLOURS + SHAPES, settings.strength
    operations = []
    for which, strength, applied, sign in zip(*(u[3 + i :: 4] for i in range(4)), strict=True):
        name = names[int(which * len(names))]
        if applied < settings.probability and (settings.colours if name in _RECOLOUR else settings.shapes):
            tenths = low + int(strength * (high - low + 1))
            operations.append(Operation(name, _value(name, tenths, -1 if sign < 0.5 else 1, size)))
    side, box = int(settings.cutout * min(size)), None
    if side > 0:
        # As released: moved inside where it would reach over the left or upper border, cut at the others.
        left, top = (int(max(0.0, chance * whole - side / 2)) for chance, whole in zip(u[1:3], size, strict=True))
        box = (left, top, min(size[0], left + side), min(size[1], top + side))
    return StrongDraw(size, u[0] < settings.flip, tuple(operations), box)


def _origin(operation: Operation, size: Size) -> Float64[np.ndarray, "3 3"]:
    """The matrix that takes a point of the operation's result to where it is from, in Pillow's coordinates: the image's
    corners are (0, 0) and (w, h), and pixel centres lie at halves."""
    matrix = np.eye(3)
    name, value = operation
    if name == "rotate":
        turn, middle = np.eye(3), np.array([size[0] / 2, size[1] / 2])
        cosine, sine = math.cos(math.radians(value)), math.sin(math.radians(value))
        turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
        turn[:2, 2] = middle - turn[:2, :2] @ middle
        return turn
    place = {"shear_x": (0, 1), "shear_y": (1, 0), "translate_x": (0, 2), "translate_y": (1, 2)}[name]
    matrix[place] = value
    return matrix


_TO_CORNERS = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
_TO_CENTRES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])


def strengthen(
    image: UInt8[np.ndarray, "H W 3"], chance: StrongDraw, shown: Bool[np.ndarray, "H W"] | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], Float64[np.ndarray, "3 3"], Bool[np.ndarray, "H W"]]:
    """Make a strong view.

    Args:
        image: the weak view.
        chance: the draw.
        shown: False where the weak view shows padding; None: it shows none.

    Returns:
        the strong view; the matrix that takes a pixel centre (x, y, 1) of it to the pixel centre of the weak view; and
        where it shows the weak view's image: False at padding, where resampling mixed padding in, and at the cutout.

    Raises:
        ValueError: the draw is for another size.
    """
    height, width = image.shape[:2]
    size = (width, height)
    if chance.size != size:
        raise ValueError(f"the draw is for {chance.size[0]}x{chance.size[1]} pixels, the image has {width}x{height}")
    affine = np.eye(3)
    if chance.flip:
        image, shown = image[:, ::-1], None if shown is None else shown[:, ::-1]
        affine = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    picture = Image.fromarray(image)
    mask = None if shown is None else Image.fromarray(shown.astype(np.uint8) * _OPAQUE)
    for operation in chance.operations:
        if operation.name in _RECOLOUR:
            picture = _RECOLOUR[operation.name](picture, operation.value)
            continue
        origin = _origin(operation, size)
        affine = affine @ (_TO_CENTRES @ origin @ _TO_CORNERS)
        if mask is None:
            mask = Image.new("L", size, _OPAQUE)
        how = (Image.Transform.AFFINE, tuple(origin[:2].ravel().tolist()), Image.Resampling.BILINEAR)
        picture = picture.transform(size, *how, fillcolor=(FILL, FILL, FILL))
        # The mask goes the image's way, so it knows exactly which pixels are mixed with padding.
        mask = mask.transform(size, *how, fillcolor=0)
    strong = np.array(picture)
    seen = np.ones((height, width), np.bool_) if mask is None else np.asarray(mask) == _OPAQUE
    if chance.cutout is not None:
        left, top, right, bottom = chance.cutout
        strong[top:bottom, left:right] = FILL
        seen[top:bottom, left:right] = False
    return strong, affine, seen
