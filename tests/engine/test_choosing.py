"""Choosing of pixels and images: equal to plain loops over the formulas, and no NaN whatever the numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.artefacts.thresholds import LOWEST, OUT_OF_REACH, ConfidenceHistogram, class_balanced
from segshift.engine.choosing import class_balanced_labels, confident_labels, easy_images, image_score, soft_labels
from segshift.types import IGNORE

HARD = (class_balanced_labels, confident_labels)
SHARPNESS = (0.0, 1.0, 5.0, 200.0)
"""Of the logits: all classes equal, soft, as of a trained network, probabilities of exactly 0 and 1."""


def softmax(seed: int, sharpness: float, classes: int = 3, height: int = 2, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(classes, height, width, generator=generator)).softmax(dim=0)


def some_thresholds(seed: int, classes: int = 3) -> Tensor:
    """Anything from the lowest to the one that nothing reaches."""
    chance = np.random.default_rng(seed)
    usual = chance.uniform(0.05, 1, classes)
    kind = chance.integers(0, 5, classes)
    return torch.tensor(np.choose(kind.clip(0, 3), [LOWEST, OUT_OF_REACH, 1.0, usual]), dtype=torch.float32)


anything = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(SHARPNESS), st.integers(1, 4))


# ---- hard labels


@settings(max_examples=150)
@given(anything)
def test_hard_labels_are_what_plain_loops_find(drawn: tuple[int, float, int]) -> None:
    seed, sharpness, classes = drawn
    p, t = softmax(seed, sharpness, classes), some_thresholds(seed, classes)
    balanced, confident = class_balanced_labels(p, t), confident_labels(p, t)
    for y in range(p.shape[1]):
        for x in range(p.shape[2]):
            own = p[:, y, x].numpy()
            quotients = own / t.numpy()
            best = int(balanced[y, x])
            assert best == IGNORE if quotients.max() < 1 else quotients[best] == quotients.max()
            best = int(confident[y, x])
            winners = [k for k in range(classes) if own[k] == own.max()]
            assert best in winners if best != IGNORE else any(own[k] < t.numpy()[k] for k in winners)
            assert best == IGNORE or own[best] >= t.numpy()[best]


def test_the_balanced_label_is_not_always_the_most_probable_class() -> None:
    p = torch.tensor([0.6, 0.4])[:, None, None]
    t = torch.tensor([0.9, 0.3])
    assert class_balanced_labels(p, t).item() == 1
    assert confident_labels(p, t).item() == IGNORE
    assert class_balanced_labels(p, torch.tensor([0.5, 0.3])).item() == 1, "0.4 / 0.3 > 0.6 / 0.5"
    assert confident_labels(p, torch.tensor([0.5, 0.3])).item() == 0


@pytest.mark.parametrize("choose", HARD)
def test_a_probability_equal_to_its_threshold_is_chosen_and_the_next_lower_one_is_not(choose) -> None:  # type: ignore[no-untyped-def]
    t = torch.tensor([0.7, 0.7])
    below = torch.nextafter(t[0], torch.tensor(0.0))
    p = torch.stack([torch.stack([t[0], below]), 1 - torch.stack([t[0], below])])[:, None]
    assert choose(p, t).tolist() == [[0, IGNORE]]


@pytest.mark.parametrize("choose", HARD)
def test_ties_get_one_of_the_equal_classes_and_every_time_the_same(choose) -> None:  # type: ignore[no-untyped-def]
    p, t = torch.full((4, 5, 7), 0.25), torch.full((4,), 0.2)
    label = choose(p, t)
    assert label.unique().numel() == 1
    assert label[0, 0] in range(4)
    assert torch.equal(label, choose(p, t))


@pytest.mark.parametrize("choose", HARD)
def test_out_of_reach_is_out_of_reach_of_probability_one(choose) -> None:  # type: ignore[no-untyped-def]
    p = torch.tensor([1.0, 0.0])[:, None, None]
    assert choose(p, torch.tensor([OUT_OF_REACH, OUT_OF_REACH])).item() == IGNORE
    assert choose(p, torch.tensor([1.0, OUT_OF_REACH])).item() == 0


# ---- LRENT


def cost(label: np.ndarray, p: np.ndarray, t: np.ndarray, alpha: float) -> float:
    """What LRENT minimises, of one pixel: 0 for the all-zero label (methods.md section 6)."""
    entropy = np.where(label > 0, label * np.log(np.maximum(label, 1e-300)), 0)
    return float((-label * np.log(np.maximum(p, 1e-30)) + alpha * entropy + label * np.log(t)).sum())


@settings(max_examples=60)
@given(anything, st.sampled_from([0.05, 0.25, 1.0, 4.0]))
def test_soft_labels_minimise_what_lrent_minimises(drawn: tuple[int, float, int], alpha: float) -> None:
    seed, sharpness, classes = drawn
    p, t = softmax(seed, sharpness, classes, 1, 2), some_thresholds(seed, classes)
    found = soft_labels(p, t, alpha)
    chance = np.random.default_rng(seed)
    others = [*chance.dirichlet(np.full(classes, 0.5), 30), *np.eye(classes)]
    for x in range(2):
        label, own, reach = (a.double().numpy() for a in (found[:, 0, x], p[:, 0, x], t))
        weight = (np.maximum(own, 1e-30) / reach) ** (1 / alpha)
        least = -alpha * math.log(weight.sum())
        assert min(cost(other, own, reach, alpha) for other in others) > least - 1e-4
        if label.any():
            assert least < 1e-5
            np.testing.assert_allclose(label, weight / weight.sum(), rtol=2e-3, atol=1e-6)
            assert cost(label, own, reach, alpha) == pytest.approx(least, abs=1e-3 * max(1, abs(least)))
        else:
            assert least > -1e-5, "a label that costs less than none was not given"


@settings(max_examples=60)
@given(anything, st.sampled_from([1e-300, 1e-38, 1e-30, 1e-6, 0.25, 1e6]))
def test_soft_labels_are_distributions_or_nothing(drawn: tuple[int, float, int], alpha: float) -> None:
    seed, sharpness, classes = drawn
    p, t = softmax(seed, sharpness, classes), some_thresholds(seed, classes)
    soft = soft_labels(p, t, alpha)
    assert torch.isfinite(soft).all()
    assert (soft >= 0).all()
    total = soft.sum(dim=0)
    assert (((total - 1).abs() < 1e-5) | (total == 0)).all()


@settings(max_examples=60)
@given(anything)
def test_what_cbst_chooses_lrent_chooses_and_tiny_alpha_makes_it_cbst(drawn: tuple[int, float, int]) -> None:
    seed, sharpness, classes = drawn
    p, t = softmax(seed, sharpness, classes), some_thresholds(seed, classes)
    hard = class_balanced_labels(p, t)
    for alpha in (1e-6, 0.25, 2.0):
        assert (soft_labels(p, t, alpha).sum(dim=0) > 0)[hard != IGNORE].all()
    # Softened so little that the sum over classes is its largest term; ties aside.
    first, *rest = (p / t[:, None, None]).sort(dim=0, descending=True).values
    clear = (rest[0] < 0.99 * first if rest else first > 0) & ((first - 1).abs() > 1e-3)
    best, label = soft_labels(p, t, 1e-6).max(dim=0)
    assert torch.equal(label.where(best > 0, torch.tensor(IGNORE))[clear], hard[clear])


@pytest.mark.parametrize("rows", [[1.0, 0.0], [1 - 1e-7, 1e-7]])
def test_a_class_of_which_many_pixels_are_sure_keeps_its_soft_labels(rows: list[float]) -> None:
    """Softmax in float32 gives exactly 1 where logits are 17 apart; the threshold is then 1 as well."""
    p = torch.tensor(rows)[:, None, None].expand(2, 10, 10)
    histogram = ConfidenceHistogram(2)
    histogram.add(p.argmax(dim=0), p.max(dim=0).values)
    t = class_balanced(histogram, 0.2).float()
    assert (class_balanced_labels(p, t) == 0).all()
    assert (soft_labels(p, t, 0.25)[0] > 0.99).all()


def test_alpha_must_be_above_zero() -> None:
    for alpha in (0.0, -1.0):
        with pytest.raises(ValueError, match="alpha must be above 0"):
            soft_labels(softmax(0, 1), torch.ones(3), alpha)


# ---- scores and the split


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_the_score_of_an_image_is_what_plain_loops_find(seed: int, classes: int, images: int) -> None:
    chance = np.random.default_rng(seed)
    predicted = chance.integers(0, 6, (images, classes)) * chance.integers(0, 2, (images, classes))
    above = (predicted * chance.uniform(0, 1.2, predicted.shape)).astype(int).clip(max=predicted)
    t = some_thresholds(seed, classes).clamp(min=0.1)
    found = image_score(torch.from_numpy(predicted), torch.from_numpy(above), t)
    for i in range(images):
        terms = [above[i, k] / predicted[i, k] / t[k].item() for k in range(classes) if predicted[i, k]]
        assert found[i].item() == pytest.approx(sum(terms) / len(terms) if terms else 0, rel=1e-5)
        alone = image_score(torch.from_numpy(predicted[i]), torch.from_numpy(above[i]), t)
        assert alone == found[i], "bit for bit: images of another domain are compared with the split's cutoff"


def test_scores_of_images_without_anything() -> None:
    none = torch.zeros(2, 3, dtype=torch.int64)
    assert image_score(none, none, torch.full((3,), OUT_OF_REACH)).tolist() == [0, 0]


def test_an_absent_class_takes_no_part_in_the_mean() -> None:
    t = torch.tensor([0.5, 0.5])
    one = image_score(torch.tensor([10, 0]), torch.tensor([5, 0]), t)
    both = image_score(torch.tensor([10, 10]), torch.tensor([5, 0]), t)
    assert (one.item(), both.item()) == (1.0, 0.5)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), max_size=9), st.sampled_from([0, 0.1, 0.3, 0.5, 0.99, 1]))
@settings(max_examples=80)
def test_the_best_fraction_is_easy(scores: list[float], fraction: float) -> None:
    easy = easy_images(torch.tensor(scores), "top_fraction", float(fraction)).tolist()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    wanted = set(order[: round(fraction * len(scores))])
    assert easy == [i in wanted for i in range(len(scores))]


def test_of_equal_scores_the_earlier_images_are_easy() -> None:
    """With many images too, where an unstable sort would show."""
    scores = torch.tensor([0.5, 0.7]).repeat_interleave(2000)
    assert easy_images(scores, "top_fraction", 0.75).nonzero().flatten().tolist() == [*range(1000), *range(2000, 4000)]


def test_easy_by_a_threshold_on_the_score() -> None:
    scores = torch.tensor([0.1, 0.3, 0.5])
    assert easy_images(scores, "threshold", scores[1].item()).tolist() == [False, True, True]
    assert easy_images(scores, "threshold", 7.0).tolist() == [False] * 3
    assert easy_images(scores, "threshold", 0.0).tolist() == [True] * 3
    counts = [int(easy_images(scores, "threshold", q).sum()) for q in (0, 0.2, 0.4, 0.6)]
    assert all(a >= b for a, b in pairwise(counts))


def test_other_splits_are_refused() -> None:
    for mode, value in (("top_fraction", 1.1), ("top_fraction", -0.1), ("median", 0.5)):
        with pytest.raises(ValueError, match="a share in"):
            easy_images(torch.tensor([0.1]), mode, value)
