"""What a run says when it is trained: figures, the verdict against the control, pictures, the report."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import segshift
from segshift.artefacts.store import read_json, write_json, write_text
from segshift.engine.metrics import Metrics, class_gain_intervals, gain_interval
from segshift.engine.panels import choose_and_write_panels
from segshift.engine.pipeline import fingerprint
from segshift.engine.progress import track
from segshift.errors import UserError
from segshift.feature_pictures import keep_features
from segshift.report import build_report
from segshift.rounds import tell_of_labels
from segshift.run import Run
from segshift.setup import digest, stage_chain
from segshift.tagging import tell_of_tags

CLEAR_GAIN = 0.005
"""Half a point of mIoU: a smaller difference is called none."""


@dataclass(frozen=True)
class Measured:
    """What evaluation.json keeps.

    Attributes:
        models: metrics by stage, and those of the average ("advent + minent") where the settings have one.
        interval: of the gain of the adapted model over the control, where there is one.
        steps: of the gain of every row of the ablation over the row above it; None for the first.
        by_class: of the gain of each class, as `interval`; None where it was not measured.
    """

    models: dict[str, Metrics]
    interval: list[float] | None
    steps: list[list[float] | None]
    by_class: list[list[float] | None] | None = None


def finish(run: Run) -> dict[str, Any] | None:
    """Evaluate a trained run where it has a labelled part, and write metrics, pictures and the report.

    Returns:
        The verdict, {"text", "gain", "helped"}, or None where nothing could be measured.

    Raises:
        UserError: a result cannot be written. Labels and pictures that cannot be read raise nothing: they are told
            of, since training needed none.
    """
    environment(run)
    measured: Measured | None = None
    if run.domains.val is not None:
        try:
            measured = _measured(run)
        except UserError as error:
            run.say(f"not evaluated: {error}\nthe model is trained; mend the labels and run the same command again")
    verdict = None
    if measured:
        verdict = _write_metrics(run, measured)
    else:
        _forget_metrics(run)
    try:
        _write_panels(run, measured.models if measured else {})
    except UserError as error:
        run.say(f"no pictures in the report: {error}")
    tell_of_labels(run)
    tell_of_tags(run, measured.models if measured else {})
    try:
        keep_features(run.root, run.settings, run.device, draw=run.settings.panels > 0)
    except UserError as error:
        run.say(f"no feature pictures in the report: {error}")
    build_report(run.root)
    return verdict


def _measured(run: Run) -> Measured:
    """Metrics of every stage to compare, and intervals of gains.

    They are kept in evaluation.json, and measured again when anything changed.
    """
    assert run.domains.val is not None
    stages = [read_json(run.folder(name) / "stage.json")["fingerprint"] for name in run.compared]
    rows = [row.stage for row in run.settings.ablation]
    average = run.settings.average
    wholes = {name: [name] for name in run.compared} | ({" + ".join(average): list(average)} if average else {})
    decisive = {
        "val": digest(run.domains.val),
        "options": run.settings.evaluation.model_dump(mode="json"),
        "size": run.size,
        **({"ablation": rows} if rows else {}),
        **({"average": average} if average else {}),
    }
    wanted = fingerprint(decisive, "/".join(stages))
    path = run.root / "evaluation.json"
    # A damaged file is as good as none.
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        known = read_json(path)
        if known["fingerprint"] == wanted:
            models = {name: Metrics.from_dict(known["models"][name]) for name in wholes}
            steps = [known["ablation"][place] for place in range(len(rows))]
            return Measured(models, known["interval"], steps, known.get("by_class"))
    models = {}
    # Networks of an average are looked at one after the other at each image, which is one step of the bar.
    with track("evaluate", len(wholes) * len(run.domains.val)) as bar:
        for name, parts in wholes.items():
            models[name] = run.measure([run.predictor(part) for part in parts], run.domains.val, progress=bar)
    control = models.get(run.settings.control or "")
    interval = _interval(control, models[run.adapted])
    by_class = _class_intervals(control, models[run.adapted])
    above = [models[name] for name in rows]
    steps = [_interval(before, after) for before, after in zip([None, *above], above, strict=False)]
    kept = {name: metrics.to_dict() for name, metrics in models.items()}
    content = {"fingerprint": wanted, "models": kept, "interval": interval, "by_class": by_class}
    write_json(path, content | {"ablation": steps} if rows else content)
    return Measured(models, interval, steps, by_class)


def _interval(before: Metrics | None, after: Metrics) -> list[float] | None:
    """Of the gain, over the choice of the images, where there are two models."""
    bounds = gain_interval(before, after) if before and before is not after else None
    return list(bounds) if bounds else None


def _class_intervals(before: Metrics | None, after: Metrics) -> list[list[float] | None] | None:
    """`_interval` of each class's gain."""
    bounds = class_gain_intervals(before, after) if before and before is not after else None
    return [list(each) if each else None for each in bounds] if bounds else None


def verdict_of(
    control: str, adapted: str, measured: dict[str, Metrics], interval: list[float] | None = None
) -> dict[str, Any]:
    """Did adaptation help, against the stage `control`? In words, with the numbers; a gain whose interval holds 0 is
    no clear one."""
    before, after = measured[control].miou, measured[adapted].miou
    gain = after - before
    against = f"{control} (the source-only control) {100 * before:.1f}"
    numbers = f"{adapted} {100 * after:.1f} mIoU, {against}: {100 * gain:+.1f} points"
    low, high = interval or (gain, gain)
    if interval:
        numbers += f" (95 % interval over the images {100 * low:+.1f} to {100 * high:+.1f})"
    if gain > CLEAR_GAIN and low > 0:
        state, judgement = "helped", "Adaptation helped"
    elif gain < -CLEAR_GAIN and high < 0:
        state, judgement = "hurt", f"Adaptation hurt: use the model of {control}, or try another method"
    else:
        state, judgement = "same", "Adaptation made no clear difference"
    return {
        "text": f"{judgement}. {numbers}.",
        "gain": gain,
        "interval": interval,
        "state": state,
        "helped": state == "helped",
    }


def _forget_metrics(run: Run) -> None:
    """Figures of an earlier model or labelled part must not stand beside this one."""
    for suffix in ("json", "csv", "md"):
        (run.root / f"metrics.{suffix}").unlink(missing_ok=True)


def _write_metrics(run: Run, measured: Measured) -> dict[str, Any]:
    control, adapted, models = run.settings.control, run.adapted, measured.models
    last = models[adapted]
    if control and control != adapted:
        verdict = verdict_of(control, adapted, models, measured.interval)
    else:
        verdict = {"text": f"{adapted}: {100 * last.miou:.1f} mIoU (no control to compare with)", "gain": None}
    assert run.domains.val is not None
    rows = ablation_rows(run, measured)
    write_json(
        run.root / "metrics.json",
        {
            "domain": str(run.domains.val.settings.root),
            "images": last.images,
            "classes": list(run.domains.classes.names),
            "palette": [list(colour) for colour in run.domains.classes.palette],
            "control": control if control != adapted else None,
            "adapted": adapted,
            "models": {name: metrics.to_dict() for name, metrics in models.items()},
            "verdict": verdict,
            **({"gain_intervals": measured.by_class} if measured.by_class else {}),
            **({"ablation": rows} if rows else {}),
        },
    )
    write_text(run.root / "metrics.csv", _csv(last, {row["stage"]: models[row["stage"]] for row in rows}))
    lines = [last.markdown_header(), *(metrics.markdown_row(name) for name, metrics in models.items())]
    write_text(run.root / "metrics.md", "\n".join([*lines, *_ablation_table(rows)]) + "\n")
    return verdict


def ablation_rows(run: Run, measured: Measured) -> list[dict[str, Any]]:
    """The ablation as metrics.json has it: fractions, null where there is nothing to compare with.

    `over_above` is the gain over the row above, `interval` its 95 % interval over the images (null for fewer than two
    images), `over_first` the gain over the first row.
    """
    rows = run.settings.ablation
    reached = [measured.models[row.stage].miou for row in rows]
    return [
        {
            "stage": row.stage,
            "name": row.title,
            "miou": reached[place],
            "over_above": reached[place] - reached[place - 1] if place else None,
            "interval": measured.steps[place],
            "over_first": reached[place] - reached[0] if place else None,
        }
        for place, row in enumerate(rows)
    ]


def _ablation_table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, in percent and points, after an empty one; none without rows."""
    if not rows:
        return []

    def points(gain: float | None) -> str:
        return "" if gain is None else f"{100 * gain:+.1f}"

    titles = [row["name"].replace("|", "\\|") for row in rows]
    return [
        "",
        f"| ablation | stage | mIoU | over the row above | 95 % interval | over {titles[0]} |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {title} | {row['stage']} | {100 * row['miou']:.1f} | {points(row['over_above'])}"
            f" | {' to '.join(map(points, row['interval'] or ()))} | {points(row['over_first'])} |"
            for title, row in zip(titles, rows, strict=True)
        ),
    ]


def _csv(last: Metrics, rows: dict[str, Metrics]) -> str:
    """The result's `to_csv` with the IoU column of each stage of the ablation after its own columns."""
    lines = list(csv.reader(io.StringIO(last.to_csv())))
    for name, metrics in rows.items():
        iou = [line[1] for line in csv.reader(io.StringIO(metrics.to_csv()))]
        lines = [[*line, value] for line, value in zip(lines, [f"iou of {name}", *iou[1:]], strict=True)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _write_panels(run: Run, measured: dict[str, Metrics]) -> None:
    if run.settings.panels == 0:
        return
    control = run.settings.control if run.settings.control != run.adapted else None
    # Without a control, how sure the network was is shown of the first stage on the way.
    start = control or stage_chain(run.settings)[0]
    choose_and_write_panels(
        run.root / "panels",
        {name: run.predictor(name) for name in dict.fromkeys((start, run.adapted))},
        control,
        run.adapted,
        run.domains.val if measured and run.domains.val else run.domains.target,
        size=run.size,
        count=run.settings.panels,
        options=run.settings.evaluation,
        device=run.device,
        precision=run.settings.precision,
        metrics=measured or None,
        start=start,
    )


def environment(run: Run) -> None:
    """Write env.json: what this run was made with and on."""
    packages = ("torch", "numpy", "pillow", "kornia", "safetensors")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    named = (run.domains.source, run.domains.target, run.domains.val)
    write_json(
        run.root / "env.json",
        {
            "domains": {d.name: {"root": str(d.settings.root), "images": len(d)} for d in named if d is not None},
            "versions": {
                "segshift": segshift.__version__,
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in packages},
            },
            "machine": {
                "system": platform.platform(),
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gpu": gpu,
            },
            # A Python program's own arguments would say nothing.
            "command": shlex.join(["segshift", *sys.argv[1:]]) if Path(sys.argv[0]).name == "segshift" else None,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
