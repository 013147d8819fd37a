"""A run that learned from weak labels, drawn rather than trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_run import ADAPTED, CLASSES, PALETTE, SOURCE, metrics, model, stage, write_run
from page_reader import change
from PIL import Image

FOLDER = "03-weak_labels"
CONTROL = tuple(None if iou is None else iou + 0.01 for iou in SOURCE)
PRESENT = [90, 80, 100, 40, 70, 60, 95, 99, 30, 85, 0]
"""In how many of a hundred images each class is."""


def network(name: str, precision: float, recall: float, per_image: float) -> dict[str, Any]:
    """A network's figures: each class is a hundredth worse than the one before it; the last one is never there."""
    classes: list[dict[str, Any]] = [
        {"guessed": 50 + k, "precision": precision - 0.01 * k, "recall": recall - 0.01 * k} for k in range(10)
    ]
    classes.append({"guessed": 0, "precision": None, "recall": None})
    return {"name": name, "per_image": per_image, "precision": precision, "recall": recall, "classes": classes}


def part(by: str = "tags", domain: str = "/data/camvid/train", **over: Any) -> dict[str, Any]:
    """A measurement."""
    return {
        "by": by, "domain": domain, "of": 367, "learned": by == "tags", "images": 100, "present": PRESENT,
        "per_image": 7.49,
        "networks": [network("source_only", 0.912, 0.634, 5.2), network("weak_labels", 0.956, 0.873, 6.8)],
        **over,
    }  # fmt: skip


def content(*parts: dict[str, Any], **over: Any) -> dict[str, Any]:
    """A tags.json."""
    return {
        "fingerprint": "4be1", "mode": "points", "threshold": 0.2, "sharpness": 1.0, "fewest_pixels": 50,
        "classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE],
        "named": {
            "labelled": 367,
            "images": [300 + k for k in range(10)] + [1],
            "points": [400 + k for k in range(9)] + [1, 0],
        },
        "parts": list(parts or [part()]), **over,
    }  # fmt: skip


def write_log(run: Path, present: Sequence[float], pooled: Sequence[float] = (0.1, 0.4, 0.9)) -> None:
    """A log.jsonl whose figures go through these values."""
    count = len(present)
    lines = []
    for place, value in enumerate(present):
        logit = pooled[min(place * len(pooled) // count, len(pooled) - 1)]
        figures = {"present": value, "pooled_logit": logit}
        step = 20 * (place + 1)
        lines.append({"step": step, "loss": {"seg": 0.5 / step}, "figures": figures, "lr": {"net": 1e-4}})
    (run / FOLDER / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_attention(run: Path, panels: int = 2) -> None:
    """Pictures of attention in a noisy scene."""
    folder = run / FOLDER / "attention"
    folder.mkdir()
    entries = []
    for number in range(panels):
        rng = np.random.default_rng(number)
        names = [f"{number:03d}-{kind}.jpg" for kind in ("image", "map0", "map1")]
        for name in names:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            coarse.resize((320, 240)).save(folder / name, quality=80)
        maps = [
            {"network": "source_only", "file": names[1], "probability": 0.41, "half": 0.123},
            {"network": "weak_labels", "file": names[2], "probability": 0.93, "half": 0.0314},
        ]
        entries.append(
            {
                "class": CLASSES[number],
                "name": f"seq0/frame_{number:04d}",
                "caption": "+12.3 IoU points over source_control",
                "points": number,
                "image": names[0],
                "maps": maps,
            }
        )
    (folder / "index.json").write_text(json.dumps({"fingerprint": "4be1", "panels": entries}), encoding="utf-8")


def write_weak_run(run: Path, panels: int = 1) -> Path:
    """A run of three stages, the last of which learned from points."""
    write_run(run, panels=panels, method="weak_labels")
    shutil.rmtree(run / "01-source")
    shutil.rmtree(run / "02-adapt")
    names = ("source_only", "source_control", "weak_labels")
    for number, name in enumerate(names):
        method = name if number == 2 else "source_only"
        stage(run, f"0{number + 1}-{name}", method, "", {"seg": (2.4, 0.4)}, min(number, 1))
        change(run / f"0{number + 1}-{name}" / "stage.json", init=names[0] if number else None)
    known = {name: model(iou) for name, iou in zip(names, (SOURCE, CONTROL, ADAPTED), strict=True)}
    scores = metrics(method="weak_labels") | {"control": "source_control", "models": known}
    (run / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    (run / FOLDER / "tags.json").write_text(json.dumps(content()), encoding="utf-8")
    write_log(run, [9.0, 8.0, 7.5, 7.4])
    write_attention(run)
    return run
