"""What all formats share: what is read of a file before its images and classes are looked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from segshift.errors import UserError
from segshift.weak.label import DIGITS, Point, WeakLabel

LARGEST = 1 << 30
"""Bytes of a file beyond which it is no file of labels; it would be read into memory whole."""

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What a file says of one image.

    Attributes:
        image: as the file calls it.
        where: file and line (or place in the file), for messages.
        tags: classes as the file calls them; None: it does not tag this image.
        complete: False where the file says that there may be more classes.
        points: in pixels, whole coordinates are pixel centres.
        size: (w, h) of the image as the file knows it.
        who: made it.
        when: ISO 8601.
        uploaded: the name may have been changed by an upload.
        part: the file says more of the image elsewhere, as a matter of course (a row a point).
    """

    image: str
    where: str
    tags: tuple[str, ...] | None = None
    complete: bool = True
    points: tuple[Point, ...] = ()
    size: tuple[int, int] | None = None
    who: str | None = None
    when: str | None = None
    uploaded: bool = False
    part: bool = False


@dataclass(frozen=True)
class Content:
    """What a file says.

    Attributes:
        path: the file.
        entries: in the order of the file.
        declared: the classes that the annotators could choose from, where the file lists them.
        notes: what was not read, for people.
    """

    path: Path
    entries: list[Entry]
    declared: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is missing, unreadable, too large or not text.
    """
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise UserError(
                f"{path} has more than {LARGEST >> 20} MiB", "a file of labels", "export fewer tasks at once"
            )
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}", "a text file", "save it as UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "an exported file of labels", "correct the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "an exported file of labels") from error


def parse_json(path: Path) -> Any:
    """The JSON value that a file holds.

    Raises:
        UserError: it is no JSON, naming the line.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: no JSON: {error.msg}", "a whole JSON file", "export it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}", "a whole JSON file", "export it again") from error


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number")


def at(mapping: Any, key: str, kind: type[T], where: str, what: str) -> T:
    """`mapping[key]`, which must be there and of a kind (a whole number passes for a float).

    Raises:
        UserError: it is not.
    """
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        found = f"{key} is {json.dumps(value)[:40]}" if isinstance(mapping, Mapping) and key in mapping else f"no {key}"
        raise UserError(f"{where}: {found}", what, "export the file again, or mend this place")
    return value  # type: ignore[return-value]


def point(x: float, y: float, name: str) -> Point:
    """A point with the decimals that are kept."""
    return Point(whole(round(float(x), DIGITS)), whole(round(float(y), DIGITS)), name)


def whole(value: float) -> float:
    """A number without a decimal where it has none, and without a negative zero."""
    return int(value) if float(value).is_integer() else value


def count_lost(labels: list[WeakLabel], what: set[str]) -> list[str]:
    """Sentences on what a format cannot hold of some labels.

    Args:
        what: of "who", "when", "positive-only", "none tagged", "tags", "points", "untagged".
    """
    counts = {
        "who": ("who made them", sum(label.who is not None for label in labels)),
        "when": ("when they were made", sum(label.when is not None for label in labels)),
        "positive-only": (
            "that the tags are positive-only",
            sum(label.tags is not None and not label.complete for label in labels),
        ),
        "none tagged": ("that none of the classes is there", sum(label.tags == () for label in labels)),
        "tags": ("the tags", sum(label.tags is not None for label in labels)),
        "points": ("the points", sum(bool(label.points) for label in labels)),
    }
    return [f"{text}, of {number} images" for key, (text, number) in counts.items() if key in what and number]
