"""Counts over a store of weak labels: classes, annotators, and how long a label took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from segshift.weak.label import WeakLabel, moment


@dataclass(frozen=True)
class Annotator:
    """What one person did.

    Attributes:
        name: None where the labels do not say.
        saves: lines of the file.
        images: whose label that holds is this person's.
        between_saves: median seconds from one save to the next; None without two dated ones.
        an_image: median seconds from the last save of an image to the last save of the next one.
    """

    name: str | None
    saves: int
    images: int
    between_saves: float | None
    an_image: float | None


@dataclass(frozen=True)
class Stats:
    """Counts over the labels that hold, one an image.

    Attributes:
        lines: of the file, replaced ones too.
        images: with a label that says something.
        tagged, positive_only, pointed: images with tags, of these with positive-only ones, and with points.
        taken_back: images whose label was emptied.
        points: in all.
        classes: name → (images tagged with it, points, images with points of it), the most frequent first.
        annotators: the busiest first.
    """

    lines: int
    images: int
    tagged: int
    positive_only: int
    pointed: int
    taken_back: int
    points: int
    classes: dict[str, tuple[int, int, int]]
    annotators: list[Annotator]


def stats(lines: Sequence[WeakLabel], classes: Sequence[str] = ()) -> Stats:
    """Count.

    Args:
        lines: as `WeakStore.lines` gives them.
        classes: names that are listed even where no label has them, in this order.
    """
    holding = {label.image: label for label in lines}
    labels = [label for label in holding.values() if not label.empty]
    tags = Counter(tag for label in labels for tag in label.tags or ())
    points = Counter(point.name for label in labels for point in label.points)
    seen = Counter(name for label in labels for name in {point.name for point in label.points})
    by_number = sorted({*tags, *points} - {*classes}, key=lambda name: (-tags[name] - points[name], name))
    return Stats(
        lines=len(lines),
        images=len(labels),
        tagged=sum(label.tags is not None for label in labels),
        positive_only=sum(label.tags is not None and not label.complete for label in labels),
        pointed=sum(bool(label.points) for label in labels),
        taken_back=len(holding) - len(labels),
        points=points.total(),
        classes={name: (tags[name], points[name], seen[name]) for name in [*classes, *by_number]},
        annotators=_annotators(lines, labels),
    )


def _annotators(lines: Sequence[WeakLabel], labels: Sequence[WeakLabel]) -> list[Annotator]:
    saves: dict[str | None, list[WeakLabel]] = {}
    for line in lines:
        saves.setdefault(line.who, []).append(line)
    held = Counter(label.who for label in labels)
    people = [Annotator(who, len(made), held[who], *_seconds(made)) for who, made in saves.items()]
    return sorted(people, key=lambda person: (-person.saves, person.name or ""))


def _seconds(lines: Sequence[WeakLabel]) -> tuple[float | None, float | None]:
    """Median seconds between saves, and between the last saves of one image and the next."""
    dated = sorted(((moment(line.when, line.image), line.image) for line in lines if line.when), key=lambda d: d[0])
    ends = [at for i, (at, image) in enumerate(dated) if i + 1 == len(dated) or dated[i + 1][1] != image]
    both = []
    for times in ([at for at, _ in dated], ends):
        gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
        both.append(median(gaps) if gaps else None)
    return both[0], both[1]


def table(counted: Stats) -> str:
    """The counts as text for a terminal."""
    width = max([len("annotator"), *map(len, counted.classes), *(len(p.name or "") for p in counted.annotators)])
    lines = [
        f"{counted.images} images with labels: {counted.tagged} with tags ({counted.positive_only} positive-only), "
        f"{counted.pointed} with points ({counted.points}); {counted.taken_back} taken back; {counted.lines} lines",
        "",
        f"{'class':<{width}}  {'tagged':>7}  {'points':>7}  {'images with points':>18}",
    ]
    lines += [f"{name:<{width}}  {t:>7}  {p:>7}  {i:>18}" for name, (t, p, i) in counted.classes.items()]
    lines += ["", f"{'annotator':<{width}}  {'saves':>7}  {'images':>7}  {'s between saves':>18}  {'s an image':>10}"]
    for person in counted.annotators:
        between, image = (_number(value) for value in (person.between_saves, person.an_image))
        name = person.name or "(not said)"
        lines.append(f"{name:<{width}}  {person.saves:>7}  {person.images:>7}  {between:>18}  {image:>10}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
