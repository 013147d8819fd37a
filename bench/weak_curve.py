"""mIoU against the number of images with points: a table and one picture, of figures from `bench/real_pair.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

COUNTS = (10, 30, 100)
"""Numbers of images with points between none and all."""


def section(miou: dict[int, float], docs: Path) -> list[str]:
    """Heading, table and picture of the curve; nothing with fewer than three figures.

    Args:
        miou: percent, by the number of images with points.
        docs: folder of the page; the picture goes below it.
    """
    if len(miou) < 3:
        return []
    draw(miou, docs / "images" / "weak_curve.svg")
    counts = sorted(miou)
    return [
        "### Weak labels: how many images need points",
        "",
        "`weak_points` with points on a part of the target's training images (the first N of one order, so"
        " that each part holds the smaller ones); the other images' tags are guessed. 0 is `weak_pseudo`. One seed.",
        "",
        "| images with points | " + " | ".join(map(str, counts)) + " |",
        "|---|" + "---:|" * len(counts),
        "| mIoU | " + " | ".join(f"{miou[count]:.1f}" for count in counts) + " |",
        "",
        "![mIoU on the validation images against the number of images with points](images/weak_curve.svg)",
        "",
    ]


def draw(miou: dict[int, float], path: Path) -> None:
    """The curve as an SVG that is the same for the same figures; linear up to 10 images, then logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts = sorted(miou)
    with matplotlib.rc_context({"svg.hashsalt": "segshift", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
        axes.plot(counts, [miou[count] for count in counts], marker="o", color="#2d6ca2")
        for count in counts:
            axes.annotate(f"{miou[count]:.1f}", (count, miou[count]), (0, 7), textcoords="offset points", ha="center")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.margins(y=0.18)
        axes.set(xlabel="target images with points (one point a class)", ylabel="mIoU on val, percent")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
