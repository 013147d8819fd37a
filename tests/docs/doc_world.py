"""The small world in which the documentation's commands run: the folders and files that its pages speak of."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segshift import api, published
from segshift.config import AugmentSettings, RunSettings
from segshift.data.classes import CITYSCAPES_19
from segshift.data.domains import DomainSettings
from segshift.nets import NETS, resnet
from segshift.nets.base import BatchNormPolicy
from tiny import TwoLayers
from workbench import segshift

sys.path.append(str(Path(__file__).parents[1] / "nets"))

import published_keys

NAMES = ("road", "sky", "car", "person", "vehicle")
COLOURS = ((128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60))
"""Colours of the first four classes, which the labels show; the fifth is there for pages that rename a class to it."""

WIDTH, HEIGHT = 64, 48
SIZE, CROP = (WIDTH, HEIGHT), (48, 32)
STEPS, IMAGES = 2, 3
DOMAIN_PARTS = ("source", "target", "val", "truth")

# ---- a network that costs next to nothing, under the name and with the options of the default one


class StandIn(TwoLayers):
    """Two strided convolutions with a batch norm; like `deeplab_lite` it has D features and perhaps a second head."""

    def __init__(self, num_classes: int, batch_norm: BatchNormPolicy, aux: bool) -> None:
        super().__init__(num_classes, batch_norm, has_aux=aux)
        self.num_features = 12
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(12, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=2.0)  # sure of much from the start, so that labels differ
        self.aux_classifier = nn.Conv2d(8, num_classes, 1, stride=2) if aux else None
        self.apply_batch_norm_policy()


def stand_in(
    num_classes: int,
    *,
    batch_norm: BatchNormPolicy = "train",
    weights: Literal["imagenet", "none"] = "imagenet",
    aux: bool = False,
    width: int = 128,
    dilations: tuple[int, ...] = (2, 4, 8),
) -> StandIn:
    """Instead of `deeplab_lite`: the same options; `weights`, `width` and `dilations` have no effect."""
    return StandIn(num_classes, batch_norm, aux)


_stage = resnet._stage


def thin_stage(inputs: int, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    """A stage of ResNet-101 with its first block alone: the layouts, options and heads of the networks stay."""
    return _stage(inputs, planes, blocks=1, stride=stride, dilation=dilation)


# ---- settings made small, after everything that the command says was read and found valid


def shrunk(settings: RunSettings) -> RunSettings:
    """The same run with tiny images, two steps a stage and a few images a domain."""
    stages = tuple(
        stage.model_copy(
            update={
                "steps": min(stage.steps, STEPS),
                "source_augment": _cut(stage.source_augment),
                "target_augment": _cut(stage.target_augment),
            }
        )
        for stage in settings.stages
    )
    small: dict[str, Any] = {"size": SIZE, "source_size": settings.source_size and SIZE, "stages": stages}
    small |= {"batch_size": 1, "workers": 0, "panels": min(settings.panels, 2), "precision": "fp32"}
    small |= {part: _cut(getattr(settings, part)) for part in ("source_augment", "target_augment")}
    small |= {part: _few(getattr(settings, part)) for part in DOMAIN_PARTS}
    return settings.model_copy(update=small)


def _cut(augment: AugmentSettings | None) -> AugmentSettings | None:
    return augment and (augment.model_copy(update={"crop": CROP}) if augment.crop else augment)


def _few(domain: DomainSettings | None) -> DomainSettings | None:
    return domain and domain.model_copy(update={"limit": min(domain.limit or 2 * IMAGES, 2 * IMAGES)})


COMPOSE, TRUE_NET = api.compose, NETS["deeplab_lite"]


@contextmanager
def small_runs(true_net: bool = False) -> Iterator[None]:
    """While this holds, every run is shrunk, the default network is the stand-in (unless the true one is wanted), and
    ResNet-101 is thin."""

    def small(*args: Any, **kwargs: Any) -> RunSettings:
        return shrunk(COMPOSE(*args, **kwargs))

    net = TRUE_NET if true_net else stand_in
    # The papers' sizes would take minutes on a CPU.
    protocols = {name: dataclasses.replace(each, size=SIZE) for name, each in published.PROTOCOLS.items()}
    with (
        mock.patch.object(api, "compose", small),
        mock.patch.dict(NETS, {"deeplab_lite": net}),
        mock.patch.dict(published.PROTOCOLS, protocols),
        mock.patch.object(resnet, "_stage", thin_stage),
    ):
        yield


# ---- images and labels


def ids_of(seed: int, values: tuple[int, ...] = (0, 1, 2, 3)) -> np.ndarray:
    """Blocks of some label values, (HEIGHT, WIDTH); every value is there while there are at most twelve."""
    blocks = np.random.default_rng(seed).permutation(np.resize(np.array(values), 12)).reshape(3, 4)
    return np.kron(blocks, np.ones((HEIGHT // 3, WIDTH // 4), int))


def painted(ids: np.ndarray, colours: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    """Ids as colours, (H, W, 3)."""
    picture = np.zeros((*ids.shape, 3), np.uint8)
    for value, colour in colours.items():
        picture[ids == value] = colour
    return picture


def photograph(ids: np.ndarray, seed: int) -> np.ndarray:
    """An image that shows what the ids say, with noise, (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(0, 60, (*ids.shape, 3))
    return (painted(ids, dict(enumerate(COLOURS))) * 0.7 + noise).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def make_domain(root: Path, labelled: bool, suffix: str = ".png", seed: int = 0, coloured: bool = False) -> Path:
    """A plain folder with `IMAGES` images and, if asked for, labels: of ids, or painted in `COLOURS`."""
    for index in range(IMAGES):
        ids = ids_of(seed + index)
        save(root / "images" / f"{index:04d}{suffix}", photograph(ids, seed + index))
        if labelled:
            values = painted(ids, dict(enumerate(COLOURS))) if coloured else ids.astype(np.uint8)
            save(root / "labels" / f"{index:04d}.png", values)
    return root


# ---- the folder that a page's session begins with


def make_world(root: Path) -> Path:
    """Write what the pages take as given: the folders of the README, class list, weak labels, exports of other tools.

    Returns:
        The folder to call the commands in. Beside it lies `shared/data`, as the evidence's commands want it.
    """
    home = root / "home"
    make_domain(home / "synthetic", labelled=True)
    make_domain(home / "camera", labelled=False, suffix=".jpg", seed=20)
    make_domain(home / "camera_val", labelled=True, suffix=".jpg", seed=40)
    (home / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    shutil.copytree(home / "camera" / "images", home / "frames")
    shutil.copy(home / "camera" / "images" / "0000.jpg", home / "frame.jpg")
    for name in ("weak", "check"):
        (home / f"{name}.jsonl").write_text("".join(_weak_lines()))
    rows = [f"{index:04d}.jpg,{5 + index},7,car\n" for index in range(IMAGES)]
    (home / "points.csv").write_text("image,x,y,class\n" + "".join(rows))
    (home / "val.yaml").write_text("root: camera_val\n")
    return home


def _weak_lines() -> Iterator[str]:
    for index in range(IMAGES):
        ids = ids_of(20 + index)
        points = []
        for value in range(len(COLOURS)):
            y, x = np.argwhere(ids == value)[40]
            points.append(f'[{x}, {y}, "{NAMES[value]}"]')
        tags = ", ".join(f'"{name}"' for name in NAMES[: len(COLOURS)])
        yield f'{{"image": "{index:04d}.jpg", "tags": [{tags}], "points": [{", ".join(points)}], "size": [64, 48]}}\n'


def make_export(path: Path) -> None:
    """What Label Studio would export of the weak labels."""
    told = segshift("labels", "export", "weak.jsonl", "--format", "label-studio", "--images", "camera/images",
                    "--classes", "classes.txt", "--out", path)  # fmt: skip
    assert told.code == 0, told


def make_evidence(home: Path) -> None:
    """The data of docs/results.md: rendered streets and CamVid, beside the folder that commands are called in."""
    data = home.parent / "shared" / "data"
    make_domain(data / "city", labelled=True)
    make_domain(data / "camvid" / "train", labelled=False, suffix=".jpg", seed=20)
    make_domain(data / "camvid" / "train_truth", labelled=True, suffix=".jpg", seed=20)
    make_domain(data / "camvid" / "val", labelled=True, suffix=".jpg", seed=40)
    shutil.copy(home / "weak.jsonl", data / "camvid" / "train" / "weak.jsonl")
    (data / "classes.json").write_text('{"classes": ["' + '", "'.join(NAMES) + '"]}')
    make_domain(home / "runs" / "real" / "oracle-data", labelled=True)


def make_gta5(root: Path) -> None:
    """Images and labels as GTA5 has them: Cityscapes ids (road 7, sky 23, person 24, car 26)."""
    for index in range(1, IMAGES + 1):
        save(root / "images" / f"{index:05d}.png", photograph(ids_of(index), index))
        save(root / "labels" / f"{index:05d}.png", ids_of(index, (7, 23, 26, 24)).astype(np.uint8))


def make_cityscapes(root: Path) -> None:
    """Two splits of Cityscapes, with its folders and names."""
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for index in range(IMAGES):
            name, seed = f"{city}_{index:06d}_000019", 50 + index
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", photograph(ids_of(seed), seed))
            ids = ids_of(seed, (7, 23, 26, 24)).astype(np.uint8)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)


BEHIND_THE_FIRST = re.compile(r"layer[1-4]\.[1-9]\d*\.")
"""Names of the tensors that the thin network does not have."""


def make_weights(path: Path, state: Mapping[str, Any]) -> None:
    """A file with the tensors of a published one, as far as the thin network goes; all are 0, scales and variances 1,
    so that nothing overflows."""

    def tame(part: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in part.items() if not BEHIND_THE_FIRST.search(key)}
        return {key: tame(value) if isinstance(value, Mapping) else plain(key, value) for key, value in kept.items()}

    def plain(key: str, value: Tensor) -> Tensor:
        one = value.dim() == 1 and key.endswith((".weight", "running_var"))
        return torch.tensor(float(one)).to(value.dtype).expand(value.shape)  # takes no space, in the file neither

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tame(state), path)


def _weights(name: str, state: Callable[[], Mapping[str, Any]]) -> Callable[[Path], None]:
    return lambda home: make_weights(home / name, state())


def _cityscapes_19(path: Path) -> None:
    path.write_text("".join(f"{name}\n" for name in CITYSCAPES_19))


def _camera_labels(home: Path) -> None:
    for index in range(IMAGES):
        save(home / "camera" / "labels" / f"{index:04d}.png", ids_of(20 + index).astype(np.uint8))


def make_painted(home: Path) -> None:
    """Two folders with labels in colours and one without labels, as docs/own_data.md has them."""
    make_domain(home / "rendered", labelled=True, suffix=".jpg", coloured=True)
    make_domain(home / "dashcam", labelled=False, suffix=".jpg", seed=20)
    make_domain(home / "dashcam_val", labelled=True, suffix=".jpg", seed=40, coloured=True)


PUBLISHED: dict[str, Callable[[], Mapping[str, Any]]] = {
    "weights/resnet101-5d3b4d8f.pth": published_keys.torchvision_resnet101,
    "weights/r101_1x_sk0.pth": published_keys.simclr_v2_of_proda,
    "weights/DeepLab_resnet_pretrained_imagenet.pth": published_keys.caffe_resnet101,
    "advent_pretrained.pth": lambda: published_keys.advent(19),
    "gta2cityscapes_advent.pth": lambda: published_keys.advent(19),
    "gta2cityscapes_minent_ER.pth": lambda: published_keys.advent(19),
    "from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl": lambda: {
        "ResNet101": {"model_state": published_keys.proda(19, bn_clr=True)}
    },
}
SHELF: dict[str, Callable[[Path], None]] = {
    "rendered/": make_painted,
    "export.json": lambda home: make_export(home / "export.json"),
    "../shared/data": make_evidence,
    "gta5": lambda home: make_gta5(home / "gta5"),
    "data/gta5": lambda home: make_gta5(home / "data" / "gta5"),
    "data/cityscapes": lambda home: make_cityscapes(home / "data" / "cityscapes"),
    "labels: labels": _camera_labels,
    "cityscapes_19.txt": lambda home: _cityscapes_19(home / "cityscapes_19.txt"),
    **{name: _weights(name, state) for name, state in PUBLISHED.items()},
}
"""What is made only where a block names it, by the words that name it."""
