"""Curves of several runs over one pair of axes: mIoU on the way to each result, and the losses that they share."""

from __future__ import annotations

from collections.abc import Sequence

from segshift.report.chain import line_to, result_of
from segshift.report.charts import COLOURS, CONTROL, Chart, curves_chart, smoothed
from segshift.report.reading import Run
from segshift.report.stages import Point, Stage
from segshift.report.values import points, quantity

MOST = 3
"""Losses that are shown at most."""


def compared_curves(runs: Sequence[tuple[str, Run]], shared: object) -> list[Chart]:
    """Charts over the training steps in all, a colour a run.

    Args:
        runs: with the names under which they are shown.
        shared: the common control; None: there is none, and controls are not shown.
    """
    lines = [(name, place % COLOURS, _way(run, result_of(run))) for place, (name, run) in enumerate(runs)]
    charts = []
    curves = [(name, colour, _joined(way, "")) for name, colour, way in lines]
    if shared is not None:
        run = next(run for _, run in runs if run.control)
        curves.append(("Source-only", CONTROL, _joined(_way(run, run.control), "")))
    known = [curve for curve in curves if len(curve[2]) > 1]
    if known:
        ends = "; ".join(f"{name} ends at {points(line[-1][1])}" for name, _, line in known)
        charts.append(curves_chart("mIoU while training", ends, known, unit=100))
    for loss in _shared_losses([way for _, _, way in lines])[:MOST]:
        found = [(name, colour, smoothed(_joined(way, loss))) for name, colour, way in lines]
        ends = "; ".join(f"{name} {quantity(line[-1][1], 3)}" for name, _, line in found if line)
        charts.append(curves_chart(f"Loss {loss}", f"smoothed; at the end {ends}", [each for each in found if each[2]]))
    return charts


def _way(run: Run, name: str) -> list[tuple[int, Stage]]:
    """The training stages that lead to a stage, with the steps before each: without the first one, if others follow.

    What several runs start from is the same, and its steep rise would flatten all that differs.
    """
    way, before = [], 0
    for stage in line_to(run, name):
        way.append((before, stage))
        before += stage.steps or stage.last_step or 0
    return way[1:] if len(way) > 1 else way


def _joined(way: Sequence[tuple[int, Stage]], loss: str) -> list[Point]:
    """mIoU (loss ""), or a loss, of stages that follow one another."""
    found = []
    for before, stage in way:
        line = stage.losses.get(loss, ()) if loss else stage.miou
        found += [(before + step, value) for step, value in line]
    return found


def _shared_losses(ways: Sequence[Sequence[tuple[int, Stage]]]) -> list[str]:
    """Names of losses that at least two runs have, in the order of the log."""
    names = [list(dict.fromkeys(name for _, stage in way for name in stage.losses)) for way in ways]
    order = dict.fromkeys(name for each in names for name in each)
    return [name for name in order if sum(name in each for each in names) > 1]
