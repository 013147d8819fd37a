"""Weak labels into a file of another program, and what that file cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segshift.errors import UserError
from segshift.weak.formats import known
from segshift.weak.formats.base import count_lost
from segshift.weak.label import WeakLabel
from segshift.weak.matching import class_names, file_size, listed, renamed
from segshift.weak.names import Images

if TYPE_CHECKING:
    from segshift.types import ClassSet


def export(
    labels: Mapping[str, WeakLabel], form: str, out: Path, classes: ClassSet, images: Mapping[str, Path] | None = None
) -> tuple[int, list[str]]:
    """Write labels in another format; those that say nothing are left out.

    Args:
        labels: as `WeakStore.read` gives them.
        form: name of the format.
        out: file to write; it must not exist.
        classes: of the task.
        images: files by their path below the image folder, for the sizes of images that the labels do not say.

    Returns:
        How many images were written, and sentences on what the format cannot hold.

    Raises:
        UserError: nothing to write, unknown classes, an image without size, or the file is there already.
    """
    kind = known(form)
    if out.exists():
        raise UserError(f"{out} is there already", "a new file", "remove it or choose another --out")
    useful = [label for label in labels.values() if not label.empty]
    names = class_names(useful, classes)
    useful = [renamed(label, names) for label in useful]
    written = [label for label in useful if _holds(label, kind.lost)]
    if not written:
        raise UserError(f"no label has anything that {form} holds", "tags or points", "choose another --format")
    if kind.sized:
        written = _sized(written, images)
    kind.write(written, out, classes.names)
    return len(written), count_lost(useful, kind.lost)


def _holds(label: WeakLabel, lost: set[str]) -> bool:
    """Whether a format can hold something of a label."""
    tagged = label.tags is not None and "tags" not in lost and not (label.tags == () and "none tagged" in lost)
    return tagged or (bool(label.points) and "points" not in lost)


def _sized(labels: list[WeakLabel], images: Mapping[str, Path] | None) -> list[WeakLabel]:
    folder = Images(images or {})
    sized, missing = [], []
    for label in labels:
        hits = folder.find(label.image) if label.size is None else []
        if label.size is None and len(hits) == 1:
            label = replace(label, size=file_size((images or {})[hits[0]]))
        if label.size is None:
            missing.append(label.image)
        sized.append(label)
    if missing:
        raise UserError(
            f"the size of {len(missing)} images is not known: {listed(missing)}",
            "width and height of every image",
            "give their folder as --images" if images is None else "correct --images",
        )
    return sized
