"""How losses of single pixels become one number."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(per_pixel: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, H, W) values where `mask` holds; 0 with a gradient of 0 where it holds nowhere."""
    return torch.where(mask, per_pixel, 0).sum() / mask.sum().clamp(min=1)
