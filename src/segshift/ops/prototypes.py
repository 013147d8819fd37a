"""Prototypes: one point of feature space for each class, how far pixels are from it, how it follows the features.

Work is done on some pixels of an image at a time, so little is held beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from segshift.types import IGNORE

_NEAR = 1 / 64
"""Squared distances below this share of the prototype's own scale are summed from differences (`_Space`)."""

_SUMMED = 256
"""Channels that parts of the gradient's sums are cut for, at least: 8192 pixels are added up in float32, not more."""

_SLAB = 16
"""Channels of one matrix product: MKL copies some megabytes of all channels that it is given."""


def prototype_distance(
    features: Float[Tensor, "B D h w"], prototypes: Float[Tensor, "K D"]
) -> Float[Tensor, "B K h w"]:
    """Euclidean distance ||f - eta_k|| of each pixel's features to each class's prototype; not squared, float32.

    Differentiable in features and prototypes; where a feature equals a prototype both gradients are 0. Never makes the
    B K D h w differences: beside the distances the forward pass holds less than 2 MB (10 MB where the features are not
    float32), beside the gradients the backward pass 12 MB. Features cut out of a larger map are copied first.

    Precision: within 3e-5 of the distance (relative), also of tiny ones, and exactly 0 where a feature is a prototype.
    Of |f|^2 - 2 f eta + |eta|^2 the leading digits cancel where f is close to eta; therefore lengths are taken from the
    mean prototype, and the distances that are still too small for this are summed from differences (more work: where
    every pixel is that close to a prototype, several times as much).

    Args:
        features: (B, D, h, w) finite; float32 or of lower precision.
        prototypes: (K, D) finite.

    Raises:
        ValueError: features and prototypes have another number of channels, or there is no prototype.

    Source: Zhang et al. (ProDA), CVPR 2021, equation 4; the norm as released (methods.md section 10.4, item 5).
    """
    _check_depth(features, prototypes)
    if len(prototypes) == 0:
        raise ValueError("distances to no prototype")
    distance: Tensor = _Distance.apply(features, prototypes)  # type: ignore[no-untyped-call]
    return distance


def _check_depth(features: Tensor, prototypes: Tensor) -> None:
    if features.shape[1] != prototypes.shape[1]:
        raise ValueError(f"features have {features.shape[1]} channels, the prototypes {prototypes.shape[1]}")


def _parts(flat: Float[Tensor, "B D n"], depth: int) -> Iterator[tuple[int, slice]]:
    """Images and pixels of them, of which `depth` channels are 8 MB of float32."""
    step = max(1, (1 << 21) // max(1, depth))
    for image in range(len(flat)):
        for start in range(0, flat.shape[2], step):
            yield image, slice(start, start + step)


def _runs(part: Float[Tensor, "D n"]) -> Iterator[slice]:
    """Some pixels of a part at a time, for all that is done besides products.

    On CPU just below what torch gives to a second thread: a run stays in one core's cache, and none of thousands of
    short operations waits for another thread, which takes milliseconds each where cores are shared.
    """
    depth, pixels = part.shape
    elements = (1 << 15) - 1 if part.device.type == "cpu" else 1 << 21
    step = max(1, elements // max(1, depth))
    for start in range(0, pixels, step):
        yield slice(start, start + step)


class _Space:
    """Prototypes, and what is known of them before any pixel is seen.

    With m the mean prototype, f' = f - m and eta' = eta - m, the squared distance is |f'|^2 - 2 f eta' + c with
    c = |eta'|^2 + 2 m eta'. Its rounding errors are of the size of 1e-7 (|f'|^2 + |eta'|^2 + |m| |eta'|), a thousandth
    of a percent of what is at least `near` = |eta'| (|eta'| + |m|) / 64.
    """

    def __init__(self, prototypes: Tensor) -> None:
        centre = prototypes.float().mean(dim=0)
        self.centre = centre.unsqueeze(1)
        self.columns = prototypes.float().T.contiguous()
        self.shifted = prototypes.float() - centre
        length = self.shifted.norm(dim=1, keepdim=True)
        self.constant = length.square() + 2 * (self.shifted @ self.centre)
        self.near = length * (length + centre.norm()) * _NEAR

    def finish(self, run: Tensor, squared: Tensor) -> None:
        """Squared distances (K, n) of a run (D, n), of which `squared` holds -2 f eta'. Rounding leaves none below 0:
        those are near, and sums of squares then."""
        squared += (run - self.centre).square_().sum(dim=0) + self.constant
        near = squared < self.near
        for classes, pixels, difference in self.differences(run, near):
            squared[classes, pixels] = difference.square_().sum(dim=0)

    def pulls(self, part: Tensor, distance: Tensor, grad: Tensor, of_prototypes: Tensor | None) -> Tensor:
        """Gradient (D, n) of a part's features; that of the prototypes is added to `of_prototypes` (K, D)."""
        weight, pulls = torch.empty_like(distance), part.new_empty(part.shape, dtype=torch.float32)
        left_out: list[tuple[slice, Tensor, Tensor]] = []
        for run in _runs(part):
            d = distance[:, run]
            u = (grad[:, run] / d).masked_fill_(d == 0, 0)
            near = d.square() < self.near
            left_out.append((run, near, u))
            weight[:, run] = u.masked_fill(near, 0)
            torch.sub(part[:, run], self.centre, out=pulls[:, run])
        if of_prototypes is not None:
            of_prototypes += torch.addmm(self.shifted * weight.sum(dim=1, keepdim=True), weight, pulls.T, alpha=-1)
        for run in _runs(part):
            pulls[:, run] *= weight[:, run].sum(dim=0)
        pulls.addmm_(self.shifted.T, weight, alpha=-1)
        for run, near, u in left_out:
            for classes, pixels, difference in self.differences(part[:, run], near):
                difference.mul_(u[classes, pixels])
                pulls[:, run].index_add_(1, pixels, difference)
                if of_prototypes is not None:
                    of_prototypes.index_add_(0, classes, difference.T.double(), alpha=-1)
        return pulls

    def differences(self, run: Tensor, chosen: Bool[Tensor, "K n"]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For some of the chosen pairs at a time: classes (m,), pixels (m,) of the run (D, n), f - eta (D, m)."""
        if not chosen.any():
            return
        all_pixels, all_classes = chosen.T.nonzero().unbind(1)
        step = run.shape[1]
        for start in range(0, len(all_pixels), step):
            pixels, classes = all_pixels[start : start + step], all_classes[start : start + step]
            # Not run[:, pixels]: torch gives indexing of any size to all threads.
            of_classes = self.columns.index_select(1, classes)
            yield classes, pixels, torch.sub(run.index_select(1, pixels), of_classes, out=of_classes)


class _Distance(torch.autograd.Function):
    """Distances d; with u = g / d the gradients are sum_k u_k (f - eta_k) and -sum over the pixels of u_k (f - eta_k).

    The products in these cancel as the distances' do: pairs that are near are left out and added as differences.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor) -> Tensor:
        batch, depth, height, width = features.shape
        flat = features.flatten(2)
        distance = features.new_empty((batch, len(prototypes), height * width), dtype=torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            space = _Space(prototypes)
            twice = -2 * space.shifted
            for image, pixels in _parts(flat, _SLAB):
                part, squared = flat[image, :, pixels], distance[image, :, pixels]
                for start in range(0, depth, _SLAB):
                    slab = slice(start, start + _SLAB)
                    # Times 0 what is there at first, which need not be numbers.
                    squared.addmm_(twice[:, slab], part[slab].float(), beta=float(start > 0))
                for run in _runs(part):
                    space.finish(part[:, run], squared[:, run])
            distance.sqrt_()  # all at once: short square roots too go to all threads
        distance = distance.view(batch, len(prototypes), height, width)
        ctx.save_for_backward(features, prototypes, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, prototypes, distance = ctx.saved_tensors
        flat, distance, grad = features.flatten(2), distance.flatten(2), grad.flatten(2)
        of_features = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        # Sums over all pixels are of float64: terms in all directions leave little of their size.
        of_prototypes = torch.zeros_like(prototypes, dtype=torch.float64) if ctx.needs_input_grad[1] else None
        with torch.autocast(features.device.type, enabled=False):
            space = _Space(prototypes)
            for image, pixels in _parts(flat, max(features.shape[1], _SUMMED)):
                at = image, slice(None), pixels
                pulls = space.pulls(flat[at], distance[at], grad[at], of_prototypes)
                if of_features is not None:
                    of_features[at] = pulls
        return (
            None if of_features is None else of_features.view(features.shape),
            None if of_prototypes is None else of_prototypes.to(prototypes.dtype),
        )


def prototype_weight(
    distance: Float[Tensor, "B K h w"], temperature: float, present: Bool[Tensor, " K"] | None = None
) -> Float[Tensor, "B K h w"]:
    """How near each class is, as weights that sum to 1: softmax over k of -(d_k - min d) * temperature, float32.

    Args:
        distance: (B, K, h, w) of `prototype_distance`.
        temperature: multiplies the distance, as released; 0 weighs all classes alike.
        present: (K,) the classes that have a prototype; the others weigh 0 and are never nearest. None: all.

    Raises:
        ValueError: the temperature is negative or not finite, no class is present, or `present` is of other classes.

    Source: Zhang et al. (ProDA), CVPR 2021, equation 4; the temperature as released (methods.md section 10.4, item 5).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"the temperature must be finite and not negative, got {temperature}")
    distance = distance.float()
    absent = None
    if present is not None:
        _check_present(present, distance.shape[1])
        if not present.any():
            raise ValueError("no class has a prototype")
        absent = ~present.view(1, -1, 1, 1)
        distance = distance.masked_fill(absent, math.inf)
    # Differences first: of large distances, products with the temperature would round away what tells classes apart.
    scores = (distance - distance.amin(dim=1, keepdim=True).detach()) * -temperature
    if absent is not None:
        scores = scores.masked_fill(absent, -math.inf)  # also where infinity times 0 is not a number
    return scores.softmax(dim=1)


def _check_present(present: Tensor, classes: int) -> None:
    if len(present) != classes:
        raise ValueError(f"`present` is of {len(present)} classes, the rest of {classes}")


@torch.no_grad()
def class_means(
    features: Float[Tensor, "B D h w"], labels: Int64[Tensor, "B h w"], classes: int
) -> tuple[Float[Tensor, "B K D"], Int64[Tensor, "B K"]]:
    """Mean feature and number of the pixels of each class, for each image by itself.

    The same on every call: sums are matrix products in a fixed order, of float64.

    Args:
        features: (B, D, h, w) finite, also at ignored pixels.
        labels: (B, h, w) train ids in [0, K) or `IGNORE`, at the features' size.
        classes: K.

    Returns:
        means (B, K, D) float32, 0 where an image has no pixel of the class; counts (B, K) int64.

    Raises:
        ValueError: a label that is no class, or labels of another size than the features.
    """
    _check_labels(features, labels, classes)
    flat, labels = features.flatten(2), labels.flatten(1)
    ids = torch.arange(classes, device=labels.device).unsqueeze(1)
    sums = features.new_zeros((len(features), classes, features.shape[1]), dtype=torch.float64)
    counts = labels.new_zeros((len(features), classes))
    with torch.autocast(features.device.type, enabled=False):
        for image, pixels in _parts(flat, features.shape[1]):
            member = labels[image, pixels] == ids
            counts[image] += member.sum(dim=1)
            sums[image] += member.double() @ flat[image, :, pixels].double().T
    return (sums / counts.clamp(min=1).unsqueeze(-1)).float(), counts


def _check_labels(features: Tensor, labels: Tensor, classes: int) -> None:
    if (features.shape[0], *features.shape[2:]) != tuple(labels.shape):
        raise ValueError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)} are of different sizes")
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORE)
    if wrong.any():
        raise ValueError(f"labels must lie in [0, {classes}) or be {IGNORE}, got {labels[wrong][0].item()}")


@torch.no_grad()
def update_prototypes(
    prototypes: Float[Tensor, "K D"],
    present: Bool[Tensor, " K"],
    features: Float[Tensor, "B D h w"],
    labels: Int64[Tensor, "B h w"],
    momentum: float,
    minimum: int = 10,
) -> tuple[Float[Tensor, "K D"], Bool[Tensor, " K"]]:
    """Prototypes after having seen a batch: one image after the other, eta <- momentum eta + (1 - momentum) mean.

    The mean is that of the image's pixels of the class; an image with fewer than `minimum` of them leaves the class as
    it is. A class without a prototype gets the mean itself. The arguments are left as they are.

    Args:
        prototypes: (K, D).
        present: (K,) the classes that have a prototype; rows of the others are not read.
        features: (B, D, h, w), the teacher's.
        labels: (B, h, w) train ids in [0, K) or `IGNORE`, at the features' size.
        momentum: share that a prototype keeps, in [0, 1]; released: 0.9999.
        minimum: pixels that an image must have of a class, at least 1; released: 10.

    Returns:
        prototypes (K, D) of the same type, present (K,).

    Raises:
        ValueError: momentum or minimum out of range, a label that is no class, or sizes that do not fit together.

    Source: Zhang et al. (ProDA), CVPR 2021, equation 6; image by image as released (methods.md section 10.4, item 11).
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1 pixel, got {minimum}")
    _check_depth(features, prototypes)
    _check_present(present, len(prototypes))
    means, counts = class_means(features, labels, len(prototypes))
    after, known = prototypes, present
    for mean, seen in zip(means.to(prototypes.dtype), counts >= minimum, strict=True):
        moved = torch.where(known.unsqueeze(1), momentum * after + (1 - momentum) * mean, mean)
        after = torch.where(seen.unsqueeze(1), moved, after)
        known = known | seen
    return after, known
