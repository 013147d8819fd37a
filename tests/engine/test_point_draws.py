"""Intervals of estimates from points: as wide as they must be with few points, and where points show nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_point_estimate import counted, sampled, world

from segshift.engine.point_draws import drawn
from segshift.engine.point_estimate import PointCounts, estimate
from segshift.engine.point_result import PointEstimate, gain
from segshift.engine.point_shares import _all_non_negative, _non_negative, likely_shares


def faultless(images: int, clicks: int = 1, areas: tuple[int, int] = (700, 300)) -> PointEstimate:
    """Of two classes whose every point is right."""
    hits = np.tile(clicks * np.eye(2, dtype=np.int64), (images, 1, 1))
    return estimate(counted(("a", "b"), tuple(map(str, range(images))), hits, np.tile(areas, (images, 1))))


def width(found: PointEstimate) -> float:
    assert found.miou_interval is not None
    return found.miou_interval[1] - found.miou_interval[0]


def test_a_class_that_is_right_at_all_points_is_not_sure() -> None:
    """A bootstrap of the images alone gives [1, 1]: in no draw is a point wrong."""
    few, more = faultless(5), faultless(50)
    assert few.iou.tolist() == more.iou.tolist() == pytest.approx([1, 1], abs=1e-6)
    for found in (few, more):
        np.testing.assert_allclose(found.iou_interval[:, 1], 1, atol=1e-6)
        assert found.point_miou_interval is not None
        assert found.point_miou_interval[0] < 1
    assert 0.1 < few.iou_interval[:, 0].min() < 0.75
    assert 0.85 < more.iou_interval[:, 0].min() < 0.99
    assert width(few) > 3 * width(more) > 0.01
    # Points of one image say little of others: more of them in each image make nothing surer.
    assert width(faultless(5, clicks=40)) > 0.6 * width(few)


def test_a_class_that_is_wrong_at_all_points_is_not_sure() -> None:
    hits = np.tile(np.array([[1, 0], [1, 0]]), (12, 1, 1))
    found = estimate(counted(("a", "b"), tuple("abcdefghijkl"), hits, np.tile([800, 200], (12, 1))))
    assert found.iou[1] == 0
    assert found.iou_interval[1, 0] == 0
    assert 0.02 < found.iou_interval[1, 1] < 0.5


def test_a_class_in_one_image_makes_the_mean_unsure() -> None:
    hits = np.tile(np.diag([1, 1, 0]), (200, 1, 1))
    areas = np.tile([600, 300, 100], (200, 1))
    names = tuple(map(str, range(200)))
    without = estimate(counted(("a", "b", "c"), names, hits, areas))
    hits[7, 2, 2] = 1
    found = estimate(counted(("a", "b", "c"), names, hits, areas))
    assert np.isnan(found.iou_interval[2]).all()
    assert width(found) > 0.1 > 3 * width(without)


def test_few_images_and_classes_that_are_nearly_always_right_or_wrong() -> None:
    """By a bootstrap of the images alone, 76 % of the classes' intervals held here."""
    random = np.random.default_rng(5)
    means, classes = [], []
    for _ in range(60):
        share, rows = world(random, 6)
        right = random.beta(0.4, 0.3, 6).clip(0.01, 0.99)
        wrong = rows * (1 - np.eye(6))
        rows = wrong / wrong.sum(axis=1, keepdims=True) * (1 - right)[:, None] + np.diag(right)
        counts, _ = sampled(random, share, rows, 10)
        found = estimate(counts, samples=200)
        # True is what holds in all images, not in these ten; classes are absent from some, as `sampled` has it.
        there = random.random((2000, 6)) > 0.3
        there[:, share.argmax()] = True
        areas = random.dirichlet(20 * share, size=2000) * there
        total = (areas / areas.sum(axis=1, keepdims=True)).mean(axis=0)
        true = total * right / (total + total @ rows - total * right)
        assert found.miou_interval is not None
        means.append(found.miou_interval[0] <= true.mean() <= found.miou_interval[1])
        low, high = found.iou_interval.T
        classes += list((low <= true) & (true <= high))
    # Two standard errors below 0.95 are 0.89 of 60, and 0.93 of 360.
    assert np.mean(means) >= 0.89
    assert np.mean(classes) >= 0.92


def test_two_models_that_are_right_at_all_clicks_are_not_equally_good() -> None:
    first, second = faultless(8), faultless(8, areas=(650, 350))
    found, ends = gain(first, second)
    assert found == pytest.approx(0, abs=1e-6)
    assert ends is not None
    assert ends[0] < -0.02
    assert ends[1] > 0.02
    assert gain(first, faultless(8)) == (0, (0, 0))


def test_the_estimate_is_in_its_interval() -> None:
    random = np.random.default_rng(2)
    for images in (2, 3, 5, 8) * 5:
        counts, _ = sampled(random, *world(random, 5), images)
        found = estimate(counts, samples=40)
        assert found.miou_interval is not None
        assert found.point_miou_interval is not None
        assert found.miou_interval[0] <= found.miou <= found.miou_interval[1]
        assert found.point_miou_interval[0] <= found.point_miou <= found.point_miou_interval[1]
        known = ~np.isnan(found.iou_interval[:, 0])
        assert (found.iou_interval[known, 0] <= found.iou[known]).all()
        assert (found.iou[known] <= found.iou_interval[known, 1]).all()


def test_images_weigh_the_same_for_all_models_and_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws in parts are those of one go, up to what the image more shows."""
    random = np.random.default_rng(1)
    counts, _ = sampled(random, *world(random, 4), 400)
    clicked = np.arange(4)
    whole, _ = drawn(counts.hits, counts.areas, clicked, 30)
    monkeypatch.setattr("segshift.engine.point_draws._NUMBERS", 7 * 400)
    parts, _ = drawn(counts.hits, counts.areas, clicked, 30)
    assert parts.shape == (30, 4)
    assert np.corrcoef(whole.mean(axis=1), parts.mean(axis=1))[0, 1] > 0.8


@given(st.integers(1, 8), st.integers(0, 10_000))
def test_non_negative_solutions_of_many_at_once(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    factors = random.normal(size=(5, count + 2, count))
    targets = random.normal(size=(5, count + 2))
    matrix = factors.transpose(0, 2, 1) @ factors + 1e-3 * np.eye(count)
    found = _all_non_negative(matrix, np.einsum("sik,si->sk", factors, targets))
    for factor, target, one in zip(factors, targets, found, strict=True):
        more = np.vstack([factor, np.sqrt(1e-3) * np.eye(count)])
        np.testing.assert_allclose(one, _non_negative(more, np.r_[target, np.zeros(count)]), atol=1e-6)


def test_likely_shares_with_many_images_solve_the_equations() -> None:
    random = np.random.default_rng(4)
    share, rows = world(random, 5)
    rows, many = np.tile(rows, (40, 1, 1)), np.full(5, 10**9)
    found = likely_shares(rows, np.tile(share @ rows[0], (40, 1)), np.arange(5), many, random)
    np.testing.assert_allclose(found, np.tile(share, (40, 1)), atol=1e-3)


def test_one_class_alone() -> None:
    counts = PointCounts(("a",), ("0", "1"), np.array([[0, 0, 0, 1], [1, 0, 0, 1]]), np.array([[9], [9]]))
    found = estimate(counts, samples=20)
    assert found.miou == 1
    assert found.miou_interval == (1, 1)
