"""Discriminators of output-space adversarial adaptation."""

from __future__ import annotations

import itertools

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
