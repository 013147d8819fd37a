"""How sure the networks are of the images of the panels, before and after adaptation: small maps in one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from segshift.report.panels import Draft, PanelView
from segshift.report.pictures import Request, wrong_share
from segshift.report.reading import MAPS, Panel, Run, Sure
from segshift.report.values import points

WIDTH = 320
"""Largest width of a map on the page, in pixels."""

SCALE: Sequence[str] = (
    "#000004",
    "#1d1147",
    "#51127c",
    "#832681",
    "#b73779",
    "#e55064",
    "#fb8761",
    "#fec287",
    "#fcfdbf",
)
"""Magma in eighths, from dark to bright: the scale of the maps (van der Walt & Smith, matplotlib)."""

UNSURE: Mapping[str, float] = {"entropy": 1.0, "confidence": -1.0}
"""Whether more of a figure is less sure (1) or more (-1)."""

ALIKE = 0.005
"""Means that differ by less are called alike: they are shown with two digits."""


@dataclass(frozen=True)
class CertaintyView:
    """The part of the page.

    Attributes:
        said: what the means over the images say, in words.
        scale: a CSS gradient of the scale.
        errors: some panels show where the models are wrong.
        panels: of each image.
    """

    said: str
    scale: str
    errors: bool
    panels: list[PanelView]


def certainty_drafts(run: Run) -> list[Draft]:
    """Of each image with such maps: errors (where there is a truth), entropy and confidence, before and after."""
    drafts = []
    for panel in run.panels:
        if not panel.sure:
            continue
        tiles = _error_tiles(run, panel)
        for kind, title in MAPS.items():
            for sure, when in zip(panel.sure, _whens(panel.sure), strict=True):
                if kind in sure.files:
                    note = " · ".join([sure.model, *([f"mean {sure.means[kind]:.2f}"] if kind in sure.means else [])])
                    tiles.append((f"{kind} {when}", title, note, Request(sure.files[kind], False, most=WIDTH)))
        drafts.append(Draft(panel.name, "", tiles))
    return drafts


def _whens(sure: Sequence[Sure]) -> list[str]:
    return ["before", "after"] if len(sure) > 1 else ["after"]


def _error_tiles(run: Run, panel: Panel) -> list[tuple[str, str, str, Request]]:
    if run.scores is None or "truth" not in panel.files:
        return []
    tiles = []
    for kind, model, when in (("control", run.scores.control, "before"), ("adapted", run.scores.adapted, "after")):
        if kind in panel.files and model is not None:
            tiles.append((f"errors {when}", *error_tile(model.name, panel, kind)))
    return tiles


def error_tile(name: str, panel: Panel, kind: str) -> tuple[str, str, Request]:
    """Caption, note and picture of where a prediction of a panel with a truth is wrong; `name` begins the note."""
    share = wrong_share(panel.files[kind], panel.files["truth"])
    note = " · ".join([part for part in (name, "" if share is None else f"{points(share)} %") if part])
    return "Errors", note, Request(panel.files[kind], True, truth=panel.files["truth"], most=WIDTH)


def certainty(run: Run, panels: list[PanelView]) -> CertaintyView | None:
    """The part of the page; None where the run has no such maps.

    Args:
        run: whose maps.
        panels: the shown panels of `certainty_drafts`.
    """
    if not panels:
        return None
    errors = any(tile.caption == "Errors" for view in panels for tile in view.tiles)
    return CertaintyView(_said(run), scale(), errors, panels)


def scale() -> str:
    """The colour scale as a CSS gradient, dark on the left."""
    return f"linear-gradient(to right, {', '.join(SCALE)})"


def mean_of(panels: Sequence[Panel], kind: str, last: bool) -> float | None:
    """Mean over the images of the mean of a map, of the result (`last`) or of the model before it."""
    chosen = [panel.sure[-1] if last else panel.sure[0] for panel in panels if len(panel.sure) > (not last)]
    found = [sure.means[kind] for sure in chosen if kind in sure.means]
    return fmean(found) if found else None


def _said(run: Run) -> str:
    """The result against the model before it, over the images that are shown."""
    panels = [panel for panel in run.panels if panel.sure]
    after = {kind: mean_of(panels, kind, True) for kind in MAPS}
    before = {kind: mean_of(panels, kind, False) for kind in MAPS}
    counted = f"{len(panels)} image{'s' * (len(panels) != 1)}"
    last, first = panels[0].sure[-1].model, panels[0].sure[0].model
    known = [kind for kind in MAPS if after[kind] is not None]
    if not known:
        return ""
    both = [kind for kind in known if before[kind] is not None]
    figures = []
    for kind in known:
        was = f" against {before[kind]:.2f}" if before[kind] is not None else ""
        figures.append(f"mean {kind} {after[kind]:.2f}{was}")
    said = f"Over the {counted} shown: {', '.join(figures)}"
    if not both:
        return f"{said} ({last})."
    surer = (after[both[0]] or 0.0) - (before[both[0]] or 0.0)
    surer *= -UNSURE[both[0]]
    word = "about as sure as" if abs(surer) < ALIKE else "surer than" if surer > 0 else "less sure than"
    return f"{last} is {word} {first}. {said}."
