"""Soft labels of whole images on a network's own grid: what ProDA denoises online.

A folder holds soft/NAME.npz, (h, w, K) uint8 of the network's softmax (255 = probability 1, made to sum to 1 again when
read), soft_labels.json with the classes, and, last, the seal (`store.seal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from segshift.artefacts.pseudo_labels import read_soft
from segshift.artefacts.store import read_json
from segshift.errors import UserError

INDEX = "soft_labels.json"


@dataclass(frozen=True)
class SoftLabels:
    """A finished folder of soft labels."""

    folder: Path

    def read(self, name: str) -> Float32[np.ndarray, "h w K"]:
        """The soft label of an image, on the grid of the network that made it.

        Raises:
            UserError: its file is missing or damaged.
        """
        return read_soft(self.folder / "soft" / f"{name}.npz")


def open_soft_labels(folder: Path, classes: tuple[str, ...]) -> SoftLabels:
    """Soft labels that an earlier stage wrote.

    Raises:
        UserError: they are not there, or of other classes.
    """
    known = read_json(folder / INDEX)
    found = tuple(known["classes"]) if isinstance(known, dict) and "classes" in known else ()
    if found != classes:
        raise UserError(
            f"the soft labels in {folder} are of the classes {', '.join(found) or '(none)'}",
            f"those of this run: {', '.join(classes)}",
            "delete the folder and run again: it is made anew",
        )
    return SoftLabels(folder)
