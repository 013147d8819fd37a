"""The order in which images are seen: a pure function of the seed and the step."""

from __future__ import annotations

import functools
import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and names; the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> tuple[int, ...]:
    # The cache only saves time: a step asks for the same epoch's order as the step before it.
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    return tuple(torch.randperm(n, generator=generator).tolist())


def indices(seed: int, step: int, n: int, batch: int) -> list[int]:
    """Indices of the images of one step.

    The sequence over all steps is one permutation of range(n) after another, so every image is seen once before any is
    seen again, and a batch may span two epochs.

    Args:
        seed: of the order.
        step: from 0.
        n: number of images, at least 1.
        batch: number of images a step, at least 1.

    Raises:
        ValueError: n or batch is below 1, or step is negative.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ValueError(f"n={n}, batch={batch} must be at least 1 and step={step} at least 0")
    first = step * batch
    return [_permutation(seed, i // n, n)[i % n] for i in range(first, first + batch)]
