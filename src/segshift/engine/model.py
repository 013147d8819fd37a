"""A trained model as two files, model.safetensors and config.json: loads without any training settings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from segshift.artefacts.plain_yaml import parse_yaml
from segshift.artefacts.store import atomic_path, make_folder, read_json, sha256, write_json
from segshift.data.images import load_resized
from segshift.data.tensors import as_float, to_tensor
from segshift.engine.inference import Options, decide, logits_at
from segshift.errors import UserError, gist, nearest
from segshift.nets import NETS
from segshift.nets.base import SegmentationNet
from segshift.types import ClassSet

FORMAT = 1


@dataclass(frozen=True)
class Segmentation:
    """A model's answer for one image of H x W pixels.

    Attributes:
        ids: (H, W) uint8 train ids.
        confidence: (H, W) float32, probability of the class in `ids`.
    """

    ids: NDArray[np.uint8]
    confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A trained network with what is needed to use it.

    Attributes:
        net: in evaluation mode.
        classes: what its K outputs mean.
        size: width, height that images are resized to before they enter the network.
        config: the content of config.json.
    """

    net: SegmentationNet
    classes: ClassSet
    size: tuple[int, int]
    config: dict[str, Any]

    def predict(self, image: str | Path | Image.Image, options: Options | None = None) -> Segmentation:
        """Segment one image, at its own size.

        Args:
            image: a file, or a PIL image of any mode.
            options: flip, scales and sliding window at test time.
        """
        if isinstance(image, Image.Image):
            size, tensor = (image.height, image.width), to_tensor(image, self.size)
        else:
            pixels, size = load_resized(Path(image), self.size)  # as evaluation and prediction of folders do
            tensor = as_float(pixels)
        device = next(self.net.parameters()).device
        ids, confidence = decide(logits_at([self.net], tensor[None].to(device), size, options))
        return Segmentation(ids[0].cpu().numpy(), confidence[0].cpu().numpy())


def build_net(name: str, num_classes: int, options: dict[str, Any]) -> SegmentationNet:
    """A network by its name in `NETS`.

    Raises:
        UserError: no network has this name, or it has no such option.
    """
    if name not in NETS:
        raise UserError(f"unknown network {name!r}; {nearest(name, NETS)}")
    known = list(inspect.signature(NETS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            raise UserError(
                f"network {name} has no option {option!r}; {nearest(option, known)}", remedy="mend net.options"
            )
    try:
        return NETS[name](num_classes, **options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # torch refuses negative widths so
        raise UserError(
            f"network {name}: {gist(error)}", remedy="see the network's options in docs/networks.md"
        ) from error


def save_model(
    folder: Path, net: SegmentationNet, name: str, options: dict[str, Any], classes: ClassSet, size: tuple[int, int]
) -> None:
    """Write `net` as model.safetensors and, last, config.json."""
    make_folder(folder)
    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    path = folder / "model.safetensors"
    with atomic_path(path) as temporary:
        # Not save_file: it writes to a file of its own name beside this one, which a killed process would leave.
        temporary.write_bytes(safetensors.torch.save(weights))
    config = {
        "format": FORMAT,
        "net": {"name": name, "options": options},
        "classes": {"names": list(classes.names), "palette": [list(colour) for colour in classes.palette]},
        "size": list(size),
        "sha256": sha256(path),
    }
    write_json(folder / "config.json", config)


def model_folder(path: Path) -> Path:
    """The folder of model files that `path` means: a model's own, a stage's, or a run's last training stage.

    Raises:
        UserError: there is none, or the run's last stage is not finished.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", "a run, a stage of a run, or a folder with model.safetensors")
    for candidate in (path, path / "model"):
        if (candidate / "config.json").exists():
            return candidate
    known = {file.parent for name in ("stage.json", "model") for file in path.glob(f"[0-9][0-9]-*/{name}")}
    stages = sorted(stage for stage in known if stage.suffix != ".aside")
    last = _planned_last(path)
    if stages and last is not None and last not in stages:
        stages.append(last)
    finished = [stage for stage in stages if (stage / "model" / "config.json").exists()]
    if finished and finished[-1] == stages[-1]:
        return finished[-1] / "model"
    if finished:
        # Its source-only model must not pass for the adapted one.
        raise UserError(
            f"{path} is not finished: {stages[-1].name} has no model yet",
            "a finished run",
            f"run its command again: it goes on; or name the stage that you mean: {finished[-1]}",
        )
    raise UserError(
        f"{path} holds no trained model",
        "a run, a stage of a run, or a folder with model.safetensors and config.json",
        "if the run was interrupted, run its command again: it goes on",
    )


def _planned_last(run: Path) -> Path | None:
    """The folder that a run's last stage has, or will have, by its run.yaml; None where that says nothing."""
    try:
        stages = parse_yaml((run / "run.yaml").read_text(encoding="utf-8"))["stages"]
        return run / f"{len(stages):02d}-{stages[-1]['name']}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


def class_set(config: Any) -> ClassSet:
    """The classes that a model's config.json names; LookupError, TypeError or ValueError where it is damaged."""
    names, palette = config["classes"]["names"], config["classes"]["palette"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its classes are no list of texts")
    return ClassSet(tuple(names), tuple((r, g, b) for r, g, b in palette))


def load_model(path: Path, device: torch.device | None = None) -> Model:
    """Load a model that segshift wrote.

    Args:
        path: a run, a stage of a run, or a model's folder.

    Raises:
        UserError: there is none, or its files are damaged or do not fit each other.
    """
    folder = model_folder(path)
    config = read_json(folder / "config.json")
    weights = folder / "model.safetensors"
    try:
        if config["format"] != FORMAT:
            raise UserError(f"{folder} is of format {config['format']}", f"format {FORMAT}", "update segshift")
        classes = class_set(config)
        if sha256(weights) != config["sha256"]:
            raise ValueError(f"{weights.name} is not the file that was written (its sha256 differs)")
        # Not load_file: it refuses paths that are not UTF-8. Before the network, which is as large, is built: here file
        # and tensors are in memory at once.
        state = safetensors.torch.load(weights.read_bytes())
        name, options = config["net"]["name"], dict(config["net"]["options"])
        if name in NETS and "weights" in inspect.signature(NETS[name]).parameters:
            options["weights"] = "none"  # they come from the file: the builder need not read ImageNet's
        net = build_net(name, len(classes), options)
        net.load_state_dict(state)
        size = (int(config["size"][0]), int(config["size"][1]))
    except FileNotFoundError as error:
        raise UserError(f"{weights} does not exist", remedy="run the training stage again") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"the model in {folder} cannot be loaded: {gist(error)}",
            remedy="restore its files, or train the stage again",
        ) from error
    return Model(net.to(device or torch.device("cpu")).eval(), classes, size, config)
