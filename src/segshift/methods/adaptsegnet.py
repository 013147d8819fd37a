"""AdaptSegNet: output-space adversarial alignment (Tsai et al., CVPR 2018), single- and multi-level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from segshift.losses import SOURCE, TARGET, domain_cross_entropy, domain_least_squares
from segshift.methods.base import (
    DiscriminatorSettings,
    Method,
    MethodSettings,
    OptimizerSettings,
    Task,
    Tuned,
    discriminator_optimizer,
    levels,
    net_optimizer,
    supervised,
)
from segshift.nets.base import SegmentationNet
from segshift.nets.discriminators import PatchDiscriminator
from segshift.ops import frozen, upsample
from segshift.types import Batch


class AlignmentSettings(MethodSettings):
    """What alignment of the output space needs. Defaults: AdaptSegNet's release, multi-level (methods.md section 2)."""

    aux_weight: float = Field(0.1, ge=0, description="weight of the auxiliary head's cross-entropy, where there is one")
    adversarial_weight: float = Field(1e-3, ge=0, description="main head; the release uses 0.01 with least squares")
    aux_adversarial_weight: float = Field(2e-4, ge=0, description="auxiliary head, where there is one (multi-level)")
    gan: Literal["vanilla", "least_squares"] = "vanilla"
    optimizer: OptimizerSettings = OptimizerSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()


DOMAIN_LOSSES = {"vanilla": domain_cross_entropy, "least_squares": domain_least_squares}


def alignment_step(
    net: SegmentationNet,
    discriminators: nn.ModuleList,
    settings: AlignmentSettings,
    represent: Callable[[Tensor], Tensor],
    source: Batch,
    target: Batch,
    on_target: Callable[[Tensor], dict[str, Tensor]] = lambda logits: {},
) -> Iterator[dict[str, Tensor]]:
    """One step of adversarial alignment; what the discriminators see is the only difference between its users.

    Args:
        net: trained to segment the source and to make the target's output look like the source's.
        discriminators: one for each head, main head first.
        represent: (B, K, H, W) upsampled logits → what is aligned, of the same shape.
        on_target: further losses on the upsampled target logits of the main head.
    """
    # 1. Segment the source.
    on_source = supervised(net(source.image), source, settings.aux_weight)
    source_maps = [represent(logits.detach()) for logits in on_source.logits]
    yield on_source.losses

    # 2. Fool the discriminators, which hold still: the target's output shall pass for the source's.
    del on_source  # its graph is spent; keeping it would double the peak memory
    size = target.image.shape[-2:]
    logits = [upsample(head, size) for head in levels(net(target.image))]
    maps = [represent(level) for level in logits]
    losses = fool(discriminators, settings, maps)
    target_maps = [level.detach() for level in maps]
    yield losses | on_target(logits[0])

    # 3. Train the discriminators on both domains' output, as it was in 1 and 2.
    del logits, maps, losses
    yield from tell_apart(discriminators, settings, source_maps, target_maps)


def fool(discriminators: nn.ModuleList, settings: AlignmentSettings, maps: list[Tensor]) -> dict[str, Tensor]:
    """The weighted losses of the target's maps (B, K, H, W), main head first, that shall pass for the source's."""
    domain_loss = DOMAIN_LOSSES[settings.gan]
    weights = [settings.adversarial_weight, settings.aux_adversarial_weight]
    with frozen(discriminators):
        scores = [discriminator(level) for discriminator, level in zip(discriminators, maps, strict=True)]
    return {
        f"adversarial{name}": weight * domain_loss(score, SOURCE)
        for name, weight, score in zip(NAMES, weights, scores, strict=False)
    }


def tell_apart(
    discriminators: nn.ModuleList, settings: AlignmentSettings, source_maps: list[Tensor], target_maps: list[Tensor]
) -> Iterator[dict[str, Tensor]]:
    """The losses of the discriminators on maps (B, K, H, W) that carry no gradient, main head first."""
    domain_loss = DOMAIN_LOSSES[settings.gan]
    for name, discriminator, source_map, target_map in zip(
        NAMES, discriminators, source_maps, target_maps, strict=False
    ):
        yield {f"discriminator_source{name}": 0.5 * domain_loss(discriminator(source_map), SOURCE)}
        yield {f"discriminator_target{name}": 0.5 * domain_loss(discriminator(target_map), TARGET)}


NAMES = ("", "_aux")
"""Suffixes of the losses' names, main head first."""


def patch_discriminators(net: SegmentationNet) -> nn.ModuleList:
    """A discriminator on K channels for each head of `net`."""
    return nn.ModuleList(PatchDiscriminator(net.num_classes) for _ in range(1 + net.has_aux))


class AdaptSegNet(Method):
    """Alignment of softmax outputs: multi-level where the network has an auxiliary head."""

    needs = frozenset({"image"})

    def __init__(self, settings: AlignmentSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        self.discriminators = patch_discriminators(net)

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        def softmax(logits: Tensor) -> Tensor:
            return logits.softmax(dim=1)

        yield from alignment_step(self.net, self.discriminators, self.settings, softmax, source, target)

    def tuned(self) -> dict[str, Tuned]:
        return {
            "net": net_optimizer(self.net, self.settings.optimizer),
            "discriminators": discriminator_optimizer(self.discriminators, self.settings.discriminator),
        }

    def predictor(self) -> SegmentationNet:
        return self.net
