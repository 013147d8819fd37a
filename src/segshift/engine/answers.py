"""What a network says of a sample of images, kept on the disk at a size that does not depend on the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from numpy.lib.format import write_array_header_1_0

from segshift.artefacts.store import atomic_path
from segshift.data.domains import Domain
from segshift.data.images import load_resized
from segshift.engine.ahead import ahead
from segshift.engine.inference import Options, as_input, autocast, logits_at
from segshift.engine.model import Model
from segshift.engine.progress import Bar

CELLS = 4800
"""Points of an image, about: 80x60 of an image of 4:3. Logits are interpolated to them as evaluation does, so rare and
thin classes keep their share; only the number of points is smaller."""

LEAST = -1e4
"""Logarithms of probabilities below it are kept as this: float16 ends at -65504."""


@dataclass(frozen=True)
class Place:
    """How and where a network is asked: the images of a domain by their indexes, and the (h, w) grid of the answers."""

    domain: Domain
    images: tuple[int, ...]
    grid: tuple[int, int]
    device: torch.device
    workers: int = 1


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of about `CELLS` points in the shape of an image of height x width."""
    scale = math.sqrt(CELLS / (height * width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def sample(total: int, count: int, seed: int) -> tuple[int, ...]:
    """Some of the numbers 0..total-1: one drawn from each of `count` equal parts; all where there are no more.

    Neighbouring frames of a video are nearly the same image: parts keep a sample from holding many of them. Where two
    parts draw one number, at their border, it counts once.
    """
    if count >= total:
        return tuple(range(total))
    drawn = (part + float(np.random.default_rng([seed, part]).random()) for part in range(count))
    return tuple(sorted({int(place * total / count) for place in drawn}))


def write_answers(
    path: Path, model: Model, place: Place, options: Options, precision: str, bar: Bar | None = None
) -> None:
    """Ask a network about images one at a time, as evaluation would, and keep log p of every class and point.

    The file, (I, K, h, w) float16 in NumPy's format, is whole or not there.

    Args:
        path: ends with .npy.
        model: on the device of `place`.
        options, precision: as of evaluation.
        bar: told of every image.

    Raises:
        UserError: an image cannot be read, the network's output is not finite, or the disk is full.
    """
    images, size = place.images, model.size

    def read(index: int) -> np.ndarray:
        return load_resized(place.domain.items[index].image, size)[0]

    shape = (len(images), len(model.classes), *place.grid)
    # Written row by row and not into a mapping of the file: where the disk is full, that ends the process by a signal.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for _, wait in ahead(read, images, place.workers):
            with autocast(place.device, precision):
                logits = logits_at([model.net], as_input(wait(), place.device), place.grid, options)
            kept = logits.log_softmax(dim=1)[0].clamp(min=LEAST).cpu().numpy()
            file.write(kept.astype("<f2").tobytes())
            if bar is not None:
                bar.advance()


def read_answers(path: Path, shape: Sequence[int]) -> Float16[np.ndarray, "I K h w"] | None:
    """What `write_answers` kept, read from the disk as it is looked at; None where there is none of this shape."""
    try:
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = kept.shape == tuple(shape) and kept.dtype == np.float16
    return kept if fits else None
