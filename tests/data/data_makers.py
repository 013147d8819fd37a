"""Files that the data tests need, made from nothing: images, labels of every kind, folders in each layout."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segshift.data.classes import make_classes
from segshift.types import ClassSet

CLASSES: ClassSet = make_classes(["road", "sky", "car", "person"])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def save(path: Path, values: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    """Write an array as an image file, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode is not None:
        image = image.convert(mode)
    image.save(path, **options)
    return path


def picture(seed: int, width: int = 32, height: int = 24) -> np.ndarray:
    """A smooth random RGB image."""
    small = rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def label(seed: int, width: int = 32, height: int = 24, ids: int = 4) -> np.ndarray:
    """Random ids in blocks of 4 pixels."""
    blocks = rng(seed).integers(0, ids, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4), np.uint8))[:height, :width]


def folders(root: Path, count: int = 5, labelled: bool = True, suffix: str = ".png") -> Path:
    """`images/` and, where asked, `labels/` with train ids of four classes."""
    for i in range(count):
        save(root / "images" / f"{i:03d}{suffix}", picture(i))
        if labelled:
            save(root / "labels" / f"{i:03d}.png", label(i))
    return root


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    distances = (abs(p - a), abs(p - b), abs(p - c))
    return (a, b, c)[distances.index(min(distances))]


def png16(path: Path, values: np.ndarray, filters: list[int] | None = None, interlaced: bool = False) -> Path:
    """A 16-bit RGB or RGBA PNG, written byte by byte from the PNG specification, with chosen row filters.

    Args:
        path: of the file.
        values: (H, W, 3 or 4) uint16.
        filters: filter type 0-4 of each row; None: all 0.
        interlaced: only say so in the header.
    """
    height, width, channels = values.shape
    step, big = channels * 2, values.astype(">u2")
    before = bytes(width * step)
    rows = b""
    for y in range(height):
        row, kind = big[y].tobytes(), (filters or [0] * height)[y]
        coded = bytearray()
        for i, byte in enumerate(row):
            left = row[i - step] if i >= step else 0
            corner = before[i - step] if i >= step else 0
            guess = (0, left, before[i], (left + before[i]) // 2, _paeth(left, before[i], corner))[kind]
            coded.append((byte - guess) % 256)
        rows += bytes([kind]) + bytes(coded)
        before = row
    packed = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, int(interlaced))
    half = len(packed) // 2
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", packed[:half]) + _chunk(b"IDAT", packed[half:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + _chunk(b"IEND", b""))
    return path


def palette_png(path: Path, ids: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Path:
    """A palette PNG with given colours at given indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    table = [0] * 768
    for i, colour in colours.items():
        table[3 * i : 3 * i + 3] = colour
    image.putpalette(table)
    image.save(path)
    return path
