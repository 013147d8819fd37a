"""From a label file to train ids: every common file type, class maps by name, id or colour, and errors with a fix."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segshift.data.images import naming_file, resize_nearest, whole_file
from segshift.errors import UserError
from segshift.types import IGNORE

LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"})
"""File types taken for labels, in lower case; all lossless."""

_UNMAPPED = -1
_PNG = b"\x89PNG\r\n\x1a\n"

Value = int | tuple[int, int, int]
"""What a label file holds at a pixel: an id or a colour."""


@dataclass(frozen=True)
class Decoder:
    """How the label files of a domain are read. Made by `segshift.data.mapping.build_decoder`.

    Attributes:
        ids: file id → train id (or `IGNORE`).
        colours: (r, g, b) → train id (or `IGNORE`).
        rest: train id of every value not listed, None: such a value is an error.
        channel: "auto", or "first" where the id is in the first of several channels (SYNTHIA, CARLA).
        domain: the domain's name, for messages.
        notes: what `check` tells about the mapping, a sentence each.
        hint: more advice where a value is unmapped.
        titles: the dataset's own names of values, for messages.
    """

    ids: Mapping[int, int]
    colours: Mapping[tuple[int, int, int], int]
    rest: int | None = None
    channel: Literal["auto", "first"] = "auto"
    domain: str = ""
    notes: tuple[str, ...] = ()
    hint: str = ""
    titles: Mapping[Value, str] = field(default_factory=dict)

    def titled(self, value: Value) -> str:
        """A value with the dataset's name of it, where it has one."""
        name = self.titles.get(value)
        return show_value(value) + (f" {name!r}" if name else "")

    @property
    def colours_only(self) -> bool:
        """Whether the map knows colours but no ids: a palette image is then read by its colours."""
        return bool(self.colours) and not set(self.ids) - {IGNORE}

    @cached_property
    def id_table(self) -> np.ndarray:
        """(65536,) int16: file id → train id, -1 where unmapped."""
        table = np.full(1 << 16, _UNMAPPED if self.rest is None else self.rest, np.int16)
        for value, train in self.ids.items():
            table[value] = train
        return table

    @cached_property
    def colour_table(self) -> np.ndarray:
        """(2**24,) int16: packed colour → train id, -1 where unmapped (32 MB: one look-up a pixel)."""
        table = np.full(1 << 24, _UNMAPPED if self.rest is None else self.rest, np.int16)
        for (red, green, blue), train in self.colours.items():
            table[red << 16 | green << 8 | blue] = train
        return table


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png16_channels(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint16 of a 16-bit RGB(A) PNG, which Pillow would cut to 8 bits; None for any other file.

    PNG filters work on each byte of a pixel apart from the others. So the k-th bytes of all pixels, with the rows'
    filter types, are the filtered data of an 8-bit grey PNG, and Pillow can undo the filters of each such plane.
    """
    if data[:8] != _PNG or len(data) < 33 or data[24] != 16 or data[25] not in (2, 6):
        return None
    width, height = struct.unpack(">II", data[16:24])
    if data[28]:
        raise ValueError("interlaced 16-bit colour PNG is not supported; save it without interlacing")
    position, packed = 8, []
    while position + 8 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            packed.append(data[position + 8 : position + 8 + length])
        position += length + 12
    step = 6 if data[25] == 2 else 8
    raw = np.frombuffer(zlib.decompress(b"".join(packed)), np.uint8).reshape(height, 1 + width * step)
    header = _PNG + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))

    def plane(offset: int) -> np.ndarray:
        rows = np.concatenate([raw[:, :1], raw[:, 1 + offset :: step]], axis=1).tobytes()
        grey = header + _png_chunk(b"IDAT", zlib.compress(rows, 0)) + _png_chunk(b"IEND", b"")
        with Image.open(io.BytesIO(grey)) as image:
            return np.asarray(image).astype(np.uint16)

    return np.stack([plane(2 * c) << 8 | plane(2 * c + 1) for c in range(3)], axis=-1)


def read_values(path: Path, *, colours: bool = False) -> np.ndarray:
    """The stored values of a label file.

    Args:
        path: of the file: 1, 8 or 16 bits, palette, RGB or RGBA.
        colours: read a palette image's colours instead of its indices.

    Returns:
        (H, W) ids, or (H, W, 3) colours; unsigned whole numbers.

    Raises:
        UserError: naming the file: missing, damaged, or of a kind that cannot hold labels.
    """
    with naming_file(path, "label"):
        data = whole_file(path).getvalue()
        deep = _png16_channels(data)
        if deep is not None:
            return deep
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG":
                raise UserError(f"label {path} is a JPEG", "a lossless file: JPEG blurs ids", "export labels as PNG")
            if image.mode == "P" and colours:
                return np.asarray(image.convert("RGBA").convert("RGB"))
            if image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;16"):
                values = np.asarray(image)
            elif image.mode in ("LA", "PA", "La"):
                values = np.asarray(image)[..., 0]
            else:
                return np.asarray(image.convert("RGB"))
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UserError(f"label {path} holds fractions or values outside 0-65535", "ids", "export it as 8-bit PNG")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def in_colour(path: Path) -> bool:
    """Whether a label file has colours and not ids, by its header.

    Raises:
        UserError: naming the file.
    """
    with naming_file(path, "label"), Image.open(path) as image:
        return image.mode in ("RGB", "RGBA")


def _one_channel(values: np.ndarray, path: Path, decoder: Decoder) -> np.ndarray:
    """Ids from a file with three channels where the decoder wants ids."""
    first = values[..., 0]
    if decoder.channel == "first":
        return first
    grey = bool((values[..., 1] == first).all() and (values[..., 2] == first).all())
    if decoder.colours and values.dtype == np.uint8:
        # A grey file may hold ids three times over, or a scene all in grey colours: known ids decide.
        ids = grey and not decoder.colours_only and bool((decoder.id_table[first] != _UNMAPPED).all())
        return first if ids else values
    if grey:
        return first
    if values.dtype != np.uint8:
        raise UserError(
            f"label {path} is a 16-bit colour PNG", "ids in one channel", "set `layout: synthia` if it is SYNTHIA's"
        )
    sample = np.unique(values.reshape(-1, 3), axis=0)[:3]
    example = ", ".join(f'"{r},{g},{b}": ...' for r, g, b in sample.tolist())
    raise UserError(
        f"label {path} is a colour image",
        "class ids, or a map from colours to classes",
        f"give domain {decoder.domain!r} a class_map by colour, such as {{{example}}}",
    )


def decode_values(
    values: np.ndarray, decoder: Decoder, path: Path
) -> tuple[UInt8[np.ndarray, "H W"], dict[Value, int]]:
    """Map stored values to train ids.

    Returns:
        (H, W) train ids, `IGNORE` where unmapped, and the unmapped values with their numbers of pixels.
    """
    if values.ndim == 3:
        values = _one_channel(values, path, decoder)
    if values.ndim == 3:
        wide = values.astype(np.uint32)
        values = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        table, packed = decoder.colour_table, True
    else:
        table, packed = decoder.id_table, False
    trains = table[values]
    unmapped: dict[Value, int] = {}
    missing = trains == _UNMAPPED
    if missing.any():
        found, counts = np.unique(values[missing], return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            key: Value = (value >> 16, value >> 8 & 255, value & 255) if packed else value
            unmapped[key] = count
        trains = np.where(missing, IGNORE, trains)
    return trains.astype(np.uint8), unmapped


def decode_file(path: Path, decoder: Decoder) -> tuple[UInt8[np.ndarray, "H W"], dict[Value, int]]:
    """Read and map a label file without complaining of unmapped values (see `decode_values`).

    Raises:
        UserError: the file cannot be read or is in colour without a map of colours.
    """
    return decode_values(read_values(path, colours=decoder.colours_only), decoder, path)


def show_value(value: Value) -> str:
    """A value as a class map writes it as a key: 17 or "128,64,128"."""
    return str(value) if isinstance(value, int) else '"{},{},{}"'.format(*value)


def unmapped_error(path: Path, unmapped: Mapping[Value, int], decoder: Decoder) -> UserError:
    """The error for values that no class has, most frequent first."""
    ranked = sorted(unmapped.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{decoder.titled(value)} ({count} px)" for value, count in ranked[:6])
    more = f" and {len(ranked) - 6} more" if len(ranked) > 6 else ""
    kind = "id" if isinstance(ranked[0][0], int) else "colour"
    known = sorted(decoder.ids) if kind == "id" else sorted(decoder.colours)
    wanted = ", ".join(show_value(v) for v in known[:12]) + (", ..." if len(known) > 12 else "")
    fix = f"`{show_value(ranked[0][0])}: ignore` (or a class name)"
    # `evaluate` has no --data.
    place = "data.yaml (--data)" if decoder.domain != "evaluation" else "a YAML file for --domain"
    hint = decoder.hint if kind == "id" or not decoder.hint else ", or give the class list its `palette`"
    return UserError(
        f"label {path} has {kind}s that no class has: {shown}{more}",
        f"{kind}s {wanted}",
        f'add {fix} or `"*": ignore` to the class_map of domain {decoder.domain!r} in {place}{hint}',
    )


def mismatch_error(path: Path, label: tuple[int, int], image: tuple[int, int], domain: str) -> UserError:
    """The error for a label whose (H, W) is not its image's."""
    return UserError(
        f"label {path} is {label[1]}x{label[0]} but its image is {image[1]}x{image[0]} (w x h)",
        "a label of the image's size",
        f"correct the file, or set `resize_labels: true` in domain {domain!r} (nearest; GTA5 needs it)",
    )


def read_label(
    path: Path, decoder: Decoder, *, image: tuple[int, int] | None = None, resize: bool = False
) -> UInt8[np.ndarray, "H W"]:
    """Train ids of a label file at its own size, or at its image's where `resize` allows that.

    Args:
        path: of the label file.
        decoder: of its domain.
        image: (H, W) of the image that it belongs to; None: not checked.
        resize: bring a label of another size to the image's (nearest neighbour) instead of failing.

    Raises:
        UserError: naming the file: unreadable, unmapped values, or another size than the image.
    """
    label, unmapped = decode_file(path, decoder)
    if unmapped:
        raise unmapped_error(path, unmapped, decoder)
    if image is not None and label.shape != image:
        if not resize:
            raise mismatch_error(path, (label.shape[0], label.shape[1]), image, decoder.domain)
        label = resize_nearest(label, (image[1], image[0]))
    return label
