"""Pictures as data URIs, as large as the page's budget allows."""

from __future__ import annotations

import base64
import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """

    path: Path
    flat: bool
    folder: str = "panels"


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
                image = _read(request.path)
            except (OSError, SyntaxError, ValueError, struct.error, Warning, Image.DecompressionBombError):
                notes.append(f"{request.folder}/{request.path.name} is damaged or no picture")
                pictures.append(None)
                continue
            data, kind, size = _encode(image, request.flat, width)
            spent += len(data)
            uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
            pictures.append(Picture(uri, *size))
        if spent > budget:
            return done
        done.append(pictures)
    return done


def _read(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            return file.convert("RGB")


def _encode(image: Image.Image, exact: bool, width: int) -> tuple[bytes, str, tuple[int, int]]:
    flat = exact and image.getcolors(256) is not None
    # A tall picture is bounded in its height too, or it alone could spend the budget.
    ratio = min(1.0, width / image.width, 1.5 * width / image.height)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if size != image.size:
        image = image.resize(size, Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if flat:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "png", size
    # Not optimize=True: libjpeg then wants the whole file in one buffer, and Pillow's is too small for noisy pictures.
    image.save(buffer, "JPEG", quality=84, subsampling=0 if exact else 2)
    return buffer.getvalue(), "jpeg", size
