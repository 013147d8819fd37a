"""A network of a few hundred parameters and toy batches, for tests of methods and of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from segshift.engine.trainer import Batches
from segshift.methods import METHODS, Method
from segshift.methods.base import Task
from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.types import IGNORE, Batch, Prediction

CLASSES = 3
HEIGHT, WIDTH = 36, 40
SHARES = torch.tensor([0.1, 0.2, 0.7])
FEATURES = 8
MOVED = 3
"""Pixels by which strong views are moved."""


class TwoLayers(SegmentationNet):
    """A stem with a batch norm and a body, a classifier on each; what they are, a subclass says."""

    stem: nn.Conv2d
    norm: nn.BatchNorm2d
    body: nn.Conv2d
    classifier: nn.Conv2d
    aux_classifier: nn.Conv2d | None

    def forward(self, image: Tensor) -> Prediction:
        middle = torch.tanh(self.norm(self.stem(image - 0.5)))
        features = torch.tanh(self.body(middle))
        aux = None if self.aux_classifier is None else self.aux_classifier(middle)
        return Prediction(self.classifier(features), features, aux)

    def head_modules(self) -> list[nn.Module]:
        return [self.classifier] if self.aux_classifier is None else [self.classifier, self.aux_classifier]


class TinyNet(TwoLayers):
    """Two strided convolutions with a batch norm; stride 4, so that its grid is not the image's."""

    def __init__(self, aux: bool = False, batch_norm: BatchNormPolicy = "as-reference", seed: int = 0) -> None:
        super().__init__(CLASSES, batch_norm, has_aux=aux)
        self.num_features = FEATURES
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(6)
            self.body = nn.Conv2d(6, FEATURES, 3, stride=2, padding=1)
            self.classifier = nn.Conv2d(FEATURES, CLASSES, 1)
            # Not 1x1: of six channels with a stride, torch 2.13 (oneDNN 3.12) then writes beyond its memory on AVX2.
            self.aux_classifier = nn.Conv2d(6, CLASSES, 2, stride=2) if aux else None
        self.apply_batch_norm_policy()


def source_batch(step: int, size: int = 2) -> Batch:
    """Blocks of three colours with noise; the label is the colour, its first row ignored. The left is padding."""
    generator = torch.Generator().manual_seed(1000 + step)
    label = torch.randint(CLASSES, (size, HEIGHT // 4, WIDTH // 4), generator=generator)
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    image = torch.nn.functional.one_hot(label, CLASSES).permute(0, 3, 1, 2) * 0.6
    image = (image + 0.4 * torch.rand(image.shape, generator=generator)).float()
    label[:, 0] = IGNORE
    seen = torch.arange(WIDTH).expand(label.shape) >= 5
    return Batch(image, label, torch.eye(3).expand(size, 3, 3), tuple(f"s{step}_{i}" for i in range(size)), seen=seen)


def target_batch(step: int, size: int = 2) -> Batch:
    """The same in the dark, without labels, of another shape, and with pseudo-labels that are mostly right.

    Every other image, from the first on, is easy: all of its pixels have a pseudo-label. Of the others a fifth do.
    The views are the upper part of the whole images, and that part mirrored, moved to the right and brightened.
    Every other image has weak labels: a class that is there, one that is not, one that nobody knows of, two points.
    """
    source = source_batch(step + 500, size)
    assert source.label is not None
    generator = torch.Generator().manual_seed(2000 + step)
    image, truth = source.image[..., : HEIGHT - 4, :] * 0.4, source.label[:, : HEIGHT - 4]
    guessed = torch.randint(CLASSES, truth.shape, generator=generator)
    wrong, dropped = (torch.rand(truth.shape, generator=generator) for _ in range(2))
    easy = torch.arange(size) % 2 == 0
    pseudo_label = torch.where((truth == IGNORE) | (wrong < 0.3), guessed, truth)
    pseudo_label[~easy[:, None, None] & (dropped < 0.8)] = IGNORE
    strong, strong_affine, strong_seen = strengthened(image)
    return Batch(
        image,
        affine=source.affine,
        names=tuple(f"t{step}_{i}" for i in range(size)),
        pseudo_label=pseudo_label,
        soft_label=softened(pseudo_label),
        easy=easy,
        full=source.image * 0.4,
        full_affine=torch.eye(3).expand(size, 3, 3),
        strong=strong,
        strong_affine=strong_affine,
        strong_seen=strong_seen,
        soft_full=torch.rand(size, CLASSES, HEIGHT // 4, WIDTH // 4, generator=generator).log().mul(-3).softmax(1),
        tags=torch.tensor([[1.0, 0, -1], [-1, -1, -1]]).repeat(-(-size // 2), 1)[:size],
        points=pointed(truth),
        seen=torch.arange(image.shape[-1]).expand(size, *image.shape[-2:]) < WIDTH - 9,
    )


def pointed(truth: Tensor) -> Tensor:
    """The truth (B, H, W) in two small squares of every other image, from the first on."""
    points = torch.full_like(truth, IGNORE)
    for rows, columns in ((slice(4, 8), slice(8, 12)), (slice(20, 23), slice(16, 19))):
        points[::2, rows, columns] = truth[::2, rows, columns]
    return points


def strengthened(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strong views of (B, 3, H, W) views that start where their files do, with their affines and what they show."""
    strong = torch.full_like(image, 0.5)
    strong[..., MOVED:] = (1.5 * image.flip(-1)[..., :-MOVED]).clamp(max=1)
    affine = torch.tensor([[-1.0, 0, image.shape[-1] - 1 + MOVED], [0, 1, 0], [0, 0, 1]])
    seen = torch.ones_like(image[:, 0], dtype=torch.bool)
    seen[..., :MOVED] = False
    seen[:, 8:16, 12:20] = False
    strong.masked_fill_(~seen[:, None], 0.5)
    return strong, affine.expand(len(image), 3, 3), seen


def softened(labels: Tensor) -> Tensor:
    """(B, K, H, W) distributions with 0.6 at the label (B, H, W) and the rest shared; all 0 where it is ignored."""
    known = torch.nn.functional.one_hot(labels.where(labels != IGNORE, 0), CLASSES).permute(0, 3, 1, 2)
    soft = 0.6 * known + 0.4 / (CLASSES - 1) * (1 - known)
    return (soft * (labels != IGNORE)[:, None]).float()


def pairs(start: int, fail_at: int | None = None) -> contextlib.AbstractContextManager[Iterator[tuple[Batch, Batch]]]:
    """`Batches` for the trainer: endless, from step `start` on; raises `Stop` at step `fail_at`."""

    @contextlib.contextmanager
    def stream() -> Iterator[Iterator[tuple[Batch, Batch]]]:
        yield _pairs(start, fail_at)

    return stream()


def stopping(fail_at: int) -> Batches:
    """`pairs` that raise `Stop` when step `fail_at` is asked for."""
    return lambda start: pairs(start, fail_at)


class Stop(Exception):
    """The process dies here."""


def _pairs(start: int, fail_at: int | None) -> Iterator[tuple[Batch, Batch]]:
    step = start
    while True:
        if step == fail_at:
            raise Stop
        yield source_batch(step), target_batch(step)
        step += 1


def task(seed: int = 0, shares: Tensor | None = SHARES) -> Task:
    """All that a method can ask of a task, with random prototypes and a random teacher from `seed`."""
    generator = torch.Generator().manual_seed(3000 + seed)
    means = 0.5 * torch.randn(CLASSES, FEATURES, generator=generator)
    return Task(CLASSES, shares, (means, torch.ones(CLASSES, dtype=torch.bool)), TinyNet(seed=seed + 100))


def build(name: str, net: SegmentationNet | None = None, seed: int = 0, **settings: Any) -> Method:
    """A method of METHODS on a tiny network, with random weights from `seed`."""
    entry = METHODS[name]
    torch.manual_seed(seed)
    return entry.build(entry.settings(**settings), net or TinyNet(seed=seed), task(seed))
