"""MinEnt against its paper's step (methods.md section 3) in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from restated import compare, plain_copy, segment_source, up
from torch import Tensor

from segshift.engine.trainer import Loop, one_step
from segshift.methods.advent import MinEntSettings
from segshift.types import Batch
from tiny import CLASSES, SHARES, TinyNet, build, source_batch, target_batch


def entropy_loss(logits: Tensor, low: float, high: float) -> Tensor:
    """Mean over N, H, W of -sum p log2 p / log2 K, over the pixels between two quantiles of their image."""
    p = F.softmax(logits, dim=1)
    per_pixel = -(p * torch.log2(p + 1e-30)).sum(dim=1) / math.log2(CLASSES)
    kept = []
    for image in per_pixel:
        ranked = image.reshape(-1)[image.reshape(-1).argsort(stable=True)]
        kept.append(ranked[int(low * ranked.numel()) : int(high * ranked.numel())])
    return torch.cat(kept).mean()


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.7, 1.0), (0.0, 0.7)], ids=["whole", "upper", "lower"])
@pytest.mark.parametrize("prior", [0.0, 0.7], ids=["plain", "prior"])
def test_step_is_the_papers(aux: bool, bounds: tuple[float, float], prior: float) -> None:
    method = build("minent", TinyNet(aux), entropy_range=bounds, prior={"weight": prior, "mu": 0.9})
    plain = plain_copy(method, [])

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        prediction = plain.net(target.image)
        main = up(prediction.logits, target.image.shape)
        losses = {"entropy": 0.001 * entropy_loss(main, *bounds)}
        if prediction.aux is not None:
            losses["entropy_aux"] = 0.0002 * entropy_loss(up(prediction.aux, target.image.shape), *bounds)
        if prior:
            shares = F.softmax(main, dim=1).permute(1, 0, 2, 3).reshape(CLASSES, -1).mean(1)
            losses["prior"] = prior * F.relu(0.9 * SHARES - shares).sum()
            assert losses["prior"] > 0, "the prior shall have something to say here"
        plain.keep(**losses).backward()  # type: ignore[no-untyped-call]

    compare(method, [], plain, step)


def test_defaults_are_the_releases() -> None:
    settings = MinEntSettings()
    assert (settings.entropy_weight, settings.aux_entropy_weight, settings.aux_weight) == (1e-3, 2e-4, 0.1)
    assert settings.entropy_range == (0.0, 1.0)
    assert not settings.wants_class_shares
    assert MinEntSettings.model_validate({"prior": {"weight": 1}}).wants_class_shares


def test_entropy_of_the_target_falls() -> None:
    method = build("minent", TinyNet(), entropy_weight=1.0, optimizer={"lr": 0.05, "head_factor": 1}).train()
    tuned = method.tuned()
    loop = Loop(steps=20, seed=0, device=torch.device("cpu"))
    entropies = [
        one_step(method, tuned, source_batch(step), target_batch(step), step, loop)["entropy"].item()
        for step in range(20)
    ]
    assert entropies[-1] < 0.8 * entropies[0]
