"""Several runs side by side on one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segshift.artefacts.store import make_folder, write_text
from segshift.errors import UserError
from segshift.report import values
from segshift.report.certainty import scale
from segshift.report.chain import steps_to
from segshift.report.compared_curves import compared_curves
from segshift.report.differences import measured_unlike, seed_of, setting_rows, trained_unlike
from segshift.report.page import facts, legend, render
from segshift.report.reading import Model, Run, read_run
from segshift.report.side_by_side import matrices
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
        UserError: fewer than two runs, one of them is none, the page's name is no page's, or it cannot be written.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare", "at least two run folders", "name several: segshift compare A B")
    target = out / "compare.html" if out.is_dir() or not out.suffix else out
    if target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}", "a name that ends with .html, or a folder", "name another file")
    contents = [read_run(path) for path in runs]
    names = _distinct_names(contents)
    named = list(zip(names, contents, strict=True))
    problems = [f"{name}: {problem}" for name, run in named for problem in run.problems]
    warnings = measured_unlike(named)
    shared = None if warnings else _shared_control(contents)
    columns = _columns(contents, names, shared, ranked=not warnings)
    rows = _class_rows(contents, shared, ranked=not warnings)
    different, more = setting_rows(contents)
    page = render(
        "compare.html.j2",
        title=f"{len(runs)} runs compared",
        columns=columns,
        warnings=warnings,
        cautions=trained_unlike(named),
        span=values.span([column.gain for column in columns]),
        shared_control=shared,
        rows=rows,
        class_span=values.span([cell.gain for row in rows for cell in row.cells]),
        measures=_measures(columns),
        settings=different,
        more_settings=more,
        curves=compared_curves(named, shared),
        details=[(name, facts(run)) for name, run in named],
        images=matrices(contents, names, problems),
        scale=scale(),
        legend=legend(*contents),
        problems=problems,
    )
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


def _columns(runs: Sequence[Run], names: Sequence[str], shared: Shared | None, *, ranked: bool) -> list[Column]:
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
                gain=run.scores.gain if run.scores and run.scores.gain is not None else _over(shared, run, model),
                state=verdict.state,
                word=WORDS[verdict.state] if verdict.state != "none" else verdict.headline,
                method=model.name if model else next((s.method for s in reversed(run.stages) if s.method), ""),
                seed=seed_of(run),
                steps=sum(steps) if steps else None,
                seconds=sum(seconds) if seconds else None,
                best=best is not None and model is not None and model.miou == best,
            )
        )
    return columns


@dataclass(frozen=True)
class Shared:
    """The one control of several runs, its classes, and its training steps in all."""

    model: Model
    classes: tuple[str, ...]
    steps: int | None


def _shared_control(runs: Sequence[Run]) -> Shared | None:
    """The control where all runs that have one have the same (they reuse a finished one)."""
    found = [(run, run.scores, run.scores.control) for run in runs if run.scores and run.scores.control]
    if not found:
        return None
    run, scores, first = found[0]
    same = all(control.iou == first.iou and control.miou == first.miou for _, _, control in found)
    return Shared(first, scores.classes, steps_to(run, first.name)) if same else None


def _over(shared: Shared | None, run: Run, model: Model | None) -> float | None:
    """The gain over the common control of a run that has none of its own, where it trained exactly as long."""
    if shared is None or model is None or not run.adapts or (run.scores and run.scores.control):
        return None
    if shared.steps is None or steps_to(run, model.name) != shared.steps:
        return None
    return values.difference(model.miou, shared.model.miou)


def _class_rows(runs: Sequence[Run], shared: Shared | None, *, ranked: bool) -> list[CompareRow]:
    colours = dict(pair for run in reversed(runs) for pair in _coloured(run))
    order = list(dict.fromkeys(name for run in runs for name, _ in _coloured(run)))
    rows = []
    for name in order:
        control = shared.model.iou[shared.classes.index(name)] if shared and name in shared.classes else None
        pairs = [_class_of(run, name, shared, control) for run in runs]
        known = [iou for iou, _ in pairs if iou is not None]
        best = max(known) if ranked and len(known) > 1 else None
        cells = tuple(Cell(iou, gain, best is not None and iou == best) for iou, gain in pairs)
        rows.append(CompareRow(name, values.colour(colours[name]), control, cells))
    return rows


def _class_of(run: Run, name: str, shared: Shared | None, control: float | None) -> tuple[float | None, float | None]:
    """IoU of a class in a run, and what it gained over the run's own control, else over the common one."""
    if run.scores is None or name not in run.scores.classes:
        return None, None
    index = run.scores.classes.index(name)
    model = run.scores.adapted or run.scores.control
    iou = model.iou[index] if model else None
    before = run.scores.control.iou[index] if run.scores.control and run.scores.adapted else None
    if before is None and _over(shared, run, model) is not None:
        before = control
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
