"""A run with an ablation, drawn rather than trained: seven rows, one of which loses, on five branches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from fake_labels import train_stage, write
from fake_run import SOURCE, mean, metrics, model, write_run

IOU = {
    "source_only": 1.00, "source_control": 1.09, "warm_up": 1.20, "offline": 1.32, "symmetric": 1.31,
    "weighed": 1.58, "denoise": 1.66, "distill_2": 1.81,
}  # fmt: skip
"""What each stage reached, in multiples of SOURCE."""

NAMES = {
    "source_only": "source-only", "warm_up": "warm-up", "offline": "+ offline pseudo-labels",
    "symmetric": "+ symmetric cross-entropy", "weighed": "+ denoising", "denoise": "+ structure learning",
    "distill_2": "+ distillation",
}  # fmt: skip
"""The table's rows by stage."""

INIT = {
    "source_control": "source_only", "warm_up": "source_only", "distill_2": "denoise",
    **dict.fromkeys(("offline", "symmetric", "weighed", "denoise"), "warm_up"),
}  # fmt: skip
METHOD = {
    "source_only": "source_only",
    "source_control": "source_only",
    "warm_up": "adaptsegnet",
    "distill_2": "distill",
}


def reached(stage: str) -> tuple[float | None, ...]:
    """IoU of each class; the last class that occurs loses what the others gain."""
    *others, last, absent = (None if iou is None else min(1.0, IOU[stage] * iou) for iou in SOURCE)
    return *others, None if last is None else last * (2 - IOU[stage]), absent


def rows() -> list[dict[str, Any]]:
    """The ablation of metrics.json."""
    found: list[dict[str, Any]] = []
    miou = {stage: mean(reached(stage)) for stage in NAMES}
    for place, (stage, name) in enumerate(NAMES.items()):
        gain = miou[stage] - miou[list(NAMES)[place - 1]] if place else None
        found.append(
            {
                "stage": stage,
                "name": name,
                "miou": miou[stage],
                "over_above": gain,
                "interval": None if gain is None else [gain - 0.011, gain + 0.009],
                "over_first": miou[stage] - miou["source_only"] if place else None,
            }
        )
    return found


def write_ablation_run(run: Path, *, panels: int = 2) -> Path:
    """Write a whole finished run."""
    write_run(run, method="distill", panels=panels)
    for folder in ("01-source", "02-adapt"):
        shutil.rmtree(run / folder)
    stages: list[dict[str, Any]] = []
    for number, name in enumerate(IOU, 1):
        train_stage(run, f"{number:02d}-{name}", METHOD.get(name, "proda"), 200)
        stages.append({"name": name, "method": METHOD.get(name, "proda"), "steps": 200, "init": INIT.get(name)})
    table = [{"stage": stage, "name": name} for stage, name in NAMES.items()]
    (run / "run.yaml").write_text(
        yaml.safe_dump({"control": "source_control", "ablation": table, "stages": stages}, sort_keys=False),
        encoding="utf-8",
    )
    scores = metrics() | {"control": "source_control", "adapted": "distill_2", "ablation": rows()}
    scores["models"] = {name: model(reached(name)) for name in IOU}
    gain = mean(reached("distill_2")) - mean(reached("source_control"))
    scores["verdict"] = {"text": "", "gain": gain, "helped": True}
    write(run / "metrics.json", scores)
    assert json.loads((run / "metrics.json").read_text())["ablation"]
    return run
