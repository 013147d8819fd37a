"""The contract of a method: what the trainer asks of it, and the settings and helpers that several methods share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from segshift.losses import cross_entropy
from segshift.nets.base import SegmentationNet
from segshift.ops import poly, upsample
from segshift.types import Batch, Prediction


class Settings(BaseModel):
    """Base of all settings: frozen, typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodSettings(Settings):
    """Base of a method's own settings."""

    @property
    def wants_class_shares(self) -> bool:
        """Whether the method needs `Task.class_shares`; counting them reads every label file of the source."""
        return False

    @property
    def wants_prototypes(self) -> bool:
        """Whether the method needs `Task.prototypes`."""
        return False

    @property
    def wants_teacher(self) -> bool:
        """Whether the method needs `Task.teacher`."""
        return False

    def decisive(self) -> dict[str, Any]:
        """What a stage's result depends on, as JSON; settings that are not used stand at their defaults."""
        return self.model_dump(mode="json")


class WeakReading(MethodSettings):
    """How batches show a person's weak labels; part of the settings of methods that learn from them."""

    mode: Literal["auto", "pseudo", "tags", "points"] = Field(
        "auto", description="auto: what the run's weak labels have (points, else tags), else pseudo"
    )
    point_radius: float = Field(4.0, ge=0, description="of the disc around a point, pixels of the working size")
    points_complete: bool = Field(False, description="an image with points and no tags has one on every class it shows")


class OptimizerSettings(Settings):
    """Optimiser of the segmentation network. Defaults: ADVENT release, config.py (SGD, methods.md section 1)."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(2.5e-4, gt=0)
    head_factor: float = Field(10.0, gt=0, description="learning rate of the head over that of the backbone")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    weight_decay: float = Field(5e-4, ge=0, description="5e-4 in the releases; ADVENT's text says 1e-4")
    power: float = Field(0.9, ge=0, description="of the polynomial decay; 0 is a constant learning rate")
    horizon: int | None = Field(None, gt=0, description="steps over which the rate decays; None: the stage's steps")


class DiscriminatorSettings(Settings):
    """Optimiser of the discriminators. Defaults: AdaptSegNet and ADVENT releases."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    power: float = Field(0.9, ge=0)
    horizon: int | None = Field(None, gt=0)


@dataclass(frozen=True)
class Task:
    """What a method may know of the task besides its network.

    Attributes:
        num_classes: K.
        class_shares: (K,) shares of the source's labelled pixels, summing to 1; None unless the method's settings ask
            for them (`wants_class_shares`), since counting reads every label file.
        prototypes: (K, D) class means of the target's features, and (K,) bool, the classes that have one; None where
            no stage made any.
        teacher: another trained network, to be held still; None where no stage gives one. It is the method's own.
    """

    num_classes: int
    class_shares: Tensor | None = None
    prototypes: tuple[Tensor, Tensor] | None = None
    teacher: SegmentationNet | None = None


@dataclass(frozen=True)
class Tuned:
    """An optimiser and its pure schedule: at `step` of `steps`, a group has lr = its own base * factor(step, steps)."""

    optimizer: torch.optim.Optimizer
    factor: Callable[[int, int], float]


class Method(nn.Module, ABC):
    """One published method. All its memory (networks, discriminators, prototypes …) is in its state_dict.

    It never touches optimisers' steps, files, devices, logging or configuration files.
    """

    needs: frozenset[str] = frozenset()
    """Fields that the target batch must carry; "seen" the source batch then carries too. Empty: target images are not
    even loaded, the batch has none. An instance may need more than its class, where its settings ask for it."""

    @abstractmethod
    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        """Yield groups of weighted scalar losses; each is summed and differentiated before the next is asked for."""

    @abstractmethod
    def tuned(self) -> dict[str, Tuned]:
        """The optimisers, by name; all of them step once, after the last group."""

    @abstractmethod
    def predictor(self) -> SegmentationNet:
        """The network that is evaluated and exported."""

    def easiness(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """How easy the method takes target images to be, in [0, 1]; asked of methods that need `easy`, for the report.

        Raises:
            NotImplementedError: the method knows nothing of it.
        """
        raise NotImplementedError(type(self).__name__)

    def after_step(self, step: int) -> None:
        """Called once after the optimisers' step (moving averages, prototypes)."""

    def figures(self) -> dict[str, Tensor]:
        """Scalars of the last step that are no losses but belong into the log, without gradient; the same names in
        every step."""
        return {}


class Supervised(NamedTuple):
    """Losses on a source batch, and the upsampled logits (B, K, H, W) that they were computed from, main head first."""

    losses: dict[str, Tensor]
    logits: list[Tensor]


def supervised(prediction: Prediction, source: Batch, aux_weight: float) -> Supervised:
    """Cross-entropy of the main head and, weighted, of the auxiliary head, at the resolution of the labels."""
    if source.label is None:
        raise ValueError("the source batch carries no labels")
    heads = levels(prediction)
    logits = [upsample(head, source.label.shape[-2:]) for head in heads]
    losses = {"seg": cross_entropy(logits[0], source.label)}
    if len(heads) > 1:
        losses["seg_aux"] = aux_weight * cross_entropy(logits[1], source.label)
    return Supervised(losses, logits)


def levels(prediction: Prediction) -> list[Tensor]:
    """The logits of each head, main head first: one level, or two where the network has an auxiliary head."""
    return [prediction.logits] if prediction.aux is None else [prediction.logits, prediction.aux]


def net_optimizer(net: SegmentationNet, settings: OptimizerSettings) -> Tuned:
    """The segmentation network's optimiser with its two learning rates, over the parameters that are trained."""
    groups = [
        {"params": [p for p in net.backbone_parameters() if p.requires_grad], "lr": settings.lr},
        {"params": [p for p in net.head_parameters() if p.requires_grad], "lr": settings.lr * settings.head_factor},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    # Fused kernels: one pass over all parameters instead of one per tensor, on CPU as on GPU.
    if settings.kind == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    return Tuned(optimizer, poly_factor(settings.power, settings.horizon))


def discriminator_optimizer(discriminators: nn.Module, settings: DiscriminatorSettings) -> Tuned:
    """Adam for discriminators, decayed as the segmentation network's optimiser is."""
    optimizer = torch.optim.Adam(discriminators.parameters(), lr=settings.lr, betas=settings.betas, fused=True)
    return Tuned(optimizer, poly_factor(settings.power, settings.horizon))


def _poly_factor(power: float, horizon: int | None, step: int, steps: int) -> float:
    return poly(step, horizon or steps, power)


def poly_factor(power: float, horizon: int | None) -> Callable[[int, int], float]:
    """A schedule for `Tuned`: polynomial decay over `horizon`, or over the stage's steps where that is None."""
    return partial(_poly_factor, power, horizon)
