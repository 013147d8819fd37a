"""Losses of domain discriminators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SOURCE, TARGET = 0.0, 1.0
"""Domain labels of the discriminators (AdaptSegNet, released code: source 0, target 1)."""


def domain_cross_entropy(scores: Float[Tensor, "B 1 h w"], domain: float) -> Float[Tensor, ""]:
    """Binary cross-entropy of a discriminator's logits against one domain label, mean over the patch map.

    Source: Tsai et al. (AdaptSegNet), CVPR 2018, equations 1 and 3; domain labels as in the released code.
    """
    scores = scores.float()
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def domain_least_squares(scores: Float[Tensor, "B 1 h w"], domain: float) -> Float[Tensor, ""]:
    """Squared distance of a discriminator's scores to one domain label, mean over the patch map (LS-GAN).

    Source: Mao et al., ICCV 2017, as used by the AdaptSegNet release for its single-level LS-GAN variant.
    """
    return (scores.float() - domain).square().mean()
