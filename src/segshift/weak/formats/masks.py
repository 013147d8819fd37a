"""A pixel well inside a mask, from COCO's polygons and run lengths, as a person would click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def of_polygons(polygons: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The pixels (height, width) whose centres lie in one of some polygons [x0, y0, x1, y1, ...], which are measured
    from the image's upper left corner, so that the first pixel's centre is at (0.5, 0.5).
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        x, y = np.asarray(polygon[::2], float), np.asarray(polygon[1::2], float)
        to_x, to_y = np.roll(x, -1), np.roll(y, -1)
        first, last = np.ceil(y.min() - 0.5), np.floor(y.max() - 0.5)
        for row in range(max(0, int(first)), min(height - 1, int(last)) + 1):
            centre = row + 0.5
            crossed = (y <= centre) != (to_y <= centre)
            share = (centre - y[crossed]) / (to_y - y)[crossed]
            edges = np.ceil(np.sort(x[crossed] + share * (to_x - x)[crossed]) - 0.5).astype(int).clip(0, width)
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                mask[row, start:end] = True
    return mask


def counts_of(text: str) -> list[int]:
    """The run lengths that COCO's compressed form says: six bits a character, five of them value, lowest first; from
    the third run on differences to the run before the last (cocoapi, maskApi.c, rleFrString).

    Raises:
        ValueError: a character that cannot be, or an end in the middle of a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} in compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed counts end in the middle of a number")
    return counts


def of_runs(counts: Sequence[int], width: int, height: int) -> Mask:
    """The mask (height, width) of run lengths, column by column, the first run outside.

    Raises:
        ValueError: a negative run, or runs that do not fill the image.
    """
    if any(count < 0 for count in counts) or sum(counts) != width * height:
        raise ValueError(f"run lengths add up to {sum(counts)}, the mask has {width}x{height} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def inner_pixel(mask: Mask) -> tuple[int, int] | None:
    """(x, y) of the pixel from which the nearest edge to the left, right, top and bottom is farthest; None if empty.

    Of several the first in reading order, so that the same mask gives the same pixel.
    """
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    depth = np.minimum.reduce(
        [_run(part, 1), _run(part[:, ::-1], 1)[:, ::-1], _run(part, 0), _run(part[::-1], 0)[::-1]]
    )
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return left + int(x), top + int(y)


def _run(mask: Mask, axis: int) -> NDArray[np.int64]:
    """How many pixels in a row, up to and with this one, are in the mask."""
    index = np.arange(1, mask.shape[axis] + 1)
    index = index[None, :] if axis == 1 else index[:, None]
    last_outside = np.maximum.accumulate(np.where(mask, 0, index), axis=axis)
    return np.asarray(index - last_outside, dtype=np.int64)
