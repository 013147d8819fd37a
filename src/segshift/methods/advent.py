"""ADVENT: adversarial and direct entropy minimisation (Vu et al., CVPR 2019): AdvEnt and MinEnt."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import Tensor

from segshift.losses import class_ratio_prior, entropy_in_range, self_information
from segshift.methods.adaptsegnet import AlignmentSettings, alignment_step, patch_discriminators
from segshift.methods.base import (
    Method,
    MethodSettings,
    OptimizerSettings,
    Settings,
    Task,
    Tuned,
    discriminator_optimizer,
    levels,
    net_optimizer,
    supervised,
)
from segshift.nets.base import SegmentationNet
from segshift.ops import upsample
from segshift.types import Batch


class PriorSettings(Settings):
    """Class-ratio prior (CP). Not verified against the paper: form and numbers are methods.md section 20's."""

    weight: float = Field(0.0, ge=0, description="0 switches the prior off; 1 where it is used")
    mu: float = Field(0.5, ge=0, le=1, description="relaxation of the source's class shares")

    def losses(self, target_logits: Tensor, task: Task) -> dict[str, Tensor]:
        """The weighted prior on (B, K, H, W) target logits, or nothing where it is switched off."""
        if not self.weight:
            return {}
        if task.class_shares is None:
            raise ValueError("the class-ratio prior needs the source's class shares")
        prior = task.class_shares.to(target_logits)
        return {"prior": self.weight * class_ratio_prior(target_logits, prior, self.mu)}


class AdventSettings(AlignmentSettings):
    """Defaults: the ADVENT release (methods.md section 3)."""

    prior: PriorSettings = PriorSettings()

    @property
    def wants_class_shares(self) -> bool:
        return self.prior.weight > 0


class Advent(Method):
    """AdvEnt: alignment of weighted self-information maps."""

    needs = frozenset({"image"})

    def __init__(self, settings: AdventSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.task = task
        self.net = net
        self.discriminators = patch_discriminators(net)

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        def prior(target_logits: Tensor) -> dict[str, Tensor]:
            return self.settings.prior.losses(target_logits, self.task)

        yield from alignment_step(
            self.net, self.discriminators, self.settings, self_information, source, target, on_target=prior
        )

    def tuned(self) -> dict[str, Tuned]:
        return {
            "net": net_optimizer(self.net, self.settings.optimizer),
            "discriminators": discriminator_optimizer(self.discriminators, self.settings.discriminator),
        }

    def predictor(self) -> SegmentationNet:
        return self.net


class MinEntSettings(MethodSettings):
    """Defaults: the ADVENT release (methods.md section 3)."""

    aux_weight: float = Field(0.1, ge=0, description="weight of the auxiliary head's cross-entropy, where there is one")
    entropy_weight: float = Field(1e-3, ge=0, description="main head")
    aux_entropy_weight: float = Field(2e-4, ge=0, description="auxiliary head, where there is one")
    entropy_range: tuple[float, float] = Field(
        (0.0, 1.0), description="quantiles of an image's entropies that count; MinEnt+ER: (0.7, 1.0), not verified"
    )
    prior: PriorSettings = PriorSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def wants_class_shares(self) -> bool:
        return self.prior.weight > 0


class MinEnt(Method):
    """MinEnt: the mean entropy of the target's predictions is a loss."""

    needs = frozenset({"image"})

    def __init__(self, settings: MinEntSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.task = task
        self.net = net

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        settings = self.settings
        yield supervised(self.net(source.image), source, settings.aux_weight).losses

        low, high = settings.entropy_range
        logits = [upsample(head, target.image.shape[-2:]) for head in levels(self.net(target.image))]
        losses = {"entropy": settings.entropy_weight * entropy_in_range(logits[0], low, high)}
        if len(logits) > 1:
            losses["entropy_aux"] = settings.aux_entropy_weight * entropy_in_range(logits[1], low, high)
        yield losses | settings.prior.losses(logits[0], self.task)

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
