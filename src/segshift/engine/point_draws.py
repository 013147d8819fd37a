"""What other images and clicks could have shown: draws of a model's IoUs, for the intervals of `evaluate --points`.

A Bayesian bootstrap (Rubin 1981): in each draw every image has an exponential weight. That alone is blind to what no
click has shown: of a class whose points are all right, all draws say so too. So each class has one image more than was
clicked, and what it shows is drawn from a Dirichlet distribution of weight 1: right as often as halfway between a coin
and the average of the model's clicked classes, else what the model predicts in the images with the class. With one
click an image, a class that was right in all n has, in the draws, a share right of Beta(n + b, 1 - b), 1/4 < b <= 3/4
(Jeffreys' has b = 1/2). n counts images: clicks in one image tell little of others, however many they are.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from segshift.engine.point_shares import equal_ious, ious, likely_shares

Floats = NDArray[np.float64]

_NUMBERS = 2**20
"""Numbers that a table of some draws may have: those of all draws would be GBs with many classes or images."""


def drawn(
    hits: NDArray[np.int64], areas: NDArray[np.int64], clicked: NDArray[np.intp], samples: int
) -> tuple[Floats, Floats]:
    """Draws of how good a model is; the random numbers are fixed.

    The weights of the images and the likely shares are drawn alike for all models. What the image more shows is not:
    two models that are right at all the same clicks need not be right at the same pixels that nobody clicked.

    Args:
        hits: (M, 4), areas: (N, K): as of `segshift.engine.point_estimate.PointCounts`, all with at least one point.
        clicked: (C,) the classes that have points.
        samples: S draws.

    Returns:
        IoUs (S, C), and the mean IoU if all classes had the same area (S,).
    """
    number, classes = areas.shape
    image, true, said, many = hits.T
    row = np.searchsorted(clicked, true)
    images, wrong = _by_class(image, row, areas, clicked)
    points = np.bincount(row, many)
    average = float((np.bincount(row, many * (true == said)) / points).mean())
    cells, pixels = row * classes + said, areas.astype(np.float64)
    alike, likely, own = (
        np.random.default_rng(seed) for seed in (0, 1, zlib.crc32(areas.tobytes(), zlib.crc32(hits.tobytes())))
    )
    at_once = max(1, _NUMBERS // max(number, len(clicked) * classes))
    found: list[tuple[Floats, Floats]] = []
    for first in range(0, samples, at_once):
        count = min(at_once, samples - first)
        weights = alike.standard_exponential((count, number))
        # By draw: a table of all images, classes and predictions would be large, and nearly empty.
        counted = [np.bincount(cells, many * weight[image], wrong.size) for weight in weights]
        rows = np.reshape(counted, (count, *wrong.shape))
        _add_an_image(rows, points / images, clicked, (average + 0.5) / 2, wrong, own)
        rows /= rows.sum(axis=2, keepdims=True)
        predicted = weights @ pixels
        predicted /= predicted.sum(axis=1, keepdims=True)
        share = likely_shares(rows, predicted, clicked, images, likely)
        found.append((ious(rows, predicted, clicked, share), equal_ious(rows, clicked).mean(axis=1)))
    each, equal = zip(*found, strict=True)
    return np.concatenate(each), np.concatenate(equal)


def _by_class(
    image: NDArray[np.int64], row: NDArray[np.intp], areas: NDArray[np.int64], clicked: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Floats]:
    """How many images have points of each class (C,), and how often each other class is predicted there (C, K)."""
    images, wrong = np.zeros(len(clicked), dtype=np.intp), np.zeros((len(clicked), areas.shape[1]))
    for c in range(len(clicked)):
        there = np.unique(image[row == c])
        images[c] = len(there)
        wrong[c] = areas[there].sum(axis=0) + 1.0  # a pixel more: where the model predicts the class and nothing else
        wrong[c, clicked[c]] = 0
    return images, wrong


def _add_an_image(
    rows: Floats,
    points: Floats,
    clicked: NDArray[np.intp],
    right: float,
    wrong: Floats,
    random: np.random.Generator,
) -> None:
    """Add to rows (S, C, K), weighted counts of points, those of one image more of each class.

    Args:
        rows: are changed.
        points: (C,) points that an image with the class has on average.
        clicked: (C,) the rows' classes.
        right: how often the image more is right.
        wrong: (C, K) how often it shows which other class.
        random: what to draw with.
    """
    count, number, classes = rows.shape
    up_to = wrong.cumsum(axis=1)
    share = random.random((count, number)) * up_to[:, -1]
    other = np.stack([np.searchsorted(up_to[c], share[:, c], side="right") for c in range(number)], axis=1)
    draw, row = np.indices((count, number))
    rows[draw, row, clicked] += points * random.standard_gamma(right, (count, number))
    # Of one class alone there is no other, and `wrong` is 0.
    rows[draw, row, np.minimum(other, classes - 1)] += points * random.standard_gamma(1 - right, (count, number))


def intervals(draws: Floats, estimates: Floats | float, level: float) -> Floats:
    """From draws (S, ...) of estimates (...): the middle `level` of them (..., 2), which reaches to the estimate.

    With few points most draws can lie on one side of it: where all points are right, no draw can be better.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([np.minimum(low, estimates), np.maximum(high, estimates)], axis=-1)


def interval(draws: Floats, estimate: float, level: float, pointed: int) -> tuple[float, float] | None:
    """Of draws (S,), None where fewer than two images have points: one says nothing of others."""
    if pointed < 2:
        return None
    low, high = intervals(draws, estimate, level).tolist()
    return low, high
