"""The few types that every part shares.

Shape legend, used in every docstring: B images, C channels, H W rows and columns of the image,
h w rows and columns of the network's output grid, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # At run time only what computes brings torch: class lists, listings and labelling by hand start at once without.
    import torch
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

IGNORE = 255
"""Train id of pixels that no loss and no metric counts."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of a task, in the order of their train ids.

    Attributes:
        names: K class names.
        palette: K colours (red, green, blue), 0-255, used in every picture.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Batch:
    """Images of one domain as a step of training sees them.

    Attributes:
        image: (B, 3, H, W) float32 RGB in [0, 1]; networks normalise by themselves.
        label: (B, H, W) int64 train ids with `IGNORE`, or None where the domain has no labels.
        affine: (B, 3, 3) float32, maps a pixel centre (x, y, 1) of the view to the pixel centre of the file's image.
        names: the B images' names, for messages.
        pseudo_label: (B, H, W) int64 train ids with `IGNORE` that a network gave; of an easy image its full label.
        soft_label: (B, K, H, W) float32, a distribution over the classes at each selected pixel, zeros elsewhere.
        easy: (B,) bool, whether the image is of the easy part of a split.
        full: (B, 3, Hf, Wf) float32, the whole images at the working size, without any augmentation.
        full_affine: (B, 3, 3) float32, as `affine`, of `full`.
        strong: (B, 3, H, W) float32, strong views: random colours and shapes on top of what `image` is a view of.
        strong_affine: (B, 3, 3) float32, as `affine`, of `strong`.
        strong_seen: (B, H, W) bool, False where `strong` shows padding or a cutout.
        soft_full: (B, K, h, w) float32, distributions over the classes that a network gave to the whole image, on its
            own grid at the working size.
        tags: (B, K) float32, what a person said of the image's classes: 1 present, 0 absent, -1 unknown (no weak label,
            or one that does not say).
        points: (B, H, W) int64 train ids in discs around the pixels that a person clicked, `IGNORE` elsewhere.
        seen: (B, H, W) bool, False where `image` shows padding.
    """

    image: Float[Tensor, "B 3 H W"]
    label: Int64[Tensor, "B H W"] | None = None
    affine: Float[Tensor, "B 3 3"] | None = None
    names: tuple[str, ...] = field(default=())
    pseudo_label: Int64[Tensor, "B H W"] | None = None
    soft_label: Float[Tensor, "B K H W"] | None = None
    easy: Bool[Tensor, " B"] | None = None
    full: Float[Tensor, "B 3 Hf Wf"] | None = None
    full_affine: Float[Tensor, "B 3 3"] | None = None
    strong: Float[Tensor, "B 3 H W"] | None = None
    strong_affine: Float[Tensor, "B 3 3"] | None = None
    strong_seen: Bool[Tensor, "B H W"] | None = None
    soft_full: Float[Tensor, "B K h w"] | None = None
    tags: Float[Tensor, "B K"] | None = None
    points: Int64[Tensor, "B H W"] | None = None
    seen: Bool[Tensor, "B H W"] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device (copies overlap with work where the memory is pinned)."""

        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""

        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        from torch import Tensor

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {key: change(x) if isinstance(x, Tensor) else x for key, x in values.items()}
        return Batch(**changed)


class Prediction(NamedTuple):
    """What a network says of a batch, on its own coarse grid: networks never upsample.

    Attributes:
        logits: (B, K, h, w).
        features: (B, D, h, w), the layer that `logits` are a function of.
        aux: (B, K, h, w) logits of the auxiliary head, or None where the network has none.
    """

    logits: Float[Tensor, "B K h w"]
    features: Float[Tensor, "B D h w"]
    aux: Float[Tensor, "B K h w"] | None = None
