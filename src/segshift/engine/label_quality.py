"""How often pseudo-labels are right, on images whose truth is known. Training sees nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segshift.data.domains import Domain
from segshift.data.images import load_resized, resize_nearest
from segshift.engine.ahead import ahead
from segshift.engine.choosing import image_score
from segshift.engine.evaluate import truth_of
from segshift.engine.labelling import Labeller
from segshift.engine.progress import Bar
from segshift.types import IGNORE


@dataclass
class _Counts:
    """Pixels by true class (rows: K and, last, void) and label (columns: K and, last, none)."""

    pixels: Int64[np.ndarray, "K1 K1"]

    @property
    def labelled(self) -> int:
        return int(self.pixels[:, :-1].sum())

    @property
    def known(self) -> Int64[np.ndarray, "K K"]:
        """Those that have a label and a truth."""
        return self.pixels[:-1, :-1]

    def coverage(self, total: int) -> float:
        return self.labelled / max(1, total)

    @property
    def precision(self) -> float | None:
        return _share(int(np.trace(self.known)), int(self.known.sum()))

    def by_class(self) -> list[dict[str, float | None] | None]:
        """Of each class: the share of its true pixels that have a label, and of the labels of it that are right."""
        truth, labelled = self.pixels[:-1].sum(axis=1), self.known.sum(axis=1)
        given, right = self.known.sum(axis=0), np.diag(self.known)
        return [
            {"coverage": _share(int(labelled[k]), int(truth[k])), "precision": _share(int(right[k]), int(given[k]))}
            if truth[k] or given[k]
            else None
            for k in range(len(right))
        ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def label_quality(
    labeller: Labeller,
    thresholds: Float[Tensor, " K"],
    easy_from: float | None,
    domain: Domain,
    *,
    workers: int = 1,
    progress: Bar | None = None,
) -> dict[str, Any]:
    """Coverage and precision of the labels by the thresholds alone, after each voting pass, and of full labels.

    Args:
        labeller: that made the labels.
        thresholds: that it found.
        easy_from: lowest score of an easy image; None: images were not split, or none is easy.
        domain: with labels; they are brought to the working size (nearest).
        workers: threads that decode ahead.
        progress: told of every image.

    Returns:
        The content of quality.json but its fingerprint: `rows` with name, coverage (share of all pixels that have a
        label), precision (share of the labels on pixels with truth that are right; None without any), `added` (the
        same of what this pass added) and `classes`.

    Raises:
        UserError: a file cannot be used.
    """
    classes, voting = len(domain.classes), labeller.settings.voting
    stages = [np.zeros((classes + 1, classes + 1), np.int64) for _ in range(1 + (voting.passes if voting else 0))]
    full, total = np.zeros((classes + 1, classes + 1), np.int64), 0
    items = ahead(lambda item: load_resized(item.image, labeller.size), domain.items, workers)
    for item, read in items:
        pixels, original = read()
        truth = torch.from_numpy(resize_nearest(truth_of(domain, item, original), labeller.size)).long()
        labels = labeller.label(pixels, thresholds)
        for counts, stage in zip(stages, labels.stages, strict=True):
            counts += _crossed(truth, stage.cpu(), classes)
        score = image_score(labels.predicted, labels.above, thresholds)
        if easy_from is not None and float(score) >= easy_from:
            full += _crossed(truth, labels.full.cpu(), classes)
        total += truth.numel()
        if progress is not None:
            progress.advance()
    rows = [_row(_name(i), stage, stages[i - 1] if i else None, total) for i, stage in enumerate(stages)]
    if easy_from is not None:
        rows.append(_row("full labels of easy images", full, None, total))
    return {"domain": str(domain.settings.root), "images": len(domain), "rows": rows}


def _crossed(truth: Int64[Tensor, "h w"], labels: Int64[Tensor, "h w"], classes: int) -> Int64[np.ndarray, "K1 K1"]:
    rows = torch.where(truth == IGNORE, classes, truth)
    columns = torch.where(labels == IGNORE, classes, labels)
    side = classes + 1
    counts: Int64[np.ndarray, "K1 K1"] = (rows * side + columns).flatten().bincount(minlength=side**2).numpy()
    return counts.reshape(side, side)


def _name(index: int) -> str:
    return f"voting pass {index}" if index else "thresholds"


def _row(name: str, pixels: np.ndarray, before: np.ndarray | None, total: int) -> dict[str, Any]:
    counts, added = _Counts(pixels), None
    if before is not None:
        # Voting labels pixels that had no label and changes none, so the difference is what it added; the pixels
        # without label (last column) have no part in either figure.
        gained = _Counts(pixels - before)
        added = {"coverage": gained.coverage(total), "precision": gained.precision}
    return {
        "name": name,
        "coverage": counts.coverage(total),
        "precision": counts.precision,
        "added": added,
        "classes": counts.by_class(),
    }
