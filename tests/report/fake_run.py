"""A realistic run folder, drawn rather than trained: what the report's tests read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "fence",
    "pole",
    "sign",
    "vegetation",
    "sky",
    "person",
    "vehicle",
    "bicyclist",
)
PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (190, 153, 153), (153, 153, 153), (220, 220, 0),
    (107, 142, 35), (70, 130, 180), (220, 20, 60), (0, 0, 142), (119, 11, 32),
)  # fmt: skip
SOURCE = (0.612, 0.243, 0.402, 0.051, 0.083, 0.104, 0.351, 0.305, 0.121, 0.287, None)
ADAPTED = (0.748, 0.331, 0.512, 0.078, 0.071, 0.152, 0.473, 0.612, 0.158, 0.401, None)
SETTINGS = """\
method: {method}
seed: 0
classes: classes.json
source: {{root: data/city, layout: folders}}
target: {{root: data/camvid/train, layout: folders}}
val: {{root: data/camvid/val, layout: folders}}
net: {{name: deeplab_lite, weights: imagenet}}
view: {{size: [320, 240], crop: [240, 180], flip: true}}
stages:
- name: source
  steps: 200
- name: adapt
  steps: 200
"""


def mean(values: tuple[float | None, ...]) -> float:
    """The mean of the classes that occur."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def model(iou: tuple[float | None, ...], images: int = 48) -> dict[str, Any]:
    """A Metrics dict: nan for classes that do not occur."""
    counts = [40, 8, 22, 2, 1, 0.6, 9, 14, 0.7, 2.7, 0]
    size = len(iou)
    confusion = [[int(1e6 * counts[row % 11]) if row == column else 0 for column in range(size)] for row in range(size)]
    return {
        "classes": list(CLASSES[:size]), "confusion": confusion,
        "iou": [math.nan if value is None else value for value in iou],
        "miou": mean(iou), "miou16": None, "miou13": None,
        "pixel_accuracy": 0.35 + mean(iou), "mean_accuracy": 0.1 + mean(iou), "images": images,
    }  # fmt: skip


def metrics(adapted: tuple[float | None, ...] = ADAPTED, method: str = "advent") -> dict[str, Any]:
    """A metrics.json."""
    gain = mean(adapted) - mean(SOURCE)
    text = (
        f"adaptation helped: mIoU {100 * mean(adapted):.1f} with {method} against {100 * mean(SOURCE):.1f} source-only"
    )
    return {
        "domain": "val", "classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE],
        "control": "source", "adapted": method,
        "models": {"source": model(SOURCE), method: model(adapted)},
        "verdict": {"text": text if gain > 0 else "", "gain": gain, "helped": gain > 0},
    }  # fmt: skip


def scene(seed: int, width: int = 320, height: int = 240) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Train ids of a street: sky above, houses and trees beside, road and pavement below, a few things on it."""
    rng = np.random.default_rng(seed)
    ids = np.full((height, width), 7, np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    horizon, centre = int(height * rng.uniform(0.42, 0.5)), width * rng.uniform(0.45, 0.55)
    left = 0
    while left < width:
        step = int(rng.integers(18, 60))
        near = abs(left + step / 2 - centre) / width
        ids[horizon - int(height * near * rng.uniform(0.5, 0.95)) : horizon + 4, left : left + step] = rng.choice(
            [2, 2, 6]
        )
        left += step
    depth = np.clip((y - horizon) / (height - horizon), 0, 1)
    ids[y >= horizon] = 1
    ids[(y >= horizon) & (np.abs(x - centre) < width * (0.03 + 0.5 * depth))] = 0
    for kind, high, wide in ((9, 0.16, 0.22), (9, 0.1, 0.13), (8, 0.16, 0.035), (4, 0.5, 0.012), (5, 0.06, 0.04)):
        x0, y1 = int(rng.uniform(0.05, 0.85) * width), int(height * rng.uniform(0.58, 0.72))
        ids[max(0, y1 - int(high * height)) : y1, x0 : x0 + max(2, int(wide * width))] = kind
    return ids


def pictures(folder: Path, seed: int, quality: float, size: tuple[int, int] = (320, 240)) -> dict[str, str]:
    """Write image, predictions, entropy and truth of one scene; `quality` in [0, 1] is how right `adapted` is."""
    rng = np.random.default_rng(seed + 100)
    truth = scene(seed, *size)
    colours = np.array(PALETTE, np.uint8)
    tint = np.array([(96, 96, 100), (120, 116, 112), (130, 104, 92), (110, 90, 70), (70, 70, 72), (190, 170, 60),
                     (62, 88, 50), (168, 184, 204), (120, 70, 66), (52, 58, 78), (80, 40, 40)], np.float32)  # fmt: skip
    fog = np.linspace(0.7, 0.1, truth.shape[0])[:, None, None]
    image = tint[truth] * (1 - fog) + np.array([178, 182, 190]) * fog + rng.normal(0, 6, (*truth.shape, 3))

    def predicted(right: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
        coarse = rng.random((truth.shape[0] // 12 + 1, truth.shape[1] // 12 + 1))
        wrong = np.kron(coarse, np.ones((12, 12)))[: truth.shape[0], : truth.shape[1]] > right
        return np.where(wrong, scene(seed + 1, *size), truth).astype(np.uint8)

    noise = np.asarray(Image.fromarray((rng.random((12, 16)) * 255).astype(np.uint8)).resize(size), np.float32)
    edges = np.abs(np.gradient(truth.astype(np.float32))[0]) > 0
    names = {
        kind: f"{seed:03d}-{kind}.{'jpg' if kind == 'image' else 'png'}"
        for kind in ("image", "control", "adapted", "entropy", "truth")
    }
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / names["image"], quality=92)

    Image.fromarray(colours[predicted(0.45)]).save(folder / names["control"])
    Image.fromarray(colours[predicted(quality)]).save(folder / names["adapted"])
    Image.fromarray(np.clip(noise * 0.6 + 110 * edges, 0, 255).astype(np.uint8)).save(folder / names["entropy"])
    Image.fromarray(colours[truth]).save(folder / names["truth"])
    return names


def sure(folder: Path, number: int, *models: tuple[str, float, float]) -> list[dict[str, Any]]:
    """Write maps of one image and of each (model, mean entropy, mean confidence), and say so as index.json does."""
    entries = []
    for when, (model, entropy, confidence) in zip(("before", "after"), models, strict=True):
        files = {}
        for kind, doubt in (("entropy", entropy), ("confidence", 1 - confidence)):
            files[kind] = f"{number:03d}-{kind}-{when}.png"
            picture = Image.fromarray(np.full((24, 32), round(255 * doubt), np.uint8))
            picture.putpalette([level for level in range(256) for _ in range(3)])
            picture.save(folder / files[kind])
        entries.append({"model": model, **files, "mean_entropy": entropy, "mean_confidence": confidence})
    return entries


def log(folder: Path, losses: dict[str, tuple[float, float]], steps: int, miou: tuple[float, float], seed: int) -> None:
    """Write a log.jsonl: losses fall from the first to the second value, mIoU rises likewise."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        fall = math.exp(-4 * step / steps)
        loss = {
            name: (low + (high - low) * fall) * float(rng.lognormal(0, 0.22)) for name, (high, low) in losses.items()
        }
        lines.append(json.dumps({"step": step, "loss": loss, "lr": {"net": 2.5e-4 * (1 - step / steps) ** 0.9}}))
        if step % max(1, steps // 8) == 0:
            value = miou[0] + (miou[1] - miou[0]) * (1 - fall) + float(rng.normal(0, 0.004))
            lines.append(json.dumps({"step": step, "val": {"miou": value}}))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def stage(run: Path, folder: str, method: str, purpose: str, losses: dict[str, tuple[float, float]], seed: int) -> Path:
    """Write a finished stage of training."""
    path = run / folder
    (path / "model").mkdir(parents=True)
    described = {"name": folder[3:], "kind": "train", "method": method, "steps": 200, "fingerprint": "4be1",
                 "seconds": 93.4 + 41 * seed, "purpose": purpose, "done": True}  # fmt: skip
    classes = {"names": list(CLASSES), "palette": [list(colour) for colour in PALETTE]}
    (path / "model" / "config.json").write_text(json.dumps({"format": 1, "classes": classes}), encoding="utf-8")
    (path / "stage.json").write_text(json.dumps(described), encoding="utf-8")
    log(path, losses, 200, (0.08, mean(SOURCE)) if seed == 0 else (mean(SOURCE), mean(ADAPTED)), seed)
    return path


def write_run(
    run: Path,
    *,
    adapted: tuple[float | None, ...] = ADAPTED,
    method: str = "advent",
    panels: int = 4,
    quality: float = 0.8,
    certainty: bool = False,
) -> Path:
    """Write a whole finished run folder; with `certainty`, of a version that keeps how sure both models are."""
    run.mkdir(parents=True)
    (run / "run.yaml").write_text(SETTINGS.format(method=method), encoding="utf-8")
    environment = {
        "versions": {"segshift": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "machine": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory": "16 GB", "gpu": None},
        "command": "segshift adapt --source data/city --target data/camvid/train --classes classes.json "
        f"--method {method} --out runs/{run.name}",
        "domains": {
            "source": {"root": "data/city", "images": 120},
            "target": {"root": "data/camvid/train", "images": 121},
            "val": {"root": "data/camvid/val", "images": 48},
        },
    }
    (run / "env.json").write_text(json.dumps(environment), encoding="utf-8")
    (run / "metrics.json").write_text(json.dumps(metrics(adapted, method)), encoding="utf-8")
    learns = "Learns the classes on the labelled source alone; the control of the verdict."
    aligns = "Goes on with unlabelled target images: their predictions are to look like the source's."
    stage(run, "01-source", "source_only", learns, {"segmentation": (2.4, 0.42)}, 0)
    losses = {"segmentation": (0.5, 0.33), "adversarial": (0.012, 0.0061), "discriminator": (0.69, 0.41)}
    stage(run, "02-adapt", method, aligns, losses, 1)
    (run / "panels").mkdir()
    index = []
    for number in range(panels):
        entry: dict[str, Any] = {
            "name": f"seq{number // 2}/frame_{number:04d}",
            **pictures(run / "panels", number, quality),
        }
        entry["miou"] = {"source": mean(SOURCE) + 0.01 * number, method: mean(adapted) + 0.013 * number}
        entry["caption"] = f"image {number + 1} of 48, chosen by even spacing"
        if certainty:
            entry["certainty"] = sure(run / "panels", number, ("source", 0.3, 0.7), (method, 0.2, 0.85))
        index.append(entry)
    (run / "panels" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return run
