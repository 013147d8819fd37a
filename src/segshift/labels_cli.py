"""`segshift labels`: weak labels from and to other annotation tools, and counts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segshift.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Import, export and count weak labels (tags and points).",
)

Classes = Annotated[Path, typer.Option(help="class list: YAML, JSON, or a name a line")]


def _images(folder: Path) -> dict[str, Path]:
    """The image files of a folder by the paths that `segshift annotate` and the domain have for them."""
    from segshift.data.domains import open_images

    return {path: item.image for path, item in open_images(folder).items()}


@app.command("import")
def import_labels(
    file: Annotated[Path, typer.Argument(help="exported by Label Studio, CVAT or another program")],
    images: Annotated[Path, typer.Option(help="folder of the images; labels are of paths below it")],
    classes: Classes,
    out: Annotated[Path, typer.Option(help="file of weak labels to append to")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="label-studio, cvat, coco, csv-tags or csv-points; default: as its content shows"
        ),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THEIRS=OURS",
            help="class of another name; OURS may be ignore, THEIRS may be * (all unknown); may be repeated",
        ),
    ] = None,
    skip_unknown: Annotated[bool, typer.Option("--skip-unknown", help="leave out images not in the folder")] = False,
    complete: Annotated[
        bool | None,
        typer.Option("--complete/--positive-only", help="whether the tags name every class that is in the image"),
    ] = None,
) -> None:
    """Append the labels of another program's file. Nothing is written unless all of it is accepted."""
    from segshift.data.classes import read_classes
    from segshift.weak.formats import known, recognised
    from segshift.weak.importing import gather
    from segshift.weak.store import WeakStore

    task = read_classes(classes)
    name = form or recognised(file)
    content = known(name).read(file)
    store = WeakStore(out)
    before = store.read() if store.path.exists() else {}
    gathered = gather(
        content, _images(images), task, before=before, class_map=_pairs(class_map or []),
        skip_unknown=skip_unknown, complete=complete,
    )  # fmt: skip
    store.extend(gathered.labels)
    for note in gathered.notes:
        typer.echo(note)
    count = len({label.image for label in gathered.labels})
    typer.echo(f"{name}: labels of {count} images appended to {out}")


def _pairs(assignments: list[str]) -> dict[str, str]:
    """THEIRS=OURS as a mapping. A class of theirs may have an = in its name, one of ours not."""
    pairs = {}
    for assignment in assignments:
        theirs, equals, ours = assignment.rpartition("=")
        if not equals or not theirs.strip() or not ours.strip():
            raise UserError(f"--class-map {assignment}", "THEIRS=OURS, as in --class-map 'car=vehicle'", "add the =")
        pairs[theirs.strip()] = ours.strip()
    return pairs


@app.command("export")
def export_labels(
    file: Annotated[Path, typer.Argument(help="file of weak labels")],
    form: Annotated[str, typer.Option("--format", help="label-studio, cvat, coco, csv-tags or csv-points")],
    classes: Classes,
    out: Annotated[Path, typer.Option(help="file to write")],
    images: Annotated[Path | None, typer.Option(help="folder of the images, for sizes that the labels lack")] = None,
) -> None:
    """Write labels for another program, and say what its format cannot hold."""
    from segshift.data.classes import read_classes
    from segshift.weak.exporting import export
    from segshift.weak.store import WeakStore

    task = read_classes(classes)
    folder = None if images is None else _images(images)
    count, lost = export(WeakStore(file).read(), form, out, task, folder)
    for sentence in lost:
        typer.echo(f"lost: {sentence}")
    typer.echo(f"labels of {count} images written to {out}")


@app.command("stats")
def count_labels(
    file: Annotated[Path, typer.Argument(help="file of weak labels")],
    classes: Annotated[
        Path | None, typer.Option(help="class list, to see the classes that no label has: YAML, JSON, or a name a line")
    ] = None,
) -> None:
    """Count images, classes, points and annotators, and the seconds that a label took."""
    from segshift.weak.matching import class_names, renamed
    from segshift.weak.stats import stats, table
    from segshift.weak.store import WeakStore

    lines = WeakStore(file).lines()
    listed: tuple[str, ...] = ()
    if classes is not None:
        from segshift.data.classes import read_classes

        task = read_classes(classes)
        names = class_names(lines, task)
        lines, listed = [renamed(line, names) for line in lines], task.names
    typer.echo(table(stats(lines, listed)))
