"""Confidence thresholds of classes from one streaming pass in constant memory, and the rules that choose them.

A pixel predicted as class c with probability p is used when p >= threshold_c. The published code collects every
confidence and sorts; here each class has a histogram, fine enough that its thresholds differ from the sorted ones by
less than 1e-3 everywhere and by ever less towards 1, where the outputs of a softmax crowd.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Integer
from torch import Tensor

from segshift.types import IGNORE

OUT_OF_REACH = 1.000001
"""Threshold of a class from which no pixel is to be chosen: it was never predicted, or its portion is less than one
pixel. No probability reaches it. CRST's release leaves 1.0, which every pixel of probability 1 in float32 passes."""

LOWEST = 2.0**-20
"""No threshold is less, so that p / threshold is defined. The best of fewer than a million classes is always above."""

# Bins are the leading bits of the float32 number 1 - confidence: its exponent and 10 bits of its mantissa. A bin is
# thus 1/1024 of an octave wide, at most 2^-11 (of confidence below 0.5). The smallest such number but 0 is 2^-24.
_DROPPED = 23 - 10
_FIRST = (127 - 24) << 10
BINS = ((127 << 10) - _FIRST) + 2
"""Bins of a class: bin 0 is confidence 1, the last one confidence 0."""

_CHUNK = 1 << 22


class ConfidenceHistogram:
    """How often each class was predicted with which confidence, over any number of images.

    Counts are exact integers: histograms of parts, added in any order, equal the histogram of the whole.

    Args:
        num_classes: K, at most 255.
        counts: (K, BINS) counts of an earlier histogram to go on from (they are copied); None: none yet.

    Attributes:
        counts: (K, BINS) int64 on the CPU, from confidence 1 downwards.
    """

    def __init__(self, num_classes: int, counts: Int64[Tensor, "K bins"] | None = None) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must lie in [1, {IGNORE}], got {num_classes}")
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64)
        if counts is not None:
            if counts.shape != self.counts.shape:
                raise ValueError(f"counts must be {tuple(self.counts.shape)}, got {tuple(counts.shape)}")
            self.counts = self.counts + counts.cpu()

    def add(self, ids: Integer[Tensor, "*shape"], confidence: Float32[Tensor, "*shape"]) -> None:
        """Count pixels.

        Args:
            ids: predicted classes in [0, K), uint8 or int64, of any shape; pixels of `IGNORE` are left out.
            confidence: float32 of the same shape, the probability of the predicted class; what rounding put above 1
                counts as 1.

        Raises:
            ValueError: an id is no class, or a confidence lies outside [0, 1] or is not a number.
        """
        if ids.shape != confidence.shape or confidence.dtype != torch.float32:
            raise ValueError(
                f"wanted ids and float32 confidences of one shape, got {tuple(ids.shape)} "
                f"and {confidence.dtype} {tuple(confidence.shape)}"
            )
        ids, confidence = ids.flatten(), confidence.detach().flatten()
        for start in range(0, len(ids), _CHUNK):
            self._add(ids[start : start + _CHUNK], confidence[start : start + _CHUNK])

    def _add(self, ids: Tensor, confidence: Tensor) -> None:
        num_classes = len(self.counts)
        lowest, highest = confidence.aminmax()
        if not (lowest >= 0 and highest <= 1 + 1e-4):  # written so that NaN fails
            raise ValueError(f"confidences must lie in [0, 1], got {lowest.item()} to {highest.item()}")
        first, last = ids.aminmax()
        if first < 0 or last >= num_classes:
            chosen = ids != IGNORE
            ids, confidence = ids[chosen], confidence[chosen]
            wrong = (ids < 0) | (ids >= num_classes)
            if wrong.any():
                raise ValueError(f"ids must lie in [0, {num_classes}) or be {IGNORE}, got {ids[wrong][0].item()}")
        # One temporary that is changed in place, and integers of 32 bits: this is bound by memory. What is above 1
        # becomes a negative float, that is a negative integer, and so falls into bin 0.
        keys = (1 - confidence).view(torch.int32)
        keys.bitwise_right_shift_(_DROPPED).sub_(_FIRST - 1).clamp_(min=0)
        keys.add_(ids, alpha=BINS)
        found = torch.bincount(keys, minlength=self.counts.numel()).view_as(self.counts)
        # A new tensor: one made in inference mode could not be added to outside.
        self.counts = self.counts + found.cpu()

    def merge(self, other: ConfidenceHistogram) -> None:
        """Add the counts of another histogram (another shard's, say) to this one's."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"histograms of {len(self.counts)} and of {len(other.counts)} classes cannot be merged")
        self.counts = self.counts + other.counts

    def __add__(self, other: ConfidenceHistogram) -> ConfidenceHistogram:
        both = ConfidenceHistogram(len(self.counts), self.counts)
        both.merge(other)
        return both

    @property
    def predicted(self) -> Int64[Tensor, " K"]:
        """(K,) number of pixels predicted as each class."""
        return self.counts.sum(dim=1)


@functools.cache
def _edges() -> Float64[Tensor, " bins"]:
    """(BINS,) the least float32 confidence that falls into each bin (or would: high bins are finer than float32)."""
    last = ((np.arange(BINS, dtype=np.int32) + _FIRST) << _DROPPED) - 1
    furthest = last.view(np.float32).astype(np.float64)
    # Where 1 - confidence is exact in float32, its largest value in the bin gives the edge, rounded up to float32.
    exact = 1 - furthest
    nearest = exact.astype(np.float32)
    upper = np.where(nearest < exact, np.nextafter(nearest, np.float32(2)), nearest)
    # Below 0.5 it is rounded to multiples of 2^-24, and a tie goes to the even one, which begins the next bin.
    lower = np.nextafter((exact - 2.0**-25).astype(np.float32), np.float32(2))
    return torch.from_numpy(np.where(furthest < 0.5, upper, lower).astype(np.float64).clip(0, 1))


def _of_largest(counts: Int64[Tensor, "N bins"], wanted: Int64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """The edge below the `wanted`-th largest confidence of each row; `OUT_OF_REACH` where none is wanted."""
    at = torch.searchsorted(counts.cumsum(dim=1), wanted[:, None])[:, 0].clamp(max=BINS - 1)
    thresholds = _edges()[at].clamp(min=LOWEST)
    return torch.where(wanted > 0, thresholds, OUT_OF_REACH)


def _each(numbers: Tensor, change: Callable[[int], int]) -> Int64[Tensor, " N"]:
    """Python's arithmetic on each number: exact beyond 2^53 and rounded as in the published code."""
    return torch.tensor([change(number) for number in numbers.tolist()], dtype=torch.int64)


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def class_balanced(histogram: ConfidenceHistogram, portion: float) -> Float64[Tensor, " K"]:
    """CBST: of each class, the given portion of the pixels predicted as it passes (their most confident ones).

    Args:
        histogram: of all images that are to be labelled.
        portion: p in [0, 1]; 1: every pixel passes, 0: none.

    Returns:
        (K,) the lower edge of the bin of the floor(n_k p)-th largest confidence of class k, less than 1e-3 below it, so
        at least floor(n_k p) pixels pass; `OUT_OF_REACH` where that is no pixel.

    Raises:
        ValueError: the portion lies outside [0, 1].

    Source: Zou et al. (CBST), ECCV 2018; CBST and CRST releases (methods.md section 5), without their subsampling.
    """
    _check("portion", portion)
    return _of_largest(histogram.counts, _each(histogram.predicted, lambda n: math.floor(n * portion)))


def global_portion(histogram: ConfidenceHistogram, portion: float) -> Float64[Tensor, " K"]:
    """One threshold for all classes: the given portion of all pixels passes (self-training without class balance).

    Args, returns and errors as `class_balanced`; the K values are equal.

    Source: the ST baseline of CBST's release (methods.md section 4).
    """
    _check("portion", portion)
    counts = histogram.counts.sum(dim=0, keepdim=True)
    value = _of_largest(counts, _each(counts.sum(dim=1), lambda n: math.floor(n * portion)))
    return value.expand(len(histogram.counts)).clone()


def class_quantile(histogram: ConfidenceHistogram, quantile: float, cap: float) -> Float64[Tensor, " K"]:
    """BDL and FDA: a quantile of each class's confidences, but no more than a cap.

    Args:
        histogram: of all images that are to be labelled.
        quantile: q in [0, 1]: 0.5 in BDL, 0.66 in FDA; 0: every pixel passes.
        cap: in [0, 1]: 0.9 in both; 1: none.

    Returns:
        (K,) the element round(n_k q) of the ascending confidences of class k (its bin's lower edge), capped;
        `OUT_OF_REACH` for a class that was never predicted (the releases: 0, which a ratio p / threshold cannot bear).

    Raises:
        ValueError: quantile or cap lies outside [0, 1].

    Source: BDL's SSL.py and FDA's getSudoLabel_multi.py (methods.md section 4).
    """
    _check("quantile", quantile)
    _check("cap", cap)
    rank = _each(histogram.predicted, lambda n: n - min(round(n * quantile), n - 1) if n else 0)
    thresholds = _of_largest(histogram.counts, rank)
    return torch.where(rank > 0, thresholds.clamp(max=max(cap, LOWEST)), thresholds)


def fixed(histogram: ConfidenceHistogram, value: float) -> Float64[Tensor, " K"]:
    """The same given threshold for all classes.

    Args:
        histogram: for the number of classes.
        value: in [0, 1]; 0: every pixel passes (`LOWEST` is returned).

    Raises:
        ValueError: the value lies outside [0, 1].

    Source: ProDA's distillation uses 0.95, and p > value where the other rules have p >= value.
    """
    _check("value", value)
    return torch.full((len(histogram.counts),), max(value, LOWEST), dtype=torch.float64)
