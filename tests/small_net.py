"""A network that costs next to nothing, for tests of whole runs; they reach it as `net.name=small`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from segshift.nets import NETS
from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.types import Prediction


class SmallNet(SegmentationNet):
    """Two strided convolutions with a batch norm and dropout, so that its mode and its random numbers show."""

    def __init__(self, num_classes: int, batch_norm: BatchNormPolicy = "train") -> None:
        super().__init__(num_classes, batch_norm)
        self.num_features = 12
        self.body = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Conv2d(12, num_classes, 1)
        nn.init.normal_(self.head.weight, std=2.0)  # sure of much from the start, so that labels differ
        self.apply_batch_norm_policy()

    def forward(self, image: Tensor) -> Prediction:
        features = torch.tanh(self.norm(self.body(image - 0.5)))
        return Prediction(self.head(self.drop(features)), features)

    def head_modules(self) -> list[nn.Module]:
        return [self.head]


@pytest.fixture(scope="module", autouse=True)
def small_net() -> Iterator[None]:
    """Makes the network known by name; a module that uses it imports this fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "small", SmallNet)
        yield
