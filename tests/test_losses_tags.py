"""Losses of tags and of categories' discriminators: restated value by value; unknown and absent ones have no part."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.losses import SOURCE, TARGET, category_domain_cross_entropy, tag_cross_entropy

TAGS = torch.tensor([[1.0, 0, -1, 1], [-1, -1, -1, 0]])


def logits_of(seed: int = 0) -> Tensor:
    return 2 * torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))


def naive_tags(logits: Tensor, tags: Tensor) -> float:
    total = []
    for logit, tag in zip(logits.flatten().tolist(), tags.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        if tag >= 0:
            total.append(-tag * math.log(p) - (1 - tag) * math.log(1 - p))
    return sum(total) / len(total) if total else 0.0


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.lists(st.sampled_from([1.0, 0.0, -1.0]), min_size=8, max_size=8))
def test_tags_are_a_mean_over_the_known_ones(seed: int, tags: list[float]) -> None:
    logits, wanted = logits_of(seed), torch.tensor(tags).view(2, 4)
    assert tag_cross_entropy(logits, wanted).item() == pytest.approx(naive_tags(logits, wanted), rel=1e-4, abs=1e-6)


def test_unknown_tags_have_no_part() -> None:
    logits = logits_of().requires_grad_()
    tag_cross_entropy(logits, TAGS).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert ((logits.grad != 0) == (TAGS >= 0)).all()
    p = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, torch.where(TAGS >= 0, (p - TAGS) / 4, 0))


@pytest.mark.parametrize("domain", [SOURCE, TARGET])
def test_categories_are_summed_where_present(domain: float) -> None:
    scores = logits_of().requires_grad_()
    present = TAGS > 0
    loss = category_domain_cross_entropy(scores, present, domain)
    p = scores.detach().sigmoid()
    of_domain = p if domain == TARGET else 1 - p
    wanted = sum(-math.log(of_domain[b, c].item()) for b in range(2) for c in range(4) if present[b, c]) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.where(present, (p - domain) / 2, 0))


def test_nothing_known_and_nothing_present_is_a_loss_of_0() -> None:
    logits = logits_of().requires_grad_()
    losses = [
        tag_cross_entropy(logits, torch.full_like(TAGS, -1)),
        category_domain_cross_entropy(logits, torch.zeros(2, 4, dtype=torch.bool), SOURCE),
        tag_cross_entropy(logits[:0], TAGS[:0]),
        category_domain_cross_entropy(logits[:0], TAGS[:0] > 0, SOURCE),
    ]
    for loss in losses:
        assert loss.item() == 0
        assert loss.requires_grad
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_any_size_and_precision(dtype: torch.dtype, size: float) -> None:
    logits = (size * logits_of()).to(dtype).requires_grad_()
    for loss in (tag_cross_entropy(logits, TAGS), category_domain_cross_entropy(logits, TAGS > 0, TARGET)):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
