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
from restated import Batches, Plain, both, compare, mean_where, same_weights, segment_source, up
from torch import Tensor, nn

from segshift.engine.trainer import Loop, one_step
from segshift.methods.proda import Proda, ProdaSettings
from segshift.nets.base import SegmentationNet
from segshift.types import IGNORE, Batch
from tiny import CLASSES, FEATURES, HEIGHT, WIDTH, TinyNet, build, source_batch, target_batch, task

LR = 0.05
"""The release's rate is too small to see in the weights what two steps do."""


# ---- the step again


@dataclass
class PlainProda(Plain):
    """The student in `net`, the moving teacher and the prototypes beside it."""

    ema: float = 0.999
    prototypes: Tensor = torch.empty(0)
    present: Tensor = torch.empty(0)

    @property
    def teacher(self) -> SegmentationNet:
        teacher = self.discriminators[0]
        assert isinstance(teacher, SegmentationNet)
        return teacher

    def finish(self) -> None:
        super().finish()
        for theirs, ours in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            theirs.data = self.ema * theirs.data + (1 - self.ema) * ours.data
        for theirs, ours in zip(self.teacher.buffers(), self.net.buffers(), strict=True):
            theirs.data = ours.data.clone()


def beside(method: Proda, **settings: Any) -> PlainProda:
    """Independent copies of what a method starts from."""
    assert method.teacher is not None
    assert method.prototypes is not None
    assert method.present is not None
    return PlainProda(
        copy.deepcopy(method.net).train(),
        [copy.deepcopy(method.teacher).train(method.settings.teacher_mode == "train")],
        lr=LR,
        head_factor=1,
        weight_decay=2e-4,
        ema=method.settings.ema,
        prototypes=method.prototypes.clone(),
        present=method.present.clone(),
    )


def sample(
    values: Tensor, view: Tensor, affine: Tensor, to_view: Tensor, to_affine: Tensor, to: list[int], mode: str
) -> tuple[Tensor, Tensor]:
    """Values on a grid over one view, at a grid of `to` points over another view of the same files: by way of the
    files' pixels, image by image and in float64. Also where these points lie in the first view."""
    samples, inside = [], []
    for b in range(len(values)):
        ys = torch.linspace(0, to_view.shape[-2] - 1, to[0], dtype=torch.float64)
        xs = torch.linspace(0, to_view.shape[-1] - 1, to[1], dtype=torch.float64)
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        points = affine[b].double().inverse() @ (to_affine[b].double() @ points)
        last = torch.tensor([view.shape[-1] - 1, view.shape[-2] - 1])
        at = (points[:2].T / last * 2 - 1).reshape(1, *to, 2)
        found = F.grid_sample(values[b : b + 1].double(), at, mode, "border", align_corners=True)
        samples.append(found[0].float())
        inside.append((at[0].abs() <= 1 + 1e-4).all(dim=-1))
    return torch.stack(samples), torch.stack(inside)


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


def restate(plain: PlainProda, settings: ProdaSettings, source: Batch, target: Batch) -> None:
    """One step, its target's terms in one backward pass as in the release."""
    image, full, strong, soft_full = target.image, target.full, target.strong, target.soft_full
    assert target.affine is not None
    assert full is not None
    assert target.full_affine is not None
    assert soft_full is not None

    def size(view: Tensor) -> list[int]:
        return [math.ceil(side / settings.resolution) for side in view.shape[-2:]]

    segment_source(plain, source)
    with torch.no_grad():
        said = plain.teacher(full)
        features, logits = up(said.features, torch.Size(size(full))), up(said.logits, torch.Size(size(full)))
        distance = distances(features, plain.prototypes, plain.present)

    over_full, over_weak = (full, target.full_affine), (image, target.affine)
    soft, shown = sample(soft_full, *over_full, *over_weak, size(image), "bilinear")
    near, _ = sample(distance, *over_full, *over_weak, size(image), "bilinear")
    labels = labelled(soft, near if settings.denoise else None, settings)
    labels[~shown] = 255
    prediction = plain.net(image)
    losses = {}
    for head, suffix, weight in ((prediction.logits, "", 1.0), (prediction.aux, "_aux", plain.aux_weight)):
        if head is not None:
            on_weak = up(head, torch.Size(size(image)))
            losses["pseudo" + suffix] = weight * symmetric(on_weak, labels, settings.alpha, settings.beta)
            if settings.regulariser_weight:
                per_pixel = -torch.log_softmax(on_weak, dim=1).sum(dim=1)
                per_pixel = per_pixel / (CLASSES if settings.divide_by_classes else 1)
                losses["regulariser" + suffix] = weight * settings.regulariser_weight * mean_where(per_pixel, shown)
    if settings.structure_weight:
        assert strong is not None
        assert target.strong_affine is not None
        assert target.strong_seen is not None
        over_strong = (strong, target.strong_affine)
        taught, inside = sample(distance, *over_full, *over_strong, size(strong), "bilinear")
        seen, _ = sample(target.strong_seen[:, None].float(), *over_strong, *over_strong, size(strong), "nearest")
        mask = inside & (seen[:, 0] > 0.5)
        found = distances(up(plain.net(strong).features, torch.Size(size(strong))), plain.prototypes, plain.present)
        z, z_teacher = (F.softmax(-d * settings.temperature, dim=1) for d in (found, taught))
        terms = (z_teacher * (torch.log(z_teacher) - torch.log(z)))[:, plain.present]
        divergence = mean_where(terms.sum(dim=1), mask) / (CLASSES if settings.divide_by_classes else 1)
        losses["structure"] = settings.structure_weight * divergence
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]

    by = logits.argmax(dim=1)
    if settings.prototype_labels == "denoised":
        whole = up(soft_full, torch.Size(size(full)))
        by = labelled(whole, distance if settings.denoise else None, settings)
    plain.prototypes = moved(plain.prototypes, features, by, settings)


def placed(views: Callable[[int], Tensor]) -> Batches:
    """Batches whose views lie elsewhere in their files; the pixels stay, so only the geometry differs."""

    def batches(number: int) -> tuple[Batch, Batch]:
        target = target_batch(number)
        weak = torch.stack([views(2 * number + b) for b in range(2)])
        strong = torch.stack([weak[b] @ turned(number + b) for b in range(2)])
        whole = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]).expand(2, 3, 3)  # files of twice the size
        return source_batch(number), replace(target, affine=weak, full_affine=whole, strong_affine=strong)

    return batches


def cropped(number: int) -> Tensor:
    """A scaled crop, every other one mirrored, wholly inside."""
    scale = 1.1 + 0.2 * number
    crop = torch.tensor([[scale, 0, 3.3 + number], [0, scale, 5.2 - number], [0, 0, 1]])
    mirror = torch.tensor([[-1.0, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1]])
    return crop @ mirror if number % 2 else crop


def beyond(number: int) -> Tensor:
    """A crop that reaches over the image's left border by a third of its width."""
    return torch.tensor([[2.0, 0, -27.3 - number], [0, 1.9, 3.1], [0, 0, 1]])


def turned(number: int) -> Tensor:
    """Turned, sheared and mirrored about its middle."""
    turn = math.radians(11 + 5 * number)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0.0, 0, 1]])
    shear = torch.tensor([[-0.8, 0.13, 0], [0.07, 0.8, 0], [0, 0, 1]])
    middle = torch.tensor([[1.0, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])
    return middle @ rotation @ shear @ middle.inverse()


def small(number: int) -> tuple[Batch, Batch]:
    """One image of each domain."""
    return source_batch(number, size=1), target_batch(number, size=1)


def run(method: Proda, batches: Batches = both) -> PlainProda:
    plain = beside(method)
    assert method.teacher is not None
    compare(method, [method.teacher], plain, lambda s, t: restate(plain, method.settings, s, t), batches)
    assert method.prototypes is not None
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
    run(proda(aux, **own))


@pytest.mark.parametrize("views", [cropped, beyond])
@pytest.mark.parametrize("resolution", [1, 4])
def test_views_anywhere_in_the_files(views: Callable[[int], Tensor], resolution: int) -> None:
    run(proda(resolution=resolution, prototype_momentum=0.9), placed(views))


def test_a_single_image() -> None:
    run(proda(), small)
