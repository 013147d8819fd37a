"""Pictures as data URIs, as large as the page's budget allows."""

from __future__ import annotations

import base64
import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BUDGET = 4_200_000
"""Bytes of all pictures before base64, which adds a third: the page stays below 6 MB."""

WIDTHS = (1024, 800, 640, 480, 360, 240)
"""Widths in pixels that are tried in this order, until everything fits."""


@dataclass(frozen=True)
class Request:
    """A picture to embed.

    Attributes:
        path: of the file.
        flat: its colours mean classes, which must neither blur nor shift.
        folder: where the file lies, for messages.
        truth: of the same image: instead of the picture, where it is wrong is shown.
        most: largest width in pixels.
    """

    path: Path
    flat: bool
    folder: str = "panels"
    truth: Path | None = None
    most: int = WIDTHS[0]


@dataclass(frozen=True)
class Picture:
    """An embedded picture: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def embed(rows: Sequence[Sequence[Request]], problems: list[str], budget: int = BUDGET) -> list[list[Picture | None]]:
    """Encode rows of pictures at the largest width at which all of them fit into the budget.

    Args:
        rows: the pictures of each panel.
        problems: gets a line for each file that cannot be read, and one where rows had to be left out.
        budget: bytes before base64.

    Returns:
        The leading rows that fit (all of them but in extreme cases); None in place of an unreadable picture.
    """
    done: list[list[Picture | None]] = []
    notes: list[str] = []
    for width in WIDTHS:
        notes.clear()
        done = _encode_rows(rows, width, budget, notes)
        if len(done) == len(rows):
            break
    problems.extend(notes)
    if len(done) < len(rows):
        problems.append(f"only the first {len(done)} of {len(rows)} panels are shown, to keep this file small")
    return done


def _encode_rows(
    rows: Sequence[Sequence[Request]], width: int, budget: int, notes: list[str]
) -> list[list[Picture | None]]:
    done: list[list[Picture | None]] = []
    spent = 0
    for row in rows:
        pictures: list[Picture | None] = []
        for request in row:
            try:
                image = _picture(request)
            except UNREADABLE:
                notes.append(f"{request.folder}/{request.path.name} is damaged or no picture")
                pictures.append(None)
                continue
            data, kind, size = _encode(image, request.flat, min(width, request.most))
            spent += len(data)
            uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
            pictures.append(Picture(uri, *size))
        if spent > budget:
            return done
        done.append(pictures)
    return done


UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Warning, Image.DecompressionBombError)
"""What a damaged picture raises."""

IGNORED = 255
"""The id of pixels without a truth; their colour is black."""


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            file.load()
            return file


def _picture(request: Request) -> Image.Image:
    if request.truth is None:
        return _open(request.path).convert("RGB")
    wrong, known = _compared(request.path, request.truth)
    drawn = np.where(known[..., None], np.where(wrong[..., None], ERROR, RIGHT), UNKNOWN)
    return Image.fromarray(drawn.astype(np.uint8))


ERROR, RIGHT, UNKNOWN = (np.array(levels, np.uint8) for levels in ((200, 53, 43), (228, 229, 224), (146, 152, 158)))
"""Colours of the pixels that are wrong, right, and without a truth."""


def wrong_share(prediction: Path, truth: Path) -> float | None:
    """Share of the pixels with a truth where two pictures in the classes' colours differ; None where there is none, or
    a file cannot be read."""
    try:
        wrong, known = _compared(prediction, truth)
    except UNREADABLE:
        return None
    return float(wrong[known].mean()) if known.any() else None


def _compared(prediction: Path, truth: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where a prediction differs from the truth, and where there is a truth: (H, W) each.

    By the ids of palette pictures, as `adapt` writes them: two classes may have one colour. Others by their colours.
    """
    said, true = _open(prediction), _open(truth)
    if said.size != true.size:
        raise ValueError("the pictures differ in size")
    if said.mode == true.mode == "P":
        ids, guess = np.asarray(true), np.asarray(said)
        return np.not_equal(guess, ids), np.not_equal(ids, IGNORED)
    colours: NDArray[np.uint8] = np.asarray(true.convert("RGB"))
    other = np.not_equal(np.asarray(said.convert("RGB")), colours)
    return np.any(other, axis=-1), np.any(colours > 0, axis=-1)


def _encode(image: Image.Image, exact: bool, width: int) -> tuple[bytes, str, tuple[int, int]]:
    flat = exact and image.getcolors(256) is not None
    # A tall picture is bounded in its height too, or it alone could spend the budget.
    ratio = min(1.0, width / image.width, 1.5 * width / image.height)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if size != image.size:
        image = image.resize(size, Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if flat:
        _indexed(image).save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "png", size
    # Not optimize=True: libjpeg then wants the whole file in one buffer, and Pillow's is too small for noisy pictures.
    image.save(buffer, "JPEG", quality=84, subsampling=0 if exact else 2)
    return buffer.getvalue(), "jpeg", size


def _indexed(image: Image.Image) -> Image.Image:
    """An RGB picture of at most 256 colours as one with a palette: the same colours, in fewer bytes."""
    pixels = np.asarray(image).astype(np.int32)
    # Colours as whole numbers: numpy sorts those many times faster than rows of three.
    colours, ids = np.unique(pixels @ np.array([65536, 256, 1], np.int32), return_inverse=True)
    indexed = Image.fromarray(ids.reshape(pixels.shape[:2]).astype(np.uint8))
    indexed.putpalette([int(colour) >> shift & 255 for colour in colours for shift in (16, 8, 0)])
    return indexed
