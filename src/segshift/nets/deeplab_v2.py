"""DeepLab-v2 on ResNet-101 and on VGG-16: the networks of AdaptSegNet, ADVENT and most of what followed them."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.nets.normalise import Normalisation, Normalise
from segshift.nets.resnet import Aspp, ResNet101
from segshift.types import Prediction


class DeepLabV2ResNet101(SegmentationNet):
    """ResNet-101 → ASPP on layer4 and, where wanted, a second ASPP on layer3 (AdaptSegNet's multi-level).

    Args:
        num_classes: K.
        batch_norm: see `SegmentationNet`.
        aux: build the second head.
        aspp_branches: 2 or 4 active branches, see `Aspp`.
        normalisation: see `Normalise`.
    """

    def __init__(
        self,
        num_classes: int,
        batch_norm: BatchNormPolicy,
        aux: bool,
        aspp_branches: Literal[2, 4],
        normalisation: Normalisation,
    ) -> None:
        super().__init__(num_classes, batch_norm, has_aux=aux)
        self.num_features = 2048
        self.normalise = Normalise(normalisation)
        self.backbone = ResNet101()
        self.classifier = Aspp(2048, num_classes, aspp_branches)
        self.aux_classifier = Aspp(1024, num_classes, aspp_branches) if aux else None
        self.apply_batch_norm_policy()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Prediction:
        middle, features = self.backbone(self.normalise(image))
        aux = None if self.aux_classifier is None else self.aux_classifier(middle)
        return Prediction(self.classifier(features), features, aux)

    def head_modules(self) -> list[nn.Module]:
        return [self.classifier] if self.aux_classifier is None else [self.classifier, self.aux_classifier]


def deeplab_v2_resnet101(
    num_classes: int,
    *,
    batch_norm: BatchNormPolicy = "as-reference",
    aux: bool = False,
    aspp_branches: Literal[2, 4] = 4,
    normalisation: Normalisation = "caffe",
) -> DeepLabV2ResNet101:
    """Build a `DeepLabV2ResNet101` with random weights; give it published ones with `load_published`.

    Args:
        num_classes: K.
        batch_norm: policy of the batch norms; `as-reference` is what AdaptSegNet and ADVENT do.
        aux: auxiliary head on layer3 (multi-level).
        aspp_branches: 4 as published and as in ADVENT; 2 as in the AdaptSegNet and DACS releases.
        normalisation: `caffe` for AdaptSegNet's initialisation and ADVENT's checkpoints, `imagenet` for torchvision's.
    """
    return DeepLabV2ResNet101(num_classes, batch_norm, aux, aspp_branches, normalisation)


# Stages of VGG-16: convolutions, channels, dilation, and whether a 2x2 pool of stride 2 follows (pool4 and 5 are out).
_VGG_STAGES = ((2, 64, 1, True), (2, 128, 1, True), (3, 256, 1, True), (3, 512, 1, False), (3, 512, 2, False))


class DeepLabV2Vgg16(SegmentationNet):
    """VGG-16 without pool4 and pool5, its fifth stage dilated, fc6 and fc7 as dilated 3x3 convolutions, then ASPP.

    Stride 8, floor at every pool; no batch norm, no dropout, no auxiliary head. fc6 and fc7 start from torch's default
    initialisation and not from VGG's linear layers.

    Source: methods.md section 1; deeplab_vgg.py of the AdaptSegNet release.
    """

    def __init__(
        self,
        num_classes: int,
        batch_norm: BatchNormPolicy,
        aspp_branches: Literal[2, 4],
        normalisation: Normalisation,
    ) -> None:
        super().__init__(num_classes, batch_norm)
        self.num_features = 1024
        self.normalise = Normalise(normalisation)
        self.convs = nn.ModuleDict()
        self.pooled: set[str] = set()
        inputs = 3
        for stage, (count, channels, dilation, pool) in enumerate(_VGG_STAGES, start=1):
            for index in range(1, count + 1):
                name = f"conv{stage}_{index}"
                self.convs[name] = nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation)
                inputs = channels
            if pool:
                self.pooled.add(f"conv{stage}_{count}")
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=4, dilation=4)
        self.fc7 = nn.Conv2d(1024, 1024, 3, padding=4, dilation=4)
        self.classifier = Aspp(1024, num_classes, aspp_branches)
        self.apply_batch_norm_policy()

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Prediction:
        x = self.normalise(image)
        for name, conv in self.convs.items():
            x = self.relu(conv(x))
            if name in self.pooled:
                x = self.pool(x)
        features = self.relu(self.fc7(self.relu(self.fc6(x))))
        return Prediction(self.classifier(features), features)

    def head_modules(self) -> list[nn.Module]:
        """None: AdaptSegNet trains all of VGG at one learning rate (optim_parameters of its deeplab_vgg.py)."""
        return []


def deeplab_v2_vgg16(
    num_classes: int,
    *,
    batch_norm: BatchNormPolicy = "as-reference",
    aspp_branches: Literal[2, 4] = 4,
    normalisation: Normalisation = "caffe",
) -> DeepLabV2Vgg16:
    """Build a `DeepLabV2Vgg16` with random weights; give it ImageNet's with `load_published(…, "torchvision_vgg16")`.

    Args:
        num_classes: K.
        batch_norm: accepted so that all networks take it; VGG-16 has no batch norm.
        aspp_branches: 4 as published and as in FADA; 2 as in the AdaptSegNet release.
        normalisation: `caffe` for Caffe's VGG-16 under torchvision's key names, `imagenet` for torchvision's own.
    """
    return DeepLabV2Vgg16(num_classes, batch_norm, aspp_branches, normalisation)
