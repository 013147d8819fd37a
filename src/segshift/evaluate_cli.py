"""`segshift evaluate`: a run or a published checkpoint on labelled images, or a run at clicked points."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segshift.errors import UserError

if TYPE_CHECKING:
    from segshift.engine.inference import Options

Others = Annotated[
    list[Path] | None,
    typer.Option("--with", help="further run, or published file, to average logits with; may be repeated"),
]
Flip = Annotated[bool, typer.Option("--flip", help="average with the mirrored image")]
Scales = Annotated[str | None, typer.Option(help="test at several scales, such as 0.75,1,1.25")]
Window = Annotated[str | None, typer.Option(help="sliding window of WIDTHxHEIGHT pixels")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="a run, one of its stages, or a model's folder")] = None,
    domain: Annotated[
        Path | None,
        typer.Option(help="folder, or YAML that declares one; default: the run's val, with --points its target"),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="class list of the labels; default: the model's")] = None,
    published: Annotated[
        Path | None, typer.Option(help="file of a paper's release instead of a run, in its paper's protocol")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="with --published: whose file it is; advent, adaptsegnet, crst or proda")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="file of weak labels: estimate from its points, without masks")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="with --points: another run, whose estimate this one's is compared with")
    ] = None,
    others: Others = None,
    flip: Flip = False,
    scales: Scales = None,
    window: Window = None,
    out: Annotated[Path | None, typer.Option(help="folder for metrics.json, .csv and .md, or points.json")] = None,
    device: Device = "auto",
) -> None:
    """Measure a model on labelled images, or at clicked points. At the labels' full size; from points, the mIoU is
    estimated."""
    from segshift.config import read_yaml

    declared = read_yaml(domain) if domain and domain.suffix.lower() in (".yaml", ".yml") else domain
    options = chosen_options(flip, scales, window)
    if out is not None:
        _figures_folder(out)
    if published is not None or layout is not None:
        if run is not None or published is None or layout is None or points is not None or against is not None:
            raise _contradiction(run, published, layout)
        _published([published, *(others or [])], layout, declared, classes, options, out, device)
        return
    if run is None:
        raise UserError(
            "neither a run nor --published is given",
            "a run, one of its stages, a model's folder, or a file of a paper's release",
            "segshift evaluate runs/x, or segshift evaluate --published advent.pth --layout advent --domain DIR",
        )
    if points is not None or against is not None:
        _at_points(run, points, against, declared, classes, others or [], options, out, device)
        return
    from segshift import api

    metrics = api.evaluate(run, declared, classes=classes, others=others or [], options=options, device=device)
    rows = _rows(metrics, " + ".join(each.resolve().name for each in (run, *(others or []))))
    _tell(rows, out, _files(metrics, rows))


def _contradiction(run: Path | None, published: Path | None, layout: str | None) -> UserError:
    example = "segshift evaluate --published advent.pth --layout advent --domain cityscapes_val.yaml"
    if published is None:
        return UserError(f"--layout {layout} without --published", "the file that is laid out so", example)
    if layout is None:
        return UserError(
            f"--published {published} without --layout", "advent, adaptsegnet, crst or proda: whose file it is", example
        )
    if run is not None:
        return UserError(f"both a run, {run}, and --published {published}", "one of them", "leave one out")
    return UserError("--points or --against with --published", "a domain with labels", "leave them out")


def _figures_folder(out: Path) -> None:
    """Look at the folder before anything is measured, so that no figure is lost to one that cannot be written; nothing
    is made yet, since a mistake in the other arguments should leave nothing behind.

    Raises:
        UserError: it cannot be made, or is a run's: its own metrics.json would be lost.
    """
    from segshift.artefacts.store import write_error

    if (out / "run.yaml").exists():
        raise UserError(
            f"--out {out} is a run's folder",
            "a folder for these figures alone: the run has a metrics.json of its own",
            "choose another --out",
        )
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file", "a folder", "choose another name")
    if not os.access(there, os.W_OK):
        raise write_error(out, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _published(
    files: list[Path],
    layout: str,
    domain: Any,
    classes: Path | None,
    options: Options | None,
    out: Path | None,
    device: str,
) -> None:
    from segshift.published import evaluate_published

    if domain is None:
        raise UserError(
            "--published without --domain", "labelled images to measure on", "add --domain DIR or FILE.yaml"
        )
    measured = evaluate_published(files, layout, domain, classes=classes, options=options, device=device)
    rows = _rows(measured.metrics, " + ".join(file.stem for file in files))
    _tell(f"{measured}{rows}", out, {**_files(measured.metrics, rows), "published.json": measured.to_dict()})


def _at_points(
    run: Path,
    points: Path | None,
    against: Path | None,
    domain: Any,
    classes: Path | None,
    others: list[Path],
    options: Options | None,
    out: Path | None,
    device: str,
) -> None:
    from segshift import api
    from segshift.engine.point_result import compared

    if points is None or classes is not None:
        raise UserError(
            "--against without --points" if points is None else "--classes with --points",
            "--against compares estimates from --points; classes are the model's",
            "leave it out" if points is not None else "add --points weak.jsonl",
        )
    own = api.evaluate_points(run, points, domain, others=others, options=options, device=device)
    text, content = own.table(), own.to_dict()
    if against is not None:
        other = api.evaluate_points(against, points, domain, options=options, device=device)
        text, content = compared(own, other, (str(run), str(against)))
    _tell(text, out, {"points.json": content})


def _rows(metrics: Any, name: str) -> str:
    return f"{metrics.markdown_header()}\n{metrics.markdown_row(name)}\n"


def _files(metrics: Any, rows: str) -> dict[str, Any]:
    return {"metrics.json": metrics.to_dict(), "metrics.csv": metrics.to_csv(), "metrics.md": rows}


def _tell(text: str, out: Path | None, files: Mapping[str, Any]) -> None:
    """Print figures and, where wanted, write them: what took hours to measure shall be lost neither to a full disk nor
    to a reader that has gone (`| head`)."""
    from segshift.artefacts.store import make_folder, write_json, write_text

    try:
        if out is not None:
            make_folder(out)
            for name, content in files.items():
                (write_text if isinstance(content, str) else write_json)(out / name, content)
    finally:
        typer.echo(text, nl=False)


def chosen_options(flip: bool, scales: str | None, window: str | None) -> Options | None:
    """Test-time options given on the command line, or None where none is."""
    from segshift.config import validated
    from segshift.engine.inference import Options

    content: dict[str, Any] = {"flip": True} if flip else {}
    try:
        if scales is not None:
            content["scales"] = tuple(float(scale) for scale in scales.split(","))
        if window is not None:
            content["window"] = tuple(int(side) for side in window.lower().split("x"))
    except ValueError as error:
        raise UserError(
            f"--scales {scales} --window {window}: {error}", "numbers, as in --scales 0.75,1,1.25 --window 512x512"
        ) from error
    return validated(Options, content, "options") if content else None
