"""An optional store of resized images: decoded once, then read as memory-mapped arrays. It changes no result."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from segshift.artefacts.store import atomic_path, make_folder, write_json
from segshift.data.domains import Domain, load_pair
from segshift.data.images import Size
from segshift.data.streaming import stream
from segshift.errors import UserError

_FORMAT = 1
"""Raised when the meaning of the files changes, so that older ones are not read."""

Pair = tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None, tuple[int, int]]


@dataclass(frozen=True)
class Cache:
    """A finished cache: what `load_pair` returns, by the item's index.

    Attributes:
        folder: with images.npy (N, h, w, 3), sizes.npy (N, 2) and, for a labelled domain, labels.npy (N, h, w).
        labelled: whether labels.npy is there.
    """

    folder: Path
    labelled: bool

    def read(self, index: int) -> Pair:
        """Image, label or None, and the file's own (H, W) of the item at `index`."""
        height, width = self._array("sizes")[index].tolist()
        label = np.array(self._array("labels")[index]) if self.labelled else None
        return np.array(self._array("images")[index]), label, (height, width)

    def _array(self, kind: str) -> np.ndarray:
        # Mapped anew each time (0.1 ms): a map kept open would be copied whole into a worker that is not forked.
        array: np.ndarray = np.load(self.folder / f"{kind}.npy", mmap_mode="r")
        return array


def _file_state(path: Path | None) -> list[str | int]:
    if path is None:
        return []
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "a readable file", "check the path") from error
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def cache_key(domain: Domain, size: Size) -> str:
    """Hex digest of all that the cached arrays depend on: size, files with their times, and the decoding of labels."""
    decoder = domain.decoder
    meaning = None
    if decoder is not None:
        pairs = [sorted(decoder.ids.items()), sorted(decoder.colours.items())]
        meaning = [*pairs, decoder.rest, decoder.channel, domain.settings.resize_labels]
    files = [[item.name, *_file_state(item.image), *_file_state(item.label)] for item in domain.items]
    return hashlib.sha256(json.dumps([_FORMAT, list(size), meaning, files]).encode()).hexdigest()


def _load(domain: Domain, size: Size, index: int) -> Pair:
    return load_pair(domain, domain.items[index], size)


def _begin(file: BinaryIO, shape: tuple[int, ...], dtype: type[np.generic]) -> Callable[[np.ndarray], int]:
    """Write the header of an .npy file; the rows are then written one after another.

    Plain writes, not a map: on a full disk a write fails with an error that can be told, a map kills the process.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return lambda row: file.write(np.ascontiguousarray(row, dtype).tobytes())


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the cache needs {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free",
            "enough space",
            "free some space, or set `cache: false`",
        )


def _place(domain: Domain, size: Size, folder: Path) -> Path:
    return folder / f"{domain.name}-{size[0]}x{size[1]}-{cache_key(domain, size)[:16]}"


def missing_bytes(domain: Domain, size: Size, folder: Path) -> int:
    """What `open_cache` would write, none where the cache is finished."""
    return 0 if (_place(domain, size, folder) / "cache.json").is_file() else _bytes(domain, size)


def _bytes(domain: Domain, size: Size) -> int:
    return len(domain.items) * size[0] * size[1] * (4 if domain.labelled else 3)


def open_cache(domain: Domain, size: Size, folder: Path, *, workers: int) -> Cache:
    """The cache of a domain at a working size; made where it is not there yet, its size announced before.

    Another size, a changed file or another class map means another cache; an unfinished one is made anew.

    Args:
        domain: whose images, and labels where it has them, are stored.
        size: (w, h) to which they are resized.
        folder: that holds caches.
        workers: processes that decode.

    Raises:
        UserError: a file cannot be used, or the disk is full or read-only.
    """
    place = _place(domain, size, folder)
    cache = Cache(place, domain.labelled)
    if (place / "cache.json").is_file():
        return cache
    count, (width, height), needed = len(domain.items), size, _bytes(domain, size)
    make_folder(place)
    _check_space(place, needed)
    logging.getLogger("segshift").info(
        "caching %d images of %s at %dx%d in %s: %.2f GB", count, domain.name, width, height, place, needed / 1e9
    )
    sizes = np.empty((count, 2), np.int64)
    with atomic_path(place / "images.npy") as images_path, open(images_path, "wb") as images:
        write_image = _begin(images, (count, height, width, 3), np.uint8)
        if domain.labelled:
            with atomic_path(place / "labels.npy") as labels_path, open(labels_path, "wb") as labels:
                write_label = _begin(labels, (count, height, width), np.uint8)
                _fill(domain, size, workers, sizes, write_image, write_label)
        else:
            _fill(domain, size, workers, sizes, write_image, None)
    with atomic_path(place / "sizes.npy") as path:
        np.save(path, sizes)
    # Written last: its presence says that the rest is whole.
    write_json(place / "cache.json", {"format": _FORMAT, "images": count, "size": [width, height], "bytes": needed})
    return cache


def _fill(
    domain: Domain,
    size: Size,
    workers: int,
    sizes: np.ndarray,
    write_image: Callable[[np.ndarray], int],
    write_label: Callable[[np.ndarray], int] | None,
) -> None:
    """Decode all items in order and append them to the files."""
    pairs = stream(functools.partial(_load, domain, size), range(len(domain.items)), workers=workers)
    for i, (image, label, original) in enumerate(pairs):
        sizes[i] = original
        write_image(image)
        if write_label is not None and label is not None:
            write_label(label)
