"""Formats of other annotation tools, one a file: each reads a file into entries and writes labels into one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segshift.errors import UserError, nearest
from segshift.weak.formats import coco, cvat, label_studio, table
from segshift.weak.formats.base import Content, parse_json
from segshift.weak.label import WeakLabel


@dataclass(frozen=True)
class Format:
    """How a kind of file is read and written.

    Attributes:
        read: the file's content; raises UserError naming file and place.
        write: labels, the file, and all class names in the order of their train ids; the file is whole or not there.
        lost: what it cannot hold (see `formats.base.count_lost`).
        sized: whether writing needs the size of every image.
    """

    read: Callable[[Path], Content]
    write: Callable[[Sequence[WeakLabel], Path, Sequence[str]], None]
    lost: set[str]
    sized: bool = True


FORMATS: Mapping[str, Format] = {
    "label-studio": Format(label_studio.read, label_studio.write, label_studio.LOST),
    "cvat": Format(cvat.read, cvat.write, cvat.LOST),
    "coco": Format(coco.read, coco.write, coco.LOST),
    "csv-tags": Format(table.read, table.write_tags, table.LOST[table.TAGS], sized=False),
    "csv-points": Format(table.read, table.write_points, table.LOST[table.POINTS], sized=False),
}
"""By the name that `--format` takes. Both tables are read alike: their first line tells which it is."""


def known(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}", ", ".join(FORMATS), nearest(name, FORMATS))
    return FORMATS[name]


def recognised(path: Path) -> str:
    """The name of the format that a file's content shows; its suffix says nothing.

    Raises:
        UserError: it shows none, or the file cannot be read.
    """
    text = _start(path)
    if text.startswith("PK\3\4"):
        raise UserError(
            f"{path} is a zip archive",
            "the file of labels in it, such as CVAT's annotations.xml or Label Studio's result.json",
            f"unzip {path}",
        )
    bare = text.lstrip("\ufeff \t\r\n")
    if bare.startswith("<"):
        if cvat.recognises(bare):
            return cvat.NAME
    elif (form := table.recognised(bare)) is not None:
        return form
    elif bare.startswith(("{", "[")):
        if _is_store(bare):
            raise UserError(
                f"{path} holds weak labels of segshift already",
                "a file of another program",
                "use it as it is; two such files are joined by appending one to the other",
            )
        value = parse_json(path)
        if label_studio.recognises(value):
            return label_studio.NAME
        if coco.recognises(value):
            return coco.NAME
    raise UserError(
        f"{path} is in none of the known formats",
        f"one of {', '.join(FORMATS)}",
        "export it in one of them; or name its --format to be told what is wrong with it",
    )


def _start(path: Path) -> str:
    """The beginning of a file, as text; of XML in another encoding than UTF-8, its ASCII characters."""
    try:
        with open(path, "rb") as file:
            data = file.read(4096)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}", "an exported file of labels", "correct the path"
        ) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.replace(b"\0", b"")[2:]
    return data.decode("utf-8", errors="replace")


def _is_store(text: str) -> bool:
    try:
        first = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "image" in first and bool({"tags", "points"} & set(first))


__all__ = ["FORMATS", "Content", "Format", "known", "recognised"]
