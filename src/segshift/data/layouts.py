"""Where the known datasets keep images and labels, and what their file names end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from segshift.data import tables
from segshift.data.tables import LabelTable

LayoutName = Literal[
    "auto", "folders", "gta5", "synthia", "cityscapes", "camvid", "carla", "carla_0_9_13", "acdc"
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A dataset's folders and names.

    Attributes:
        images: folders that may hold the images, the first that exists counts; "" is the root itself.
        labels: folders that may hold the labels, likewise.
        image_ends: endings of an image's stem that are no part of its name; where set, only such files count.
        label_ends: endings of a label's stem and the table of such files; the first ending that occurs counts.
        table: of label files whose ending says nothing; None: train ids.
        channel: see `segshift.data.labels.Decoder`.
        must_split: several splits lie side by side, so one has to be chosen.
        split_depth: levels of folders between the image folder and those of the splits (ACDC: the weather, so 1);
            None: the split's folder is directly below the image folder or directly above it.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    image_ends: tuple[str, ...] = ()
    label_ends: Mapping[str, LabelTable] = field(default_factory=dict)
    table: LabelTable | None = None
    channel: Literal["auto", "first"] = "auto"
    must_split: bool = False
    split_depth: int | None = None


_CITYSCAPES_ENDS: Mapping[str, LabelTable] = {
    "_gtFine_labelIds": tables.CITYSCAPES_IDS,
    "_gtFine_labelTrainIds": tables.CITYSCAPES_TRAIN_IDS,
    "_gtFine_color": tables.CITYSCAPES_COLOUR,
}
_ACDC_ENDS: Mapping[str, LabelTable] = {
    "_gt_labelIds": tables.CITYSCAPES_IDS,
    "_gt_labelTrainIds": tables.CITYSCAPES_TRAIN_IDS,
    "_gt_labelColor": tables.CITYSCAPES_COLOUR,
}

LAYOUTS: Mapping[str, Layout] = {
    "folders": Layout(
        ("images", "imgs", "image", "rgb", ""),
        ("labels", "masks", "label", "mask", "annotations"),
        label_ends={**_CITYSCAPES_ENDS, **_ACDC_ENDS},
    ),
    "gta5": Layout(("images",), ("labels",), table=tables.CITYSCAPES_IDS),
    "synthia": Layout(("RGB",), ("GT/LABELS", "LABELS"), table=tables.SYNTHIA, channel="first"),
    "cityscapes": Layout(
        ("leftImg8bit",), ("gtFine",), ("_leftImg8bit",), _CITYSCAPES_ENDS, tables.CITYSCAPES_IDS, must_split=True
    ),
    "camvid": Layout(
        ("701_StillsRaw_full", "images", ""),
        ("LabeledApproved_full", "labels"),
        label_ends={"_L": tables.CAMVID_COLOURS, "_P": tables.CAMVID_COLOURS},
        table=tables.CAMVID_11,
    ),
    "carla": Layout(
        ("rgb", "CameraRGB", "images"), ("semantic", "CameraSeg", "labels"), table=tables.CARLA, channel="first"
    ),
    "carla_0_9_13": Layout(
        ("rgb", "CameraRGB", "images"), ("semantic", "CameraSeg", "labels"), table=tables.CARLA_OLD, channel="first"
    ),
    "acdc": Layout(
        ("rgb_anon",), ("gt",), ("_rgb_anon",), _ACDC_ENDS, tables.CITYSCAPES_IDS, must_split=True, split_depth=1
    ),
}
"""The layouts by name. camvid also knows the SegNet release (`train/` beside `trainannot/`), see `domains`."""

IMAGE_ENDS: tuple[str, ...] = ("_leftImg8bit", "_rgb_anon")
"""Endings of image stems that are stripped in plain folders too."""

LABEL_ENDS: tuple[str, ...] = ("_labelTrainIds", "_labelIds", "_label", "_labels", "_mask", "_gt", "_seg", "_L")
"""Endings of label stems that plain folders may have; tried where the bare stem is no image's."""

LABEL_FOLDERS = frozenset(
    {"labels", "masks", "label", "mask", "annotations", "gt", "gtfine", "gtcoarse", "semantic", "cameraseg",
     "labeledapproved_full", "trainannot", "valannot", "testannot"}
)  # fmt: skip
"""Folder names, in lower case, that are not searched for images where they lie among them."""
