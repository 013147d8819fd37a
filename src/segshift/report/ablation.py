"""The ablation: what each part of a method adds, as a table, a chart of bars, and class by class."""

from __future__ import annotations

from dataclasses import dataclass

from segshift.report import values
from segshift.report.charts import Chart, bar_chart
from segshift.report.reading import Model, Run, Scores
from segshift.report.verdict import CLEAR


@dataclass(frozen=True)
class AblationRow:
    """A row of the table; gains are fractions, None where one of the two is not known.

    Attributes:
        number: its place in the table, from 1.
        stage: the stage that was measured.
        init: the stage that this one starts from; empty: none, or not known.
        gain: over the row above it.
        interval: of that gain, in words; empty: not known.
        unclear: the gain is smaller than half a point, or its interval holds 0.
        total: the gain over the first row.
        best: of all rows; False for each where two are.
    """

    number: int
    name: str
    stage: str
    init: str
    steps: int | None
    miou: float | None
    gain: float | None
    interval: str
    unclear: bool
    total: float | None
    best: bool


@dataclass(frozen=True)
class ClassLine:
    """A class over all rows: (IoU, gain over the row above, whether it is the best of the line) each."""

    name: str
    colour: str
    cells: tuple[tuple[float | None, float | None, bool], ...]


@dataclass(frozen=True)
class Ablation:
    """What the page shows of an ablation; `spans` are those of the gains over the row above and over the first."""

    said: str
    rows: tuple[AblationRow, ...]
    first: str
    spans: tuple[tuple[float, float], tuple[float, float]]
    chart: Chart
    classes: tuple[ClassLine, ...]


def ablation(run: Run) -> Ablation | None:
    """The ablation of a run; None where it has none, or nothing of it was measured."""
    scores = run.scores
    if scores is None or not scores.ablation:
        return None
    models = _models(scores)
    rows = _rows(run, scores, models)
    if all(row.miou is None for row in rows):
        return None
    first = rows[0].name
    bars = [(row.name, row.total if row.number > 1 else 0.0, values.points(row.miou)) for row in rows]
    if rows[0].miou is None:
        bars = [(name, None, mark) for name, _, mark in bars]
    return Ablation(
        said=_said(scores, models, rows),
        rows=rows,
        first=first,
        spans=(values.span([row.gain for row in rows]), values.span([row.total for row in rows])),
        chart=bar_chart(f"Gain over {first}", "points of mIoU; mIoU itself stands at each bar", bars),
        classes=_classes(scores, models),
    )


def _models(scores: Scores) -> list[Model | None]:
    """The measured model of each row."""
    known = {model.name: model for model in (scores.control, scores.adapted, *scores.others) if model is not None}
    return [known.get(part.stage) for part in scores.ablation]


def _rows(run: Run, scores: Scores, models: list[Model | None]) -> tuple[AblationRow, ...]:
    stages = {stage.name: stage for stage in run.stages}
    reached = [model.miou if model else None for model in models]
    best = max((miou for miou in reached if miou is not None), default=None)
    rows = []
    for place, (part, miou) in enumerate(zip(scores.ablation, reached, strict=True)):
        stage, interval = stages.get(part.stage), part.interval
        gain = values.difference(miou, reached[place - 1]) if place else None
        around = interval is not None and interval[0] <= 0 <= interval[1]
        rows.append(
            AblationRow(
                number=place + 1,
                name=part.name,
                stage=part.stage,
                init=(stage.init or "") if stage else "",
                steps=stage.steps if stage else None,
                miou=miou,
                gain=gain,
                interval=" to ".join(map(values.signed, interval or ())),
                unclear=gain is not None and (abs(gain) < CLEAR or around),
                total=values.difference(miou, reached[0]) if place else None,
                best=miou is not None and miou == best and reached.count(best) == 1,
            )
        )
    return tuple(rows)


def _said(scores: Scores, models: list[Model | None], rows: tuple[AblationRow, ...]) -> str:
    """What was done, and which parts matter, in words."""
    images = next((model.images for model in models if model and model.images), None)
    where = f"the {images} labelled images of {scores.domain}" if images else scores.domain
    said = f"What each part is worth: a row adds the part that its name says to the row above it, measured on {where}."
    steps = sorted((row for row in rows if row.gain is not None), key=lambda row: -(row.gain or 0.0))
    if steps and (steps[0].gain or 0.0) > 0 and not steps[0].unclear:
        said += f" “{steps[0].name}” gains most, {values.signed(steps[0].gain)} points."
    lost = [row for row in reversed(steps) if (row.gain or 0.0) < 0 and not row.unclear]
    for words, found in ((" Lost by", lost), (" No clear difference by", [row for row in steps if row.unclear])):
        if found:
            said += words + " " + ", ".join(f"“{row.name}” ({values.signed(row.gain)})" for row in found) + "."
    return said


def _classes(scores: Scores, models: list[Model | None]) -> tuple[ClassLine, ...]:
    lines = []
    for index, name in enumerate(scores.classes):
        iou = [model.iou[index] if model else None for model in models]
        known = [share for share in iou if share is not None]
        best = max(known) if len(known) > 1 and max(known) > min(known) else None
        above = [None, *iou[:-1]]
        cells = tuple(
            (share, values.difference(share, before), share is not None and share == best)
            for share, before in zip(iou, above, strict=True)
        )
        lines.append(ClassLine(name, values.colour(scores.palette[index]), cells))
    return tuple(lines)
