"""Window voting against a slow restatement, pixel by pixel, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.artefacts.thresholds import OUT_OF_REACH
from segshift.ops import window_vote
from segshift.types import IGNORE


def best_two(p: np.ndarray) -> list[int]:
    """A pixel's two most probable classes; of ties the lower id first."""
    return sorted(range(len(p)), key=lambda k: (-p[k], k))[:2]


def scores_of(p: np.ndarray, labels: np.ndarray, at: tuple[int, int], window: int, alpha: float) -> dict[int, float]:
    """s_c of a pixel's candidates, best candidate first."""
    (y, x), half = at, window // 2
    around = (slice(max(0, y - half), y + half + 1), slice(max(0, x - half), x + half + 1))
    scores = {}
    for c in best_two(p[:, y, x]):
        votes = [float(p_c) for p_c, label in zip(p[c][around].flat, labels[around].flat, strict=True) if label == c]
        mean = sum(votes) / len(votes) if votes else 0.0
        scores[c] = alpha * float(p[c, y, x]) + (1 - alpha) * mean
    return scores


def slow_pass(p: Tensor, labels: Tensor, thresholds: Tensor, window: int, alpha: float) -> Tensor:
    """The formula of methods.md section 8, one pixel after the other; all are decided on `labels`."""
    after = labels.clone()
    for (y, x), label in np.ndenumerate(labels.numpy()):
        if label == IGNORE:
            scores = scores_of(p.numpy(), labels.numpy(), (y, x), window, alpha)
            winner = max(scores, key=lambda c: scores[c])  # the first of the best
            if scores[winner] > thresholds[winner].item():
                after[y, x] = winner
    return after


def slow(p: Tensor, labels: Tensor, thresholds: Tensor, window: int, alpha: float, passes: int) -> Tensor:
    results = []
    for _ in range(passes):
        labels = slow_pass(p, labels, thresholds, window, alpha)
        results.append(labels)
    return torch.stack(results) if results else labels.new_empty(0, *labels.shape)


def on_a_grid(seed: int, k: int, h: int, w: int, levels: int = 64) -> Tensor:
    """Probabilities in steps of 1/64: votes add up without rounding on either side, and there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels + 1, (k, h, w), generator=generator) / levels


def some_labels(seed: int, k: int, h: int, w: int, labelled: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (h, w), generator=generator)
    return labels.masked_fill(torch.rand(h, w, generator=generator) >= labelled, IGNORE)


# ---- the formula


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 5),
    h=st.integers(1, 7),
    w=st.integers(1, 9),
    labelled=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    window=st.sampled_from([1, 3, 5, 9, 13, 21, 1001]),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    level=st.floats(0, 1),
    passes=st.integers(0, 3),
)
@example(seed=0, k=2, h=1, w=9, labelled=0.2, window=3, alpha=0.3, level=0.3, passes=3)
@example(seed=0, k=2, h=7, w=1, labelled=0.2, window=3, alpha=0.3, level=0.3, passes=3)
@example(seed=1, k=3, h=7, w=9, labelled=0.0, window=5, alpha=0.5, level=0.2, passes=3)
@example(seed=1, k=3, h=7, w=9, labelled=1.0, window=5, alpha=0.5, level=0.2, passes=2)
def test_equals_the_slow_restatement(
    seed: int, k: int, h: int, w: int, labelled: float, window: int, alpha: float, level: float, passes: int
) -> None:
    p, labels = on_a_grid(seed, k, h, w), some_labels(seed + 1, k, h, w, labelled)
    thresholds = (level + torch.linspace(-0.2, 0.2, k)).clamp(0, 1)
    before = labels.clone(), p.clone()
    found = window_vote(p, labels, thresholds, window, alpha, passes)
    assert found.shape == (passes, h, w)
    assert found.dtype == torch.int64
    assert torch.equal(found, slow(p, labels, thresholds, window, alpha, passes))
    assert torch.equal(labels, before[0])
    assert torch.equal(p, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_of_softmax_outputs(dtype: torch.dtype) -> None:
    """Off the grid a vote is rounded to a multiple of 2^-24: only scores that near to a threshold may differ."""
    logits = torch.randn(5, 12, 17, generator=torch.Generator().manual_seed(0)) * 2
    p = logits.softmax(0).to(dtype)
    labels, thresholds = some_labels(0, 5, 12, 17, 0.2), torch.tensor([0.4, 0.5, 0.45, 0.6, 0.3])
    found = window_vote(p, labels, thresholds, 5, 0.6, 3)
    assert (found[2] != IGNORE).sum() > (found[0] != IGNORE).sum() > (labels != IGNORE).sum()
    wide = p.float().numpy()
    for before, after in zip([labels, *found[:2]], found, strict=True):
        for (y, x), label in np.ndenumerate(after.numpy()):
            if before[y, x] != IGNORE:
                assert label == before[y, x]
                continue
            scores = scores_of(wide, before.numpy(), (y, x), 5, 0.6)
            over = {c: s - thresholds[c].item() for c, s in scores.items() if s >= max(scores.values()) - 1e-6}
            allowed = {c for c, more in over.items() if more > -1e-6}
            allowed |= {IGNORE} if min(over.values()) < 1e-6 else set()
            assert label in allowed


def test_wider_than_a_part() -> None:
    """Images above the size at which work is done in parts of rows, and of classes."""
    k, h, w = 6, 5, 9000
    p, labels = on_a_grid(0, k, h, w), some_labels(1, k, h, w, 0.1)
    thresholds = torch.full((k,), 0.7)
    found = window_vote(p, labels, thresholds, 7, 0.5, 2)
    for columns in (slice(0, 60), slice(4470, 4530), slice(w - 60, w)):  # with what can reach into them
        inner = slice(0 if columns.start == 0 else 6, 60 if columns.stop == w else 54)
        wanted = slow(p[:, :, columns], labels[:, columns], thresholds, 7, 0.5, 2)
        assert torch.equal(found[:, :, columns][:, :, inner], wanted[:, :, inner])


def test_taller_than_a_part() -> None:
    k, h, w = 3, 700, 40
    p, labels = on_a_grid(0, k, h, w), some_labels(1, k, h, w, 0.1)
    thresholds = torch.full((k,), 0.7)
    found = window_vote(p, labels, thresholds, 7, 0.5, 1)
    tall = window_vote(p.transpose(1, 2), labels.T, thresholds, 7, 0.5, 1)  # strides of every kind, too
    assert torch.equal(found, tall.transpose(1, 2))
    rows = slice(385, 430)
    wanted = slow(p[:, rows], labels[rows], thresholds, 7, 0.5, 1)
    assert torch.equal(found[:, rows][:, 3:-3], wanted[:, 3:-3])


# ---- what it means


def test_labels_spread_from_pass_to_pass() -> None:
    """A window of 3 carries a label one pixel further in each pass; nothing votes from beyond the border."""
    labels = torch.full((1, 7), IGNORE)
    labels[0, 0] = 1
    p = torch.stack([torch.full((1, 7), 0.4), torch.full((1, 7), 0.6)])
    found = window_vote(p, labels, torch.tensor([0.5, 0.5]), 3, 0.5, 3)
    assert [(row == 1).sum().item() for row in found] == [2, 3, 4]
    # 0.5 * 0.6 + 0.5 * 0.6 is just 0.6, and that does not exceed it.
    assert torch.equal(window_vote(p, labels, p[:, 0, 0], 3, 0.5, 1)[0], labels)


def test_neighbours_can_elect_the_second_best_class() -> None:
    labels = torch.full((3, 3), 2)
    labels[1, 1] = IGNORE
    p = torch.zeros(3, 3, 3)
    p[2] = 0.9
    p[:, 1, 1] = torch.tensor([0.5, 0.1, 0.4])
    found = window_vote(p, labels, torch.full((3,), 0.3), 3, 0.5, 1)
    assert found[0, 1, 1] == 2
    # A class that is not among the two best cannot win, however many vote for it.
    p[:, 1, 1] = torch.tensor([0.5, 0.3, 0.2])
    assert window_vote(p, labels, torch.full((3,), 0.1), 3, 0.5, 1)[0, 1, 1] == 0


def test_the_winner_alone_is_held_against_its_threshold() -> None:
    """s_0 > s_1, but class 0 is out of reach: the pixel stays without a label rather than becoming class 1."""
    p = torch.tensor([0.6, 0.4]).view(2, 1, 1)
    labels = torch.full((1, 1), IGNORE)
    assert window_vote(p, labels, torch.tensor([OUT_OF_REACH, 0.0]), 3, 1.0, 1).item() == IGNORE
    assert window_vote(p, labels, torch.tensor([0.0, OUT_OF_REACH]), 3, 1.0, 1).item() == 0


def test_no_pixel_reaches_a_class_out_of_reach() -> None:
    p = torch.ones(1, 4, 4)
    labels = some_labels(0, 1, 4, 4, 0.5)
    found = window_vote(p, labels, torch.tensor([OUT_OF_REACH]), 3, 0.7, 3)
    assert torch.equal(found, labels.expand(3, 4, 4))


def test_without_any_label_a_pixel_has_its_own_share_alone() -> None:
    p = on_a_grid(0, 4, 6, 6)
    found = window_vote(p, torch.full((6, 6), IGNORE), torch.full((4,), 0.6), 5, 0.7, 1)
    assert torch.equal(found[0] != IGNORE, 0.7 * p.amax(0).double() > torch.tensor(0.6).double())


def test_ties_go_to_the_more_probable_class_then_to_the_lower_id() -> None:
    labels = torch.full((1, 2), IGNORE)
    low = torch.zeros(3)
    tied = torch.tensor([[0.2, 0.4, 0.4], [0.4, 0.2, 0.4]]).T.view(3, 1, 2)
    assert window_vote(tied, labels, low, 1, 0.5, 1).flatten().tolist() == [1, 0]
    # alpha 0 and no voter: both scores are 0, and 0 > threshold holds for none.
    assert window_vote(tied, labels, low, 1, 0.0, 1).flatten().tolist() == [IGNORE, IGNORE]


def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    p = torch.randn(19, 64, 300, generator=torch.Generator().manual_seed(0)).softmax(0)
    labels = some_labels(0, 19, 64, 300, 0.2)
    once = window_vote(p, labels, torch.full((19,), 0.1), 9, 0.7, 3)
    torch.set_num_threads(2)
    try:
        assert torch.equal(once, window_vote(p, labels, torch.full((19,), 0.1), 9, 0.7, 3))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("h", "w", "window", "x"), [(725, 1600, 725, 1599), (800, 700, 2201, 300)])
def test_precision_where_windows_hold_half_a_million_pixels(h: int, w: int, window: int, x: int) -> None:
    """Counts and sums share 63 bits, and in the first case running sums overflow: the mean is still right to 1e-5."""
    p = torch.rand(1, h, w, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(h, w, dtype=torch.int64)
    y = h // 2
    labels[y, x], p[0, y, x] = IGNORE, 0
    inside = p[0, :, max(0, x - window // 2) : x + window // 2 + 1].double()
    mean = inside.sum().item() / (inside.numel() - 1)
    for off, wanted in ((-1e-5, 0), (1e-5, IGNORE)):
        threshold = torch.tensor([mean + off], dtype=torch.float64)
        assert window_vote(p, labels, threshold, window, 0.0, 1)[0, y, x] == wanted


def test_probabilities_that_rounding_put_above_1_do_not_run_into_the_counts() -> None:
    h, w = 151, 217  # 2^15 - 1 pixels: the sum has no bit to spare
    p, labels = torch.full((1, h, w), 1.00009), torch.zeros(h, w, dtype=torch.int64)
    labels[0, 0] = IGNORE
    assert window_vote(p, labels, torch.tensor([0.999]), 501, 0.0, 1)[0, 0, 0] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equals_on_a_gpu() -> None:
    p = torch.randn(19, 64, 300, generator=torch.Generator().manual_seed(0)).softmax(0)
    labels, thresholds = some_labels(0, 19, 64, 300, 0.2), torch.full((19,), 0.1)
    found = window_vote(p.cuda(), labels.cuda(), thresholds.cuda(), 9, 0.7, 3)
    assert torch.equal(found.cpu(), window_vote(p, labels, thresholds, 9, 0.7, 3))


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 4}, "odd and positive, got 4"),
        ({"window": 0}, "odd and positive, got 0"),
        ({"window": -3}, "odd and positive, got -3"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, 1\]"),
        ({"alpha": 1.1}, r"alpha must lie in \[0, 1\]"),
        ({"alpha": float("nan")}, r"alpha must lie in \[0, 1\]"),
        ({"passes": -1}, "passes must not be negative"),
        ({"labels": torch.full((4, 5), 3)}, r"labels must lie in \[0, 3\) or be 255, got 3"),
        ({"labels": torch.full((4, 5), -1)}, r"labels must lie in \[0, 3\) or be 255, got -1"),
        ({"probabilities": torch.full((3, 4, 5), float("nan"))}, r"probabilities must lie in \[0, 1\]"),
        ({"probabilities": torch.full((3, 4, 5), 1.5)}, r"probabilities must lie in \[0, 1\]"),
        ({"probabilities": torch.full((3, 4, 5), -0.5)}, r"probabilities must lie in \[0, 1\]"),
        ({"probabilities": torch.empty(0, 4, 5), "thresholds": torch.empty(0)}, "no class"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    good = {
        "probabilities": on_a_grid(0, 3, 4, 5),
        "labels": some_labels(0, 3, 4, 5, 0.5),
        "thresholds": torch.full((3,), 0.5),
        "window": 3,
        "alpha": 0.5,
        "passes": 1,
    }
    window_vote(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        window_vote(**{**good, **change})  # type: ignore[arg-type]


def test_no_pass_and_no_pixel() -> None:
    p, labels = on_a_grid(0, 3, 4, 5), some_labels(0, 3, 4, 5, 0.5)
    assert window_vote(p, labels, torch.full((3,), 0.5), 3, 0.5, 0).shape == (0, 4, 5)
    assert window_vote(p[:, :0], labels[:0], torch.full((3,), 0.5), 3, 0.5, 2).shape == (2, 0, 5)
