"""Pictures of where networks look for a class: the attention of category-wise pooling, laid over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw

from segshift.artefacts.store import atomic_path, make_folder, write_json
from segshift.data.domains import Domain
from segshift.data.images import load_resized
from segshift.engine.panels import clear_panels
from segshift.engine.producing import Answers
from segshift.engine.tag_quality import Rule
from segshift.ops import upsample

WIDTH = 400
"""Largest width of a picture in pixels."""

Places = Sequence[tuple[float, float]]
"""Points (x, y) in pixels of the original image; (0, 0) is the centre of its first pixel."""


@dataclass(frozen=True)
class Look:
    """What to show: the class (train id) in the image (its index), why, and a person's points of it."""

    train_id: int
    index: int
    why: str
    points: Places = ()


def choose_classes(gains: Sequence[float | None], images: Sequence[int], count: int) -> list[int]:
    """Classes to show: those that gained most and those that lost most (or gained least), in this order.

    Args:
        gains: of each of the K classes; None where it is not known. Where too few are known, the classes of the fewest
            images come in the middle.
        images: in how many images each class is; those of none are left out.
        count: at most so many.
    """
    known = [k for k, gain in enumerate(gains) if gain is not None and images[k]]
    order = sorted(known, key=lambda k: (-(gains[k] or 0.0), k))
    chosen = order if len(order) <= count else order[: count - count // 2] + order[len(order) - count // 2 :]
    rest = [k for k in range(len(gains)) if images[k] and k not in known]
    middle = sorted(rest, key=lambda k: (images[k], k))[: count - len(chosen)]
    half = (len(chosen) + 1) // 2
    return chosen[:half] + middle + chosen[half:]


def attention(answers: Answers, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[torch.Tensor, "K gh gw"]:
    """Of each class, the softmax of its logits over the cells of the network's grid, as `ops.category_pool` weighs them
    in an image without padding."""
    logits = answers(pixels).logits[0]
    return logits.flatten(1).softmax(dim=1).view_as(logits)


def half_share(weights: Float[torch.Tensor, "gh gw"]) -> float:
    """The smallest share of the cells that holds half of the attention: 0.5 where it is even, 1 / n in one cell."""
    ordered = weights.flatten().double().sort(descending=True).values.cumsum(dim=0)
    # Rounding of the softmax must not ask for one cell more.
    cells = int((ordered < (0.5 - 1e-6) * float(ordered[-1])).sum()) + 1
    return cells / len(ordered)


def write_attention_panels(
    folder: Path,
    networks: Mapping[str, Answers],
    rule: Rule,
    domain: Domain,
    looks: Sequence[Look],
    size: tuple[int, int],
    fingerprint: str,
) -> None:
    """Write pictures into `folder`, and index.json last: its `fingerprint` and `panels`.

    A panel has class, name (of the image), caption, `points` (how many are drawn) and `files`: image (JPEG), and the
    maps of the networks in `maps`, each with network, file, `probability` that the class is there, and `half` (see
    `half_share`).

    Args:
        folder: made where missing; pictures of an earlier call in it are replaced.
        networks: by the names of their stages.
        rule: of the probabilities.
        domain: whose images; no label is looked for.
        looks: what to show.
        size: (w, h) of the images that enter the networks.
        fingerprint: of all that the pictures depend on.

    Raises:
        UserError: a file cannot be read or written.
    """
    clear_panels(make_folder(folder))
    panels = []
    for number, look in enumerate(looks):
        item = domain.items[look.index]
        pixels, original = load_resized(item.image, size)
        width = min(WIDTH, original[1])
        shown, _ = load_resized(item.image, (width, max(1, round(original[0] * width / original[1]))))
        points = [_scaled(point, original, shown) for point in look.points]
        name = f"{number:03d}-image.jpg"
        _save(folder / name, _marked(Image.fromarray(shown), points))
        maps: list[dict[str, Any]] = []
        for place, (network, answers) in enumerate(networks.items()):
            weights = attention(answers, pixels)[look.train_id]
            file = f"{number:03d}-map{place}.jpg"
            _save(folder / file, _marked(overlay(shown, weights.cpu()), points))
            probability = float(rule.probabilities(answers, pixels)[look.train_id])
            maps.append({"network": network, "file": file, "probability": probability, "half": half_share(weights)})
        panels.append(
            {
                "class": domain.classes.names[look.train_id],
                "name": item.name,
                "caption": look.why,
                "points": len(points),
                "image": name,
                "maps": maps,
            }
        )
    write_json(folder / "index.json", {"fingerprint": fingerprint, "panels": panels})


def overlay(image: UInt8[np.ndarray, "H W 3"], weights: Float[torch.Tensor, "gh gw"]) -> Image.Image:
    """The attention as a heat map over the grey image; the brightest spot is its peak, whatever that is.

    Brightness is the square root of attention over peak: it falls exponentially with the logits, and little else than
    the peak would be seen.
    """
    heat = upsample(weights[None, None].float(), image.shape[:2])[0, 0].clamp(min=0)
    level = (heat / heat.max().clamp(min=1e-30)).sqrt().numpy()
    colours = 255 * colormaps["inferno"](level)[..., :3]
    grey = np.repeat(image.astype(np.float64).mean(axis=2, keepdims=True), 3, axis=2)
    cover = np.clip(1.6 * level, 0, 0.88)[..., None]
    mixed = np.rint((1 - cover) * (30 + 0.75 * grey) + cover * colours)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _scaled(point: tuple[float, float], original: tuple[int, int], shown: np.ndarray) -> tuple[float, float]:
    """A point of the original image, (H, W) pixels, in those of the picture."""
    x, y = point
    return (x + 0.5) * shown.shape[1] / original[1] - 0.5, (y + 0.5) * shown.shape[0] / original[0] - 0.5


def _marked(picture: Image.Image, points: Places) -> Image.Image:
    """The picture with a ring around each point, light on dark, which is seen on any ground."""
    draw = ImageDraw.Draw(picture)
    # Large enough to be seen where the picture is a small one of three.
    reach = max(3.0, picture.width / 32)
    for x, y in points:
        for radius, colour, line in ((reach + 2, "black", 7), (reach, "white", 3)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=line)
    return picture


def _save(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, quality=86)
