"""`segshift recipes`: the recipes with what their papers report, their steps, their memory and what they need."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from segshift.errors import UserError

WIDTH = 100
"""Columns of the list."""

MARKS = {"verified": "", "secondary": "~", "not verified": "?", "none": ""}
"""What stands behind a published figure."""

LEGEND = """\
published  mIoU in percent over 19, 16 and 13* classes that the paper reports, never measured here;
           ~ read in a later paper's table, ? not verified
steps      of all stages, the control's included
GiB        peak of a training step in fp32, measured on a CPU; ~ scaled from a smaller one
needs      weights that you download; weak labels: tags or points
more       docs/recipes.md; its table of weights has the files
"""

DATA = {
    "gta5_cityscapes": "GTA5; Cityscapes train (images) and val (labels, to measure)",
    "synthia_cityscapes": "SYNTHIA RAND-CITYSCAPES; Cityscapes train (images) and val (labels, to measure)",
    "cpu": "your own folders; for a processor without GPU",
    "demo": "none, the pair is built in",
}
"""What a group of recipes is trained on."""

FILES = {
    "DeepLab_resnet_pretrained_imagenet.pth": "ResNet-101 (Caffe)",
    "DeepLab_resnet_pretrained_init-f81d91e8.pth": "ResNet-101 (COCO)",
    "resnet101-5d3b4d8f.pth": "ResNet-101",
    "vgg16-00b39a1b.pth": "VGG-16 (Caffe)",
    "vgg16-397923af.pth": "VGG-16",
    "r101_1x_sk0.pth": "SimCLRv2",
}
"""Files of published weights, in short."""


def recipes(
    name: Annotated[
        list[str] | None,
        typer.Argument(help="a group, such as cpu, to list it alone; `show NAME`, or NAME, prints a recipe's YAML"),
    ] = None,
) -> None:
    """List the recipes, or print one. With published figures, steps, memory and needs."""
    from segshift import recipes as known

    asked = list(name or ())
    show = asked[:1] == ["show"]
    if show:
        asked = asked[1:]
    if len(asked) > 1 or (show and not asked):
        raise UserError(
            f"segshift recipes {' '.join(name or ())}",
            "one name",
            "write `segshift recipes show NAME`; without, all are listed",
        )
    if not show and (not asked or asked[0] in known.groups()):
        typer.echo("\n".join(listing(asked or known.groups())))
        return
    typer.echo(known.text(asked[0]), nl=False)


def listing(groups: list[str]) -> Iterator[str]:
    """The lines of the list of some groups, `WIDTH` columns at most."""
    from segshift import recipes as known

    yield LEGEND.rstrip("\n")
    for group in groups:
        names = [name for name in known.names() if name.partition("/")[0] == group]
        # The base of all others first, then as in the alphabet.
        names.sort(key=lambda name: (not name.partition("/")[2].startswith("source_only"), name))
        width = max(map(len, names))
        yield ""
        yield f"{group}: {DATA.get(group, 'see the recipe')}"
        rows = [_published_row, _own_row][group in ("cpu", "demo")]
        yield from rows(names, width)


def _published_row(names: list[str], width: int) -> Iterator[str]:
    from segshift import recipes as known
    from segshift.recipes import facts

    yield f"{'':<{width}}  published"
    yield f"{'recipe':<{width}}  {'19':<6}{'16':<6}{'13*':<6}{'steps':>6}{'GiB':>7}  needs"
    for name in names:
        recipe, figures = known.read(name), facts.published(name)
        mark = MARKS[figures.status] if figures else ""
        miou = [getattr(figures, f"miou{count}", None) for count in (19, 16, 13)]
        cells = "".join(f"{'' if value is None else f'{value:.1f}{mark}':<6}" for value in miou)
        needs = [FILES.get(file, file) for file in facts.weights(recipe)]
        weak = facts.weak_labels(recipe)
        needs += [weak] if weak else []
        yield f"{name:<{width}}  {cells}{_steps(recipe):>6}{_memory(recipe):>7}  {', '.join(needs)}".rstrip()


def _own_row(names: list[str], width: int) -> Iterator[str]:
    from segshift import recipes as known

    yield f"{'recipe':<{width}}  {'steps':>6}{'GiB':>7}  what it is"
    for name in names:
        recipe = known.read(name)
        start = f"{name:<{width}}  {_steps(recipe):>6}{_memory(recipe):>7}  "
        yield start + textwrap.shorten(str(recipe.get("about", "")), WIDTH - len(start), placeholder=" ...")


def _steps(recipe: dict[str, Any]) -> str:
    from segshift.recipes import facts

    count = facts.steps(recipe)
    return f"{count / 1000:.0f}k" if count >= 10_000 else str(count)


def _memory(recipe: dict[str, Any]) -> str:
    from segshift.recipes import facts

    found = facts.memory(recipe)
    return "-" if found is None else f"{'~' if found.derived else ''}{found.gib:.1f}"
