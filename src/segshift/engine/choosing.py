"""Which pixels of an image get a pseudo-label: the closed-form solutions of CBST and CRST, and scores of images.

Shapes: K classes, h w pixels. Probabilities are float32 and sum to 1 over K; thresholds are (K,), above 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segshift.types import IGNORE


def class_balanced_labels(
    probabilities: Float[Tensor, "K h w"], thresholds: Float[Tensor, " K"]
) -> Int64[Tensor, "h w"]:
    """argmax_k p_k / t_k where that quotient reaches 1, else `IGNORE`: it can differ from argmax p.

    Source: Zou et al. (CBST), ECCV 2018, equation 8 (methods.md section 5).
    """
    quotient, label = (probabilities / thresholds[:, None, None]).max(dim=0)
    return label.masked_fill_(quotient < 1, IGNORE)


def confident_labels(probabilities: Float[Tensor, "K h w"], thresholds: Float[Tensor, " K"]) -> Int64[Tensor, "h w"]:
    """argmax_k p_k where it reaches its class's threshold, else `IGNORE` (BDL, FDA, ProDA, TPLD's base labels)."""
    confidence, label = probabilities.max(dim=0)
    return label.masked_fill(confidence < thresholds[label], IGNORE)


def soft_labels(
    probabilities: Float[Tensor, "K h w"], thresholds: Float[Tensor, " K"], alpha: float
) -> Float[Tensor, "K h w"]:
    """LRENT: y_k proportional to (p_k / t_k)^(1/alpha) where sum_k (p_k / t_k)^(1/alpha) >= 1, zeros elsewhere.

    Source: Zou et al. (CRST), ICCV 2019, section 4.2; the criterion is the closed form of methods.md section 6, there
    with >. The case of equality counts here: p = t = 1 in float32 is what a class has of which many pixels are sure,
    and as in CBST they are chosen.

    Args:
        alpha: weight of the label entropy, above 0; towards 0 labels become hard.

    Raises:
        ValueError: alpha is not above 0.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    # In logarithms: (p / t) ** (1 / alpha) leaves the range of float32 at small alpha, and these do below 1e-30.
    log_weight = (probabilities.clamp(min=1e-30) / thresholds[:, None, None]).log() / max(alpha, 1e-30)
    chosen = log_weight.logsumexp(dim=0) >= 0
    return log_weight.softmax(dim=0) * chosen


def image_score(
    predicted: Int64[Tensor, "*N K"], above: Int64[Tensor, "*N K"], thresholds: Float[Tensor, " K"]
) -> Float[Tensor, " *N"]:
    """TPLD's confidence of an image: mean over its classes of (share of the class's pixels above the threshold) / t_k.

    Source: methods.md section 8 (TPLD, phase 2); that the mean is over the classes predicted in the image is not
    verified against the paper.

    Args:
        predicted: pixels whose most probable class is k.
        above: those among them whose probability reaches t_k.
        thresholds: t_k.

    Returns:
        Scores, 0 where no pixel is above any threshold.
    """
    there = predicted > 0
    terms = above / predicted.clamp(min=1) / thresholds
    return (terms * there).sum(dim=-1) / there.sum(dim=-1).clamp(min=1)


def easy_images(scores: Float[Tensor, " N"], mode: str, value: float) -> Bool[Tensor, " N"]:
    """The easy part of a split into easy and hard images.

    Args:
        scores: the higher the easier.
        mode: `top_fraction`: the best `value` of the images (rounded; of equal scores the earlier image comes first);
            `threshold`: those with a score of at least `value`. Either part can be empty.
        value: a share in [0, 1], or a score.

    Raises:
        ValueError: another mode, or a share outside [0, 1].
    """
    if mode == "threshold":
        return scores >= value
    if mode != "top_fraction" or not 0 <= value <= 1:
        raise ValueError(f"mode {mode!r} with {value}: top_fraction takes a share in [0, 1], else threshold")
    easy = torch.zeros(len(scores), dtype=torch.bool)
    easy[scores.argsort(descending=True, stable=True)[: round(value * len(scores))]] = True
    return easy
