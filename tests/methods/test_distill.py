"""ProDA's stages 2 and 3 against their step (methods.md section 10.5) in plain torch."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from geometry import cropped, placed, sample
from restated import Batches, Plain, both, compare, negative_log, segment_source, up
from test_self_training import small
from torch import nn

from segshift.engine.trainer import Loop, one_step
from segshift.methods.distill import Distill, DistillSettings
from segshift.types import IGNORE, Batch
from tiny import CLASSES, TinyNet, build, source_batch, target_batch, task

LR = 0.05


def restate(plain: Plain, teacher: nn.Module | None, settings: DistillSettings, source: Batch, target: Batch) -> None:
    view, affine, seen, labels = target.strong, target.strong_affine, target.strong_seen, target.pseudo_label
    assert view is not None
    assert affine is not None
    assert seen is not None
    assert labels is not None
    assert target.affine is not None
    segment_source(plain, source)
    size = [math.ceil(side / settings.resolution) for side in view.shape[-2:]]
    near, inside = sample(labels[:, None].float(), target.image, target.affine, view, affine, size, "nearest")
    shown, _ = sample(seen[:, None].float(), view, affine, view, affine, size, "nearest")
    hard = near[:, 0].long()
    hard[~inside | (shown[:, 0] == 0)] = 255

    prediction = plain.net(view)
    logits = up(prediction.logits, torch.Size(size))
    losses = {"pseudo": settings.target_weight * negative_log(logits, hard)}
    if prediction.aux is not None:
        on_aux = negative_log(up(prediction.aux, torch.Size(size)), hard)
        losses["pseudo_aux"] = settings.target_weight * plain.aux_weight * on_aux
    if teacher is not None:
        with torch.no_grad():
            taught = F.softmax(up(teacher(view).logits, torch.Size(size)), dim=1)
        p = F.softmax(logits, dim=1)
        if settings.released_kd:
            divergence = F.kl_div(p, taught, reduction="none").mean()
        else:
            divergence = (taught * (torch.log(taught) - torch.log(p))).sum(dim=1).mean()
        losses["distillation"] = settings.kd_weight * divergence
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]


def distill(aux: bool = False, **own: Any) -> Distill:
    method = build("distill", TinyNet(aux), optimizer={"lr": LR}, **own)
    assert isinstance(method, Distill)
    return method


def run(method: Distill, batches: Batches = both) -> Plain:
    plain = Plain(copy.deepcopy(method.net).train(), [], LR, weight_decay=2e-4)
    teacher = None if method.teacher is None else copy.deepcopy(method.teacher).eval()
    compare(method, [], plain, lambda s, t: restate(plain, teacher, method.settings, s, t), batches)
    if method.teacher is not None and teacher is not None:
        for key, value in method.teacher.state_dict().items():
            assert torch.equal(value, teacher.state_dict()[key]), key
    return plain


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"kd_weight": 0.0},
        {"kd_weight": 0.3, "target_weight": 0.5},
        {"released_kd": True},
        {"resolution": 1},
        {"resolution": 3},
    ],
    ids=str,
)
def test_step_is_the_restated_one(aux: bool, own: dict[str, Any]) -> None:
    plain = run(distill(aux, **own))
    assert plain.losses["pseudo"] > 0


@pytest.mark.parametrize("resolution", [1, 4])
def test_views_anywhere_in_the_files(resolution: int) -> None:
    assert run(distill(resolution=resolution), placed(cropped)).losses["pseudo"] > 0


def test_a_single_image() -> None:
    run(distill(), small)


def run_step(method: Distill, **changes: Any) -> dict[str, float]:
    tuned, loop = method.train().tuned(), Loop(steps=1, seed=0, device=torch.device("cpu"))
    target = replace(target_batch(0), **changes)
    return {name: loss.item() for name, loss in one_step(method, tuned, source_batch(0), target, 0, loop).items()}


def test_labels_that_the_strong_view_does_not_show_are_ignored() -> None:
    unseen = torch.zeros_like(target_batch(0).strong_seen)  # type: ignore[arg-type]
    assert run_step(distill(), strong_seen=unseen)["pseudo"] == 0
    unlabelled = torch.full_like(target_batch(0).pseudo_label, IGNORE)  # type: ignore[arg-type]
    losses = run_step(distill(), pseudo_label=unlabelled)
    assert losses["pseudo"] == 0
    assert losses["distillation"] > 0


def test_a_student_equal_to_its_teacher_learns_nothing_from_it() -> None:
    net = TinyNet(batch_norm="frozen")
    method = Distill(DistillSettings(), net, replace(task(), teacher=copy.deepcopy(net)))
    assert run_step(method)["distillation"] == pytest.approx(0, abs=1e-6)
    assert run_step(distill())["distillation"] > 1e-3


def test_the_student_comes_to_agree_with_its_teacher() -> None:
    """With the right divergence; the released one does not even have its optimum there."""
    method = distill(target_weight=0).train()
    tuned, loop = method.tuned(), Loop(steps=20, seed=0, device=torch.device("cpu"))
    source = replace(source_batch(0), label=torch.full_like(source_batch(0).image[:, 0], IGNORE, dtype=torch.int64))
    found = [one_step(method, tuned, source, target_batch(0), n, loop)["distillation"].item() for n in range(20)]
    assert found[-1] < 0.5 * found[0]


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a network to learn from"):
        run_step(Distill(DistillSettings(), TinyNet(), replace(task(), teacher=None)))
    other = TinyNet()
    other.num_classes = CLASSES + 2
    with pytest.raises(ValueError, match="a teacher of 5 classes"):
        Distill(DistillSettings(), TinyNet(), replace(task(), teacher=other))
    with pytest.raises(ValueError, match="'strong'"):
        run_step(distill(), strong=None)
    with pytest.raises(ValueError, match="no pseudo-labels"):
        run_step(distill(), pseudo_label=None)


def test_the_teacher_is_held_still() -> None:
    method = distill().train()
    assert method.teacher is not None
    assert not any(module.training for module in method.teacher.modules())
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert distill(kd_weight=0).teacher is None
    assert {key.split(".")[0] for key in method.state_dict()} == {"net", "teacher"}


def test_defaults_are_the_releases() -> None:
    settings = DistillSettings()
    assert (settings.kd_weight, settings.target_weight, settings.resolution) == (1, 1, 4)
    assert not settings.released_kd  # but for this: its distillation loss is not the paper's
    optimizer = settings.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.head_factor) == ("sgd", 6e-4, 10)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.power) == (0.9, 2e-4, 0.9)
