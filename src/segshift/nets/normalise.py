"""Input normalisation: networks take RGB in [0, 1] and turn it into what their weights were trained on."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segshift.errors import UserError

Normalisation = Literal["caffe", "imagenet", "none", "tf"]

# Style → (reverse to BGR, factor, mean, standard deviation): y = (factor * x - mean) / std.
_STYLES: dict[Normalisation, tuple[bool, float, tuple[float, float, float], tuple[float, float, float]]] = {
    # AdaptSegNet and ADVENT releases, IMG_MEAN (methods.md section 0.2).
    "caffe": (True, 255.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
    # torchvision's ImageNet weights.
    "imagenet": (False, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # ProDA release: the range [0, 1] as it is.
    "none": (False, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # EfficientNet-Lite, TensorFlow TPU release: (x - 127) / 128 on 0-255.
    "tf": (False, 255.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


class Normalise(nn.Module):
    """RGB in [0, 1] → the style's colour order, range, mean and deviation.

    The constants follow the network to its device but are no part of its state: they are fixed by `style`.

    Args:
        style: `caffe`: BGR, 0-255, mean subtracted. `imagenet`: RGB, mean and deviation of torchvision's weights.
            `none`: RGB in [0, 1] unchanged. `tf`: RGB, (x - 127) / 128 on 0-255.

    Raises:
        UserError: the style is not known.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, style: Normalisation) -> None:
        super().__init__()
        if style not in _STYLES:
            raise UserError(f"input normalisation {style!r} is not known", "one of " + ", ".join(_STYLES))
        self.style = style
        self.reverse, factor, mean, std = _STYLES[style]
        deviation = torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", factor / deviation, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / deviation, persistent=False)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        if self.style == "none":
            return image
        if self.reverse:
            image = image.flip(1)
        return image * self.scale + self.shift
