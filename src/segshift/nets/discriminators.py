"""Discriminators of adversarial adaptation: of maps, patch by patch, and of the classes' features."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST = 32
"""Rows and columns below which five halvings leave nothing."""


class PatchDiscriminator(nn.Module):
    """Five 4x4 convolutions of stride 2 that score overlapping patches: (B, C, H, W) → (B, 1, H // 32, W // 32) logits.

    LeakyReLU 0.2 after the first four, no batch norm; torch's default initialisation.

    Args:
        in_channels: C, the number of classes K in AdaptSegNet and ADVENT.
        width: channels after the first convolution; doubled by each of the next three.

    Raises:
        ValueError: the input is smaller than 32 pixels a side.

    Source: Tsai et al. (AdaptSegNet), CVPR 2018, section 3.2; model/discriminator.py of the release.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.in_channels = in_channels
        channels = [in_channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        if maps.shape[1] != self.in_channels:
            raise ValueError(f"the discriminator takes {self.in_channels} channels, the input has {maps.shape[1]}")
        if min(maps.shape[2:]) < SMALLEST:
            raise ValueError(
                f"the discriminator needs maps of at least {SMALLEST}x{SMALLEST} pixels, got "
                f"{maps.shape[2]}x{maps.shape[3]}: use larger images or crops"
            )
        scores: Tensor = self.layers(maps)
        return scores


class CategoryDiscriminators(nn.Module):
    """K perceptrons of three layers, one for each class: (B, K, D) features of the classes → (B, K) logits.

    All are evaluated in three batched products. LeakyReLU 0.2 after the first two layers; each class's layers start
    like torch's linear layers.

    Args:
        num_classes: K.
        in_features: D.
        width: units of the two hidden layers.

    Raises:
        ValueError: the input is of other classes or features.

    Source: Paul et al., ECCV 2020: an independent discriminator for each class (methods.md section 9; three layers not
    verified against the paper).
    """

    def __init__(self, num_classes: int, in_features: int, width: int = 256) -> None:
        super().__init__()
        self.num_classes, self.in_features = num_classes, in_features
        sizes = [in_features, width, width, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in itertools.pairwise(sizes):
            bound = inputs**-0.5
            self.weights.append(nn.Parameter(torch.empty(num_classes, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(num_classes, 1, outputs).uniform_(-bound, bound)))

    def forward(self, features: Float[Tensor, "B K D"]) -> Float[Tensor, "B K"]:
        if features.shape[1:] != (self.num_classes, self.in_features):
            raise ValueError(
                f"the discriminators take {self.num_classes} classes of {self.in_features} features, the input has "
                f"{features.shape[1]} of {features.shape[2]}"
            )
        x = features.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if layer == 0 else F.leaky_relu(x, 0.2), weight)
        return x.squeeze(2).T
