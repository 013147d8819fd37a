"""TPLD against its two steps (methods.md sections 7 and 8) in plain torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from restated import (
    REGULARISERS,
    Batches,
    Plain,
    both,
    compare,
    learn_target,
    mean_where,
    plain_copy,
    requires_grad,
    segment_source,
    up,
)
from test_self_training import small, unlabelled
from torch import Tensor

from segshift.engine.trainer import Loop, one_step
from segshift.methods.tpld import Tpld, TpldSettings
from segshift.types import Batch
from tiny import CLASSES, TinyNet, build, source_batch, target_batch

LR = 0.05
"""Rates of CRST's release are too small to see in the weights what two steps do."""


def bootstrapped(logits: Tensor, labels: Tensor, beta: float, hard: bool, detach: bool) -> Tensor:
    """-sum_k [beta t_k + (1 - beta) q_k] log p_k, mean over the labelled pixels."""
    p = F.softmax(logits, dim=1)
    known = labels != 255
    t = F.one_hot(labels.where(known, 0), CLASSES).permute(0, 3, 1, 2)
    q = p
    if hard:
        q = F.one_hot(p.argmax(dim=1), CLASSES).permute(0, 3, 1, 2).float()
    elif detach:
        q = p.detach()
    return mean_where(-((beta * t + (1 - beta) * q) * torch.log(p)).sum(dim=1), known)


def label_losses(logits: Tensor, labels: Tensor, settings: TpldSettings) -> dict[str, Tensor]:
    """What is learned from labels, in either phase."""
    losses = {
        "pseudo": bootstrapped(logits, labels, settings.beta, settings.hard_bootstrapping, settings.detach_target)
    }
    name, weight = settings.regulariser, settings.regulariser_weight
    if name != "none":
        weight = {"mrkld": 0.1, "mrent": 0.1, "mrl2": 0.025}[name] if weight is None else weight
        losses[name] = weight * mean_where(REGULARISERS[name](F.softmax(logits, dim=1)), labels != 255)
    return losses


# ---- phase 1


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"beta": 0.95},
        {"beta": 0.0},
        {"hard_bootstrapping": True},
        {"detach_target": True},
        {"hard_bootstrapping": True, "detach_target": True},
        {"regulariser": "mrkld"},
        {"regulariser": "mrent"},
        {"regulariser": "mrl2", "regulariser_weight": 0.5},
        {"target_weight": 0.3, "regulariser": "mrl2"},
    ],
    ids=str,
)
def test_step_of_phase_1_is_the_restated_one(aux: bool, own: dict[str, Any]) -> None:
    method = build("tpld", TinyNet(aux), optimizer={"lr": LR}, **own)
    assert isinstance(method, Tpld)
    assert not list(method.discriminators.parameters())
    run_phase_1(method, plain_copy(method, [], lr=LR, power=0))


@pytest.mark.parametrize("batches", [small, unlabelled])
def test_phase_1_with_a_single_image_and_with_no_labelled_pixel(batches: Batches) -> None:
    method = build("tpld", TinyNet(aux=True), regulariser="mrkld")
    assert isinstance(method, Tpld)
    run_phase_1(method, plain_copy(method, [], lr=5e-5, power=0), batches)


def run_phase_1(method: Tpld, plain: Plain, batches: Batches = both) -> None:
    settings = method.settings

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels = target.pseudo_label
        assert labels is not None
        learn_target(plain, target, lambda logits: label_losses(logits, labels, settings), settings.target_weight)

    compare(method, [], plain, step, batches)


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
def test_step_on_top_of_lrent_is_the_restated_one(aux: bool) -> None:
    method = build("tpld", TinyNet(aux), optimizer={"lr": LR}, regulariser="lrent", beta=0.6)
    assert method.needs == {"image", "pseudo_label", "soft_label"}
    plain = plain_copy(method, [], lr=LR, power=0)

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)
        labels, soft = target.pseudo_label, target.soft_label
        assert labels is not None
        assert soft is not None

        def learn(logits: Tensor) -> dict[str, Tensor]:
            log_p = torch.log(F.softmax(logits, dim=1))
            given = mean_where(-(soft * log_p).sum(dim=1), (labels != 255) & (soft.sum(dim=1) > 0))
            return {"pseudo": 0.6 * given + 0.4 * mean_where(-(log_p.exp() * log_p).sum(dim=1), labels != 255)}

        learn_target(plain, target, learn, 1.0)

    compare(method, [], plain, step, both)


# ---- phase 2


def self_information(logits: Tensor) -> Tensor:
    p = F.softmax(logits, dim=1)
    return -p * torch.log2(p + 1e-30) / torch.log2(torch.tensor(float(CLASSES)))


def vanilla(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def align_hard_to_easy(plain: Plain, settings: TpldSettings, source: Batch, target: Batch) -> None:
    """Phase 2 with flags, image by image: easy is 1, hard is 0, and what a batch lacks is left out."""
    labels, easy = target.pseudo_label, target.easy
    assert labels is not None
    assert easy is not None
    easy_ones = [i for i in range(len(easy)) if easy[i]]
    hard_ones = [i for i in range(len(easy)) if not easy[i]]

    requires_grad(plain.discriminators, False)
    segment_source(plain, source)

    prediction = plain.net(target.image)
    heads = [prediction.logits] if prediction.aux is None else [prediction.logits, prediction.aux]
    losses: dict[str, Tensor] = {}
    maps: list[Tensor] = []
    for head, suffix, weight, fooling, network in zip(
        heads,
        ("", "_aux"),
        (1.0, 0.1),
        (settings.adversarial_weight, settings.aux_adversarial_weight),
        plain.discriminators,
        strict=False,
    ):
        logits = up(head, target.image.shape)
        weight *= settings.target_weight
        if easy_ones:
            on_easy = label_losses(logits[easy_ones], labels[easy_ones], settings)
        else:
            on_easy = {"pseudo": 0 * logits.sum()}
            if settings.regulariser != "none":
                on_easy[settings.regulariser] = 0 * logits.sum()
        losses |= {name + suffix: weight * loss for name, loss in on_easy.items()}
        if settings.hard_label_weight:
            hard_labels = labels.clone()
            hard_labels[easy_ones] = 255
            on_hard = label_losses(logits, hard_labels, settings)
            weight *= settings.hard_label_weight
            losses |= {f"hard_{name}{suffix}": weight * loss for name, loss in on_hard.items()}
        maps.append(self_information(logits))
        if hard_ones:
            losses[f"adversarial{suffix}"] = fooling * vanilla(network(maps[-1][hard_ones]), 1.0)
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]

    requires_grad(plain.discriminators, True)
    for suffix, network, level in zip(("", "_aux"), plain.discriminators, maps, strict=False):
        if easy_ones:
            loss = vanilla(network(level[easy_ones].detach()), 1.0) / 2
            plain.keep(**{f"discriminator_easy{suffix}": loss}).backward()  # type: ignore[no-untyped-call]
        if hard_ones:
            loss = vanilla(network(level[hard_ones].detach()), 0.0) / 2
            plain.keep(**{f"discriminator_hard{suffix}": loss}).backward()  # type: ignore[no-untyped-call]


def run_phase_2(aux: bool, batches: Batches, **own: Any) -> Plain:
    method = build("tpld", TinyNet(aux), phase=2, optimizer={"lr": LR}, **own)
    assert isinstance(method, Tpld)
    assert method.needs == {"image", "pseudo_label", "easy"}
    discriminators = list(method.discriminators)
    assert len(discriminators) == 1 + aux
    plain = plain_copy(method, discriminators, lr=LR, power=0)

    def step(source: Batch, target: Batch) -> None:
        align_hard_to_easy(plain, method.settings, source, target)

    compare(method, discriminators, plain, step, batches)
    return plain


def with_easy(*easy: bool) -> Batches:
    """Batches of as many images as there are flags."""

    def batches(number: int) -> tuple[Batch, Batch]:
        size = len(easy)
        return source_batch(number, size), replace(target_batch(number, size), easy=torch.tensor(easy))

    return batches


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"adversarial_weight": 0.5, "aux_adversarial_weight": 0.25},
        {"regulariser": "mrkld"},
        {"hard_label_weight": 0.7},
        {"hard_label_weight": 0.7, "regulariser": "mrl2", "regulariser_weight": 0.5, "target_weight": 0.3},
        {"hard_bootstrapping": True},
        {"detach_target": True, "beta": 0.5},
    ],
    ids=str,
)
def test_step_of_phase_2_is_the_restated_one(aux: bool, own: dict[str, Any]) -> None:
    plain = run_phase_2(aux, with_easy(True, False), **own)
    assert {"pseudo", "adversarial", "discriminator_easy", "discriminator_hard"} <= set(plain.losses)


MIXTURES = {
    "uneven": (False, True, False),
    "all easy": (True, True),
    "all hard": (False, False),
    "one easy": (True,),
    "one hard": (False,),
}


@pytest.mark.parametrize("easy", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("hard_label_weight", [0.0, 0.7])
def test_phase_2_whatever_the_batch_holds(easy: tuple[bool, ...], hard_label_weight: float) -> None:
    plain = run_phase_2(True, with_easy(*easy), hard_label_weight=hard_label_weight, regulariser="mrkld")
    assert ("adversarial" in plain.losses) == ("discriminator_hard" in plain.losses) == (not all(easy))
    assert ("discriminator_easy" in plain.losses) == any(easy)
    assert (plain.losses["pseudo"] > 0) == any(easy)
    if hard_label_weight:
        assert (plain.losses["hard_pseudo"] > 0) == (not all(easy))


def test_phase_2_with_no_labelled_pixel() -> None:
    plain = run_phase_2(True, unlabelled, hard_label_weight=0.7, regulariser="mrkld")
    assert plain.losses["pseudo"] == plain.losses["hard_pseudo"] == 0


def test_kinds_that_come_and_go_between_steps() -> None:
    """The first batch has hard images alone, the second one easy ones alone."""
    kinds = {0: with_easy(False, False), 1: with_easy(True, True)}
    run_phase_2(True, lambda number: kinds[number](number))


# ---- settings


def test_defaults() -> None:
    settings = TpldSettings()
    assert (settings.phase, settings.beta, settings.hard_bootstrapping, settings.detach_target) == (
        1,
        0.8,
        False,
        False,
    )
    assert (settings.regulariser, settings.hard_label_weight) == ("none", 0)
    assert (settings.adversarial_weight, settings.aux_adversarial_weight) == (1e-3, 2e-4)
    assert (settings.optimizer.lr, settings.optimizer.power) == (5e-5, 0)
    assert (settings.discriminator.lr, settings.discriminator.betas) == (1e-4, (0.9, 0.99))


@pytest.mark.parametrize(
    "wrong",
    [{"phase": 3}, {"beta": 1.1}, {"beta": -0.1}, {"regulariser": "l2"}, {"hard_label_weight": -1.0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TpldSettings(**wrong)


def test_hard_maps_come_to_look_like_easy_ones() -> None:
    """With nothing else to learn and a discriminator that holds still, the adversarial loss falls in every step."""
    method = build("tpld", phase=2, adversarial_weight=1e3, discriminator={"lr": 1e-12}, optimizer={"lr": 1e-3}).train()
    tuned, loop = method.tuned(), Loop(steps=10, seed=0, device=torch.device("cpu"))
    source, target = unlabelled(0)
    source = replace(source, label=torch.full_like(source.image[:, 0], 255, dtype=torch.int64))
    losses = [one_step(method, tuned, source, target, step, loop)["adversarial"].item() for step in range(10)]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_easiness_is_what_the_discriminator_says_of_an_image() -> None:
    method = build("tpld", TinyNet(aux=True), phase=2, discriminator={"lr": 1e-2}).train()
    assert isinstance(method, Tpld)
    image = target_batch(0).image
    with torch.no_grad():
        method.predictor().eval()
        maps = self_information(up(method.predictor()(image).logits, image.shape))
        expected = [torch.sigmoid(method.discriminators[0](one[None])).mean().item() for one in maps]
        assert method.easiness(image).tolist() == pytest.approx(expected)
    with pytest.raises(NotImplementedError):
        build("tpld").easiness(image)


def test_easiness_of_easy_images_grows_above_that_of_hard_ones() -> None:
    """The discriminators learn the split when the network stands still, and is sure of what it says."""
    net = TinyNet()
    with torch.no_grad():
        net.classifier.weight.mul_(10)
    method = build("tpld", net, phase=2, discriminator={"lr": 1e-3}, optimizer={"lr": 1e-9}).train()
    tuned, loop = method.tuned(), Loop(steps=30, seed=0, device=torch.device("cpu"))
    target = target_batch(0)
    target = replace(target, image=torch.cat([target.image[:1], 0.3 * target.image[1:]]))
    for step in range(30):
        one_step(method, tuned, source_batch(0), target, step, loop)
    with torch.no_grad():
        easy, hard = method.easiness(target.image).tolist()
    assert easy > 0.9 > 0.1 > hard


def test_a_target_without_the_split_is_refused() -> None:
    groups = build("tpld", phase=2).step(source_batch(0), replace(target_batch(0), easy=None))
    with pytest.raises(ValueError, match="easy"):
        next(groups)
