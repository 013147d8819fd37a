"""A weak label, the tags and points of one image, and the line of `weak.jsonl` that says it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from segshift.errors import UserError, nearest

FARTHEST = 1_000_000
"""No image is wider, in pixels: coordinates beyond it are a mistake."""

KEYS = ("image", "tags", "complete", "points", "size", "who", "when")
"""What a line of the file may hold."""

DIGITS = 3
"""Decimals of a coordinate that the importers keep, pixels."""


class Point(NamedTuple):
    """A clicked pixel.

    Whole coordinates are pixel centres, as everywhere in segshift: (0, 0) is the centre of the first pixel, whose area
    reaches from -0.5 to 0.5. So the pixel of a point is `column`, `row`; a position measured from the image's corner
    (a mouse position over the scale, as most tools give it) becomes a point by subtracting 0.5.

    Attributes:
        x: pixels from the left, of the original image.
        y: pixels from the top.
        name: the class, by its name (or its train id as text, until `match` replaces it).
    """

    x: float
    y: float
    name: str

    @property
    def column(self) -> int:
        """Of the pixel that holds the point."""
        return math.floor(self.x + 0.5)

    @property
    def row(self) -> int:
        """Of the pixel that holds the point."""
        return math.floor(self.y + 0.5)

    def inside(self, size: tuple[int, int]) -> bool:
        """Whether the point lies in an image of (w, h) pixels."""
        return 0 <= self.column < size[0] and 0 <= self.row < size[1]


@dataclass(frozen=True)
class WeakLabel:
    """What a person said of one image. One that says nothing (`empty`) takes back what was said before.

    Attributes:
        image: path below the image folder, "/" between folders, with suffix, as the domain lists it.
        tags: classes present, by name (or by train id as text, until `match` replaces it); None: nobody tagged it;
            empty: tagged, and none of the classes is there.
        complete: the tags name every class present. False (positive-only): there may be more. Says nothing without
            tags.
        points: clicked pixels, in pixels of the original image.
        size: (w, h) in pixels of the image that was looked at; None: not known.
        who: made it; None: not known.
        when: ISO 8601 with time zone, such as "2025-06-01T12:00:00.000Z"; None: not known.
    """

    image: str
    tags: tuple[str, ...] | None = None
    complete: bool = True
    points: tuple[Point, ...] = ()
    size: tuple[int, int] | None = None
    who: str | None = None
    when: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it says nothing: of no class that it is there, nor that it is not."""
        return not (self.present or self.says_absent)

    @property
    def present(self) -> tuple[str, ...]:
        """Classes known to be there, each once: those of the tags, then those of the points that no tag names."""
        return tuple(dict.fromkeys([*(self.tags or ()), *(point.name for point in self.points)]))

    @property
    def says_absent(self) -> bool:
        """Whether a class that is not `present` is known to be absent."""
        return self.tags is not None and self.complete

    def stamped(self, who: str | None = None) -> WeakLabel:
        """The same label, made by `who` now."""
        return replace(self, who=who if who is not None else self.who, when=now())


def now() -> str:
    """This moment as labels write it: UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(label: WeakLabel) -> str:
    """The line of a label, without its newline; keys that say nothing are left out."""
    content: dict[str, Any] = {"image": label.image}
    if label.tags is not None:
        content["tags"] = list(label.tags)
        if not label.complete:
            content["complete"] = False
    if label.points:
        content["points"] = [[_short(x), _short(y), name] for x, y, name in label.points]
    if label.size is not None:
        content["size"] = list(label.size)
    content |= {key: value for key, value in (("who", label.who), ("when", label.when)) if value is not None}
    text = json.dumps(content, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Names of files may hold bytes that are no text; escaped they survive.
        text = json.dumps(content)
    return text


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def decode(line: str, where: str) -> WeakLabel:
    """The label that a line says.

    Args:
        line: JSON.
        where: file and line, for messages.

    Raises:
        UserError: it is no JSON object, or a value is none that a label can have.
    """
    try:
        content = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not JSON: {error}",
            'an object a line, such as {"image": "a.jpg", "tags": ["road"], "points": [[10, 20, "road"]]}',
            "mend or delete the line",
        ) from error
    if not isinstance(content, dict):
        raise _wrong(where, f"holds {_kind(content)}", "an object in braces")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise _wrong(where, f"unknown key {unknown[0]!r}; {nearest(unknown[0], KEYS)}", ", ".join(KEYS))
    tags = _tags(content.get("tags"), where)
    complete = content.get("complete", True)
    if not isinstance(complete, bool):
        raise _wrong(where, f"complete is {complete!r}", "true (all classes present are tagged) or false")
    return WeakLabel(
        image=_image(content.get("image"), where),
        tags=tags,
        complete=complete or tags is None,
        points=_points(content.get("points"), where),
        size=_size(content.get("size"), where),
        who=_text(content, "who", where),
        when=_when(content, where),
    )


def check_image(image: str, where: str) -> str:
    """An image's path below the image folder, in its one spelling ("./a//b.jpg" is "a/b.jpg").

    Raises:
        UserError: it is empty, absolute, or leads out of the folder.
    """
    path = PurePosixPath(image)
    drive = len(image) > 1 and image[1] == ":"
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in image or "\0" in image or drive:
        raise _wrong(where, f"image is {image!r}", 'a path below the image folder with "/", such as "drive1/0001.jpg"')
    return str(path)


def _wrong(where: str, found: str, wanted: str) -> UserError:
    return UserError(f"{where}: {found}", wanted, "mend or delete the line")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands there twice")
    return content


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _image(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "no image" if value is None else f"image is {_kind(value)}", 'such as "image": "a.jpg"')
    return check_image(value, where)


def _class(value: object, where: str, what: str) -> str:
    """A class as text: a name, or a train id."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 255:
        return str(value)
    shown = json.dumps(value)[:40]
    raise _wrong(where, f"the class of {what} is {shown}", "a name, or a train id from 0 to 254")


def _tags(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _wrong(where, f"tags is {_kind(value)}", 'a list of classes, such as ["road", "sky"]')
    return tuple(dict.fromkeys(_class(tag, where, "a tag") for tag in value))


def _points(value: object, where: str) -> tuple[Point, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(where, f"points is {_kind(value)}", 'a list of [x, y, class], such as [[10, 20, "road"]]')
    points = []
    for entry in value:
        if not isinstance(entry, list) or len(entry) != 3:
            raise _wrong(where, f"a point is {json.dumps(entry)[:40]}", '[x, y, class], such as [10, 20, "road"]')
        x, y, name = entry
        if not (_is_coordinate(x) and _is_coordinate(y)):
            raise _wrong(where, f"a point is at {json.dumps([x, y])[:40]}", "x and y in pixels of the original image")
        points.append(Point(x, y, _class(name, where, "a point")))
    return tuple(dict.fromkeys(points))


def _is_coordinate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 < value < FARTHEST


def _size(value: object, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    if not isinstance(value, list) or not whole or len(value) != 2 or not all(0 < side <= FARTHEST for side in value):
        raise _wrong(where, f"size is {json.dumps(value)[:40]}", "[width, height] in pixels")
    return value[0], value[1]


def _text(content: Mapping[str, Any], key: str, where: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise _wrong(where, f"{key} is {_kind(value)}", "a text")
    return value


def _when(content: Mapping[str, Any], where: str) -> str | None:
    text = _text(content, "when", where)
    if text is not None:
        moment(text, where)
    return text


def moment(text: str, where: str) -> datetime:
    """The moment that `when` says; without a time zone it is taken as UTC.

    Raises:
        UserError: it is no ISO 8601 date and time.
    """
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong(where, f"when is {text!r}", "ISO 8601, such as 2025-06-01T12:00:00Z") from error
    return read if read.tzinfo else read.replace(tzinfo=UTC)
