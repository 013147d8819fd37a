"""Features of a network at a few points of labelled or unlabelled images, and how compact the classes are in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from segshift.data.domains import Domain
from segshift.data.images import load_resized, resize_nearest
from segshift.engine.ahead import ahead
from segshift.engine.evaluate import truth_of
from segshift.engine.producing import Answers
from segshift.engine.progress import Bar
from segshift.errors import UserError

FEWEST = 10
"""Points of a class below which its mean says little: such a class is left out of the measure and the picture."""

SEED = 0
"""Of the choice of points: the same ones for every network and on every call."""


@dataclass(frozen=True)
class Points:
    """N places on the grid that networks answer on.

    Attributes:
        image: index in the domain.
        row, column: on the grid of `grid` = (h, w) cells.
        label: train id of the class they were chosen for.
    """

    image: Int64[np.ndarray, " N"]
    row: Int64[np.ndarray, " N"]
    column: Int64[np.ndarray, " N"]
    label: Int64[np.ndarray, " N"]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Compactness:
    """How far apart the points of a class lie, against how far apart the classes do; lower is more compact.

    Attributes:
        value: mean of `by_class`; None where fewer than two classes count.
        by_class: of each of the K classes; None for those that do not count.
        nearest: share of a class's points that lie nearer to its mean than to that of any other, averaged over the
            classes; None as `value`.
    """

    value: float | None
    by_class: tuple[float | None, ...]
    nearest: float | None


def compactness(
    features: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, " N"], classes: int, fewest: int = FEWEST
) -> Compactness:
    """Mean distance of a class's points to their mean, over the mean distance between two classes' means.

    With m_k the mean of the n_k points x of class k, and C the classes that have at least `fewest` points:

        within_k = 1 / n_k sum_x |x - m_k|          between = mean over the pairs k < l of C of |m_k - m_l|
        by_class_k = within_k / between             value = mean over C of by_class_k

    Distances are Euclidean, in the D dimensions that are given. Every class counts the same, however many points it
    has. Turning, mirroring, moving and scaling the features changes nothing.

    Args:
        features: (N, D).
        labels: (N,) train ids; others than 0 … K - 1 are left out.
        classes: K.
        fewest: points that a class needs to count.
    """
    count = np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
    counting = np.flatnonzero(count >= max(1, fewest))
    nothing = Compactness(None, (None,) * classes, None)
    if len(counting) < 2:
        return nothing
    values = features.astype(np.float64)
    means = np.stack([values[labels == k].mean(axis=0) for k in counting])
    # From each point of a class to the means of all classes.
    away = [np.stack([_norms(values[labels == k] - mean) for mean in means], axis=1) for k in counting]
    within = np.array([distances[:, place].mean() for place, distances in enumerate(away)])
    nearest = [(distances.argmin(axis=1) == place).mean() for place, distances in enumerate(away)]
    first, second = np.triu_indices(len(counting), 1)
    between = _norms(means[first] - means[second]).mean()
    # Means that are equal to rounding: there is no distance to compare with.
    if between <= 1e-12 * max(float(np.abs(values).max()), np.finfo(np.float64).tiny):
        return nothing
    by_class: list[float | None] = [None] * classes
    for k, distance in zip(counting, within, strict=True):
        by_class[int(k)] = float(distance / between)
    return Compactness(float((within / between).mean()), tuple(by_class), float(np.mean(nearest)))


def _norms(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
    lengths: Float[np.ndarray, " N"] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def at_cells(ids: UInt8[np.ndarray, "H W"], grid: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The ids at the centres of a grid's (h, w) cells; the outer ones lie on corner pixels, as in `ops.upsample`."""
    rows, columns = (
        np.rint(np.linspace(0, side - 1, cells) if cells > 1 else np.array([(side - 1) / 2])).astype(np.int64)
        for side, cells in zip(ids.shape, grid, strict=True)
    )
    return np.ascontiguousarray(ids[rows[:, None], columns[None]])


def ids_on_grid(
    answers: Answers, domain: Domain, images: Sequence[int], size: tuple[int, int], workers: int = 1
) -> UInt8[np.ndarray, "I h w"]:
    """Train ids at the cells of the network's grid: the truth where the domain has labels, else what the network says.

    Args:
        answers: the network.
        domain: whose images.
        images: indexes of I of them, at least one.
        size: (w, h) of the images that enter the network.
        workers: threads that read ahead.

    Raises:
        UserError: a file cannot be used.
    """
    grid = answers(np.zeros((size[1], size[0], 3), np.uint8)).logits.shape[-2:]

    def read(index: int) -> np.ndarray:
        item = domain.items[index]
        if domain.labelled:
            return at_cells(resize_nearest(truth_of(domain, item), size), (grid[0], grid[1]))
        return load_resized(item.image, size)[0]

    found = []
    for _, wait in ahead(read, images, workers):
        content = wait()
        if not domain.labelled:
            content = answers(content).logits[0].argmax(dim=0).cpu().numpy().astype(np.uint8)
        found.append(content)
    return np.stack(found)


def choose_points(
    ids: UInt8[np.ndarray, "I h w"], images: Sequence[int], classes: int, budget: int, seed: int = SEED
) -> Points:
    """Points of all classes, as many of each as there are or as the budget allows; by image, row and column.

    Args:
        ids: train ids of I images on the grid; what is no class is left out, and so are classes with fewer than
            `FEWEST` cells.
        images: their indexes in the domain.
        classes: K.
        budget: points in all, at most (but one of each class).
        seed: of the random choice.
    """
    flat = ids.reshape(-1)
    count = np.bincount(flat, minlength=256)[:classes]
    known = [int(k) for k in np.flatnonzero(count >= FEWEST)]
    share = _share([int(count[k]) for k in known], budget)
    random = np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(flat == k))[:share] for k in known]
    places = np.sort(np.concatenate([*chosen, np.empty(0, np.int64)])).astype(np.int64)
    image, row, column = np.unravel_index(places, ids.shape)
    return Points(
        np.asarray(images, np.int64)[image],
        row.astype(np.int64),
        column.astype(np.int64),
        flat[places].astype(np.int64),
        (ids.shape[1], ids.shape[2]),
    )


def _share(counts: Sequence[int], budget: int) -> int:
    """The most points of each class with which all of them stay within the budget; at least one."""
    left = budget
    for done, count in enumerate(sorted(counts)):
        share = left // (len(counts) - done)
        if count > share:
            return max(1, share)
        left -= count
    return max([*counts, 1])


def features_at(
    answers: Answers, domain: Domain, points: Points, size: tuple[int, int], workers: int = 1, bar: Bar | None = None
) -> tuple[Float[np.ndarray, "N D"], Int64[np.ndarray, " N"]]:
    """A network's features at points of a domain's images, and the class that it says there.

    Args:
        answers: the network.
        domain: whose images.
        points: on the network's grid or another one; there, its nearest cells are taken.
        size: (w, h) of the images that enter the network.
        workers: threads that decode ahead.
        bar: told of every image.

    Raises:
        UserError: an image cannot be read, or the network's features are not finite.
    """
    features: list[np.ndarray] = []
    said: list[np.ndarray] = []
    images = [int(image) for image in np.unique(points.image)]
    for image, wait in ahead(lambda index: load_resized(domain.items[index].image, size)[0], images, workers):
        answer = answers(wait())
        if not torch.isfinite(answer.features).all():
            raise UserError(
                f"the network's features of {domain.items[image].image} are not finite (NaN or infinite)",
                "finite features",
                "its training diverged or its file is damaged: use an earlier stage, or precision fp32",
            )
        here = points.image == image
        height, width = answer.features.shape[-2:]
        rows = _nearest(points.row[here], points.grid[0], height)
        columns = _nearest(points.column[here], points.grid[1], width)
        features.append(answer.features[0][:, rows, columns].T.cpu().numpy())
        said.append(answer.logits[0][:, rows, columns].argmax(dim=0).cpu().numpy())
        if bar is not None:
            bar.advance()
    return np.concatenate(features), np.concatenate(said)


def _nearest(index: Int64[np.ndarray, " N"], cells: int, others: int) -> Int64[np.ndarray, " N"]:
    """Cells of a side of `others` cells nearest to those of a side of `cells`; the outer ones lie on each other."""
    if cells == others:
        return index
    place = index / (cells - 1) if cells > 1 else np.full(len(index), 0.5)
    return np.rint(place * (others - 1)).astype(np.int64)


def domain_gap(
    features: Float[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    other: Float[np.ndarray, "M D"],
    other_labels: Int64[np.ndarray, " M"],
    classes: int,
) -> float | None:
    """Mean distance between a class's means in two domains, over the mean distance between two classes' means.

    The latter is that of the first domain, over the classes that both domains have `FEWEST` points of; None where
    these are fewer than two. Lower: the classes lie where the other domain has them.
    """
    both = [k for k in range(classes) if min((labels == k).sum(), (other_labels == k).sum()) >= FEWEST]
    if len(both) < 2:
        return None
    here = np.stack([features[labels == k].mean(axis=0, dtype=np.float64) for k in both])
    there = np.stack([other[other_labels == k].mean(axis=0, dtype=np.float64) for k in both])
    first, second = np.triu_indices(len(both), 1)
    between = float(_norms(here[first] - here[second]).mean())
    return float(_norms(here - there).mean()) / between if between > 0 else None
