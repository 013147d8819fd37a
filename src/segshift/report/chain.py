"""What each stage on the way reached: which stage follows which, and whether it gained or lost."""

from __future__ import annotations

from dataclasses import dataclass

from segshift.report.charts import CONTROL, Chart, Trail, trail_chart
from segshift.report.reading import Model, Run, Scores
from segshift.report.stages import Stage
from segshift.report.values import difference

MOST_STEPS = 10**9
"""No stage has more; what says so must be damaged."""


@dataclass(frozen=True)
class ChainRow:
    """A measured stage.

    Attributes:
        number: its place among the run's stages, from 1.
        steps: training steps in all, those of the stages that it builds on included.
        gain: difference in mIoU to the stage `before`, a fraction.
        before: the measured stage that it builds on; empty: none, or not known.
        labels: the labels stage that it trained on; empty: none.
        best: of all measured stages; False for each where two are.
    """

    number: int
    name: str
    steps: int | None
    miou: float
    gain: float | None
    before: str
    labels: str
    control: bool
    result: bool
    best: bool


def chain_rows(run: Run) -> list[ChainRow]:
    """The measured stages in their order; none where only the control and the adapted model were measured.

    Branches that an ablation alone measured are left out: they have their own table.
    """
    models = _models(run)
    # Of a damaged metrics.json no figure may be left.
    if not models or run.scores is None:
        return []
    if not any(model.name in {stage.name for stage in run.stages} for model in run.scores.others):
        return []
    best, branches = max(models.values()), _branches(run, run.scores)
    lines: dict[str, list[Stage]] = {}
    rows = []
    for number, stage in enumerate(run.stages, 1):
        if stage.name in lines:
            continue
        # A stage can only build on earlier ones: a damaged run that says otherwise makes no ring.
        lines[stage.name] = [stage, *lines.get(stage.init or "", [])]
        if (miou := models.get(stage.name)) is None or stage.name in branches:
            continue
        before = next((other.name for other in lines[stage.name][1:] if other.name in models), "")
        rows.append(
            ChainRow(
                number=number,
                name=stage.name,
                steps=_steps(lines[stage.name]),
                miou=miou,
                gain=difference(miou, models.get(before)),
                before=before,
                labels=stage.labels,
                control=stage.name == run.control,
                result=run.scores.adapted is not None and stage.name == run.scores.adapted.name,
                best=miou == best and list(models.values()).count(best) == 1,
            )
        )
    return rows


def further_models(run: Run) -> list[Model]:
    """Models beside control and adapted that are no stage of the run."""
    names = {stage.name for stage in run.stages}
    return [model for model in run.scores.others if model.name not in names] if run.scores else []


def chain_chart(rows: list[ChainRow]) -> Chart | None:
    """mIoU over the training steps in all, a line from the first stage to each last one; None for a single stage."""
    if len(rows) < 2:
        return None
    known = all(row.steps is not None for row in rows)
    by_name = {row.name: row for row in rows}
    before = {row.before for row in rows}
    # The result's line lies on top, and the control's has its own colour.
    ends = sorted((row for row in rows if row.name not in before), key=lambda row: (row.result, not row.control))
    others = [row.name for row in ends if not row.control and not row.result]
    trails = []
    for end in ends:
        path = [end]
        while path[-1].before in by_name:
            path.append(by_name[path[-1].before])
        colour = CONTROL if end.control else 0 if end.result else 1 + others.index(end.name)
        stops = [((row.steps or 0) if known else row.number, row.miou, str(row.number)) for row in reversed(path)]
        trails.append(Trail(" → ".join(row.name for row in reversed(path)), colour, stops, below=end.control))
    across = "over the training steps in all" if known else "in the order of the stages"
    return trail_chart("mIoU", across, trails)


def _models(run: Run) -> dict[str, float]:
    """mIoU of each stage that has one, in the stages' order."""
    if run.scores is None:
        return {}
    found = [run.scores.control, run.scores.adapted, *run.scores.others]
    miou = {model.name: model.miou for model in found if model is not None and model.miou is not None}
    return {stage.name: miou[stage.name] for stage in run.stages if stage.name in miou}


def _branches(run: Run, scores: Scores) -> set[str]:
    """Stages of the ablation that the result does not build on; none where it is not known what it builds on."""
    way = {scores.adapted.name} if scores.adapted else set()
    for stage in reversed(run.stages):
        if stage.name in way:
            if stage.init is None:
                return set()
            way.add(stage.init)
    return {part.stage for part in scores.ablation} - way - {run.control} if way else set()


def result_of(run: Run) -> str:
    """The stage that a run's figures are of: the measured one, else the last that trained; empty: none."""
    trained = [stage.name for stage in run.stages if stage.method]
    model = (run.scores.adapted or run.scores.control) if run.scores else None
    return model.name if model and model.name in trained else trained[-1] if trained else ""


def line_to(run: Run, name: str) -> list[Stage]:
    """The stages that a stage builds on, itself last; empty where the run has no such stage."""
    lines: dict[str, list[Stage]] = {}
    for stage in run.stages:
        if stage.name not in lines:
            lines[stage.name] = [*lines.get(stage.init or "", []), stage]
    return lines.get(name, [])


def steps_to(run: Run, name: str) -> int | None:
    """Training steps in all up to the end of a stage; None where they are not known."""
    line = line_to(run, name)
    return _steps(line[::-1]) if line else None


def _steps(line: list[Stage]) -> int | None:
    """Steps of a stage and of all that it builds on, or None where one of them is not known."""
    known = [stage.steps for stage in line if stage.steps is not None and stage.steps < MOST_STEPS]
    return sum(known) if len(known) == len(line) and line[-1].init == "" else None
