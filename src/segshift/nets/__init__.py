"""Segmentation networks by name, and the discriminators."""

from __future__ import annotations

from collections.abc import Callable

from segshift.nets.base import BatchNormPolicy, SegmentationNet
from segshift.nets.deeplab_lite import deeplab_lite
from segshift.nets.deeplab_v2 import deeplab_v2_resnet101, deeplab_v2_vgg16
from segshift.nets.deeplab_v2_proda import deeplab_v2_resnet101_proda
from segshift.nets.discriminators import CategoryDiscriminators, PatchDiscriminator
from segshift.nets.normalise import Normalisation
from segshift.nets.weights import LoadReport, load_published

NETS: dict[str, Callable[..., SegmentationNet]] = {
    "deeplab_v2_resnet101": deeplab_v2_resnet101,
    "deeplab_v2_vgg16": deeplab_v2_vgg16,
    "deeplab_lite": deeplab_lite,
    "deeplab_v2_resnet101_proda": deeplab_v2_resnet101_proda,
}
"""Name → builder(num_classes, **options); the builder's signature and docstring say which options there are."""

__all__ = [
    "NETS",
    "BatchNormPolicy",
    "CategoryDiscriminators",
    "LoadReport",
    "Normalisation",
    "PatchDiscriminator",
    "SegmentationNet",
    "load_published",
]
