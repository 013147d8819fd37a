"""What `bench/real_pair.py` adds to its table: the peak memory of a step of each method, and the table as a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import torch

import memory
from segshift.artefacts.store import write_json

SHAPE: dict[str, Any] = {
    "device": "cpu", "net": "deeplab_lite", "option": [], "crop": (240, 320), "source": None, "whole": (240, 320),
    "classes": 11, "keep": False, "spare": 4.0,
}  # fmt: skip
"""Of the runs: `deeplab_lite`, 320x240, 11 classes; batch 4 and bf16 below."""

BOUNDS = ("source_only", "oracle")
"""Rows that are drawn as lines, too."""

COLOURS = {"bound": "#8a8f98", "control": "#b9bec6", "method": "#2d6ca2"}


def step_memory(methods: Iterable[str], runs: Path) -> dict[str, float]:
    """Peak GiB of a training step by method, measured once by `bench/memory.py` and kept in the runs' folder."""
    path = runs / "memory.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if known.get("torch") != torch.__version__:
        known = {"torch": torch.__version__, "methods": {}}
    for method in methods:
        if method not in known["methods"]:
            found = memory.row(argparse.Namespace(**SHAPE, method=method), 4, "bf16")
            if found is not None:
                known["methods"][method] = round(found["peak"] / memory.GIB, 2)
                write_json(path, known)
    return {method: float(known["methods"][method]) for method in methods if method in known["methods"]}


def chart(miou: dict[str, list[float]], path: Path) -> None:
    """The rows' mean mIoU in the table's order, with a small dot a seed; the same bytes for the same figures.

    Args:
        miou: percent of each seed, by row.
        path: the SVG to write.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(miou)
    mean = [sum(values) / len(values) for values in miou.values()]
    kind = ["bound" if n in BOUNDS else "control" if n.startswith("source_") else "method" for n in names]
    places = range(len(names) - 1, -1, -1)
    with matplotlib.rc_context({"svg.hashsalt": "segshift", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7, 0.28 * len(names) + 0.9), layout="constrained")
        axes.scatter(mean, places, s=46, color=[COLOURS[each] for each in kind], zorder=2)
        for place, values, value in zip(places, miou.values(), mean, strict=True):
            if len(values) > 1:
                axes.plot(values, [place] * len(values), "k.", markersize=3, zorder=3)
            axes.annotate(f"{value:.1f}", (max(values), place), (8, 0), textcoords="offset points", va="center")
        for name in BOUNDS:
            if name in miou:
                axes.axvline(mean[names.index(name)], color=COLOURS["bound"], linewidth=0.8, linestyle=":")
        axes.set_yticks(places, names)
        axes.set_xlim(min(mean) - 2, max(mean) + 2)
        axes.set(xlabel="mIoU on val, percent")
        axes.grid(axis="both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
