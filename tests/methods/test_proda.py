"""ProDA's stage 1 against its step (methods.md section 10.4) in plain torch: loops over classes, explicit sampling."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from geometry import beyond, cropped, placed, sample
from restated import Batches, Plain, both, compare, mean_where, segment_source, up
from test_self_training import small
from torch import Tensor, nn

from segshift.engine.trainer import Loop, one_step
from segshift.methods.proda import Proda, ProdaSettings
from segshift.types import IGNORE, Batch
from tiny import CLASSES, FEATURES, TinyNet, build, source_batch, target_batch, task

LR = 0.05
"""The release's rate is too small to see in the weights what two steps do."""


# ---- the step again


@dataclass
class PlainProda(Plain):
    """The student in `net`, the moving teacher and the prototypes beside it."""

    ema: float = 0.999
    prototypes: Tensor | None = None
    present: Tensor | None = None

    def finish(self) -> None:
        super().finish()
        for teacher in self.discriminators:
            for theirs, ours in zip(teacher.parameters(), self.net.parameters(), strict=True):
                theirs.data = self.ema * theirs.data + (1 - self.ema) * ours.data
            for buffer, source in zip(teacher.buffers(), self.net.buffers(), strict=True):
                buffer.data = source.data.clone()


def beside(method: Proda) -> PlainProda:
    """Independent copies of what a method starts from."""
    plain = PlainProda(copy.deepcopy(method.net).train(), [], LR, 1, 2e-4, ema=method.settings.ema)
    if method.teacher is not None:
        assert method.prototypes is not None
        assert method.present is not None
        plain.discriminators = [copy.deepcopy(method.teacher).train(method.settings.teacher_mode == "train")]
        plain.prototypes, plain.present = method.prototypes.clone(), method.present.clone()
    return plain


def distances(features: Tensor, prototypes: Tensor, present: Tensor) -> Tensor:
    maps = []
    for k in range(CLASSES):
        away = torch.norm(features - prototypes[k].reshape(1, -1, 1, 1), dim=1)
        maps.append(away if present[k] else torch.full_like(away, 1e6))
    return torch.stack(maps, dim=1)


def labelled(soft: Tensor, distance: Tensor | None, settings: ProdaSettings) -> Tensor:
    """argmax of the rectified probabilities, ignored where these are below the threshold."""
    if distance is not None:
        nearest = distance.min(dim=1, keepdim=True)[0]
        soft = soft * F.softmax(-(distance - nearest) * settings.temperature, dim=1)
        soft = soft / soft.sum(dim=1, keepdim=True)
    labels = soft.argmax(dim=1)
    labels[soft.max(dim=1)[0] < settings.threshold] = 255
    return labels


def symmetric(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha CE + beta RCE as the release writes them."""
    p = F.softmax(logits, dim=1)
    known = F.one_hot(labels.where(labels != 255, 0), CLASSES).permute(0, 3, 1, 2).float()
    forward = -(known * torch.log(p)).sum(dim=1)
    backward = -(p.clamp(min=1e-7) * torch.log(known.clamp(min=1e-4))).sum(dim=1)
    return alpha * mean_where(forward, labels != 255) + beta * mean_where(backward, labels != 255)


def moved(prototypes: Tensor, features: Tensor, labels: Tensor, settings: ProdaSettings) -> Tensor:
    """Image by image and class by class."""
    prototypes = prototypes.clone()
    for b in range(len(features)):
        for k in range(CLASSES):
            mask = labels[b] == k
            if mask.sum() >= settings.minimum_pixels:
                mean = features[b][:, mask].mean(dim=1)
                keep = settings.prototype_momentum
                prototypes[k] = keep * prototypes[k] + (1 - keep) * mean
    return prototypes


Look = tuple[Tensor, Tensor, Tensor]
"""The teacher's features, logits and distances on the whole images' grids."""


def look(plain: PlainProda, full: Tensor, size: list[int]) -> Look:
    assert plain.prototypes is not None
    assert plain.present is not None
    with torch.no_grad():
        said = plain.discriminators[0](full)
        features, logits = up(said.features, torch.Size(size)), up(said.logits, torch.Size(size))
        return features, logits, distances(features, plain.prototypes, plain.present)


def on_weak_view(plain: PlainProda, settings: ProdaSettings, target: Batch, looked: Look | None) -> dict[str, Tensor]:
    assert target.affine is not None
    assert target.full is not None
    assert target.full_affine is not None
    assert target.soft_full is not None
    size = points(target.image, settings)
    where = (target.full, target.full_affine, target.image, target.affine, size, "bilinear")
    soft, shown = sample(target.soft_full, *where)
    labels = labelled(soft, sample(looked[2], *where)[0] if looked and settings.denoise else None, settings)
    labels[~shown] = 255
    prediction = plain.net(target.image)
    losses = {}
    for head, suffix, weight in ((prediction.logits, "", 1.0), (prediction.aux, "_aux", plain.aux_weight)):
        if head is None:
            continue
        logits = up(head, torch.Size(size))
        losses["pseudo" + suffix] = weight * symmetric(logits, labels, settings.alpha, settings.beta)
        if settings.regulariser_weight:
            per_pixel = -torch.log_softmax(logits, dim=1).sum(dim=1)
            per_pixel = per_pixel / (CLASSES if settings.divide_by_classes else 1)
            losses["regulariser" + suffix] = weight * settings.regulariser_weight * mean_where(per_pixel, shown)
    return losses


def on_strong_view(plain: PlainProda, settings: ProdaSettings, target: Batch, looked: Look) -> Tensor:
    view, affine, seen = target.strong, target.strong_affine, target.strong_seen
    assert view is not None
    assert affine is not None
    assert seen is not None
    assert target.full is not None
    assert target.full_affine is not None
    assert plain.prototypes is not None
    assert plain.present is not None
    size = points(view, settings)
    taught, inside = sample(looked[2], target.full, target.full_affine, view, affine, size, "bilinear")
    shown, _ = sample(seen[:, None].float(), view, affine, view, affine, size, "nearest")
    found = distances(up(plain.net(view).features, torch.Size(size)), plain.prototypes, plain.present)
    z, z_teacher = (F.softmax(-d[:, plain.present] * settings.temperature, dim=1) for d in (found, taught))
    terms = (z_teacher * (torch.log(z_teacher) - torch.log(z))).sum(dim=1)
    divergence = mean_where(terms, inside & (shown[:, 0] > 0.5))
    return settings.structure_weight * divergence / (CLASSES if settings.divide_by_classes else 1)


def points(view: Tensor, settings: ProdaSettings) -> list[int]:
    return [math.ceil(side / settings.resolution) for side in view.shape[-2:]]


def restate(plain: PlainProda, settings: ProdaSettings, source: Batch, target: Batch) -> None:
    """One step, the target's terms in one backward pass as in the release."""
    assert target.full is not None
    assert target.soft_full is not None
    segment_source(plain, source)
    size = points(target.full, settings)
    looked = look(plain, target.full, size) if plain.discriminators else None
    losses = on_weak_view(plain, settings, target, looked)
    if looked and settings.structure_weight:
        losses["structure"] = on_strong_view(plain, settings, target, looked)
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]
    if looked:
        features, logits, distance = looked
        by = logits.argmax(dim=1)
        if settings.prototype_labels == "denoised":
            soft = up(target.soft_full, torch.Size(size))
            by = labelled(soft, distance if settings.denoise else None, settings)
        assert plain.prototypes is not None
        plain.prototypes = moved(plain.prototypes, features, by, settings)


def run(method: Proda, batches: Batches = both) -> PlainProda:
    plain, settings = beside(method), method.settings
    teachers: list[nn.Module] = [method.teacher] if method.teacher else []
    compare(method, teachers, plain, lambda source, target: restate(plain, settings, source, target), batches)
    assert (method.prototypes is None) == (plain.prototypes is None)
    if method.prototypes is not None:
        torch.testing.assert_close(method.prototypes, plain.prototypes, rtol=1e-5, atol=1e-6)
    return plain


def proda(aux: bool = False, **own: Any) -> Proda:
    method = build("proda", TinyNet(aux), optimizer={"lr": LR}, **own)
    assert isinstance(method, Proda)
    return method


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"structure_weight": 0.0},
        {"denoise": False},
        {"denoise": False, "structure_weight": 0.0, "threshold": 0.6},
        {"temperature": 3.0, "ema": 0.5, "prototype_momentum": 0.7},
        {"temperature": 0.0},
        {"alpha": 1.0, "beta": 0.0, "threshold": 0.6},
        {"regulariser_weight": 0.1, "divide_by_classes": False},
        {"regulariser_weight": 0.1},
        {"teacher_mode": "train", "prototype_momentum": 0.9},
        {"prototype_labels": "denoised", "prototype_momentum": 0.9, "threshold": 0.5},
        {"resolution": 3, "minimum_pixels": 40, "prototype_momentum": 0.5},
    ],
    ids=str,
)
def test_step_is_the_restated_one(aux: bool, own: dict[str, Any]) -> None:
    plain = run(proda(aux, **own))
    assert plain.losses["pseudo"] > 0
    assert plain.losses.get("structure", 1) > 0 or own.get("temperature") == 0


@pytest.mark.parametrize("views", [cropped, beyond])
@pytest.mark.parametrize("resolution", [1, 4])
def test_views_anywhere_in_the_files(views: Callable[[int], Tensor], resolution: int) -> None:
    plain = run(proda(resolution=resolution, prototype_momentum=0.9), placed(views))
    assert plain.losses["structure"] > 0


def test_a_single_image() -> None:
    run(proda(), small)


# ---- at the edges


def test_no_pixel_with_a_label_is_no_loss() -> None:
    """Every label below the threshold; and views that show nothing of their images."""
    assert run(proda(threshold=1.0, structure_weight=0.0)).losses["pseudo"] == 0
    off = torch.tensor([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]])
    plain = run(proda(regulariser_weight=0.1), placed(lambda number: off))
    assert plain.losses["pseudo"] == plain.losses["regulariser"] == plain.losses["structure"] == 0


def test_a_class_without_prototype_is_never_a_label_nor_an_assignment() -> None:
    method = proda(minimum_pixels=1000)
    assert method.present is not None
    method.present[1] = False
    assert method.prototypes is not None
    method.prototypes[1] = 0
    run(method)
    assert not method.present[1]
    soft = torch.zeros(1, CLASSES, 2, 2)
    soft[:, 1] = 0.9
    soft[:, 2, 0] = 0.1
    labels = method._labels(soft, torch.ones(1, CLASSES, 2, 2))
    assert labels.tolist() == [[[2, 2], [IGNORE, IGNORE]]]  # all that is left of the lower row is impossible


def test_a_class_that_appears_gets_its_prototype() -> None:
    method = proda(minimum_pixels=1)
    assert method.present is not None
    method.present[:2] = False
    run_step(method)
    assert method.present is not None
    assert method.present.sum() > 1


def run_step(method: Proda, **changes: Any) -> dict[str, float]:
    tuned, loop = method.train().tuned(), Loop(steps=1, seed=0, device=torch.device("cpu"))
    target = replace(target_batch(0), **changes)
    return {name: loss.item() for name, loss in one_step(method, tuned, source_batch(0), target, 0, loop).items()}


def test_soft_labels_of_another_grid_are_laid_over_the_image() -> None:
    uniform = torch.full((2, CLASSES, 1, 1), 0.1)
    uniform[:, 2] = 0.8
    coarse = run_step(proda(structure_weight=0), soft_full=uniform.expand(-1, -1, 5, 3))
    fine = run_step(proda(structure_weight=0), soft_full=uniform.expand(-1, -1, 70, 90))
    assert coarse == pytest.approx(fine)


def test_what_does_not_fit_is_refused_in_words() -> None:
    wide = (torch.zeros(CLASSES + 1, FEATURES), torch.ones(CLASSES + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="prototypes of 4 classes"):
        Proda(ProdaSettings(), TinyNet(), replace(task(), prototypes=wide))
    with pytest.raises(ValueError, match="need prototypes"):
        run_step(Proda(ProdaSettings(), TinyNet(), replace(task(), prototypes=None)))
    with pytest.raises(ValueError, match="soft labels of 5 classes"):
        run_step(proda(), soft_full=torch.rand(2, 5, 9, 10))
    with pytest.raises(ValueError, match="'strong_affine'"):
        run_step(proda(), strong_affine=None)
    nobody = (torch.zeros(CLASSES, FEATURES), torch.zeros(CLASSES, dtype=torch.bool))
    with pytest.raises(ValueError, match="no class has a prototype"):
        run_step(Proda(ProdaSettings(), TinyNet(), replace(task(), prototypes=nobody)))


# ---- what it is made of


def test_needs_follow_the_settings() -> None:
    assert proda().needs == {"image", "full", "soft_full", "strong"}
    assert proda(structure_weight=0).needs == {"image", "full", "soft_full"}
    offline = Proda(ProdaSettings(denoise=False, structure_weight=0), TinyNet(), replace(task(), prototypes=None))
    assert offline.needs == {"image", "full", "soft_full"}
    assert all(key.startswith("net.") for key in offline.state_dict())


def test_state_holds_both_networks_and_the_prototypes() -> None:
    keys = set(proda().state_dict())
    nets = {f"{part}.{key}" for part in ("net", "teacher") for key in TinyNet().state_dict()}
    assert keys == nets | {"prototypes", "present"}


def test_the_teacher_is_held_still_and_follows() -> None:
    method = proda(ema=0.75)
    assert method.teacher is not None
    before = [parameter.clone() for parameter in method.teacher.parameters()]
    run_step(method)
    for old, new, student in zip(before, method.teacher.parameters(), method.net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student)
    for theirs, ours in zip(method.teacher.buffers(), method.net.buffers(), strict=True):
        assert torch.equal(theirs, ours)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert not any(module.training for module in method.teacher.modules())
    assert all(module.training for module in method.net.modules())
    averaged = proda(ema=0.75, teacher_statistics="average")
    assert averaged.teacher is not None
    run_step(averaged)
    start = proda().net.state_dict()
    followed = 0
    for name, theirs in averaged.teacher.named_buffers():
        ours = averaged.net.state_dict()[name]
        if theirs.is_floating_point():
            torch.testing.assert_close(theirs, 0.75 * start[name] + 0.25 * ours)
            followed += not torch.equal(theirs, ours)
        else:
            assert torch.equal(theirs, ours)
    assert followed
    as_released = proda(teacher_mode="train").train().teacher
    assert as_released is not None
    assert as_released.training


def test_prototypes_given_stay_as_they_are() -> None:
    """Another stage may start from the same ones."""
    given = task()
    assert given.prototypes is not None
    before = given.prototypes[0].clone()
    method = Proda(ProdaSettings(prototype_momentum=0.5), TinyNet(), given)
    run_step(method)
    assert method.prototypes is not None
    assert not torch.equal(method.prototypes, before)
    assert torch.equal(given.prototypes[0], before)


def test_defaults_are_the_releases() -> None:
    settings = ProdaSettings()
    assert (settings.alpha, settings.beta, settings.temperature, settings.threshold) == (0.1, 1, 1, 0)
    assert (settings.ema, settings.prototype_momentum, settings.minimum_pixels) == (0.999, 0.9999, 10)
    assert (settings.structure_weight, settings.regulariser_weight, settings.divide_by_classes) == (10, 0, True)
    optimizer = settings.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.head_factor) == ("sgd", 1e-4, 1)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.power) == (0.9, 2e-4, 0.9)
