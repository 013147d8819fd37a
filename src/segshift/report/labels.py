"""Pseudo-labels as their stage's folder holds them: thresholds, counts, how often they are right, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segshift.report.files import Colour, inside, load, palette, short
from segshift.report.stages import Stage
from segshift.report.values import fraction, mapping, number, sequence, text, whole

LABEL_KINDS: Mapping[str, str] = {
    "image": "Image",
    "sparse": "Labels by thresholds",
    "densified": "Labels after voting",
    "added": "What voting added",
    "full": "Full labels",
    "truth": "Ground truth",
}
"""The pictures of a panel, in the order in which they are shown."""

RULE_NUMBERS = ("portion", "quantile", "cap", "value")

MOST_PIXELS = 10**15
"""No count of pixels is larger; what is must be damaged."""


@dataclass(frozen=True)
class Counts:
    """statistics.json: numbers of pixels by class.

    Attributes:
        images, pixels: of the domain.
        predicted: K counts of the pixels predicted as each class.
        labelled: K counts of labelled pixels, by the thresholds alone and after each voting pass.
        shares: labelled share of each image.
        easy, hard: numbers of images; both 0 where they were not split.
        cutoff: the score that an easy image has at least.
    """

    images: int | None
    pixels: int | None
    predicted: tuple[int, ...]
    labelled: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    easy: int
    hard: int
    cutoff: float | None


@dataclass(frozen=True)
class Quality:
    """A row of quality.json: shares in [0, 1], None where unknown; `classes` holds (coverage, precision) of each."""

    name: str
    coverage: float | None
    precision: float | None
    added_coverage: float | None
    added_precision: float | None
    classes: tuple[tuple[float | None, float | None], ...]


@dataclass(frozen=True)
class LabelPanel:
    """Pictures of one image by the keys of `LABEL_KINDS`, and the scores of the image."""

    name: str
    caption: str
    files: Mapping[str, Path]
    coverage: float | None
    score: float | None
    easy: bool | None
    discriminator: float | None


@dataclass(frozen=True)
class Labels:
    """What a labels stage left behind; empty or None where it is missing.

    Attributes:
        chosen_by: numbers beside the rule in thresholds.json: portion, quantile, cap, value.
        measured_on, measured_images: what quality.json was measured on.
    """

    stage: Stage
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    rule: str
    chosen_by: Mapping[str, float]
    thresholds: tuple[float | None, ...]
    counts: Counts | None
    measured_on: str
    measured_images: int | None
    quality: tuple[Quality, ...]
    panels: tuple[LabelPanel, ...]

    @property
    def passes(self) -> int:
        """Voting passes; 0 for labels by thresholds alone."""
        counted = len(self.counts.labelled) - 1 if self.counts else 0
        return max(counted, sum(row.name.startswith("voting") for row in self.quality))


def read_labels(run: Path, stage: Stage, legend: Sequence[tuple[str, Colour]], problems: list[str]) -> Labels:
    """Read a labels stage's folder; what an unfinished stage has not written yet is no problem.

    Args:
        run: the run's folder.
        stage: of kind "labels".
        legend: the run's classes and colours, for where thresholds.json does not say them.
        problems: gets a line for whatever is missing or damaged.
    """
    folder = run / stage.folder

    def part(name: str, kind: type, needed: bool = True) -> Any:
        shown = f"{stage.folder}/{name}"
        if not (folder / name).exists() and not (needed and stage.finished):
            return None
        content = load(run, shown, problems)
        if content is not None and not isinstance(content, kind):
            problems.append(f"{shown} holds something else")
        return content

    thresholds = mapping(part("thresholds.json", dict))
    statistics = mapping(part("statistics.json", dict))
    quality = mapping(part("quality.json", dict, needed=False))
    index = part("panels/index.json", list, needed=(folder / "panels").is_dir())
    names = [text(name, "?") for name in sequence(thresholds.get("classes"))] or [name for name, _ in legend]
    classes = tuple(names or [f"class {k}" for k in range(len(sequence(statistics.get("predicted"))))])
    colours = thresholds.get("palette") or [colour for _, colour in legend]
    values = [number(value) for value in sequence(thresholds.get("thresholds"))]
    known = [value if value is not None and 0 <= value < 2 else None for value in values]
    if thresholds and len(known) != len(classes):
        problems.append(f"{stage.folder}/thresholds.json: {len(known)} thresholds for {len(classes)} classes")
        known = []
    rows = _quality(quality, len(classes))
    if quality and not rows:
        problems.append(f"{stage.folder}/quality.json holds no rows")
    return Labels(
        stage=stage,
        classes=classes,
        palette=palette(colours, len(classes)),
        rule=text(thresholds.get("rule")),
        chosen_by={key: value for key in RULE_NUMBERS if (value := number(thresholds.get(key))) is not None},
        thresholds=tuple(known or [None] * len(classes)),
        counts=_counts(statistics, len(classes), f"{stage.folder}/statistics.json", problems) if statistics else None,
        measured_on=short(text(quality.get("domain"))),
        measured_images=whole(quality.get("images")),
        quality=rows,
        panels=tuple(_panels(folder, index, problems)),
    )


def _counts(data: Mapping[str, object], classes: int, shown: str, problems: list[str]) -> Counts | None:
    predicted = _pixels(data.get("predicted"), classes)
    labelled = [_pixels(row, classes) for row in sequence(data.get("labelled"))]
    whole_rows = [row for row in labelled if row is not None]
    if predicted is None or not labelled or len(whole_rows) < len(labelled):
        problems.append(f"{shown}: its counts do not fit {classes} classes")
        return None
    images = [mapping(entry) for entry in sequence(data.get("per_image"))]
    shares = [fraction(entry.get("labelled")) for entry in images]
    pixels = whole(data.get("pixels"))
    return Counts(
        images=whole(data.get("images")),
        pixels=pixels if pixels and pixels <= MOST_PIXELS else None,
        predicted=predicted,
        labelled=tuple(whole_rows),
        shares=tuple(share for share in shares if share is not None),
        easy=sum(entry.get("easy") is True for entry in images),
        hard=sum(entry.get("easy") is False for entry in images),
        cutoff=number(data.get("easy_cutoff")),
    )


def _pixels(value: object, classes: int) -> tuple[int, ...] | None:
    """Counts of pixels by class, or None where one of them is none."""
    counts = [whole(count) for count in sequence(value)]
    valid = tuple(count for count in counts if count is not None and count <= MOST_PIXELS)
    return valid if len(valid) == len(counts) == classes else None


def _quality(data: Mapping[str, object], classes: int) -> tuple[Quality, ...]:
    rows = []
    for entry in map(mapping, sequence(data.get("rows"))):
        added = mapping(entry.get("added"))
        known = [mapping(item) for item in sequence(entry.get("classes"))[:classes]]
        known += [{}] * (classes - len(known))
        row = Quality(
            name=text(entry.get("name"), "labels"),
            coverage=fraction(entry.get("coverage")),
            precision=fraction(entry.get("precision")),
            added_coverage=fraction(added.get("coverage")),
            added_precision=fraction(added.get("precision")),
            classes=tuple((fraction(item.get("coverage")), fraction(item.get("precision"))) for item in known),
        )
        if row.coverage is not None or row.precision is not None:
            rows.append(row)
    return tuple(rows)


def _panels(folder: Path, index: object, problems: list[str]) -> list[LabelPanel]:
    panels = []
    for position, entry in enumerate(map(mapping, sequence(index))):
        files: dict[str, Path] = {}
        names = mapping(entry.get("files"))
        for kind in LABEL_KINDS:
            if name := text(names.get(kind)):
                path = inside(folder / "panels", name, f"{folder.name}/panels/{name}", problems)
                files |= {kind: path} if path else {}
        easy = entry.get("easy")
        if files:
            panels.append(
                LabelPanel(
                    name=text(entry.get("name"), f"panel {position}"),
                    caption=text(entry.get("caption")),
                    files=files,
                    coverage=fraction(entry.get("coverage")),
                    score=number(entry.get("score")),
                    easy=easy if isinstance(easy, bool) else None,
                    discriminator=number(entry.get("discriminator")),
                )
            )
    return panels
