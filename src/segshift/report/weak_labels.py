"""Weak labels as the page shows them: right and wrong tags, what each class gained, where networks look, collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segshift.report.charts import Chart, loss_chart, smoothed
from segshift.report.panels import Draft, PanelView
from segshift.report.pictures import Request
from segshift.report.reading import Model, Run
from segshift.report.stages import Point
from segshift.report.values import ABSENT, colour, difference, points, signed, span
from segshift.report.weak import ATTENTION, AttentionMap, Part, Tags, Weak

MODES: Mapping[str, str] = {
    "pseudo": "tags that the network itself guesses, in every step anew",
    "tags": "a person's tags",
    "points": "a person's points and tags",
}

FIGURES: Mapping[str, str] = {
    "present": "Classes taken for present in an image",
    "pooled_logit": "Mean pooled logit",
}

ALMOST = 0.5
"""Classes an image by which the mean may miss none, or all, and still be called so."""


@dataclass(frozen=True)
class TagRow:
    """A class, or all of them: in how many images it is, and (before, after) the stage; before is None where there is
    no network before it, or nothing to say."""

    name: str
    colour: str
    present: int | None
    precision: tuple[float | None, float | None]
    recall: tuple[float | None, float | None]


@dataclass(frozen=True)
class TagTable:
    """How right the guessed tags are on some images.

    Attributes:
        said: the same in words.
        where: the images, and how their classes are known.
        two: there is a network before the stage.
    """

    said: str
    where: str
    two: bool
    rows: tuple[TagRow, ...]
    total: TagRow


@dataclass(frozen=True)
class GainRow:
    """A class: how often weak labels name it, its IoU, and what it gained over each of `WeakStage.over`."""

    name: str
    colour: str
    named: str
    iou: float | None
    gains: tuple[float | None, ...]


@dataclass(frozen=True)
class WeakStage:
    """A stage as shown. Empty parts are left out of the page.

    Attributes:
        learned: from what, in words.
        given: it learned from a person's labels.
        over: stages with which its classes are compared, the control first.
        gained, gains: what each class gained over them, in words and by the gain over the first.
        span: of all gains.
        warning: the guessed tags collapsed; empty: they did not.
    """

    name: str
    learned: str
    given: bool
    tables: tuple[TagTable, ...]
    over: tuple[str, ...]
    gained: str
    gains: tuple[GainRow, ...]
    span: tuple[float, float]
    charts: tuple[Chart, ...]
    warning: str
    panels: list[PanelView]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.tables or self.gains or self.charts or self.panels)


def weak_drafts(weak: Weak) -> list[Draft]:
    """The attention maps of a stage before their pictures are read."""
    folder = f"{weak.stage.folder}/{ATTENTION}"
    drafts = []
    for look in weak.looks:
        tiles = []
        if look.path:
            counted = f"{look.points} point{'s' * (look.points != 1)}" if look.points else ""
            tiles.append(("image", "Image", counted, Request(look.path, False, folder)))
        for place, each in enumerate(look.maps):
            kind = "after" if place == len(look.maps) - 1 else "before"
            tiles.append((kind, each.network, _note(each), Request(each.path, False, folder)))
        said = " · ".join(part for part in (look.image, look.caption) if part)
        drafts.append(Draft(look.class_name, said, tiles))
    return drafts


def _note(each: AttentionMap) -> str:
    said = [f"p\u00a0{each.probability:.2f}"] if each.probability is not None else []
    said += [f"half on {100 * each.half:.2g}\u00a0%"] if each.half is not None else []
    return " · ".join(said)


def weak_stages(run: Run, stages: Sequence[Weak], panels: Sequence[list[PanelView]]) -> list[WeakStage]:
    """What is shown of the stages that learn from weak labels.

    Args:
        run: theirs.
        stages: as `read_weak` found them.
        panels: the shown panels of each.
    """
    shown = [_stage(run, weak, views) for weak, views in zip(stages, panels, strict=True)]
    return [stage for stage in shown if not stage.empty]


def _stage(run: Run, weak: Weak, panels: list[PanelView]) -> WeakStage:
    over, gains = _gains(run, weak)
    charts = [
        loss_chart(title, weak.stage.figures[name], place)
        for place, (name, title) in enumerate(FIGURES.items())
        if weak.stage.figures.get(name)
    ]
    return WeakStage(
        name=weak.stage.name,
        learned=_learned(weak),
        given=weak.mode in ("tags", "points"),
        tables=tuple(_table(weak, part) for part in weak.parts),
        over=over,
        gained=_gained(over, gains),
        gains=gains,
        span=span([gain for row in gains for gain in row.gains]),
        charts=tuple(charts),
        warning=_collapse(weak.stage.figures.get("present", ()), weak, run),
        panels=panels,
    )


def _learned(weak: Weak) -> str:
    if weak.mode not in MODES:
        return ""
    of = f" of {weak.labelled} image{'s' * (weak.labelled != 1)}" if weak.labelled is not None else ""
    said = f"It learned from {MODES[weak.mode]}{of}."
    if weak.threshold is not None:
        said += f" A class is guessed to be there where its pooled probability is above {weak.threshold:g}."
    return said


# ---- tags


def _table(weak: Weak, part: Part) -> TagTable:
    after = part.networks[-1]
    before = part.networks[0] if len(part.networks) > 1 else None
    rows = [
        TagRow(
            name=name,
            colour=colour(rgb),
            present=part.present[k],
            precision=(before.classes[k][0] if before else None, after.classes[k][0]),
            recall=(before.classes[k][1] if before else None, after.classes[k][1]),
        )
        for k, (name, rgb) in enumerate(zip(weak.classes, weak.palette, strict=True))
    ]
    known = [count for count in part.present if count is not None]
    total = TagRow(
        name="All classes",
        colour="",
        present=sum(known) if known else None,
        precision=(before.precision if before else None, after.precision),
        recall=(before.recall if before else None, after.recall),
    )
    return TagTable(_said(part, before, after), _where(weak, part), before is not None, tuple(rows), total)


def _said(part: Part, before: Tags | None, after: Tags) -> str:
    if not after.per_image or after.precision is None or after.recall is None:
        return f"{after.name} guesses no tags here." if after.per_image == 0 else ""
    there = f"; {part.per_image:.1f} classes are there" if part.per_image is not None else ""
    was, precision, recall = (before.per_image, before.precision, before.recall) if before else (None, None, None)
    said = f"{after.name} guesses {after.per_image:.1f} tags an image{_beside(was, '', 1)}{there}."
    said += f" {points(after.precision)} % of its tags are right{_beside(precision)}, and they name"
    said += f" {points(after.recall)} % of the classes that are there{_beside(recall)}."
    said += f" In brackets: {before.name}, which it started from." if before else ""
    if part.images and all(count == part.images for count in part.present):
        said += " Each of these images shows every class, so no tag can be wrong here: precision says nothing."
    return said


def _beside(value: float | None, unit: str = " %", scale: float = 100) -> str:
    return "" if value is None else f" ({scale * value:.1f}{unit})"


def _where(weak: Weak, part: Part) -> str:
    images = "images" if part.images is None else f"{part.images} image{'s' * (part.images != 1)}"
    sampled = f", of {part.of}" if part.of is not None and part.images is not None and part.of > part.images else ""
    if part.by == "tags":
        seen = "; the stage learned from these very tags" if part.learned else "; the stage learned from none of them"
        return f"against a person's tags of {images} of {part.where}{sampled}{seen}"
    fewest = f"; a class is there with at least {weak.fewest} pixels" if weak.fewest else ""
    return f"against the labels of {images} of {part.where}{sampled}, which training never sees{fewest}"


# ---- gains


def _gains(run: Run, weak: Weak) -> tuple[tuple[str, ...], tuple[GainRow, ...]]:
    """Names of the stages to compare with, the control first, and the classes by what they gained over the first."""
    scores = run.scores
    if scores is None:
        return (), ()
    models = {model.name: model for model in (*scores.others, scores.adapted, scores.control) if model is not None}
    own = models.get(weak.stage.name)
    names = dict.fromkeys([run.control, weak.stage.init or ""])
    before = [models[name] for name in names if name in models and name != weak.stage.name]
    if own is None or not before:
        return (), ()
    rows = [
        GainRow(name, colour(scores.palette[k]), _named(weak, name), own.iou[k], _changes(own, before, k))
        for k, name in enumerate(scores.classes)
    ]
    rows.sort(key=lambda row: (row.gains[0] is None, -(row.gains[0] or 0.0)))
    return tuple(model.name for model in before), tuple(rows)


def _changes(own: Model, before: Sequence[Model], k: int) -> tuple[float | None, ...]:
    return tuple(difference(own.iou[k], model.iou[k]) for model in before)


def _named(weak: Weak, name: str) -> str:
    """How many images and points of what the stage learned from name a class."""
    if weak.named is None or name not in weak.classes:
        return ""
    images, clicked = weak.named[weak.classes.index(name)]
    said = [f"{images} image{'s' * (images != 1)}"] if images is not None else []
    said += [f"{clicked} point{'s' * (clicked != 1)}"] if clicked else []
    return " · ".join(said)


def _gained(over: Sequence[str], rows: Sequence[GainRow]) -> str:
    known = [(row.name, row.gains[0]) for row in rows if row.gains and row.gains[0] is not None]
    if not known:
        return ""
    up = [(name, gain) for name, gain in known if gain >= 0.0005]
    down = [(name, gain) for name, gain in reversed(known) if gain <= -0.0005]
    said = f"{len(up)} of {len(known)} classes gained over {over[0]}"
    said += f", most {_listed(up)}" if up else ""
    return f"{said}; {len(down)} lost, most {_listed(down)}." if down else f"{said}; none lost."


def _listed(entries: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {signed(gain)}" for name, gain in entries[:3]) or ABSENT


# ---- collapse


def _collapse(line: Sequence[Point], weak: Weak, run: Run) -> str:
    """A warning where guessed tags ended at none or all of the classes; empty: they did not."""
    classes = len(weak.classes) or len(run.legend)
    if not line or not classes:
        return ""
    last = smoothed(line)[-1][1]
    there = next((part.per_image for part in weak.parts if part.per_image is not None), None)
    # Where images really show none or all of the classes, this is no collapse.
    if there is not None and abs(there - last) <= ALMOST:
        return ""
    if last >= ALMOST and last <= classes - ALMOST:
        return ""
    kind = "none" if last < ALMOST else f"all {classes}"
    return (
        f"The tags have collapsed: at the end {last:.1f} classes are taken for present in an image, which is almost"
        f" {kind}. Tags like these say nothing; a higher or lower threshold, a smaller weight of guessed tags, or a few"
        " images tagged by a person help."
    )
