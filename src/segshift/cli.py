"""The verbs of the command line. torch is imported only when a verb runs: `segshift --help` answers at once."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segshift import __version__, evaluate_cli, labels_cli, recipes_cli, select_cli
from segshift.errors import Interrupted, UserError, gist

app = typer.Typer(
    epilog="Start with: segshift demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(labels_cli.app, name="labels")

SHOWN = 4
"""Problems that `check` spells out; more would leave the screen."""

Config = Annotated[Path | None, typer.Argument(help="settings (YAML), such as an earlier run's run.yaml")]
Source = Annotated[Path | None, typer.Option(help="folder of the labelled source domain")]
Target = Annotated[Path | None, typer.Option(help="folder of the target domain; only its images are read")]
Val = Annotated[Path | None, typer.Option(help="labelled part of the target domain, for evaluation only")]
Classes = Annotated[Path | None, typer.Option(help="class list: YAML, JSON, a name a line, or cityscapes_19 (_16)")]
Data = Annotated[Path | None, typer.Option(help="YAML that says where the data lies: classes, source, target, val")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="over any setting, such as advent.steps=500; may be repeated"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segshift {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Adapt a semantic segmentation model from a labelled source domain to an unlabelled target domain."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the run's folder")] = Path("runs/demo"),
    sets: Sets = None,
    device: Device = "auto",
) -> None:
    """Adapt on the built-in pair, in minutes on a CPU. Clear day to dusk and fog; no data, no download."""
    from segshift import api, demo_data

    data = demo_data.declaration()
    _adapt(api, out, None, {"recipe": "demo/demo", "set": sets or [], **data}, device)


@app.command()
def check(
    config: Config = None,
    source: Source = None,
    target: Target = None,
    val: Val = None,
    classes: Classes = None,
    data: Data = None,
    sets: Sets = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("check"),
) -> None:
    """Read all data as training will, show it, and say what is wrong. Exits with 1 where training would fail."""
    from segshift import api

    found = api.check(out, config, source=source, target=target, val=val, classes=classes, data=data, set=sets or [])
    for line in found.lines:
        typer.echo(line)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")
    for problem in found.problems[:SHOWN]:
        typer.echo(f"problem: {problem}")
    if len(found.problems) > SHOWN:
        typer.echo(f"and {len(found.problems) - SHOWN} more, as: {found.problems[SHOWN].found}")
    for picture in found.pictures:
        typer.echo(f"look at {picture}")
    if found.problems:
        typer.echo(f"problems: {len(found.problems)}; training would stop at them")
        raise typer.Exit(1)
    typer.echo("the data is in order")


@app.command()
def adapt(
    config: Config = None,
    source: Source = None,
    target: Target = None,
    val: Val = None,
    classes: Classes = None,
    data: Data = None,
    weak: Annotated[
        Path | None, typer.Option(help="weak labels of target images, from `segshift annotate`; for weak_labels")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="such as advent (default) or proda; short for --recipe cpu/METHOD")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="such as gta5_cityscapes/advent; `segshift recipes` lists all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; the same command again resumes", show_default="runs/run")
    ] = None,
    sets: Sets = None,
    control: Annotated[bool, typer.Option(help="train the source-only control too, and compare with it")] = True,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="3 small steps of every stage, also without data; kept if --out is given")
    ] = False,
) -> None:
    """Train on the source, adapt to the target, and report. What adaptation gained is measured against a source-only
    control that trained as long. The same command again resumes."""
    from segshift import api

    if config is None and method is None and recipe is None:
        method = "advent"
    settings = {
        "source": source,
        "target": target,
        "val": val,
        "classes": classes,
        "data": data,
        "weak": weak,
        "method": method,
        "recipe": recipe,
        "set": sets or [],
        "control": control,
    }
    if dry_run:
        from segshift.dry_run import dry_run as rehearse

        *stages, _ = rehearse(out, config, device=device, say=typer.echo, **settings)
        typer.echo(f"dry run passed: {len(stages)} stages")
        return
    _adapt(api, out or Path("runs/run"), config, settings, device)


def _adapt(api: Any, out: Path, config: Path | None, settings: dict[str, Any], device: str) -> None:
    result = api.adapt(out, config, device=device, **settings)
    none = "No verdict: no labelled part of the target (--val) was measured."
    typer.echo(result.verdict["text"] if result.verdict else none)
    typer.echo(f"report: {result.report.resolve()}")


app.command()(evaluate_cli.evaluate)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="a run, one of its stages, or a model's folder")],
    images: Annotated[Path, typer.Argument(help="folder of images, searched with its sub-folders")],
    out: Annotated[Path, typer.Option(help="folder for ids/, overlay/ and confidence/")] = Path("predictions"),
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="further run to average logits with; may be repeated")
    ] = None,
    flip: evaluate_cli.Flip = False,
    scales: evaluate_cli.Scales = None,
    window: evaluate_cli.Window = None,
    device: Device = "auto",
) -> None:
    """Segment a folder of images. Writes class ids (PNG), an overlay and the confidence of each; the same command again
    goes on."""
    from segshift import api

    options = evaluate_cli.chosen_options(flip, scales, window)
    done = api.predict(run, images, out, others=others or [], options=options, device=device)
    typer.echo(f"{done.written} images segmented, {done.skipped} were finished before: {out.resolve()}")


@app.command()
def annotate(
    images: Annotated[Path, typer.Option(help="folder of the images to label")],
    classes: Annotated[Path, typer.Option(help="class list: YAML, JSON, or a name a line")],
    out: Annotated[Path, typer.Option(help="the file of labels; what it holds is gone on with")] = Path("weak.jsonl"),
    suggest: Annotated[
        Path | None, typer.Option(help="a run whose predicted tags are shown as suggestions, most useful image first")
    ] = None,
    who: Annotated[str | None, typer.Option(help="name to write into each label")] = None,
    host: Annotated[str, typer.Option(help="a loopback address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one")] = 8765,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="open the page in the browser")] = True,
    device: Device = "auto",
) -> None:
    """Label images with tags and points on a local page. Every action is saved at once. Needs the extra `web`."""
    from segshift.annotate import serve

    serve.annotate(
        images, classes, out,
        suggest=suggest, host=host, port=port, who=who, browse=browse, device=device, say=typer.echo,
    )  # fmt: skip


@app.command()
def features(
    run: Annotated[Path, typer.Argument(help="a finished run's folder")],
    embed: Annotated[str, typer.Option(help="map to draw: pca, tsne (extra `embed`) or umap (extra `umap`)")] = "pca",
    stages: Annotated[
        str | None, typer.Option(help="stages by commas; default: those on the way to the result, four at most")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="val, target or source, by commas; default: val (else target), and source")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw the features of a run's stages into its report. Says too how compact the classes are."""
    from segshift import api

    names = [[name.strip() for name in given.split(",")] if given else None for given in (stages, domain)]
    drawn = api.features(run, embed=embed, stages=names[0], domains=names[1], device=device)
    width = max(len(stage["name"]) for stage in drawn["stages"])
    typer.echo("compactness, within classes over between them; lower is more compact")
    for stage in drawn["stages"]:
        value = stage["compactness"]
        typer.echo(f"{stage['name']:<{width}}  {'not known' if value is None else format(value, '.3f')}")
    typer.echo(f"report: {(run / 'report.html').resolve()}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run's folder")]) -> None:
    """Write a run's report.html again."""
    from segshift.report import build_report

    typer.echo(build_report(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="runs' folders, two or more")],
    out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("compare.html"),
) -> None:
    """Put runs side by side in one page."""
    from segshift.report import compare_runs

    typer.echo(compare_runs(runs, out))


app.command()(recipes_cli.recipes)
app.command()(select_cli.select)


def main() -> None:
    """Entry point: errors that the user can mend are one screen and exit code 2; Ctrl-C is 130."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("segshift").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Names of files may hold what the terminal's encoding has not: no reason to fail after hours of work.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True, prog_name="segshift")
    except UserError as error:
        sys.stderr.write(f"segshift: {error}\n")
        sys.exit(2)
    except Interrupted as stop:
        sys.stderr.write(f"segshift: {stop}\n")
        sys.exit(130)
    except SystemExit as stop:
        # `segshift recipes | head`: nobody reads on. typer keeps Python from complaining at exit, and ends with 1.
        if isinstance(stop.__context__, BrokenPipeError):
            sys.exit(141)
        raise
    except OSError as error:
        # A file or disk that fails where nobody expected it: the system's message names it.
        sys.stderr.write(f"segshift: {error}\n")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        # torch's: OutOfMemoryError on a GPU, a plain RuntimeError of its allocator on a CPU.
        text = str(error)
        if not isinstance(error, MemoryError) and "out of memory" not in text and "t allocate memory" not in text:
            raise
        told = UserError(
            f"out of memory: {gist(error)}",
            "less at a time",
            "set a smaller batch_size, size or crop (--set batch_size=1), cut large images, or another --device",
        )
        sys.stderr.write(f"segshift: {told}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
