"""What a run says of its pseudo-labels when it is trained: how often they are right, and pictures of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from segshift.artefacts.store import read_json, write_json
from segshift.engine import checkpoint
from segshift.engine.inference import as_input, evaluating
from segshift.engine.label_panels import write_label_panels
from segshift.engine.label_quality import label_quality
from segshift.engine.labelling import read_thresholds
from segshift.engine.pipeline import fingerprint
from segshift.engine.progress import track
from segshift.errors import UserError
from segshift.methods.base import Method
from segshift.run import Run
from segshift.setup import digest

PANELS = 6
"""Images of a labels stage in the report, at most."""


def tell_of_labels(run: Run) -> None:
    """Write quality.json and panels/ into the folder of every labels stage; what cannot be read is told of."""
    for name in [stage.name for stage in run.settings.stages if stage.produce == "pseudo_labels"]:
        for tell in (_write_quality, _write_panels):
            try:
                tell(run, name)
            except UserError as error:
                run.say(f"{name}: not everything about these pseudo-labels can be shown: {error}")


def _write_quality(run: Run, name: str) -> None:
    """Measured again only when the labels, or the images to measure on, changed; until it is, there are no figures."""
    folder, truth = run.folder(name), run.domains.truth or run.domains.val
    path = folder / "quality.json"
    if truth is None:
        path.unlink(missing_ok=True)
        return
    wanted = fingerprint({"truth": digest(truth)}, str(read_json(folder / "stage.json")["fingerprint"]))
    with contextlib.suppress(UserError, LookupError, TypeError):
        if read_json(path)["fingerprint"] == wanted:
            return
    path.unlink(missing_ok=True)
    labeller = run.production.labeller(name)
    split, easy_from = labeller.settings.split, read_json(folder / "statistics.json")["easy_cutoff"]
    if split is not None and split.mode == "threshold":
        easy_from = split.value
    with track(f"quality of {name}", len(truth)) as bar:
        quality = label_quality(
            labeller,
            read_thresholds(folder),
            easy_from,
            truth,
            workers=run.settings.workers,
            progress=bar,
        )
    write_json(path, {**quality, "fingerprint": wanted})


def _write_panels(run: Run, name: str) -> None:
    """Where the truth cannot be read, there are the same pictures without it.

    Raises:
        UserError: a file cannot be read or written; of the truth's, after the pictures were.
    """
    folder, count = run.folder(name), min(PANELS, run.settings.panels)
    if not count:
        return
    write = partial(
        write_label_panels,
        folder / "panels",
        folder,
        run.domains.target,
        read_json(folder / "statistics.json")["per_image"],
        run.size,
        count,
        discriminator=_discriminator(run, name),
    )
    try:
        write(truth=run.domains.truth)
    except UserError:
        if run.domains.truth is not None:
            write()
        raise


def _discriminator(run: Run, labels: str) -> Callable[[np.ndarray], float] | None:
    """What the discriminator of the stage that learned from these labels says of an image, where it has one."""
    for stage in run.settings.stages:
        if stage.labels != labels or "easy" not in run.needs[stage.name]:
            continue
        method = run.build(stage)
        checkpoint.restore(run.folder(stage.name) / checkpoint.FILE, method, {})
        return partial(_easiness, method.to(run.device), run.device)
    return None


def _easiness(method: Method, device: torch.device, pixels: np.ndarray) -> float:
    with torch.no_grad(), evaluating([method.predictor()]):
        return float(method.easiness(as_input(pixels, device))[0])
