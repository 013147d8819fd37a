"""How often the tags that networks guess are right, on images whose classes are known. Training sees nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from segshift.data.domains import Domain, Item
from segshift.data.images import load_resized
from segshift.data.statistics import spread
from segshift.engine.ahead import ahead
from segshift.engine.evaluate import truth_of
from segshift.engine.producing import Answers
from segshift.engine.progress import Bar
from segshift.ops import smooth_max

FEWEST = 50
"""Pixels of a label, at its own size, that a class needs to be in the image: a person would not tag a few."""

MOST = 100
"""Images that are asked about, at most."""


@dataclass(frozen=True)
class Rule:
    """When a network takes a class for present.

    Attributes:
        threshold: T, the pooled probability above which it does.
        sharpness: k of the smooth maximum.
    """

    threshold: float
    sharpness: float

    def probabilities(self, answers: Answers, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " K"]:
        """The pooled probability of each class in an image, as the method `weak_labels` pools it."""
        pooled = smooth_max(answers(pixels).logits, self.sharpness).sigmoid()
        found: Float[np.ndarray, " K"] = pooled[0].cpu().numpy()
        return found

    def tags(self, answers: Answers, pixels: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, " K"]:
        """The classes that a network takes for present in an image."""
        guessed: Bool[np.ndarray, " K"] = self.probabilities(answers, pixels) > self.threshold
        return guessed


def sampled(images: Sequence[int]) -> list[int]:
    """`MOST` of these images, evenly spread, or all where they are fewer."""
    return [images[place] for place in spread(len(images), MOST)]


def classes_of_label(domain: Domain, item: Item) -> Bool[np.ndarray, " K"]:
    """The classes with at least `FEWEST` pixels in an item's label.

    Raises:
        UserError: see `truth_of`.
    """
    pixels = np.bincount(truth_of(domain, item).ravel(), minlength=256)
    present: Bool[np.ndarray, " K"] = pixels[: len(domain.classes)] >= FEWEST
    return present


def tag_quality(
    networks: Mapping[str, Answers],
    rule: Rule,
    domain: Domain,
    images: Sequence[int],
    truth: Callable[[Item], Bool[np.ndarray, " K"]],
    size: tuple[int, int],
    *,
    workers: int = 1,
    progress: Bar | None = None,
) -> dict[str, Any]:
    """Precision and recall of the tags that networks guess.

    Args:
        networks: by the names of their stages.
        rule: by which they guess.
        domain: whose images.
        images: indexes of those to ask about.
        truth: the classes that an item shows.
        size: (w, h) of the images that enter the networks.
        workers: threads that decode ahead.
        progress: told of every image.

    Returns:
        `images`, `present` (in how many images each class is), `per_image` (classes in an image, mean), and of each of
        `networks` its name, `per_image` (tags guessed), over all tags `precision` (share of the guessed tags that are
        right) and `recall` (share of the classes present that are guessed), and by class both, and `guessed`, in how
        many images. None where there is nothing to divide by.

    Raises:
        UserError: a file cannot be used.
    """
    classes = len(domain.classes)
    present = np.zeros(classes, np.int64)
    guessed, right = ({name: np.zeros(classes, np.int64) for name in networks} for _ in range(2))

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        item = domain.items[index]
        return load_resized(item.image, size)[0], truth(item)

    for _, result in ahead(read, images, workers):
        pixels, shown = result()
        present += shown
        for name, answers in networks.items():
            tags = rule.tags(answers, pixels)
            guessed[name] += tags
            right[name] += tags & shown
        if progress is not None:
            progress.advance()
    return {
        "images": len(images),
        "present": present.tolist(),
        "per_image": _share(present, len(images)),
        "networks": [_network(name, guessed[name], right[name], present, len(images)) for name in networks],
    }


def _network(
    name: str,
    guessed: Int64[np.ndarray, " K"],
    right: Int64[np.ndarray, " K"],
    present: Int64[np.ndarray, " K"],
    images: int,
) -> dict[str, Any]:
    return {
        "name": name,
        "per_image": _share(guessed, images),
        "precision": _share(right, int(guessed.sum())),
        "recall": _share(right, int(present.sum())),
        "classes": [
            {
                "guessed": int(guessed[k]),
                "precision": _share(right[k], int(guessed[k])),
                "recall": _share(right[k], int(present[k])),
            }
            for k in range(len(present))
        ],
    }


def _share(part: Int64[np.ndarray, "*n"] | np.int64, whole: int) -> float | None:
    return float(part.sum()) / whole if whole else None
