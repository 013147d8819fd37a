"""Stages of a run as their folders tell of them: what each was for, whether it ended, what its log says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segshift.report.files import load
from segshift.report.values import fraction, mapping, number, text, whole

Point = tuple[int, float]

LABELS = "labels"
"""The kind of a stage that makes pseudo-labels."""

LABELS_FILES = ("thresholds.json", "statistics.json")
"""What tells such a stage from others where its stage.json is damaged."""


@dataclass(frozen=True)
class Stage:
    """One NN-STAGE folder: what it was for and what its log says.

    Attributes:
        init: the stage whose network this one starts from or, of a labels stage, labels with; empty: there is
            none; None: not known.
        labels: the labels stage that it trains on; empty: not known, none.
        figures: what the log has of the method beside its losses.
    """

    folder: str
    name: str
    kind: str
    method: str
    purpose: str
    steps: int | None
    seconds: float | None
    last_step: int | None
    finished: bool
    losses: Mapping[str, tuple[Point, ...]]
    miou: tuple[Point, ...]
    init: str | None = None
    labels: str = ""
    figures: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)


def read_stage(folder: Path, planned: Mapping[str, Mapping[str, Any]], problems: list[str]) -> Stage:
    """A stage from its folder.

    Args:
        folder: NN-STAGE.
        planned: what the run's settings say of each stage, by its name; used where stage.json says nothing.
        problems: gets a line for whatever is damaged.
    """
    described = (folder / "stage.json").exists()
    data = mapping(load(folder.parent, f"{folder.name}/stage.json", problems)) if described else {}
    if not described:
        problems.append(f"{folder.name} has no stage.json: it did not finish")
    losses, figures, miou, last_step = _log(folder, problems)
    name = text(data.get("name"), folder.name.split("-", 1)[-1])
    plan = planned.get(name, {})
    kind = text(data.get("kind"), LABELS if any((folder / file).exists() for file in LABELS_FILES) else "")
    finished = bool(data) and data.get("done") is not False and (kind != "train" or (folder / "model").is_dir())
    if described and data and not finished:
        problems.append(f"{folder.name} did not finish")
    return Stage(
        folder=folder.name,
        name=name,
        kind=kind,
        method=text(data.get("method")),
        purpose=text(data.get("purpose")),
        steps=whole(data.get("steps")),
        seconds=number(data.get("seconds")),
        last_step=last_step,
        finished=finished,
        losses=losses,
        miou=miou,
        init=text(data["init"]) if "init" in data else text(plan.get("init")) if name in planned else None,
        labels=text(data.get("labels"), text(plan.get("labels"))),
        figures=figures,
    )


Curves = dict[str, tuple[Point, ...]]


def _log(folder: Path, problems: list[str]) -> tuple[Curves, Curves, tuple[Point, ...], int | None]:
    """Losses, figures and mIoU over the steps, and the last step."""
    path = folder / "log.jsonl"
    losses: dict[str, dict[int, float]] = {}
    figures: dict[str, dict[int, float]] = {}
    miou: dict[int, float] = {}
    damaged, wrong, last_step = 0, 0, None
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = mapping(json.loads(line))
                except (ValueError, RecursionError):
                    damaged += 1
                    continue
                step = whole(entry.get("step"))
                if step is None:
                    continue
                last_step = max(step, last_step or 0)
                for key, curves in (("loss", losses), ("figures", figures)):
                    for name, value in mapping(entry.get(key)).items():
                        if (level := number(value)) is not None:
                            curves.setdefault(name, {})[step] = level
                        else:
                            wrong += 1
                value = mapping(entry.get("val")).get("miou")
                if (share := fraction(value)) is not None:
                    miou[step] = share
                elif value is not None:
                    wrong += 1
    except FileNotFoundError:
        return {}, {}, (), None
    except OSError as error:
        problems.append(f"{folder.name}/log.jsonl cannot be read ({error.strerror or error})")
    if damaged:
        problems.append(f"{folder.name}/log.jsonl: {damaged} damaged line{'s' * (damaged > 1)} left out")
    if wrong:
        problems.append(
            f"{folder.name}/log.jsonl: {wrong} value{'s' * (wrong > 1)} (not finite, or no fraction) left out"
        )
    return _sorted(losses), _sorted(figures), tuple(sorted(miou.items())), last_step


def _sorted(curves: Mapping[str, Mapping[int, float]]) -> Curves:
    return {name: tuple(sorted(line.items())) for name, line in curves.items()}
