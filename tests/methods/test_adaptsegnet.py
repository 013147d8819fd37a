"""AdaptSegNet against its paper's step (methods.md section 2) in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from restated import align_outputs, compare, plain_copy
from torch import Tensor

from segshift.methods.adaptsegnet import AdaptSegNet, AlignmentSettings
from segshift.types import Batch
from tiny import TinyNet, build


def softmax(logits: Tensor) -> Tensor:
    return torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)


def vanilla(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def least_squares(scores: Tensor, domain: float) -> Tensor:
    return F.mse_loss(scores, torch.full_like(scores, domain))


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("gan", ["vanilla", "least_squares"])
def test_step_is_the_papers(aux: bool, gan: str) -> None:
    weights: dict[str, Any] = {} if gan == "vanilla" else {"adversarial_weight": 0.01, "aux_adversarial_weight": 0.003}
    method = build("adaptsegnet", TinyNet(aux), gan=gan, **weights)
    assert isinstance(method, AdaptSegNet)
    discriminators = list(method.discriminators)
    plain = plain_copy(method, discriminators)
    domain_loss = vanilla if gan == "vanilla" else least_squares
    numbers = (1e-3, 2e-4) if gan == "vanilla" else (0.01, 0.003)

    def step(source: Batch, target: Batch) -> None:
        align_outputs(plain, softmax, domain_loss, numbers, source, target)

    compare(method, discriminators, plain, step)


def test_defaults_are_the_releases() -> None:
    settings = AlignmentSettings()
    assert (settings.adversarial_weight, settings.aux_adversarial_weight, settings.aux_weight) == (1e-3, 2e-4, 0.1)
    assert settings.gan == "vanilla"
    net, discriminator = settings.optimizer, settings.discriminator
    assert (net.kind, net.lr, net.head_factor, net.momentum, net.weight_decay, net.power) == (
        "sgd", 2.5e-4, 10, 0.9, 5e-4, 0.9,
    )  # fmt: skip
    assert (discriminator.lr, discriminator.betas, discriminator.power) == (1e-4, (0.9, 0.99), 0.9)


@pytest.mark.parametrize("aux", [False, True])
def test_a_discriminator_for_each_head(aux: bool) -> None:
    method = build("adaptsegnet", TinyNet(aux))
    assert isinstance(method, AdaptSegNet)
    assert len(method.discriminators) == 1 + aux
