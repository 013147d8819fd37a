"""Figures that say without any label how good a network may be on the target, and signs that it has collapsed.

K classes, N points: places of the target's images. A histogram is a share of each class, its sum is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

TEMPERATURE = 0.05
"""Of the soft neighbourhood density: Saito et al., ICCV 2021, for all their tasks."""

FOUND = 1e-3
"""Share of the points from which on a class counts as found."""

LOST = 0.1
"""A class is lost where less than this part of the reference's share is left."""

NEARLY_ALL = 0.9
"""Share of the points from which on one class is nearly everywhere."""

FEW = 0.5
"""Part of the reference's effective number of classes below which a network predicts few."""

MOST_LOST = 0.5
"""Part of the classes that the reference finds from which on their loss is a collapse."""

ASTRAY = 1 / 3
"""Share of the points that must be the source model's class still: a network whose weights are damaged says anything,
of all classes alike. Adaptation that helps leaves much more (80 % and above on the pair of docs/results.md)."""


def mean_entropy(log_p: Float[Tensor, "N K"]) -> float:
    """Mean Shannon entropy of N distributions given by their logarithms, over log K: 0 sure, 1 uniform.

    Source: the loss of MinEnt (Vu et al., CVPR 2019, equation 2); as a criterion of selection: Morerio et al.,
    ICLR 2018.
    """
    p = log_p.double().exp()
    # 0 log 0 is 0, though its factor is -inf.
    terms = torch.where(p > 0, p * log_p.double(), p.new_zeros(()))
    return -float(terms.sum(dim=1).mean()) / math.log(log_p.shape[1])


def infomax(mean: Float64[np.ndarray, " K"], entropy: float, prior: Float64[np.ndarray, " K"] | None = None) -> float:
    """How much a prediction says: diverse over all points, sure at each. Higher is better.

    With p̄ the mean prediction over all points, H its Shannon entropy, h the mean entropy of a point and π the prior:

        without prior: (H(p̄) - h) / log K                with prior: (-KL(p̄ ‖ π) - h) / log K

    Without a prior it is the mutual information between point and class, in [0, 1]. A uniform prior gives the same
    less 1. A class of prior 0 that is predicted costs as if its prior were 1e-6.

    Source: Gomes, Krause & Perona, NIPS 2010 (RIM), whose section on class proportions puts KL(p̄ ‖ prior) in the place
    of the divergence from uniform; Shi & Sha, ICML 2012, for adaptation.

    Args:
        mean: (K,) p̄, its sum is 1.
        entropy: h / log K, of `mean_entropy`.
        prior: (K,) class shares of the source's labels.
    """
    scale = math.log(len(mean))
    if prior is None:
        return _entropy(mean) / scale - entropy
    floored = np.maximum(prior, 1e-6)
    seen = mean > 0
    divergence = float((mean[seen] * np.log(mean[seen] / (floored / floored.sum())[seen])).sum())
    return -divergence / scale - entropy


def _entropy(shares: Float64[np.ndarray, " K"]) -> float:
    seen = shares[shares > 0]
    return -float((seen * np.log(seen)).sum())


def neighbourhood_density(p: Float[Tensor, "N K"], temperature: float = TEMPERATURE, block: int = 512) -> float:
    """Soft neighbourhood density: mean entropy of the softmax over each point's similarities to all others. Nats.

    With s_ij the cosine of the distributions p_i and p_j, and P_ij = exp(s_ij / T) / sum_{l ≠ i} exp(s_il / T):

        SND = -1/N sum_i sum_{j ≠ i} P_ij log P_ij        in [0, log(N - 1)], higher is better

    It is high where every point has many like it: dense clusters. A network that says one class everywhere has the
    highest value there is, so it never stands alone. Memory is that of `block` rows of similarities.

    Source: Saito, Kim, Teterwak, Sclaroff, Darrell & Saenko, "Tune it the Right Way", ICCV 2021, equations 1 to 3.

    Args:
        p: (N, K) softmax outputs, N at least 2.
        temperature: T.
        block: rows at once; changes no result beyond rounding.
    """
    if len(p) < 2:
        raise ValueError(f"neighbours of {len(p)} point")
    unit = torch.nn.functional.normalize(p.float(), dim=1)
    total = 0.0
    for start in range(0, len(unit), block):
        rows = unit[start : start + block]
        similarity = rows @ unit.T / temperature
        similarity[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -math.inf
        log_share = similarity.log_softmax(dim=1)
        share = log_share.exp()
        total -= float(torch.where(share > 0, share * log_share, share.new_zeros(())).sum(dtype=torch.float64))
    return total / len(unit)


def shift(histogram: Float64[np.ndarray, " K"], other: Float64[np.ndarray, " K"]) -> float:
    """Total variation of two histograms, half the sum of their differences: the share of the points that would have to
    change their class. In [0, 1]."""
    return float(np.abs(histogram - other).sum() / 2)


@dataclass(frozen=True)
class Agreement:
    """How far two predictions agree: the share of the points with the same class, and the mean IoU of the classes."""

    pixels: float
    miou: float


def agreement(confusion: Int64[np.ndarray, "K K"]) -> Agreement:
    """Agreement of two predictions by their (K, K) counts; 0 where nothing was counted.

    The mean is over the classes that either of them predicts, so it changes nothing which is which.
    """
    same = np.diagonal(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - same
    seen = either > 0
    if not seen.any():
        return Agreement(0.0, 0.0)
    return Agreement(float(same.sum() / confusion.sum()), float((same[seen] / either[seen]).mean()))


def effective_classes(histogram: Float64[np.ndarray, " K"]) -> float:
    """exp of the entropy of a histogram: K where all classes are as frequent, 1 where one has all points."""
    return math.exp(_entropy(histogram))


@dataclass(frozen=True)
class Collapse:
    """What is wrong with a network's predictions as a whole.

    Attributes:
        reasons: why it counts as collapsed, one sentence each; empty: it does not.
        lost: indexes of classes that the reference finds and this one does not.
    """

    reasons: tuple[str, ...]
    lost: tuple[int, ...]


def collapse(
    histogram: Float64[np.ndarray, " K"],
    reference: Float64[np.ndarray, " K"] | None,
    names: Sequence[str],
    who: str = "the source model",
    same: float | None = None,
) -> Collapse:
    """Whether a network predicts few classes only, or anything.

    It has collapsed where one class has `NEARLY_ALL` of the points (and the reference gives it less, or no other class
    is found: the source model may have collapsed itself), where its effective number of classes is below `FEW` of the
    reference's, where it has lost `MOST_LOST` of the classes that the reference finds, or where it says what the source
    model says on less than `ASTRAY` of the points. A class is found from a share of `FOUND` on, and lost where less
    than `LOST` of the reference's share is left.

    Args:
        histogram: (K,) of the predicted classes.
        reference: (K,) of the network that adaptation started from, on the same points; else of the source's labels;
            None: neither is known, and the first rule alone holds.
        names: of the K classes.
        who: what the reference is, for the sentences.
        same: share of the points where it says what the source model says; None: not known.
    """
    reasons: list[str] = []
    lost: tuple[int, ...] = ()
    largest = int(histogram.argmax())
    alone = len(histogram) > 1 and np.count_nonzero(histogram >= FOUND) == 1
    if histogram[largest] >= NEARLY_ALL and (alone or reference is None or reference[largest] < NEARLY_ALL):
        reasons.append(f"{names[largest]} is predicted on {100 * histogram[largest]:.1f} % of the points")
    if reference is not None:
        found = np.flatnonzero(reference >= FOUND)
        lost = tuple(int(k) for k in found if histogram[k] < LOST * reference[k])
        here, there = effective_classes(histogram), effective_classes(reference)
        if here < FEW * there:
            reasons.append(f"few classes are predicted: effectively {here:.1f}, by {who} {there:.1f}")
        if len(lost) >= max(2, MOST_LOST * len(found)):
            reasons.append(f"{len(lost)} of {len(found)} classes that {who} finds are lost")
    if same is not None and same < ASTRAY:
        reasons.append(f"it says what the source model says on {100 * same:.0f} % of the points only")
    return Collapse(tuple(reasons), lost)


def ranks(values: Sequence[float | None], *, higher: bool) -> list[float | None]:
    """Place of each value, 1 the best; equal values share the mean of their places, unknown ones have none."""
    known = sorted(value for value in values if value is not None)
    if higher:
        known.reverse()
    first = {value: place for place, value in reversed(list(enumerate(known, 1)))}
    return [None if value is None else first[value] + (known.count(value) - 1) / 2 for value in values]
