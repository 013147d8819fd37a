"""AdvEnt against its paper's step (methods.md section 3) in plain torch: AdaptSegNet's on weighted self-information."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from restated import align_outputs, compare, plain_copy
from torch import Tensor

from segshift.methods.advent import Advent, AdventSettings
from segshift.types import Batch
from tiny import CLASSES, SHARES, TinyNet, build


def self_information(logits: Tensor) -> Tensor:
    """As the release writes it: base 2, 1e-30 inside the logarithm."""
    p = F.softmax(logits, dim=1)
    return -torch.mul(p, torch.log2(p + 1e-30)) / math.log2(CLASSES)


def vanilla(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def least_squares(scores: Tensor, domain: float) -> Tensor:
    return F.mse_loss(scores, torch.full_like(scores, domain))


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("gan", ["vanilla", "least_squares"])
@pytest.mark.parametrize("prior", [0.0, 0.7], ids=["plain", "prior"])
def test_step_is_the_papers(aux: bool, gan: str, prior: float) -> None:
    method = build("advent", TinyNet(aux), gan=gan, prior={"weight": prior, "mu": 0.9})
    assert isinstance(method, Advent)
    discriminators = list(method.discriminators)
    plain = plain_copy(method, discriminators)

    def on_target(logits: Tensor) -> dict[str, Tensor]:
        if not prior:
            return {}
        shares = F.softmax(logits, dim=1).permute(1, 0, 2, 3).reshape(CLASSES, -1).mean(1)
        loss = sum((F.relu(0.9 * SHARES[c] - shares[c]) for c in range(CLASSES)), torch.zeros(()))
        assert loss > 0, "the prior shall have something to say here"
        return {"prior": prior * loss}

    def step(source: Batch, target: Batch) -> None:
        domain_loss = vanilla if gan == "vanilla" else least_squares
        align_outputs(plain, self_information, domain_loss, (1e-3, 2e-4), source, target, on_target)

    compare(method, discriminators, plain, step)


def test_defaults_are_the_releases() -> None:
    settings = AdventSettings()
    assert (settings.adversarial_weight, settings.aux_adversarial_weight, settings.aux_weight) == (1e-3, 2e-4, 0.1)
    assert settings.gan == "vanilla"
    assert settings.prior.weight == 0
    assert not settings.wants_class_shares
    assert AdventSettings.model_validate({"prior": {"weight": 1}}).wants_class_shares
