"""Thresholds from histograms against sorting every confidence, as the published code does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.artefacts.thresholds import (
    BINS,
    LOWEST,
    OUT_OF_REACH,
    ConfidenceHistogram,
    class_balanced,
    class_quantile,
    fixed,
    global_portion,
)
from segshift.types import IGNORE

TOLERANCE = 1e-3
PORTIONS = [0.0, 1e-7, 0.001, 0.15, 0.2, 0.29, 0.5, 0.66, 0.999, 1.0]


def uniform(n: int, generator: np.random.Generator) -> np.ndarray:
    return generator.random(n)


def crowded(n: int, generator: np.random.Generator) -> np.ndarray:
    """Most of them above 0.9999, as those of a large flat class are."""
    return 1 / (1 + np.exp(-generator.normal(12, 2, n)))


def saturated(n: int, generator: np.random.Generator) -> np.ndarray:
    """More than half are 1 in float32."""
    return 1 - np.where(generator.random(n) < 0.6, 0, generator.random(n) ** 20)


def middling(n: int, generator: np.random.Generator) -> np.ndarray:
    return 1 / 19 + 18 / 19 * generator.beta(2, 5, n)


def few_values(n: int, generator: np.random.Generator) -> np.ndarray:
    """Ties: seven values, among them 1/2, where bins change their width, and 1."""
    return generator.choice([0.01, 0.05, 0.25, 0.5, 0.75, 0.99, 1.0], n)


KINDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    f.__name__: f for f in (uniform, crowded, saturated, middling, few_values)
}


def pixels(n: int = 20_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n pixels of each kind, one kind a class, and a last class that is never predicted: shuffled ids, confidences."""
    generator = np.random.default_rng(seed)
    confidence = np.concatenate([kind(n, generator) for kind in KINDS.values()]).astype(np.float32)
    ids = np.repeat(np.arange(len(KINDS)), n).astype(np.uint8)
    order = generator.permutation(len(ids))
    return torch.from_numpy(ids[order]), torch.from_numpy(confidence[order])


CLASSES = len(KINDS) + 1


def histogram(ids: Tensor, confidence: Tensor, classes: int = CLASSES) -> ConfidenceHistogram:
    made = ConfidenceHistogram(classes)
    made.add(ids, confidence)
    return made


def by_sorting(ids: Tensor, confidence: Tensor, portion: float, classes: int = CLASSES) -> list[float]:
    """floor(n_k p)-th largest confidence of each class; `OUT_OF_REACH` where that is none."""
    thresholds = []
    for k in range(classes):
        ordered = np.sort(confidence[ids == k].double().numpy())[::-1]
        wanted = math.floor(len(ordered) * portion)
        thresholds.append(float(ordered[wanted - 1]) if wanted else OUT_OF_REACH)
    return thresholds


# ---- against sorting


@pytest.mark.parametrize("portion", PORTIONS)
def test_class_balanced_is_the_sorted_one(portion: float) -> None:
    ids, confidence = pixels()
    found = class_balanced(histogram(ids, confidence), portion)
    assert found.dtype == torch.float64
    for k, (ours, exact) in enumerate(zip(found.tolist(), by_sorting(ids, confidence, portion), strict=True)):
        if exact == OUT_OF_REACH:
            assert ours == OUT_OF_REACH
            continue
        # At most the bin below: 1/1024 of the distance to 1, but where 1 - p is rounded itself.
        assert ours <= exact + 1e-6
        assert exact - ours <= min((1 - ours) / 1024 + 2**-24, TOLERANCE / 2)
        of_class = confidence[ids == k].double()
        wanted, selected = math.floor(len(of_class) * portion), int((of_class >= ours).sum())
        assert selected >= wanted
        ties = int((of_class == exact).sum())
        assert selected - wanted <= ties + 0.01 * len(of_class)


@pytest.mark.parametrize("portion", PORTIONS)
def test_global_portion_is_the_sorted_one(portion: float) -> None:
    ids, confidence = pixels()
    found = global_portion(histogram(ids, confidence), portion)
    exact = by_sorting(torch.zeros_like(ids), confidence, portion, 1)[0]
    assert found.shape == (CLASSES,)
    assert len(set(found.tolist())) == 1
    assert found[0].item() == pytest.approx(exact, abs=TOLERANCE / 2)
    assert (exact == OUT_OF_REACH) == (found[0].item() == OUT_OF_REACH)
    assert int((confidence >= found[0]).sum()) >= math.floor(len(ids) * portion)


@pytest.mark.parametrize("quantile", PORTIONS)
@pytest.mark.parametrize("cap", [0.0, 0.3, 0.9, 1.0])
def test_class_quantile_is_that_of_the_releases(quantile: float, cap: float) -> None:
    ids, confidence = pixels()
    found = class_quantile(histogram(ids, confidence), quantile, cap)
    for k, ours in enumerate(found.tolist()[:-1]):
        x = np.sort(confidence[ids == k].double().numpy())
        # The releases index past the end where the quantile is 1.
        exact = min(x[min(int(np.round(len(x) * quantile)), len(x) - 1)], cap)
        assert exact - TOLERANCE / 2 <= ours <= max(exact + 1e-6, LOWEST)
        assert (confidence[ids == k] >= ours).sum() >= len(x) - np.round(len(x) * quantile)
    assert found[-1] == OUT_OF_REACH


@pytest.mark.parametrize(("quantile", "element"), [(0.24, 2), (0.25, 2), (0.27, 3), (0.35, 4), (0.95, 9), (0.96, 9)])
def test_quantiles_round_as_numpy_does(quantile: float, element: int) -> None:
    confidence = torch.linspace(0.05, 0.95, 10)
    found = class_quantile(histogram(torch.zeros(10, dtype=torch.uint8), confidence, 1), quantile, 1.0)
    assert found.item() == pytest.approx(confidence[element].item(), abs=TOLERANCE)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 1, width=32) | st.floats(1e-9, 1).map(lambda d: 1 - d**4)),
        min_size=1,
        max_size=40,
    ),
    st.floats(0, 1),
)
def test_any_pixels_and_any_portion(found: list[tuple[int, float]], portion: float) -> None:
    ids = torch.tensor([k for k, _ in found], dtype=torch.uint8)
    confidence = torch.tensor([p for _, p in found], dtype=torch.float32)
    counted = histogram(ids, confidence, 4)
    thresholds = class_balanced(counted, portion)
    for k, (ours, exact) in enumerate(zip(thresholds.tolist(), by_sorting(ids, confidence, portion, 4), strict=True)):
        assert max(exact - TOLERANCE / 2, LOWEST) <= ours <= max(exact + 2**-25, LOWEST)
        passing = int((confidence[ids == k].double() >= ours).sum())
        if exact > LOWEST:
            assert passing >= math.floor(int((ids == k).sum()) * portion)
        if ours == OUT_OF_REACH:
            assert passing == 0


def test_the_threshold_is_the_least_confidence_of_its_bin() -> None:
    """Every float32 around the edges between bins: a threshold selects whole bins, also after rounding to float32."""
    edges = torch.linspace(0, 1, 4097)[1:-1]
    below, above = (torch.nextafter(edges, torch.tensor(towards)) for towards in (0.0, 2.0))
    rounded = edges[:1000] + 0.75 * 2**-24  # below 0.25, where 1 - p cannot be as fine as p
    around = torch.cat([below, edges, above, rounded])
    everything = histogram(torch.zeros_like(around, dtype=torch.uint8), around, 1)
    tail = everything.counts[0].cumsum(0)
    for p in around[::7]:
        one = histogram(torch.zeros(1, dtype=torch.uint8), p[None], 1)
        threshold = class_balanced(one, 1.0).item()
        assert threshold == class_balanced(one, 1.0).float().item()
        assert int((around.double() >= threshold).sum()) == tail[one.counts[0].argmax()].item()


def test_half_of_the_pixels_above_0_9999_are_told_apart() -> None:
    """What 1000 equal bins cannot do: a portion of 0.2 of a class with most of its confidences above 0.9999."""
    generator = np.random.default_rng(0)
    confidence = torch.from_numpy(crowded(200_000, generator).astype(np.float32))
    assert (confidence > 0.9999).float().mean() > 0.9
    threshold = class_balanced(histogram(torch.zeros(200_000, dtype=torch.uint8), confidence, 1), 0.2)
    share = (confidence >= threshold[0]).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.02)


# ---- parts and wholes


def test_parts_added_in_any_order_equal_the_whole() -> None:
    ids, confidence = pixels()
    whole = histogram(ids, confidence)
    bounds = [0, 1, 1000, 1000, 50_000, len(ids)]
    parts = [histogram(ids[a:b], confidence[a:b]) for a, b in itertools.pairwise(bounds)]
    merged = ConfidenceHistogram(CLASSES)
    for part in reversed(parts):
        merged.merge(part)
    assert torch.equal(merged.counts, whole.counts)
    summed = parts[0] + parts[1] + (parts[2] + parts[3]) + parts[4]
    assert torch.equal(summed.counts, whole.counts)
    assert [part.predicted.sum() for part in parts[:2]] == [1, 999], "a sum leaves its parts as they were"
    one_by_one = ConfidenceHistogram(CLASSES)
    for a, b in itertools.pairwise(bounds):
        one_by_one.add(ids[a:b], confidence[a:b])
    assert torch.equal(one_by_one.counts, whole.counts)


def test_counts_go_on_from_those_of_before() -> None:
    ids, confidence = pixels(100)
    first = histogram(ids[:200], confidence[:200])
    again = ConfidenceHistogram(CLASSES, first.counts)
    again.add(ids[200:], confidence[200:])
    assert torch.equal(again.counts, histogram(ids, confidence).counts)
    assert first.predicted.sum() == 200


def test_counting_in_inference_mode_goes_on_outside() -> None:
    ids, confidence = pixels(100)
    with torch.inference_mode():
        first = histogram(ids[:200], confidence[:200])
    first.add(ids[200:], confidence[200:])
    first.merge(first + first)
    assert torch.equal(first.counts, 3 * histogram(ids, confidence).counts)


def test_more_pixels_than_one_chunk() -> None:
    n = (1 << 22) + 5
    confidence = torch.full((n,), 0.75)
    confidence[-5:] = 0.25
    counted = histogram(torch.zeros(n, dtype=torch.uint8), confidence, 1)
    assert counted.predicted.tolist() == [n]
    assert class_balanced(counted, 1.0).item() == pytest.approx(0.25, abs=TOLERANCE)
    assert class_balanced(counted, 0.9).item() == pytest.approx(0.75, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_ids_of_any_type_and_pixels_of_any_layout(dtype: torch.dtype) -> None:
    ids, confidence = pixels(100)
    wanted = histogram(ids, confidence).counts
    image = ids.to(dtype).view(20, 25).T, confidence.view(20, 25).T.requires_grad_()
    assert torch.equal(histogram(*image).counts, wanted)
    assert wanted.shape == (CLASSES, BINS)
    assert wanted.dtype == torch.int64


def test_pixels_to_ignore_are_left_out() -> None:
    ids, confidence = pixels(100)
    kept = torch.arange(500) % 3 != 0
    found = histogram(ids.masked_fill(~kept, IGNORE), confidence)
    assert torch.equal(found.counts, histogram(ids[kept], confidence[kept]).counts)
    assert not histogram(torch.full((4,), IGNORE), torch.ones(4)).counts.any()


# ---- edges


def test_a_class_that_is_never_predicted_is_out_of_reach() -> None:
    empty = ConfidenceHistogram(3)
    for found in (class_balanced(empty, 1.0), global_portion(empty, 1.0), class_quantile(empty, 0, 1)):
        assert found.tolist() == [OUT_OF_REACH] * 3
    assert 1 / OUT_OF_REACH < 1
    assert torch.tensor(1.0) / torch.tensor(OUT_OF_REACH) < 1
    assert torch.tensor(1.0, dtype=torch.float32) < class_balanced(empty, 1.0).float()[0]


def test_portions_of_a_single_pixel() -> None:
    one = histogram(torch.tensor([0], dtype=torch.uint8), torch.tensor([0.625]), 2)
    assert class_balanced(one, 1.0).tolist() == [pytest.approx(0.625, abs=TOLERANCE), OUT_OF_REACH]
    assert class_balanced(one, 0.999).tolist() == [OUT_OF_REACH, OUT_OF_REACH]
    assert class_balanced(one, 0.0).tolist() == [OUT_OF_REACH, OUT_OF_REACH]
    for quantile in (0.0, 0.5, 1.0):
        assert class_quantile(one, quantile, 1.0)[0].item() == pytest.approx(0.625, abs=TOLERANCE)


def test_certain_pixels_pass_a_threshold_of_exactly_1() -> None:
    certain = histogram(torch.zeros(10, dtype=torch.uint8), torch.ones(10), 1)
    assert class_balanced(certain, 0.2).item() == 1.0
    above = histogram(torch.zeros(10, dtype=torch.uint8), torch.full((10,), 1.00001), 1)
    assert torch.equal(above.counts, certain.counts)


def test_no_threshold_is_0() -> None:
    """p / threshold is defined for all of them."""
    hopeless = histogram(torch.zeros(10, dtype=torch.uint8), torch.zeros(10), 1)
    assert class_balanced(hopeless, 1.0).item() == LOWEST
    assert class_quantile(hopeless, 0.5, 0.9).item() == LOWEST
    assert fixed(hopeless, 0.0).item() == LOWEST
    assert fixed(ConfidenceHistogram(3), 0.9).tolist() == [0.9] * 3


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_rules_name_the_range_of_what_they_refuse(value: float) -> None:
    empty = ConfidenceHistogram(2)
    for rule in (class_balanced, global_portion):
        with pytest.raises(ValueError, match=r"portion must lie in \[0, 1\], got"):
            rule(empty, value)
    with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\], got"):
        class_quantile(empty, value, 0.9)
    with pytest.raises(ValueError, match=r"cap must lie in \[0, 1\], got"):
        class_quantile(empty, 0.5, value)
    with pytest.raises(ValueError, match=r"value must lie in \[0, 1\], got"):
        fixed(empty, value)


@pytest.mark.parametrize(
    ("ids", "confidence", "message"),
    [
        (torch.tensor([3]), torch.tensor([0.5]), r"ids must lie in \[0, 3\) or be 255, got 3"),
        (torch.tensor([255, -1]), torch.tensor([0.5, 0.5]), r"ids must lie in \[0, 3\) or be 255, got -1"),
        (torch.tensor([0]), torch.tensor([1.5]), r"confidences must lie in \[0, 1\]"),
        (torch.tensor([0]), torch.tensor([-0.1]), r"confidences must lie in \[0, 1\]"),
        (torch.tensor([0]), torch.tensor([math.nan]), r"confidences must lie in \[0, 1\]"),
        (torch.tensor([0]), torch.tensor([0.5, 0.5]), "of one shape"),
        (torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64), "float32"),
    ],
)
def test_add_refuses(ids: Tensor, confidence: Tensor, message: str) -> None:
    counted = ConfidenceHistogram(3)
    with pytest.raises(ValueError, match=message):
        counted.add(ids, confidence)
    assert not counted.counts.any()


def test_histograms_of_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="of 3 and of 2 classes"):
        ConfidenceHistogram(3).merge(ConfidenceHistogram(2))
    with pytest.raises(ValueError, match="counts must be"):
        ConfidenceHistogram(3, ConfidenceHistogram(2).counts)
    for number in (0, 256):
        with pytest.raises(ValueError, match="num_classes must lie in"):
            ConfidenceHistogram(number)
