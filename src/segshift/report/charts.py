"""Curves as coordinates of an inline SVG; the template draws them in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segshift.report.stages import Point, Stage
from segshift.report.values import points, quantity, signed

WIDTH, HEIGHT = 380, 190
TALL = 300
"""Height of a chart of bars, which stands beside a table."""
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 28
MOST_POINTS = 400
COLOURS = 6
CONTROL = 6
"""The colour of the control, beside those of `COLOURS`."""


@dataclass(frozen=True)
class Line:
    """A curve: SVG point lists of the raw values and of the smoothed ones.

    Attributes:
        dots: (x, y, what the value is).
        marks: (x, y, text) of words that stand in the plot.
    """

    label: str
    colour: int
    raw: str
    smooth: str
    dots: tuple[tuple[float, float, str], ...] = ()
    marks: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar from `top` to `bottom`, what it says for people, and the words (x, y, text) that stand at its end.

    Attributes:
        before: the level of the bar before it, from where (x) to its right edge; None: there is none.
    """

    what: str
    x: float
    width: float
    top: float
    bottom: float
    mark: tuple[float, float, str]
    before: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """One pair of axes; ticks are (position, label), all positions in units of the view box."""

    title: str
    summary: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    bars: tuple[Bar, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Trail:
    """A line through a few named stops, each (x, share, what stands beside it); `below`: beneath the line."""

    label: str
    colour: int
    stops: Sequence[tuple[int, float, str]]
    below: bool = False


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        # Far outliers are cut off by the plot's edge anyway; SVG should not get numbers of any size.
        return round(self.start + min(3.0, max(-2.0, share)) * (self.end - self.start), 2)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low … high: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def smoothed(line: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a twentieth of the curve, without the bias of its start."""
    keep = max(0.0, 1.0 - 20.0 / max(1, len(line)))
    total, weight, result = 0.0, 0.0, []
    for step, value in line:
        total, weight = keep * total + value, keep * weight + 1.0
        result.append((step, total / weight))
    return result


def thinned(line: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: of each stretch its lowest and its highest, so that spikes stay visible."""
    if len(line) <= most:
        return list(line)
    stretch = math.ceil(2 * len(line) / most)
    result: list[Point] = []
    for begin in range(0, len(line), stretch):
        part = line[begin : begin + stretch]
        result.extend(sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}))
    return result


def _path(line: Sequence[Point], x: _Scale, y: _Scale) -> str:
    return " ".join(f"{x(step):g},{y(value):g}" for step, value in line)


def _steps(low: int, high: int) -> tuple[_Scale, tuple[tuple[float, str], ...]]:
    scale = _Scale(low, max(high, low + 1), LEFT, WIDTH - RIGHT)
    ticks = [tick for tick in nice_ticks(low, max(high, low + 1), 5) if tick == int(tick)]
    return scale, tuple((scale(tick), _thousands(int(tick))) for tick in ticks)


def _thousands(step: int) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else str(step)


def _levels(low: float, high: float) -> _Scale:
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if 0 <= low < 0.4 * high else low - margin
    return _Scale(bottom, high + margin, HEIGHT - BOTTOM, TOP)


def loss_chart(name: str, line: Sequence[Point], colour: int) -> Chart:
    """One loss over the steps: raw values faint, their moving average strong.

    Args:
        name: the loss's name in the log.
        line: at least one (step, value), by step.
        colour: which colour of the page, from 0.
    """
    smooth = smoothed(line)
    ordered = sorted(value for _, value in line)
    # A few spikes (the first steps mostly) must not flatten the rest: the axis covers the central 98 %.
    edge = len(ordered) // 100
    levels = [value for _, value in smooth] + [ordered[edge], ordered[-1 - edge]]
    y = _levels(min(levels), max(levels))
    x, x_ticks = _steps(line[0][0], line[-1][0])
    last = smooth[-1]
    summary = f"{quantity(smooth[0][1], 3)} → {quantity(last[1], 3)}" if len(smooth) > 1 else quantity(last[1], 3)
    dots = ((x(last[0]), y(last[1]), quantity(last[1])),)
    curve = Line(name, colour % COLOURS, _path(thinned(line), x, y), _path(thinned(smooth), x, y), dots)
    y_ticks = tuple((y(tick), quantity(tick)) for tick in nice_ticks(y.low, y.high))
    return Chart(name, summary, x_ticks, y_ticks, (curve,))


def stage_charts(losses: Mapping[str, Sequence[Point]]) -> list[Chart]:
    """A chart for each loss of a stage: losses differ in size by orders, so each has an axis of its own."""
    return [loss_chart(name, line, colour) for colour, (name, line) in enumerate(losses.items()) if line]


def miou_chart(stages: Sequence[Stage]) -> Chart | None:
    """mIoU in percent points over the steps, a curve a stage; None where no stage was measured twice."""
    measured = [stage for stage in stages if stage.miou]
    if all(len(stage.miou) < 2 for stage in measured):
        return None
    values = [value for stage in measured for _, value in stage.miou]
    steps = [step for stage in measured for step, _ in stage.miou]
    y = _levels(min(values), max(values))
    x, x_ticks = _steps(min(*steps, 0), max(steps))
    lines, parts = [], []
    for colour, stage in enumerate(measured):
        dots = tuple((x(step), y(value), f"step {step}: {points(value)}") for step, value in stage.miou)
        lines.append(Line(stage.name, colour % COLOURS, "", _path(stage.miou, x, y), dots if len(dots) <= 40 else ()))
        best = max(stage.miou, key=lambda point: point[1])
        last = stage.miou[-1]
        peak = f" (best {points(best[1])} at step {best[0]})" if best[0] != last[0] else ""
        parts.append(f"{stage.name} ends at {points(last[1])}{peak}")
    y_ticks = tuple((y(tick), f"{100 * tick:g}") for tick in nice_ticks(y.low, y.high))
    return Chart("mIoU while training", "; ".join(parts), x_ticks, y_ticks, tuple(lines))


def curves_chart(
    title: str, summary: str, curves: Sequence[tuple[str, int, Sequence[Point]]], unit: float = 1
) -> Chart:
    """Several curves over one pair of axes, as they are.

    Args:
        title, summary: of the chart.
        curves: (label, colour from 0 or `CONTROL`, its points by step) of at least one curve with a point.
        unit: what the labels of the axis are multiplied by: 100 for shares in percent points.
    """
    found = [point for _, _, line in curves for point in line]
    y = _levels(min(value for _, value in found), max(value for _, value in found))
    x, x_ticks = _steps(min(step for step, _ in found), max(step for step, _ in found))
    lines = []
    for label, colour, line in curves:
        place = colour if colour == CONTROL else colour % COLOURS
        step, value = line[-1]
        dots = ((x(step), y(value), f"step {step}: {quantity(unit * value)}"),)
        lines.append(Line(label, place, "", _path(thinned(line), x, y), dots))
    y_ticks = tuple((y(tick), quantity(unit * tick)) for tick in nice_ticks(y.low, y.high))
    return Chart(title, summary, x_ticks, y_ticks, tuple(lines))


def trail_chart(title: str, summary: str, trails: Sequence[Trail]) -> Chart:
    """Shares in percent points over whole numbers, with a mark at each stop; at least one trail.

    Where trails share their first stops, the last one's dots are shown.
    """
    stops = [stop for trail in trails for stop in trail.stops]
    y = _levels(min(share for _, share, _ in stops), max(share for _, share, _ in stops))
    x, x_ticks = _steps(0, max(at for at, _, _ in stops))
    lines, seen = [], set()
    for trail in reversed(trails):
        new = [stop for stop in trail.stops if stop not in seen]
        seen.update(new)
        beside = 17 if trail.below else -9
        lines.append(
            Line(
                trail.label,
                trail.colour if trail.colour == CONTROL else trail.colour % COLOURS,
                "",
                _path([(at, share) for at, share, _ in trail.stops], x, y),
                tuple((x(at), y(share), points(share)) for at, share, _ in new),
                tuple((x(at), y(share) + beside, mark) for at, share, mark in new),
            )
        )
    y_ticks = tuple((y(tick), f"{100 * tick:g}") for tick in nice_ticks(y.low, y.high))
    return Chart(title, summary, x_ticks, y_ticks, tuple(reversed(lines)))


def bar_chart(title: str, summary: str, values: Sequence[tuple[str, float | None, str]]) -> Chart:
    """Numbered bars of differences in percent points, from 0 up or down, each with the level of the one before it.

    Args:
        values: (what it is, its share or None where it is not known, words at its end); at least one.
    """
    known = [share for _, share, _ in values if share is not None] or [0.0]
    low, high = min(*known, 0.0), max(*known, 0.0)
    # Room for the words at the ends; bars start at 0, so the axis must show it.
    room = 0.14 * (high - low) or 0.01
    y = _Scale(low - room * (low < 0), high + room, TALL - BOTTOM, TOP)
    slot = (WIDTH - RIGHT - LEFT) / len(values)
    width, before = round(min(0.64 * slot, 56.0), 2), None
    bars: list[Bar] = []
    for place, (what, share, mark) in enumerate(values):
        if share is None:
            before = None
            continue
        x, end = round(LEFT + (place + 0.5) * slot - width / 2, 2), y(share)
        # The words of a bar that falls short of the one before it stand above that one's level.
        top = before if share >= 0 and before is not None and 0 < end - before < 22 else end
        words = (round(x + width / 2, 2), round(end + 15 if share < 0 else top - 5, 2), mark)
        level = (round(x - slot + width, 2), before) if before is not None else None
        bars.append(Bar(f"{what}: {signed(share)}", x, width, min(end, y(0)), max(end, y(0)), words, level))
        before = end
    x_ticks = tuple((round(LEFT + (place + 0.5) * slot, 2), str(place + 1)) for place in range(len(values)))
    y_ticks = tuple((y(tick), signed(tick)) for tick in nice_ticks(y.low, y.high))
    return Chart(title, summary, x_ticks, y_ticks, (), tuple(bars), height=TALL, bottom=TALL - BOTTOM)
