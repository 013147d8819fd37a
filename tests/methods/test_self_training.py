"""Self-training on hard pseudo-labels (methods.md section 4) against its step in plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from restated import Batches, compare, learn_target, negative_log, plain_copy, segment_source
from torch import Tensor

from segshift.engine.trainer import Loop, one_step
from segshift.methods.self_training import SelfTrainingSettings
from segshift.types import IGNORE, Batch
from tiny import TinyNet, build, source_batch, target_batch


def small(number: int) -> tuple[Batch, Batch]:
    """One image of each domain."""
    return source_batch(number, size=1), target_batch(number, size=1)


def unlabelled(number: int) -> tuple[Batch, Batch]:
    """No pixel of the target has a pseudo-label."""
    target = target_batch(number)
    assert target.pseudo_label is not None
    assert target.soft_label is not None
    nothing = torch.full_like(target.pseudo_label, IGNORE)
    return source_batch(number), replace(target, pseudo_label=nothing, soft_label=torch.zeros_like(target.soft_label))


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("weights", [(0.1, 1.0), (0.4, 0.3)], ids=["default", "weighted"])
def test_step_is_the_restated_one(aux: bool, weights: tuple[float, float]) -> None:
    aux_weight, target_weight = weights
    method = build("self_training", TinyNet(aux), aux_weight=aux_weight, target_weight=target_weight)
    plain = plain_copy(method, [], aux_weight=aux_weight)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)

        def pseudo(logits: Tensor) -> dict[str, Tensor]:
            assert target.pseudo_label is not None
            return {"pseudo": F.cross_entropy(logits, target.pseudo_label, ignore_index=255)}

        learn_target(plain, target, pseudo, target_weight)

    compare(method, [], plain, step)


@pytest.mark.parametrize("batches", [small, unlabelled])
def test_a_single_image_and_no_labelled_pixel(batches: Batches) -> None:
    method = build("self_training", TinyNet(aux=True))
    plain = plain_copy(method, [])

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels = target.pseudo_label
        assert labels is not None
        learn_target(plain, target, lambda logits: {"pseudo": negative_log(logits, labels)})
        assert (plain.losses["pseudo"] == 0) == bool((labels == IGNORE).all())

    compare(method, [], plain, step, batches)


def test_defaults_are_the_releases() -> None:
    settings = SelfTrainingSettings()
    assert (settings.aux_weight, settings.target_weight) == (0.1, 1.0)
    assert (settings.optimizer.lr, settings.optimizer.power) == (2.5e-4, 0.9)


def test_the_pseudo_labels_are_learned() -> None:
    """What the target's labels say is learned although the source says nothing."""
    method = build("self_training", TinyNet(), optimizer={"lr": 0.1, "head_factor": 1}).train()
    tuned, loop = method.tuned(), Loop(steps=20, seed=0, device=torch.device("cpu"))
    source = replace(source_batch(0), label=torch.full_like(source_batch(0).image[:, 0], IGNORE, dtype=torch.int64))
    pseudo = [one_step(method, tuned, source, target_batch(0), step, loop)["pseudo"].item() for step in range(20)]
    assert pseudo[-1] < 0.85 * pseudo[0]


def test_a_target_without_labels_is_refused() -> None:
    groups = build("self_training").step(source_batch(0), replace(target_batch(0), pseudo_label=None))
    next(groups)
    with pytest.raises(ValueError, match="no pseudo-labels"):
        next(groups)
