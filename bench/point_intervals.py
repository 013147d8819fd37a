"""How often the intervals of `segshift evaluate --points` hold the true figures, and how wide they are.

    python bench/point_intervals.py [--trials 200] [--samples 400] [--images 5 10 30 100]

Worlds of 11 classes, each with two models, that are like what was measured on CamVid: large and small classes, present
in all images or in few, recalls from 0 to 0.99, rows of the confusion matrix that vary much from image to image, and
images that are hard for both models. One click a class and image, on a random pixel of it. True is what holds in the
world's 2000 images, of which those at hand are drawn. With --of M, M images are drawn and the first ones clicked.
"""

from __future__ import annotations

import argparse

import numpy as np

from segshift.engine.point_estimate import PointCounts, estimate
from segshift.engine.point_result import gain

CLASSES, WORLD = 11, 2000


def world(random: np.random.Generator) -> list[np.ndarray]:
    """Confusions by image (WORLD, K, K), shares of the image's area, of two models."""
    share = random.dirichlet(np.full(CLASSES, 0.6)) + 0.004
    there = random.random((WORLD, CLASSES)) < random.uniform(0.4, 1, CLASSES)
    there[:, share.argmax()] = True
    areas = random.gamma(2 * np.ones(CLASSES), size=(WORLD, CLASSES)) * share * there
    areas /= areas.sum(axis=1, keepdims=True)
    right = np.clip(random.beta(0.8, 0.6, CLASSES), 0, 0.99)
    right[share.argmax()] = 0.97
    wrong = 0.3 * random.dirichlet(np.full(CLASSES, 0.5), CLASSES) + 0.7 * share
    better = np.clip(right + random.uniform(-0.05, 0.2, CLASSES), 0, 0.99)
    noise = random.random((WORLD, CLASSES, CLASSES)), random.random((WORLD, CLASSES, CLASSES))
    found = []
    for model, recall in enumerate((right, better)):
        rows = wrong * (1 - np.eye(CLASSES))
        rows = rows / rows.sum(axis=1, keepdims=True) * (1 - recall)[:, None] + np.diag(recall)
        # What is hard in an image is so for both: the same exponentials, of which each model has some of its own.
        drawn = -np.log(np.where(random.random((WORLD, CLASSES, 1)) < 0.8, noise[0], noise[model])) * rows
        found.append(areas[:, :, None] * drawn / drawn.sum(axis=2, keepdims=True))
    return found


def truth(confusion: np.ndarray) -> np.ndarray:
    total = confusion.sum(axis=0)
    right = np.diagonal(total)
    return np.asarray(right / (total.sum(axis=0) + total.sum(axis=1) - right))


def clicked(confusion: np.ndarray, places: np.ndarray, pointed: int) -> PointCounts:
    """One point of each class in each of the first images; `places` (N, K), in [0, 1), is where in the class."""
    images, hits = len(confusion), []
    for i, c in np.argwhere(confusion[:pointed].sum(axis=2) > 0):
        order = np.r_[c, np.delete(np.arange(CLASSES), c)]  # so that both models are mostly right at the same places
        up_to = confusion[i, c, order].cumsum()
        said = order[min(int(np.searchsorted(up_to, places[i, c] * up_to[-1], side="right")), CLASSES - 1)]
        hits.append((i, c, said, 1))
    areas = np.round(1e5 * confusion.sum(axis=1)).astype(np.int64)
    return PointCounts(tuple("abcdefghijk"), tuple(map(str, range(images))), np.array(hits), areas)


def measure(images: int, of: int, trials: int, samples: int) -> str:
    random = np.random.default_rng(images)
    held: dict[str, list[tuple[bool, float]]] = {"mIoU": [], "class": [], "gain": []}

    def hold(name: str, ends: tuple[float, float], true: float) -> None:
        held[name].append((bool(ends[0] <= true <= ends[1]), ends[1] - ends[0]))

    for _ in range(trials):
        models = world(random)
        chosen = random.integers(0, WORLD, of)
        places = random.random((of, CLASSES))
        found = [estimate(clicked(model[chosen], places, images), samples=samples) for model in models]
        true = [truth(model) for model in models]
        seen = found[0].points > 0
        for one, is_true in zip(found, true, strict=True):
            assert one.miou_interval is not None
            hold("mIoU", one.miou_interval, is_true[seen].mean())
            for c in np.flatnonzero(~np.isnan(one.iou_interval[:, 0])):
                hold("class", (one.iou_interval[c, 0], one.iou_interval[c, 1]), is_true[c])
        ends = gain(*found)[1]
        assert ends is not None
        hold("gain", ends, (true[1] - true[0])[seen].mean())
    cells = [
        f"{100 * share:.1f} % | {100 * width:.1f}" for share, width in (np.mean(held[name], axis=0) for name in held)
    ]
    return f"| {images} of {of} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--images", type=int, nargs="+", default=[5, 10, 30, 100])
    parser.add_argument("--of", type=int, help="images at hand, where not all of them are clicked")
    given = parser.parse_args()
    print("| clicked images | mIoU: held | width | class: held | width | gain: held | width |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for images in given.images:
        print(measure(images, given.of or images, given.trials, given.samples), flush=True)


if __name__ == "__main__":
    main()
