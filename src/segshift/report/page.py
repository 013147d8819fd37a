"""One run as one HTML file: everything embedded, nothing asked of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segshift.artefacts.store import write_text
from segshift.report import values
from segshift.report.ablation import ablation
from segshift.report.certainty import certainty, certainty_drafts
from segshift.report.chain import chain_chart, chain_rows, further_models
from segshift.report.charts import Chart, miou_chart, stage_charts
from segshift.report.features import features
from segshift.report.panels import drafts, show
from segshift.report.reading import KINDS, Model, Run, Scores, read_run
from segshift.report.rounds import label_drafts, rounds
from segshift.report.verdict import judge
from segshift.report.weak import read_weak
from segshift.report.weak_labels import weak_drafts, weak_stages


@dataclass(frozen=True)
class ClassRow:
    """A line of the per-class table; `gain` is in fractions of 1, `interval` its 95 % interval over the images."""

    name: str
    colour: str
    share: float | None
    control: float | None
    adapted: float | None
    gain: float | None
    absent: bool
    interval: tuple[float, float] | None = None

    @property
    def unclear(self) -> bool:
        """The interval of the gain holds 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class StageCurves:
    """The loss curves of a stage."""

    name: str
    charts: list[Chart]


def build_report(run: Path) -> Path:
    """Write report.html into a run folder; what is missing or damaged there is said on the page.

    Args:
        run: the folder that adapt wrote.

    Returns:
        The path of report.html.

    Raises:
        UserError: no such folder, nothing of a run in it, or the page cannot be written.
    """
    content = read_run(run)
    problems = list(content.problems)
    weak = read_weak(content, problems)
    groups = [drafts(content), certainty_drafts(content)]
    groups += [*map(label_drafts, content.labels), *map(weak_drafts, weak)]
    panels, sure, *others = show(groups, problems)
    label_panels, weak_panels = others[: len(content.labels)], others[len(content.labels) :]
    stages = chain_rows(content)
    rows = class_rows(content.scores) if content.scores else []
    summary = summary_rows(content.scores) if content.scores else []
    page = render(
        "template.html.j2",
        run=content,
        verdict=judge(content),
        scores=content.scores,
        rows=rows,
        summary=summary,
        span=_span(content.scores, rows, summary),
        extremes=_extremes(content.scores),
        adapted_label=KINDS["adapted"] if content.adapts else KINDS["control"],
        compared=bool(content.scores and content.scores.control and content.scores.adapted),
        facts=facts(content),
        command=command(content),
        seconds=sum(stage.seconds or 0.0 for stage in content.stages),
        stages=stages,
        stage_span=values.span([row.gain for row in stages]),
        trail=chain_chart(stages),
        ablation=ablation(content),
        others=further_models(content),
        rounds=rounds(content, label_panels),
        features=features(content, problems),
        weak=weak_stages(content, weak, weak_panels),
        panels=panels,
        certainty=certainty(content, sure),
        legend=legend(content),
        miou=miou_chart(content.stages),
        curves=[StageCurves(stage.name, stage_charts(stage.losses)) for stage in content.stages if stage.losses],
        problems=problems,
    )
    out = run / "report.html"
    write_text(out, page)
    return out


def render(template: str, **context: Any) -> str:
    """Fill a template of this package; every value is escaped.

    The page carries a content security policy that allows its own script (by its hash) and embedded pictures only.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segshift", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=values.points, signed=values.signed, duration=values.duration, spelled=values.spelled, ratio=values.ratio
    )
    script = files("segshift.report").joinpath("viewer.js").read_text(encoding="utf-8")
    style = files("segshift.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    html = environment.get_template(template).render(
        style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}", ABSENT=values.ABSENT, **context
    )
    # File names may hold bytes that are no text (lone surrogates): shown as ?, not a failure of the whole page.
    return html.encode("utf-8", "replace").decode("utf-8")


def class_rows(scores: Scores) -> list[ClassRow]:
    """The per-class table, by train id."""
    unknown = (None,) * len(scores.classes)
    before = scores.control.iou if scores.control else unknown
    after = scores.adapted.iou if scores.adapted else unknown
    known = scores.adapted or scores.control
    shares = known.shares if known else unknown
    return [
        ClassRow(
            name=name,
            colour=values.colour(scores.palette[index]),
            share=shares[index],
            control=before[index],
            adapted=after[index],
            gain=values.difference(after[index], before[index]),
            absent=before[index] is None and after[index] is None,
            interval=scores.class_intervals[index] if scores.class_intervals else None,
        )
        for index, name in enumerate(scores.classes)
    ]


Summary = tuple[str, str, float | None, float | None, float | None]


def _span(scores: Scores | None, rows: Sequence[ClassRow], summary: Sequence[Summary]) -> tuple[float, float]:
    """What the bars of the gains share: all gains and their intervals."""
    bounds = [bound for row in rows for bound in row.interval or ()]
    bounds += scores.interval or () if scores else ()
    return values.span([*bounds, *(row.gain for row in rows), *(row[-1] for row in summary)])


SUMMARY: Mapping[str, tuple[str, str]] = {
    "miou": ("mIoU", "mean over the classes that occur"),
    "miou16": ("mIoU16", "the 16 classes shared with SYNTHIA"),
    "miou13": ("mIoU13", "those without wall, fence and pole"),
    "pixel_accuracy": ("Pixel accuracy", "share of the pixels that are right"),
    "mean_accuracy": ("Mean accuracy", "share of each class's pixels, averaged"),
}


def summary_rows(scores: Scores) -> list[Summary]:
    """(measure, what it is, control, adapted, gain) for each measure that any model has."""

    def of(model: Model | None, field: str) -> float | None:
        value: float | None = getattr(model, field) if model else None
        return value

    rows = []
    for field, (name, meaning) in SUMMARY.items():
        before, after = of(scores.control, field), of(scores.adapted, field)
        if before is not None or after is not None:
            rows.append((name, meaning, before, after, values.difference(after, before)))
    return rows


def legend(*runs: Run) -> list[tuple[str, str]]:
    """(class, its colour) of all runs, and black where panels show a ground truth: its ignored pixels."""
    entries = {name: values.colour(rgb) for run in reversed(runs) for name, rgb in reversed(run.legend)}
    ignored = [("ignored", "#000000")] if any("truth" in panel.files for run in runs for panel in run.panels) else []
    return [*reversed(entries.items()), *ignored] if entries else []


def _extremes(scores: Scores | None) -> tuple[list[ClassRow], list[ClassRow]]:
    if scores is None:
        return [], []
    rows = sorted((row for row in class_rows(scores) if row.gain is not None), key=lambda row: -(row.gain or 0.0))
    gained = [row for row in rows if (row.gain or 0.0) >= 0.0005]
    lost = [row for row in reversed(rows) if (row.gain or 0.0) <= -0.0005]
    return gained[:3], lost[:3]


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of the run's surroundings: folders with their counts, seed, hardware, versions."""
    rows = [(label, found) for role, label in DOMAINS.items() if (found := _domain(run, role))]
    environment, settings = run.environment, run.settings
    seed = values.text(settings.get("seed"), values.text(environment.get("seed")))
    rows += [("Seed", seed)] if seed else []
    for key, label in (("machine", "Hardware"), ("versions", "Versions")):
        if environment.get(key):
            rows.append((label, values.spelled(environment[key])))
    finished = values.text(environment.get("finished"))
    rows += [("Finished", finished.replace("T", " ").replace("+00:00", " UTC"))] if finished else []
    return rows


def command(run: Run) -> str:
    """The command that made the run, or nothing where it was not recorded."""
    return values.text(run.environment.get("command"), values.text(run.settings.get("command")))


DOMAINS: Mapping[str, str] = {"source": "Source", "target": "Target", "val": "Labelled part"}
"""Keys of the domains in run.yaml (at its top, or under `data` or `domains`) and env.json (`domains`)."""


def _domain(run: Run, role: str) -> str:
    settings, found = run.settings, run.environment.get("domains")
    places = [values.mapping(found), settings, values.mapping(settings.get("data"))]
    places.append(values.mapping(settings.get("domains")))
    entries = [place[role] for place in places if place.get(role)]
    root, count = "", None
    for entry in entries:
        detail = values.mapping(entry)
        root = root or values.text(entry if not detail else detail.get("root"))
        count = count if count is not None else values.whole(detail.get("images"))
    if role == "val" and count is None and run.scores:
        measured = run.scores.adapted or run.scores.control
        count = measured.images if measured else None
    counted = "" if count is None else f"{count} image{'s' * (count != 1)}"
    return " · ".join(part for part in (root, counted) if part)
