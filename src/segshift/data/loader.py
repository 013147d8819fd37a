"""Batches for training; a batch is a function of (seed, step) alone, whatever the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segshift.artefacts.pseudo_labels import PseudoLabel, PseudoLabels, stack
from segshift.artefacts.soft_labels import SoftLabels
from segshift.data.cache import Cache, open_cache
from segshift.data.domains import Domain, load_pair
from segshift.data.images import resize_nearest
from segshift.data.order import indices, seed_of
from segshift.data.streaming import stream
from segshift.data.strong import StrongSettings, draw_strong, strengthen
from segshift.data.tensors import as_float
from segshift.data.views import Draw, ViewSettings, affine_of, centred, cut, cut_map, draw, recolour
from segshift.data.weak_views import WeakViews, shown
from segshift.errors import UserError
from segshift.types import IGNORE, Batch

WEAK = frozenset({"tags", "points"})
"""What batches carry of weak labels, if asked for."""

EXTRAS = frozenset({"full", "strong", "seen"}) | WEAK
"""What batches can carry besides the image, if asked for: the whole image, a strong view of what is seen, where the
image is seen and no padding, and a person's tags and points."""


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
    extras: frozenset[str]
    strong: StrongSettings
    soft_labels: SoftLabels | None
    weak: WeakViews | None

    def __call__(self, step: int) -> Batch:
        domain, view = self.domain, self.view
        # Domains get orders of their own: else two of equal length would meet in the same pairs in every epoch.
        order = indices(seed_of(self.seed, domain.name), step, len(domain.items), self.batch_size)
        images, labels, affines, names, chances, given, extras = [], [], [], [], [], [], []
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
            whole = image
            image, label = cut(whole, label, view, chance)
            affine = affine_of(view, chance, original)
            extra = self._whole(item.name, whole, original, chance)
            if "strong" in self.extras:
                extra |= self._strong(image, affine, chance, seed)
            if "seen" in self.extras:
                extra["seen"] = shown(view, chance)
            if self.weak is not None:
                extra |= self.weak.fields(item.name, self.extras, domain.classes.names, view, chance, affine)
            images.append(image)
            labels.append(label)
            affines.append(affine)
            extras.append(extra)
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
                **_stacked(extras, names),
            )

    def _whole(self, name: str, image: np.ndarray, original: tuple[int, int], chance: Draw) -> dict[str, np.ndarray]:
        """Fields of the whole image of (h, w, 3) pixels, whose file has `original` (H, W)."""
        fields: dict[str, np.ndarray] = {}
        if "full" in self.extras:
            plain = replace(chance, scaled=self.view.size, offset=(0, 0), flip=False)
            fields |= {"full": image, "full_affine": affine_of(self.view, plain, original)}
        if self.soft_labels is not None:
            fields["soft_full"] = self.soft_labels.read(name).transpose(2, 0, 1)
        return fields

    def _strong(self, image: np.ndarray, affine: np.ndarray, chance: Draw, seed: int) -> dict[str, np.ndarray]:
        """Fields of a strong view of the weak view `image`, whose pixels are from where `affine` says."""
        view = self.view
        covered = all(
            0 <= first <= whole - part
            for first, whole, part in zip(chance.offset, chance.scaled, view.shape, strict=True)
        )
        generator = torch.Generator().manual_seed(seed_of(seed, "strong"))
        chosen = draw_strong(generator, view.shape, self.strong)
        strong, matrix, seen = strengthen(image, chosen, None if covered else shown(view, chance))
        together = affine.astype(np.float64) @ matrix
        return {"strong": strong, "strong_affine": together.astype(np.float32), "strong_seen": seen}


def _stacked(extras: list[dict[str, np.ndarray]], names: list[str]) -> dict[str, torch.Tensor]:
    """Fields of a batch from those of its images; pictures become float32 with channels first.

    Raises:
        UserError: soft labels of different sizes or classes.
    """
    fields = {}
    for field in extras[0]:
        values = [extra[field] for extra in extras]
        for name, value in zip(names, values, strict=True):
            # Everything else has the size that the settings say.
            if value.shape != values[0].shape:
                raise UserError(
                    f"{field} of {name} is {value.shape}, of {names[0]} {values[0].shape}",
                    "soft labels of one network at one working size",
                    "delete the soft labels' folder and run again: it is made anew",
                )
        together = np.ascontiguousarray(np.stack(values))
        fields[field] = as_float(together) if together.dtype == np.uint8 else torch.from_numpy(together)
    return fields


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
    extras: frozenset[str] = frozenset(),
    strong: StrongSettings | None = None,
    soft_labels: SoftLabels | None = None,
    weak: WeakViews | None = None,
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
        extras: of `EXTRAS`: "full" for the whole images too, "strong" for strong views of the same crops. They change
            nothing else in the batch. A strong view has the weak one's crop and flip, but colours of its own. "seen"
            for where views show the image; "tags" and "points" of `weak`.
        strong: how strong views are made; None: as ProDA does.
        soft_labels: of the domain's whole images (`Batch.soft_full`); None: batches carry none.
        weak: weak labels of the domain's images; an image without one has unknown tags and no points.

    Raises:
        UserError: naming the file that cannot be used.
        ValueError: the batch cannot be divided among the shards, an unknown extra, or one of weak labels without them.
    """
    if not extras <= EXTRAS:
        raise ValueError(f"extras {sorted(extras - EXTRAS)} are none of {sorted(EXTRAS)}")
    if weak is None and extras & WEAK:
        raise ValueError(f"extras {sorted(extras & WEAK)} without weak labels")
    if batch_size % shard[1]:
        raise ValueError(f"a batch of {batch_size} images cannot be divided among {shard[1]} processes")
    cached = open_cache(domain, view.size, cache, workers=workers) if cache is not None and start < stop else None
    chosen = strong or StrongSettings()
    steps = _Steps(
        domain, view, batch_size, seed, shard, cached, pseudo_labels, rare, extras, chosen, soft_labels, weak
    )
    yield from stream(steps, range(start, stop), workers=workers, pin=pin)
