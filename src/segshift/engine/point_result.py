"""What `evaluate --points` found: as text, as JSON values, and beside another model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segshift.engine.point_draws import interval
from segshift.errors import UserError

Floats = NDArray[np.float64]


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
        iou: (K,) estimate; `iou_interval` (K, 2): of draws (`segshift.engine.point_draws`), nan where fewer than two
            images have the class's points.
        miou: mean over the classes with points; `miou_interval`: likewise, None where fewer than two images have
            points. A class with points in one image alone counts, as unsure as one image is.
        point_miou: IoU of the confusion matrix in which all clicked classes have the same weight, averaged: needs no
            calibration, but is no estimate of the mIoU; `point_miou_interval`: likewise.
        draws: (samples,) mIoUs, for `gain`.
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
                _with_interval(value[i], ends[i])
                for value, ends in ((self.recall, self.recall_interval), (self.iou, self.iou_interval))
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


def gain(before: PointEstimate, after: PointEstimate) -> tuple[float, tuple[float, float] | None]:
    """How much better `after` is in mIoU, with an interval.

    The draws of both weigh the images alike, so what makes all models look worse on some images cancels.

    Args:
        before, after: estimated on the same images and points, with as many samples.

    Raises:
        ValueError: they are of other images, points or samples.
    """
    same = before.images == after.images and before.classes == after.classes and before.level == after.level
    if not same or len(before.draws) != len(after.draws) or not np.array_equal(before.points, after.points):
        raise ValueError("both models must be estimated on the same images and points")
    found = after.miou - before.miou
    return found, interval(after.draws - before.draws, found, after.level, after.pointed)


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
        better, ends = gain(other, own)
    except ValueError as error:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be compared: they are of other images or classes",
            "two models of the same classes on the same images",
            "name the images of both with --domain DIR",
        ) from error
    sure = "" if ends is None else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    told = f"mIoU of {names[0]} against {names[1]}, estimated: {100 * better:+.1f}{sure} points"
    text = f"{names[1]}\n{other.table()}\n{names[0]}\n{own.table()}\n{told}\n"
    return text, own.to_dict() | {"against": other.to_dict(), "gain": better, "gain_interval": _json(ends)}


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
