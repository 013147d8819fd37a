"""ProDA, stage 1: pseudo-labels denoised online by class prototypes, and their structure learned on strong views.

Zhang, Zhang, Zhang, Chen, Wang, Wen: CVPR 2021. Stages 2 and 3 are `distill`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segshift.losses import assignment_kl, mrkld, symmetric_cross_entropy
from segshift.methods.base import Method, OptimizerSettings, Task, Tuned, levels, net_optimizer, supervised
from segshift.methods.grid import Grid, carried
from segshift.methods.self_training import SelfTrainingSettings, over_heads
from segshift.nets.base import SegmentationNet
from segshift.ops import prototype_distance, prototype_weight, update_prototypes, upsample
from segshift.types import IGNORE, Batch


class OneRate(OptimizerSettings):
    """Optimiser of stage 1: one rate for all parameters. Defaults: ProDA's release (methods.md section 10.4 (d))."""

    lr: float = Field(1e-4, gt=0)
    head_factor: float = Field(1.0, gt=0, description="learning rate of the head over that of the backbone")
    weight_decay: float = Field(2e-4, ge=0)


class ProdaSettings(SelfTrainingSettings):
    """Defaults: ProDA's release (methods.md section 10.4)."""

    alpha: float = Field(0.1, ge=0, description="weight of the cross-entropy in the symmetric one")
    beta: float = Field(1.0, ge=0, description="weight of the reverse cross-entropy in the symmetric one")
    denoise: bool = Field(True, description="weigh the soft labels by the prototypes; False: take them as they are")
    temperature: float = Field(1.0, ge=0, description="factor of the distances in every softmax; 0: all classes alike")
    threshold: float = Field(0.0, ge=0, le=1, description="labels less probable than this are ignored")
    regulariser_weight: float = Field(0.0, ge=0, description="of -sum_k log p_k; 0.1 in the paper")
    structure_weight: float = Field(10.0, ge=0, description="of the divergence of prototypical assignments; 0: off")
    divide_by_classes: bool = Field(True, description="both weights over K, as the release's means are over K too")
    ema: float = Field(0.999, ge=0, le=1, description="share of the teacher's weights that stays in a step")
    teacher_mode: Literal["eval", "train"] = Field("eval", description="train: dropout and statistics of the batch")
    teacher_statistics: Literal["copy", "average"] = Field(
        "copy", description="of its batch norms: the network's own (code), or an average as of the weights"
    )
    prototype_momentum: float = Field(0.9999, ge=0, le=1, description="share of a prototype that stays, for each image")
    prototype_labels: Literal["teacher", "denoised"] = Field(
        "teacher", description="whose points move a prototype: by the teacher's prediction (code), the labels (paper)"
    )
    minimum_pixels: int = Field(10, ge=1, description="points that a class needs in an image to move its prototype")
    resolution: int = Field(4, ge=1, description="labels, assignments and losses are at 1/resolution of the view")
    optimizer: OneRate = OneRate()

    @property
    def wants_prototypes(self) -> bool:
        """Whether the method needs `Task.prototypes`, and a teacher."""
        return self.denoise or self.structure_weight > 0


class Proda(Method):
    """L = CE_s + SCE(p_t, argmax_k ω_k p_k) + γ KL(z̃ ‖ z) on a strong view; ω and z̃ are of a moving teacher."""

    needs = frozenset({"image", "full", "soft_full"})

    def __init__(self, settings: ProdaSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        self.teacher = copy.deepcopy(net).requires_grad_(False) if settings.wants_prototypes else None
        if settings.structure_weight:
            self.needs = self.needs | {"strong"}
        self.share = 1 / task.num_classes if settings.divide_by_classes else 1.0
        self.prototypes: Tensor | None
        self.present: Tensor | None
        means, present = task.prototypes if task.prototypes and settings.wants_prototypes else (None, None)
        if means is not None and len(means) != task.num_classes:
            raise ValueError(f"prototypes of {len(means)} classes for a task of {task.num_classes}")
        self.register_buffer("prototypes", means)
        self.register_buffer("present", present)
        self.train(self.training)

    def train(self, mode: bool = True) -> Proda:
        """The teacher stays in eval mode unless the settings say otherwise."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.train(mode and self.settings.teacher_mode == "train")
        return self

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        settings, soft_full = self.settings, self._soft_labels(target)
        weak = Grid.over(target.image, carried(target, "affine"), settings.resolution)
        whole, whole_affine = carried(target, "full"), carried(target, "full_affine")
        full = Grid.over(whole, whole_affine, settings.resolution)

        # 1. Segment the source.
        yield supervised(self.net(source.image), source, settings.aux_weight).losses

        # 2. The teacher looks at the whole images: how far is each point from each prototype?
        distance, moved = self._look(whole, full, soft_full) if settings.wants_prototypes else (None, ())

        # 3. Learn the weak view by the soft labels there, weighed by the prototypes.
        soft, shown = weak.take(soft_full, Grid.of(whole, whole_affine, soft_full.shape[-2:]))
        near = weak.take(distance, full)[0] if settings.denoise and distance is not None else None
        labels = self._labels(soft, near)
        logits = [upsample(head, weak.size) for head in levels(self.net(target.image))]
        yield over_heads(logits, settings, lambda level: self._learn(level, labels, shown))
        del logits

        # 4. Assign the strong view's points to the prototypes as the teacher assigns those of the whole image.
        if settings.structure_weight and distance is not None:
            view, affine = carried(target, "strong"), carried(target, "strong_affine")
            strong = Grid.over(view, affine, settings.resolution)
            seen = strong.read(carried(target, "strong_seen").long(), affine, 0)
            taught, inside = strong.take(distance, full)
            found = prototype_distance(upsample(self.net(view).features, strong.size), cast(Tensor, self.prototypes))
            divergence = assignment_kl(found, taught, settings.temperature, inside & (seen > 0), self.present)
            yield {"structure": settings.structure_weight * self.share * divergence}

        # 5. The prototypes follow the teacher's features. The teacher itself follows the network in `after_step`.
        if moved:
            self.prototypes, self.present = moved

    def _soft_labels(self, target: Batch) -> Float[Tensor, "B K h w"]:
        soft, classes = carried(target, "soft_full"), self.net.num_classes
        if soft.shape[1] != classes:
            raise ValueError(f"soft labels of {soft.shape[1]} classes for a network of {classes}")
        if self.settings.wants_prototypes and self.prototypes is None:
            raise ValueError("these settings need prototypes of the target's classes (Task.prototypes), there are none")
        return soft

    @torch.no_grad()
    def _look(self, image: Tensor, full: Grid, soft: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The teacher's distances (B, K, h, w) on the grid over whole images, and where these move the prototypes."""
        prototypes, present = cast(Tensor, self.prototypes), cast(Tensor, self.present)
        prediction = cast(SegmentationNet, self.teacher)(image)
        features = upsample(prediction.features, full.size)
        distance = prototype_distance(features, prototypes)
        if self.settings.prototype_labels == "teacher":
            labels = upsample(prediction.logits, full.size).argmax(dim=1)
        else:
            labels = self._labels(upsample(soft, full.size), distance if self.settings.denoise else None)
        momentum, minimum = self.settings.prototype_momentum, self.settings.minimum_pixels
        return distance, update_prototypes(prototypes, present, features, labels, momentum, minimum)

    def _labels(self, soft: Float[Tensor, "B K h w"], distance: Tensor | None) -> Int64[Tensor, "B h w"]:
        """The most probable classes, by the prototypes too where there are distances; ignored below the threshold."""
        if distance is not None:
            soft = soft * prototype_weight(distance, self.settings.temperature, self.present)
            soft = soft / soft.sum(dim=1, keepdim=True).clamp(min=torch.finfo(soft.dtype).tiny)
        confidence, labels = soft.max(dim=1)
        # A confidence of 0: a point outside the image, or all that is probable there are classes without a prototype.
        return labels.masked_fill((confidence < self.settings.threshold) | (confidence == 0), IGNORE)

    def _learn(self, logits: Tensor, labels: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """The losses of a head on the weak view: logits (B, K, h, w), labels (B, h, w), where it shows the image."""
        settings = self.settings
        losses = {"pseudo": symmetric_cross_entropy(logits, labels, settings.alpha, settings.beta)}
        if settings.regulariser_weight:
            summed = self.net.num_classes * mrkld(logits, shown)  # CRST's is the mean over the classes
            losses["regulariser"] = settings.regulariser_weight * self.share * summed
        return losses

    def after_step(self, step: int) -> None:
        """The teacher's parameters move towards the network's; its batch norms' statistics too, or they are copied."""
        if self.teacher is None:
            return
        average = get_ema_multi_avg_fn(self.settings.ema)  # type: ignore[no-untyped-call]
        average(list(self.teacher.parameters()), list(self.net.parameters()), None)
        for theirs, ours in zip(self.teacher.buffers(), self.net.buffers(), strict=True):
            if self.settings.teacher_statistics == "average" and theirs.is_floating_point():
                theirs.lerp_(ours, 1 - self.settings.ema)
            else:
                theirs.copy_(ours)

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
