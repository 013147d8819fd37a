"""Several runs side by side on one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from segshift.artefacts.store import make_folder, write_text
from segshift.errors import UserError
from segshift.report import values
from segshift.report.page import DOMAINS, facts, legend, render
from segshift.report.panels import Draft, PanelView, request, show
from segshift.report.pictures import Request
from segshift.report.reading import Model, Run, read_run
from segshift.report.verdict import WORDS, judge


@dataclass(frozen=True)
class Column:
    """A run as a column: the model that counts (adapted, else control), its gain, and what it took."""

    name: str
    model: Model | None
    control: Model | None
    gain: float | None
    state: str
    word: str
    method: str
    seed: str
    steps: int | None
    seconds: float | None
    best: bool = False


@dataclass(frozen=True)
class Cell:
    """IoU of a class in a run, and its difference to the run's own control."""

    iou: float | None
    gain: float | None
    best: bool


@dataclass(frozen=True)
class CompareRow:
    """A class over all runs; `control` is None where the runs' controls differ."""

    name: str
    colour: str
    control: float | None
    cells: tuple[Cell, ...]


def compare_runs(runs: list[Path], out: Path) -> Path:
    """Write one page that shows runs side by side.

    Args:
        runs: at least two run folders.
        out: the page's file name; a folder (existing, or without a suffix) gets compare.html.

    Returns:
        The path of the page.

    Raises:
        UserError: fewer than two runs, one of them is none, or the page cannot be written.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare", "at least two run folders", "name several: segshift compare A B")
    contents = [read_run(path) for path in runs]
    names = _distinct_names(contents)
    problems = [f"{name}: {problem}" for name, run in zip(names, contents, strict=True) for problem in run.problems]
    warnings = _incomparable(contents, names)
    columns = _columns(contents, names, ranked=not warnings)
    shared = _shared_control(contents)
    panels = _panels(contents, names, problems)
    gains = [column.gain for column in columns]
    page = render(
        "compare.html.j2",
        title=f"{len(runs)} runs compared",
        columns=columns,
        warnings=warnings,
        span=values.span(gains),
        shared_control=shared,
        rows=_class_rows(contents, shared, ranked=not warnings),
        measures=_measures(columns),
        details=[(name, facts(run)) for name, run in zip(names, contents, strict=True)],
        panels=panels,
        legend=legend(*contents),
        problems=problems,
    )
    target = out / "compare.html" if out.is_dir() or not out.suffix else out
    make_folder(target.parent)
    write_text(target, page)
    return target


def _coloured(run: Run) -> list[tuple[str, tuple[int, int, int]]]:
    return list(zip(run.scores.classes, run.scores.palette, strict=True)) if run.scores else []


def _distinct_names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    return names if len(set(names)) == len(names) else [f"{n} ({i})" for i, n in enumerate(names, 1)]


def _incomparable(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Why the numbers of these runs do not measure the same thing, if they do not."""
    measured = [(name, run, run.scores) for name, run in zip(names, runs, strict=True) if run.scores]
    warnings = []
    if len({scores.classes for _, _, scores in measured}) > 1:
        warnings.append("The runs have different classes: their mIoU are means over different things.")
    if len({scores.domain for _, _, scores in measured}) > 1:
        of = ", ".join(f"{name} on {scores.domain}" for name, _, scores in measured)
        warnings.append(f"The runs were measured on different domains ({of}).")
    counts = {}
    for name, _, scores in measured:
        model = scores.adapted or scores.control
        if model and model.images is not None:
            counts[name] = model.images
    if len(set(counts.values())) > 1:
        of = ", ".join(f"{name}: {count}" for name, count in counts.items())
        warnings.append(f"The runs were measured on different numbers of images ({of}).")
    # The same data lies elsewhere on another machine: only the last two folders of its path count.
    roots = {"/".join(PurePath(values.text(_root(run))).parts[-2:]) for _, run, _ in measured} - {""}
    if len(roots) > 1:
        warnings.append(f"The labelled images come from different folders ({', '.join(sorted(roots))}).")
    return warnings


def _root(run: Run) -> object:
    for place in (
        values.mapping(run.environment.get("domains")),
        run.settings,
        values.mapping(run.settings.get("data")),
    ):
        if root := values.mapping(place.get(list(DOMAINS)[-1])).get("root"):
            return root
    return None


def _columns(runs: Sequence[Run], names: Sequence[str], *, ranked: bool) -> list[Column]:
    models = [(run.scores.adapted or run.scores.control) if run.scores else None for run in runs]
    known = [model.miou for model in models if model and model.miou is not None]
    best = max(known) if ranked and len(known) > 1 else None
    columns = []
    for run, name, model in zip(runs, names, models, strict=True):
        verdict = judge(run)
        steps = [stage.steps for stage in run.stages if stage.steps is not None]
        seconds = [stage.seconds for stage in run.stages if stage.seconds is not None]
        columns.append(
            Column(
                name=name,
                model=model,
                control=run.scores.control if run.scores else None,
                gain=run.scores.gain if run.scores else None,
                state=verdict.state,
                word=WORDS[verdict.state] if verdict.state != "none" else verdict.headline,
                method=model.name if model else next((s.method for s in reversed(run.stages) if s.method), ""),
                seed=values.text(run.settings.get("seed"), values.text(run.environment.get("seed"))),
                steps=sum(steps) if steps else None,
                seconds=sum(seconds) if seconds else None,
                best=best is not None and model is not None and model.miou == best,
            )
        )
    return columns


def _shared_control(runs: Sequence[Run]) -> Model | None:
    """The control where all runs have the same one (they reuse a finished one)."""
    controls = [run.scores.control for run in runs if run.scores and run.scores.control]
    first = controls[0] if controls else None
    same = first is not None and all(c.iou == first.iou and c.miou == first.miou for c in controls)
    return first if same else None


def _class_rows(runs: Sequence[Run], shared: Model | None, *, ranked: bool) -> list[CompareRow]:
    colours = dict(pair for run in reversed(runs) for pair in _coloured(run))
    order = list(dict.fromkeys(name for run in runs for name, _ in _coloured(run)))
    first = next((run.scores for run in runs if run.scores and run.scores.control), None)
    rows = []
    for name in order:
        pairs = [_class_of(run, name) for run in runs]
        known = [iou for iou, _ in pairs if iou is not None]
        best = max(known) if ranked and len(known) > 1 else None
        cells = tuple(Cell(iou, gain, best is not None and iou == best) for iou, gain in pairs)
        control = shared.iou[first.classes.index(name)] if shared and first and name in first.classes else None
        rows.append(CompareRow(name, values.colour(colours[name]), control, cells))
    return rows


def _class_of(run: Run, name: str) -> tuple[float | None, float | None]:
    if run.scores is None or name not in run.scores.classes:
        return None, None
    index = run.scores.classes.index(name)
    model = run.scores.adapted or run.scores.control
    iou = model.iou[index] if model else None
    before = run.scores.control.iou[index] if run.scores.control and run.scores.adapted else None
    return iou, values.difference(iou, before)


def _measures(columns: Sequence[Column]) -> list[tuple[str, tuple[float | None, ...]]]:
    """(measure, its value in each run) for the measures beside mIoU that any run has."""
    named = {
        "mIoU16": "miou16",
        "mIoU13": "miou13",
        "Pixel accuracy": "pixel_accuracy",
        "Mean accuracy": "mean_accuracy",
    }
    rows = [
        (label, tuple(getattr(column.model, field) if column.model else None for column in columns))
        for label, field in named.items()
    ]
    return [(label, found) for label, found in rows if any(value is not None for value in found)]


def _panels(runs: Sequence[Run], names: Sequence[str], problems: list[str]) -> list[PanelView]:
    """Images that at least two runs have pictures of: the image, the truth, then what each run makes of it."""
    by_name = [{panel.name: panel for panel in run.panels} for run in runs]
    order = list(dict.fromkeys(panel.name for run in runs for panel in run.panels))
    common = [name for name in order if sum(name in panels for panels in by_name) > 1]
    drafts = []
    for name in common:
        tiles: list[tuple[str, str, str, Request]] = []
        present = [(run, panels[name]) for run, panels in zip(names, by_name, strict=True) if name in panels]
        for kind, caption in (("image", "Image"), ("truth", "Ground truth")):
            if panel := next((panel for _, panel in present if kind in panel.files), None):
                tiles.append((kind, caption, "", request(panel, kind)))
        seen: set[bytes] = set()
        for run_name, panel in present:
            if (path := panel.files.get("control")) and (content := _bytes(path)) not in seen:
                note = " · ".join(_named(run_name if seen else "", panel.control_miou))
                seen.add(content)
                tiles.append((f"control {run_name}", "Source-only", note, request(panel, "control")))
        for run_name, panel in present:
            if "adapted" in panel.files:
                note = " · ".join(_named("", panel.adapted_miou))
                tiles.append((f"adapted {run_name}", run_name, note, request(panel, "adapted")))
        drafts.append(Draft(name, "", tiles))
    return show([drafts], problems)[0]


def _named(name: str, miou: float | None) -> list[str]:
    return [part for part in (name, "" if miou is None else f"{values.points(miou)} mIoU") if part]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
