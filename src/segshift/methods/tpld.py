"""TPLD: two-phase pseudo label densification (Shin, Woo, Pan, Kweon, ECCV 2020), the halves of both phases that train.

A labels stage densifies the labels by voting (phase 1), or splits the images into easy and hard ones (phase 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segshift.losses import bootstrapping, domain_cross_entropy, self_information, soft_cross_entropy
from segshift.methods.adaptsegnet import NAMES, patch_discriminators
from segshift.methods.base import (
    DiscriminatorSettings,
    Method,
    Task,
    Tuned,
    discriminator_optimizer,
    levels,
    net_optimizer,
    supervised,
)
from segshift.methods.crst import REGULARISERS
from segshift.methods.self_training import (
    ConstantRate,
    SelfTrainingSettings,
    over_heads,
    pseudo_labels,
    self_training_step,
)
from segshift.nets.base import SegmentationNet
from segshift.ops import frozen, upsample
from segshift.types import IGNORE, Batch

EASY, HARD = 1.0, 0.0
"""Labels of the discriminators (methods.md section 8)."""


class TpldSettings(SelfTrainingSettings):
    """Defaults: CRST's release (optimiser) and ADVENT's (adversarial part); others: not verified (methods.md 8, 20)."""

    phase: Literal[1, 2] = Field(
        1, description="1: densified labels; 2: easy images in full, hard ones aligned to them"
    )
    beta: float = Field(0.8, ge=0, le=1, description="share of the given label in the bootstrapped target")
    hard_bootstrapping: bool = Field(False, description="the rest of the target is the prediction's argmax")
    detach_target: bool = Field(False, description="no gradient through the prediction in the target")
    regulariser: Literal["none", "mrkld", "mrent", "mrl2", "lrent"] = Field(
        "none", description="of CRST, on labelled pixels; lrent: soft labels, with one class where voting labelled"
    )
    regulariser_weight: float | None = Field(
        None, ge=0, description="None: as crst; not squared; lrent's is in its labels"
    )
    hard_label_weight: float = Field(0.0, ge=0, description="phase 2: weight of the hard images' densified labels")
    adversarial_weight: float = Field(1e-3, ge=0, description="phase 2: main head")
    aux_adversarial_weight: float = Field(2e-4, ge=0, description="phase 2: auxiliary head, where there is one")
    optimizer: ConstantRate = ConstantRate()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()


class Tpld(Method):
    """Phase 1: CE_s + bootstrapping on dense labels. Phase 2: the same on easy images; hard ones aligned to them."""

    needs = frozenset({"image", "pseudo_label"})

    def __init__(self, settings: TpldSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        self.discriminators = nn.ModuleList()
        if settings.phase == 2:
            self.needs = self.needs | {"easy"}
            self.discriminators = patch_discriminators(net)
        if settings.regulariser == "lrent":
            self.needs = self.needs | {"soft_label"}

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        yield from self._phase_1(source, target) if self.settings.phase == 1 else self._phase_2(source, target)

    def _phase_1(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        def learn(logits: Tensor) -> dict[str, Tensor]:
            return self._bootstrapped(logits, pseudo_labels(target), target.soft_label)

        yield from self_training_step(self.net, self.settings, source, target, learn)

    def _phase_2(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        settings = self.settings
        labels, soft, easy = pseudo_labels(target), target.soft_label, target.easy
        if easy is None:
            raise ValueError("the target batch does not say which images are easy")
        hard = ~easy
        # A batch may lack one kind. Its losses on labels are then 0; what is about its maps is left out.
        some_easy, some_hard = bool(easy.any()), bool(hard.any())

        # 1. Segment the source.
        yield supervised(self.net(source.image), source, settings.aux_weight).losses

        # 2. Segment easy images as their full labels say. Hard ones shall pass for easy; the discriminators hold still.
        logits = [upsample(head, target.image.shape[-2:]) for head in levels(self.net(target.image))]
        losses = over_heads(logits, settings, lambda level: self._bootstrapped(level, only(easy, labels), soft))
        if settings.hard_label_weight:
            on_hard = over_heads(logits, settings, lambda level: self._bootstrapped(level, only(hard, labels), soft))
            losses |= {f"hard_{name}": settings.hard_label_weight * loss for name, loss in on_hard.items()}
        easy_maps = [self_information(level.detach()[easy]) for level in logits]
        hard_maps = [self_information(level[hard]) for level in logits]
        if some_hard:
            weights = [settings.adversarial_weight, settings.aux_adversarial_weight]
            with frozen(self.discriminators):
                scores = [d(level) for d, level in zip(self.discriminators, hard_maps, strict=True)]
            losses |= {
                f"adversarial{name}": weight * domain_cross_entropy(score, EASY)
                for name, weight, score in zip(NAMES, weights, scores, strict=False)
            }
        hard_maps = [level.detach() for level in hard_maps]
        yield losses

        # 3. Train the discriminators (D_intra) to tell easy from hard images, as they were in 2.
        del logits, losses
        for name, discriminator, easy_map, hard_map in zip(
            NAMES, self.discriminators, easy_maps, hard_maps, strict=False
        ):
            if some_easy:
                yield {f"discriminator_easy{name}": 0.5 * domain_cross_entropy(discriminator(easy_map), EASY)}
            if some_hard:
                yield {f"discriminator_hard{name}": 0.5 * domain_cross_entropy(discriminator(hard_map), HARD)}

    def _bootstrapped(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> dict[str, Tensor]:
        """Both phases' loss on (B, K, H, W) logits and (B, H, W) labels, with CRST's regulariser where one is set."""
        settings = self.settings
        beta, how = settings.beta, (settings.hard_bootstrapping, settings.detach_target)
        if settings.regulariser == "lrent":
            if soft is None:
                raise ValueError("the target batch carries no soft labels")
            given = soft_cross_entropy(logits, soft * (labels != IGNORE)[:, None])
            return {"pseudo": beta * given + (1 - beta) * bootstrapping(logits, labels, 0.0, *how)}
        loss = bootstrapping(logits, labels, beta, *how)
        if settings.regulariser == "none":
            return {"pseudo": loss}
        regulariser, weight = REGULARISERS[settings.regulariser]
        if settings.regulariser_weight is not None:
            weight = settings.regulariser_weight
        return {"pseudo": loss, settings.regulariser: weight * regulariser(logits, labels != IGNORE)}

    def tuned(self) -> dict[str, Tuned]:
        tuned = {"net": net_optimizer(self.net, self.settings.optimizer)}
        if self.settings.phase == 2:
            tuned["discriminators"] = discriminator_optimizer(self.discriminators, self.settings.discriminator)
        return tuned

    def predictor(self) -> SegmentationNet:
        return self.net

    def easiness(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """The main head's D_intra on images: its probability of `EASY`, mean over the patch map."""
        if self.settings.phase == 1:
            return super().easiness(image)
        logits = upsample(self.net(image).logits, image.shape[-2:])
        scores: Tensor = self.discriminators[0](self_information(logits))
        return scores.float().sigmoid().mean(dim=(1, 2, 3))


def only(chosen: Tensor, labels: Tensor) -> Tensor:
    """(B, H, W) labels of the chosen images of a batch, (B,) bool; those of the others are ignored."""
    return labels.masked_fill(~chosen[:, None, None], IGNORE)
