"""Which weak label belongs to which image of a domain, with classes by their names and points in the image."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from segshift.errors import UserError, nearest
from segshift.weak.label import Point, WeakLabel
from segshift.weak.names import Images

if TYPE_CHECKING:
    # For its name only: the module brings torch.
    from PIL.Image import Image

    from segshift.types import ClassSet

log = logging.getLogger("segshift")

SHOWN = 5
"""Problems that one message names."""

SAME_SHAPE = 0.02
"""Relative difference of the aspect ratios up to which one image is a resized copy of the other."""


_ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held, 1 to 8; 1 is upright."""

_PNG_FLAGS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Where a PNG may say how it should be turned."""


class _Item(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def image(self) -> Path: ...


class _Settings(Protocol):
    @property
    def limit(self) -> int | None: ...
    @property
    def list(self) -> Path | None: ...


class _Domain(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def items(self) -> Sequence[_Item]: ...
    @property
    def settings(self) -> _Settings: ...


def match(labels: Mapping[str, WeakLabel], domain: _Domain, classes: ClassSet) -> dict[str, WeakLabel]:
    """Labels by the names of a domain's items.

    An image is found by its path below the domain's image folder or by the item's name; else by the end of a path (see
    `names.Images.find`), where that is clear. Labels that say nothing are left out. Where the domain is only a part of
    a folder (its `limit` or `list`), labels of images outside it are left out with a warning.

    Args:
        labels: as `WeakStore.read` gives them.
        domain: a `segshift.data.domains.Domain`; of its labels nothing is opened.
        classes: of the task.

    Returns:
        By `Item.name`: labels with class names as the class list spells them, each tag once, and where there are
        points, `size` is the image file's (w, h) and the points are in its pixels (scaled where the label was made on
        another size of the same image; of two classes' points that thereby fall on one pixel, the first).

    Raises:
        UserError: listing the images that the domain does not have, the unknown classes, the points outside their
            image or of two classes at one pixel, or images labelled under two names.
    """
    useful = {image: label for image, label in labels.items() if not label.empty}
    places = find_images(useful, domain.items)
    missing = [image for image in useful if image not in places]
    if missing and (domain.settings.limit is not None or domain.settings.list is not None):
        log.warning("%d weak labels are of images outside the part of %r that is used", len(missing), domain.name)
    elif missing:
        raise UserError(
            f"{len(missing)} weak labels are of images that domain {domain.name!r} does not have: {listed(missing)}",
            "paths below its image folder",
            "correct the domain's `root` and `split`, or take these lines out of the file",
        )
    names = class_names(useful.values(), classes)
    matched: dict[str, WeakLabel] = {}
    outside: list[str] = []
    clashing: list[str] = []
    for image, item in places.items():
        if item.name in matched:
            raise UserError(
                f"{matched[item.name].image} and {image} are both the image {item.name!r} of domain {domain.name!r}",
                "one path an image",
                "take one of them out of the file",
            )
        label = renamed(useful[image], names)
        if label.points:
            size = file_size(item.image)
            label, merged = fitted(label, size)
            if merged:
                log.warning("%s: %s", image, told_of_merged(len(merged), size))
            outside += [f"{image} ({p.x:g}, {p.y:g})" for p in label.points if not p.inside(size)]
            clashing += [f"{image} ({p.x:g}, {p.y:g}) {p.name}" for p in clashes(label)]
        matched[item.name] = label
    _refuse_points(outside, clashing)
    return matched


def _refuse_points(outside: list[str], clashing: list[str]) -> None:
    if outside:
        raise UserError(
            f"{len(outside)} points lie outside their image: {listed(outside)}",
            "x and y in pixels of the image file, (0, 0) the centre of the first",
            "were they clicked on images of another size? correct these lines, or import the labels again",
        )
    if clashing:
        raise UserError(
            f"{len(clashing)} points lie at a pixel that has a point of another class: {listed(clashing)}",
            "one class a pixel",
            "take one of the two points out of the line",
        )


def listed(names: Collection[str], shown: int = SHOWN) -> str:
    """The first names of a list, and how many more there are."""
    few = list(names)[:shown]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def below(item: _Item) -> str:
    """An item's path below the image folder, with suffix: the name may lack an ending, but no folder."""
    return "/".join(item.image.parts[-1 - item.name.count("/") :])


def find_images(images: Iterable[str], items: Sequence[_Item]) -> dict[str, _Item]:
    """The item of each image; images that none or several items may be are left out."""
    by_path = {item.name: item for item in items} | {below(item): item for item in items}
    folder = Images(by_path)
    found = {}
    for image in images:
        hits = folder.find(image)
        if len(hits) == 1:
            found[image] = by_path[hits[0]]
    return found


def plain(name: str) -> str:
    """The spelling in which "Traffic_Light" and "traffic light" are equal."""
    return "".join(c for c in name.casefold() if c.isalnum())


def known_as(name: str, classes: ClassSet) -> str | None:
    """The class list's name for a class: the same name, else the same letters and digits, else a train id."""
    if name in classes.names:
        return name
    bare = plain(name)
    same = next((known for known in classes.names if bare and plain(known) == bare), None)
    # Train ids are short, and Python refuses to read some thousands of digits.
    if same is None and name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(classes.names):
        return classes.names[int(name)]
    return same


def cut(name: str, most: int = 40) -> str:
    """A name for a message: names of other people's files may fill the screen."""
    return name if len(name) <= most else name[: most - 1] + "…"


def class_names(labels: Iterable[WeakLabel], classes: ClassSet) -> dict[str, str]:
    """The class list's name for every class that the labels mention (see `known_as`).

    Raises:
        UserError: listing those that are none.
    """
    mentioned = dict.fromkeys(name for label in labels for name in label.present)
    found = {name: known_as(name, classes) for name in mentioned}
    unknown = [name for name, spelling in found.items() if spelling is None]
    if unknown:
        raise UserError(
            f"weak labels name classes that the class list does not have: {listed([cut(n) for n in unknown])}",
            f"of {', '.join(classes.names)}; {cut(unknown[0])!r}: {nearest(unknown[0], classes.names)}",
            "use the list that they were made with; to rename or drop a class (docs/weak_labels.md): `labels export` "
            "with that list, then `labels import --class-map 'OLD=NEW'`",
        )
    return {name: spelling for name, spelling in found.items() if spelling is not None}


def renamed(label: WeakLabel, names: Mapping[str, str]) -> WeakLabel:
    """The label with its classes called as `names` says, each tag once."""
    tags = None if label.tags is None else tuple(dict.fromkeys(names[tag] for tag in label.tags))
    points = tuple(dict.fromkeys(Point(x, y, names[name]) for x, y, name in label.points))
    return replace(label, tags=tags, points=points)


def file_size(path: Path) -> tuple[int, int]:
    """(w, h) of an image file, from its header, as it is stored (no orientation applied).

    Raises:
        UserError: it is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {path} cannot be opened: {error}", "an image file", "copy or export it again"
        ) from error


def turned(image: Image, data: bytes) -> bool:
    """Whether viewers turn an image by its orientation flag (EXIF), which segshift does not.

    Args:
        image: opened with Pillow, not yet decoded.
        data: of its file; of other kinds than PNG it is not looked at.
    """
    # Pillow itself turns a TIFF. It decodes the whole of a PNG to look behind it for a flag that hardly any has.
    if image.format == "TIFF" or (image.format == "PNG" and not any(mark in data for mark in _PNG_FLAGS)):
        return False
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def in_pixels_of(label: WeakLabel, size: tuple[int, int], where: str = "") -> WeakLabel:
    """The label with its points in the pixels of an image of (w, h), scaled if it was made on a larger or smaller copy.

    Args:
        label: whose `size` says which pixels its points are in; None: the file's.
        size: of the image file.
        where: file and line, for the message.

    Raises:
        UserError: the label's image had another shape.
    """
    was = label.size or size
    if was == size:
        return replace(label, size=size)
    if abs(was[0] * size[1] / (was[1] * size[0]) - 1) > SAME_SHAPE:
        raise UserError(
            f"{where}: " * bool(where)
            + f"{label.image} was labelled at {was[0]}x{was[1]} pixels, its file has {size[0]}x{size[1]}",
            "the image that was looked at, or a resized copy of it",
            "label this file, or turn or crop it back (a camera's orientation flag is not applied here)",
        )
    factors = size[0] / was[0], size[1] / was[1]
    points = tuple(Point((x + 0.5) * factors[0] - 0.5, (y + 0.5) * factors[1] - 0.5, c) for x, y, c in label.points)
    return replace(label, size=size, points=points)


def fitted(label: WeakLabel, size: tuple[int, int], where: str = "") -> tuple[WeakLabel, list[Point]]:
    """`in_pixels_of`, and the points that it leaves out: those that fall on one pixel with an earlier one of another
    class only because the image is smaller than the one that was labelled.

    Args:
        label: as there.
        size: (w, h) of the image file.
        where: file and line, for the message.

    Raises:
        UserError: as `in_pixels_of`.
    """
    scaled = in_pixels_of(label, size, where)
    merged = [] if clashes(label) else clashes(scaled)
    return without(scaled, merged), merged


def without(label: WeakLabel, points: Collection[Point]) -> WeakLabel:
    """The label without some of its points; classes that have no other one are tagged, since they are there."""
    left = tuple(point for point in label.points if point not in points)
    lost = [name for name in label.present if name not in {*(label.tags or ()), *(point.name for point in left)}]
    if not lost:
        return replace(label, points=left)
    return replace(label, tags=(*(label.tags or ()), *lost), complete=label.says_absent, points=left)


def told_of_merged(count: int, size: tuple[int, int]) -> str:
    """What is said of points that `fitted` has left out."""
    return f"points left out: {count}, as on the image's {size[0]}x{size[1]} pixels each falls on one of another class"


def misplaced(label: WeakLabel) -> list[Point]:
    """Points outside the label's `size`, and `clashes`."""
    outside = [point for point in label.points if label.size is not None and not point.inside(label.size)]
    return outside + clashes(label)


def clashes(label: WeakLabel) -> list[Point]:
    """Points of another class than one before them at the same pixel."""
    taken: dict[tuple[int, int], str] = {}
    return [p for p in label.points if taken.setdefault((p.column, p.row), p.name) != p.name]
