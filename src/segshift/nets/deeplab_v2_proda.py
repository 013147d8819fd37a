"""ProDA's network: the ResNet-101 of DeepLab-v2 with a wider head (GroupNorm, squeeze-excite, channel dropout)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.nets.normalise import Normalisation, Normalise
from segshift.nets.resnet import DILATIONS, ResNet101
from segshift.types import Prediction

WIDTH = 256
"""Channels of each branch and of the features."""


class ConvGroupNorm(nn.Module):
    """Convolution with bias and GroupNorm of 32 groups, then ReLU where wanted."""

    def __init__(self, inputs: int, kernel: int, dilation: int = 1, activation: bool = True) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, WIDTH, kernel, padding=padding, dilation=dilation)
        self.norm = nn.GroupNorm(32, WIDTH)
        self.activation: nn.Module = nn.ReLU(inplace=True) if activation else nn.Identity()
        # Every convolution of the release ends as N(0, 0.01): its last initialisation loop overrides the others.
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class SqueezeExcite(nn.Module):
    """Channels weighted by a two-layer function of their means; reduction 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, channels // 16)
        self.up = nn.Linear(channels // 16, channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        weight = torch.sigmoid(self.up(torch.relu(self.down(x.mean(dim=(2, 3))))))
        return x * weight[:, :, None, None]


class ProdaHead(nn.Module):
    """1x1 and four dilated 3x3 branches, joined, squeeze-excited, projected to 256 channels, with Dropout2d(0.1)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvGroupNorm(inputs, 1), *(ConvGroupNorm(inputs, 3, d) for d in DILATIONS)])
        self.excite = SqueezeExcite(WIDTH * len(self.branches))
        self.project = ConvGroupNorm(WIDTH * len(self.branches), 3, activation=False)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 256 h w"]:
        pyramid = torch.cat([branch(x) for branch in self.branches], dim=1)
        features: Tensor = self.dropout(self.project(self.excite(pyramid)))
        return features


class DeepLabV2ResNet101Proda(SegmentationNet):
    """ResNet-101 → `ProdaHead` → 1x1 classifier without bias. The features are those after the dropout.

    Args:
        num_classes: K.
        batch_norm: see `SegmentationNet`; the release trains its batch norms (methods.md section 0.4).
        bn_clr: a batch norm of 2048 channels between layer4 and the head, as the release has it where the backbone was
            initialised by SimCLRv2 (stages 2 and 3). That one's ResNet ends with a ReLU: the file has nothing for it.
        normalisation: see `Normalise`.

    Source: Zhang et al. (ProDA), CVPR 2021; models/deeplabv2.py of the release (methods.md section 10.1).
    """

    reference_trains_batch_norm: ClassVar[bool] = True

    def __init__(
        self, num_classes: int, batch_norm: BatchNormPolicy, bn_clr: bool, normalisation: Normalisation
    ) -> None:
        super().__init__(num_classes, batch_norm)
        self.num_features = WIDTH
        self.normalise = Normalise(normalisation)
        self.backbone = ResNet101()
        self.bn_pretrain = nn.BatchNorm2d(2048) if bn_clr else None
        self.head = ProdaHead(2048)
        self.classifier = nn.Conv2d(WIDTH, num_classes, 1, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.01)
        self.apply_batch_norm_policy()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Prediction:
        _, x = self.backbone(self.normalise(image))
        if self.bn_pretrain is not None:
            x = self.bn_pretrain(x)
        features = self.head(x)
        return Prediction(self.classifier(features), features)

    def head_modules(self) -> list[nn.Module]:
        """The released optimiser counts the batch norm before the head among the parts that learn faster."""
        parts: list[nn.Module | None] = [self.bn_pretrain, self.head, self.classifier]
        return [part for part in parts if part is not None]


def deeplab_v2_resnet101_proda(
    num_classes: int,
    *,
    batch_norm: BatchNormPolicy = "as-reference",
    bn_clr: bool = False,
    normalisation: Normalisation = "none",
) -> DeepLabV2ResNet101Proda:
    """Build a `DeepLabV2ResNet101Proda` with random weights; give it published ones with `load_published`.

    Args:
        num_classes: K.
        batch_norm: policy of the batch norms; `as-reference` trains them, as ProDA's stages do (its warm-up: `frozen`).
        bn_clr: batch norm before the head, for a start from SimCLRv2 and for the checkpoints of stages 2 and 3.
        normalisation: `none` as in the release: RGB in [0, 1], no mean, no deviation.
    """
    return DeepLabV2ResNet101Proda(num_classes, batch_norm, bn_clr, normalisation)
