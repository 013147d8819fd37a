"""The page of `segshift select`: its recommendation, every candidate's figures with bars, what they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segshift.artefacts.store import read_json, write_text
from segshift.errors import UserError
from segshift.report import values
from segshift.report.files import palette
from segshift.report.page import render


@dataclass(frozen=True)
class Value:
    """A figure of a candidate; `place`, from 0 the worst of its column to 1 the best, is the length of its bar."""

    text: str
    place: float | None
    best: bool


@dataclass(frozen=True)
class Share:
    """A class's part of a candidate's predictions."""

    name: str
    colour: str
    percent: float


@dataclass(frozen=True)
class Line:
    """A candidate as a row; `score` is the sum of its ranks, empty where it has collapsed."""

    name: str
    also: str
    score: str
    recommended: bool
    values: tuple[Value, ...]
    collapsed: tuple[str, ...]
    lost: str
    shares: tuple[Share, ...]


def build_selection(folder: Path) -> Path:
    """Write select.html beside the select.json of a folder.

    Raises:
        UserError: select.json is missing or damaged, or the page cannot be written.
    """
    content = values.mapping(read_json(folder / "select.json"))
    figures = [values.mapping(figure) for figure in values.sequence(content.get("figures"))]
    rows = [values.mapping(row) for row in values.sequence(content.get("candidates"))]
    if not figures or not rows:
        raise UserError(
            f"{folder / 'select.json'} names no candidates", remedy="delete it and call `segshift select` again"
        )
    lines = _lines(content, figures, rows)
    page = render(
        "select.html.j2",
        title=f"{len(lines)} candidates, chosen without labels",
        lines=lines,
        chosen=next((line for line in lines if line.recommended), None),
        heads=[(values.text(f.get("head")), bool(f.get("higher")), f.get("name") in _rule(content)) for f in figures],
        rule="; ".join(values.text(f.get("head")) for f in figures if f.get("name") in _rule(content)),
        warned=[line for line in lines if line.collapsed or line.lost],
        images=len(values.sequence(content.get("images"))),
        target=values.text(content.get("target")),
        notes=[values.text(note) for note in values.sequence(content.get("notes"))],
    )
    out = folder / "select.html"
    write_text(out, page)
    return out


def _rule(content: Mapping[str, Any]) -> Sequence[Any]:
    return values.sequence(content.get("rule"))


def _lines(
    content: Mapping[str, Any], figures: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Line]:
    """The candidates, best first; those that have collapsed last."""
    columns = [_column(rows, values.text(f.get("name")), bool(f.get("higher"))) for f in figures]
    names = [values.text(name) for name in values.sequence(content.get("classes"))]
    colours = [values.colour(rgb) for rgb in palette(content.get("palette"), len(names))]
    scored = []
    for index, row in enumerate(rows):
        score = values.number(row.get("score"))
        shares = [values.fraction(share) or 0.0 for share in values.sequence(row.get("histogram"))]
        line = Line(
            name=values.text(row.get("name")),
            also=_few([values.text(name) for name in values.sequence(row.get("also"))]),
            score="" if score is None else f"{score:g}",
            recommended=row.get("name") is not None and row.get("name") == content.get("recommended"),
            values=tuple(column[index] for column in columns),
            collapsed=tuple(values.text(reason) for reason in values.sequence(row.get("collapsed"))),
            lost=", ".join(values.text(name) for name in values.sequence(row.get("lost"))),
            shares=tuple(
                Share(name, colour, 100 * share) for name, colour, share in zip(names, colours, shares, strict=False)
            ),
        )
        scored.append((score is None, 0.0 if score is None else score, not line.recommended, index, line))
    return [line for *_, line in sorted(scored, key=lambda entry: entry[:-1])]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _column(rows: Sequence[Mapping[str, Any]], figure: str, higher: bool) -> list[Value]:
    """One figure of all candidates. Those that have collapsed are shown, and set no end of the bars."""
    found = [values.number(values.mapping(row.get("figures")).get(figure)) for row in rows]
    standing = [x for x, row in zip(found, rows, strict=True) if x is not None and not row.get("collapsed")]
    low, high = min(standing, default=0.0), max(standing, default=0.0)
    cells = []
    for value, row in zip(found, rows, strict=True):
        fallen = bool(row.get("collapsed"))
        place = None
        if value is not None and not fallen:
            part = (value - low) / (high - low) if high > low else 1.0
            place = part if higher or high == low else 1.0 - part
        best = place == 1.0 and len(standing) > 1 and high > low
        cells.append(Value(values.ABSENT if value is None else f"{value:.3f}", place, best))
    return cells
