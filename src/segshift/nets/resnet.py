"""The dilated ResNet-101 of DeepLab-v2 (stride 8), in the form of the Caffe releases, and its summed atrous pyramid."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from segshift.errors import UserError

DILATIONS = (6, 12, 18, 24)
"""Of the ASPP branches (Chen et al., DeepLab-v2, section 3.2)."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut. The stride is on the first 1x1, as in Caffe; torchvision has it on the 3x3."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        outputs = 4 * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if project:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return result


def _stage(inputs: int, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    """Blocks of one stage; all of them have its dilation, the first has its stride and the shortcut's projection."""
    first = Bottleneck(inputs, planes, stride, dilation, project=True)
    return nn.Sequential(first, *(Bottleneck(4 * planes, planes, 1, dilation, False) for _ in range(blocks - 1)))


class ResNet101(nn.Module):
    """Normalised image → 1024 channels of layer3 and 2048 of layer4, both at stride 8.

    The pool after the first convolution has `ceil_mode`, so a side of n pixels ends as one more cell than n / 8 where n
    is a multiple of 8: 512 x 1024 → 65 x 129 (methods.md section 0.5). Names of the parts are torchvision's.

    Source: methods.md section 1; Chen et al., DeepLab-v2, 2017. Weights start as N(0, 0.01), as in the releases.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(64, 64, blocks=3, stride=1, dilation=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2, dilation=1)
        self.layer3 = _stage(512, 256, blocks=23, stride=1, dilation=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=1, dilation=4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)

    def forward(
        self, image: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 1024 h w"], Float[Tensor, "B 2048 h w"]]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        middle = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)


class Aspp(nn.Module):
    """Sum of parallel 3x3 convolutions with dilation 6, 12, 18 and 24 that map features to classes: DeepLab-v2's head.

    Args:
        inputs: channels of the features.
        num_classes: K.
        active: 4 is the published design. 2 leaves out dilations 18 and 24, as the AdaptSegNet and DACS releases do by
            returning from inside the loop (methods.md section 1); those branches then exist, so that checkpoints fit,
            but take no part and are not trained.

    Raises:
        UserError: another number of branches.
    """

    def __init__(self, inputs: int, num_classes: int, active: Literal[2, 4] = 4) -> None:
        super().__init__()
        if active not in (2, 4):
            raise UserError(f"aspp_branches is {active!r}", "2 or 4")
        self.active = active
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, num_classes, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        for module in self.branches.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        for unused in self.branches[active:]:
            unused.requires_grad_(False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        first, *others = self.branches[: self.active]
        logits: Tensor = first(x)
        for branch in others:
            logits = logits + branch(x)
        return logits
