"""The feature picture of a run: maps of the points of each stage, in the classes' colours, as paths of inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segshift.report.files import Colour, load, palette, short
from segshift.report.reading import Run
from segshift.report.values import colour, fraction, mapping, number, sequence, text, whole

FILE = "features.json"

EMBEDDINGS: Mapping[str, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

LAYERS = 6
"""Dots are drawn in so many turns of all classes: else the last class would hide the others where they overlap."""

MOST_POINTS, MOST_STAGES = 20_000, 12
"""A picture of more is damaged."""

LETTER, LINE = 24, 50
"""Width of a letter and height of a line of the names on a map, in its units: a thousand are its side."""

RING = 7
"""Radius of the mark of a point of the second domain, in units."""


@dataclass(frozen=True)
class Name:
    """A class's name on a map, (x, y) the middle of its base line."""

    text: str
    x: int
    y: int


@dataclass(frozen=True)
class Layer:
    """Points of a class: an SVG path of dots or, of domains other than the first, rings."""

    colour: str
    path: str
    other: bool


@dataclass(frozen=True)
class FeatureMap:
    """A stage's map.

    Attributes:
        compactness: None where it cannot be said.
        by_class: of each class; None where it does not count.
        nearest: share of the points that are nearest to the mean of their own class.
        gap: between the domains; None with one domain.
        explained: share of the variance that the map shows; None where it is not linear.
        same_axes: it has the axes and the scale of the first map; None where this is not known.
        miou: of the stage's network; None where it was not measured.
    """

    stage: str
    compactness: float | None
    by_class: tuple[float | None, ...]
    nearest: float | None
    gap: float | None
    explained: float | None
    same_axes: bool | None
    miou: float | None
    layers: tuple[Layer, ...]
    names: tuple[Name, ...]


@dataclass(frozen=True)
class Features:
    """The picture as shown.

    Attributes:
        kind: what the maps are made with.
        where: the domain that is measured.
        marks: (name, whether its mark is a ring) of the domains, where there are several.
        maps: of each stage.
        legend: classes that are shown, with their colours.
        rows: (class, its colour, compactness in each map) of the classes that count in any.
        said: what the figures say, in words; empty where there is nothing to compare.
        explanation: what is shown, and what the figures mean.
    """

    kind: str
    where: str
    marks: tuple[tuple[str, bool], ...]
    maps: tuple[FeatureMap, ...]
    legend: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    said: str
    explanation: tuple[str, ...]


def features(run: Run, problems: list[str]) -> Features | None:
    """The feature picture of a run; None where it has none.

    Args:
        run: whose folder has it.
        problems: gets a line where the file is damaged.
    """
    if not (run.path / FILE).exists():
        return None
    content = mapping(load(run.path, FILE, problems))
    if not content:
        return None
    classes = tuple(text(name, "?") for name in sequence(content.get("classes")))
    colours = palette(content.get("palette"), len(classes))
    domains = [mapping(entry) for entry in sequence(content.get("domains"))]
    units = whole(content.get("units"))
    owner = _whole(content.get("domain"), len(domains))
    entries = [mapping(entry) for entry in sequence(content.get("stages"))][:MOST_STAGES]
    maps = [_map(entry, owner, classes, colours, units) for entry in entries] if owner and units else []
    shown = [each for each in maps if each is not None]
    if not shown or len(shown) < len(entries):
        problems.append(f"{FILE} is damaged: its maps cannot be shown")
        return None
    known = _miou(run)
    shown = [replace(each, miou=known.get(each.stage)) for each in shown]
    used = {layer.colour for each in shown for layer in each.layers}
    named = [(name, colour(rgb)) for name, rgb in zip(classes, colours, strict=True)]
    rows = [(name, rgb, tuple(each.by_class[k] for each in shown)) for k, (name, rgb) in enumerate(named)]
    return Features(
        kind=EMBEDDINGS.get(text(content.get("embed")), "a map"),
        where=" and ".join(map(_where, domains)),
        marks=tuple((_role(domain), place > 0) for place, domain in enumerate(domains)) if len(domains) > 1 else (),
        maps=tuple(shown),
        legend=tuple((name, rgb) for name, rgb in named if rgb in used),
        rows=tuple(row for row in rows if any(value is not None for value in row[2])),
        said=_said(shown, _by_truth(domains[0])),
        explanation=tuple(_explanation(domains, owner, shown)),
    )


def _miou(run: Run) -> dict[str, float | None]:
    if run.scores is None:
        return {}
    return {m.name: m.miou for m in (run.scores.control, run.scores.adapted, *run.scores.others) if m is not None}


def _whole(value: object, below: int) -> list[int]:
    """A list of whole numbers from 0 up to, but not with, `below`; empty where it is none."""
    items = sequence(value)
    found = [item for item in map(whole, items) if item is not None and item < below]
    return found if len(found) == len(items) <= MOST_POINTS else []


def _where(domain: Mapping[str, Any]) -> str:
    images = whole(domain.get("images"))
    name = text(domain.get("name"), "a domain")
    root = short(text(domain.get("root")))
    counted = "" if images is None else f", {images} image{'s' * (images != 1)}"
    return f"{name} ({root}{counted})" if root else f"{name}{counted}"


ROLES: Mapping[str, str] = {"val": "val (target)"}
"""What a domain is called where its own name does not say whether it is the source or the target."""


def _role(domain: Mapping[str, Any]) -> str:
    name = text(domain.get("name"), "a domain")
    return ROLES.get(name, name)


def _map(
    entry: Mapping[str, Any], owner: Sequence[int], classes: Sequence[str], colours: Sequence[Colour], units: int
) -> FeatureMap | None:
    labels = _whole(entry.get("class"), len(classes))
    across, down = (_whole(entry.get(axis), units + 1) for axis in ("x", "y"))
    if not len(labels) == len(across) == len(down) == len(owner):
        return None
    scale = 1000 / units
    places = [(round(x * scale), round(y * scale)) for x, y in zip(across, down, strict=True)]
    values = [_positive(value) for value in sequence(entry.get("by_class"))][: len(classes)]
    hearts = [_whole(heart, MOST_POINTS) for heart in sequence(entry.get("hearts"))]
    counts = {k: labels.count(k) for k in set(labels)}
    wanted = [
        (classes[heart[0]], round(heart[1] * scale), round(heart[2] * scale), counts.get(heart[0], 0))
        for heart in hearts
        if len(heart) == 3 and heart[0] < len(classes) and max(heart[1:]) <= units
    ]
    return FeatureMap(
        stage=text(entry.get("name"), "?"),
        compactness=_positive(entry.get("compactness")),
        by_class=tuple(values + [None] * (len(classes) - len(values))),
        nearest=fraction(entry.get("nearest")),
        gap=_positive(entry.get("gap")),
        explained=fraction(entry.get("explained")),
        same_axes=axes if isinstance(axes := entry.get("same_axes"), bool) else None,
        miou=None,
        layers=tuple(_layers(places, labels, owner, colours)),
        names=tuple(placed(sorted(wanted, key=lambda each: -each[3]))),
    )


def _positive(value: object) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0 else None


def _layers(
    places: Sequence[tuple[int, int]], labels: Sequence[int], owner: Sequence[int], colours: Sequence[Colour]
) -> list[Layer]:
    """The points by turns of all classes; the first domain's, which are measured, on top."""
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for place, k, domain in zip(places, labels, owner, strict=True):
        groups.setdefault((domain > 0, k), []).append(place)
    layers = []
    for other in (True, False):
        for turn in range(LAYERS):
            for k in range(len(colours)):
                some = sorted(groups.get((other, k), [])[turn::LAYERS])
                if some:
                    layers.append(Layer(colour(colours[k]), path_of(some, other), other))
    return layers


def path_of(places: Sequence[tuple[int, int]], rings: bool = False) -> str:
    """An SVG path that, stroked with round ends, is a dot (or a ring) at each place; short, by relative steps.

    A ring is one arc that ends a unit below its start: round ends close it.
    """
    parts, before = [], (0, 0)
    for x, y in places:
        right, down = x - before[0], y - before[1]
        if rings:
            parts.append(f"m{right - RING}{down:+d}a{RING} {RING} 0 1 1 0 1")
            before = (x - RING, y + 1)
        else:
            parts.append(f"m{right}{down:+d}h0")
            before = (x, y)
    return "".join(parts).replace("+", " ")


def placed(wanted: Sequence[tuple[str, int, int, int]]) -> list[Name]:
    """Names as near to their places as there is room, in the order in which they are given; others are left out.

    Args:
        wanted: (name, x, y, …) where it should be.
    """
    names: list[Name] = []
    taken: list[tuple[float, float, float, float]] = []
    for name, x, y, *_ in wanted:
        half = min(500.0, LETTER * (len(name) + 0.5) / 2)
        for shift in (0, -1, 1, -2, 2):
            middle = round(min(1000 - half, max(half, x)))
            base = round(min(990.0, max(LINE, y + LINE * (0.3 + 0.8 * shift))))
            box = (middle - half, base - 0.75 * LINE, middle + half, base + 0.15 * LINE)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                names.append(Name(name, middle, base))
                break
    return names


ALIKE = 0.02
"""Figures that differ by less than this share are called alike."""


def _by_truth(domain: Mapping[str, Any]) -> bool:
    return domain.get("classes_by") == "truth"


def _said(maps: Sequence[FeatureMap], by_truth: bool) -> str:
    """The last map against the first one."""
    first, last = maps[0], maps[-1]
    if first.compactness is None or last.compactness is None or len(maps) < 2:
        return ""
    change = last.compactness - first.compactness
    word = "more compact" if change < 0 else "less compact"
    joint = "than"
    if abs(change) < ALIKE * max(first.compactness, last.compactness):
        word, joint = "as compact", "as"
    figures = f"{last.compactness:.2f} against {first.compactness:.2f}; lower is more compact"
    subject = "The classes are" if by_truth else "By the networks' own predictions the classes are"
    said = f"{subject} {word} in the features of {last.stage} {joint} in those of {first.stage} ({figures})."
    if first.nearest is not None and last.nearest is not None:
        near, before = f"{100 * last.nearest:.0f}", f"{100 * first.nearest:.0f}"
        said += f" {near} % of the points are nearest to the mean of their own class, against {before} %."
    if first.gap is not None and last.gap is not None:
        said += f" The gap to the other domain is {last.gap:.2f}, against {first.gap:.2f}; lower is nearer."
    return said


def _axes(maps: Sequence[FeatureMap]) -> str:
    """Whether places in one map can be compared with those in another."""
    if len(maps) < 2:
        return ""
    own = [each.stage for each in maps[1:] if not each.same_axes]
    if not own:
        return " All maps have the same axes and the same scale; each is moved to its own middle."
    if len(own) == len(maps) - 1:
        return " Each map has its own scale and is turned to lie like the one before it."
    return f" The maps have the same axes and the same scale, but {', '.join(own)}: it began from another network."


def _explanation(domains: Sequence[Mapping[str, Any]], owner: Sequence[int], maps: Sequence[FeatureMap]) -> list[str]:
    by_truth = _by_truth(domains[0])
    word = "its true class" if by_truth else "the class that the network itself predicts there"
    shown = (
        f"A point is a cell of the network's grid, in the colour of {word}: {owner.count(0)} cells of"
        f" {_where(domains[0])}, the same ones in every map, equally many of each class as far as there are."
    )
    if not by_truth:
        shown += f" They were chosen by what {maps[-1].stage} says. One that errs can look compact: nothing is compared"
        shown += " with a truth."
    for domain in domains[1:]:
        shown += f" Rings are cells of {_where(domain)}."
    shown += _axes(maps)
    if all(each.explained is None for each in maps):  # no PCA
        shown += " Points that lie together are alike; how far groups lie apart, and how large they are, says little."
    figures = (
        "Compactness is the mean distance of a class's points to their mean, over the mean distance between two"
        " classes' means, averaged over the classes; it is measured in all dimensions of the features, not in the map."
    )
    if any(each.gap is not None for each in maps):
        figures += (
            " The domain gap is the mean distance between a class's means in the two domains, over the same distance"
            " between classes."
        )
    return [shown, figures]
