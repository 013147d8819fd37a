"""Which network the tensors of a trained, published file are of, by their names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from segshift.nets.resnet import DILATIONS
from segshift.nets.weights_layouts import LAYOUTS, LayoutName

Release = Literal["advent", "adaptsegnet", "crst", "proda"]
"""Whose files are known. One release can have several layouts of `segshift.nets.weights`."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Network:
    """The network that a file is of.

    Attributes:
        layout: of its tensors' names.
        name, options: for `build_net`.
        classes: K.
        told: options that no tensor shows: they are what the release has.
    """

    layout: LayoutName
    name: str
    options: dict[str, Any]
    classes: int
    told: tuple[str, ...] = ("normalisation",)


def _outputs(shapes: Shapes, key: str, inputs: int) -> int | None:
    """K of a classifier's convolution that takes `inputs` channels; None where `key` is no such convolution."""
    shape = shapes.get(key, ())
    return shape[0] if len(shape) == 4 and shape[1] == inputs else None


def _resnet(shapes: Shapes, layout: LayoutName, branches: int) -> Network | None:
    """DeepLab-v2 with its classifier called layer6, and layer5 where it has two levels."""
    classes = _outputs(shapes, "layer6.conv2d_list.0.weight", 2048)
    if classes is None:
        return None
    aux = any(key.startswith("layer5.") for key in shapes)
    options = {"aux": aux, "aspp_branches": branches, "normalisation": LAYOUTS[layout].normalisations[0]}
    return Network(layout, "deeplab_v2_resnet101", options, classes, ("aspp_branches", "normalisation"))


def _single_level(shapes: Shapes, layout: LayoutName, branches: int) -> Network | None:
    """DeepLab-v2 whose one classifier is called layer5 and lies on layer4."""
    classes = _outputs(shapes, "layer5.conv2d_list.0.weight", 2048)
    if classes is None or any(key.startswith("layer6.") for key in shapes):
        return None
    options = {"aux": False, "aspp_branches": branches, "normalisation": LAYOUTS[layout].normalisations[0]}
    return Network(layout, "deeplab_v2_resnet101", options, classes, ("aspp_branches", "normalisation"))


def _vgg16(shapes: Shapes) -> Network | None:
    classes = _outputs(shapes, "classifier.conv2d_list.0.weight", 1024)
    if classes is None:
        return None
    options = {"aspp_branches": 2, "normalisation": "caffe"}
    return Network("adaptsegnet_vgg16", "deeplab_v2_vgg16", options, classes, ("aspp_branches", "normalisation"))


def _proda(shapes: Shapes) -> Network | None:
    classes = _outputs(shapes, "layer5.head.1.weight", 256)
    if classes is None:
        return None
    options = {"bn_clr": any(key.startswith("bn_pretrain.") for key in shapes), "normalisation": "none"}
    return Network("proda", "deeplab_v2_resnet101_proda", options, classes)


def _adaptsegnet(shapes: Shapes) -> Network | None:
    # Only two of the four branches take part (methods.md section 1): the loop returns in its first pass.
    return _resnet(shapes, "adaptsegnet", 2) or _single_level(shapes, "adaptsegnet_single", 2) or _vgg16(shapes)


RECOGNISED: dict[Release, Callable[[Shapes], Network | None]] = {
    "advent": lambda shapes: _resnet(shapes, "advent", 4),
    "adaptsegnet": _adaptsegnet,
    "crst": lambda shapes: _single_level(shapes, "crst", 4),
    "proda": _proda,
}
"""The network of a release's file; None where it is none of that release."""


START = 0.01
"""Standard deviation of the branches before training, in all of these releases."""


def remarks(network: Network, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A remark where the outer branches of the classifier look as if the other release had trained them.

    No tensor says whether they take part. Those that do not get no gradient and so no weight decay either: they keep
    the deviation that they started with. A hundred thousand numbers tell it to a few per thousand.
    """
    active = network.options.get("aspp_branches")
    head = next((key for key in ("layer6", "classifier", "layer5") if f"{key}.conv2d_list.3.weight" in tensors), None)
    if active is None or head is None:
        return ()
    outer = [tensors[f"{head}.conv2d_list.{i}.weight"].float() for i in range(2, len(DILATIONS))]
    untouched = all(abs(float(w.std()) / START - 1) < 0.01 and abs(float(w.mean())) < 1e-4 for w in outer)
    if untouched and active == 4:
        return (
            "the branches of dilation 18 and 24 look untrained; AdaptSegNet's release leaves them out: if the file is "
            "one of that release, use --layout adaptsegnet",
        )
    if not untouched and active == 2:
        return (
            "the branches of dilation 18 and 24 look trained, but AdaptSegNet's release leaves them out: if the file "
            "is one of ADVENT, use --layout advent",
        )
    return ()
