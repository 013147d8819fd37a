"""How sure a network is at each pixel, as two maps in one colour scale: entropy and confidence of its softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from segshift.losses import entropy

MAP_WIDTH = 320
"""Largest width of a map in pixels: networks answer on a coarser grid."""


@dataclass(frozen=True)
class Certainty:
    """Maps of one image, and their means over its pixels.

    Attributes:
        entropy: (H, W) of the softmax, over log K, in [0, 1]; 0 is sure.
        confidence: (H, W) largest probability, in [1 / K, 1]; 1 is sure.
    """

    entropy: Float[np.ndarray, "H W"]
    confidence: Float[np.ndarray, "H W"]

    @property
    def means(self) -> dict[str, float]:
        """Mean of each map."""
        return {"entropy": float(self.entropy.mean()), "confidence": float(self.confidence.mean())}

    def pictures(self) -> dict[str, Image.Image]:
        """Both maps at most `MAP_WIDTH` wide, in one scale: dark is sure, bright is not."""
        return {"entropy": doubt_picture(self.entropy), "confidence": doubt_picture(1 - self.confidence)}


def certainty(logits: Float[Tensor, "1 K H W"]) -> Certainty | None:
    """Of one image's logits; None with a single class, of which nothing can be unsure."""
    if logits.shape[1] < 2:
        return None
    confidence = logits.float().softmax(dim=1).amax(dim=1)
    return Certainty(entropy(logits)[0].cpu().numpy(), confidence[0].cpu().numpy())


def doubt_picture(values: Float[np.ndarray, "H W"]) -> Image.Image:
    """Values in [0, 1] (H, W) as a palette image at most `MAP_WIDTH` wide: level 255 v in magma, dark is 0.

    A larger map is made smaller by the mean over the pixels that fall together.
    """
    height, width = values.shape
    picture = Image.fromarray(np.clip(values, 0, 1).astype(np.float32))
    if width > MAP_WIDTH:
        picture = picture.resize((MAP_WIDTH, max(1, round(height * MAP_WIDTH / width))), Image.Resampling.BOX)
    levels: UInt8[np.ndarray, "h w"] = np.rint(255 * np.clip(np.asarray(picture), 0, 1)).astype(np.uint8)
    drawn = Image.fromarray(levels)
    colours = np.rint(255 * colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8)
    drawn.putpalette(colours.flatten().tolist())
    return drawn
