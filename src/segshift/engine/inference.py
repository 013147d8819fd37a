"""From images to logits at any resolution: several networks, scales, flips and sliding windows, averaged as logits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from segshift.data.tensors import as_float
from segshift.errors import UserError
from segshift.methods.base import Settings
from segshift.nets.base import SegmentationNet
from segshift.ops import upsample
from segshift.types import ClassSet, Prediction


class Options(Settings):
    """Test-time options. The defaults are the protocol of ADVENT and AdaptSegNet: one pass over the whole image."""

    window: tuple[int, int] | None = Field(None, description="(width, height) of a sliding window; None: whole image")
    overlap: float = Field(1 / 3, ge=0, lt=1, description="share of a window that the next one covers (mmseg: 1/3)")
    scales: tuple[float, ...] = Field((1.0,), min_length=1, description="e.g. 0.9,1,1.2 as CRST, cbst.sh")
    flip: bool = Field(False, description="average with the mirrored image")

    @field_validator("scales")
    @classmethod
    def _positive_scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < scale <= 8 for scale in value):
            raise ValueError("every scale must be above 0 and at most 8")
        return value

    @field_validator("window")
    @classmethod
    def _positive_window(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("a window is (width, height) in pixels, both at least 1")
        return value


@contextlib.contextmanager
def evaluating(nets: Sequence[SegmentationNet]) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bfloat16 for precision `bf16`; for `fp32` a context that changes nothing.

    Raises:
        UserError: another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r}", "fp32 or bf16", "write --set precision=fp32")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions in float32 proper inside: on GPUs since Ampere torch rounds their factors to TF32, 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def as_input(pixels: UInt8[np.ndarray, "h w 3"], device: torch.device) -> Float[Tensor, "1 3 h w"]:
    """An image's pixels as a batch of one that networks take: float32 RGB in [0, 1] on `device`."""
    return as_float(pixels)[None].to(device)


def check_predictors(predictors: Sequence[SegmentationNet], classes: ClassSet) -> None:
    """Refuse an empty ensemble, and a network made for another number of classes.

    Raises:
        UserError: says both numbers.
    """
    if not predictors:
        raise UserError("no model was given", "at least one", "name a run folder or a model folder")
    for net in predictors:
        if net.num_classes != len(classes):
            raise UserError(
                f"the model predicts {net.num_classes} classes, the class list has {len(classes)}",
                "the class list that the model was trained with",
                "pass the class file of the model's own run (classes in its config.json)",
            )


@torch.no_grad()
def logits_at(
    predictors: Sequence[SegmentationNet],
    image: Float[Tensor, "B 3 h w"],
    size: tuple[int, int],
    options: Options | None = None,
) -> Float[Tensor, "B K H W"]:
    """Mean over networks, scales, flips and windows of the logits, upsampled bilinearly (aligned corners).

    Logits are averaged, not probabilities: ADVENT's ensemble adds 0.5 of each network's upsampled logits (methods.md
    section 3), CRST averages logits over scales and flips (section 0.3).

    Args:
        predictors: networks of the same K on the image's device; they run in evaluation mode and get theirs back.
        image: (B, 3, h, w) float32 RGB in [0, 1], at the resolution that is fed.
        size: (H, W) of the result.
        options: scales are relative to (h, w), the window is in pixels of the scaled image.

    Returns:
        (B, K, H, W) float32, also under autocast.

    Raises:
        UserError: a network's output is not finite.
    """
    options = options or Options()
    total: Tensor | None = None
    with evaluating(predictors):
        for net in predictors:
            for scale in options.scales:
                # Mirrored logits are averaged on the coarse grid: upsampling with aligned corners is linear and
                # mirror symmetric, so this is the same mean at half the cost.
                view = _scaled(image, scale)
                coarse = _coarse(net, view, options)
                if options.flip:
                    coarse = (coarse + _coarse(net, view.flip(-1), options).flip(-1)) / 2
                if not torch.isfinite(coarse).all():
                    raise UserError(
                        "the network's output is not finite (NaN or infinite)",
                        "finite logits",
                        "its training diverged or its file is damaged: use an earlier checkpoint, or precision fp32",
                    )
                fine = upsample(coarse, size)
                total = fine if total is None else total.add_(fine)
    if total is None:
        raise ValueError("logits_at needs at least one network")
    passes = len(predictors) * len(options.scales)
    return total if passes == 1 else total.div_(passes)


def class_ids(logits: Float[Tensor, "B K H W"]) -> UInt8[Tensor, "B H W"]:
    """The most probable class at each pixel, uint8 (K at most 255)."""
    # On CPU `max` is six times faster than `argmax` over a middle dimension.
    return logits.max(dim=1).indices.to(torch.uint8)


def decide(logits: Float[Tensor, "B K H W"]) -> tuple[UInt8[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """The most probable class at each pixel and its softmax probability in [1/K, 1].

    The logits' memory is reused: do not read them afterwards (at 4K a second copy would be 600 MB).
    """
    best, ids = logits.max(dim=1, keepdim=True)
    confidence = logits.sub_(best).exp_().sum(dim=1).reciprocal_()
    return ids[:, 0].to(torch.uint8), confidence


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
    return F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _coarse(net: SegmentationNet, image: Tensor, options: Options) -> Tensor:
    """Logits of one pass on the network's grid, or with windows (B, K, h, w) on the image's own."""
    if options.window is None:
        whole: Prediction = net(image)
        return whole.logits.float()
    height, width = image.shape[-2:]
    window = min(options.window[1], height), min(options.window[0], width)
    total = image.new_zeros((image.shape[0], net.num_classes, height, width), dtype=torch.float32)
    count = image.new_zeros((height, width), dtype=torch.float32)
    for top in _starts(height, window[0], options.overlap):
        for left in _starts(width, window[1], options.overlap):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[..., rows, columns] += upsample(net(image[..., rows, columns]).logits, window)
            count[rows, columns] += 1
    return total / count


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of the windows that cover `length`; the last one is moved inwards to end with it."""
    stride = max(1, round(window * (1 - overlap)))
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]
