"""Views that lie anywhere in their files, and values read from one view at points of another, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from restated import Batches
from torch import Tensor

from segshift.types import Batch
from tiny import HEIGHT, WIDTH, source_batch, target_batch


def sample(
    values: Tensor, view: Tensor, affine: Tensor, to_view: Tensor, to_affine: Tensor, to: list[int], mode: str
) -> tuple[Tensor, Tensor]:
    """Values on a grid over one view, at a grid of `to` points over another view of the same files: by way of the
    files' pixels, image by image and in float64. Also whether these points lie on the first view's pixels."""
    samples, inside = [], []
    for b in range(len(values)):
        ys = torch.linspace(0, to_view.shape[-2] - 1, to[0], dtype=torch.float64)
        xs = torch.linspace(0, to_view.shape[-1] - 1, to[1], dtype=torch.float64)
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        points = affine[b].double().inverse() @ (to_affine[b].double() @ points)
        last = torch.tensor([view.shape[-1] - 1, view.shape[-2] - 1])
        nudge = 2.5e-4 if mode == "nearest" else 0.0  # of two pixels equally near it is the right or lower one
        at = ((points[:2].T + nudge) / last * 2 - 1).reshape(1, *to, 2)
        beyond = (points[:2].T - last / 2).abs() - last / 2  # pixels from the outermost centres outwards
        found = F.grid_sample(values[b : b + 1].double(), at, mode, "border", align_corners=True)
        samples.append(found[0].float())
        inside.append((beyond <= 0.51).all(dim=1).reshape(to))
    return torch.stack(samples), torch.stack(inside)


def placed(views: Callable[[int], Tensor]) -> Batches:
    """Batches whose views lie elsewhere in their files; the pixels stay, so only the geometry differs."""

    def batches(number: int) -> tuple[Batch, Batch]:
        target = target_batch(number)
        weak = torch.stack([views(2 * number + b) for b in range(2)])
        strong = torch.stack([weak[b] @ turned(number + b) for b in range(2)])
        whole = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]).expand(2, 3, 3)  # files of twice the size
        return source_batch(number), replace(target, affine=weak, full_affine=whole, strong_affine=strong)

    return batches


def cropped(number: int) -> Tensor:
    """A scaled crop, every other one mirrored, wholly inside."""
    scale = 1.1 + 0.2 * number
    crop = torch.tensor([[scale, 0, 3.3 + number], [0, scale, 5.2 - number], [0, 0, 1]])
    mirror = torch.tensor([[-1.0, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1]])
    return crop @ mirror if number % 2 else crop


def beyond(number: int) -> Tensor:
    """A crop that reaches over the image's left border by a third of its width."""
    return torch.tensor([[2.0, 0, -27.3 - number], [0, 1.9, 3.1], [0, 0, 1]])


def turned(number: int) -> Tensor:
    """Turned, sheared and mirrored about its middle."""
    turn = math.radians(11 + 5 * number)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0.0, 0, 1]])
    shear = torch.tensor([[-0.8, 0.13, 0], [0.07, 0.8, 0], [0, 0, 1]])
    middle = torch.tensor([[1.0, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])
    return middle @ rotation @ shear @ middle.inverse()
