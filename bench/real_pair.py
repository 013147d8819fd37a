"""Every method on a synthetic → real pair at the CPU budget; writes docs/results.md. The same command again resumes.

    python bench/real_pair.py --data ../shared/data            # all methods, seed 0
    python bench/real_pair.py --data ../shared/data --seeds 0 1 2 --methods advent
    python bench/real_pair.py --data ../shared/data --write-only

The pair is "segshift city" (rendered streets, labels) → CamVid (its training images without labels; figures on its
validation part). It is not part of the package. The oracle alone reads the target's training labels: it is source-only
training on both domains' labelled images, for as many images as an adaptation sees.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evidence
import own_figures
import selection
import weak_curve
from segshift import recipes
from segshift.weak.store import WeakStore

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"


@dataclass(frozen=True)
class Row:
    """One row of the table: its name, the words of its command, and what it is.

    `ensemble` names two rows whose models are averaged; `of` a row and the stage on the way to it that this is: no
    command is needed. `control` is the row that trained on the source alone for as long. `alone`: it has a table of
    its own and is no row of the others'.
    """

    name: str
    words: tuple[str, ...]
    about: str
    ensemble: tuple[str, str] | None = None
    of: tuple[str, str] | None = None
    control: str = "source_control"
    alone: bool = False


CONTROL, TWO = "source_control", "source_control_1000"
"""The control's stage in a run, and the row of the one that is as long as two rounds."""

WEAK = ("--method", "weak_labels")
ROWS = [
    Row("source_only", ("--method", "source_only"), "800 steps on the source: what every adaptation starts from"),
    Row(
        "source_control",
        (),
        "500 more steps on the source: the control of a stage",
        of=("advent", CONTROL),
    ),
    Row(
        "source_control_1000",
        (),
        "1000 more steps on the source: the control of two rounds",
        of=("weak_points", CONTROL),
    ),
    Row("source_control_1300", (), "1300 more steps: the control of ProDA's three stages", of=("proda", CONTROL)),
    Row(
        "source_only_long",
        ("--method", "source_only", "--set", "source_only.steps=1300"),
        "1300 steps on the source in one go",
    ),
    Row("adaptsegnet", ("--method", "adaptsegnet"), "source_only, then 500 steps"),
    Row("minent", ("--method", "minent"), "source_only, then 500 steps"),
    Row("advent", ("--method", "advent"), "source_only, then 500 steps"),
    Row("advent+minent", (), "the two above, logits averaged at test time", ("advent", "minent")),
    Row("self_training", ("--method", "self_training"), "source_only, then 500 steps on labels by per-class medians"),
    Row("cbst round 1", (), "source_only, then 500 steps on its own labels", of=("cbst", "cbst_1")),
    Row("cbst", ("--method", "cbst"), "round 1, then 500 steps on labels of its network", control=TWO),
    Row("crst round 1", (), "source_only, then 500 steps (MRKLD)", of=("crst", "crst_1")),
    Row("crst", ("--method", "crst"), "round 1, then 500 steps on labels of its network", control=TWO),
    Row("tpld phase 1", (), "source_only, then 500 steps on labels densified by voting", of=("tpld", "tpld_1")),
    Row("tpld", ("--method", "tpld"), "phase 1, then 500 steps: easy images in full, hard ones aligned", control=TWO),
    Row("proda warm-up", (), "source_only, then 500 steps of adaptsegnet", of=("proda", "warm_up")),
    Row("proda stage 1", (), "warm-up, then 300 steps on denoised labels", of=("proda", "denoise"), control=TWO),
    Row("proda", ("--method", "proda"), "stage 1, then 500 steps of distillation", control="source_control_1300"),
    Row("proda_ablation", ("--recipe", "cpu/proda_ablation"), "ProDA with more and more of its parts", alone=True),
    Row(
        "weak_pseudo",
        (*WEAK, "--set", "weak_labels.mode=pseudo"),
        "adaptsegnet, then 500 steps with tags that the network guesses",
        control=TWO,
    ),
    Row(
        "weak_tags",
        (*WEAK, "--set", "weak_labels.mode=tags"),
        "adaptsegnet, then 500 steps with tags of all target images",
        control=TWO,
    ),
    Row(
        "weak_points",
        (*WEAK, "--set", "weak_labels.mode=points"),
        "adaptsegnet, then 500 steps with one point a class and image",
        control=TWO,
    ),
    *[
        Row(
            f"weak_points_{count}",
            (*WEAK, "--set", "weak_labels.mode=points", "--set", f"weak_labels.weak_images={count}"),
            f"points on {count} images alone",
            alone=True,
        )
        for count in weak_curve.COUNTS
    ],
    Row(
        "oracle",
        ("--method", "source_only", "--set", "source_only.steps=1300", "--set", "batch_size=8"),
        "1300 steps of 8 images on source and target labels: the bound",
    ),
]


ABLATION = [
    Row(f"proda ablation: {part['name']}", (), "", of=("proda_ablation", part["stage"]))
    for part in recipes.read("cpu/proda_ablation")["ablation"]
]
"""The rows of ProDA's ablation, as its recipe names them."""

SELF_TRAINING = ("self_training", "cbst", "crst", "tpld", "proda")
"""Methods whose pseudo-labels are measured, after training, on the training images' truth."""


def weak_file(data: str) -> Path:
    """The points of the target's training images."""
    return Path(data) / "camvid" / "train" / "weak.jsonl"


def commands(row: Row, data: str, runs: str, seed: int) -> list[list[str]]:
    """The commands that make a row's figures, as words."""
    if row.of:
        return []
    run = f"{runs}/{row.name}-{seed}"
    if row.ensemble:
        first, second = (f"{runs}/{name}-{seed}" for name in row.ensemble)
        return [["segshift", "evaluate", first, "--with", second, "--out", run]]
    source = f"{runs}/oracle-data" if row.name == "oracle" else f"{data}/city"
    places = ("--source", source, "--target", f"{data}/camvid/train", "--val", f"{data}/camvid/val")
    classes = ("--classes", f"{data}/classes.json")
    fixed: tuple[str, ...] = ("--set", f"seed={seed}", "--set", "size=[320,240]")
    if row.words[1].removeprefix("cpu/").removesuffix("_ablation") in SELF_TRAINING:
        truth = f"truth={{root: {data}/camvid, images: train/images, labels: train_truth/labels}}"
        fixed += ("--set", truth)
    if row.words[1] == "weak_labels":
        fixed += ("--weak", str(weak_file(data)))
    return [["segshift", "adapt", *row.words, *places, *classes, *fixed, "--out", run]]


def link_oracle_data(data: Path, folder: Path) -> None:
    """Source and target training images with their labels, as one labelled domain of links."""
    parts = [
        (data / "city" / "images", data / "city" / "labels"),
        (data / "camvid" / "train" / "images", data / "camvid" / "train_truth" / "labels"),
    ]
    for kind, place in (("images", 0), ("labels", 1)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for part in parts:
            for file in part[place].iterdir():
                link = folder / kind / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())


def run_row(row: Row, options: argparse.Namespace, seed: int) -> None:
    if row.name == "oracle":
        link_oracle_data(Path(options.data), Path(options.runs) / "oracle-data")
    for words in commands(row, options.data, options.runs, seed):
        print("$", shlex.join(words), flush=True)
        subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def metrics_of(row: Row, runs: Path, seed: int) -> dict[str, Any] | None:
    """The model's metrics of a finished row, or None."""
    run, stage = row.of or (row.name, "")
    path = runs / f"{run}-{seed}" / "metrics.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    if "models" not in content:
        return content
    found: dict[str, Any] | None = content["models"].get(stage or content["adapted"])
    return found


def last_stage(row: Row, runs: Path, seed: int) -> dict[str, Any]:
    """What is kept of the row's own last stage, such as its method and seconds; empty where it has none."""
    run, name = row.of or (row.name, "")
    stages = sorted((runs / f"{run}-{seed}").glob("[0-9][0-9]-*/stage.json"))
    known = [json.loads(stage.read_text()) for stage in stages if stage.parent.suffix != ".aside"]
    return next((stage for stage in reversed(known) if not name or stage["name"] == name), {})


def percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def gain_cells(
    miou: dict[int, float], control: dict[int, dict[str, Any]], oracle: dict[int, dict[str, Any]]
) -> tuple[str, str]:
    """Mean gain over a control of the same seed in points, and the share of the way to the oracle."""
    gains = {seed: value - control[seed]["miou"] for seed, value in miou.items() if seed in control}
    shares = [gain / (oracle[seed]["miou"] - control[seed]["miou"]) for seed, gain in gains.items() if seed in oracle]
    return (
        f"{100 * statistics.mean(gains.values()):+.1f}" if gains else "",
        f"{100 * statistics.mean(shares):.0f} %" if shares else "",
    )


def table(runs: Path, seeds: list[int]) -> list[str]:
    found = {row.name: {s: m for s in seeds if (m := metrics_of(row, runs, s))} for row in ROWS if not row.alone}
    classes: list[str] = next((m["classes"] for by_seed in found.values() for m in by_seed.values()), [])
    lines = [
        "| method | seeds | mIoU | over source_only | of the gap | over its control | of the gap | "
        + " | ".join(classes)
        + " | pixel acc. | minutes | GiB |",
        "|---|" + "---:|" * (9 + len(classes)),
    ]
    ends = {row.name: {s: last_stage(row, runs, s) for s in found[row.name]} for row in ROWS if found.get(row.name)}
    memory = evidence.step_memory(dict.fromkeys(e["method"] for by in ends.values() for e in by.values() if e), runs)
    for row in ROWS:
        by_seed = found.get(row.name)
        if not by_seed:
            continue
        miou = {s: m["miou"] for s, m in by_seed.items()}
        per_class = [
            percent([m["iou"][k] for m in by_seed.values() if m["iou"][k] is not None]) for k in range(len(classes))
        ]
        own = [end for end in ends[row.name].values() if end]
        gib = memory.get(own[0]["method"]) if own and row.name != "oracle" else None  # the oracle's batch is another
        cells = [
            row.name,
            ", ".join(map(str, by_seed)),
            percent(list(miou.values())),
            *gain_cells(miou, found["source_only"], found["oracle"]),
            *gain_cells(miou, found[row.control], found["oracle"]),
            *per_class,
            percent([m["pixel_accuracy"] for m in by_seed.values()]),
            f"{min(end['seconds'] for end in own) / 60:.1f}" if own else "",
            "" if gib is None else f"{gib:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    shown = {name: [100 * m["miou"] for m in by_seed.values()] for name, by_seed in found.items() if by_seed}
    evidence.chart(shown, ROOT / "docs" / "images" / "real_pair.svg")
    return lines


def ablation_table(runs: Path, seeds: list[int]) -> list[str]:
    """mIoU of every row of the ablation, and its gains over the row above it and over the first."""
    found = [{s: m for s in seeds if (m := metrics_of(row, runs, s))} for row in ABLATION]
    oracle = next(row for row in ROWS if row.name == "oracle")
    bound = {s: m for s in seeds if (m := metrics_of(oracle, runs, s))}
    if not any(found):
        return []
    lines = [
        "| row | seeds | mIoU | over the row above | over source_only | of the gap |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, above, by_seed in zip(ABLATION, [{}, *found], found, strict=False):
        if by_seed:
            miou = {s: m["miou"] for s, m in by_seed.items()}
            shown = [row.name.partition(": ")[2], ", ".join(map(str, by_seed)), percent(list(miou.values()))]
            shown += [gain_cells(miou, above, {})[0], *gain_cells(miou, found[0], bound)]
            lines.append("| " + " | ".join(shown) + " |")
    return lines


def ablation_section(runs: Path, seeds: list[int]) -> list[str]:
    """ProDA's ablation, where it was run: heading, table, a sentence."""
    lines = ablation_table(runs, seeds)
    if not lines:
        return []
    return [
        "### Ablation of ProDA",
        "",
        "`--recipe cpu/proda_ablation`: each row has one part more than the row above it; the rows of stage 1 start"
        " from the same warm-up and train for as long. The last row is the `proda` of the table above.",
        "",
        *lines,
        "",
    ]


def label_table(runs: Path, seeds: list[int]) -> list[str]:
    """Coverage and precision of every labels stage, of the first seed that has them."""
    lines = ["| run | labels | coverage | precision | added | of those right |", "|---|---|---:|---:|---:|---:|"]
    for name in SELF_TRAINING:
        found = [path for seed in seeds for path in sorted((runs / f"{name}-{seed}").glob("[0-9][0-9]-*/quality.json"))]
        for path in found:
            if path.parent.suffix == ".aside" or path.parent.parent != found[0].parent.parent:
                continue
            stage = json.loads((path.parent / "stage.json").read_text())["name"]
            for row in json.loads(path.read_text())["rows"]:
                added = row["added"] or {"coverage": None, "precision": None}
                figures = (row["coverage"], row["precision"], added["coverage"], added["precision"])
                cells = [name, f"{stage}: {row['name']}", *("" if x is None else percent([x]) for x in figures)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def curve_points(runs: Path, seed: int, data: str) -> dict[int, float]:
    """mIoU in percent by the number of images with points; 0 has none and guesses all tags."""
    weak = WeakStore(weak_file(data))
    pointed = sum(bool(label.points) for label in weak.read().values()) if weak.path.exists() else 0
    named = {pointed: "weak_points", 0: "weak_pseudo", **{n: f"weak_points_{n}" for n in weak_curve.COUNTS}}
    rows = {count: next(row for row in ROWS if row.name == name) for count, name in named.items()}
    return {count: 100 * m["miou"] for count, row in rows.items() if (m := metrics_of(row, runs, seed))}


def write_page(options: argparse.Namespace) -> None:
    runs = Path(options.runs)
    environments = sorted(runs.glob("*/env.json"))
    environment = json.loads(environments[-1].read_text()) if environments else {}
    machine, versions = environment.get("machine", {}), environment.get("versions", {})
    lines = [
        "# Results",
        "",
        "Measured here, written by `bench/real_pair.py`; no number is edited by hand. Published numbers are not here.",
        "",
        "## segshift city → CamVid, CPU budget",
        "",
        "Source: 600 rendered street scenes with labels. Target: CamVid's 367 training images, no labels. Figures: mIoU"
        " and IoU in percent on CamVid's 101 validation images at the labels' full size (480x360), last checkpoint."
        " Working size 320x240, `deeplab_lite` with ImageNet weights, batch 4 + 4. Learning rates and loss weights of"
        " the recipes were chosen on this validation part and on the demo pair; the test part was not used.",
        "",
        *table(runs, options.seeds),
        "",
        "![mIoU of every row](images/real_pair.svg)",
        "",
        "Pseudo-labels of the training images, in percent of all pixels (coverage) and of those with truth (precision),"
        " measured after training on the truth of the training images:",
        "",
        *label_table(runs, options.seeds),
        "",
        "*over*: points of mIoU over that row of the same seed; *its control*: the first of the controls that is"
        " at least as long as the row. *of the gap*: how much of the way from that row to"
        " `oracle`, which trains on the target's labels too. *minutes*: training of the row's own last stage, of"
        " the quickest seed, on a machine that did other work too. *GiB*: peak of one of its steps in bf16, networks"
        " and optimiser included (`bench/memory.py` at these sizes).",
        "",
        *ablation_section(runs, options.seeds),
        *weak_curve.section({s: curve_points(runs, s, options.data) for s in options.seeds}, ROOT / "docs"),
        *selection.section(runs.parent / "select"),
        f"Machine: {machine.get('processor', platform.processor())}, {machine.get('cores', os.cpu_count())} cores,"
        f" torch {versions.get('torch', '?')}, segshift {versions.get('segshift', '?')}.",
        "",
        "| row | what |",
        "|---|---|",
        *[f"| {row.name} | {row.about} |" for row in ROWS if not row.alone],
        "",
        "Commands (of the first seed; `bench/real_pair.py` runs them all):",
        "",
        "```sh",
        *[shlex.join(words) for row in ROWS for words in commands(row, options.data, options.runs, options.seeds[0])],
        "```",
        "",
    ]
    notes = Path(__file__).parent / "results_notes.md"
    if notes.exists():
        lines += [notes.read_text().rstrip(), ""]
    PAGE.write_text("\n".join(lines))
    print(f"wrote {PAGE}")


def seeds_of(runs: Path) -> list[int]:
    """All seeds that a row was run with."""
    names = (path.parent.name.rpartition("-") for path in runs.glob("*/metrics.json"))
    return sorted({int(seed) for name, _, seed in names if seed.isdigit() and name in {row.name for row in ROWS}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--runs", default="runs/real")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--write-only", action="store_true")
    options = parser.parse_args()
    for seed in options.seeds:
        for row in ROWS:
            if row.name in options.methods and not options.write_only:
                run_row(row, options, seed)
    options.seeds = seeds_of(Path(options.runs))
    write_page(options)
    own_figures.main()


if __name__ == "__main__":
    main()
