"""What an image says as a whole: a value, or a vector of features, for each class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

IDS = 256
"""Train ids are below this, `IGNORE` among them."""


def smooth_max(
    logits: Float[Tensor, "B K h w"], k: float, mask: Bool[Tensor, "B h w"] | None = None
) -> Float[Tensor, "B K"]:
    """Smooth maximum (1 / k) log mean_ij exp(k A_ij) of each class's logits over an image.

    It lies between their mean (k → 0) and their maximum (k → ∞), and follows them when a constant is added. Computed
    in float32 (float64 of float64) and from the maximum, so that no exponential overflows; the gradient is
    softmax_ij(k A). Rounding is about 1e-6 / k.

    Args:
        logits: (B, K, h, w) A.
        k: sharpness, above 0; the paper: 1.
        mask: (B, h, w) the cells that count, as where a view shows its image and no padding. None: all. An image of
            which no cell counts is taken whole.

    Raises:
        ValueError: k is not above 0 or not finite.

    Source: Paul et al., ECCV 2020, equation 1 (methods.md section 9; the mean inside not verified against the paper).
    """
    if not 0 < k < math.inf:
        raise ValueError(f"k must be above 0 and finite, got {k}")
    scaled = _precise(logits).flatten(2) * k
    count: Tensor | float = scaled.shape[2]
    if mask is not None:
        counts = _never_empty(mask)
        scaled, count = scaled.masked_fill(~counts, -math.inf), counts.sum(dim=2).to(scaled.dtype)
    return (torch.logsumexp(scaled, dim=2) - (count.log() if isinstance(count, Tensor) else math.log(count))) / k


def category_pool(
    features: Float[Tensor, "B D h w"],
    logits: Float[Tensor, "B K h w"],
    mask: Bool[Tensor, "B h w"] | None = None,
) -> Float[Tensor, "B K D"]:
    """Features of each class: sum_ij P^c_ij F_ij, where P^c is the softmax of the class's logits over the image.

    The attention P^c sums to 1 whether the class is in the image or not, so nothing is divided by a count of pixels.
    One matrix product an image; differentiable in features and logits. Computed in float32 (float64 of float64), also
    under autocast.

    Args:
        features: (B, D, h, w) F.
        logits: (B, K, h, w), on the features' grid.
        mask: (B, h, w) the cells that count, as in `smooth_max`.

    Source: Paul et al., ECCV 2020, category-wise pooling (methods.md section 9; the softmax over positions not verified
    against the paper).
    """
    values = _precise(logits).flatten(2)
    if mask is not None:
        values = values.masked_fill(~_never_empty(mask), -math.inf)
    # Autocast would round the attention to bfloat16.
    with torch.autocast(logits.device.type, enabled=False):
        return torch.bmm(values.softmax(dim=2), _precise(features).flatten(2).transpose(1, 2))


def _precise(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _never_empty(mask: Bool[Tensor, "B h w"]) -> Bool[Tensor, "B 1 n"]:
    flat = mask.flatten(1).unsqueeze(1)
    return flat | ~flat.any(dim=2, keepdim=True)


def seen_cells(seen: Bool[Tensor, "B H W"], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """The cells of a network's (h, w) grid that see some of the image, given the pixels of the view that show it."""
    return F.adaptive_max_pool2d(seen.unsqueeze(1).float(), size).squeeze(1) > 0


def classes_in(labels: Int64[Tensor, "B H W"], num_classes: int) -> Bool[Tensor, "B K"]:
    """The classes that at least one pixel of a label has.

    Args:
        labels: (B, H, W) train ids in [0, K), or `IGNORE`.
        num_classes: K.
    """
    found = torch.zeros(len(labels), IDS, dtype=torch.bool, device=labels.device)
    return found.scatter_(1, labels.flatten(1), True)[:, :num_classes]
