"""Pictures for the page: an image exactly as segshift reads it, in a form that every browser shows.

What is not a plain JPEG or PNG is written anew, so pixels in the browser are pixels of the data layer: an orientation
flag (EXIF) is not applied, alpha is dropped, 16 bits are scaled to 8.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from segshift.data.images import naming_file, open_image, whole_file
from segshift.weak.matching import turned

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Kinds of image, by Pillow's names, that are opened at all: pixels only, none that is a document or a program."""

PLAIN: Mapping[str, tuple[str, frozenset[str]]] = {
    "JPEG": ("image/jpeg", frozenset({"RGB", "L"})),
    "PNG": ("image/png", frozenset({"RGB", "L", "P", "1"})),
}
"""Kinds that every browser shows as segshift reads them: media type, and the modes for which that holds."""

QUALITY = 92
"""Of pictures written anew, as JPEG without colour subsampling; only for looking at."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        size: (w, h) in pixels, as segshift reads it.
        turned: an orientation flag asks viewers to turn it, which segshift does not.
        plain: media type under which the file's own bytes can be shown; None: it has to be written anew.
    """

    size: tuple[int, int]
    turned: bool
    plain: str | None


def header(path: Path) -> Header:
    """Read the header of an image file, whatever its suffix.

    Raises:
        UserError: naming the file: missing, damaged, or none of `FORMATS` (such as SVG or HTML).
    """
    Image.init()
    # A Pillow that was built without some of them refuses their names.
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    with naming_file(path, "image"), Image.open(data := whole_file(path), formats=formats) as image:
        turns = turned(image, data.getvalue())
        media, modes = PLAIN.get(image.format or "", ("", frozenset()))
        still = not getattr(image, "is_animated", False) and "transparency" not in image.info
        plain = media if image.mode in modes and still and not turns else None
        return Header((image.width, image.height), turns, plain)


def picture(path: Path) -> tuple[bytes, str]:
    """The bytes of a picture of an image file, and their media type.

    Raises:
        UserError: as `header`.
    """
    plain = header(path).plain
    if plain is not None:
        return path.read_bytes(), plain
    written = io.BytesIO()
    open_image(path).save(written, "JPEG", quality=QUALITY, subsampling=0)
    return written.getvalue(), "image/jpeg"
