"""Counting over a domain in constant memory: class frequencies, and what `check` finds before training."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from segshift.data.domains import Domain, load_label
from segshift.data.images import Size, image_size, load_resized, resize_nearest
from segshift.data.labels import Value, decode_file, mismatch_error, unmapped_error
from segshift.data.streaming import stream
from segshift.errors import UserError


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers 0..total-1, evenly spread and away from both ends."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def count_classes(label: UInt8[np.ndarray, "H W"], num_classes: int) -> Int64[np.ndarray, "K1"]:
    """Pixels of each of the K classes, and those of no class as one more entry."""
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[:num_classes], counts[num_classes:].sum()).astype(np.int64)


def _counts_at(domain: Domain, size: Size | None, index: int) -> np.ndarray:
    item = domain.items[index]
    label = resize_nearest(load_label(domain, item, image_size(item.image)), size)
    return count_classes(label, len(domain.classes))


def class_frequency(domain: Domain, size: Size | None = None, *, workers: int = 0) -> Float64[np.ndarray, "K"]:
    """Each class's share of the labelled pixels of a domain (the prior p_s of ADVENT's class-ratio term).

    Args:
        domain: with labels.
        size: (w, h) to which labels are resized first, as in training; None: the files' own.
        workers: processes that decode.

    Returns:
        (K,) shares that sum to 1; pixels to ignore count nowhere.

    Raises:
        UserError: a file cannot be used, or no pixel of the domain has a class.
    """
    total = np.zeros(len(domain.classes) + 1, np.int64)
    task = functools.partial(_counts_at, domain, size)
    for counts in stream(task, range(len(domain.items)), workers=workers):
        total += counts
    if total[:-1].sum() == 0:
        raise _all_ignored(domain)
    return np.asarray(total[:-1] / total[:-1].sum(), np.float64)


def _one_hot_at(domain: Domain, size: Size, index: int) -> np.ndarray:
    item = domain.items[index]
    label = resize_nearest(load_label(domain, item, image_size(item.image)), size)
    return np.asarray(label[None] == np.arange(len(domain.classes), dtype=np.uint8)[:, None, None])


def spatial_frequency(domain: Domain, size: Size, *, workers: int = 0) -> Float64[np.ndarray, "K h w"]:
    """How often each pixel of the frame is of each class, over a labelled domain (the spatial prior of CBST-SP).

    Args:
        domain: with labels.
        size: (w, h) to which labels are resized.
        workers: processes that decode.

    Returns:
        (K, h, w) shares that sum to 1 over K; equal shares where every label is to be ignored.

    Raises:
        UserError: a file cannot be used.
    """
    classes = len(domain.classes)
    total = np.zeros((classes, size[1], size[0]), np.int64)
    for present in stream(functools.partial(_one_hot_at, domain, size), range(len(domain.items)), workers=workers):
        total += present
    labelled = total.sum(axis=0)
    shares: Float64[np.ndarray, "K h w"] = np.where(labelled > 0, total / np.maximum(labelled, 1), 1 / classes)
    return shares


def _all_ignored(domain: Domain) -> UserError:
    return UserError(
        f"domain {domain.name!r}: every pixel of every label is to be ignored (255)",
        "pixels of the classes " + ", ".join(domain.classes.names),
        "check the domain's class_map, `layout` and `labels`",
    )


@dataclass(frozen=True)
class Unmapped:
    """A label value that no class has: its pixels, the number of files with it, and one of them."""

    pixels: int
    files: int
    example: Path


@dataclass(frozen=True)
class Scan:
    """What was found in a domain's files.

    Attributes:
        images: number of items looked at.
        sizes: (H, W) of images → how many.
        pixels: K numbers of pixels at the labels' own size; zeros without labels.
        ignored: pixels to ignore.
        images_with: K numbers of images in which the class occurs.
        unmapped: value → where.
        mismatches: label files of another size than their image's, with both sizes (H, W).
        all_ignored: label files without any class.
        unreadable: the errors of files that cannot be used.
    """

    images: int
    sizes: Mapping[tuple[int, int], int]
    pixels: tuple[int, ...]
    ignored: int
    images_with: tuple[int, ...]
    unmapped: Mapping[Value, Unmapped]
    mismatches: tuple[tuple[Path, tuple[int, int], tuple[int, int]], ...]
    all_ignored: tuple[Path, ...]
    unreadable: tuple[UserError, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Each class's share of the labelled pixels; zeros where there is none."""
        total = sum(self.pixels)
        return tuple(n / total if total else 0.0 for n in self.pixels)

    def problems(self, domain: Domain) -> list[UserError]:
        """All that would stop a training, each with its fix; empty where the domain is in order."""
        found = list(self.unreadable)
        for kind in (int, tuple):
            values = {v: u for v, u in self.unmapped.items() if isinstance(v, kind)}
            if values and domain.decoder is not None:
                worst = max(values.values(), key=lambda u: u.pixels)
                found.append(unmapped_error(worst.example, {v: u.pixels for v, u in values.items()}, domain.decoder))
        if self.mismatches and not domain.settings.resize_labels:
            path, label, image = self.mismatches[0]
            error = mismatch_error(path, label, image, domain.name)
            more = f" (and {len(self.mismatches) - 1} more labels)" if len(self.mismatches) > 1 else ""
            found.append(UserError(error.found + more, error.wanted, error.remedy))
        if domain.labelled and self.images and not sum(self.pixels) and not found:
            found.append(_all_ignored(domain))
        return found


@dataclass(frozen=True)
class _Look:
    """What was found in one item."""

    size: tuple[int, int] | None = None
    counts: np.ndarray | None = None
    unmapped: Mapping[Value, int] | None = None
    label_size: tuple[int, int] | None = None
    error: UserError | None = None


def _look(domain: Domain, index: int) -> _Look:
    item = domain.items[index]
    try:
        # Decoded as a whole: a truncated file has a good header.
        _, size = load_resized(item.image, None)
    except UserError as error:
        return _Look(error=error)
    if domain.decoder is None or item.label is None:
        return _Look(size)
    try:
        label, unmapped = decode_file(item.label, domain.decoder)
    except UserError as error:
        return _Look(size, error=error)
    return _Look(size, count_classes(label, len(domain.classes)), unmapped, (label.shape[0], label.shape[1]))


def scan(
    domain: Domain,
    *,
    limit: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Read a domain's files as training would and collect what is wrong, without stopping at the first.

    Args:
        domain: with or without labels.
        limit: look at this many items only, evenly spread; None: all.
        workers: processes that decode.
        progress: called with (done, total) after each item.
    """
    classes = len(domain.classes)
    chosen = spread(len(domain.items), len(domain.items) if limit is None else limit)
    sizes: Counter[tuple[int, int]] = Counter()
    pixels, present = np.zeros(classes + 1, np.int64), np.zeros(classes, np.int64)
    unmapped: dict[Value, Unmapped] = {}
    mismatches: list[tuple[Path, tuple[int, int], tuple[int, int]]] = []
    all_ignored: list[Path] = []
    unreadable: list[UserError] = []
    looks = stream(functools.partial(_look, domain), chosen, workers=workers)
    for done, (index, look) in enumerate(zip(chosen, looks, strict=True), 1):
        item = domain.items[index]
        if look.error is not None:
            unreadable.append(look.error)
        if look.size is not None:
            sizes[look.size] += 1
        if look.counts is not None and item.label is not None and look.size is not None:
            missing = sum((look.unmapped or {}).values())
            pixels += look.counts
            pixels[-1] -= missing
            present += look.counts[:-1] > 0
            for value, count in (look.unmapped or {}).items():
                before = unmapped.get(value, Unmapped(0, 0, item.label))
                unmapped[value] = Unmapped(before.pixels + count, before.files + 1, before.example)
            if look.label_size is not None and look.label_size != look.size:
                mismatches.append((item.label, look.label_size, look.size))
            if not look.counts[:-1].any() and not missing:
                all_ignored.append(item.label)
        if progress is not None:
            progress(done, len(chosen))
    return Scan(
        len(chosen), dict(sizes), tuple(pixels[:-1].tolist()), int(pixels[-1]), tuple(present.tolist()),
        unmapped, tuple(mismatches), tuple(all_ignored), tuple(unreadable),
    )  # fmt: skip
