"""What a model says where a person clicked, and how much of each image it gives to each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from segshift.data.domains import Domain, Item
from segshift.data.images import load_resized
from segshift.engine.ahead import ahead
from segshift.engine.inference import Options, as_input, autocast, check_predictors, class_ids, logits_at
from segshift.engine.point_estimate import PointCounts
from segshift.engine.progress import Bar
from segshift.errors import UserError
from segshift.nets.base import SegmentationNet
from segshift.weak.label import WeakLabel


def count_points(
    predictors: Sequence[SegmentationNet],
    domain: Domain,
    labels: Mapping[str, WeakLabel],
    *,
    size: tuple[int, int],
    options: Options | None = None,
    device: torch.device | None = None,
    precision: str = "fp32",
    workers: int = 1,
    progress: Bar | None = None,
) -> PointCounts:
    """Segment all images of a domain, as `evaluate` does, at their own size; no label of the domain is opened.

    Args:
        predictors: networks whose logits are averaged.
        domain: whose images are segmented; those without points count for the areas alone.
        labels: by the items' names, as `segshift.weak.matching.match` gives them.
        size: (w, h) that images are resized to.
        options, device, precision, workers, progress: as of `segshift.engine.evaluate.evaluate`.

    Raises:
        UserError: no label has a point, or an image is damaged.
    """
    check_predictors(predictors, domain.classes)
    if not any(label.points for label in labels.values()):
        raise UserError(
            f"the weak labels of domain {domain.name!r} have no points",
            "points: tags do not say what is right at a pixel",
            "click some points with `segshift annotate`",
        )
    device = device or torch.device("cpu")
    for net in predictors:
        net.to(device)
    classes = len(domain.classes)
    numbers = {name: index for index, name in enumerate(domain.classes.names)}
    hits: list[tuple[int, int, int, int]] = []
    areas = np.zeros((len(domain), classes), dtype=np.int64)

    def read(item: Item) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        return load_resized(item.image, size)

    for index, (item, done) in enumerate(ahead(read, domain.items, workers)):
        image, original = done()
        with autocast(device, precision):
            logits = logits_at(predictors, as_input(image, device), original, options)
        ids = class_ids(logits)[0].cpu().numpy()
        areas[index] = np.bincount(ids.ravel(), minlength=classes)
        label = labels.get(item.name)
        for point in label.points if label is not None else ():
            hits.append((index, numbers[point.name], int(ids[point.row, point.column]), 1))
        if progress is not None:
            progress.advance()
    names = tuple(item.name for item in domain.items)
    return PointCounts(domain.classes.names, names, np.array(hits, dtype=np.int64), areas)
