"""mIoU against the number of images with points: a table and one picture, of figures from `bench/real_pair.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

COUNTS = (10, 30, 100)
"""Numbers of images with points between none and all."""


def section(by_seed: dict[int, dict[int, float]], docs: Path) -> list[str]:
    """Heading, table and picture of the curve; nothing where no seed has three figures.

    Args:
        by_seed: percent by the number of images with points, of each seed.
        docs: folder of the page; the picture goes below it.
    """
    by_seed = {seed: miou for seed, miou in by_seed.items() if len(miou) >= 3}
    if not by_seed:
        return []
    draw(by_seed, docs / "images" / "weak_curve.svg")
    counts = sorted({count for miou in by_seed.values() for count in miou})
    rows = [
        f"| {seed} | " + " | ".join(f"{miou[count]:.1f}" if count in miou else "" for count in counts) + " |"
        for seed, miou in by_seed.items()
    ]
    return [
        "### Weak labels: how many images need points",
        "",
        "mIoU of `weak_points` with points on a part of the target's training images (the first N of one order, so"
        " that each part holds the smaller ones); the other images' tags are guessed. 0 is `weak_pseudo`.",
        "",
        "| seed; images with points: | " + " | ".join(map(str, counts)) + " |",
        "|---|" + "---:|" * len(counts),
        *rows,
        "",
        "![mIoU on the validation images against the number of images with points](images/weak_curve.svg)",
        "",
    ]


def draw(by_seed: dict[int, dict[int, float]], path: Path) -> None:
    """The curve of each seed, as an SVG that is the same for the same figures; linear up to 10 images, then
    logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = sorted({count for miou in by_seed.values() for count in miou})
    with matplotlib.rc_context({"svg.hashsalt": "segshift", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
        for (seed, miou), marker in zip(by_seed.items(), "os^", strict=False):
            counts = sorted(miou)
            line = "-" if counts == shown else ""  # a line over what was not measured would say that it was
            heights = [miou[count] for count in counts]
            axes.plot(counts, heights, marker=marker, linestyle=line, color="#2d6ca2", label=f"seed {seed}")
            for count, height in zip(counts, heights, strict=True):
                top = height >= max(other[count] for other in by_seed.values() if count in other)
                offset = (0, 7) if top else (0, -15)
                axes.annotate(f"{height:.1f}", (count, height), offset, textcoords="offset points", ha="center")
        if len(by_seed) > 1:
            axes.legend(frameon=False, loc="upper left")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xticks(shown, [str(count) for count in shown])
        axes.minorticks_off()
        axes.margins(y=0.18)
        axes.set(xlabel="target images with points (one point a class)", ylabel="mIoU on val, percent")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
