"""Networks' kept answers counted image by image: what each says on the whole, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, Float64, Int64, UInt8

from segshift.engine.progress import Bar
from segshift.engine.selection import mean_entropy, neighbourhood_density

POINTS = 4096
"""Points in all whose neighbourhoods are looked at: as many of each image, at places that are the same for every
network."""

Answers = Float16[np.ndarray, "I K h w"]


@dataclass(frozen=True)
class Look:
    """What a network says of all images together.

    Attributes:
        histogram: (K,) shares of the predicted classes.
        mean: (K,) mean probability of each class.
        entropy: mean entropy of a point over log K.
        density: soft neighbourhood density of `POINTS` points, in nats.
    """

    histogram: Float64[np.ndarray, " K"]
    mean: Float64[np.ndarray, " K"]
    entropy: float
    density: float


def look(answers: Answers, seed: int) -> Look:
    """Count a network's answers; memory is that of one image and of `POINTS` points.

    Args:
        answers: log p, as `segshift.engine.answers` keeps them.
        seed: of the choice of points.
    """
    images, classes, points = len(answers), answers.shape[1], answers.shape[2] * answers.shape[3]
    each = min(points, max(1, POINTS // images))
    counts, mean, entropy = np.zeros(classes, np.int64), np.zeros(classes), 0.0
    chosen = []
    for index in range(images):
        log_p = _log_p(answers, index)
        p = log_p.exp()
        counts += np.bincount(log_p.argmax(dim=1).numpy(), minlength=classes)
        mean += p.sum(dim=0, dtype=torch.float64).numpy()
        entropy += mean_entropy(log_p)
        chosen.append(p[np.sort(np.random.default_rng([seed, index]).choice(points, each, replace=False))])
    return Look(counts / counts.sum(), mean / mean.sum(), entropy / images, neighbourhood_density(torch.cat(chosen)))


def _log_p(answers: Answers, index: int) -> torch.Tensor:
    """(N, K) float32 of one image, each row renormalised: float16 keeps three digits."""
    kept = torch.from_numpy(np.ascontiguousarray(answers[index]).astype(np.float32))
    return kept.flatten(1).T.log_softmax(dim=1)


def _ids(answers: Answers, index: int) -> UInt8[np.ndarray, " N"]:
    ids: UInt8[np.ndarray, " N"] = np.asarray(answers[index]).argmax(axis=0).astype(np.uint8).ravel()
    return ids


def _counts(first: np.ndarray, second: np.ndarray, classes: int) -> Int64[np.ndarray, "K K"]:
    pairs = np.bincount(first.astype(np.int64) * classes + second, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def confusion(first: Answers, second: Answers) -> Int64[np.ndarray, "K K"]:
    """Points by the class that one network says (rows) and that another says (columns)."""
    classes = first.shape[1]
    total = np.zeros((classes, classes), np.int64)
    for index in range(len(first)):
        total += _counts(_ids(first, index), _ids(second, index), classes)
    return total


def against_the_others(
    answers: Sequence[Answers], members: Sequence[bool], bar: Bar | None = None
) -> list[Int64[np.ndarray, "K K"] | None]:
    """For each network, points by the class that the mean probability of the other members says (rows) and by its own.

    Without itself: else a network that nobody agrees with would agree with its own vote.

    Args:
        answers: of the networks, on the same images and grid.
        members: which of them have a vote.
        bar: told of every image.

    Returns:
        (K, K) counts; None where no other member is left.
    """
    classes = answers[0].shape[1]
    voters = [sum(members) - int(member) for member in members]
    totals = [np.zeros((classes, classes), np.int64) for _ in answers]
    for index in range(len(answers[0])):
        each = [_log_p(kept, index).exp().double() for kept in answers]
        whole = sum((p for p, member in zip(each, members, strict=True) if member), torch.zeros_like(each[0]))
        for place, (p, member) in enumerate(zip(each, members, strict=True)):
            if voters[place]:
                others = (whole - p if member else whole).argmax(dim=1).numpy()
                totals[place] += _counts(others, _ids(answers[place], index), classes)
        if bar is not None:
            bar.advance()
    return [total if count else None for total, count in zip(totals, voters, strict=True)]
