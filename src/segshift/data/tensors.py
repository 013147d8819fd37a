"""Images as tensors: apart from `images`, so that what only lists and shows files does not bring torch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from segshift.data.images import Size, to_rgb


def as_float(image: UInt8[np.ndarray, "*B h w 3"]) -> Float[Tensor, "*B 3 h w"]:
    """8-bit pixels, (h, w, 3) or a batch of them, as float32 in [0, 1] with channels first."""
    planes = torch.from_numpy(image).movedim(-1, -3).contiguous()
    return planes.to(torch.float32).mul_(1 / 255)


def to_tensor(image: Image.Image, size: Size | None = None) -> Float[Tensor, "3 h w"]:
    """A Pillow image as a network takes it: (3, h, w) float32 RGB in [0, 1], resized to (w, h) as in `load_resized`."""
    rgb = to_rgb(image)
    if size is not None and rgb.size != tuple(size):
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return as_float(np.array(rgb))
