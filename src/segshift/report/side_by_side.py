"""The same images in several runs: what each model says, where it is wrong, how sure it is, in columns of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segshift.report.certainty import WIDTH, error_tile
from segshift.report.panels import Draft, Tile, request, show
from segshift.report.pictures import Request
from segshift.report.reading import Panel, Run
from segshift.report.values import points

ROWS = ("Prediction", "Errors", "Entropy")


@dataclass(frozen=True)
class Matrix:
    """An image in several runs.

    Attributes:
        name: of the image.
        heads: the models, a column each: (what it is, its mIoU on this image in words).
        first: the image and, where there is one, the truth: the first column.
        rows: (what is shown, a tile or None of each model).
    """

    name: str
    heads: tuple[tuple[str, str], ...]
    first: tuple[Tile, ...]
    rows: tuple[tuple[str, tuple[Tile | None, ...]], ...]


@dataclass(frozen=True)
class _Column:
    """A model of a run on an image: the keys of its pictures in the panel."""

    name: str
    kind: str
    panel: Panel
    miou: float | None


def matrices(runs: Sequence[Run], names: Sequence[str], problems: list[str]) -> list[Matrix]:
    """Images that at least two runs have pictures of, those that most runs have first.

    Args:
        runs: with the names that they are shown under.
        names: of the runs.
        problems: gets a line for each picture that cannot be read.
    """
    by_name = [{panel.name: panel for panel in run.panels} for run in runs]
    order = dict.fromkeys(panel.name for run in runs for panel in run.panels)
    shared = {name: sum(name in panels for panels in by_name) for name in order}
    common = sorted((name for name in order if shared[name] > 1), key=lambda name: -shared[name])
    drafts, columns = [], []
    for name in common:
        there = [
            (run, said, panels[name]) for run, said, panels in zip(runs, names, by_name, strict=True) if name in panels
        ]
        columns.append(_columns(there))
        drafts.append(_draft(name, [panel for _, _, panel in there], columns[-1]))
    views = {view.name: view for view in show([drafts], problems)[0]}
    return [_matrix(views[name].tiles, name, each) for name, each in zip(common, columns, strict=True) if name in views]


def _columns(there: Sequence[tuple[Run, str, Panel]]) -> list[_Column]:
    """The different controls, then the result of each run."""
    first: dict[bytes, tuple[str, Panel]] = {}
    for _, said, panel in there:
        if (path := panel.files.get("control")) is not None:
            first.setdefault(_bytes(path), (said, panel))
    controls = [
        _Column("Source-only" if len(first) == 1 else f"Source-only of {said}", "control", panel, panel.control_miou)
        for said, panel in first.values()
    ]
    return controls + [_Column(said, "adapted", panel, panel.adapted_miou) for _, said, panel in there]


def _draft(name: str, panels: Sequence[Panel], columns: Sequence[_Column]) -> Draft:
    """All pictures of an image; their kind says where they stand: "row column"."""
    tiles: list[tuple[str, str, str, Request]] = []
    for kind, caption in (("image", "Image"), ("truth", "Ground truth")):
        if panel := next((panel for panel in panels if kind in panel.files), None):
            tiles.append((f"{kind} 0", caption, "", request(panel, kind)))
    for row in ROWS:
        for place, column in enumerate(columns):
            if (found := _picture(row, column)) is not None:
                tiles.append((f"{row} {place}", *found))
    return Draft(name, "", tiles)


def _picture(row: str, column: _Column) -> tuple[str, str, Request] | None:
    """Caption, note and picture of a cell; None where the run has none."""
    panel, kind = column.panel, column.kind
    if row == "Prediction":
        note = f"{points(column.miou)} mIoU" if column.miou is not None else ""
        return (column.name, note, request(panel, kind)) if kind in panel.files else None
    if row == "Errors":
        if kind not in panel.files or "truth" not in panel.files:
            return None
        _, note, picture = error_tile("", panel, kind)
        return f"Errors of {column.name}", f"{note} wrong" if note else "", picture
    sure = panel.sure[-1] if kind == "adapted" and panel.sure else panel.sure[0] if len(panel.sure) > 1 else None
    if sure is not None and "entropy" in sure.files:
        note = f"mean {sure.means['entropy']:.2f}" if "entropy" in sure.means else ""
        return f"Entropy of {column.name}", note, Request(sure.files["entropy"], False, most=WIDTH)
    if kind == "adapted" and "entropy" in panel.files:
        return f"Entropy of {column.name}", "", Request(panel.files["entropy"], False, most=WIDTH)
    return None


def _matrix(tiles: Sequence[Tile], name: str, columns: Sequence[_Column]) -> Matrix:
    placed = {tile.kind: tile for tile in tiles}
    rows = [(row, tuple(placed.get(f"{row} {place}") for place in range(len(columns)))) for row in ROWS]
    first = tuple(tile for kind in ("image 0", "truth 0") if (tile := placed.get(kind)) is not None)
    heads = tuple((column.name, f"{points(column.miou)} mIoU" if column.miou is not None else "") for column in columns)
    return Matrix(name, heads, first, tuple((row, cells) for row, cells in rows if any(cells)))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
