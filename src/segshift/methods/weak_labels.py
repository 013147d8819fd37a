"""Weak labels: tags or points of the target's images, guessed or from a person (Paul et al., ECCV 2020).

L = L_s + λ_c L_c + λ_d L_adv, on top of AdaptSegNet's alignment, and the cross-entropy at clicked points. One number
and one vector of features stand for each class of an image: the smooth maximum of its logits, and the mean of the
features where it is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from segshift.losses import SOURCE, TARGET, category_domain_cross_entropy, cross_entropy, tag_cross_entropy
from segshift.methods.adaptsegnet import AlignmentSettings, fool, patch_discriminators, tell_apart
from segshift.methods.base import (
    Method,
    Task,
    Tuned,
    WeakReading,
    discriminator_optimizer,
    levels,
    net_optimizer,
    supervised,
)
from segshift.methods.grid import carried
from segshift.nets.base import SegmentationNet
from segshift.nets.discriminators import CategoryDiscriminators
from segshift.ops import category_pool, classes_in, frozen, seen_cells, smooth_max, upsample
from segshift.types import Batch


class WeakLabelsSettings(AlignmentSettings, WeakReading):
    """Defaults: AdaptSegNet's release for the base, methods.md sections 9 and 20 for the rest (not verified)."""

    threshold: float = Field(0.2, ge=0, le=1, description="T: a class is taken for present above this probability")
    sharpness: float = Field(1.0, gt=0, description="k of the smooth maximum")
    pseudo_tag_weight: float = Field(0.01, ge=0, description="λ_c of tags that the network guesses (UDA)")
    tag_weight: float = Field(0.2, ge=0, description="λ_c of tags from a person (WDA)")
    unknown: Literal["pseudo", "skip"] = Field(
        "pseudo", description="tags that nobody gave, in the modes tags and points: guessed, or left out"
    )
    category_weight: float = Field(1e-3, ge=0, description="λ_d of the category-wise adversarial loss")
    category_width: int = Field(256, gt=0, description="hidden units of each category's discriminator")
    point_weight: float = Field(1.0, ge=0, description="of the cross-entropy at points, in the mode points")
    point_prior: float = Field(
        0.0, ge=0, le=1, description="how much the loss at points makes up for classes having as many points as others"
    )
    align_outputs: bool = Field(True, description="AdaptSegNet's alignment of the output space as well")

    @property
    def wants_class_shares(self) -> bool:
        return self.mode == "points" and self.point_prior > 0

    def decisive(self) -> dict[str, Any]:
        unused = () if self.mode == "points" else ("point_weight", "point_prior")
        return super().decisive() | {name: type(self).model_fields[name].default for name in unused}


class Tags(NamedTuple):
    """What is known of the classes of B images: 1 present, 0 absent, -1 not known, (B, K) each.

    Attributes:
        given: by a person.
        guessed: by the network, where nobody did.
    """

    given: Float[Tensor, "B K"]
    guessed: Float[Tensor, "B K"]

    @property
    def present(self) -> Bool[Tensor, "B K"]:
        """Classes that are there by either."""
        return (self.given > 0) | (self.guessed > 0)


def rarity(task: Task, strength: float) -> Float[Tensor, "K"]:
    """What is added to logits at points: -strength · log(share of the class in the source's pixels), (K,).

    People click each class of an image about as often, so a pixel of a rare class is clicked more often than its share:
    p(class | clicked) ∝ p(class) / share. Learning that with the shift leaves p(class) to the logits alone.
    Source: logit adjustment, Menon et al., ICLR 2021. A class without pixels counts as one with a share of 1e-4.

    Raises:
        ValueError: the task has no class shares.
    """
    if task.class_shares is None:
        raise ValueError("point_prior needs the class shares of the source (Task.class_shares), there are none")
    return -strength * task.class_shares.clamp(min=1e-4).log()


def _cells(batch: Batch, logits: Float[Tensor, "B K h w"]) -> Bool[Tensor, "B h w"]:
    """The cells of the network's grid that see some of the image and not padding alone."""
    return seen_cells(carried(batch, "seen"), (logits.shape[-2], logits.shape[-1]))


class WeakLabels(Method):
    """Image-level classification and category-wise alignment, by pseudo-tags, tags or points of the target's images."""

    needs = frozenset({"image", "seen"})

    def __init__(self, settings: WeakLabelsSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        if settings.mode in ("tags", "points"):
            self.needs = self.needs | {"tags"}
        if settings.mode == "points":
            self.needs = self.needs | {"points"}
        self.discriminators = patch_discriminators(net) if settings.align_outputs else nn.ModuleList()
        self.categories = CategoryDiscriminators(net.num_classes, net.num_features, settings.category_width)
        self.register_buffer("rarity", rarity(task, settings.point_prior) if settings.wants_class_shares else None)
        self._figures: dict[str, Tensor] = {}

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        settings = self.settings

        # 1. Segment the source. What its classes look like is kept for the discriminators.
        prediction = self.net(source.image)
        on_source = supervised(prediction, source, settings.aux_weight)
        source_maps = [level.detach().softmax(dim=1) for level in on_source.logits if settings.align_outputs]
        seen = _cells(source, prediction.logits)
        source_features = category_pool(prediction.features.detach(), prediction.logits.detach(), seen)
        source_present = classes_in(carried(source, "label"), self.net.num_classes)
        yield on_source.losses

        # 2. On the target: which classes does the image show? Those that it shows shall look like the source's to their
        #    discriminators, and its output as a whole like the source's; the discriminators hold still.
        del on_source, prediction  # their graph is spent; keeping it would double the peak memory
        prediction = self.net(target.image)
        seen = _cells(target, prediction.logits)
        pooled = smooth_max(prediction.logits, settings.sharpness, seen)
        tags = self._tags(pooled.detach(), target)
        features = category_pool(prediction.features, prediction.logits, seen)
        with frozen(self.categories):
            scores = self.categories(features)
        logits = [upsample(head, target.image.shape[-2:]) for head in levels(prediction)]
        maps = [level.softmax(dim=1) for level in logits if settings.align_outputs]
        losses = self._classify(pooled, tags)
        losses["category"] = settings.category_weight * category_domain_cross_entropy(scores, tags.present, SOURCE)
        losses |= fool(self.discriminators, settings, maps)
        if settings.mode == "points":
            losses["points"] = settings.point_weight * self._at_points(logits[0], carried(target, "points"))
        target_features, target_maps = features.detach(), [level.detach() for level in maps]
        self._figures = {"present": tags.present.sum(dim=1).float().mean(), "pooled_logit": pooled.detach().mean()}
        yield losses

        # 3. Train the discriminators on both domains' features and output, as they were in 1 and 2.
        del prediction, pooled, features, scores, logits, maps, losses
        of_source, of_target = self.categories(source_features), self.categories(target_features)
        yield {
            "category_source": 0.5 * category_domain_cross_entropy(of_source, source_present, SOURCE),
            "category_target": 0.5 * category_domain_cross_entropy(of_target, tags.present, TARGET),
        }
        yield from tell_apart(self.discriminators, settings, source_maps, target_maps)

    def _tags(self, pooled: Float[Tensor, "B K"], target: Batch) -> Tags:
        """The target's tags: a person's where there are any, else present where the pooled probability exceeds T."""
        guessed = (pooled.sigmoid() > self.settings.threshold).float()
        if self.settings.mode in ("auto", "pseudo"):
            return Tags(guessed.new_full(guessed.shape, -1), guessed)
        given = carried(target, "tags")
        unknown = given < 0 if self.settings.unknown == "pseudo" else given.new_zeros(given.shape).bool()
        return Tags(given, guessed.masked_fill(~unknown, -1))

    def _classify(self, pooled: Tensor, tags: Tags) -> dict[str, Tensor]:
        """λ_c L_c, of each kind of tags with its own weight."""
        settings, losses = self.settings, {}
        if settings.mode in ("tags", "points"):
            losses["tags"] = settings.tag_weight * tag_cross_entropy(pooled, tags.given)
        if settings.mode in ("auto", "pseudo") or settings.unknown == "pseudo":
            losses["pseudo_tags"] = settings.pseudo_tag_weight * tag_cross_entropy(pooled, tags.guessed)
        return losses

    def _at_points(self, logits: Tensor, points: Tensor) -> Tensor:
        """The cross-entropy at points; a class that has more points than its share of pixels must not win by that."""
        rarity = cast(Tensor | None, self.rarity)
        return cross_entropy(logits if rarity is None else logits + rarity.view(-1, 1, 1), points)

    def figures(self) -> dict[str, Tensor]:
        """Mean number of classes taken for present in an image (collapse: none or all), and mean pooled logit (which
        the cross-entropy of the source leaves free to drift)."""
        return self._figures

    def tuned(self) -> dict[str, Tuned]:
        discriminators = nn.ModuleList([self.discriminators, self.categories])
        return {
            "net": net_optimizer(self.net, self.settings.optimizer),
            "discriminators": discriminator_optimizer(discriminators, self.settings.discriminator),
        }

    def predictor(self) -> SegmentationNet:
        return self.net
