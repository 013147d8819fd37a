"""What the tests of labels stages share: a network whose probabilities are plain to see, images, and restatements."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segshift.artefacts.pseudo_labels import read_ids
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import load_resized
from segshift.engine.labelling import Labeller, LabelSettings
from segshift.nets.base import SegmentationNet
from segshift.types import IGNORE, ClassSet, Prediction

CLASSES = ClassSet(
    ("red", "green", "blue", "never"), ((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0))
)  # no pixel is ever predicted as the last one
SIZE = (20, 14)
"""Width and height that images are fed at."""

ODD = os.fsdecode(b"b.1/caf\xe9.x")
"""An image's name in a folder with a dot, with bytes that are no text."""

NAMES = ("a/000", "a/001", ODD, "c", "d/e/5", "dim")
"""In the order of a domain; nobody can be sure of any pixel of the last one."""


class Channels(SegmentationNet):
    """Logits are the channels of the image, pixel by pixel: upsampling has nothing to do."""

    def __init__(self, gain: float = 6.0) -> None:
        super().__init__(len(CLASSES), "train")
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, image: Tensor) -> Prediction:
        nothing = torch.full_like(image[:, :1], -30.0)
        return Prediction(torch.cat([self.gain * image, nothing], dim=1), image)

    def head_modules(self) -> list[nn.Module]:
        return []


def write_images(root: Path, names: tuple[str, ...] = NAMES, size: tuple[int, int] = SIZE) -> Path:
    """Smooth random images below images/, and labels/ in whose blocks every class but the last and void occur."""
    for index, name in enumerate(names):
        chance = np.random.default_rng(index)
        small = chance.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        if name == "dim":
            small //= 40
        blocks = chance.choice(np.array([0, 1, 2, 255], np.uint8), (4, 5), p=[0.4, 0.3, 0.2, 0.1])
        picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        for kind, image in (("images", picture), ("labels", Image.fromarray(blocks))):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST).save(path)
    return root


def domain_at(root: Path, labelled: bool = False) -> Domain:
    return open_domain(DomainSettings(root=root), CLASSES, labelled=labelled, name="target")


def labeller(prior: Tensor | None = None, **settings: Any) -> Labeller:
    return Labeller(Channels().eval(), SIZE, LabelSettings(**settings), torch.device("cpu"), "fp32", prior)


def probabilities_of(domain: Domain, index: int) -> Tensor:
    """(K, h, w) what `Channels` says of an image."""
    pixels, _ = load_resized(domain.items[index].image, SIZE)
    logits = Channels()(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).logits
    probabilities: Tensor = logits[0].detach().softmax(dim=0)
    return probabilities


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def maps(folder: Path, part: str, domain: Domain) -> np.ndarray:
    """(N, h, w) of all images."""
    return np.stack([read_ids(folder / part / f"{item.name}.png") for item in domain.items])


def restated_stages(folder: Path, domain: Domain) -> np.ndarray:
    """(1 + P, N, h, w) labels by the thresholds alone and after each voting pass, from labels/ and passes/ alone."""
    labels = maps(folder, "labels", domain)
    if not (folder / "passes").exists():
        return labels[None]
    passes, last = maps(folder, "passes", domain), len(read(folder / "statistics.json")["labelled"])
    return np.stack([np.where(passes <= number, labels, IGNORE) for number in range(last)])


def counts(labels: np.ndarray) -> list[int]:
    """Pixels of each class."""
    return [int((labels == k).sum()) for k in range(len(CLASSES))]
