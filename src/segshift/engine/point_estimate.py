"""How good a model is, from points that a person clicked and no masks: what can be estimated, and how surely.

A click on every class of an image is a sample drawn by true class. So it tells directly how often pixels of a class
are right, and what they are taken for: the rows of the confusion matrix, each up to its weight. The weights are the
classes' shares of the area, which no click tells. They are what makes the shares that the model predicts, which are
known on all images, come out of the rows (label shift by confusion calibration: Saerens et al. 2002; Lipton et al.
2018, "Detecting and correcting for label shift with black box predictors"):

    shares^T rows = predicted shares,   shares >= 0,   sum of shares = 1      (least squares)

    TP_c = shares_c rows_cc,   IoU_c = TP_c / (shares_c + predicted_c - TP_c)

What it cannot tell: docs/weak_labels.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segshift.errors import UserError

Floats = NDArray[np.float64]

_SUM_WEIGHT = 100.0
"""Weight of the equation that the shares add up to 1, against those of the single classes."""

_NEAR_WEIGHT = 1e-3
"""Weight of the equations that the shares are the predicted ones: they decide only where the others do not (a class
that is never recognised, and taken for what another is taken for)."""


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


@dataclass(frozen=True, eq=False)
class PointEstimate:
    """Estimates with intervals; fractions in [0, 1], nan for classes without a point.

    Attributes:
        classes: K names.
        images: their N names; `pointed`: how many of them have points.
        level: of all intervals.
        points: (K,) points of each class.
        recall: (K,) share of a class's points that are right; `recall_interval` (K, 2): Wilson.
        share: (K,) estimated share of the area.
        predicted: (K,) share of the area that the model gives to the class.
        iou: (K,) estimate; `iou_interval` (K, 2): bootstrap over images, nan where fewer than two have
            the class's points.
        miou: mean over the classes with points; `miou_interval`: bootstrap over images, None where fewer than two have
            points. A class with points in one image alone counts as sure in it.
        point_miou: IoU of the confusion matrix in which all clicked classes have the same weight, averaged: needs no
            calibration, but is no estimate of the mIoU; `point_miou_interval`: likewise.
        draws: (samples,) the bootstrap's mIoUs, for `gain`.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    pointed: int
    level: float
    points: NDArray[np.int64]
    recall: Floats
    recall_interval: Floats
    share: Floats
    predicted: Floats
    iou: Floats
    iou_interval: Floats
    miou: float
    miou_interval: tuple[float, float] | None
    point_miou: float
    point_miou_interval: tuple[float, float] | None
    draws: Floats

    def table(self) -> str:
        """The estimates as text for a terminal, in percent, with their intervals."""
        width = max(9, *map(len, self.classes))
        head = (
            f"{'class':<{width}}  {'points':>6}  {'right at points':>22}  {'IoU estimate':>22}  {'area':>5}  predicted"
        )
        lines = [head]
        for i, name in enumerate(self.classes):
            right, iou = (
                _with_interval(value[i], interval[i])
                for value, interval in ((self.recall, self.recall_interval), (self.iou, self.iou_interval))
            )
            area, predicted = _percent(self.share[i]), _percent(self.predicted[i])
            lines.append(f"{name:<{width}}  {self.points[i]:>6}  {right:>22}  {iou:>22}  {area:>5}  {predicted:>9}")
        lines.append(
            f"mIoU estimate {_with_interval(self.miou, self.miou_interval)} over {(self.points > 0).sum()} classes, "
            f"from {self.points.sum()} points in {self.pointed} of {len(self.images)} images"
        )
        lines.append(f"point mIoU    {_with_interval(self.point_miou, self.point_miou_interval)}")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the draws as plain JSON values; nan becomes null."""
        rows = zip(
            self.classes, self.points.tolist(), self.recall, self.recall_interval, self.share, self.predicted,
            self.iou, self.iou_interval, strict=True,
        )  # fmt: skip
        keys = ("name", "points", "recall", "recall_interval", "share", "predicted_share", "iou", "iou_interval")
        return {
            "images": len(self.images),
            "images_with_points": self.pointed,
            "level": self.level,
            "miou": _json(self.miou),
            "miou_interval": _json(self.miou_interval),
            "point_miou": _json(self.point_miou),
            "point_miou_interval": _json(self.point_miou_interval),
            "classes": [{key: _json(value) for key, value in zip(keys, row, strict=True)} for row in rows],
        }


def estimate(counts: PointCounts, level: float = 0.95, samples: int = 1000) -> PointEstimate:
    """Estimate recall, IoU and mIoU from points.

    Args:
        counts: of the model.
        level: of the intervals.
        samples: bootstrap draws of the images; the random numbers are fixed.

    Raises:
        ValueError: not one point, or shapes that do not fit.
    """
    number, classes = counts.areas.shape
    if counts.hits.shape[1:] != (4,) or (len(counts.images), len(counts.classes)) != (number, classes):
        raise ValueError(f"hits {counts.hits.shape}, areas {counts.areas.shape} of {len(counts.classes)} classes")
    image, true, said, many = counts.hits[counts.hits[:, 3] > 0].T
    hits = np.bincount(true * classes + said, many, classes * classes).reshape(classes, classes).astype(np.int64)
    points = hits.sum(axis=1)
    if not points.any():
        raise ValueError("no points")
    clicked = np.flatnonzero(points)
    # Of images drawn anew, those without points vary the areas alone: that would be an interval that knows no clicks.
    alone = np.bincount(np.unique(np.stack((image, true)), axis=1)[1], minlength=classes)[clicked] < 2
    pointed = len(np.unique(image))
    rows = hits[clicked] / points[clicked, None]
    predicted = counts.areas.sum(axis=0) / counts.areas.sum()
    share, iou = _solved(rows, predicted, clicked)
    drawn_iou, drawn_point = _bootstrap(counts, clicked, rows, share > 0, samples)
    recall = _spread(rows[np.arange(len(clicked)), clicked], clicked, classes)
    successes = np.diagonal(hits)[clicked]
    return PointEstimate(
        counts.classes,
        images=counts.images,
        pointed=pointed,
        level=level,
        points=points,
        recall=recall,
        recall_interval=_spread(np.stack(wilson(successes, points[clicked], level), axis=1), clicked, classes),
        share=_spread(share, clicked, classes),
        predicted=predicted,
        iou=_spread(iou, clicked, classes),
        iou_interval=_spread(np.where(alone[:, None], np.nan, _intervals(drawn_iou, level)), clicked, classes),
        miou=float(iou.mean()),
        miou_interval=_interval(drawn_iou.mean(axis=1), level, pointed),
        point_miou=float(_point_iou(rows, clicked).mean()),
        point_miou_interval=_interval(drawn_point, level, pointed),
        draws=drawn_iou.mean(axis=1),
    )


def gain(before: PointEstimate, after: PointEstimate) -> tuple[float, tuple[float, float] | None]:
    """How much better `after` is in mIoU, with an interval.

    The draws of both are of the same images, so what makes all models look worse on some images cancels.

    Args:
        before, after: estimated on the same images and points, with as many samples.

    Raises:
        ValueError: they are of other images, points or samples.
    """
    same = before.images == after.images and before.classes == after.classes and before.level == after.level
    if not same or len(before.draws) != len(after.draws) or not np.array_equal(before.points, after.points):
        raise ValueError("both models must be estimated on the same images and points")
    interval = _interval(after.draws - before.draws, after.level, after.pointed)
    return after.miou - before.miou, interval


def compared(own: PointEstimate, other: PointEstimate, names: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """Two models side by side.

    Args:
        own, other: estimates on the same images and points.
        names: what to call them.

    Returns:
        A text for people, and `own` as JSON values, with the other one and the gain over it.

    Raises:
        UserError: they are of other images or classes.
    """
    try:
        better, interval = gain(other, own)
    except ValueError as error:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be compared: they are of other images or classes",
            "two models of the same classes on the same images",
            "name the images of both with --domain DIR",
        ) from error
    sure = "" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    told = f"mIoU of {names[0]} against {names[1]}, estimated: {100 * better:+.1f}{sure} points"
    text = f"{names[1]}\n{other.table()}\n{names[0]}\n{own.table()}\n{told}\n"
    return text, own.to_dict() | {"against": other.to_dict(), "gain": better, "gain_interval": _json(interval)}


def wilson(successes: NDArray[np.int64], trials: NDArray[np.int64], level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a binomial share (Wilson 1927): low and high, each like `trials`; nan without trials.

    The points of one image count as independent; with many of a class in each image it is too narrow.
    """
    z = _normal_quantile((1 + level) / 2)
    n = np.where(trials > 0, trials, np.nan)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _normal_quantile(probability: float) -> float:
    """Of the standard normal distribution."""
    return NormalDist().inv_cdf(probability)


def shares(
    rows: Floats, predicted: Floats, clicked: NDArray[np.intp], start: NDArray[np.bool_] | None = None
) -> Floats:
    """The classes' shares of the area that best explain the predicted ones (see the module's text).

    Where two rows are alike, their shares are not determined singly; of the solutions the one nearest to the predicted
    shares is taken.

    Args:
        rows: (C, K), each the distribution of the predictions at points of a class.
        predicted: (K,), sums to 1.
        clicked: (C,) which of the K classes the rows are of.
        start: (C,) classes that the search starts with; saves time where the solution is nearly known.

    Returns:
        (C,) non-negative, summing to 1.
    """
    count = len(rows)
    matrix = np.vstack([rows.T, _NEAR_WEIGHT * np.eye(count), np.full(count, _SUM_WEIGHT)])
    target = np.concatenate([predicted, _NEAR_WEIGHT * predicted[clicked], [_SUM_WEIGHT]])
    found = _non_negative(matrix, target, start)
    return np.asarray(found / found.sum())


def _non_negative(matrix: Floats, target: Floats, start: NDArray[np.bool_] | None) -> Floats:
    """The non-negative x with the least |matrix x - target|: Lawson and Hanson's active sets (1974, chapter 23)."""
    count = matrix.shape[1]
    free = np.zeros(count, dtype=bool)
    x = np.zeros(count)
    if start is not None and start.any():
        x[start] = np.linalg.lstsq(matrix[:, start], target, rcond=None)[0]
        free = start & (x > 0) if (x >= 0).all() else free
        x = x if (x >= 0).all() else np.zeros(count)
    for _ in range(10 * count):
        slope = np.where(free, -np.inf, matrix.T @ (target - matrix @ x))
        if slope.max() <= 1e-10:
            break
        free[slope.argmax()] = True
        x = _settled(matrix, target, x, free)
    return x


def _settled(matrix: Floats, target: Floats, x: Floats, free: NDArray[np.bool_]) -> Floats:
    """The least squares over the free variables, those that it would make negative set to 0 (`free` is changed)."""
    while True:
        wanted = np.zeros(len(x))
        wanted[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        if not free.any() or wanted[free].min() > 0:
            return wanted
        negative = free & (wanted <= 0)
        step = (x[negative] / np.maximum(x[negative] - wanted[negative], 1e-300)).min()
        x = x + step * (wanted - x)
        free &= x > 1e-14
        x[~free] = 0


def _solved(
    rows: Floats, predicted: Floats, clicked: NDArray[np.intp], start: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats]:
    """Shares and IoU of the clicked classes."""
    share = shares(rows, predicted, clicked, start)
    own = predicted[clicked]
    # Not more can be right than is there, nor than is predicted: the equations hold only nearly.
    right = np.minimum(share * rows[np.arange(len(clicked)), clicked], np.minimum(share, own))
    union = share + own - right
    return share, np.divide(right, union, out=np.zeros_like(union), where=union > 0)


def _point_iou(rows: Floats, clicked: NDArray[np.intp]) -> Floats:
    """IoU of the clicked classes where all have the same area."""
    right = rows[np.arange(len(clicked)), clicked]
    return np.asarray(right / (1 + rows[:, clicked].sum(axis=0) - right))


def _bootstrap(
    counts: PointCounts, clicked: NDArray[np.intp], rows: Floats, start: NDArray[np.bool_], samples: int
) -> tuple[Floats, Floats]:
    """IoUs (samples, C) and point mIoUs (samples,) of images drawn with replacement.

    A class that loses all its points in a draw keeps its row of the whole sample.
    """
    random, number, areas = np.random.default_rng(0), len(counts.areas), counts.areas.astype(np.float64)
    image, true, said, many = counts.hits.T
    cells = np.searchsorted(clicked, true) * areas.shape[1] + said
    ious, point_mious = [], []
    # A draw at a time: tables of all draws, or of all images, would be GBs with many classes.
    for _ in range(samples):
        draw = random.multinomial(number, [1 / number] * number)
        hits = np.bincount(cells, many * draw[image], rows.size).reshape(rows.shape)
        points = hits.sum(axis=1, keepdims=True)
        drawn = np.where(points > 0, hits / np.maximum(points, 1), rows)
        predicted = draw @ areas
        ious.append(_solved(drawn, predicted / predicted.sum(), clicked, start)[1])
        point_mious.append(_point_iou(drawn, clicked).mean())
    return np.stack(ious), np.array(point_mious)


def _interval(draws: Floats, level: float, pointed: int) -> tuple[float, float] | None:
    if pointed < 2:
        return None
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _intervals(draws: Floats, level: float) -> Floats:
    """(C, 2) from (samples, C)."""
    return np.asarray(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0).T)


def _spread(values: Floats, where: NDArray[np.intp], count: int) -> Floats:
    """Values of some classes among all, nan elsewhere."""
    spread: Floats = np.full((count, *values.shape[1:]), np.nan)
    spread[where] = values
    return spread


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _with_interval(value: float, interval: Sequence[float] | Floats | None) -> str:
    if interval is None or math.isnan(value) or math.isnan(interval[0]):
        return _percent(value)
    return f"{_percent(value)} [{_percent(interval[0])}, {_percent(interval[1])}]"


def _json(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Sequence | np.ndarray):
        return [_json(each) for each in value]
    return None if math.isnan(value) else float(value)
