"""Upsampling of a network's coarse output."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def upsample(logits: Float[Tensor, "B C h w"], size: Sequence[int]) -> Float[Tensor, "B C H W"]:
    """Bilinear upsampling in float32 with aligned corners, as ADVENT, AdaptSegNet and ProDA do it.

    Equals `F.interpolate(mode="bilinear", align_corners=True)` to rounding, as two small matrix products: on CPU that
    is several times faster forward and backward, and on a GPU the backward has no atomic additions, so it repeats.

    Args:
        logits: (B, C, h, w).
        size: (H, W) rows and columns wanted.
    """
    # Outside autocast, which would round the interpolation weights to bfloat16.
    with torch.autocast(logits.device.type, enabled=False):
        rows = _bilinear(logits.shape[-2], size[0], logits.device)
        columns = _bilinear(logits.shape[-1], size[1], logits.device)
        return torch.matmul(torch.matmul(rows, logits.float().contiguous()), columns.T)


@functools.lru_cache(maxsize=64)
def _bilinear(inputs: int, outputs: int, device: torch.device) -> Float[Tensor, "outputs inputs"]:
    """Weights that map `inputs` samples to `outputs` samples linearly, the first and last ones onto each other."""
    # A cached tensor must be usable by later training even if the first caller is in inference mode.
    with torch.inference_mode(False):
        return _bilinear_weights(inputs, outputs).to(device)


def _bilinear_weights(inputs: int, outputs: int) -> Float[Tensor, "outputs inputs"]:
    scale = (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
    position = torch.arange(outputs, dtype=torch.float64) * scale
    low = position.floor().clamp(max=inputs - 1)
    high = (low + 1).clamp(max=inputs - 1)
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    row = torch.arange(outputs)
    matrix[row, high.long()] += position - low
    matrix[row, low.long()] += 1 - (position - low)
    return matrix.float()
