"""How good a model is, from points that a person clicked and no masks: what can be estimated, and how surely.

A click on every class of an image is a sample drawn by true class. So it tells directly how often pixels of a class
are right, and what they are taken for: the rows of the confusion matrix, each up to its weight. The weights are the
classes' shares of the area, which no click tells. They are what makes the shares that the model predicts, which are
known on all images, come out of the rows (label shift by confusion calibration: Saerens et al. 2002; Lipton et al.
2018, "Detecting and correcting for label shift with black box predictors"):

    shares^T rows = predicted shares,   shares >= 0,   sum of shares = 1      (least squares)

    TP_c = shares_c rows_cc,   IoU_c = TP_c / (shares_c + predicted_c - TP_c)

Intervals: `segshift.engine.point_draws`. What all this cannot tell: docs/weak_labels.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from segshift.engine.point_draws import drawn, interval, intervals
from segshift.engine.point_result import PointEstimate
from segshift.engine.point_shares import equal_ious, ious, shares

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointCounts:
    """What a model says at the points, and how much of each image it gives to each class.

    Attributes:
        classes: K names.
        images: N names.
        hits: (M, 4) int64, each with an image's index, clicked class, predicted class, and how many points are such:
            of all images and pairs of classes only those that there are.
        areas: (N, K) int64 pixels by predicted class.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    hits: NDArray[np.int64]
    areas: NDArray[np.int64]


def estimate(counts: PointCounts, level: float = 0.95, samples: int = 1000) -> PointEstimate:
    """Estimate recall, IoU and mIoU from points.

    Args:
        counts: of the model.
        level: of the intervals.
        samples: draws for the intervals (`segshift.engine.point_draws`).

    Raises:
        ValueError: not one point, or shapes that do not fit.
    """
    number, classes = counts.areas.shape
    if counts.hits.shape[1:] != (4,) or (len(counts.images), len(counts.classes)) != (number, classes):
        raise ValueError(f"hits {counts.hits.shape}, areas {counts.areas.shape} of {len(counts.classes)} classes")
    there = counts.hits[counts.hits[:, 3] > 0]
    image, true, said, many = there.T
    hits = np.bincount(true * classes + said, many, classes * classes).reshape(classes, classes).astype(np.int64)
    points = hits.sum(axis=1)
    if not points.any():
        raise ValueError("no points")
    clicked = np.flatnonzero(points)
    # An interval of a class that one image alone shows would say little but what its draws assume.
    alone = np.bincount(np.unique(np.stack((image, true)), axis=1)[1], minlength=classes)[clicked] < 2
    pointed = len(np.unique(image))
    rows = hits[clicked] / points[clicked, None]
    predicted = counts.areas.sum(axis=0) / counts.areas.sum()
    share = shares(rows, predicted, clicked)
    iou, point_miou = ious(rows, predicted, clicked, share), float(equal_ious(rows, clicked).mean())
    drawn_iou, drawn_point = drawn(there, counts.areas, clicked, samples)
    draws = drawn_iou.mean(axis=1)
    successes = np.diagonal(hits)[clicked]
    iou_interval = np.where(alone[:, None], np.nan, intervals(drawn_iou, iou, level))
    return PointEstimate(
        counts.classes,
        images=counts.images,
        pointed=pointed,
        level=level,
        points=points,
        recall=_spread(successes / points[clicked], clicked, classes),
        recall_interval=_spread(np.stack(wilson(successes, points[clicked], level), axis=1), clicked, classes),
        share=_spread(share, clicked, classes),
        predicted=predicted,
        iou=_spread(iou, clicked, classes),
        iou_interval=_spread(iou_interval, clicked, classes),
        miou=float(iou.mean()),
        miou_interval=interval(draws, float(iou.mean()), level, pointed),
        point_miou=point_miou,
        point_miou_interval=interval(drawn_point, point_miou, level, pointed),
        draws=draws,
    )


def wilson(successes: NDArray[np.int64], trials: NDArray[np.int64], level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a binomial share (Wilson 1927): low and high, each like `trials`; nan without trials.

    The points of one image count as independent; with many of a class in each image it is too narrow.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    n = np.where(trials > 0, trials, np.nan)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _spread(values: Floats, where: NDArray[np.intp], count: int) -> Floats:
    """Values of some classes among all, nan elsewhere."""
    spread: Floats = np.full((count, *values.shape[1:]), np.nan)
    spread[where] = values
    return spread
