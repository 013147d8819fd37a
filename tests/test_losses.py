"""Every loss against a restatement in plain numpy (float64), and at the edges: ignored pixels, huge logits, bf16."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift import losses
from segshift.types import IGNORE

F64 = np.float64
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

PRIOR = torch.tensor([0.6, 0.3, 0.1, 0.0])


def random_logits(seed: int = 0, b: int = 2, k: int = 4, h: int = 5, w: int = 7, scale: float = 3.0) -> Tensor:
    return torch.randn(b, k, h, w, generator=torch.Generator().manual_seed(seed)) * scale


def random_labels(seed: int = 0, b: int = 2, k: int = 4, h: int = 5, w: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (b, h, w), generator=generator)
    return labels.masked_fill(torch.rand(b, h, w, generator=generator) < 0.3, IGNORE)


def softmax(logits: Tensor) -> Array:
    z = logits.detach().double().numpy()
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), F64)


def plain_entropy(logits: Tensor) -> Array:
    """Base-2 logarithms and 1e-30 inside them, as the ADVENT release writes it."""
    p = softmax(logits)
    return np.asarray(-(p * np.log2(p + 1e-30)).sum(axis=1) / np.log2(p.shape[1]), F64)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    p, total, count = softmax(logits), 0.0, 0
    for (b, y, x), label in np.ndenumerate(labels.numpy()):
        if label != IGNORE:
            total -= math.log(p[b, label, y, x])
            count += 1
    return total / count if count else 0.0


# ---- values


def test_cross_entropy_is_the_mean_over_pixels_that_count() -> None:
    logits, labels = random_logits(), random_labels()
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(plain_cross_entropy(logits, labels), rel=1e-5)
    everything = labels.clamp(max=3)
    assert losses.cross_entropy(logits, everything).item() == pytest.approx(
        plain_cross_entropy(logits, everything), rel=1e-5
    )


def test_cross_entropy_weighs_pixels_alike_over_the_batch() -> None:
    logits, labels = random_logits(), random_labels()
    labels[0] = IGNORE
    labels[0, 0, 0] = 1
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(plain_cross_entropy(logits, labels), rel=1e-5)


def test_cross_entropy_of_ignored_pixels_alone_is_zero_with_a_gradient_of_zero() -> None:
    logits = random_logits().requires_grad_()
    loss = losses.cross_entropy(logits, torch.full((2, 5, 7), IGNORE))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_cross_entropy_gives_ignored_pixels_no_gradient() -> None:
    logits, labels = random_logits().requires_grad_(), random_labels()
    losses.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    per_pixel = logits.grad.abs().sum(dim=1)
    assert torch.equal(per_pixel > 0, labels != IGNORE)
    onehot = torch.nn.functional.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2)
    valid = (labels != IGNORE)[:, None]
    wanted = (logits.detach().softmax(1) - onehot) * valid / valid.sum()
    torch.testing.assert_close(logits.grad, wanted)


def test_cross_entropy_refuses_a_label_that_is_no_class() -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        losses.cross_entropy(random_logits(), torch.full((2, 5, 7), 4))


@pytest.mark.parametrize("k", [2, 4, 19])
def test_entropy(k: int) -> None:
    logits = random_logits(k=k)
    np.testing.assert_allclose(losses.entropy(logits).numpy(), plain_entropy(logits), atol=1e-5)


def test_entropy_at_its_ends() -> None:
    assert losses.entropy(torch.zeros(1, 5, 2, 2)).numpy() == pytest.approx(1.0, abs=1e-6)
    certain = torch.zeros(1, 5, 2, 2)
    certain[:, 3] = 1e4
    assert torch.equal(losses.entropy(certain), torch.zeros(1, 2, 2))


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_entropy_is_between_0_and_1_and_self_information_sums_to_it(values: list[float], dtype: torch.dtype) -> None:
    logits = torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)
    entropy, information = losses.entropy(logits), losses.self_information(logits)
    assert -1e-6 <= entropy.item() <= 1 + 1e-5
    assert (information >= -1e-7).all()
    torch.testing.assert_close(information.sum(dim=1), entropy)


def test_self_information() -> None:
    logits = random_logits()
    p = softmax(logits)
    wanted = -p * np.log2(p + 1e-30) / np.log2(4)
    np.testing.assert_allclose(losses.self_information(logits).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "call", [losses.entropy, losses.self_information, lambda logits: losses.entropy_in_range(logits, 0, 1)]
)
def test_entropy_of_a_single_class_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        call(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.7), (0.25, 0.5), (0.99, 1.0), (0.0, 0.001)])
def test_entropy_in_range(low: float, high: float) -> None:
    logits = random_logits(h=10, w=10)
    kept = []
    for image in plain_entropy(logits):
        ordered = sorted(image.ravel())
        first = int(low * len(ordered))
        kept.append(ordered[first : max(first + 1, int(high * len(ordered)))])
    wanted = np.mean(np.concatenate(kept))
    assert losses.entropy_in_range(logits, low, high).item() == pytest.approx(wanted, rel=1e-5)


def test_entropy_in_range_keeps_its_share_of_tied_pixels() -> None:
    """60 pixels of entropy 1 and 40 of 0: by value, the upper 30 % would be all 60 or none."""
    logits = torch.zeros(1, 3, 10, 10)
    logits[:, 0, :4] = 1e4
    logits.requires_grad_()
    assert losses.entropy_in_range(logits, 0.7, 1.0).item() == pytest.approx(1.0)
    assert losses.entropy_in_range(logits, 0.3, 0.5).item() == pytest.approx(0.5)
    assert losses.entropy_in_range(logits, 0.0, 0.4).item() == pytest.approx(0.0, abs=1e-6)


def test_entropy_in_range_gives_pixels_outside_no_gradient() -> None:
    logits = random_logits(b=1, h=10, w=10).requires_grad_()
    losses.entropy_in_range(logits, 0.7, 1.0).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=1)[0] > 0
    entropies = losses.entropy(logits.detach())[0]
    assert int(touched.sum()) == 30
    assert entropies[touched].min() > entropies[~touched].max()


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.7, 0.3), (-0.1, 1.0), (0.0, 1.1)])
def test_entropy_in_range_refuses_other_bounds(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="quantiles must satisfy"):
        losses.entropy_in_range(random_logits(), low, high)


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.5, 1.0])
def test_class_ratio_prior(mu: float) -> None:
    logits = random_logits()
    logits[:, 0] -= 6
    q = softmax(logits).mean(axis=(0, 2, 3))
    wanted = sum(max(0.0, mu * p - q_c) for p, q_c in zip(PRIOR.double().numpy(), q, strict=True))
    assert losses.class_ratio_prior(logits, PRIOR, mu).item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_class_ratio_prior_pushes_missing_classes_alone() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 0] = -8
    logits.requires_grad_()
    losses.class_ratio_prior(logits, PRIOR, 0.5).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[:, 0] < 0).all()
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(1, 2, 2))
    assert losses.class_ratio_prior(torch.zeros(1, 4, 2, 2), PRIOR, 0.4).item() == 0.0


@pytest.mark.parametrize("mu", [-0.1, 1.1])
def test_class_ratio_prior_refuses_other_mu(mu: float) -> None:
    with pytest.raises(ValueError, match=r"mu must lie in \[0, 1\]"):
        losses.class_ratio_prior(random_logits(), PRIOR, mu)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.1, 100))
def test_class_ratio_prior_is_between_0_and_mu(seed: int, mu: float, scale: float) -> None:
    loss = losses.class_ratio_prior(random_logits(seed, scale=scale), PRIOR, mu).item()
    assert -1e-7 <= loss <= mu + 1e-6


@pytest.mark.parametrize("domain", [losses.SOURCE, losses.TARGET])
def test_domain_losses(domain: float) -> None:
    scores = random_logits(b=2, k=1, h=3, w=4)
    s = scores.double().numpy()
    probability = 1 / (1 + np.exp(-s))
    cross_entropy = -(domain * np.log(probability) + (1 - domain) * np.log(1 - probability)).mean()
    assert losses.domain_cross_entropy(scores, domain).item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses.domain_least_squares(scores, domain).item() == pytest.approx(((s - domain) ** 2).mean(), rel=1e-5)


def test_domain_labels_are_the_releases() -> None:
    assert (losses.SOURCE, losses.TARGET) == (0.0, 1.0)


# ---- what all of them promise

OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda z: losses.cross_entropy(z, random_labels()),
    "self_information": lambda z: losses.self_information(z).square().sum(),
    "entropy": lambda z: losses.entropy(z).mean(),
    "entropy_in_range": lambda z: losses.entropy_in_range(z, 0.7, 1.0),
    "entropy_whole_range": lambda z: losses.entropy_in_range(z, 0.0, 1.0),
    "class_ratio_prior": lambda z: losses.class_ratio_prior(z, PRIOR, 1.0),
    "domain_cross_entropy": lambda z: losses.domain_cross_entropy(z[:, :1], losses.TARGET),
    "domain_least_squares": lambda z: losses.domain_least_squares(z[:, :1], losses.TARGET),
    "bootstrapping": lambda z: losses.bootstrapping(z, random_labels(), 0.8),
    "bootstrapping_hard": lambda z: losses.bootstrapping(z, random_labels(), 0.8, hard=True),
    "mrkld": lambda z: losses.mrkld(z, random_labels() != IGNORE),
    "mrent": lambda z: losses.mrent(z, random_labels() != IGNORE),
    "mrl2": lambda z: losses.mrl2(z, random_labels() != IGNORE),
    "soft_cross_entropy": lambda z: losses.soft_cross_entropy(z, random_logits(1).softmax(1)),
}
"""Calls that make a scalar of logits (2, 4, 5, 7); those of self-training are in test_losses_self_training.py too."""


def test_every_loss_is_among_these() -> None:
    public = {
        name for name, value in vars(losses).items() if getattr(value, "__module__", "").startswith("segshift.losses.")
    }
    tested_there = {"symmetric_cross_entropy", "assignment_kl", "distillation_kl", "released_distillation"}  # _proda
    tested_there |= {"tag_cross_entropy", "category_domain_cross_entropy"}  # _tags: these take no logits of pixels
    assert {name for name in public if not name.startswith("_")} <= set(OF_LOGITS) | tested_there


@pytest.mark.parametrize("name", OF_LOGITS)
def test_gradient_equals_finite_differences(name: str) -> None:
    """Losses compute in float32, so differences are central ones over a random direction, not torch's gradcheck."""
    # Pixels of well separated entropies: where two change ranks, entropy_in_range has a kink.
    temperature = torch.linspace(0.3, 3.0, 35).view(1, 1, 5, 7)
    logits = torch.tensor([1.0, 0.5, -0.5, 0.2]).view(1, 4, 1, 1) * temperature + torch.zeros(2, 1, 1, 1)
    direction = random_logits(4, scale=1.0)
    direction /= direction.norm()
    at = logits.clone().requires_grad_()
    OF_LOGITS[name](at).backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    step = 0.02
    ahead, behind = (OF_LOGITS[name](logits + sign * step * direction).double().item() for sign in (1, -1))
    assert (at.grad * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=2e-2, abs=2e-5)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    logits = random_logits().bfloat16()
    loss = OF_LOGITS[name](logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, OF_LOGITS[name](logits.float()))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(OF_LOGITS[name](logits.float()), loss)


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_no_nan(name: str, dtype: torch.dtype) -> None:
    logits = random_logits().sign().mul(1e4).to(dtype).requires_grad_()
    loss = OF_LOGITS[name](logits)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", OF_LOGITS)
def test_input_is_left_as_it_was(name: str) -> None:
    logits = random_logits()
    before = logits.clone()
    OF_LOGITS[name](logits)
    assert torch.equal(logits, before)
