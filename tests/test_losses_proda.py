"""Losses of ProDA: against restatements in numpy (float64) and in recorded operations, and over nothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import test_losses
from segshift import losses
from segshift.types import IGNORE

B, K, H, W = 2, 4, 5, 7
REVERSE = -math.log(1e-4)


def normal(seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(B, K, H, W, generator=torch.Generator().manual_seed(seed)) * scale


def labels_of(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (B, H, W), generator=generator)
    return labels.masked_fill(torch.rand(B, H, W, generator=generator) < 0.4, IGNORE)


MASK = labels_of() != IGNORE
OTHER = normal(9)
PRESENT = torch.tensor([True, False, True, True])

CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric_cross_entropy": lambda z, m: losses.symmetric_cross_entropy(z, labels_of().where(m, IGNORE), 0.1, 1.0),
    "assignment_kl": lambda z, m: losses.assignment_kl(z, OTHER, 0.7, m),
    "assignment_kl_present": lambda z, m: losses.assignment_kl(z, OTHER, 0.7, m, PRESENT),
    "distillation_kl": lambda z, m: losses.distillation_kl(z, OTHER, m),
    "released_distillation": lambda z, m: losses.released_distillation(z, OTHER, m),
}
every_loss = pytest.mark.parametrize("name", CALLS)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.detach().clone().requires_grad_()
    value = loss(at)
    value.backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    return value.detach(), at.grad


def softmax(logits: Tensor) -> np.ndarray:
    z = logits.detach().double().numpy()
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def mean_over(per_pixel: np.ndarray, mask: Tensor) -> float:
    return float(per_pixel[mask.numpy()].mean())


def divergence(student: Tensor, teacher: Tensor) -> np.ndarray:
    t, s = softmax(teacher), softmax(student)
    return np.asarray((t * (np.log(t) - np.log(s))).sum(axis=1))


# ---- symmetric cross-entropy


def plain_symmetric(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> float:
    """Clamps as in the release."""
    p, total, count = softmax(logits), 0.0, 0
    for (b, y, x), label in np.ndenumerate(labels.numpy()):
        if label != IGNORE:
            q, onehot = p[b, :, y, x], np.eye(K)[label]
            total -= alpha * math.log(q[label])
            total -= beta * (np.clip(q, 1e-7, 1) * np.log(np.clip(onehot, 1e-4, 1))).sum()
            count += 1
    return total / count


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 1.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_symmetric_cross_entropy(alpha: float, beta: float, scale: float) -> None:
    logits, labels = normal(scale=scale), labels_of()
    found = losses.symmetric_cross_entropy(logits, labels, alpha, beta).item()
    assert found == pytest.approx(plain_symmetric(logits, labels, alpha, beta), rel=1e-5)


def test_symmetric_cross_entropy_by_its_parts() -> None:
    """alpha times the cross-entropy, and 9.21 beta (1 - p_y): a mean absolute error."""
    logits, labels = normal(scale=1.0), labels_of()
    assert losses.symmetric_cross_entropy(logits, labels, 0.3, 0.0).item() == pytest.approx(
        0.3 * losses.cross_entropy(logits, labels).item(), rel=1e-6
    )
    own = np.take_along_axis(softmax(logits), labels.clamp(max=K - 1).numpy()[:, None], axis=1)[:, 0]
    assert losses.symmetric_cross_entropy(logits, labels, 0.0, 1.0).item() == pytest.approx(
        9.210340 * mean_over(1 - own, labels != IGNORE), rel=1e-5
    )


def recorded_symmetric(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """As autograd records the release's operations."""
    valid = (labels != IGNORE).double()
    p = logits.softmax(1).clamp(min=1e-7, max=1.0)
    onehot = F.one_hot(labels.clamp(max=K), K + 1)[..., :K].permute(0, 3, 1, 2).to(logits.dtype).clamp(1e-4, 1.0)
    reverse = -(p * onehot.log()).sum(1)
    return beta * (reverse * valid).sum() / valid.sum() + alpha * F.cross_entropy(logits, labels, ignore_index=IGNORE)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 1.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("scale", [1.0, 8.0, 30.0])
def test_gradient_of_symmetric_cross_entropy(alpha: float, beta: float, scale: float) -> None:
    """At a scale of 8 and more, some probabilities are below the clamp and give none."""
    logits, labels = normal(scale=scale), labels_of()
    _, found = gradient(lambda z: losses.symmetric_cross_entropy(z, labels, alpha, beta), logits)
    _, wanted = gradient(lambda z: recorded_symmetric(z, labels, alpha, beta), logits.double())
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-7)
    assert (found.movedim(1, 0)[:, labels == IGNORE] == 0).all()


def test_probabilities_below_the_clamp_still_count_as_much() -> None:
    logits = torch.tensor([0.0, -40.0, -40.0]).view(1, 3, 1, 1)
    found = losses.symmetric_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.int64), 0.0, 1.0)
    assert found.item() == pytest.approx(2e-7 * REVERSE, rel=1e-4)


@pytest.mark.parametrize(("logit", "learns"), [(-15.0, True), (-17.0, False), (-40.0, False)])
def test_probabilities_below_the_clamp_have_no_gradient(logit: float, learns: bool) -> None:
    """exp(-16.1) is 1e-7."""
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    _, found = gradient(
        lambda z: losses.symmetric_cross_entropy(z, label, 0.0, 1.0), torch.tensor([0.0, logit]).view(1, 2, 1, 1)
    )
    assert (found[0, 1] > 0).item() is learns
    assert (found == 0).all().item() is not learns


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 1.0), (0.1, -1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_symmetric_cross_entropy_refuses_negative_weights(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="alpha and beta must not be negative"):
        losses.symmetric_cross_entropy(normal(), labels_of(), alpha, beta)


def test_symmetric_cross_entropy_refuses_a_label_that_is_no_class() -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        losses.symmetric_cross_entropy(normal(), torch.full((B, H, W), K), 0.1, 1.0)


# ---- divergences


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0, 5.0])
def test_assignment_kl(temperature: float) -> None:
    student, teacher = normal().abs(), normal(1).abs()
    wanted = mean_over(divergence(-temperature * student, -temperature * teacher), MASK)
    assert losses.assignment_kl(student, teacher, temperature, MASK).item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_assignment_kl_over_the_classes_that_have_a_prototype() -> None:
    student, teacher = normal().abs(), normal(1).abs()
    student[:, 1], teacher[:, 1] = math.inf, 0.0
    wanted = losses.assignment_kl(student[:, [0, 2, 3]], teacher[:, [0, 2, 3]], 1.3, MASK)
    value, found = gradient(lambda d: losses.assignment_kl(d, teacher, 1.3, MASK, PRESENT), student)
    torch.testing.assert_close(value, wanted)
    assert (found[:, 1] == 0).all()
    assert (found[:, [0, 2, 3]].abs().sum(1)[MASK] > 0).all()
    for everything in (torch.ones(K, dtype=torch.bool), None):
        torch.testing.assert_close(
            losses.assignment_kl(normal(), OTHER, 1.3, MASK, everything),
            losses.assignment_kl(normal(), OTHER, 1.3, MASK),
        )


@pytest.mark.parametrize("mask", [MASK, None])
def test_distillation_kl(mask: Tensor | None) -> None:
    student, teacher = normal(), normal(1)
    pixels = torch.ones(B, H, W, dtype=torch.bool) if mask is None else mask
    wanted = mean_over(divergence(student, teacher), pixels)
    assert losses.distillation_kl(student, teacher, mask).item() == pytest.approx(wanted, rel=1e-5)


def test_divergences_have_the_teacher_first() -> None:
    """A student that is too certain costs more than one that is not certain enough."""
    certain, vague = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    certain[:, 0] = 10
    assert losses.distillation_kl(certain, vague).item() == pytest.approx(0.5 * 10 - math.log(2), rel=1e-3)
    assert losses.distillation_kl(vague, certain).item() == pytest.approx(math.log(2), rel=1e-2)
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    assert losses.assignment_kl(-certain, vague, 1.0, one).item() == pytest.approx(0.5 * 10 - math.log(2), rel=1e-3)


def test_gradients_of_divergences_are_those_of_torchs() -> None:
    def recorded(student: Tensor, teacher: Tensor) -> Tensor:
        per_pixel = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)
        return per_pixel[MASK].mean()

    student, teacher = normal(), normal(1)
    found = gradient(lambda z: losses.distillation_kl(z, teacher, MASK), student)
    wanted = gradient(lambda z: recorded(z, teacher.double()), student.double())
    torch.testing.assert_close(found[1], wanted[1].float(), rtol=1e-4, atol=1e-7)
    found = gradient(lambda d: losses.assignment_kl(d, teacher, 0.6, MASK), student)
    wanted = gradient(lambda d: recorded(-0.6 * d, -0.6 * teacher.double()), student.double())
    torch.testing.assert_close(found[1], wanted[1].float(), rtol=1e-4, atol=1e-7)


def test_nothing_flows_to_the_teacher() -> None:
    student, teacher = normal().requires_grad_(), normal(1).requires_grad_()
    for loss in (
        losses.assignment_kl(student, teacher, 1.0, MASK),
        losses.distillation_kl(student, teacher),
        losses.released_distillation(student, teacher),
    ):
        loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=12),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_divergences_are_not_negative_and_zero_of_equals(values: list[float], dtype: torch.dtype) -> None:
    half = len(values) // 2
    one, other = (torch.tensor(v, dtype=dtype).view(1, half, 1, 1) for v in (values[:half], values[half : 2 * half]))
    assert losses.distillation_kl(one, other).item() >= -1e-6
    value, found = gradient(lambda z: losses.distillation_kl(z, other), other)
    assert abs(value.item()) < 1e-6
    assert (found == 0).all()
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    assert losses.assignment_kl(one, other, 0.0, mask).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_assignment_kl_refuses_other_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be finite and not negative"):
        losses.assignment_kl(normal(), OTHER, temperature, MASK)


def test_assignment_kl_refuses_prototypes_of_other_classes() -> None:
    with pytest.raises(ValueError, match="no class has a prototype"):
        losses.assignment_kl(normal(), OTHER, 1.0, MASK, torch.zeros(K, dtype=torch.bool))
    with pytest.raises(ValueError, match="`present` is of 5 classes, the distances of 4"):
        inspect.unwrap(losses.assignment_kl)(normal(), OTHER, 1.0, MASK, torch.ones(5, dtype=torch.bool))


# ---- the release's distillation


def test_released_distillation_is_what_the_release_computes() -> None:
    """F.kl_div of probabilities, its default mean over all elements; the gradient of p is -p~ / (N K H W)."""
    student, teacher = normal(), normal(1)
    wanted = gradient(
        lambda z: F.kl_div(z.softmax(1), teacher.double().softmax(1), reduction="none").mean(), student.double()
    )
    found = gradient(lambda z: losses.released_distillation(z, teacher), student)
    torch.testing.assert_close(found[0], wanted[0].float())
    torch.testing.assert_close(found[1], wanted[1].float(), rtol=1e-4, atol=1e-8)
    p = student.softmax(1).requires_grad_()
    (of_p,) = torch.autograd.grad(F.kl_div(p, teacher.softmax(1), reduction="none").mean(), p)
    torch.testing.assert_close(of_p, -teacher.softmax(1) / (B * K * H * W))
    (through,) = torch.autograd.grad(student.requires_grad_().softmax(1), student, of_p)
    torch.testing.assert_close(found[1], through)


def test_released_distillation_of_some_pixels() -> None:
    student, teacher = normal(), normal(1)
    t, s = softmax(teacher), softmax(student)
    wanted = mean_over((t * (np.log(t) - s)).mean(axis=1), MASK)
    assert losses.released_distillation(student, teacher, MASK).item() == pytest.approx(wanted, rel=1e-5)


def test_only_the_corrected_distillation_rests_at_the_teacher() -> None:
    teacher = torch.tensor([0.3, 0.0, -1.0]).view(1, 3, 1, 1)
    _, corrected = gradient(lambda z: losses.distillation_kl(z, teacher), teacher)
    _, released = gradient(lambda z: losses.released_distillation(z, teacher), teacher)
    torch.testing.assert_close(corrected, torch.zeros_like(teacher), atol=1e-7, rtol=0)
    assert released[0, 0] < -0.01  # towards the most probable class without end


# ---- what all of them promise


def test_every_loss_of_the_package_is_tested() -> None:
    functions = {name for name in losses.__all__ if callable(getattr(losses, name))}
    of_tags = {"tag_cross_entropy", "category_domain_cross_entropy"}  # in test_losses_tags.py
    assert functions <= test_losses.OF_LOGITS.keys() | CALLS.keys() | of_tags
    for module in ("adversarial", "between", "of_labels", "of_tags", "of_uncertainty"):
        defined = vars(getattr(losses, module))
        public = {n for n, v in defined.items() if getattr(v, "__module__", "") == f"segshift.losses.{module}"}
        assert {name for name in public if not name.startswith("_")} <= set(losses.__all__)


@every_loss
def test_over_nothing_it_is_zero_with_a_gradient_of_zero(name: str) -> None:
    value, found = gradient(lambda z: CALLS[name](z, torch.zeros(B, H, W, dtype=torch.bool)), normal())
    assert value.item() == 0.0
    assert torch.equal(found, torch.zeros_like(found))


def test_over_no_image_it_is_zero() -> None:
    none = torch.zeros(0, K, H, W)
    for loss in (losses.distillation_kl(none, none), losses.released_distillation(none, none)):
        assert loss.item() == 0.0


@every_loss
def test_pixels_that_do_not_count_get_no_gradient(name: str) -> None:
    _, found = gradient(lambda z: CALLS[name](z, MASK), normal())
    assert torch.equal(found.abs().sum(1) > 0, MASK)
    changed = normal() + 5 * normal(3) * (~MASK).unsqueeze(1)
    torch.testing.assert_close(CALLS[name](changed, MASK), CALLS[name](normal(), MASK), rtol=1e-6, atol=0)


@every_loss
def test_gradient_equals_finite_differences(name: str) -> None:
    logits, direction = normal(scale=0.7), normal(4, 1.0)
    direction /= direction.norm()
    _, found = gradient(lambda z: CALLS[name](z, MASK), logits)
    ahead, behind = (CALLS[name](logits + sign * 0.05 * direction, MASK).double().item() for sign in (1, -1))
    assert (found * direction).sum().item() == pytest.approx((ahead - behind) / 0.1, rel=2e-2, abs=2e-5)


@every_loss
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    logits = normal().bfloat16()
    loss, found = gradient(lambda z: CALLS[name](z, MASK), logits)
    assert loss.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(loss, CALLS[name](logits.float(), MASK))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(CALLS[name](logits.float(), MASK), loss)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_no_nan(name: str, dtype: torch.dtype) -> None:
    loss, found = gradient(lambda z: CALLS[name](z, MASK), normal().sign().mul(1e4).to(dtype))
    assert torch.isfinite(loss)
    assert torch.isfinite(found).all()


@every_loss
def test_input_is_left_as_it_was(name: str) -> None:
    logits = normal()
    gradient(lambda z: CALLS[name](z, MASK), logits)
    assert torch.equal(logits, normal())
    assert torch.equal(OTHER, normal(9))
    assert torch.equal(MASK, labels_of() != IGNORE)
