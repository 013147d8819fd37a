"""Small networks and folders that the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segshift.nets.base import SegmentationNet
from segshift.types import ClassSet, Prediction

CLASSES = ClassSet(("red", "green", "blue"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)))


class Tiny(SegmentationNet):
    """A convolution of stride 4, with dropout so that its mode shows."""

    def __init__(self, num_classes: int = 3, seed: int = 0) -> None:
        super().__init__(num_classes, "train")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Conv2d(3, 8, 4, stride=4)
            self.head = nn.Conv2d(8, num_classes, 1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Prediction:
        features = self.drop(self.norm(self.body(image)))
        return Prediction(self.head(features), features)

    def head_modules(self) -> list[nn.Module]:
        return [self.head]


class Colour(SegmentationNet):
    """Says red, green or blue, whichever channel is brightest, pixel by pixel; `wrong` says the next class instead."""

    def __init__(self, gain: float = 20.0, wrong: bool = False) -> None:
        super().__init__(3, "train")
        self.gain, self.wrong = gain, wrong
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Prediction:
        logits = self.gain * self.weight * (image.roll(1, dims=1) if self.wrong else image)
        return Prediction(logits, image)

    def head_modules(self) -> list[nn.Module]:
        return []


def stripes(width: int, height: int, shift: int) -> tuple[Image.Image, np.ndarray]:
    """An image of vertical stripes in the three colours and its train ids (H, W) uint8; the first column is ignored."""
    ids = np.broadcast_to((np.arange(width) // 16 + shift) % 3, (height, width)).astype(np.uint8)
    rgb = np.zeros((height, width, 3), np.uint8)
    np.put_along_axis(rgb, ids[..., None].astype(np.int64), 255, axis=2)
    label = ids.copy()
    label[:, 0] = 255
    return Image.fromarray(rgb), label


def write_domain(root: Path, count: int, *, labelled: bool, size: tuple[int, int] = (96, 48)) -> Path:
    """A folder with images/ and, where labelled, labels/, nested one level."""
    for index in range(count):
        image, label = stripes(*size, shift=index)
        for kind, picture in (("images", image), ("labels", Image.fromarray(label))):
            path = root / kind / f"seq{index % 2}" / f"{index:03d}.png"
            if kind == "images" or labelled:
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    return root
