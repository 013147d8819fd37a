"""Pictures of a domain for `check`: a contact sheet of images with their labels, and class histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from segshift.artefacts.store import atomic_path
from segshift.data.domains import Domain, Item
from segshift.data.images import open_image, resize_nearest
from segshift.data.labels import decode_file
from segshift.data.statistics import spread
from segshift.errors import UserError
from segshift.types import IGNORE, ClassSet

_GAP, _TITLE, _INK, _PAPER = 8, 28, (30, 30, 30), (255, 255, 255)


def colour_label(label: UInt8[np.ndarray, "H W"], classes: ClassSet) -> UInt8[np.ndarray, "H W 3"]:
    """Train ids in the classes' colours; `IGNORE` is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.asarray(classes.palette, np.uint8)
    coloured: np.ndarray = table[label]
    return coloured


def overlay(
    image: UInt8[np.ndarray, "H W 3"], label: UInt8[np.ndarray, "H W"], classes: ClassSet, weight: float = 0.55
) -> UInt8[np.ndarray, "H W 3"]:
    """An image with its labels in colour over it; pixels to ignore keep the image, darkened.

    Args:
        image: 8-bit RGB.
        label: train ids of the same size.
        classes: with their colours.
        weight: of the colours, 0 to 1.
    """
    mixed = (1 - weight) * image + weight * colour_label(label, classes)
    return np.where((label == IGNORE)[..., None], 0.5 * image, mixed).round().astype(np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cells(domain: Domain, item: Item, width: int) -> list[Image.Image]:
    """The pictures of one item: the image and, with labels, the colours over it and the colours alone."""
    try:
        image = open_image(item.image)
        size = (width, max(1, round(width * image.height / image.width)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        if domain.decoder is None or item.label is None:
            return [image]
        label = resize_nearest(decode_file(item.label, domain.decoder)[0], size)
    except UserError as error:
        # The scan reports the file; the sheet only shows where it stood.
        cell = Image.new("RGB", (width, width * 3 // 4), (200, 200, 200))
        ImageDraw.Draw(cell).text((_GAP, _GAP), f"{item.name}:\n{error.found[:40]}", _INK, _font(12))
        return [cell] * (1 if domain.decoder is None else 3)
    over = Image.fromarray(overlay(np.asarray(image), label, domain.classes))
    return [image, over, Image.fromarray(colour_label(label, domain.classes))]


def _block(domain: Domain, count: int, width: int, columns: int) -> Image.Image:
    """One domain: a title and its items, evenly spread over it."""
    cells = [c for i in spread(len(domain.items), count) for c in _cells(domain, domain.items[i], width)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    block = Image.new("RGB", (columns * (width + _GAP) + _GAP, _TITLE + _GAP + sum(h + _GAP for h in heights)), _PAPER)
    kind = "image, labels over it, labels" if domain.labelled else "images only"
    ImageDraw.Draw(block).text((_GAP, _GAP), f"{domain.name}: {len(domain)} images ({kind})", _INK, _font(16))
    top = _TITLE + _GAP
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            block.paste(cell, (_GAP + i * (width + _GAP), top))
        top += height + _GAP
    return block


def _legend(classes: ClassSet, width: int) -> Image.Image:
    """Coloured squares with the class names, wrapped to a width."""
    font = _font(14)
    entries = [*zip(classes.names, classes.palette, strict=True), ("ignore", (0, 0, 0))]
    places: list[tuple[int, int]] = []
    x = y = _GAP
    for name, _ in entries:
        needed = 20 + int(font.getlength(name)) + 2 * _GAP
        if x + needed > width and x > _GAP:
            x, y = _GAP, y + 22
        places.append((x, y))
        x += needed
    legend = Image.new("RGB", (width, y + 22 + _GAP), _PAPER)
    pen = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        pen.rectangle((left, top, left + 14, top + 14), fill=colour, outline=_INK)
        pen.text((left + 20, top - 1), name, _INK, font)
    return legend


def contact_sheet(path: Path, domains: Sequence[Domain], *, count: int = 6, width: int = 240) -> None:
    """Write a PNG with some images of each domain, their labels in colour, and a legend.

    Unmapped values and pixels to ignore are black. Target labels are shown only where the domain was opened with them.

    Args:
        path: of the picture.
        domains: one or two, of the same classes.
        count: images a domain, evenly spread over it.
        width: of one picture in pixels.

    Raises:
        UserError: the picture cannot be written.
    """
    columns = 6 if count > 1 else 3
    blocks = [_block(domain, count, width, columns) for domain in domains]
    blocks.append(_legend(domains[0].classes, columns * (width + _GAP) + _GAP))
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def class_histogram(path: Path, classes: ClassSet, shares: Mapping[str, Sequence[float]]) -> None:
    """Write a picture of the classes' shares of the pixels, a bar a domain, on a logarithmic axis.

    Args:
        path: of the picture (PNG, or SVG by its suffix).
        classes: of the task.
        shares: domain name → K shares in [0, 1], for example from `class_frequency`.

    Raises:
        UserError: the picture cannot be written.
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.55 * len(classes) + 2), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(classes))
    bar = 0.8 / max(1, len(shares))
    for i, (name, values) in enumerate(shares.items()):
        # Later domains paler, so that their hatching shows on dark colours too.
        paler = 0.45 if i else 0.0
        colours = (1 - paler) * np.asarray(classes.palette) / 255 + paler
        axes.bar(
            places + (i - (len(shares) - 1) / 2) * bar, np.asarray(values) * 100, bar, label=name,
            color=colours, edgecolor="black", linewidth=0.6, hatch=("", "///", "...")[i % 3], zorder=2,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(0.005, 100)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("share of labelled pixels in %")
    axes.set_xticks(places, classes.names, rotation=45, ha="right")
    axes.grid(axis="y", alpha=0.3, zorder=0)
    axes.set_title("class shares: " + " and ".join(shares))
    if len(shares) > 1:
        legend = axes.legend()
        for handle in legend.get_patches():
            handle.set_facecolor("white")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
