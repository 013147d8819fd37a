"""Losses on pseudo-labels: against restatements in numpy (float64), gradients in closed form, nothing to learn from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift import losses
from segshift.types import IGNORE

Masked = Callable[[Tensor, Tensor], Tensor]

REGULARISERS: dict[str, Masked] = {"mrkld": losses.mrkld, "mrent": losses.mrent, "mrl2": losses.mrl2}
BOOTSTRAPPED = [
    (beta, hard, detach) for beta in (0.0, 0.3, 0.8, 1.0) for hard in (False, True) for detach in (False, True)
]


def logits_of(seed: int = 0, k: int = 4, scale: float = 3.0) -> Tensor:
    return torch.randn(2, k, 5, 7, generator=torch.Generator().manual_seed(seed)) * scale


def labels_of(seed: int = 0, k: int = 4, ignored: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (2, 5, 7), generator=generator)
    return labels.masked_fill(torch.rand(2, 5, 7, generator=generator) < ignored, IGNORE)


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """A loss and its gradient; the logits may be of float64 for restatements."""
    at = logits.clone().requires_grad_()
    value = loss(at)
    value.backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    return value.detach(), at.grad


def of_pixels(logits: Tensor, mask: Tensor, term: Callable[[np.ndarray, tuple[int, ...]], float]) -> float:
    """Mean over the pixels of `mask` of a term of the pixel's probabilities, pixel by pixel in float64."""
    total, count = 0.0, 0
    for (b, y, x), wanted in np.ndenumerate(mask.numpy()):
        if wanted:
            z = logits[b, :, y, x].double().numpy()
            e = np.exp(z - z.max())
            total += term(e / e.sum(), (b, y, x))
            count += 1
    return total / count if count else 0.0


# ---- values


@pytest.mark.parametrize("k", [2, 4, 19])
def test_regularisers(k: int) -> None:
    logits, mask = logits_of(k=k), labels_of(k=k) != IGNORE
    terms: dict[str, Callable[[np.ndarray], float]] = {
        "mrkld": lambda p: -sum(math.log(p_k) for p_k in p) / k,
        "mrent": lambda p: sum(p_k * math.log(p_k) for p_k in p),
        "mrl2": lambda p: sum(p_k**2 for p_k in p),
    }
    for name, term in terms.items():
        wanted = of_pixels(logits, mask, lambda p, _, term=term: term(p))  # type: ignore[misc]
        assert REGULARISERS[name](logits, mask).item() == pytest.approx(wanted, rel=1e-5), name


@pytest.mark.parametrize(("beta", "hard", "detach"), BOOTSTRAPPED)
def test_bootstrapping(beta: float, hard: bool, detach: bool) -> None:
    logits, labels = logits_of(), labels_of()

    def term(p: np.ndarray, at: tuple[int, ...]) -> float:
        t, opinion = np.eye(4)[labels[at]], np.eye(4)[p.argmax()] if hard else p
        return float(-((beta * t + (1 - beta) * opinion) * np.log(p)).sum())

    wanted = of_pixels(logits, labels != IGNORE, term)
    assert losses.bootstrapping(logits, labels, beta, hard, detach).item() == pytest.approx(wanted, rel=1e-5)


def test_bootstrapping_that_trusts_the_label_alone_is_cross_entropy() -> None:
    logits, labels = logits_of(), labels_of()
    for hard in (False, True):
        ours, theirs = (
            gradient(loss, logits)
            for loss in (
                lambda z, hard=hard: losses.bootstrapping(z, labels, 1.0, hard),
                lambda z: losses.cross_entropy(z, labels),
            )
        )
        torch.testing.assert_close(ours, theirs)


def test_soft_cross_entropy() -> None:
    logits, soft = logits_of(), logits_of(1).softmax(1)
    selected = labels_of() != IGNORE
    soft *= selected[:, None]
    wanted = of_pixels(logits, selected, lambda p, at: float(-(soft[at[0], :, at[1], at[2]].numpy() * np.log(p)).sum()))
    assert losses.soft_cross_entropy(logits, soft).item() == pytest.approx(wanted, rel=1e-5)


def test_soft_cross_entropy_of_one_hot_labels_is_cross_entropy() -> None:
    logits, labels = logits_of(), labels_of()
    onehot = F.one_hot(labels.clamp(max=4), 5)[..., :4].permute(0, 3, 1, 2).float()
    ours = gradient(lambda z: losses.soft_cross_entropy(z, onehot), logits)
    torch.testing.assert_close(ours, gradient(lambda z: losses.cross_entropy(z, labels), logits))


def test_regularisers_at_their_ends() -> None:
    """Uniform and certain predictions: log K, 0 and 1/K against the largest values."""
    mask, k = torch.ones(1, 2, 2, dtype=torch.bool), 5
    uniform, certain = torch.zeros(1, k, 2, 2), torch.zeros(1, k, 2, 2)
    certain[:, 3] = 1e4
    assert losses.mrkld(uniform, mask).item() == pytest.approx(math.log(k))
    assert losses.mrent(uniform, mask).item() == pytest.approx(-math.log(k))
    assert losses.mrl2(uniform, mask).item() == pytest.approx(1 / k)
    assert losses.mrkld(certain, mask).item() == pytest.approx(1e4 * (k - 1) / k)
    assert losses.mrent(certain, mask).item() == 0.0
    assert losses.mrl2(certain, mask).item() == pytest.approx(1.0)


# ---- gradients


def scaled(per_pixel: Tensor, mask: Tensor) -> Tensor:
    """The gradient of a mean over `mask` from the gradients of single pixels."""
    return torch.where(mask[:, None], per_pixel, 0) / mask.sum()


def test_gradients_of_regularisers_are_those_of_the_formulas() -> None:
    """methods.md section 6: p - 1/K, p (log p - sum p log p), and 2 p (p - sum p^2)."""
    logits, mask = logits_of(), labels_of() != IGNORE
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    wanted = {
        "mrkld": p - 1 / 4,
        "mrent": p * (log_p - (p * log_p).sum(1, keepdim=True)),
        "mrl2": 2 * p * (p - p.square().sum(1, keepdim=True)),
    }
    for name, regulariser in REGULARISERS.items():
        _, found = gradient(lambda z, regulariser=regulariser: regulariser(z, mask), logits)  # type: ignore[misc]
        torch.testing.assert_close(found, scaled(wanted[name], mask), msg=name)


def recorded_bootstrapping(logits: Tensor, labels: Tensor, beta: float, hard: bool, detach: bool) -> Tensor:
    """The formula as autograd records it."""
    k, valid, log_p = logits.shape[1], labels != IGNORE, logits.log_softmax(1)
    t = F.one_hot(labels.masked_fill(~valid, 0), k).permute(0, 3, 1, 2)
    opinion = F.one_hot(log_p.argmax(1), k).permute(0, 3, 1, 2) if hard else log_p.exp()
    opinion = opinion.detach() if detach else opinion
    per_pixel = -((beta * t + (1 - beta) * opinion) * log_p).sum(1)
    return per_pixel[valid].sum() / valid.sum().clamp(min=1)


@pytest.mark.parametrize(("beta", "hard", "detach"), BOOTSTRAPPED)
def test_gradient_of_bootstrapping_is_the_recorded_one(beta: float, hard: bool, detach: bool) -> None:
    logits, labels = logits_of(), labels_of()
    ours = gradient(lambda z: losses.bootstrapping(z, labels, beta, hard, detach), logits)
    theirs = gradient(lambda z: recorded_bootstrapping(z, labels, beta, hard, detach), logits.double())
    torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-5, atol=1e-7)


def test_bootstrapping_towards_a_fixed_opinion_pulls_to_the_label_alone() -> None:
    """With q = p held still, p - (beta t + (1 - beta) p) = beta (p - t): cross-entropy's gradient, beta times."""
    logits, labels = logits_of(), labels_of()
    _, found = gradient(lambda z: losses.bootstrapping(z, labels, 0.3, detach_target=True), logits)
    _, full = gradient(lambda z: losses.cross_entropy(z, labels), logits)
    torch.testing.assert_close(found, 0.3 * full)


def test_gradient_scales_with_the_weight_of_the_loss() -> None:
    logits, labels = logits_of(), labels_of()
    for name, loss in every_loss(labels).items():
        _, once = gradient(loss, logits)
        _, weighted = gradient(lambda z, loss=loss: 0.25 * loss(z), logits)  # type: ignore[misc]
        torch.testing.assert_close(weighted, 0.25 * once, msg=name)


def test_little_is_kept_for_the_backward_pass() -> None:
    """At (4, 19, 512, 1024) a tensor of the logits' size is 159 MB."""
    at_most = {"mrent": 2, "soft": 2}  # p beside log p for speed; the labels beside log p
    for name, loss in every_loss(labels_of()).items():
        logits = logits_of().requires_grad_()
        kept: list[int] = []

        def note(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss(logits)
        assert kept.count(logits.numel()) <= at_most.get(name, 1), name


# ---- which pixels count


def every_loss(labels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """All losses of this file on the pixels that `labels` selects."""
    mask = labels != IGNORE
    soft = logits_of(1).softmax(1) * mask[:, None]
    return {
        "mrkld": lambda z: losses.mrkld(z, mask),
        "mrent": lambda z: losses.mrent(z, mask),
        "mrl2": lambda z: losses.mrl2(z, mask),
        "soft": lambda z: losses.soft_cross_entropy(z, soft),
        "bootstrapping": lambda z: losses.bootstrapping(z, labels, 0.8),
        "detached": lambda z: losses.bootstrapping(z, labels, 0.8, detach_target=True),
        "hard": lambda z: losses.bootstrapping(z, labels, 0.8, hard=True),
    }


NAMES = list(every_loss(labels_of()))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_selected_is_zero_with_a_gradient_of_zero(name: str) -> None:
    loss, found = gradient(every_loss(torch.full((2, 5, 7), IGNORE))[name], logits_of())
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", NAMES)
def test_other_pixels_change_nothing_and_get_no_gradient(name: str) -> None:
    labels = labels_of()
    other = (labels == IGNORE)[:, None]
    loss = every_loss(labels)[name]
    value, found = gradient(loss, logits_of())
    assert torch.equal(found.abs().sum(1) > 0, labels != IGNORE)
    changed, found_changed = gradient(loss, torch.where(other, logits_of(7), logits_of()))
    assert torch.equal(value, changed)
    assert torch.equal(found, found_changed)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_weigh_alike_over_the_batch(name: str) -> None:
    """An image with one selected pixel counts for one pixel and not for half of the batch."""
    labels = labels_of(ignored=0)
    labels[0] = IGNORE
    labels[0, 2, 3] = 1
    both = every_loss(labels)[name](logits_of())
    alone, rest = labels.clone(), labels.clone()
    alone[1], rest[0] = IGNORE, IGNORE
    parts = every_loss(alone)[name](logits_of()) + 35 * every_loss(rest)[name](logits_of())
    torch.testing.assert_close(both, parts / 36)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_bootstrapping_refuses_other_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
        losses.bootstrapping(logits_of(), labels_of(), beta)


@pytest.mark.parametrize("label", [4, 254, -1])
def test_bootstrapping_refuses_a_label_that_is_no_class(label: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        losses.bootstrapping(logits_of(), torch.full((2, 5, 7), label), 0.8)


def test_mrent_of_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        losses.mrent(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))


# ---- any logits


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_regularisers_stay_within_their_bounds(values: list[float], dtype: torch.dtype) -> None:
    logits = torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)
    mask, k = torch.ones(1, 1, 1, dtype=torch.bool), len(values)
    assert losses.mrkld(logits, mask).item() >= math.log(k) * (1 - 1e-5)
    assert -math.log(k) * (1 + 1e-5) <= losses.mrent(logits, mask).item() <= 1e-6
    assert 1 / k - 1e-6 <= losses.mrl2(logits, mask).item() <= 1 + 1e-6


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans(), st.booleans(), st.floats(0.01, 1000), st.floats(0, 1))
def test_bootstrapping_of_any_logits(
    seed: int, beta: float, hard: bool, detach: bool, scale: float, ignored: float
) -> None:
    """Never negative, never NaN, and the gradients of a pixel cancel over its classes: adding to all logits is idle."""
    logits, labels = logits_of(seed, scale=scale), labels_of(seed, ignored=ignored)
    loss, found = gradient(lambda z: losses.bootstrapping(z, labels, beta, hard, detach), logits)
    assert torch.isfinite(loss)
    assert loss.item() >= 0
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.zeros(2, 5, 7), atol=1e-5, rtol=0)
    theirs = recorded_bootstrapping(logits.double(), labels, beta, hard, detach)
    torch.testing.assert_close(loss, theirs, check_dtype=False, rtol=1e-4, atol=1e-6)
