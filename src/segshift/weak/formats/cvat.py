"""CVAT for images 1.1 (XML): <tag> is a tag, <points> are points, in pixels from the image's upper left corner.

Format: docs.cvat.ai, "XML annotation format", version 1.1, annotation mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from segshift.artefacts.store import write_text
from segshift.errors import UserError
from segshift.weak.formats.base import LARGEST, Content, Entry, point, whole
from segshift.weak.label import DIGITS, Point, WeakLabel

NAME = "cvat"
LOST = {"who", "when", "positive-only", "none tagged"}
VERSION = "1.1"
_SHAPES = {"box", "polygon", "polyline", "mask", "ellipse", "cuboid"}
_REMEDY = "export it from CVAT again as `CVAT for images 1.1`"


class _Reader:
    """Collects the images of a file while expat walks through it; expat knows the line of what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = expat.ParserCreate()
        self.stack: list[str] = []
        self.text = ""
        self.entries: list[Entry] = []
        self.declared: list[str] = []
        self.others: dict[str, int] = {}
        self.image: tuple[str, str, tuple[int, int]] | None = None
        self.tags: list[str] = []
        self.points: list[Point] = []
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.characters
        # No file of CVAT has a document type; without one there are no entities to expand and no files to fetch.
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.EntityDeclHandler = self.doctype

    def where(self) -> str:
        return f"{self.path}, line {self.parser.CurrentLineNumber}"

    def fail(self, found: str, wanted: str, remedy: str = _REMEDY) -> NoReturn:
        raise UserError(f"{self.where()}: {found}", wanted, remedy)

    def doctype(self, *_: object) -> None:
        self.fail("a document type or entity", "plain XML without <!DOCTYPE", "remove it: it is not followed")

    def attribute(self, attributes: Mapping[str, str], key: str, element: str) -> str:
        value = attributes.get(key, "").strip()
        if not value:
            self.fail(f"<{element}> without {key}", f'{key}="..."')
        return value

    def side(self, attributes: Mapping[str, str], key: str) -> int:
        text = self.attribute(attributes, key, "image")
        # More digits than any image has pixels; Python refuses to read some thousands of them.
        if not text.isdecimal() or len(text) > 9 or int(text) < 1:
            self.fail(f"{key} is {text[:40]!r}", "pixels of the image's side")
        return int(text)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.stack and name != "annotations":
            self.fail(f"the document is a <{name}>", "<annotations>")
        self.stack.append(name)
        self.text = ""
        if name == "track":
            self.fail("a <track>: the file is of a video", "<image> elements")
        elif name == "image":
            if self.image is not None:
                self.fail("an <image> inside another", "one after the other")
            size = (self.side(attributes, "width"), self.side(attributes, "height"))
            self.image = (self.attribute(attributes, "name", "image"), self.where(), size)
            self.tags, self.points = [], []
        elif self.image is not None:
            self.shape(name, attributes)

    def shape(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "tag":
            self.tags.append(self.attribute(attributes, "label", name))
        elif name == "points" and attributes.get("outside") != "1":
            # The label of a skeleton's point is that of its joint; it is looked up like any other.
            label = self.attribute(attributes, "label", name)
            self.points += [self.pixel(text, label) for text in self.attribute(attributes, "points", name).split(";")]
        elif name in _SHAPES:
            self.others[name] = self.others.get(name, 0) + 1

    def pixel(self, text: str, label: str) -> Point:
        try:
            x, y = (float(part) for part in text.split(","))
            if not (abs(x) < 1e7 and abs(y) < 1e7):
                raise ValueError
        except ValueError:
            self.fail(f"a point is {text[:40]!r}", 'points="x,y;x,y" in pixels')
        width, height = self.image[2] if self.image else (0, 0)
        # A click on the right or lower edge itself is of the last pixel.
        x, y = (x - 1e-3 if x == width else x), (y - 1e-3 if y == height else y)
        return point(x - 0.5, y - 0.5, label)

    def end(self, name: str) -> None:
        if name == "version" and len(self.stack) == 2 and self.text.strip() != VERSION:
            self.fail(f"version {self.text.strip()!r}", VERSION)
        if name == "name" and self.stack[-3:-1] == ["labels", "label"]:
            self.declared.append(self.text.strip())
        if name == "image" and self.image is not None:
            image, where, size = self.image
            # CVAT cannot tell an image without any class from one that nobody has looked at: it says nothing.
            tags = tuple(dict.fromkeys(self.tags)) if self.tags else None
            self.entries.append(Entry(image, where, tags, True, tuple(self.points), size))
            self.image = None
        self.stack.pop()

    def characters(self, data: str) -> None:
        if self.image is None:
            self.text += data


def recognises(start: str) -> bool:
    """Whether the first part of a file looks like CVAT's XML."""
    return "<annotations" in start or start.lstrip().startswith("<?xml")


def read(path: Path) -> Content:
    """The entries of a file, one for each image that has tags or points.

    Raises:
        UserError: naming the line.
    """
    reader = _Reader(path)
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise UserError(
                f"{path} has more than {LARGEST >> 20} MiB", "a file of labels", "export fewer tasks at once"
            )
        with open(path, "rb") as file:
            reader.parser.ParseFile(file)
    except expat.ExpatError as error:
        raise UserError(
            f"{path}, line {error.lineno}: no XML: {expat.errors.messages[error.code]}", "a whole XML file", _REMEDY
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "an exported file of labels") from error
    notes = [f"{number} <{kind}> are not read" for kind, number in reader.others.items()]
    used = [entry for entry in reader.entries if entry.tags or entry.points]
    return Content(path, used, tuple(reader.declared) or None, notes)


def write(labels: Sequence[WeakLabel], path: Path, classes: Sequence[str]) -> None:
    """Write one task. Labels must have their `size`.

    Raises:
        UserError: a name has characters that XML cannot hold.
    """
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", f"  <version>{VERSION}</version>"]
    lines += ["  <meta>", "    <task>", f"      <size>{len(labels)}</size>", "      <mode>annotation</mode>"]
    lines += ["      <labels>"]
    lines += [
        f"        <label><name>{escape(_sound(name))}</name><attributes></attributes></label>" for name in classes
    ]
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, label in enumerate(labels):
        width, height = label.size or (0, 0)
        name = quoteattr(_sound(label.image))
        lines.append(f'  <image id="{number}" name={name} width="{width}" height="{height}">')
        lines += [f'    <tag label={quoteattr(_sound(tag))} source="manual"></tag>' for tag in label.tags or ()]
        for x, y, tag in label.points:
            place = f"{whole(round(x + 0.5, DIGITS))},{whole(round(y + 0.5, DIGITS))}"
            attributes = f'label={quoteattr(_sound(tag))} source="manual" occluded="0" points="{place}" z_order="0"'
            lines.append(f"    <points {attributes}></points>")
        lines.append("  </image>")
    write_text(path, "\n".join([*lines, "</annotations>", ""]))


def _sound(text: str) -> str:
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or ord(c) in (0xFFFE, 0xFFFF) for c in text):
        raise UserError(
            f"XML cannot hold the name {text!r}", "printable characters", "rename it, or choose another format"
        )
    return text
