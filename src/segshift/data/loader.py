"""Batches for training; a batch is a function of (seed, step) alone, whatever the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segshift.artefacts.pseudo_labels import PseudoLabel, PseudoLabels, stack
from segshift.data.cache import Cache, open_cache
from segshift.data.domains import Domain, load_pair
from segshift.data.images import as_float, resize_nearest
from segshift.data.order import indices, seed_of
from segshift.data.streaming import stream
from segshift.data.views import Draw, ViewSettings, affine_of, centred, cut, cut_map, draw, recolour
from segshift.types import IGNORE, Batch


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Workers have one torch thread; sums over several threads would round differently in this process."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Steps:
    """Makes the batch of a step; travels to the workers."""

    domain: Domain
    view: ViewSettings
    batch_size: int
    seed: int
    shard: tuple[int, int]
    cache: Cache | None
    pseudo_labels: PseudoLabels | None
    rare: tuple[int, ...]

    def __call__(self, step: int) -> Batch:
        domain, view = self.domain, self.view
        # Domains get orders of their own: else two of equal length would meet in the same pairs in every epoch.
        order = indices(seed_of(self.seed, domain.name), step, len(domain.items), self.batch_size)
        images, labels, affines, names, chances, given = [], [], [], [], [], []
        for position in range(self.shard[0], self.batch_size, self.shard[1]):
            index = order[position]
            item = domain.items[index]
            seed = seed_of(self.seed, step, domain.name, position)
            chance = draw(view, torch.Generator().manual_seed(seed))
            if self.cache is None:
                image, label, original = load_pair(domain, item, view.size)
            else:
                image, label, original = self.cache.read(index)
            if self.pseudo_labels is not None:
                pseudo = self.pseudo_labels.read(item.name)
                miner = torch.Generator().manual_seed(seed_of(seed, "mine"))
                chance = centred(view, chance, pseudo.hard, self.rare, miner)
                given.append(_cut(pseudo, view, chance))
            image, label = cut(image, label, view, chance)
            images.append(image)
            labels.append(label)
            affines.append(affine_of(view, chance, original))
            names.append(item.name)
            chances.append(chance)
        present = [label for label in labels if label is not None]
        with _one_thread():
            return Batch(
                recolour(as_float(np.stack(images)), view, chances),
                torch.from_numpy(np.stack(present)).to(torch.int64) if present else None,
                torch.from_numpy(np.stack(affines)),
                tuple(names),
                **{field: torch.from_numpy(values) for field, values in stack(given).items()},
            )


def _cut(label: PseudoLabel, view: ViewSettings, chance: Draw) -> PseudoLabel:
    """A pseudo-label as the view shows its image; made at another working size, it is resized first."""
    hard = cut_map(resize_nearest(label.hard, view.size), view, chance, IGNORE)
    soft = None if label.soft is None else cut_map(resize_nearest(label.soft, view.size), view, chance, 0)
    return PseudoLabel(hard, soft, label.easy)


def batches(
    domain: Domain,
    view: ViewSettings,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    pin: bool = False,
    cache: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    pseudo_labels: PseudoLabels | None = None,
    rare: tuple[int, ...] = (),
) -> Generator[Batch, None, None]:
    """One batch a step, for the steps start, start + 1, …, stop - 1.

    Every batch is a function of the seed, the step, the domain's name and files alone: the number of workers, the
    cache, earlier steps and the global random state change nothing, so a resumed run sees what it would have seen.

    Args:
        domain: with labels or without (then `Batch.label` is None).
        view: how images are seen.
        batch_size: images a step, over all shards.
        seed: of the order and of the views.
        start: first step.
        stop: end of the steps.
        workers: processes that read ahead; 0: read in this process when asked.
        pin: page-locked memory for faster copies to a GPU.
        cache: folder for the resized images; None: read the original files.
        shard: (rank, world): this process gets every world-th image of each batch, from the rank-th on.
        pseudo_labels: of the domain's images, seen in the same views; None: batches carry none.
        rare: classes that crops are laid around with the view's probability `mine`.

    Raises:
        UserError: naming the file that cannot be used.
        ValueError: the batch cannot be divided among the shards.
    """
    if batch_size % shard[1]:
        raise ValueError(f"a batch of {batch_size} images cannot be divided among {shard[1]} processes")
    cached = open_cache(domain, view.size, cache, workers=workers) if cache is not None and start < stop else None
    steps = _Steps(domain, view, batch_size, seed, shard, cached, pseudo_labels, rare)
    yield from stream(steps, range(start, stop), workers=workers, pin=pin)
