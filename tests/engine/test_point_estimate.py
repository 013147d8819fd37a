"""Estimates from points: exact where all is known, intervals that cover, honest about what is not there."""

from __future__ import annotations

import json
import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segshift.engine.metrics import iou_of
from segshift.engine.point_estimate import PointCounts, estimate, wilson
from segshift.engine.point_result import compared, gain
from segshift.engine.point_shares import shares
from segshift.errors import UserError


def counted(classes: tuple[str, ...], images: tuple[str, ...], hits: np.ndarray, areas: np.ndarray) -> PointCounts:
    """Counts with hits as a table (N, K, K)."""
    return PointCounts(classes, images, np.column_stack([np.argwhere(hits), hits[hits > 0]]), areas)


def world(random: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """True shares of the area (K,) and a model's rows (K, K): what pixels of a class are taken for."""
    share = 0.03 + (1 - 0.03 * classes) * random.dirichlet(np.ones(classes))
    right = random.uniform(0.4, 0.95, classes)
    rows = np.zeros((classes, classes))
    for c in range(classes):
        rows[c, np.arange(classes) != c] = (1 - right[c]) * random.dirichlet(np.full(classes - 1, 0.7))
    return share, rows + np.diag(right)


def sampled(random: np.random.Generator, share: np.ndarray, rows: np.ndarray, images: int) -> tuple[PointCounts, float]:
    """Images whose areas and whose rows vary about the world's, a point on a random pixel of each class; true mIoU."""
    classes, pixels = len(share), 2000
    hits = np.zeros((images, classes, classes), np.int64)
    areas = np.zeros((images, classes), np.int64)
    confusion = np.zeros((classes, classes), np.int64)
    there = random.random((images, classes)) > 0.3
    there[:, share.argmax()] = True
    true = random.dirichlet(20 * share, size=images) * there
    true = np.round(pixels * true / true.sum(axis=1, keepdims=True)).astype(int)
    for i, c in zip(*np.nonzero(true), strict=True):
        taken = random.multinomial(true[i, c], random.dirichlet(10 * rows[c] + 1e-9))
        confusion[c] += taken
        areas[i] += taken
        hits[i, c] = random.multinomial(1, taken / taken.sum())
    names = tuple("abcdefghijk"[:classes])
    return counted(names, tuple(map(str, range(images))), hits, areas), float(np.mean(iou_of(confusion)))


def test_intervals_cover_and_the_bias_is_small() -> None:
    """100 worlds of 4 to 6 classes, 80 to 160 images: 95 % intervals; the true figure is that of the images at hand."""
    random = np.random.default_rng(7)
    covered, off, classes_covered = [], [], []
    for trial in range(100):
        share, rows = world(random, 4 + trial % 3)
        counts, truth = sampled(random, share, rows, 80 + 20 * (trial % 5))
        found = estimate(counts, samples=200)
        assert found.miou_interval is not None
        covered.append(found.miou_interval[0] <= truth <= found.miou_interval[1])
        off.append(found.miou - truth)
        low, high = found.recall_interval.T
        classes_covered += list((low <= np.diagonal(rows)) & (np.diagonal(rows) <= high))
    # Three standard errors of 0.95 over 100 trials are 0.065.
    assert 0.885 <= np.mean(covered) <= 1
    assert 0.92 <= np.mean(classes_covered) <= 0.98
    assert abs(np.mean(off)) <= 0.01 + 3 * np.std(off) / 10
    assert abs(np.mean(off)) <= 0.015


def test_gains_cover() -> None:
    """Two models on the same images: the interval of the gain covers, and is narrower than those of the two."""
    random = np.random.default_rng(8)
    covered, narrower = [], []
    for _ in range(40):
        share, rows = world(random, 4)
        better = 0.7 * rows + 0.3 * np.eye(4)
        first, truth = sampled(np.random.default_rng(1), share, rows, 100)
        second, other = sampled(np.random.default_rng(1), share, better, 100)
        before, after = estimate(first, samples=200), estimate(second, samples=200)
        found, interval = gain(before, after)
        assert found == after.miou - before.miou
        assert interval is not None
        assert before.miou_interval is not None
        assert after.miou_interval is not None
        covered.append(interval[0] <= other - truth <= interval[1])
        widths = [high - low for low, high in (before.miou_interval, after.miou_interval)]
        narrower.append(interval[1] - interval[0] < sum(widths))
    assert np.mean(covered) >= 0.85
    assert np.mean(narrower) >= 0.95


@given(st.integers(2, 6), st.integers(0, 1000))
def test_exact_where_the_rows_are_exact(classes: int, seed: int) -> None:
    """With rows and predicted areas of one confusion matrix, its shares and IoUs come out."""
    share, rows = world(np.random.default_rng(seed), classes)
    confusion = np.round(1e6 * share[:, None] * rows).astype(np.int64)
    areas = confusion.sum(axis=0)
    counts = counted(tuple("abcdef"[:classes]), ("all",), confusion[None], areas[None])
    found = estimate(counts, samples=2)
    if np.linalg.cond(rows) < 50:
        np.testing.assert_allclose(found.share, confusion.sum(axis=1) / confusion.sum(), atol=2e-3)
        np.testing.assert_allclose(found.iou, iou_of(confusion), atol=5e-3)
    np.testing.assert_allclose(found.recall, np.diagonal(confusion) / confusion.sum(axis=1))
    assert found.miou_interval is None, "one image says nothing of others"


@given(
    hnp.arrays(float, (4, 5), elements=st.floats(0, 1)),
    hnp.arrays(float, 5, elements=st.floats(0, 1)),
)
def test_shares_are_the_least_squares_on_the_simplex(raw: np.ndarray, target: np.ndarray) -> None:
    rows = (raw + 1e-3) / (raw + 1e-3).sum(axis=1, keepdims=True)
    predicted = (target + 1e-3) / (target + 1e-3).sum()
    clicked = np.array([0, 1, 3, 4])

    def cost(share: np.ndarray) -> float:
        away = 1e-3 * (share - predicted[clicked])
        return float(np.sum((rows.T @ share - predicted) ** 2) + np.sum(away**2))

    found = shares(rows, predicted, clicked)
    assert (found >= 0).all()
    assert math.isclose(found.sum(), 1)
    random = np.random.default_rng(0)
    for other in [*np.eye(4), np.full(4, 0.25), *random.dirichlet(np.ones(4), 20)]:
        for step in (1.0, 0.1, 1e-3):
            # No feasible direction goes down.
            assert cost(found) <= cost((1 - step) * found + step * other) + 1e-7


def test_a_class_that_is_never_recognised_does_not_eat_another() -> None:
    """Rows that are alike leave the shares open: those nearest to the predicted ones are taken."""
    hits = np.zeros((50, 3, 3), np.int64)
    hits[:, 0, 0] = 1
    hits[:, 1, 1] = 1
    hits[:, 2, 1] = 1  # never predicted, always taken for class 1
    areas = np.tile([500, 500, 0], (50, 1))
    found = estimate(counted(("a", "b", "c"), tuple(map(str, range(50))), hits, areas), samples=20)
    np.testing.assert_allclose(found.share, [0.5, 0.5, 0], atol=1e-3)
    np.testing.assert_allclose(found.iou, [1, 1, 0], atol=2e-3)


def test_classes_without_points_and_images_without() -> None:
    hits = np.zeros((3, 3, 3), np.int64)
    hits[0, 0, 0] = hits[1, 0, 2] = 1
    areas = np.array([[60, 30, 10], [60, 30, 10], [80, 10, 10]])
    found = estimate(counted(("a", "b", "c"), ("0", "1", "2"), hits, areas), samples=50)
    assert (len(found.images), found.pointed) == (3, 2)
    assert found.recall[0] == 0.5
    assert np.isnan(found.recall[1:]).all()
    assert np.isnan(found.iou_interval[1:]).all()
    assert found.miou == found.iou[0]
    assert found.predicted.sum() == pytest.approx(1)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["classes"][1] == {
        "name": "b", "points": 0, "recall": None, "recall_interval": [None, None], "share": None,
        "predicted_share": pytest.approx(70 / 300), "iou": None, "iou_interval": [None, None],
    }  # fmt: skip
    assert "mIoU estimate" in found.table()
    assert "over 1 classes, from 2 points in 2 of 3 images" in found.table()


def test_one_image_with_points_has_no_interval() -> None:
    """Drawing the images anew would vary the areas of the others alone, and look all but sure."""
    hits = np.zeros((30, 3, 3), np.int64)
    hits[4] = [[3, 2, 0], [0, 2, 0], [0, 0, 1]]
    areas = np.random.default_rng(0).integers(90, 110, (30, 3))
    found = estimate(counted(("a", "b", "c"), tuple(map(str, range(30))), hits, areas), samples=20)
    assert found.miou_interval is found.point_miou_interval is None
    assert np.isnan(found.iou_interval).all()
    assert not np.isnan(found.recall_interval).any()
    assert gain(found, found) == (0, None)
    assert "nan" not in found.table()
    assert "[-" not in found.table()
    hits[9, 0, 0] = 1
    found = estimate(counted(("a", "b", "c"), tuple(map(str, range(30))), hits, areas), samples=20)
    assert found.miou_interval is not None
    assert np.isnan(found.iou_interval).tolist() == [[False, False], [True, True], [True, True]]


def test_point_miou_by_hand() -> None:
    # a is right in 3 of 4, b in 1 of 2; equal weight: a = .75 / (1 + .5), b = .5 / (1 + .25).
    hits = np.array([[[3, 1], [1, 1]]])
    found = estimate(counted(("a", "b"), ("0",), hits, np.array([[10, 10]])), samples=2)
    assert found.point_miou == pytest.approx((0.75 / 1.5 + 0.5 / 1.25) / 2)


def test_wilson_against_published_figures() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    low, high = wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()


def test_what_cannot_be_estimated_or_compared() -> None:
    random = np.random.default_rng(0)
    counts, _ = sampled(random, *world(random, 4), 20)
    with pytest.raises(ValueError, match="no points"):
        estimate(PointCounts(counts.classes, counts.images, counts.hits[:0], counts.areas))
    with pytest.raises(ValueError, match="areas"):
        estimate(PointCounts(counts.classes, counts.images, counts.hits[:, :2], counts.areas))
    whole = estimate(counts, samples=20)
    first = counts.hits[counts.hits[:, 0] < 9]
    part = estimate(PointCounts(counts.classes, counts.images[:9], first, counts.areas[:9]), samples=20)
    for one, other in combinations((whole, part), 2):
        with pytest.raises(ValueError, match="same images"):
            gain(one, other)
        with pytest.raises(UserError, match="x and y cannot be compared"):
            compared(one, other, ("x", "y"))
    text, content = compared(whole, whole, ("x", "y"))
    assert "mIoU of x against y, estimated: +0.0 [+0.0, +0.0] points" in text
    assert (content["gain"], content["gain_interval"]) == (0, [0, 0])


def test_the_same_twice() -> None:
    random = np.random.default_rng(0)
    counts, _ = sampled(random, *world(random, 4), 30)
    first, again = estimate(counts, samples=30), estimate(counts, samples=30)
    assert first.to_dict() == again.to_dict()
    np.testing.assert_array_equal(first.draws, again.draws)


def test_many_classes_and_images_need_no_table_of_all() -> None:
    """150 classes in 20 000 images: a table of them would be 3.6 GB, and one of all draws as much."""
    random, images, classes = np.random.default_rng(0), 20_000, 150
    areas = random.integers(1, 9, (images, classes))
    true = random.integers(0, classes, 300)
    said = np.where(np.arange(300) % 2, true, random.integers(0, classes, 300))
    hits = np.column_stack([random.integers(0, images, 300), true, said, np.ones(300, int)])
    names = tuple(map(str, range(classes)))
    tracemalloc.start()
    found = estimate(PointCounts(names, tuple(map(str, range(images))), hits, areas), samples=3)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert found.points.sum() == 300
    assert found.pointed == len(np.unique(hits[:, 0]))
