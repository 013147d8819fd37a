"""What stages left behind that learned from weak labels: how right guessed tags are, and where networks look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segshift.report.files import Colour, inside, load, palette, short
from segshift.report.reading import Run
from segshift.report.stages import Stage
from segshift.report.values import fraction, mapping, number, sequence, text, whole

METHOD, FILE, ATTENTION = "weak_labels", "tags.json", "attention"


@dataclass(frozen=True)
class Tags:
    """Precision and recall of the tags that a network guesses; None where it cannot be said.

    Attributes:
        name: of its stage.
        per_image: tags in an image, mean.
        classes: (precision, recall) of each.
    """

    name: str
    precision: float | None
    recall: float | None
    per_image: float | None
    classes: tuple[tuple[float | None, float | None], ...]


@dataclass(frozen=True)
class Part:
    """Images on which tags were compared with the classes that are there.

    Attributes:
        by: "tags" of a person, or "labels".
        where: the domain.
        learned: the stage learned from these very tags.
        present: in how many images each class is.
        per_image: classes in an image, mean.
        networks: before the stage, if there is a network before it, and after it.
    """

    by: str
    where: str
    images: int | None
    of: int | None
    learned: bool
    present: tuple[int | None, ...]
    per_image: float | None
    networks: tuple[Tags, ...]


@dataclass(frozen=True)
class AttentionMap:
    """A picture of where a network looks: its probability that the class is there, and the smallest share of the image
    that holds half of its attention."""

    network: str
    path: Path
    probability: float | None
    half: float | None


@dataclass(frozen=True)
class Look:
    """A class in an image, which is at `path`, and the maps of it."""

    class_name: str
    image: str
    caption: str
    points: int
    path: Path | None
    maps: tuple[AttentionMap, ...]


@dataclass(frozen=True)
class Weak:
    """A stage that learned from weak labels; empty or None where something is missing.

    Attributes:
        named: (images, points) of the labels that the stage learned from, by class; None: it learned from none.
        labelled: how many images these are.
    """

    stage: Stage
    mode: str
    threshold: float | None
    fewest: int | None
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    labelled: int | None
    named: tuple[tuple[int | None, int | None], ...] | None
    parts: tuple[Part, ...]
    looks: tuple[Look, ...]


def read_weak(run: Run, problems: list[str]) -> list[Weak]:
    """The stages of a run that learn from weak labels, in order.

    Args:
        run: whose folders have it.
        problems: gets a line for whatever is damaged.
    """
    found = []
    for stage in run.stages:
        folder = run.path / stage.folder
        if stage.method == METHOD or (folder / FILE).exists():
            found.append(_weak(run, stage, folder, problems))
    return found


def _weak(run: Run, stage: Stage, folder: Path, problems: list[str]) -> Weak:
    shown = f"{stage.folder}/{FILE}"
    content = mapping(load(run.path, shown, problems)) if (folder / FILE).exists() else {}
    classes = tuple(text(name, "?") for name in sequence(content.get("classes")))
    if content and not classes:
        problems.append(f"{shown} names no classes")
    named = mapping(content.get("named"))
    counts = [_counts(named.get(key), len(classes)) for key in ("images", "points")]
    entries = [mapping(entry) for entry in sequence(content.get("parts"))]
    parts = [part for entry in entries if (part := _part(entry, len(classes))) is not None]
    if len(parts) < len(entries):
        problems.append(f"{shown}: not all of its figures can be shown")
    return Weak(
        stage=stage,
        mode=text(content.get("mode")),
        threshold=fraction(content.get("threshold")),
        fewest=whole(content.get("fewest_pixels")),
        classes=classes,
        palette=palette(content.get("palette"), len(classes)),
        labelled=whole(named.get("labelled")),
        named=tuple(zip(*counts, strict=True)) if named else None,
        parts=tuple(parts),
        looks=tuple(_looks(run, stage, problems)),
    )


def _counts(value: object, classes: int) -> tuple[int | None, ...]:
    known = [whole(count) for count in sequence(value)[:classes]]
    return tuple(known + [None] * (classes - len(known)))


def _part(entry: Mapping[str, Any], classes: int) -> Part | None:
    networks = tuple(_tags(mapping(each), classes) for each in sequence(entry.get("networks"))[-2:])
    if not networks or not classes:
        return None
    return Part(
        by=text(entry.get("by")),
        where=short(text(entry.get("domain"), "the images")),
        images=whole(entry.get("images")),
        of=whole(entry.get("of")),
        learned=entry.get("learned") is True,
        present=_counts(entry.get("present"), classes),
        per_image=number(entry.get("per_image")),
        networks=networks,
    )


def _tags(entry: Mapping[str, Any], classes: int) -> Tags:
    known = [mapping(item) for item in sequence(entry.get("classes"))[:classes]]
    known += [{}] * (classes - len(known))
    return Tags(
        name=text(entry.get("name"), "a network"),
        precision=fraction(entry.get("precision")),
        recall=fraction(entry.get("recall")),
        per_image=number(entry.get("per_image")),
        classes=tuple((fraction(item.get("precision")), fraction(item.get("recall"))) for item in known),
    )


def _looks(run: Run, stage: Stage, problems: list[str]) -> list[Look]:
    home, shown = run.path / stage.folder / ATTENTION, f"{stage.folder}/{ATTENTION}"
    # A run without pictures, or one that has just begun.
    if not (home / "index.json").exists():
        return []
    index = mapping(load(run.path, f"{shown}/index.json", problems))

    def picture(value: object) -> Path | None:
        name = text(value)
        return inside(home, name, f"{shown}/{name}", problems) if name else None

    looks = []
    for entry in map(mapping, sequence(index.get("panels"))):
        maps = [
            AttentionMap(
                text(each.get("network"), "a network"),
                path,
                fraction(each.get("probability")),
                fraction(each.get("half")),
            )
            for each in map(mapping, _last_two(entry.get("maps")))
            if (path := picture(each.get("file"))) is not None
        ]
        image = picture(entry.get("image"))
        if maps or image:
            looks.append(
                Look(
                    class_name=text(entry.get("class"), "?"),
                    image=text(entry.get("name"), "an image"),
                    caption=text(entry.get("caption")),
                    points=whole(entry.get("points")) or 0,
                    path=image,
                    maps=tuple(maps),
                )
            )
    return looks


def _last_two(value: object) -> Sequence[Any]:
    return sequence(value)[-2:]
