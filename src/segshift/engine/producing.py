"""What ProDA starts from: soft labels of whole images, and the prototypes of the classes; both passes are resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from segshift import ops
from segshift.artefacts.prototypes import FILE, Prototypes, write_prototypes
from segshift.artefacts.pseudo_labels import write_soft
from segshift.artefacts.soft_labels import INDEX
from segshift.artefacts.store import SEAL, damaged, make_folder, seal, write_json
from segshift.data.domains import Domain
from segshift.engine.inference import as_input, autocast, evaluating
from segshift.engine.produce import produce
from segshift.methods.base import Settings
from segshift.nets.base import SegmentationNet
from segshift.types import Prediction

STATE = "produce.state.npz"


class PrototypeSettings(Settings):
    """How prototypes are counted. Default: the ProDA release (methods.md section 10.3)."""

    minimum_pixels: int = Field(10, ge=1, description="an image with fewer pixels of a class says nothing about it")


class SoftLabelSettings(Settings):
    """Soft labels have no settings: the network in evaluation mode, one pass, no flip (methods.md section 10.3)."""


class Answers:
    """A network asked about images one at a time, in evaluation mode, on its own grid."""

    def __init__(self, net: SegmentationNet, device: torch.device, precision: str) -> None:
        self.net, self.device, self.precision = net.to(device), device, precision

    def __call__(self, pixels: np.ndarray) -> Prediction:
        with torch.no_grad(), evaluating([self.net]), autocast(self.device, self.precision):
            answer: Prediction = self.net(as_input(pixels, self.device))
        return Prediction(answer.logits.float(), answer.features.float())


def make_soft_labels(
    answers: Answers,
    domain: Domain,
    size: tuple[int, int],
    folder: Path,
    say: Callable[[str], None],
    *,
    workers: int = 1,
) -> None:
    """Write the softmax of every image, on the network's grid (see `artefacts.soft_labels`); called again, it goes on.

    Args:
        size: (w, h) of the images.
        say: told of the size before anything is written.

    Raises:
        UserError, Interrupted: see `produce`.
    """

    def task(index: int, pixels: np.ndarray) -> None:
        write_soft(_soft_file(folder, domain.items[index].name), _distribution(answers(pixels)))

    def make() -> Iterable[Path]:
        grid = answers(np.zeros((size[1], size[0], 3), np.uint8)).logits.shape[-2:]
        megabytes = len(domain) * len(domain.classes) * grid[0] * grid[1] / 1e6
        shape = f"{len(domain)} of {grid[1]}x{grid[0]} cells and {len(domain.classes)} classes"
        say(f"soft labels: {shape}, {megabytes:.1f} MB at most")
        produce(domain, size, task, {}, folder / STATE, title="soft labels", workers=workers)
        write_json(folder / INDEX, {"classes": list(domain.classes.names), "grid": [grid[1], grid[0]]})
        return [folder / INDEX, *(_soft_file(folder, item.name) for item in domain.items)]

    _finish(folder, "soft_labels", make)


def _soft_file(folder: Path, name: str) -> Path:
    return folder / "soft" / f"{name}.npz"


def _distribution(answer: Prediction) -> Float[np.ndarray, "h w K"]:
    array: Float[np.ndarray, "h w K"] = answer.logits[0].softmax(dim=0).permute(1, 2, 0).cpu().numpy()
    return array


def make_prototypes(
    answers: Answers,
    domain: Domain,
    size: tuple[int, int],
    folder: Path,
    settings: PrototypeSettings,
    *,
    workers: int = 1,
) -> None:
    """Write each class's prototype: the mean, over the images that have enough pixels of it, of the mean feature of the
    pixels predicted as it. Constant memory; called again, it goes on.

    Source: ProDA release, calc_prototype.py (methods.md section 10.3), which goes over the same images four times and
    counts to 3000: from there on it is a moving average, here all images weigh the same.

    Raises:
        UserError, Interrupted: see `produce`.
    """
    classes = len(domain.classes)

    def make() -> Iterable[Path]:
        features = answers(np.zeros((size[1], size[0], 3), np.uint8)).features.shape[1]
        sums, images = np.zeros((classes, features)), np.zeros(classes, np.int64)

        def task(_: int, pixels: np.ndarray) -> None:
            answer = answers(pixels)
            means, counts = ops.class_means(answer.features, answer.logits.argmax(dim=1), classes)
            enough = (counts[0] >= settings.minimum_pixels).cpu().numpy()
            sums[enough] += means[0].double().cpu().numpy()[enough]
            images[enough] += 1

        memory = {"sums": sums, "images": images}
        produce(domain, size, task, memory, folder / STATE, title="prototypes", workers=workers)
        means: Tensor = torch.from_numpy(sums / np.maximum(images, 1)[:, None]).float()
        return [write_prototypes(folder, Prototypes(means, torch.from_numpy(images)), domain.classes.names)]

    _finish(folder, "prototypes", make)


def _finish(folder: Path, kind: str, make: Callable[[], Iterable[Path]]) -> None:
    """Bring an artefact to its seal; one that was sealed and is damaged now is made anew."""
    if (folder / SEAL).exists() and damaged(folder):
        shutil.rmtree(folder / "soft", ignore_errors=True)
        for name in (STATE, INDEX, FILE, SEAL):  # the seal last: until then it is known to be damaged
            (folder / name).unlink(missing_ok=True)
    if not (folder / SEAL).exists():
        make_folder(folder)
        files = list(make())
        if not all(file.is_file() for file in files):  # what an earlier go had written was removed since
            (folder / STATE).unlink()
            files = list(make())
        seal(folder, kind, files)
    (folder / STATE).unlink(missing_ok=True)
