"""`segshift select`: choose between trained models without any label of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def select(
    runs: Annotated[list[Path], typer.Argument(help="runs' folders, their stages, or models' folders")],
    stages: Annotated[str, typer.Option(help="of each run: last (training stage), all, or names by commas")] = "last",
    target: Annotated[
        Path | None,
        typer.Option(help="folder of the target's images, or YAML that declares it; default: the runs' target"),
    ] = None,
    images: Annotated[int, typer.Option(help="images of the target to look at, at most")] = 64,
    seed: Annotated[int, typer.Option(help="of the choice of images")] = 0,
    out: Annotated[Path, typer.Option(help="folder for select.json, select.html and what the models said")] = Path(
        "select"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Rank trained models without labels, and recommend one. Looks at what they say of the target."""
    from segshift.config import read_yaml
    from segshift.selecting import Asked
    from segshift.selecting import select as choose

    declared: str | Mapping[str, Any] | None = None
    if target is not None:
        declared = read_yaml(target) if target.suffix.lower() in (".yaml", ".yml") else str(target)
    content = choose(runs, out, Asked(stages, images, seed, declared), device=device)
    for line in table(content):
        typer.echo(line)
    typer.echo(f"page: {(out / 'select.html').resolve()}")


def table(content: Mapping[str, Any]) -> list[str]:
    """The content of select.json as lines for a terminal, best first, then the warnings and the recommendation."""
    heads = ["", "ranks", *(figure["head"] for figure in content["figures"])]
    rows = sorted(content["candidates"], key=lambda row: _order(row, content["recommended"]))
    cells = [heads]
    for row in rows:
        score = "collapsed" if row["score"] is None else f"{row['score']:g}"
        found = [row["figures"][figure["name"]] for figure in content["figures"]]
        cells.append([row["name"], score, *("-" if value is None else f"{value:.3f}" for value in found)])
    lines = _aligned(cells)
    for row in rows:
        if row["collapsed"]:
            lines.append(f"collapsed: {row['name']}: {'; '.join(row['collapsed'])}")
        elif row["lost"]:
            lines.append(f"warning: {row['name']} does not find {', '.join(row['lost'])}")
    lines += [f"note: {note}" for note in content["notes"]]
    chosen = content["recommended"]
    rule = "; ".join(figure["head"] for figure in content["figures"] if figure["name"] in content["rule"])
    lines.append(
        f"recommended: {chosen} (sum of ranks by {rule})" if chosen else "recommended: none, all have collapsed"
    )
    return lines


def _order(row: Mapping[str, Any], recommended: str | None) -> tuple[bool, float, bool]:
    return row["score"] is None, row["score"] or 0.0, row["name"] != recommended


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
