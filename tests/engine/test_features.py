"""Features at chosen points: how compact classes are, which points are taken, and what is read there."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from stand_ins import Colour, Tiny, write_domain
from test_evaluate import Count, opened

from segshift import ops
from segshift.engine.features import (
    FEWEST,
    Points,
    at_cells,
    choose_points,
    compactness,
    domain_gap,
    features_at,
    ids_on_grid,
)
from segshift.engine.producing import Answers
from segshift.errors import UserError

CPU = torch.device("cpu")
SIZE = (96, 48)


def clusters(seed: int, sizes: tuple[int, ...] = (20, 35, 12), dimensions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features around a random centre a class, and their classes, mixed."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    centres = 3 * random.normal(size=(len(sizes), dimensions))
    return (centres[labels] + random.normal(size=(len(labels), dimensions))).astype(np.float64), labels


# ---- compactness


def test_compactness_by_hand() -> None:
    """Two classes on a line, means 1 and 11: distances to the mean are 1, and 2 in the other class; 10 between."""
    features = np.array([[0.0, 0], [2, 0], [9, 0], [13, 0]])
    found = compactness(features, np.array([0, 0, 1, 1]), 3, fewest=2)
    assert found.by_class == (0.1, 0.2, None)
    assert found.value == pytest.approx(0.15)
    assert found.nearest == 1.0


def test_compactness_of_a_triangle_by_hand() -> None:
    """Means at (0, 0), (3, 0) and (0, 4), 3, 4 and 5 apart, 4 in the mean; the third is a cross of radius 2."""
    cross = [[0, 6], [0, 2], [2, 4], [-2, 4]]
    features = np.array([[0, 0], [0, 0], [3, 0], [3, 0], *cross], np.float64)
    found = compactness(features, np.array([0, 0, 1, 1, 2, 2, 2, 2]), 3, fewest=2)
    assert found.by_class == pytest.approx((0.0, 0.0, 0.5))
    assert found.value == pytest.approx(0.5 / 3)
    # (0, 2) is as far from the first class as from its own, and the first one counts.
    assert found.nearest == pytest.approx((1 + 1 + 3 / 4) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_compactness_equals_a_plain_restatement(seed: int) -> None:
    features, labels = clusters(seed)
    means = {k: np.mean([x for x, label in zip(features, labels, strict=True) if label == k], axis=0) for k in range(3)}
    between = np.mean([math.dist(means[a], means[b]) for a, b in itertools.combinations(range(3), 2)])
    within, right = [], []
    for k in range(3):
        mine = [x for x, label in zip(features, labels, strict=True) if label == k]
        within.append(sum(math.dist(x, means[k]) for x in mine) / len(mine))
        right.append(np.mean([min(range(3), key=lambda other: math.dist(x, means[other])) == k for x in mine]))
    found = compactness(features, labels, 3)
    assert found.by_class == pytest.approx([distance / between for distance in within])
    assert found.value == pytest.approx(sum(within) / 3 / between)
    assert found.nearest == pytest.approx(np.mean(right))


@pytest.mark.parametrize("seed", range(5))
def test_compactness_knows_no_direction_place_or_scale(seed: int) -> None:
    features, labels = clusters(seed)
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
    found, moved = (compactness(x, labels, 3) for x in (features, 70 * features @ turn + random.normal(size=6)))
    assert moved.value == pytest.approx(found.value)
    assert moved.by_class == pytest.approx(found.by_class)
    assert moved.nearest == found.nearest


def test_every_class_counts_the_same() -> None:
    features, labels = clusters(0)
    most = labels == 1
    twice = compactness(np.concatenate([features, features[most]]), np.concatenate([labels, labels[most]]), 3)
    assert twice.value == pytest.approx(compactness(features, labels, 3).value)


def test_a_tighter_class_is_more_compact() -> None:
    features, labels = clusters(0)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(3)])
    tight = means[labels] + (features - means[labels]) / 2
    loose, found = compactness(features, labels, 3).value, compactness(tight, labels, 3).value
    assert loose is not None
    assert found == pytest.approx(loose / 2)


def test_absent_rare_and_ignored_classes_do_not_count() -> None:
    features, labels = clusters(0, (20, 35, FEWEST - 1))
    found = compactness(features, labels, 5)
    left = labels != 2
    assert found.by_class[2:] == (None, None, None)
    assert found == compactness(features[left], labels[left], 5)
    void = np.where(labels == 2, 255, labels)
    assert found == compactness(features, void, 5)
    assert compactness(features, np.where(void == 255, -1, void), 5) == found


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_have_no_compactness(classes: int) -> None:
    features, labels = clusters(0)
    found = compactness(features, np.where(labels < classes, labels, 255), 3)
    assert (found.value, found.nearest, found.by_class) == (None, None, (None, None, None))


def test_means_at_one_place_have_no_compactness() -> None:
    """Two classes that are one cloud, point by point: nothing lies between their means."""
    cloud = np.random.default_rng(0).normal(size=(20, 4))
    found = compactness(np.concatenate([cloud, cloud]), np.repeat([0, 1], 20), 2)
    assert found.value is None
    assert compactness(np.zeros((40, 4)), np.repeat([0, 1], 20), 2).value is None


def test_features_of_a_network_are_taken_as_they_are() -> None:
    """In float32 the sum of squares of large features would lose their digits."""
    features, labels = clusters(0)
    large = (1e3 + features).astype(np.float32)
    assert compactness(large, labels, 3).value == pytest.approx(compactness(features, labels, 3).value, rel=1e-3)


def test_domain_gap_by_hand() -> None:
    """Class means 0 and 10 in one domain, 3 and 11 in the other: moved by 3 and 1, with 10 between the classes."""
    here = np.repeat([[0.0], [10.0]], FEWEST, axis=0)
    there = np.repeat([[3.0], [11.0], [50.0]], FEWEST, axis=0)
    labels, others = np.repeat([0, 1], FEWEST), np.repeat([0, 1, 2], FEWEST)
    assert domain_gap(here, labels, there, others, 3) == pytest.approx(0.2)
    assert domain_gap(here, labels, here, labels, 3) == 0
    assert domain_gap(here, labels, there, np.where(others == 1, 255, others), 3) is None
    assert domain_gap(0 * here, labels, there, others, 3) is None


# ---- points


def test_cells_lie_where_upsampling_puts_them() -> None:
    ids = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert at_cells(ids, (3, 3)).tolist() == [[0, 3, 6], [14, 17, 20], [28, 31, 34]]
    assert at_cells(ids, (5, 7)).tolist() == ids.tolist()
    assert at_cells(ids, (1, 2)).tolist() == [[14, 20]]
    # A coarse map that is upsampled has its own values at these very pixels.
    coarse = torch.arange(12.0).reshape(1, 1, 3, 4)
    fine = ops.upsample(coarse, (9, 13))[0, 0].numpy().round().astype(np.uint8)
    assert at_cells(fine, (3, 4)).tolist() == coarse[0, 0].tolist()


def some_ids(seed: int = 0) -> np.ndarray:
    """Ids of three images on a grid: class 0 is common, 1 has fifty cells, 2 fewer than count, some are ignored."""
    random = np.random.default_rng(seed)
    ids = np.zeros(3 * 12 * 20, np.uint8)
    ids[:50], ids[50 : 50 + FEWEST - 1], ids[100:200] = 1, 2, 255
    return random.permutation(ids).reshape(3, 12, 20)


def test_points_are_balanced_and_of_their_class() -> None:
    ids, images = some_ids(), [4, 7, 9]
    points = choose_points(ids, images, 3, 100)
    assert np.bincount(points.label).tolist() == [50, 50]
    assert set(points.image.tolist()) <= set(images)
    place = np.searchsorted(images, points.image)
    assert (ids[place, points.row, points.column] == points.label).all()
    keys = list(zip(points.image.tolist(), points.row.tolist(), points.column.tolist(), strict=True))
    assert sorted(set(keys)) == keys
    assert points.grid == (12, 20)


def test_points_are_the_same_on_every_call() -> None:
    first, second = (choose_points(some_ids(), [0, 1, 2], 3, 60) for _ in range(2))
    for field in ("image", "row", "column", "label"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    other = choose_points(some_ids(), [0, 1, 2], 3, 60, seed=1)
    assert not np.array_equal(first.column, other.column)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 150))
def test_a_class_has_fewer_points_only_where_it_has_no_more(counts: list[int], budget: int) -> None:
    ids = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)[None, None]
    points = choose_points(ids, [0], len(counts), budget) if ids.size else None
    found = np.bincount(points.label, minlength=len(counts)) if points is not None else np.zeros(len(counts), int)
    known = [k for k, count in enumerate(counts) if count >= FEWEST]
    assert not any(found[k] for k in range(len(counts)) if k not in known)
    assert found.sum() <= max(budget, len(known))
    most = max([0, *found])
    assert all(found[k] in (most, counts[k]) for k in known)
    # Nothing is left of the budget that could go to all classes which have more.
    short = [k for k in known if found[k] < counts[k]]
    assert not short or found.sum() + len(short) > budget


@given(arrays.arrays(np.uint8, (2, 3, 4), elements=st.sampled_from([0, 1, 255])))
def test_any_ids_can_be_chosen_from(ids: np.ndarray) -> None:
    points = choose_points(ids, [5, 6], 2, 10)
    assert len(points) <= 10
    assert set(points.label.tolist()) <= {0, 1}


# ---- networks and folders


def test_truth_on_the_grid(tmp_path: Path) -> None:
    """Stripes of sixteen pixels: the grid of the network has a cell every fourth pixel, the first one ignored."""
    domain = opened(write_domain(tmp_path, 2, labelled=True))
    ids = ids_on_grid(Answers(Tiny(), CPU, "fp32"), domain, [0, 1], SIZE)
    assert ids.shape == (2, 12, 24)
    columns = np.rint(np.linspace(0, 95, 24)).astype(int)
    expected = (columns // 16) % 3
    assert ids[0, 0, 1:].tolist() == expected[1:].tolist()
    assert (ids[:, :, 0] == 255).all()
    assert ids[1, 5, 1:].tolist() == ((columns // 16 + 1) % 3)[1:].tolist()


def test_truth_is_brought_to_the_working_size_first(tmp_path: Path) -> None:
    """As in training: a pixel of 12 x 12 stands for 8 x 4 of the label; the first, ignored column is lost."""
    domain = opened(write_domain(tmp_path, 1, labelled=True))
    ids = ids_on_grid(Answers(Tiny(), CPU, "fp32"), domain, [0], (12, 12))
    assert ids.tolist() == [[[0, 0, 2]] * 3]


def test_without_labels_the_network_is_asked_and_no_label_is_opened(tmp_path: Path) -> None:
    write_domain(tmp_path, 2, labelled=True)
    shutil.rmtree(tmp_path / "labels")
    (tmp_path / "labels").write_text("nobody may read this")
    domain = opened(tmp_path, labelled=False)
    ids = ids_on_grid(Answers(Colour(wrong=True), CPU, "fp32"), domain, [1], SIZE)
    stripes = (np.arange(96) // 16 + 1) % 3
    assert ids[0, 3].tolist() == ((stripes + 1) % 3).tolist()


def test_features_are_those_of_the_whole_image(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 3, labelled=True))
    net, bar = Tiny(), Count()
    points = choose_points(ids_on_grid(Answers(net, CPU, "fp32"), domain, [0, 2], SIZE), [0, 2], 3, 40)
    features, said = features_at(Answers(net, CPU, "fp32"), domain, points, SIZE, workers=2, bar=bar)
    assert bar.done == 2
    assert net.training, "the network is in the mode that it was in"
    net.eval()
    for place in range(len(points)):
        with Image.open(domain.items[int(points.image[place])].image) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            answer = net(pixels)
        row, column = int(points.row[place]), int(points.column[place])
        torch.testing.assert_close(torch.from_numpy(features[place]), answer.features[0, :, row, column])
        assert said[place] == answer.logits[0, :, row, column].argmax()


def one_point(row: int, column: int, grid: tuple[int, int]) -> Points:
    """A cell of the first image."""
    image, rows, columns = (np.array([n], np.int64) for n in (0, row, column))
    return Points(image, rows, columns, image, grid)


def test_a_network_of_another_grid_is_read_at_the_nearest_cells(tmp_path: Path) -> None:
    """`Colour` answers at every pixel: the last cell of a grid of 12 x 24 is the last pixel of 48 x 96."""
    domain = opened(write_domain(tmp_path, 1, labelled=True))
    ramp = np.arange(48 * 96 * 3).reshape(48, 96, 3) % 251
    Image.fromarray(ramp.astype(np.uint8)).save(domain.items[0].image)
    for row, column, pixel in ((2, 3, (9, 12)), (11, 23, (47, 95)), (0, 0, (0, 0))):
        points = one_point(row, column, (12, 24))
        features, _ = features_at(Answers(Colour(), CPU, "fp32"), domain, points, SIZE)
        np.testing.assert_allclose(features[0], ramp[pixel] / 255, rtol=1e-6)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = opened(write_domain(tmp_path, 1, labelled=True))
    points = one_point(0, 0, (48, 96))
    answers = Answers(Colour(), CPU, "fp32")
    monkeypatch.setattr(Answers, "__call__", lambda self, pixels: _broken(self.net, pixels))
    with pytest.raises(UserError, match=r"000\.png are not finite"):
        features_at(answers, domain, points, SIZE)


def _broken(net: Colour, pixels: np.ndarray) -> object:
    answer = net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    return answer._replace(features=answer.features * math.inf)


def test_labels_that_vanished_are_named(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 2, labelled=True))
    label = domain.items[1].label
    assert label is not None
    label.unlink()
    with pytest.raises(UserError, match=r"001\.png"):
        ids_on_grid(Answers(Tiny(), CPU, "fp32"), domain, [0, 1], SIZE)
