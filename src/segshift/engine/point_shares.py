"""How large each class is and its IoU, from what its pixels are taken for and what the model predicts on all images.

What the equations are: `segshift.engine.point_estimate`. One solution has no freedom left but where rows are alike
(`shares`, of the estimate itself); many at once, of rows that are themselves uncertain, are `likely_shares`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SUM_WEIGHT = 100.0
"""Weight of the equation that the shares add up to 1, against those of the single classes."""

_NEAR_WEIGHT = 1e-3
"""Weight of the equations that the shares are the predicted ones: they decide only where the others do not (a class
that is never recognised, and taken for what another is taken for)."""

_SPREADS, _LEAST = (1.0, 100.0), 0.005
"""How far a share may lie from the predicted one, in `likely_shares`: as much again and half a percent of the area, or
anywhere. Which of the two is right is not known, so half of the draws take each. Measured with CamVid's points: with
the first alone intervals are a third narrower and hold the sampling error as well, but the mIoU by masks far less often
(clicks are biased: docs/weak_labels.md); with the second alone they are too low, and hold less."""

_EXACT = 1e-6
"""Variance that the equations of `likely_shares` have at least: of shares of a thousandth."""


def shares(rows: Floats, predicted: Floats, clicked: NDArray[np.intp]) -> Floats:
    """The classes' shares of the area that best explain the predicted ones (see the module's text).

    Where two rows are alike, their shares are not determined singly; of the solutions the one nearest to the predicted
    shares is taken.

    Args:
        rows: (C, K), each the distribution of the predictions at points of a class.
        predicted: (K,), sums to 1.
        clicked: (C,) which of the K classes the rows are of.

    Returns:
        (C,) non-negative, summing to 1.
    """
    count = len(rows)
    matrix = np.vstack([rows.T, _NEAR_WEIGHT * np.eye(count), np.full(count, _SUM_WEIGHT)])
    target = np.concatenate([predicted, _NEAR_WEIGHT * predicted[clicked], [_SUM_WEIGHT]])
    found = _non_negative(matrix, target)
    return np.asarray(found / found.sum())


def _non_negative(matrix: Floats, target: Floats) -> Floats:
    """The non-negative x with the least |matrix x - target|: Lawson and Hanson's active sets (1974, chapter 23)."""
    count = matrix.shape[1]
    free = np.zeros(count, dtype=bool)
    x = np.zeros(count)
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


def likely_shares(
    rows: Floats, predicted: Floats, clicked: NDArray[np.intp], images: NDArray[np.intp], random: np.random.Generator
) -> Floats:
    """Shares of many draws at once, with each equation as heavy as the rows make it sure.

    With few points the equations alone swing wildly: where rows are off by a little, one class becomes nothing and
    another twice as large, so that IoUs are too low on average. Here, an equation's weight is one over the variance
    that the binomial variance of the rows gives it. In half of the draws a share is moreover expected near the
    predicted one (`_SPREADS`): that decides where there are few points, and counts for less and less with more.

    Args:
        rows: (S, C, K); predicted: (S, K); clicked: (C,): as of `shares`, of S draws.
        images: (C,) how many images have points of a class.
        random: what is expected is drawn with it, whatever the rows.

    Returns:
        (S, C) non-negative, summing to 1.
    """
    own, each = predicted[:, clicked], np.arange(len(clicked))
    weight = 1 / (np.einsum("sc,sck->sk", own**2 / (images + 1), rows * (1 - rows)) + _EXACT)
    spread = random.choice(_SPREADS, (len(rows), 1)) * (own + _LEAST)
    expected = own * np.exp(random.standard_normal(own.shape))
    # Normal equations; that of the sum is heavier than any.
    weighted, total = rows * weight[:, None], 100 * weight.max(axis=1)
    matrix = weighted @ rows.transpose(0, 2, 1) + total[:, None, None]
    matrix[:, each, each] += spread**-2
    target = np.einsum("sck,sk->sc", weighted, predicted) + expected / spread**2 + total[:, None]
    found = _all_non_negative(matrix, target)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _all_non_negative(matrix: Floats, target: Floats) -> Floats:
    """(S, C): for each s the x >= 0 with matrix x - target >= 0 and 0 where x > 0; matrix (S, C, C) positive definite.

    Block principal pivoting (Portugal, Judice and Vicente 1994): variables of the wrong sign change sides, all of them
    in the first rounds, afterwards the last one alone, which ends (Murty 1974).
    """
    count = target.shape[1]
    free = np.ones(target.shape, dtype=bool)
    x = np.zeros(target.shape)
    left, eye = np.arange(len(target)), np.eye(count, dtype=bool)
    for turn in range(10 + 10 * count):
        some = free[left]
        both = some[:, :, None] & some[:, None]
        system = np.where(both, matrix[left], 0.0) + (eye & ~some[:, None])
        found = np.linalg.solve(system, np.where(some, target[left], 0.0)[:, :, None])[:, :, 0]
        x[left] = found
        slope = (matrix[left] @ found[:, :, None])[:, :, 0] - target[left]
        size = np.abs(target[left]).max(axis=1, keepdims=True)
        wrong = np.where(some, found < -1e-12, slope < -1e-9 * size)
        if turn >= 10:
            wrong &= np.arange(count) == (count - 1 - wrong[:, ::-1].argmax(axis=1))[:, None]
        free[left] ^= wrong
        left = left[wrong.any(axis=1)]
        if not len(left):
            break
    return np.maximum(x, 0)


def ious(rows: Floats, predicted: Floats, clicked: NDArray[np.intp], share: Floats) -> Floats:
    """IoU of the clicked classes: rows (..., C, K), predicted (..., K), share (..., C) -> (..., C)."""
    own = predicted[..., clicked]
    # Not more can be right than is there, nor than is predicted: the equations hold only nearly.
    right = np.minimum(share * rows[..., np.arange(len(clicked)), clicked], np.minimum(share, own))
    union = share + own - right
    return np.divide(right, union, out=np.zeros_like(union), where=union > 0)


def equal_ious(rows: Floats, clicked: NDArray[np.intp]) -> Floats:
    """IoU of the clicked classes where all have the same area: rows (..., C, K) -> (..., C)."""
    right = rows[..., np.arange(len(clicked)), clicked]
    return np.asarray(right / (1 + rows[..., clicked].sum(axis=-2) - right))
