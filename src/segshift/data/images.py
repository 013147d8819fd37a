"""Opening image files: any common kind becomes 8-bit RGB, and a damaged file is an error that names it.

EXIF orientation is deliberately not applied: labels have no EXIF, so turning only the image would tear the pair apart.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from segshift.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""File types taken for images, in lower case."""

_PNG = b"\x89PNG\r\n\x1a\n"

Size = tuple[int, int]
"""(w, h) in pixels, as settings write it."""


@contextlib.contextmanager
def naming_file(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into an error that names the file.

    Raises:
        UserError: the block failed because the file is missing, unreadable, truncated or not an image.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        # Opening a pipe would wait for ever.
        raise UserError(f"{what} {path} is no file", "an ordinary file", "remove it with its counterpart")
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist", "a file", "check the path") from error
    except PermissionError as error:
        raise UserError(f"no permission to read {what} {path}", "a readable file", f"chmod +r {path}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{what} {path} is too large: {error}", "a smaller image", "reduce or tile it") from error
    # Pillow's decoders raise any of these on damaged data, depending on the format and on where the damage is.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error, zlib.error) as error:
        reason = "truncated" if "truncated" in str(error).lower() else f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is no image"
        raise UserError(
            f"{what} {path} cannot be decoded ({reason})",
            "a whole image file",
            "copy or export it again, or remove it with its counterpart",
        ) from error


def whole_file(path: Path) -> io.BytesIO:
    """The bytes of an image file that is not visibly damaged.

    Pillow takes what a crash left of a file (its end filled with zeros) and decodes the rest as some colour or class.

    Raises:
        ValueError: the data of a PNG do not fit their checksums, or a JPEG has no end.
    """
    data = path.read_bytes()
    if data.startswith(_PNG):
        view, position = memoryview(data), 8
        while (kind := data[position + 4 : position + 8]) != b"IEND":
            end = position + 8 + int.from_bytes(data[position : position + 4], "big")
            if end + 4 > len(data):
                raise ValueError("truncated")
            checksum = int.from_bytes(data[end : end + 4], "big")
            if kind == b"IDAT" and zlib.crc32(view[position + 4 : end]) != checksum:
                raise ValueError("its content does not fit its checksum")
            position = end + 4
    elif data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("truncated")
    return io.BytesIO(data)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: alpha is dropped, 16-bit values are scaled to 8 bits, grey is repeated."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" and (values.min(initial=0) < 0 or values.max(initial=0) > 255):
            raise ValueError("a float image with values outside 0-255")
        if image.mode != "F":
            values = np.clip(values, 0, 65535) / 257
        return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def open_image(path: Path) -> Image.Image:
    """The whole image at its own size, decoded, as 8-bit RGB.

    Raises:
        UserError: naming the file, if it is missing, truncated or not an image.
    """
    with naming_file(path, "image"), Image.open(whole_file(path)) as image:
        # Pillow decodes at first use; a damaged file has to show here.
        image.load()
        return to_rgb(image)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header, without decoding it.

    Raises:
        UserError: naming the file.
    """
    with naming_file(path, "image"), Image.open(path) as image:
        return image.height, image.width


def load_resized(path: Path, size: Size | None) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """An image resized as the whole library resizes: bicubic with anti-aliasing.

    JPEG files at least four times too large are first reduced by the decoder (by a power of two that divides both
    sides, and never below twice the wanted size), which saves most of the decoding and changes values by rounding only.

    Args:
        path: of the image.
        size: (w, h) wanted; None keeps the file's.

    Returns:
        the pixels, and the file's own (H, W).

    Raises:
        UserError: naming the file.
    """
    with naming_file(path, "image"), Image.open(whole_file(path)) as image:
        original = (image.height, image.width)
        if size is None:
            return np.array(to_rgb(image)), original
        if image.format == "JPEG":
            factor = 1
            while factor < 8 and all(
                side % (2 * factor) == 0 and side // (2 * factor) >= 2 * wanted
                for side, wanted in zip(image.size, size, strict=True)
            ):
                factor *= 2
            if factor > 1:
                image.draft(None, (image.width // factor, image.height // factor))
        rgb = to_rgb(image)
        if rgb.size != tuple(size):
            rgb = rgb.resize(size, Image.Resampling.BICUBIC)
        return np.array(rgb), original


def nearest_indices(wanted: int, available: int) -> np.ndarray:
    """For each of `wanted` pixel centres of a side, the pixel of `available` that holds it.

    In whole numbers: floor((i + 0.5) * available / wanted) has no rounding error.
    """
    return (2 * np.arange(wanted) + 1) * available // (2 * wanted)


def resize_nearest(values: np.ndarray, size: Size | None) -> np.ndarray:
    """Nearest-neighbour resize of (H, W) ids to (w, h), with pixel centres aligned as in `load_resized`."""
    if size is None or values.shape[:2] == (size[1], size[0]):
        return values
    rows, columns = nearest_indices(size[1], values.shape[0]), nearest_indices(size[0], values.shape[1])
    return np.ascontiguousarray(values[rows[:, None], columns[None]])
