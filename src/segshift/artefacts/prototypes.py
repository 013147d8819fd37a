"""Class prototypes on disk: the mean feature of each class, and of how many images, as one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segshift.artefacts.store import atomic_path, make_folder
from segshift.errors import UserError, gist

FILE = "prototypes.safetensors"


@dataclass(frozen=True)
class Prototypes:
    """Prototypes of K classes in a feature space of D dimensions.

    Attributes:
        means: (K, D) float32, zeros for a class that was never predicted.
        images: (K,) number of images that each is the mean over.
    """

    means: Float[Tensor, "K D"]
    images: Int64[Tensor, " K"]

    @property
    def present(self) -> Bool[Tensor, " K"]:
        """(K,) classes that have a prototype; the others can be nearest to nothing."""
        return self.images > 0


def write_prototypes(folder: Path, prototypes: Prototypes, classes: tuple[str, ...]) -> Path:
    """Write the file, whole or not at all, with the names of the classes in it."""
    make_folder(folder)
    tensors = {"means": prototypes.means.contiguous(), "images": prototypes.images.contiguous()}
    content = safetensors.torch.save(tensors, {"classes": json.dumps(classes)})
    with atomic_path(folder / FILE) as temporary:
        temporary.write_bytes(content)
    return folder / FILE


def read_prototypes(folder: Path, classes: tuple[str, ...]) -> Prototypes:
    """Read the prototypes of these classes.

    Raises:
        UserError: missing, damaged, or of other classes.
    """
    path = folder / FILE
    try:
        with safe_open(path, "pt") as file:
            found = tuple(json.loads((file.metadata() or {}).get("classes", "[]")))
            prototypes = Prototypes(file.get_tensor("means"), file.get_tensor("images"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the prototypes {path} cannot be read: {gist(error)}", remedy="run again") from error
    if found != classes or len(prototypes.means) != len(classes):
        raise UserError(
            f"the prototypes in {path} are of the classes {', '.join(found) or '(none)'}",
            f"those of this run: {', '.join(classes)}",
            "delete the folder and run again: it is made anew",
        )
    if not prototypes.present.any():
        raise UserError(
            f"the prototypes in {path} are of no class: no image has enough pixels of any",
            remedy="lower `minimum_pixels` of the stage that makes them",
        )
    if not torch.isfinite(prototypes.means).all():
        raise UserError(f"the prototypes in {path} are not finite", remedy="train the stage that they are of again")
    return prototypes
