"""Pictures of pseudo-labels for the report: what was chosen, what voting added, the full label of an easy image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segshift.artefacts.pseudo_labels import read_ids, write_palette
from segshift.artefacts.store import atomic_path, make_folder, write_json
from segshift.data.domains import Domain
from segshift.data.images import load_resized, resize_nearest
from segshift.data.statistics import spread
from segshift.engine.evaluate import truth_of
from segshift.engine.labelling import PASS_COLOURS
from segshift.types import IGNORE

Row = dict[str, Any]
Colours = tuple[tuple[int, int, int], ...]


def choose_images(rows: list[Row], count: int) -> list[tuple[int, str]]:
    """Images to show, with the reason: the most and the least confident (or covered) one, the rest evenly spread.

    Args:
        rows: `per_image` of statistics.json.
        count: at most so many.
    """
    split = any(row["easy"] is not None for row in rows)
    key, words = ("score", "score") if split else ("labelled", "coverage")
    order = sorted(range(len(rows)), key=lambda i: -float(rows[i][key]))
    chosen: dict[int, str] = {}
    if count > 1 and len(rows) > 1:
        chosen = {order[0]: f"highest {words} of {len(rows)} images", order[-1]: f"lowest {words}"}
    others = [i for i in range(len(rows)) if i not in chosen]
    for place in spread(len(others), count - len(chosen)):
        chosen[others[place]] = "chosen by even spacing"
    return list(chosen.items())


def write_label_panels(
    folder: Path,
    artefact: Path,
    domain: Domain,
    rows: list[Row],
    size: tuple[int, int],
    count: int,
    *,
    truth: Domain | None = None,
    discriminator: Callable[[UInt8[np.ndarray, "h w 3"]], float] | None = None,
) -> None:
    """Write pictures of a few images' pseudo-labels into `folder`, and index.json last.

    Args:
        folder: made where missing; panels of an earlier call in it are overwritten.
        artefact: the folder of the pseudo-labels.
        domain: whose images they label.
        rows: `per_image` of statistics.json, in the order of the domain.
        size: (w, h) of the labels.
        count: at most so many images.
        truth: labelled images; those of the domain's names are shown beside the pseudo-labels.
        discriminator: what it says of a hard image, in [0, 1] (1: it takes the image for an easy one).

    Raises:
        UserError: a file cannot be read or written.
    """
    make_folder(folder)
    known = {item.name: item for item in truth.items} if truth is not None else {}
    index = []
    for number, (place, caption) in enumerate(choose_images(rows, count)):
        item, row = domain.items[place], rows[place]
        pixels, _ = load_resized(item.image, size)
        files: dict[str, str | None] = {"image": f"{number:03d}-image.jpg"}
        with atomic_path(folder / f"{number:03d}-image.jpg") as path:
            Image.fromarray(pixels).save(path, quality=88)
        for kind, (values, palette) in _maps(artefact, item.name, bool(row["easy"]), domain).items():
            files[kind] = _save(folder, number, kind, values, palette)
        if item.name in known and truth is not None:
            ids = resize_nearest(truth_of(truth, known[item.name]), size)
            files["truth"] = _save(folder, number, "truth", ids, domain.classes.palette)
        scored = discriminator is not None and row["easy"] is False
        index.append(
            {
                "name": item.name,
                "caption": caption,
                "files": files,
                "coverage": row["labelled"],
                "score": row["score"] if row["easy"] is not None else None,
                "easy": row["easy"],
                "discriminator": discriminator(pixels) if scored and discriminator is not None else None,
            }
        )
    write_json(folder / "index.json", index)


def _maps(artefact: Path, name: str, easy: bool, domain: Domain) -> dict[str, tuple[np.ndarray, Colours]]:
    """The maps to show of an image, by kind, with their colours."""
    labels, palette = read_ids(artefact / "labels" / f"{name}.png"), domain.classes.palette
    passes = artefact / "passes" / f"{name}.png"
    found: dict[str, tuple[np.ndarray, Colours]] = {"sparse": (labels, palette)}
    if passes.exists():
        added = read_ids(passes)
        found["sparse"] = (np.where(added == 0, labels, IGNORE).astype(np.uint8), palette)
        found["densified"], found["added"] = (labels, palette), (added, PASS_COLOURS)
    if easy:
        found["full"] = (read_ids(artefact / "full" / f"{name}.png"), palette)
    return found


def _save(folder: Path, number: int, kind: str, values: np.ndarray, palette: Colours) -> str:
    name = f"{number:03d}-{kind}.png"
    write_palette(folder / name, values, palette)
    return name
