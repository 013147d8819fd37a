"""Room on the disk: what the stages of a run that are not finished will write, told before the first of them begins.

Logs, prototypes, and what evaluation and report write are not counted: a few megabytes.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segshift.artefacts.thresholds import BINS
from segshift.config import RunSettings, StageSettings
from segshift.data.cache import missing_bytes
from segshift.engine.labelling import LabelSettings
from segshift.engine.pipeline import Stage, unfinished
from segshift.engine.produce import SAVE_EVERY
from segshift.engine.producing import Answers, SoftLabelSettings
from segshift.errors import UserError
from segshift.methods import Method
from segshift.methods.base import Settings, Task
from segshift.nets.base import SegmentationNet
from segshift.setup import Domains

_IN_CHECKPOINT, _IN_MODEL = 300, 100
"""Bytes that a tensor takes besides its numbers: its name, its place, padding (measured, over all networks)."""

_NOISE = 1.25 / 8
"""Bytes of a PNG for each pixel and bit of entropy, where the pixels are noise (measured; labels take far less)."""

_BLOCK = 4096
"""Bytes that a file takes besides its content at most: a header, a palette, the rest of its last block."""


@dataclass(frozen=True)
class Need:
    """What a stage writes into its folder, in bytes.

    Attributes:
        stays: lies there when the stage is finished.
        peak: most that lies there at a time.
        sure: without so much more room it cannot end; 0 where the content decides how much it compresses.
        there: what lies there now, of an earlier go.
    """

    stays: int
    peak: int
    sure: int = 0
    there: int = 0


@dataclass(frozen=True)
class Sizes:
    """Bytes of the two files of a training stage, and whether it reads images of the target."""

    model: int
    checkpoint: int
    reads_target: bool

    def need(self, *, several: bool, keeps: bool, there: int) -> Need:
        """What the stage writes: a checkpoint beside the one before it, where it writes `several`, and the model beside
        the last one, which it `keeps` or not; `there` is what lies in its folder now."""
        goes_on = 2 * there > self.checkpoint  # one of an earlier go is there
        peak = self.checkpoint + max(self.model, self.checkpoint if several or goes_on else 0)
        # Whoever goes on may be past the last checkpoint.
        return Need(self.model + keeps * self.checkpoint, peak, self.model if goes_on else peak, there)


def with_teacher(task: Task, stage: StageSettings, nets: Mapping[str, SegmentationNet]) -> Task:
    """The task with a stand-in for the teacher that an earlier stage will give: the method keeps it in its checkpoint.
    `nets` has by training stage a network like its own."""
    return replace(task, teacher=copy.deepcopy(nets[stage.teacher]) if stage.teacher is not None else None)


def sizes_of(method: Method) -> Sizes:
    """Bytes of the model and of a checkpoint of a method, which is left as it is."""

    def size(tensors: Iterable[Tensor], each: int) -> int:
        return sum(each + tensor.nbytes for tensor in tensors)

    checkpoint = size(method.state_dict().values(), _IN_CHECKPOINT)
    for tuned in method.tuned().values():
        parameters = [p for group in tuned.optimizer.param_groups for p in group["params"]]
        if not isinstance(tuned.optimizer, torch.optim.SGD):  # Adam and AdamW: two moments, and the number of steps
            checkpoint += 2 * size(parameters, _IN_CHECKPOINT) + (4 + _IN_CHECKPOINT) * len(parameters)
        elif tuned.optimizer.defaults["momentum"]:
            checkpoint += size(parameters, _IN_CHECKPOINT)
    return Sizes(size(method.predictor().state_dict().values(), _IN_MODEL), checkpoint, bool(method.needs))


def produced(settings: Settings, net: SegmentationNet, images: int, size: tuple[int, int]) -> Need:
    """What a stage that produces writes at most, asking a network like `net` about so many images of (w, h)."""
    classes, pixels = net.num_classes, math.prod(size)
    if isinstance(settings, SoftLabelSettings):
        stays = images * (_BLOCK + classes * math.prod(_grid(net, size)))
        return Need(stays, stays)
    if not isinstance(settings, LabelSettings):
        return Need(0, 0)
    each = _png(pixels, classes + 1)
    each += _png(pixels, settings.voting.passes + 2) if settings.voting else 0
    each += _png(pixels, classes) if settings.split else 0
    each += _BLOCK + classes * pixels if settings.soft_alpha else 0
    stays = images * each + (_BLOCK + 2 * classes * pixels if settings.spatial_prior else 0)
    histograms = _BLOCK + 8 * classes * BINS  # until the labels are sealed
    return Need(stays, stays + (2 if images > SAVE_EVERY else 1) * histograms)


def _png(pixels: int, values: int) -> int:
    return _BLOCK + math.ceil(_NOISE * math.log2(values) * pixels)


def _grid(net: SegmentationNet, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the network's answer to an image of (w, h), by two narrow strips of one: its rows, then its columns."""
    answers, (width, height) = Answers(net, torch.device("cpu"), "fp32"), size
    tall = answers(np.zeros((height, min(width, 32), 3), np.uint8)).logits
    wide = answers(np.zeros((min(height, 32), width, 3), np.uint8)).logits
    return tall.shape[-2], wide.shape[-1]


def needs_of(
    settings: RunSettings, domains: Domains, root: Path, stages: list[Stage], sizes: Mapping[str, Sizes | Need]
) -> dict[str, Need]:
    """What the stages of a run in `root` that are not finished, and the image caches that they read, will write, in
    order; `sizes` are those of all stages."""
    left, needs = unfinished(root, stages), dict[str, Need]()
    trained = [size for name in left if isinstance(size := sizes[name], Sizes)]
    if settings.cache and trained:
        assert settings.size != "auto", "resolved before"
        whole = missing_bytes(domains.source, settings.source_size or settings.size, root / "cache")
        if any(size.reads_target for size in trained):
            whole += missing_bytes(domains.target, settings.size, root / "cache")
        needs["cache"] = Need(whole, whole)
    several = {stage.name: stage.steps > settings.checkpoint_every for stage in settings.stages}
    for stage in stages:
        name, size = stage.name, sizes[stage.name]
        if name not in left:
            continue
        if isinstance(size, Need):
            needs[name] = replace(size, there=left[name])
        else:
            needs[name] = size.need(several=several[name], keeps=not stage.unfinished, there=left[name])
    return needs


def at_most(needs: Iterable[Need]) -> int:
    """Bytes that must be free for all of them, one after the other."""
    most = taken = 0
    for need in needs:
        most = max(most, taken + need.peak - need.there)
        taken += need.stays - need.there
    return most


def check_room(out: Path, needs: Mapping[str, Need]) -> str | None:
    """Look whether the disk of `out`, which is there, has room for what is to be written, by its name, in order.

    Returns:
        A line for people where it may be too little; None where it is enough, or the disk does not say what is free.

    Raises:
        UserError: one of them certainly cannot end.
    """
    disk = shutil.disk_usage(out)
    if not disk.total or not needs:  # some network disks say nothing but 0
        return None
    most, given_back = at_most(needs.values()), 0
    wanted, free = _told(most, up=True), _told(disk.free, up=False)
    for name, need in needs.items():
        if disk.free + given_back < need.sure:
            raise UserError(
                f"the disk of {out} has {free} free, and the stage {name} alone writes"
                f" {_told(need.sure, up=True)} there, its checkpoints and its model",
                f"{wanted} for what is left of the run",
                "free some space, or choose an --out on another disk",
            )
        given_back += max(0, need.there - need.stays)  # the checkpoint of an earlier go
    note = (
        f"note: the run will write up to {wanted} below {out}, {free} are free there: free some space, or choose an"
        " --out on another disk; a full disk stops it and loses nothing but the time since the last checkpoint"
    )
    return note if disk.free < most else None


def _told(count: int, *, up: bool) -> str:
    """Bytes in words, rounded so that what is too little never looks like enough."""
    unit, name = (10**9, "GB") if count >= 10**9 else (10**6, "MB")
    return f"{(math.ceil if up else math.floor)(10 * count / unit) / 10:.1f} {name}"
