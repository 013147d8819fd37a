"""Evaluation at full label resolution: the only place of the package that opens a target domain's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8

from segshift.data.domains import Domain, Item, load_label
from segshift.data.images import image_size, load_resized
from segshift.data.statistics import spread
from segshift.engine.ahead import ahead
from segshift.engine.inference import Options, as_input, autocast, check_predictors, class_ids, logits_at
from segshift.engine.metrics import ImageScore, Metrics, confusion_matrix, image_score
from segshift.engine.progress import Bar
from segshift.errors import UserError
from segshift.nets.base import SegmentationNet


def truth_of(domain: Domain, item: Item, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
    """Train ids of an item's label, (H, W) uint8 with `IGNORE`, at the image's own size.

    Args:
        domain: with labels.
        item: one of the domain's.
        size: (H, W) of the image where it is known already; None: read from the image's header.

    Raises:
        UserError: the domain has no labels, or the file is unreadable, of another size, or holds unmapped ids.
    """
    if not domain.labelled:
        raise UserError(
            f"domain {domain.name!r} has no labels (image {item.image})",
            "a labelled domain: evaluation compares with the truth",
            "set its `labels` folder, or use `predict`, which needs images only",
        )
    return load_label(domain, item, size or image_size(item.image))


def preview_labels(domain: Domain, count: int = 4) -> list[tuple[Item, UInt8[np.ndarray, "H W"]]]:
    """A few items, evenly spread, with their train ids: what `check` shows of a labelled part.

    Raises:
        UserError: as `truth_of`.
    """
    return [(domain.items[index], truth_of(domain, domain.items[index])) for index in spread(len(domain.items), count)]


def evaluate(
    predictors: Sequence[SegmentationNet],
    domain: Domain,
    *,
    size: tuple[int, int],
    options: Options | None = None,
    device: torch.device | None = None,
    precision: str = "fp32",
    workers: int = 1,
    progress: Bar | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Metrics:
    """Measure a network, or an ensemble, on a labelled domain.

    Images are resized to `size` and fed one at a time; logits are upsampled to the label's own size; one confusion
    matrix is accumulated over all images (methods.md section 0.3). Draws no random number and changes no network.

    Args:
        predictors: networks whose logits are averaged; they are moved to `device`.
        domain: opened with labels.
        size: (w, h) that images are resized to.
        device: None means CPU.
        precision: `fp32`, or `bf16` for autocast.
        workers: threads that decode files ahead; 0 decodes between the forward passes. Changes no result.
        progress: told of every image.
        limit: measure at most so many images, evenly spread over the domain.
        shard: (rank, ranks): measure every ranks-th image only; `segshift.engine.metrics.merge` joins the parts.

    Raises:
        UserError: no labels, not one labelled pixel, a bad file, or a network of another number of classes.
    """
    check_predictors(predictors, domain.classes)
    device = device or torch.device("cpu")
    items = domain.items if limit is None else [domain.items[index] for index in spread(len(domain.items), limit)]
    items = items[shard[0] :: shard[1]]
    for net in predictors:
        net.to(device)
    classes = len(domain.classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    scores: list[ImageScore] = []
    for item, read in ahead(partial(_read, domain, size), items, workers):
        pair = read()
        with autocast(device, precision):
            logits = logits_at(predictors, as_input(pair.image, device), pair.label.shape, options)
        label = torch.from_numpy(pair.label).to(device)
        counts = confusion_matrix(class_ids(logits)[0], label, classes).cpu().numpy()
        confusion += counts
        scores.append(image_score(item.name, counts))
        if progress is not None:
            progress.advance()
    if shard[1] == 1 and not confusion.any():
        raise UserError(
            f"domain {domain.name!r}: not one pixel of {len(items)} labels belongs to a class",
            "labels with some of the classes",
            "run `segshift check` and look at the contact sheet and the class_map",
        )
    return Metrics(domain.classes.names, confusion, len(items), tuple(scores))


@dataclass(frozen=True)
class _Pair:
    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "H W"]


def _read(domain: Domain, size: tuple[int, int], item: Item) -> _Pair:
    # The label first: a domain without labels says so before anything is decoded.
    if not domain.labelled:
        truth_of(domain, item)
    image, original = load_resized(item.image, size)
    return _Pair(image, truth_of(domain, item, original))
