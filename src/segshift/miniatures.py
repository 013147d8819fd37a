"""Miniatures of GTA5, SYNTHIA and Cityscapes in their true folders, names and file types, for `adapt --dry-run`.

The pictures are drawn from their labels: a patch in the class's colour, with noise, for every class. They are an eighth
of the data sets' sizes. Nothing here is measured on, and no figure of them means anything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from segshift.artefacts.store import make_folder, write_error, write_text
from segshift.data.classes import CITYSCAPES_19, CITYSCAPES_COLOURS, Colour, canonical, make_classes
from segshift.data.domains import Domain, load_label
from segshift.data.images import Size
from segshift.data.tables import CITYSCAPES_COLOUR, CITYSCAPES_IDS, SYNTHIA, LabelTable
from segshift.types import IGNORE, ClassSet
from segshift.weak.label import Point, WeakLabel
from segshift.weak.store import WeakStore

Pair = Literal["gta5", "synthia", "folders"]
"""What the source is; the target of the first two is Cityscapes."""

GTA5_SIZE, SYNTHIA_SIZE, CITYSCAPES_SIZE = (239, 132), (160, 95), (256, 128)
"""(w, h), an eighth of 1914x1052, 1280x760 and 2048x1024 (methods.md section 0.1)."""

IMAGES, VAL_IMAGES = 2, 2
"""Images of source and target, and of the labelled part."""

PLAIN_CLASSES = ("road", "building", "vegetation", "sky", "person", "car")
"""Of plain folders, where the settings name no class list."""

Scene = UInt8[np.ndarray, "H W"]
"""Places in a list of names; the last rows hold `IGNORE`: pixels of no class."""


def make_pair(root: Path, pair: Pair, classes: ClassSet) -> dict[str, Any]:
    """Write a source, a target and its labelled part.

    Args:
        root: an empty folder.
        pair: which data sets.
        classes: of the task; only plain folders are made of them, the others have the classes of their release.

    Returns:
        `source`, `target` and `val` as data.yaml has them.

    Raises:
        UserError: the disk is full or read-only.
    """
    if pair == "folders":
        for name, count, dark in (("source", IMAGES, False), ("target", IMAGES, True), ("val", VAL_IMAGES, True)):
            _folders(root / name, classes, count, dark=dark)
        return {name: {"root": str(root / name)} for name in ("source", "target", "val")}
    source = {"gta5": _gta5, "synthia": _synthia}[pair](root)
    cityscapes = root / "cityscapes"
    for split, city, count in (("train", "aachen", IMAGES), ("val", "frankfurt", VAL_IMAGES)):
        _cityscapes(cityscapes, split, city, count)
    declared = {"root": str(cityscapes), "layout": "cityscapes"}
    return {"source": source, "target": declared | {"split": "train"}, "val": declared | {"split": "val"}}


def make_weak_labels(path: Path, domain: Domain) -> None:
    """Write weak labels of a domain's images: the tags of the classes that are there, and a point on each.

    Args:
        path: of the file of labels.
        domain: opened with its labels.
    """
    labels = []
    for number, item in enumerate(domain.items):
        truth = load_label(domain, item)
        rng, tags, points = np.random.default_rng(number), [], []
        for train_id in np.unique(truth[truth != IGNORE]).tolist():
            rows, columns = np.nonzero(truth == train_id)
            place = int(rng.integers(len(rows)))
            name = domain.classes.names[train_id]
            tags.append(name)
            points.append(Point(float(columns[place]), float(rows[place]), name))
        image = item.name.rpartition("/")[0]
        shown = f"{image}/{item.image.name}" if image else item.image.name
        labels.append(WeakLabel(shown, tuple(tags), points=tuple(points), size=(truth.shape[1], truth.shape[0])))
    WeakStore(path).extend(labels)


# ---- data sets


def _gta5(root: Path) -> dict[str, Any]:
    """`images/00001.png` and, as palette images of Cityscapes' ids, `labels/00001.png`; the last label is larger than
    its image, as some of the release's are."""
    folder, ids, palette = root / "gta5", _ids(CITYSCAPES_IDS, CITYSCAPES_19), _palette_of_ids()
    for number in range(1, IMAGES + 1):
        scene = _scene(len(CITYSCAPES_19), CITYSCAPES_19.index("sky"), GTA5_SIZE, number)
        _save(folder / "images" / f"{number:05d}.png", _picture(scene, _colours(CITYSCAPES_19), number))
        values = ids[scene]
        if number == IMAGES:
            values = np.pad(values, ((0, 1), (0, 1)), mode="edge")
        label = Image.fromarray(values)
        label.putpalette(palette)
        _save(folder / "labels" / f"{number:05d}.png", label)
    return {"root": str(folder), "layout": "gta5", "resize_labels": True}


SYNTHIA_NAMES = (*(name for name in CITYSCAPES_19 if name not in ("terrain", "truck", "train")), "lanemarking")
"""What occurs in SYNTHIA-RAND-CITYSCAPES: the 16 classes, and lane markings, which are of no class."""


def _synthia(root: Path) -> dict[str, Any]:
    """`RGB/0000000.png` and `GT/LABELS/0000000.png`: 16 bits, three channels: class, instance, nothing."""
    folder, ids = root / "RAND_CITYSCAPES", _ids(SYNTHIA, SYNTHIA_NAMES)
    for number in range(IMAGES):
        scene = _scene(len(SYNTHIA_NAMES), SYNTHIA_NAMES.index("sky"), SYNTHIA_SIZE, 100 + number)
        _save(folder / "RGB" / f"{number:07d}.png", _picture(scene, _colours(SYNTHIA_NAMES), number))
        values = np.zeros((*scene.shape, 3), np.uint16)
        values[..., 0] = ids[scene]
        values[..., 1] = np.where(scene == SYNTHIA_NAMES.index("car"), 300 + number, 0)
        make_folder(folder / "GT" / "LABELS")
        write_png16(folder / "GT" / "LABELS" / f"{number:07d}.png", values)
    return {"root": str(folder), "layout": "synthia"}


def _cityscapes(root: Path, split: str, city: str, count: int) -> None:
    """`leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png`, darker than the sources, and its `_gtFine_labelIds`;
    `_gtFine_color` lies beside that as in the release."""
    ids, palette = _ids(CITYSCAPES_IDS, CITYSCAPES_19), np.array(_palette_of_ids(), np.uint8).reshape(-1, 3)
    for number in range(count):
        seed = 200 + number + (50 if split == "val" else 0)
        scene = _scene(len(CITYSCAPES_19), CITYSCAPES_19.index("sky"), CITYSCAPES_SIZE, seed)
        stem = f"{city}_{number:06d}_000019"
        picture = _picture(scene, _colours(CITYSCAPES_19), seed, dark=True)
        _save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", picture)
        labels = root / "gtFine" / split / city
        _save(labels / f"{stem}_gtFine_labelIds.png", ids[scene])
        _save(labels / f"{stem}_gtFine_color.png", palette[ids[scene]])


def _folders(root: Path, classes: ClassSet, count: int, *, dark: bool) -> None:
    """`images/000.png` and `labels/000.png` with train ids."""
    for number in range(count):
        seed = 300 + number + 50 * len(root.name)
        scene = _scene(len(classes), len(classes) // 2, CITYSCAPES_SIZE, seed)
        _save(root / "images" / f"{number:03d}.png", _picture(scene, classes.palette, seed, dark=dark))
        _save(root / "labels" / f"{number:03d}.png", scene)


def plain_classes(path: Path) -> ClassSet:
    """Write `PLAIN_CLASSES` as a class list."""
    write_text(path, "\n".join(PLAIN_CLASSES) + "\n")
    return make_classes(PLAIN_CLASSES)


# ---- drawing


def _scene(count: int, above: int, size: Size, seed: int) -> Scene:
    """A patch of every one of `count` names, in a random order, between wide bands of the name `above` and of the first
    one; a few rows at the bottom are of no class."""
    columns = int(np.ceil(np.sqrt(2 * count)))
    rows = -(-count // columns)
    cells = np.random.default_rng(seed).permutation(np.arange(rows * columns) % count).reshape(rows, columns)
    width, height = size
    top, bottom, end = height // 5, 4 * height // 5, height - max(1, height // 20)
    ys, xs = np.arange(bottom - top) * rows // (bottom - top), np.arange(width) * columns // width
    scene = np.full((height, width), IGNORE, np.uint8)
    scene[:top] = above
    scene[top:bottom] = cells[ys[:, None], xs[None]]
    scene[bottom:end] = 0
    return scene


def _picture(scene: Scene, palette: Sequence[Colour], seed: int, *, dark: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """The scene in its classes' colours with noise; by night where it is dark, so that there is a gap to bridge."""
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    image = colours[scene] + np.random.default_rng(1000 + seed).normal(0, 12, (*scene.shape, 3))
    if dark:
        image = 0.5 * image + np.array([0, 10, 30])
    seen: UInt8[np.ndarray, "H W 3"] = np.clip(image, 0, 255).astype(np.uint8)
    return seen


def _colours(names: Sequence[str]) -> list[Colour]:
    """Cityscapes' colours; white for lane markings."""
    return [CITYSCAPES_COLOURS.get(name, (255, 255, 255)) for name in names]


def _ids(table: LabelTable, names: Sequence[str]) -> UInt8[np.ndarray, "256"]:
    """Place in `names` → id in the data set's files; `IGNORE` → 0, which is of no class in all of them."""
    known: Mapping[str, int] = {canonical(name): value for value, name in table.ids.items()}
    values = np.zeros(256, np.uint8)
    values[: len(names)] = [known[canonical(name)] for name in names]
    return values


def _palette_of_ids() -> list[int]:
    """The palette of GTA5's labels: 256 colours, those of Cityscapes' names at its label ids."""
    by_name = {name: colour for colour, name in CITYSCAPES_COLOUR.colours.items()}
    colours = [by_name.get(CITYSCAPES_IDS.ids.get(value, ""), (0, 0, 0)) for value in range(256)]
    return [channel for colour in colours for channel in colour]


# ---- files


def _save(path: Path, content: np.ndarray | Image.Image) -> None:
    make_folder(path.parent)
    try:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)
    except OSError as error:
        raise write_error(path, error) from error


def write_png16(path: Path, values: UInt16[np.ndarray, "H W 3"]) -> None:
    """Write a 16-bit RGB PNG, which Pillow cannot: rows of big-endian values, each behind a filter byte of 0 (none).

    Source: PNG specification (third edition), sections 5 and 7.

    Raises:
        UserError: the disk is full or read-only.
    """
    height, width, _ = values.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)
    rows[:, 1:] = values.astype(">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data)) for k, data in chunks]
    try:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    except OSError as error:
        raise write_error(path, error) from error
