"""CBST against its paper's objective for the network (methods.md section 5) in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from restated import Batches, compare, learn_target, negative_log, plain_copy, segment_source
from test_self_training import small, unlabelled
from torch import Tensor

from segshift.methods.cbst import CbstSettings
from segshift.types import Batch
from tiny import CLASSES, TinyNet, build

THRESHOLDS = torch.tensor([0.9, 0.2, 0.6])


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("target_weight", [1.0, 0.3])
def test_step_is_the_papers(aux: bool, target_weight: float) -> None:
    """The loss has no thresholds, which are constant in this half of the alternation: they change no gradient."""
    # Rates of the release are too small to see in the weights what two steps do.
    method = build("cbst", TinyNet(aux), target_weight=target_weight, optimizer={"lr": 0.05})
    plain = plain_copy(method, [], lr=0.05, power=0)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels = target.pseudo_label
        assert labels is not None
        chosen = labels != 255
        one_hot = F.one_hot(labels.where(chosen, 0), CLASSES) * chosen[..., None]
        constant = (one_hot * torch.log(THRESHOLDS)).sum() / chosen.sum()

        def objective(logits: Tensor) -> dict[str, Tensor]:
            ratio = F.softmax(logits, dim=1).permute(0, 2, 3, 1) / THRESHOLDS
            return {"pseudo": -(one_hot * torch.log(ratio)).sum() / chosen.sum() - constant}

        learn_target(plain, target, objective, target_weight)

    compare(method, [], plain, step)


@pytest.mark.parametrize("batches", [small, unlabelled])
def test_a_single_image_and_no_labelled_pixel(batches: Batches) -> None:
    method = build("cbst")
    plain = plain_copy(method, [], lr=5e-5, power=0)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels = target.pseudo_label
        assert labels is not None
        learn_target(plain, target, lambda logits: {"pseudo": negative_log(logits, labels)})

    compare(method, [], plain, step, batches)


def test_defaults_are_the_releases() -> None:
    settings = CbstSettings()
    assert (settings.aux_weight, settings.target_weight) == (0.1, 1.0)
    optimizer = settings.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.head_factor) == ("sgd", 5e-5, 10)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.power) == (0.9, 5e-4, 0)


@pytest.mark.parametrize("name", ["cbst", "crst", "tpld"])
def test_the_rate_is_constant_whatever_else_is_set(name: str) -> None:
    """One value of the optimiser's settings leaves the others as they are."""
    for own in ({}, {"lr": 1e-3}, {"kind": "adamw"}):
        method = build(name, optimizer=own)
        net = method.tuned()["net"]
        assert {net.factor(step, 10) for step in range(10)} == {1}
        lr = own.get("lr", 5e-5)
        assert [group["lr"] for group in net.optimizer.param_groups] == pytest.approx([lr, 10 * float(lr)])
