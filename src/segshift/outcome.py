"""What a run says when it is trained: figures, the verdict against source-only, pictures, the report."""

from __future__ import annotations

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
from segshift.engine.metrics import Metrics
from segshift.engine.panels import choose_and_write_panels
from segshift.engine.pipeline import fingerprint
from segshift.engine.progress import track
from segshift.errors import UserError
from segshift.report import build_report
from segshift.run import Run
from segshift.setup import digest

CLEAR_GAIN = 0.005
"""Half a point of mIoU: a smaller difference is called none."""


def finish(run: Run) -> dict[str, Any] | None:
    """Evaluate a trained run where it has a labelled part, and write metrics, pictures and the report.

    Returns:
        The verdict, {"text", "gain", "helped"}, or None where nothing could be measured.

    Raises:
        UserError: a result cannot be written. Labels that cannot be read raise nothing: they are told of in the
            report, since training needed none.
    """
    environment(run.root)
    measured: dict[str, Metrics] | None = None
    if run.domains.val is not None:
        try:
            measured = _measured(run)
        except UserError as error:
            run.say(f"not evaluated: {error}\nthe model is trained; mend the labels, then: segshift evaluate {run.root}")
    verdict = _write_metrics(run, measured) if measured else None
    _write_panels(run, measured)
    build_report(run.root)
    return verdict


def _measured(run: Run) -> dict[str, Metrics]:
    """Metrics of control and adapted model; kept in evaluation.json, and measured again when anything changed."""
    assert run.domains.val is not None
    stages = [read_json(run.folder(name) / "stage.json")["fingerprint"] for name in run.predictors()]
    wanted = fingerprint(
        {"val": digest(run.domains.val), "options": run.settings.evaluation.model_dump(mode="json"), "size": run.size},
        "/".join(stages),
    )
    path = run.root / "evaluation.json"
    if path.exists():
        known = read_json(path)
        if known.get("fingerprint") == wanted:
            return {name: Metrics.from_dict(value) for name, value in known["models"].items()}
    measured = {}
    nets = run.predictors()
    with track("evaluate", len(nets) * len(run.domains.val)) as bar:
        for name, net in nets.items():
            measured[name] = run.measure([net], run.domains.val, progress=bar)
    write_json(path, {"fingerprint": wanted, "models": {name: m.to_dict() for name, m in measured.items()}})
    return measured


def verdict_of(control: str, adapted: str, measured: dict[str, Metrics]) -> dict[str, Any]:
    """Did adaptation help? In words, with the numbers."""
    before, after = measured[control].miou, measured[adapted].miou
    gain = after - before
    numbers = f"{adapted} {100 * after:.1f} mIoU, {control} (source-only) {100 * before:.1f}: {100 * gain:+.1f} points"
    if gain > CLEAR_GAIN:
        judgement = "Adaptation helped"
    elif gain < -CLEAR_GAIN:
        judgement = "Adaptation hurt: use the source-only model, or try another method"
    else:
        judgement = "Adaptation made no clear difference"
    return {"text": f"{judgement}. {numbers}.", "gain": gain, "helped": gain > CLEAR_GAIN}


def _write_metrics(run: Run, measured: dict[str, Metrics]) -> dict[str, Any]:
    control, adapted = run.settings.control, run.adapted
    last = measured[adapted]
    if control and control != adapted:
        verdict = verdict_of(control, adapted, measured)
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


def _write_panels(run: Run, measured: dict[str, Metrics] | None) -> None:
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
        metrics=measured,
    )


def environment(root: Path) -> None:
    """Write env.json: what this run was made with and on."""
    packages = ("torch", "numpy", "pillow", "kornia", "safetensors")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    write_json(
        root / "env.json",
        {
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
            "command": shlex.join(["segshift", *sys.argv[1:]]),
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
