"""State dicts with the key names and shapes of published files, generated: no file is needed.

Written from the files' own key lists, not from `segshift.nets.weights`. Every tensor is one number seen at all its
places (no memory), and no two tensors hold the same number, so a test can tell where each one went.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The i-th tensor holds i + 1 everywhere; counters of batches are integers."""
    return {
        key: torch.tensor(i + 1, dtype=torch.int64 if key.endswith("tracked") else torch.float32).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }


def _batch_norm(name: str, channels: int, counters: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in BATCH_NORM:
        yield f"{name}.{part}", (channels,)
    if counters:
        yield f"{name}.num_batches_tracked", ()


def resnet101(counters: bool) -> dict[str, tuple[int, ...]]:
    """ResNet-101 without classifier: conv1, bn1, layer1.0.conv1 … as torchvision, ADVENT and ProDA all name them."""
    keys: list[tuple[str, tuple[int, ...]]] = [("conv1.weight", (64, 3, 7, 7)), *_batch_norm("bn1", 64, counters)]
    inputs = 64
    for layer, (blocks, planes) in enumerate(((3, 64), (4, 128), (23, 256), (3, 512)), start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            shapes = ((planes, inputs, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for i, shape in enumerate(shapes, start=1):
                keys += [(f"{at}.conv{i}.weight", shape), *_batch_norm(f"{at}.bn{i}", shape[0], counters)]
            if block == 0:
                keys.append((f"{at}.downsample.0.weight", (4 * planes, inputs, 1, 1)))
                keys += _batch_norm(f"{at}.downsample.1", 4 * planes, counters)
            inputs = 4 * planes
    return dict(keys)


def torchvision_resnet101() -> dict[str, Tensor]:
    """resnet101-5d3b4d8f.pth has no counters."""
    return fill({**resnet101(False), "fc.weight": (1000, 2048), "fc.bias": (1000,)})


def caffe_resnet101(classes: int = 21) -> dict[str, Tensor]:
    """DeepLab_resnet_pretrained_init-f81d91e8.pth: everything behind `Scale.`, with its own four-branch classifier."""
    shapes = {**resnet101(False), **_aspp("layer5", 2048, classes)}
    return fill({f"Scale.{key}": shape for key, shape in shapes.items()})


def _aspp(name: str, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for branch in range(4):
        shapes[f"{name}.conv2d_list.{branch}.weight"] = (classes, inputs, 3, 3)
        shapes[f"{name}.conv2d_list.{branch}.bias"] = (classes,)
    return shapes


def advent(classes: int, counters: bool = True) -> dict[str, Tensor]:
    """Multi-level checkpoint of ADVENT (and, with the same names, of AdaptSegNet)."""
    return fill({**resnet101(counters), **_aspp("layer5", 1024, classes), **_aspp("layer6", 2048, classes)})


def single_level(classes: int, counters: bool = True) -> dict[str, Tensor]:
    """Checkpoint of AdaptSegNet's model/deeplab.py, and of CRST: one classifier, called layer5, on layer4."""
    return fill({**resnet101(counters), **_aspp("layer5", 2048, classes)})


def advent_single(classes: int) -> dict[str, Tensor]:
    """Checkpoint of ADVENT's model/deeplabv2.py without multi_level: the classifier keeps the name layer6."""
    return fill({**resnet101(True), **_aspp("layer6", 2048, classes)})


def deeplab_vgg16(classes: int) -> dict[str, Tensor]:
    """Checkpoint of AdaptSegNet's model/deeplab_vgg.py: `features` renumbered without pool4 and pool5, fc6 and fc7."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 512, 512, 512)
    inputs, position = 3, 0
    for outputs in (*channels, 1024, 1024):
        if outputs == 0:
            position += 1
            continue
        shapes |= {f"features.{position}.weight": (outputs, inputs, 3, 3), f"features.{position}.bias": (outputs,)}
        inputs, position = outputs, position + 2
    return fill({**shapes, **_aspp("classifier", 1024, classes)})


def proda(classes: int, bn_clr: bool) -> dict[str, Tensor]:
    """What is under ["ResNet101"]["model_state"] of a ProDA checkpoint."""
    shapes = resnet101(True)
    for branch, kernel in enumerate((1, 3, 3, 3, 3)):
        at = f"layer5.conv2d_list.{branch}"
        shapes |= {f"{at}.0.weight": (256, 2048, kernel, kernel), f"{at}.0.bias": (256,)}
        shapes |= {f"{at}.1.weight": (256,), f"{at}.1.bias": (256,)}
    at = "layer5.bottleneck"
    shapes |= {f"{at}.0.se.0.weight": (80, 1280), f"{at}.0.se.0.bias": (80,)}
    shapes |= {f"{at}.0.se.2.weight": (1280, 80), f"{at}.0.se.2.bias": (1280,)}
    shapes |= {f"{at}.1.weight": (256, 1280, 3, 3), f"{at}.1.bias": (256,)}
    shapes |= {f"{at}.2.weight": (256,), f"{at}.2.bias": (256,)}
    shapes |= {"layer5.head.1.weight": (classes, 256, 1, 1)}
    if bn_clr:
        shapes |= dict(_batch_norm("bn_pretrain", 2048, True))
    return fill(shapes)


def simclr_v2_of_proda() -> dict[str, Tensor]:
    """What is under ["state_dict"] of ProDA's r101_1x_sk0.pth: names of its own network, with SimCLRv2's classifier."""
    return fill({**resnet101(True), "fc.weight": (1000, 2048), "fc.bias": (1000,)})


def simclr_v2_converted(depths: tuple[int, ...] = (3, 4, 23, 3)) -> dict[str, Tensor]:
    """What is under ["resnet"] of r101_1x_sk0.pth as Separius/SimCLRv2-Pytorch writes it, in its order."""
    shapes: dict[str, tuple[int, ...]] = {"net.0.0.weight": (64, 3, 7, 7), **dict(_batch_norm("net.0.1.0", 64, True))}
    inputs = 64
    for group, (blocks, planes) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            at = f"net.{group}.blocks.{block}"
            if block == 0:
                shapes[f"{at}.projection.shortcut.weight"] = (4 * planes, inputs, 1, 1)
                shapes |= dict(_batch_norm(f"{at}.projection.bn.0", 4 * planes, True))
            convs = {0: (planes, inputs, 1, 1), 2: (planes, planes, 3, 3), 4: (4 * planes, planes, 1, 1)}
            for position, shape in convs.items():
                shapes[f"{at}.net.{position}.weight"] = shape
                shapes |= dict(_batch_norm(f"{at}.net.{position + 1}.0", shape[0], True))
            inputs = 4 * planes
    return fill({**shapes, "fc.weight": (1000, 2048), "fc.bias": (1000,)})


def simclr_v2_head() -> dict[str, Tensor]:
    """What is under ["head"] beside it: the projection head of the contrastive loss."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, outputs in ((0, 2048), (3, 2048), (6, 128)):
        shapes[f"layers.{layer}.weight"] = (outputs, 2048)
        shapes |= dict(_batch_norm(f"layers.{layer + 1}", outputs, True))
    return fill(shapes)


def torchvision_vgg16() -> dict[str, Tensor]:
    """vgg16: `features` by position (ReLU and pools have no tensors), three linear layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs, position = 3, 0
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if channels == 0:
            position += 1
            continue
        shapes |= {f"features.{position}.weight": (channels, inputs, 3, 3), f"features.{position}.bias": (channels,)}
        inputs, position = channels, position + 2
    for place, (out, into) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        shapes |= {f"classifier.{place}.weight": (out, into), f"classifier.{place}.bias": (out,)}
    return fill(shapes)
