"""The pseudo-labels of each round as the page shows them: how much is labelled, how often right, and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segshift.report.labels import LABEL_KINDS, Counts, LabelPanel, Labels, Quality
from segshift.report.panels import Draft, PanelView
from segshift.report.pictures import Request
from segshift.report.reading import Run
from segshift.report.values import below_one, colour, difference, points, signed

PASS_COLOURS = ((90, 90, 90), (68, 119, 170), (204, 187, 68), (238, 102, 119), (170, 51, 119))
"""Colours of the pictures of what voting added: labelled by the thresholds, by voting pass 1, 2, 3, and any later."""

PASS_WORDS = ("blue", "yellow", "red", "purple")
"""The colours of the passes as they are called beside a picture."""

RULES: Mapping[str, str] = {
    "class_balanced": "class-balanced: of each class, the most confident {portion:.4g} % of the pixels predicted as it",
    "global": "one threshold for all classes: the most confident {portion:.4g} % of all pixels",
    "quantile": "of each class, the pixels above the lowest {quantile:.4g} % of its confidences; no threshold is"
    " above {cap}",
    "fixed": "one fixed threshold for all classes, {value}",
    "argmax": "the best class of every pixel, however unsure the network is",
}


@dataclass(frozen=True)
class CoverageRow:
    """A class (or all of them): how much of what is predicted as it is labelled.

    Attributes:
        predicted: share of all pixels; None where unknown.
        alone, voted: labelled pixels in shares of the predicted ones, by thresholds alone and after voting; they can
            exceed 1, since a label may differ from the prediction. None where nothing is predicted or there is no vote.
        threshold: as text.
    """

    name: str
    colour: str
    predicted: float | None
    alone: float | None
    voted: float | None
    threshold: str

    @property
    def last(self) -> float | None:
        """What training sees."""
        return self.alone if self.voted is None else self.voted


@dataclass(frozen=True)
class RightRow:
    """A class: (coverage, precision) after each step of labelling."""

    name: str
    colour: str
    cells: tuple[tuple[float | None, float | None], ...]


@dataclass(frozen=True)
class Round:
    """A labels stage as shown. Empty parts are left out of the page."""

    name: str
    headline: str
    finished: bool
    origin: str
    facts: tuple[tuple[str, str], ...]
    voted: bool
    coverage: tuple[CoverageRow, ...]
    total: CoverageRow | None
    quality: tuple[Quality, ...]
    quality_where: str
    quality_said: str
    right: tuple[RightRow, ...]
    split: Counts | None
    panels: list[PanelView]
    classes: list[tuple[str, str]]
    passes: list[tuple[str, str]]
    notes: tuple[str, ...]

    @property
    def columns(self) -> int:
        """Pictures side by side: as many in each panel, also where some have fewer pictures."""
        most = max((len(view.tiles) for view in self.panels), default=1)
        return most if most <= 4 else 3


def rounds(run: Run, panels: Sequence[list[PanelView]]) -> list[Round]:
    """The labels stages of a run, in order.

    Args:
        run: with as many `labels` as `panels` has entries.
        panels: the shown panels of each.
    """
    return [_round(run, labels, views) for labels, views in zip(run.labels, panels, strict=True)]


def _round(run: Run, labels: Labels, panels: list[PanelView]) -> Round:
    counts, stage = labels.counts, labels.stage
    rows = coverage_rows(labels)
    total = _total(counts) if counts else None
    users = [other.name for other in run.stages if other.labels == stage.name]
    origin = f"Made with the network of {stage.init}. " if stage.init else ""
    if users:
        origin += f"{_listed(users)} {'trains' if len(users) == 1 else 'train'} on them."
    right = [
        RightRow(name, colour(rgb), tuple(row.classes[k] for row in labels.quality))
        for k, (name, rgb) in enumerate(zip(labels.classes, labels.palette, strict=True))
    ]
    shown = {tile.kind for view in panels for tile in view.tiles}
    legend = [(name, colour(rgb)) for name, rgb in zip(labels.classes, labels.palette, strict=True)]
    return Round(
        name=stage.name,
        headline=_headline(labels, total),
        finished=stage.finished,
        origin=origin.strip(),
        facts=tuple(_facts(labels)),
        voted=any(row.voted is not None for row in rows),
        coverage=tuple(rows),
        total=total,
        quality=labels.quality,
        quality_where=_where(labels),
        quality_said=_quality_said(labels.quality),
        right=tuple(row for row in right if any(precision is not None for _, precision in row.cells)),
        split=counts if counts and counts.easy + counts.hard else None,
        panels=panels,
        classes=[*legend, (f"not labelled{'; in the truth: ignored' * ('truth' in shown)}", "#000000")],
        passes=_pass_legend(labels.passes) if "added" in shown else [],
        notes=tuple(_panel_notes(labels)),
    )


def coverage_rows(labels: Labels) -> list[CoverageRow]:
    """A row a class; counts are None where statistics.json is missing."""
    counts = labels.counts
    if counts is None and all(value is None for value in labels.thresholds):
        return []
    pixels = (counts.pixels or sum(counts.predicted)) if counts else 0
    rows = []
    for k, name in enumerate(labels.classes):
        predicted = counts.predicted[k] if counts else 0
        shares = [row[k] / predicted for row in counts.labelled] if counts and predicted else []
        threshold = labels.thresholds[k]
        rows.append(
            CoverageRow(
                name=name,
                colour=colour(labels.palette[k]),
                predicted=predicted / pixels if pixels else None,
                alone=shares[0] if shares else None,
                voted=shares[-1] if len(shares) > 1 else None,
                # Above 1: the class was never predicted, or its portion is 0.
                threshold="none taken" if threshold is not None and threshold > 1 else below_one(threshold),
            )
        )
    return rows


def _total(counts: Counts) -> CoverageRow | None:
    pixels = counts.pixels or sum(counts.predicted)
    if not pixels:
        return None
    shares = [sum(row) / pixels for row in counts.labelled]
    return CoverageRow("All classes", "", None, shares[0], shares[-1] if len(shares) > 1 else None, "")


def _headline(labels: Labels, total: CoverageRow | None) -> str:
    parts = []
    if total is not None:
        before = f"{points(total.alone)} → " if total.voted is not None else ""
        parts.append(f"{before}{points(total.last)} % of the pixels labelled")
    last = _last_of_labels(labels.quality)
    if last is not None and last.precision is not None:
        parts.append(f"{points(last.precision)} % of these right")
    if labels.counts and labels.counts.easy + labels.counts.hard:
        parts.append(f"{labels.counts.easy} of {labels.counts.easy + labels.counts.hard} images easy")
    return " · ".join(parts)


def _facts(labels: Labels) -> list[tuple[str, str]]:
    facts = []
    if labels.rule:
        facts.append(("Rule", _rule(labels)))
    if labels.counts and (labels.counts.images is not None or labels.counts.shares):
        facts.append(("Images", _images(labels.counts)))
    return facts


def _rule(labels: Labels) -> str:
    numbers = {key: value * (100 if key in ("portion", "quantile") else 1) for key, value in labels.chosen_by.items()}
    try:
        return RULES[labels.rule].format(**numbers)
    except KeyError:  # a rule that is not known here, or one without its number
        return labels.rule.replace("_", " ")


def _images(counts: Counts) -> str:
    said = [str(counts.images if counts.images is not None else len(counts.shares))]
    if counts.shares:
        low, high = points(min(counts.shares)), points(max(counts.shares))
        said.append(f"labelled from {low} to {high} % of an image, half of them above")
        said[-1] += f" {points(statistics.median(counts.shares))} %"
        empty = sum(share == 0 for share in counts.shares)
        said += [f"{empty} without any label"] if empty else []
    return " · ".join(said)


def _where(labels: Labels) -> str:
    images = labels.measured_images
    counted = "" if images is None else f"{images} image{'s' * (images != 1)}"
    return " of ".join(part for part in (counted, labels.measured_on) if part)


def _last_of_labels(quality: Sequence[Quality]) -> Quality | None:
    """The labels that training sees of a hard image: after the last voting pass, or by the thresholds."""
    voting = [row for row in quality if row.name.startswith("voting")]
    return voting[-1] if voting else quality[0] if quality else None


def _quality_said(quality: Sequence[Quality]) -> str:
    last = _last_of_labels(quality)
    if last is None:
        return ""
    first = quality[0]
    if last is first or None in (first.coverage, first.precision, last.coverage, last.precision):
        said = f"{points(last.coverage)} % of the pixels are labelled" if last.coverage is not None else ""
        also = f"{points(last.precision)} % of the labelled ones are right" if last.precision is not None else ""
        return (", and ".join(part for part in (said, also) if part) + ".").capitalize()
    wider, truer = difference(last.coverage, first.coverage), difference(last.precision, first.precision)
    return (
        f"Voting took the labelled share from {points(first.coverage)} to {points(last.coverage)} % of the pixels"
        f" ({signed(wider)} points), and the share of right ones among them from {points(first.precision)}"
        f" to {points(last.precision)} % ({signed(truer)} points)."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _pass_legend(passes: int) -> list[tuple[str, str]]:
    """What the colours of the passes mean; where their number is not known, all of them."""
    named = [f"voting pass {number}" for number in range(1, (passes or len(PASS_COLOURS)) + 1)]
    last = len(PASS_COLOURS) - 1
    if len(named) > last:
        named[last - 1 :] = [f"voting pass {last}" if passes == last else f"voting pass {last} and later"]
    entries = zip(["thresholds", *named], PASS_COLOURS, strict=False)
    return [*((name, colour(rgb)) for name, rgb in entries), ("not labelled", "#000000")]


def _panel_notes(labels: Labels) -> list[str]:
    notes = []
    cutoff = labels.counts.cutoff if labels.counts else None
    if any(panel.score is not None for panel in labels.panels):
        least = f"; from {cutoff:.3f} up an image is easy" if cutoff is not None else ""
        notes.append(f"Score: how sure the network is of an image{least}.")
    if any(panel.discriminator is not None for panel in labels.panels):
        notes.append("Discriminator: 0 to 1, the more the better a hard image passes for an easy one.")
    return notes


def label_drafts(labels: Labels) -> list[Draft]:
    """The panels of a labels stage before their pictures are read."""
    folder = f"{labels.stage.folder}/panels"
    drafts = []
    for panel in labels.panels:
        said = [panel.caption]
        said += [f"score {panel.score:.3f}"] if panel.score is not None else []
        said += [f"discriminator {panel.discriminator:.2f}"] if panel.discriminator is not None else []
        tiles = [
            (kind, _caption(kind, panel), _note(kind, panel, labels.passes), Request(path, kind != "image", folder))
            for kind, path in panel.files.items()
        ]
        word = "" if panel.easy is None else "easy" if panel.easy else "hard"
        drafts.append(Draft(panel.name, " · ".join(part for part in said if part), tiles, word=word))
    return drafts


def _caption(kind: str, panel: LabelPanel) -> str:
    return "Labels" if kind == "sparse" and "densified" not in panel.files else LABEL_KINDS[kind]


def _note(kind: str, panel: LabelPanel, passes: int) -> str:
    if kind == ("densified" if "densified" in panel.files else "sparse") and panel.coverage is not None:
        return f"{points(panel.coverage)}\u00a0% labelled"
    if kind == "added" and 0 < passes <= len(PASS_WORDS):
        return f"{', '.join(PASS_WORDS[:passes])}: pass {', '.join(str(n) for n in range(1, passes + 1))}"
    return "the best class of every pixel" if kind == "full" else ""
