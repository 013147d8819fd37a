"""Source-only against its step (methods.md section 1) in plain torch; and the promise that it sees no target image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from restated import compare, plain_copy, segment_source
from torch import Tensor

from segshift.engine.trainer import Loop, train
from segshift.methods.source_only import SourceOnly
from segshift.types import Batch, Prediction
from tiny import TinyNet, build, pairs, source_batch


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
def test_step_is_the_papers(aux: bool) -> None:
    method = build("source_only", TinyNet(aux))
    plain = plain_copy(method, [])

    def step(source: Batch, target: Batch) -> None:
        segment_source(plain, source)

    compare(method, [], plain, step)


class Untouchable(Batch):
    """A target batch that may be handed on but not looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("image", "label", "affine"):
            raise AssertionError(f"source-only looked at the target's {name}")
        return super().__getattribute__(name)


class Watched(TinyNet):
    """Remembers every image that it is shown."""

    def __init__(self) -> None:
        super().__init__(aux=True)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Prediction:
        self.seen.append(image)
        return super().forward(image)


def test_no_target_image_is_looked_at() -> None:
    method = build("source_only", TinyNet())
    target = Untouchable(torch.zeros(1, 3, 4, 4))
    assert len(list(method.step(source_batch(0), target))) == 1
    assert not SourceOnly.needs, "nothing of the target is even loaded"


def test_only_source_images_are_forwarded_in_training(tmp_path: Path) -> None:
    net = Watched()
    train(build("source_only", net), pairs, Loop(steps=3, seed=0, device=torch.device("cpu")), tmp_path)
    assert len(net.seen) == 3
    assert all(torch.equal(image, source_batch(step).image) for step, image in enumerate(net.seen))
