"""Losses of whole images: which classes they show, and from which domain each class's features are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from segshift.losses.reduction import masked_mean


def tag_cross_entropy(logits: Float[Tensor, "B K"], tags: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Binary cross-entropy in nats of each class's presence in an image, mean over the tags that are known.

    Args:
        logits: (B, K), one for each class of an image, as of `ops.smooth_max`: the class is there with probability
            sigmoid(logit).
        tags: (B, K) 1 present, 0 absent, below 0 unknown: that class of that image does not count.

    Source: Paul et al., ECCV 2020, image-level classification loss (methods.md section 9; whether the classes are
    summed or averaged is not verified against the paper: a sum is K times this).
    """
    per_tag = F.binary_cross_entropy_with_logits(logits.float(), tags.float().clamp(min=0), reduction="none")
    return masked_mean(per_tag, tags >= 0)


def category_domain_cross_entropy(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], domain: float
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each class's discriminator against one domain label: sum over the classes that are
    present, mean over the images. Absent classes have no part in it and get no gradient.

    Args:
        scores: (B, K) logits of K discriminators.
        present: (B, K) the classes that an image shows.
        domain: `SOURCE` or `TARGET`.

    Source: Paul et al., ECCV 2020, category-wise domain alignment (methods.md section 9).
    """
    scores = scores.float()
    per_class = F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain), reduction="none")
    return torch.where(present, per_class, 0).sum() / max(1, len(scores))
