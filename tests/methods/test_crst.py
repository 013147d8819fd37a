"""CRST against its paper's losses (methods.md section 6) in plain torch, with the weight of paper and of release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from restated import REGULARISERS, Batches, compare, learn_target, mean_where, negative_log, plain_copy, segment_source
from test_self_training import small, unlabelled
from torch import Tensor

from segshift.engine.trainer import Loop, one_step
from segshift.methods.crst import CrstSettings
from segshift.types import Batch
from tiny import TinyNet, build, source_batch, target_batch

LR = 0.05
"""Rates of the release are too small to see in the weights what two steps do."""


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, 0.1**2),
        ({"weight": 0.5}, 0.5**2),
        ({"released_weight": False}, 0.1),
        ({"weight": 0.5, "released_weight": False}, 0.5),
        ({"regulariser": "mrent"}, 0.1),
        ({"regulariser": "mrent", "weight": 0.5}, 0.5),
        ({"regulariser": "mrl2"}, 0.025),
        ({"regulariser": "mrl2", "weight": 0.0}, 0.0),
        ({"target_weight": 0.3}, 0.1**2),
    ],
    ids=str,
)
def test_step_is_the_papers(aux: bool, settings: dict[str, Any], alpha: float) -> None:
    method = build("crst", TinyNet(aux), optimizer={"lr": LR}, **settings)
    plain = plain_copy(method, [], lr=LR, power=0)
    name = settings.get("regulariser", "mrkld")

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels = target.pseudo_label
        assert labels is not None

        def regularised(logits: Tensor) -> dict[str, Tensor]:
            per_pixel = REGULARISERS[name](F.softmax(logits, dim=1))
            return {"pseudo": negative_log(logits, labels), name: alpha * per_pixel[labels != 255].mean()}

        learn_target(plain, target, regularised, settings.get("target_weight", 1.0))

    compare(method, [], plain, step)


def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """-sum_k y_k log p_k of the pixels with a soft label, mean."""
    return mean_where(-(soft * torch.log(F.softmax(logits, dim=1))).sum(1), soft.sum(1) > 0.5)


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("target_weight", [1.0, 0.3])
def test_step_of_lrent_is_the_papers(aux: bool, target_weight: float) -> None:
    method = build("crst", TinyNet(aux), regulariser="lrent", target_weight=target_weight, optimizer={"lr": LR})
    assert method.needs == {"image", "pseudo_label", "soft_label"}
    plain = plain_copy(method, [], lr=LR, power=0)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        soft = target.soft_label
        assert soft is not None
        learn_target(plain, target, lambda logits: {"pseudo": soft_cross_entropy(logits, soft)}, target_weight)

    compare(method, [], plain, step)


@pytest.mark.parametrize("regulariser", ["mrkld", "lrent"])
@pytest.mark.parametrize("batches", [small, unlabelled])
def test_a_single_image_and_no_labelled_pixel(batches: Batches, regulariser: str) -> None:
    method = build("crst", TinyNet(aux=True), regulariser=regulariser)
    plain = plain_copy(method, [], lr=5e-5, power=0)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels, soft = target.pseudo_label, target.soft_label
        assert labels is not None
        assert soft is not None

        def losses(logits: Tensor) -> dict[str, Tensor]:
            if regulariser == "lrent":
                return {"pseudo": soft_cross_entropy(logits, soft)}
            per_pixel = REGULARISERS["mrkld"](F.softmax(logits, dim=1))
            return {"pseudo": negative_log(logits, labels), "mrkld": 0.01 * mean_where(per_pixel, labels != 255)}

        learn_target(plain, target, losses)

    compare(method, [], plain, step, batches)


def test_defaults_are_the_releases() -> None:
    settings = CrstSettings()
    assert (settings.regulariser, settings.weight, settings.released_weight) == ("mrkld", None, True)
    assert (settings.aux_weight, settings.target_weight) == (0.1, 1.0)
    assert (settings.optimizer.lr, settings.optimizer.power) == (5e-5, 0)


def test_lrent_has_its_weight_in_its_labels() -> None:
    with pytest.raises(ValueError, match="labels stage"):
        CrstSettings(regulariser="lrent", weight=0.25)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        CrstSettings(weight=-0.1)
    with pytest.raises(ValueError, match="lrent"):
        CrstSettings(regulariser="kld")


@pytest.mark.parametrize("regulariser", ["mrkld", "mrent", "mrl2"])
def test_regularised_training_is_less_sure_of_the_target(regulariser: str) -> None:
    def confidence(weight: float) -> float:
        settings: dict[str, Any] = {"regulariser": regulariser, "weight": weight, "released_weight": False}
        method = build("crst", optimizer={"lr": 0.1, "head_factor": 1}, **settings).train()
        tuned, loop = method.tuned(), Loop(steps=15, seed=0, device=torch.device("cpu"))
        for step in range(15):
            one_step(method, tuned, source_batch(step), target_batch(step), step, loop)
        with torch.no_grad():
            p = method.predictor()(target_batch(0).image).logits.softmax(dim=1)
        return float(p.amax(dim=1).mean())

    assert confidence(2.0) < confidence(0.0) - 0.02


def test_a_target_without_soft_labels_is_refused() -> None:
    groups = build("crst", regulariser="lrent").step(source_batch(0), replace(target_batch(0), soft_label=None))
    next(groups)
    with pytest.raises(ValueError, match="no soft labels"):
        next(groups)
