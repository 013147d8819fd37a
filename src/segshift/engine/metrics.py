"""Segmentation metrics from one accumulated confusion matrix, and how they are written down."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from segshift.data.classes import SIXTEEN, THIRTEEN, cityscapes_indices
from segshift.types import IGNORE, ClassSet

# Neighbouring pixels mostly fall into the same cell of the histogram, and each addition then waits for the one before
# it. Counting every fourth pixel in a histogram of its own breaks that chain (1.7 times faster, measured).
_WAYS, _ROW = 4, 1024


def confusion_matrix(
    predicted: UInt8[Tensor, "*shape"], label: UInt8[Tensor, "..."], num_classes: int
) -> Int64[Tensor, "K K"]:
    """Count pixels by true class (rows) and predicted class (columns); pixels labelled `IGNORE` are not counted.

    Args:
        predicted: uint8 train ids in [0, K), any shape.
        label: uint8 train ids in [0, K) or `IGNORE`, the same shape, on the same device.
        num_classes: K, at most 255.

    Raises:
        ValueError: the shapes differ, or an id is outside the classes.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"predicted has shape {tuple(predicted.shape)}, label {tuple(label.shape)}")
    cells = 256 * num_classes
    if predicted.numel() and int(predicted.max()) >= num_classes:
        raise ValueError(f"predicted id {int(predicted.max())} is outside the {num_classes} classes")
    # The narrowest type that holds every index: the work is bound by memory.
    index_type = torch.int16 if _WAYS * cells <= torch.iinfo(torch.int16).max else torch.int32
    index = torch.add(predicted.to(index_type), label.to(index_type), alpha=num_classes).flatten()
    rows = index[: index.numel() // _ROW * _ROW].view(-1, _ROW)
    rows += (torch.arange(_WAYS, dtype=index_type, device=index.device) * cells).repeat(_ROW // _WAYS)
    counts = torch.bincount(index, minlength=_WAYS * cells).view(_WAYS, 256, num_classes).sum(dim=0)
    outside = counts[num_classes:IGNORE].sum(dim=1)
    if outside.any():
        worst = num_classes + int(outside.argmax())
        raise ValueError(f"label id {worst} is outside the {num_classes} classes ({int(outside.max())} pixels)")
    return counts[:num_classes].clone()


def iou_of(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union TP / (TP + FP + FN) per class (K,) float64; nan where the class has no true pixel.

    A class that is predicted but has no true pixel is nan too and so does not enter the mean; the ADVENT release
    gives it 0 (eval_UDA.py: nan only where TP + FP + FN = 0). On full Cityscapes val, where every class occurs,
    the two agree.
    """
    true = confusion.sum(axis=1, dtype=np.float64)
    union = true + confusion.sum(axis=0, dtype=np.float64) - np.diagonal(confusion)
    iou: NDArray[np.float64] = np.full(len(confusion), np.nan)
    np.divide(np.diagonal(confusion), union, out=iou, where=true > 0)
    return iou


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not nan; nan where none is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class ImageScore:
    """One image's own figures, fractions in [0, 1]; nan where the image has no labelled pixel.

    `counts`, (3, K) pixels that are right, true and predicted, is there only as long as the process that measured it:
    `gain_interval` needs it.
    """

    name: str
    miou: float
    pixel_accuracy: float
    counts: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)


def image_score(name: str, confusion: NDArray[np.int64]) -> ImageScore:
    """Score one image by its own (K, K) confusion matrix."""
    total = int(confusion.sum())
    accuracy = float(np.trace(confusion)) / total if total else math.nan
    counts = np.stack([np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)])
    return ImageScore(name, _mean(iou_of(confusion)), accuracy, counts)


@dataclass(frozen=True, eq=False)
class Metrics:
    """What is reported of a model on a labelled domain; every share is a fraction in [0, 1].

    Attributes:
        classes: K names.
        confusion: (K, K) int64 pixels, rows truth, columns prediction, over all images.
        images: how many images were counted.
        per_image: each image's own scores, for choosing pictures; their mean is not `miou`.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    images: int
    per_image: tuple[ImageScore, ...] = ()

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) float64, nan for classes absent from the ground truth (see `iou_of`)."""
        return iou_of(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in the ground truth."""
        return _mean(self.iou)

    def _mean_over(self, subset: Sequence[int]) -> float | None:
        indices = cityscapes_indices(ClassSet(self.classes, ()), subset)
        return None if indices is None else _mean(self.iou[list(indices)])

    @property
    def miou16(self) -> float | None:
        """Mean over SYNTHIA's 16 classes (without terrain, truck, train); None unless the classes are Cityscapes'."""
        return self._mean_over(SIXTEEN)

    @property
    def miou13(self) -> float | None:
        """mIoU* over 13 classes (16 less wall, fence, pole; CBST issue #7); None unless the classes are Cityscapes'."""
        return self._mean_over(THIRTEEN)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; nan where none is labelled."""
        return image_score("", self.confusion).pixel_accuracy

    @property
    def mean_accuracy(self) -> float:
        """Mean over the present classes of the share of their pixels that is right."""
        true = self.confusion.sum(axis=1, dtype=np.float64)
        right = np.diagonal(self.confusion)
        accuracy: NDArray[np.float64] = np.full(len(true), np.nan)
        np.divide(right, true, out=accuracy, where=true > 0)
        return _mean(accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; nan becomes null."""
        return {
            "classes": list(self.classes),
            "images": self.images,
            "miou": _json(self.miou),
            "miou16": _json(self.miou16),
            "miou13": _json(self.miou13),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "mean_accuracy": _json(self.mean_accuracy),
            "iou": [_json(float(value)) for value in self.iou],
            "confusion": self.confusion.tolist(),
            "per_image": [
                {"name": score.name, "miou": _json(score.miou), "pixel_accuracy": _json(score.pixel_accuracy)}
                for score in self.per_image
            ],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Metrics:
        """The inverse of `to_dict`; derived figures are computed anew from the confusion matrix."""
        scores = tuple(
            ImageScore(entry["name"], _number(entry["miou"]), _number(entry["pixel_accuracy"]))
            for entry in value.get("per_image", [])
        )
        confusion = np.array(value["confusion"], dtype=np.int64)
        return cls(tuple(value["classes"]), confusion, int(value["images"]), scores)

    def to_csv(self) -> str:
        """One line a class, then the means; percent with two decimals, `nan` where a class has no true pixel."""
        true = self.confusion.sum(axis=1)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["class", "iou", "accuracy", "pixels"])
        for index, name in enumerate(self.classes):
            accuracy = float(self.confusion[index, index] / true[index]) if true[index] else math.nan
            writer.writerow([name, _percent(float(self.iou[index]), 2), _percent(accuracy, 2), int(true[index])])
        writer.writerow(["mean", _percent(self.miou, 2), _percent(self.mean_accuracy, 2), int(true.sum())])
        for label, mean in (("mean of 16", self.miou16), ("mean of 13", self.miou13)):
            if mean is not None:
                writer.writerow([label, _percent(mean, 2), "", ""])
        writer.writerow(["all pixels", "", _percent(self.pixel_accuracy, 2), int(true.sum())])
        return out.getvalue()

    def markdown_header(self) -> str:
        """The two header lines of the table that `markdown_row` belongs to."""
        names = ["model", *self.classes, *self._means()]
        return _row(names) + "\n" + _row(["---", *["---:"] * (len(names) - 1)])

    def markdown_row(self, name: str) -> str:
        """One line of a Markdown table: percent with one decimal, classes first, then the means."""
        values = [*self.iou.tolist(), *self._means().values()]
        return _row([name, *(_percent(value, 1) for value in values)])

    def _means(self) -> dict[str, float]:
        means = {"mIoU": self.miou, "mIoU16": self.miou16, "mIoU13": self.miou13, "pixel acc.": self.pixel_accuracy}
        return {name: mean for name, mean in means.items() if mean is not None}


def gain_interval(
    before: Metrics, after: Metrics, level: float = 0.95, samples: int = 1000
) -> tuple[float, float] | None:
    """Bootstrap interval of the gain in mIoU, `after` minus `before`, over the choice of the images.

    Images are drawn with replacement, the same ones for both models (paired), and both mIoUs are computed from the
    summed counts; images without a labelled pixel take no part. It says how far other images of this kind could move
    the gain; it knows nothing of other seeds of the training, and frames of one video make it too narrow.

    Args:
        before, after: measured in this process on the same images in the same order.
        level: of the interval.
        samples: draws; the random numbers are fixed.

    Returns:
        (low, high), or None with fewer than two images: they say nothing of others.

    Raises:
        ValueError: the images differ, or carry no counts.
    """
    drawn = _drawn_iou(before, after, samples)
    if drawn is None:
        return None
    gains = np.nanmean(drawn[1], axis=1) - np.nanmean(drawn[0], axis=1)
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


FEWEST_IMAGES = 5
"""Images that must show a class, or its interval would be the figures of those few over and over."""


def class_gain_intervals(
    before: Metrics, after: Metrics, level: float = 0.95, samples: int = 1000
) -> list[tuple[float, float] | None] | None:
    """`gain_interval` of each class's IoU, from the same draws of the images.

    Returns:
        Of each of the K classes (low, high), or None where fewer than `FEWEST_IMAGES` images show it; None in all with
        fewer than two images.

    Raises:
        ValueError: the images differ, or carry no counts.
    """
    drawn = _drawn_iou(before, after, samples)
    if drawn is None:
        return None
    shown = np.stack([score.counts[1] > 0 for score in before.per_image if score.counts is not None]).sum(axis=0)
    bounds = np.full((2, len(shown)), np.nan)
    known = shown >= FEWEST_IMAGES
    # A draw without the class says nothing of it.
    bounds[:, known] = np.nanquantile((drawn[1] - drawn[0])[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [None if np.isnan(low) else (float(low), float(high)) for low, high in bounds.T]


def _drawn_iou(before: Metrics, after: Metrics, samples: int) -> list[NDArray[np.float64]] | None:
    """IoU (samples, K) of both models over images drawn with replacement; nan where a draw does not show a class.

    None with fewer than two images with labelled pixels. Raises as `gain_interval`.
    """
    if [s.name for s in before.per_image] != [s.name for s in after.per_image] or not before.per_image:
        raise ValueError("both models must be measured on the same images")
    known = [[s.counts for s in metrics.per_image if s.counts is not None] for metrics in (before, after)]
    if any(len(counts) != len(before.per_image) for counts in known):
        raise ValueError("the metrics carry no counts of single images")
    # An image without a labelled pixel would make draws of it alone, which have no mIoU.
    counted = [[each for each in counts if each[1].any()] for counts in known]
    images = len(counted[0])
    if images < 2:
        return None
    draws = np.random.default_rng(0).multinomial(images, [1 / images] * images, size=samples).astype(np.float64)
    drawn = []
    for counts in counted:
        right, true, predicted = np.tensordot(draws, np.stack(counts), axes=1).transpose(1, 0, 2)
        union = true + predicted - right
        drawn.append(np.divide(right, union, out=np.full_like(union, np.nan), where=true > 0))
    return drawn


def merge(parts: Sequence[Metrics]) -> Metrics:
    """Join the metrics of disjoint shards of one domain; images in the order of their names.

    Raises:
        ValueError: no part, or parts of different classes.
    """
    if not parts or any(part.classes != parts[0].classes for part in parts):
        raise ValueError("merge needs at least one part, all of the same classes")
    scores = sorted((score for part in parts for score in part.per_image), key=lambda score: score.name)
    confusion = np.stack([part.confusion for part in parts]).sum(axis=0)
    return Metrics(parts[0].classes, confusion, sum(part.images for part in parts), tuple(scores))


def _json(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(value: float, decimals: int) -> str:
    return "nan" if math.isnan(value) else f"{100 * value:.{decimals}f}"


def _row(cells: Sequence[str]) -> str:
    # A class or a model may be called anything; a bar or a line break would end the cell.
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
