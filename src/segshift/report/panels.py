"""Panels: pictures of one image side by side, drafted from files and then embedded within one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segshift.report import values
from segshift.report.pictures import Picture, Request, embed
from segshift.report.reading import KINDS, Panel, Run, Scores


@dataclass(frozen=True)
class Tile:
    """A picture of a panel with its caption."""

    kind: str
    caption: str
    note: str
    picture: Picture


@dataclass(frozen=True)
class PanelView:
    """A panel as shown: its name, its pictures, what adaptation changed on this image, and a word beside its name."""

    name: str
    caption: str
    tiles: tuple[Tile, ...]
    gain: float | None = None
    word: str = ""


@dataclass(frozen=True)
class Draft:
    """A panel before its pictures are read; `tiles` holds (kind, caption, note, the picture wanted)."""

    name: str
    caption: str = ""
    tiles: list[tuple[str, str, str, Request]] = field(default_factory=list)
    gain: float | None = None
    word: str = ""


def drafts(run: Run) -> list[Draft]:
    """The run's panels: what control and adapted model say of each image."""
    words = KINDS if run.adapts else {**KINDS, "adapted": KINDS["control"]}
    return [
        Draft(
            name=panel.name,
            caption=panel.caption,
            tiles=[
                (kind, words[kind], _note(kind, panel, run.scores), request(panel, kind))
                for kind in KINDS
                # With the maps of how sure both models are, the entropy has a part of its own.
                if kind in panel.files and not (kind == "entropy" and panel.sure)
            ],
            gain=values.difference(panel.adapted_miou, panel.control_miou),
        )
        for panel in run.panels
    ]


def request(panel: Panel, kind: str) -> Request:
    """What to embed of a panel; predictions and truth keep their exact colours."""
    return Request(panel.files[kind], kind not in ("image", "entropy"))


def show(groups: Sequence[Sequence[Draft]], problems: list[str]) -> list[list[PanelView]]:
    """Read the pictures of groups of panels; all groups share one budget.

    Args:
        groups: the panels of each part of the page; the last ones are left out first where the budget is spent.
        problems: gets a line for each picture that cannot be read, and one where panels had to be left out.

    Returns:
        The panels of each group that have a picture.
    """
    rows = [[wanted for *_, wanted in draft.tiles] for group in groups for draft in group]
    pictures = iter(embed(rows, problems))
    shown: list[list[PanelView]] = []
    for group in groups:
        views = []
        for draft in group:
            found = zip(draft.tiles, next(pictures, [None] * len(draft.tiles)), strict=True)
            tiles = tuple(Tile(kind, said, note, picture) for (kind, said, note, _), picture in found if picture)
            if tiles:
                views.append(PanelView(draft.name, draft.caption, tiles, draft.gain, draft.word))
        shown.append(views)
    return shown


def _note(kind: str, panel: Panel, scores: Scores | None) -> str:
    if kind in ("control", "adapted"):
        of_control = kind == "control"
        model = (scores.control if of_control else scores.adapted) if scores else None
        miou = panel.control_miou if of_control else panel.adapted_miou
        reached = f"{values.points(miou)} mIoU" if miou is not None else ""
        return " · ".join(part for part in (model.name if model else "", reached) if part)
    return "bright is uncertain" if kind == "entropy" else ""
