"""From what a file of another program says to weak labels of the images in a folder: all of it, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segshift.errors import UserError, nearest
from segshift.weak.formats.base import Content, Entry
from segshift.weak.label import Point, WeakLabel, check_image, moment
from segshift.weak.matching import clashes, cut, file_size, in_pixels_of, known_as, listed, without
from segshift.weak.matching import turned as asks_to_be_turned
from segshift.weak.names import Images

if TYPE_CHECKING:
    from segshift.types import ClassSet

IGNORED = "ignore"
"""What a class map says of a class that is not to be read."""


@dataclass(frozen=True)
class Imported:
    """Labels to append to the store, in this order, and what people should know of them."""

    labels: list[WeakLabel]
    notes: list[str]


def gather(
    content: Content,
    images: Mapping[str, Path],
    classes: ClassSet,
    *,
    before: Mapping[str, WeakLabel] | None = None,
    class_map: Mapping[str, str] | None = None,
    skip_unknown: bool = False,
    complete: bool | None = None,
) -> Imported:
    """The labels that a file gives to the images of a folder.

    Several entries of one image become one label, with all their tags and points; where each says when it was made
    they become a label each, the newest last, so that the newest holds. A file that holds no tags at all leaves those
    of earlier labels as they are, and one without points leaves the points.

    Args:
        content: as a format's `read` gives it.
        images: files by their path below the folder.
        classes: of the task.
        before: labels that the store has.
        class_map: the file's class names to the task's, or to "ignore"; "*" for all that are unknown.
        skip_unknown: leave out images that are not in the folder.
        complete: whether the tags name every class present; None: they do unless the file says otherwise, or lists the
            classes that could be chosen and some of the task's are not among them.

    Raises:
        UserError: nothing to read; images that are not there or not clear; unknown classes; points outside.
    """
    if not any(entry.tags is not None or entry.points for entry in content.entries):
        said = f" ({'; '.join(content.notes)})" if content.notes else ""
        raise UserError(
            f"{content.path} has no tags and no points{said}", "choices or tags, or points", "label some images"
        )
    notes = list(content.notes)
    placed = _placed(content, images, skip_unknown, notes)
    names = _names(content, classes, class_map or {})
    whole = _whole(content, names, classes, complete, notes)
    made = [(_label(image, entry, names, whole), entry) for image, entry in placed]
    moved, shrunk = _in_files(content.path, made, images, notes)
    labels = _in_order(content.path, moved, shrunk, notes)
    tagged, pointed = any(label.tags is not None for label, _ in made), any(label.points for label, _ in made)
    kept = [_with_earlier(label, (before or {}).get(label.image), tagged, pointed) for label in labels]
    labelled = {label.image for label in labels} & {image for image, old in (before or {}).items() if not old.empty}
    if labelled:
        notes.append(f"{len(labelled)} images were labelled before: the new lines hold")
    return Imported([replace(label, size=_size(label, images)) for label in kept], notes)


def _placed(content: Content, images: Mapping[str, Path], skip: bool, notes: list[str]) -> list[tuple[str, Entry]]:
    """Entries with the path of their image."""
    folder = Images(images)
    placed: list[tuple[str, Entry]] = []
    missing: dict[str, str] = {}
    unclear: list[str] = []
    called: dict[str, str] = {}
    for entry in content.entries:
        hits = _hits(folder, entry)
        if len(hits) > 1:
            unclear.append(f"{entry.image} ({entry.where}) may be {' or '.join(hits[:3])}")
        elif not hits:
            missing.setdefault(entry.image, entry.where)
        else:
            image = hits[0]
            if called.setdefault(image, entry.image) != entry.image and not entry.uploaded:
                unclear.append(f"{called[image]} and {entry.image} ({entry.where}) would both be {image}")
            placed.append((image, entry))
    if unclear:
        raise UserError(
            f"{content.path}: {len(unclear)} images are not clear: {listed(unclear, 3)}",
            "paths below the image folder",
            "give the folder that the names start from as --images, or rename the files",
        )
    if missing and not skip:
        raise UserError(
            f"{content.path}: {len(missing)} images are not in the folder: "
            f"{listed([f'{i} ({w})' for i, w in missing.items()])}",
            "images of the folder",
            "correct --images, or leave them out with --skip-unknown",
        )
    if missing:
        notes.append(f"{len(missing)} images are not in the folder, left out: {listed(missing)}")
    if not placed:
        raise UserError(
            f"not one image of {content.path} is in the folder", "labels of these images", "correct --images"
        )
    return placed


def _hits(folder: Images, entry: Entry) -> list[str]:
    """The images that an entry may mean. Uploads have lost their folder; files named by their digits are uploads."""
    name = entry.image.replace("\\", "/")
    return (folder.find(name) if not entry.uploaded else []) or folder.find_uploaded(
        name.rpartition("/")[2], only_marked=not entry.uploaded
    )


def _names(content: Content, classes: ClassSet, class_map: Mapping[str, str]) -> dict[str, str | None]:
    """The task's class for every class of the file; None for those to be left out."""
    used: dict[str, str] = {}
    for entry in content.entries:
        for name in [*(entry.tags or ()), *(p.name for p in entry.points)]:
            used.setdefault(name, entry.where)
    for name in content.declared or ():
        used.setdefault(name, "")
    unheard = [key for key in class_map if key != "*" and key not in used]
    if unheard:
        raise UserError(
            f"--class-map: the file has no class {cut(unheard[0])!r}",
            f"of {listed([cut(name) for name in used], 12)}",
            cut(nearest(unheard[0], used), 80),
        )
    found = {name: _class(name, class_map, classes) for name in used}
    unknown = [name for name, where in used.items() if found[name] == "" and where]
    if unknown:
        first = unknown[0] if cut(unknown[0]) == unknown[0] else "*"
        raise UserError(
            f"{content.path}: {len(unknown)} classes are not of the class list: "
            f"{listed([f'{cut(n)!r} ({used[n]})' for n in unknown])}",
            f"of {', '.join(classes.names)}",
            f"add --class-map '{first}=CLASS', or --class-map '{first}={IGNORED}' to leave it out",
        )
    return {name: target or None for name, target in found.items()}


def _class(name: str, class_map: Mapping[str, str], classes: ClassSet) -> str | None:
    """The task's class that a name means: None to leave it out, empty where it is unknown."""
    known = known_as(name, classes)
    wanted = class_map.get(name, known or class_map.get("*"))
    if wanted is None:
        return ""
    if wanted == IGNORED:
        return None
    target = known_as(wanted, classes)
    if target is None:
        raise UserError(
            f"--class-map '{cut(name)}={cut(wanted)}': {cut(wanted)!r} is no class",
            f"of {', '.join(classes.names)}, or {IGNORED}",
            nearest(wanted, classes.names),
        )
    return target


def _whole(
    content: Content, names: Mapping[str, str | None], classes: ClassSet, complete: bool | None, notes: list[str]
) -> bool:
    """Whether the tags of the file may say that a class is absent."""
    if complete is not None or content.declared is None or all(entry.tags is None for entry in content.entries):
        return complete is not False
    choice = {names[name] for name in content.declared}
    never = [name for name in classes.names if name not in choice]
    if never:
        notes.append(
            f"nobody could choose {listed(never)}: the tags are taken as positive-only (--complete says otherwise)"
        )
    return not never


_Made = list[tuple[WeakLabel, Entry]]


def _in_files(path: Path, made: _Made, images: Mapping[str, Path], notes: list[str]) -> tuple[_Made, set[str]]:
    """Labels with their points in the pixels of the image files, in which they must lie; and the images that were
    labelled in another size, in which no two classes had a point at one pixel."""
    sizes: dict[str, tuple[int, int]] = {}
    turned: dict[str, None] = {}
    outside: list[str] = []
    scaled: set[str] = set()
    moved: _Made = []
    for label, entry in made:
        if label.points:
            if label.image not in sizes:
                sizes[label.image] = _stored(label.image, images[label.image], turned)
            size = sizes[label.image]
            scaled |= {label.image} if label.size not in (None, size) else set()
            label = in_pixels_of(label, size, entry.where)
            outside += [f"{_place(label, point)} ({entry.where})" for point in label.points if not point.inside(size)]
        moved.append((label, entry))
    if outside:
        raise UserError(
            f"{path}: {len(outside)} points lie outside their image: {listed(outside)}",
            "pixels of the image file",
            "were they clicked on images of another size or crop? mend the file or export it again",
        )
    if scaled:
        notes.append(f"{len(scaled)} images were labelled in another size: their points are scaled to the files")
    if turned:
        notes.append(
            f"warning: {len(turned)} images have a camera's orientation flag: other programs show them turned, here "
            f"they are read as stored, so look at the points: {listed(turned)}"
        )
    return moved, {image for image, group in _by_image(made).items() if image in scaled and not _clash(group)}


def _by_image(made: _Made) -> dict[str, _Made]:
    groups: dict[str, _Made] = {}
    for label, entry in made:
        groups.setdefault(label.image, []).append((label, entry))
    return groups


def _dated(group: _Made) -> bool:
    """Whether an image's labels are a line each, and not joined to one."""
    return len(group) > 1 and all(entry.when for _, entry in group)


def _clash(group: _Made) -> bool:
    """Whether two classes have a point at one pixel of what was labelled, in labels that become one line."""
    labels = [label for label, _ in group]
    if not _dated(group):
        labels = [_joined([label for label in labels if label.size == size]) for size in {each.size for each in labels}]
    return any(map(clashes, labels))


def _place(label: WeakLabel, point: Point) -> str:
    return f"{label.image} ({point.x:g}, {point.y:g}) {point.name}"


def _in_order(path: Path, made: _Made, shrunk: set[str], notes: list[str]) -> list[WeakLabel]:
    """Labels in the order in which they are to be appended, no two classes at one pixel: where they only come to one
    because the image file is smaller than what was labelled, the first stays."""
    groups = _by_image(made)
    labels: list[WeakLabel] = []
    merged = dated = 0
    for image, group in groups.items():
        several = [label for label, _ in group]
        if _dated(group):
            dated += 1
            labels += sorted(several, key=lambda label: moment(label.when or "", image))
        else:
            merged += len(group) > 1 and not all(entry.part for _, entry in group)
            labels.append(_joined(several))
    merged_points = [_place(label, p) for label in labels if label.image in shrunk for p in clashes(label)]
    if merged_points:
        notes.append(
            f"points left out: {len(merged_points)}, as on the smaller file each falls on one of another class: "
            f"{listed(merged_points)}"
        )
        labels = [without(label, clashes(label)) if label.image in shrunk else label for label in labels]
    at_once = [f"{_place(label, p)} ({_said_at(p, groups[label.image])})" for label in labels for p in clashes(label)]
    if at_once:
        raise UserError(
            f"{path}: {len(at_once)} points are of two classes at one pixel: {listed(at_once)}",
            "one class a pixel",
            "take one of the points out of the file",
        )
    if dated:
        notes.append(f"{dated} images have several annotations: the newest holds, the others stand before it")
    if merged:
        notes.append(f"{merged} images stand there more than once: their tags and points are joined")
    # The whole file by time, where it tells, so that the store's order is that of the work.
    if labels and all(label.when for label in labels):
        labels.sort(key=lambda label: moment(label.when or "", label.image))
    return labels


def _said_at(point: Point, group: _Made) -> str:
    """Where the file says a point of an image."""
    return next(entry.where for label, entry in group if point in label.points)


def _label(image: str, entry: Entry, names: Mapping[str, str | None], whole: bool) -> WeakLabel:
    """The label of an entry, its points still in the pixels that the file knows."""
    tags = None
    if entry.tags is not None:
        tags = tuple(dict.fromkeys(name for tag in entry.tags if (name := names[tag]) is not None))
    points = tuple(Point(x, y, name) for x, y, of in entry.points if (name := names[of]) is not None)
    if entry.when is not None:
        moment(entry.when, entry.where)
    complete = tags is None or (whole and entry.complete)
    return WeakLabel(check_image(image, entry.where), tags, complete, points, entry.size, entry.who, entry.when)


def _joined(labels: list[WeakLabel]) -> WeakLabel:
    """One label with what all of them say."""
    first = labels[0]
    if len(labels) == 1:
        return first
    tagged = [label for label in labels if label.tags is not None]
    tags = tuple(dict.fromkeys(tag for label in tagged for tag in label.tags or ())) if tagged else None
    points = tuple(dict.fromkeys(point for label in labels for point in label.points))
    size = next((label.size for label in labels if label.points), first.size)
    who, when = ({getattr(label, key) for label in labels} for key in ("who", "when"))
    return WeakLabel(
        first.image, tags, all(label.complete for label in tagged), points, size,
        who.pop() if len(who) == 1 else None, when.pop() if len(when) == 1 else None,
    )  # fmt: skip


def _stored(image: str, path: Path, turned: dict[str, None]) -> tuple[int, int]:
    """(w, h) of the file; notes images that other programs show turned."""
    from PIL import Image

    size = file_size(path)
    with Image.open(path) as opened:
        if asks_to_be_turned(opened, path.read_bytes() if opened.format == "PNG" else b""):
            turned[image] = None
    return size


def _size(label: WeakLabel, images: Mapping[str, Path]) -> tuple[int, int] | None:
    return label.size if label.points and label.size else file_size(images[label.image])


def _with_earlier(label: WeakLabel, old: WeakLabel | None, tagged: bool, pointed: bool) -> WeakLabel:
    """The label with what an earlier one said of things that the whole file does not speak of."""
    if old is None or old.empty:
        return label
    if not tagged:
        label = replace(label, tags=old.tags, complete=old.complete)
    if not pointed and old.points:
        label = replace(label, points=old.points, size=old.size)
    return label
