"""Pseudo-labels on disk: PNGs of train ids that any viewer opens, with what they were chosen by and how many they are.

A folder holds, each below a name of its own (NAME is an image's, with its sub-folders):
labels/NAME.png, 8-bit palette PNG of train ids, 255 where nothing was chosen; passes/NAME.png where labels were
densified: 0 chosen by the thresholds, n added by voting pass n, 255 neither; full/NAME.png where images were split into
easy and hard ones: the best class of every pixel; soft/NAME.npz where labels are soft: (h, w, K) uint8, 255 =
probability 1, zeros where nothing was chosen; thresholds.json; statistics.json; and, last, the seal (`store.seal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from segshift.artefacts.arrays import read_arrays, write_arrays
from segshift.artefacts.store import atomic_path, make_folder, read_json
from segshift.errors import UserError, gist
from segshift.types import IGNORE, ClassSet

MADE_ANEW = "run the same command again: damaged pseudo-labels are noticed and made anew"


@dataclass(frozen=True)
class PseudoLabel:
    """The pseudo-label of one image of h x w pixels.

    Attributes:
        hard: (h, w) train ids, `IGNORE` where nothing was chosen; of an easy image its full label.
        soft: (h, w, K) float32, a distribution at each chosen pixel, zeros elsewhere; None where labels are hard.
        easy: whether the image is easy; None where images were not split.
    """

    hard: UInt8[np.ndarray, "h w"]
    soft: Float32[np.ndarray, "h w K"] | None = None
    easy: bool | None = None


@dataclass(frozen=True)
class PseudoLabels:
    """A finished folder of pseudo-labels.

    Attributes:
        folder: where it lies.
        easy: image name → easy or hard; None where images were not split.
        soft: whether soft labels are there.
        predicted: (K,) pixels of the domain that the network predicted as each class.
    """

    folder: Path
    easy: Mapping[str, bool] | None
    soft: bool
    predicted: tuple[int, ...]

    def read(self, name: str) -> PseudoLabel:
        """The label of an image.

        Raises:
            UserError: its file is missing or damaged.
        """
        easy = None if self.easy is None else self.easy[name]
        hard = read_ids(self.folder / ("full" if easy else "labels") / f"{name}.png")
        soft = filled(read_soft(self.folder / "soft" / f"{name}.npz"), hard) if self.soft else None
        return PseudoLabel(hard, soft, easy)

    def rare(self, below: float, fallback: int) -> tuple[int, ...]:
        """Classes worth looking for: those predicted at fewer than a share `below` of the pixels, but at some.

        Args:
            below: share of all pixels (CBST and CRST: 1e-3).
            fallback: where there is none, so many classes of the smallest shares (CBST: 3, CRST: 0).
        """
        total = max(1, sum(self.predicted))
        present = sorted((n, k) for k, n in enumerate(self.predicted) if n)
        small = [k for n, k in present if n / total < below]
        return tuple(small or [k for _, k in present[:fallback]])


def open_pseudo_labels(folder: Path) -> PseudoLabels:
    """Pseudo-labels that a labels stage wrote.

    Raises:
        UserError: they are not there, or their statistics are damaged.
    """
    statistics = read_json(folder / "statistics.json")
    try:
        split = statistics["easy_cutoff"] is not None or any(row["easy"] is not None for row in statistics["per_image"])
        easy = {row["name"]: bool(row["easy"]) for row in statistics["per_image"]} if split else None
        predicted = tuple(int(n) for n in statistics["predicted"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'statistics.json'} is no file of pseudo-labels: {gist(error)}", remedy="delete the folder"
        ) from error
    return PseudoLabels(folder, easy, (folder / "soft").is_dir(), predicted)


def write_ids(path: Path, ids: UInt8[np.ndarray, "h w"], classes: ClassSet) -> None:
    """Train ids as a palette PNG in the classes' colours; what is ignored is black."""
    write_palette(path, ids, classes.palette)


def write_palette(path: Path, values: UInt8[np.ndarray, "h w"], palette: tuple[tuple[int, int, int], ...]) -> None:
    """Whole numbers as a palette PNG, whole or not there; numbers without a colour are black."""
    picture = Image.fromarray(values)
    picture.putpalette([level for colour in palette for level in colour] + [0] * 3 * (256 - len(palette)))
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def read_ids(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The whole numbers of a palette PNG.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            ids: UInt8[np.ndarray, "h w"] = np.asarray(picture, np.uint8)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's word for a damaged PNG is SyntaxError
        raise UserError(f"the pseudo-label {path} cannot be read: {gist(error)}", remedy=MADE_ANEW) from error
    return ids


def write_soft(path: Path, soft: Float32[np.ndarray, "h w K"]) -> None:
    """Distributions over classes, rounded to 1/255; equal input gives equal bytes."""
    write_arrays(path, {"soft": np.rint(255 * soft).astype(np.uint8)})


def read_soft(path: Path) -> Float32[np.ndarray, "h w K"]:
    """Distributions over classes, made to sum to 1 again; zeros where nothing was chosen.

    Raises:
        UserError: the file is missing or damaged.
    """
    soft = read_arrays(path, ["soft"], "pseudo-label", MADE_ANEW)["soft"].astype(np.float32)
    distributions: Float32[np.ndarray, "h w K"] = soft / np.maximum(soft.sum(2, keepdims=True), 1)
    return distributions


def filled(soft: Float32[np.ndarray, "h w K"], hard: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w K"]:
    """Soft labels with the hard one, as a distribution on one class, where a pixel has that alone.

    Voting and full labels know no distributions.
    """
    lacking = (hard != IGNORE) & ~soft.any(axis=2)
    rows, columns = np.nonzero(lacking)
    soft[rows, columns, hard[lacking]] = 1
    return soft


def stack(labels: list[PseudoLabel]) -> dict[str, Any]:
    """Fields of a batch, as numpy arrays, from the labels of its images; none for no labels."""
    if not labels:
        return {}
    fields: dict[str, Any] = {"pseudo_label": np.stack([label.hard for label in labels]).astype(np.int64)}
    soft = [label.soft for label in labels if label.soft is not None]
    easy = [label.easy for label in labels if label.easy is not None]
    if soft:
        fields["soft_label"] = np.ascontiguousarray(np.stack(soft).transpose(0, 3, 1, 2))
    if easy:
        fields["easy"] = np.array(easy)
    return fields
