"""Self-training on pseudo-labels that an earlier stage wrote; also what CBST, CRST and TPLD have in common with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from segshift.losses import cross_entropy
from segshift.methods.adaptsegnet import NAMES
from segshift.methods.base import (
    Method,
    MethodSettings,
    OptimizerSettings,
    Task,
    Tuned,
    levels,
    net_optimizer,
    supervised,
)
from segshift.nets.base import SegmentationNet
from segshift.ops import upsample
from segshift.types import Batch


class SelfTrainingSettings(MethodSettings):
    """What every self-training needs. Defaults: the ADVENT and AdaptSegNet releases (methods.md sections 1 and 4)."""

    aux_weight: float = Field(0.1, ge=0, description="weight of the auxiliary head's losses, where there is one")
    target_weight: float = Field(1.0, ge=0, description="weight of all losses on pseudo-labels; 1 in all releases")
    optimizer: OptimizerSettings = OptimizerSettings()


class ConstantRate(OptimizerSettings):
    """Optimiser of a round. Defaults: CRST release, crst_seg.py (methods.md section 5)."""

    lr: float = Field(5e-5, gt=0)
    power: float = Field(0.0, ge=0, description="of the polynomial decay; 0 is a constant learning rate")


OnTarget = Callable[[Tensor], dict[str, Tensor]]
"""(B, K, H, W) upsampled target logits of one head → the losses on them by name, before the head's weight."""


def self_training_step(
    net: SegmentationNet, settings: SelfTrainingSettings, source: Batch, target: Batch, on_target: OnTarget
) -> Iterator[dict[str, Tensor]]:
    """One step of self-training; what is learned from the pseudo-labels is the only difference between its users."""
    # 1. Segment the source.
    yield supervised(net(source.image), source, settings.aux_weight).losses

    # 2. Segment the target as its pseudo-labels say.
    logits = [upsample(head, target.image.shape[-2:]) for head in levels(net(target.image))]
    yield over_heads(logits, settings, on_target)


def over_heads(logits: list[Tensor], settings: SelfTrainingSettings, on_target: OnTarget) -> dict[str, Tensor]:
    """The losses of `on_target` on each head's logits, weighted; those of the auxiliary head end in `_aux`."""
    losses: dict[str, Tensor] = {}
    for name, head_weight, level in zip(NAMES, (1.0, settings.aux_weight), logits, strict=False):
        weight = settings.target_weight * head_weight
        losses |= {loss + name: weight * value for loss, value in on_target(level).items()}
    return losses


def pseudo_labels(target: Batch) -> Int64[Tensor, "B H W"]:
    """The target's pseudo-labels: train ids with `IGNORE` where none was given.

    Raises:
        ValueError: the batch carries none.
    """
    if target.pseudo_label is None:
        raise ValueError("the target batch carries no pseudo-labels")
    return target.pseudo_label


class SelfTraining(Method):
    """L = CE(up(z_s), y) + CE(up(z_t), ŷ), each the mean over its own labelled pixels."""

    needs = frozenset({"image", "pseudo_label"})

    def __init__(self, settings: SelfTrainingSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        def learn(logits: Tensor) -> dict[str, Tensor]:
            return {"pseudo": cross_entropy(logits, pseudo_labels(target))}

        yield from self_training_step(self.net, self.settings, source, target, learn)

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
