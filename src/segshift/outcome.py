"""What a run says when it is trained: figures, the verdict against the control, pictures, the report."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import segshift
from segshift.artefacts.store import read_json, write_json, write_text
from segshift.engine.metrics import Metrics, gain_interval
from segshift.engine.panels import choose_and_write_panels
from segshift.engine.pipeline import fingerprint
from segshift.engine.progress import track
from segshift.errors import UserError
from segshift.report import build_report
from segshift.rounds import tell_of_labels
from segshift.run import Run
from segshift.setup import digest

CLEAR_GAIN = 0.005
"""Half a point of mIoU: a smaller difference is called none."""


def finish(run: Run) -> dict[str, Any] | None:
    """Evaluate a trained run where it has a labelled part, and write metrics, pictures and the report.

    Returns:
        The verdict, {"text", "gain", "helped"}, or None where nothing could be measured.

    Raises:
        UserError: a result cannot be written. Labels and pictures that cannot be read raise nothing: they are told
            of, since training needed none.
    """
    environment(run)
    measured: dict[str, Metrics] = {}
    interval: list[float] | None = None
    if run.domains.val is not None:
        try:
            measured, interval = _measured(run)
        except UserError as error:
            run.say(f"not evaluated: {error}\nthe model is trained; mend the labels and run the same command again")
    verdict = None
    if measured:
        verdict = _write_metrics(run, measured, interval)
    else:
        _forget_metrics(run)
    try:
        _write_panels(run, measured)
    except UserError as error:
        run.say(f"no pictures in the report: {error}")
    tell_of_labels(run)
    build_report(run.root)
    return verdict


def _measured(run: Run) -> tuple[dict[str, Metrics], list[float] | None]:
    """Metrics of control and adapted model, and the interval of the gain where there is a control.

    They are kept in evaluation.json, and measured again when anything changed.
    """
    assert run.domains.val is not None
    stages = [read_json(run.folder(name) / "stage.json")["fingerprint"] for name in run.predictors()]
    wanted = fingerprint(
        {"val": digest(run.domains.val), "options": run.settings.evaluation.model_dump(mode="json"), "size": run.size},
        "/".join(stages),
    )
    path = run.root / "evaluation.json"
    # A damaged file is as good as none.
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        known = read_json(path)
        if known["fingerprint"] == wanted:
            return {name: Metrics.from_dict(value) for name, value in known["models"].items()}, known["interval"]
    measured = {}
    nets = run.predictors()
    with track("evaluate", len(nets) * len(run.domains.val)) as bar:
        for name, net in nets.items():
            measured[name] = run.measure([net], run.domains.val, progress=bar)
    control, adapted = measured.get(run.settings.control or ""), measured[run.adapted]
    bounds = gain_interval(control, adapted) if control and control is not adapted else None
    interval = list(bounds) if bounds else None
    models = {name: metrics.to_dict() for name, metrics in measured.items()}
    write_json(path, {"fingerprint": wanted, "models": models, "interval": interval})
    return measured, interval


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


def _write_metrics(run: Run, measured: dict[str, Metrics], interval: list[float] | None) -> dict[str, Any]:
    control, adapted = run.settings.control, run.adapted
    last = measured[adapted]
    if control and control != adapted:
        verdict = verdict_of(control, adapted, measured, interval)
    else:
        verdict = {"text": f"{adapted}: {100 * last.miou:.1f} mIoU (no control to compare with)", "gain": None}
    assert run.domains.val is not None
    write_json(
        run.root / "metrics.json",
        {
            "domain": str(run.domains.val.settings.root),
            "images": last.images,
            "classes": list(run.domains.classes.names),
            "palette": [list(colour) for colour in run.domains.classes.palette],
            "control": control if control != adapted else None,
            "adapted": adapted,
            "models": {name: metrics.to_dict() for name, metrics in measured.items()},
            "verdict": verdict,
        },
    )
    write_text(run.root / "metrics.csv", last.to_csv())
    rows = [last.markdown_header(), *(metrics.markdown_row(name) for name, metrics in measured.items())]
    write_text(run.root / "metrics.md", "\n".join(rows) + "\n")
    return verdict


def _write_panels(run: Run, measured: dict[str, Metrics]) -> None:
    if run.settings.panels == 0:
        return
    nets = run.predictors()
    control = run.settings.control if run.settings.control != run.adapted else None
    choose_and_write_panels(
        run.root / "panels",
        nets,
        control,
        run.adapted,
        run.domains.val if measured and run.domains.val else run.domains.target,
        size=run.size,
        count=run.settings.panels,
        options=run.settings.evaluation,
        device=run.device,
        precision=run.settings.precision,
        metrics=measured or None,
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
