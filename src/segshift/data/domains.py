"""A domain is a declaration: where images and labels lie and what the labels mean. Opening one only lists files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field

from segshift.data import listing
from segshift.data.images import IMAGE_SUFFIXES, Size, load_resized, resize_nearest
from segshift.data.labels import Decoder, read_label
from segshift.data.layouts import LABEL_FOLDERS, LAYOUTS, Layout, LayoutName
from segshift.data.mapping import build_decoder
from segshift.data.tables import LabelTable, codes_table
from segshift.errors import UserError, nearest
from segshift.types import ClassSet


class DomainSettings(BaseModel):
    """Where a domain's data lies (a part of the user's data.yaml)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path = Field(description="folder of the domain")
    layout: LayoutName = Field("auto", description="auto recognises the layout by the folders in root")
    images: str | None = Field(None, description="folder of the images, below root, instead of the layout's")
    labels: str | None = Field(None, description="folder of the labels, below root, instead of the layout's")
    split: str | None = Field(None, description="part to use, a folder such as train or val")
    class_map: dict[str | int, str] | None = Field(
        None, description='what label values mean: id, "r,g,b", "#rrggbb", the dataset\'s name or "*" → class or ignore'
    )
    resize_labels: bool = Field(False, description="bring labels of another size to their image's (nearest)")
    limit: int | None = Field(None, ge=1, description="use only the first images, in the order of their names")
    list: Path | None = Field(None, description="text file naming the images to use, one a line")


@dataclass(frozen=True)
class Item:
    """An image of a domain.

    Attributes:
        name: path below the image folder without suffix, "/" between folders; unique in the domain.
        image: its file.
        label: its label file; None where the domain was opened without labels.
    """

    name: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class Domain:
    """The images of one domain, listed but not opened.

    Attributes:
        name: used in messages and to tell the random numbers of domains apart.
        classes: of the task.
        items: in the order of their names.
        decoder: of the label files; None where the domain was opened without labels.
        settings: that it was opened with.
    """

    name: str
    classes: ClassSet
    items: tuple[Item, ...]
    decoder: Decoder | None
    settings: DomainSettings

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> bool:
        """Whether the items have labels."""
        return self.decoder is not None


def load_label(domain: Domain, item: Item, image: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
    """Train ids of an item of a labelled domain.

    Args:
        domain: that the item is of.
        item: whose label to read.
        image: (H, W) of its image, to which the label is compared; None: not compared.

    Raises:
        UserError: naming the file: unreadable, unmapped values, another size than the image's.
        ValueError: the domain was opened without labels.
    """
    if domain.decoder is None or item.label is None:
        raise ValueError(f"domain {domain.name!r} was opened without labels")
    return read_label(item.label, domain.decoder, image=image, resize=domain.settings.resize_labels)


def load_pair(
    domain: Domain, item: Item, size: Size | None
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None, tuple[int, int]]:
    """An item's image (bicubic) and, in a labelled domain, its train ids (nearest), both resized to (w, h).

    Returns:
        image, label or None, and the image file's own (H, W).

    Raises:
        UserError: naming the file (see `load_resized` and `load_label`).
    """
    image, original = load_resized(item.image, size)
    if domain.decoder is None:
        return image, None, original
    return image, resize_nearest(load_label(domain, item, original), size), original


def _unpaired(kind: str, names: Sequence[str], folder: Path, domain: str) -> UserError:
    few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    other = "label" if kind == "image" else "image"
    subject = f"{len(names)} {kind}s have" if len(names) > 1 else f"1 {kind} has"
    remedy = (
        "add or remove files; or name the images to use in a text file and set the domain's `list`"
        if kind == "image"
        else f"remove these labels or add their images below {folder}"
    )
    return UserError(f"domain {domain!r}: {subject} no {other}: {few}", f"the same stem in {folder}", remedy)


def _table(layout: Layout, root: Path, by_ending: LabelTable | None) -> LabelTable | None:
    """The meaning of the label files: a codes.txt's (CamVid of fast.ai), else their ending's, else the layout's."""
    codes = root / "codes.txt"
    if layout is LAYOUTS["camvid"] and codes.is_file():
        lines = codes.read_text(encoding="utf-8").splitlines()
        return codes_table([line.strip() for line in lines if line.strip()], str(codes))
    return by_ending or layout.table


def _pair(
    images: Mapping[str, Path], labels: Mapping[str, Path], image_folder: Path, label_folder: Path, domain: str,
    strict: bool,
) -> tuple[Item, ...]:  # fmt: skip
    """Images with their labels by name; with `strict`, a label without image is an error too."""
    missing = sorted(set(images) - set(labels))
    if missing:
        raise _unpaired("image", missing, label_folder, domain)
    lonely = sorted(set(labels) - set(images))
    if lonely and strict:
        raise _unpaired("label", lonely, image_folder, domain)
    return tuple(Item(name, images[name], labels[name]) for name in sorted(images))


def open_images(root: Path) -> dict[str, Item]:
    """The images of `--images`: those below a folder, or below its `images` (also `imgs`, `image`, `rgb`).

    Returns:
        By path below the image folder ("/" between folders, with suffix): what `open_domain` lists of plain folders.

    Raises:
        UserError: there is no such folder, it cannot be read, no image is in it, or two have one name.
    """
    root = root.expanduser()
    if not root.is_dir():
        if root.exists():
            raise UserError(f"--images {root} is a file", "a folder of images", f"--images {root.parent}")
        near = (path.name for path in root.absolute().parent.glob("*") if path.is_dir())
        raise UserError(f"--images {root} does not exist", "a folder of images", nearest(root.name, near))
    layout = LAYOUTS["folders"]
    below = next(folder for name in layout.images if (folder := root / name).is_dir())
    if not listing.walk(below, IMAGE_SUFFIXES, LABEL_FOLDERS):
        raise UserError(
            f"--images {root}: no image in {below}",
            f"files of type {', '.join(sorted(IMAGE_SUFFIXES))}",
            "name the folder that holds the images; its sub-folders are searched too",
        )
    found = listing.Where(root, None, "images", layout).images(below)
    return {path.relative_to(below).as_posix(): Item(key, path) for key, path in found.items()}


def open_domain(settings: DomainSettings, classes: ClassSet, *, labelled: bool, name: str) -> Domain:
    """List the images of a domain and, only where asked, their labels.

    With `labelled=False` no label file or label folder is opened, listed or even looked at: that is how a target
    domain is opened for training.

    Args:
        settings: where it lies.
        classes: of the task.
        labelled: pair every image with a label.
        name: for messages and random numbers.

    Raises:
        UserError: a folder is missing or empty; a name of `list` is unknown; with labels, an image without label, a
            label without image, or an error of the class map.
    """
    root = settings.root.expanduser()
    entries = listing.check_root(root, name)
    layout_name = settings.layout
    if layout_name == "auto":
        layout_name = listing.recognise(entries, settings.split, labelled=labelled, root=root, domain=name)
    layout = LAYOUTS[layout_name]
    where = listing.Where(root, settings.split, name, layout)
    image_folder = where.image_folder(settings.images)
    images = where.images(image_folder)
    if settings.list is not None:
        images = listing.chosen(images, settings.list, root, name)
    items = tuple(Item(key, images[key]) for key in sorted(images))
    decoder: Decoder | None = None
    if labelled:
        label_folder = where.label_folder(settings.labels)
        labels, by_ending = where.labels(label_folder, set(images))
        items = _pair(images, labels, image_folder, label_folder, name, strict=settings.list is None)
        plain = settings.layout == "auto" and layout_name == "folders" and by_ending is None
        if plain and settings.class_map is None and listing.has_cityscapes_palette(items[0].label):
            layout = LAYOUTS["gta5"]
        table = _table(layout, root, by_ending)
        decoder = build_decoder(classes, table, settings.class_map, channel=layout.channel, domain=name)
    return Domain(name, classes, items[: settings.limit], decoder, settings)
