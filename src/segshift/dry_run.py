"""`segshift adapt --dry-run`: three steps of every stage of a run, scaled down, by the code of a real run."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

from segshift import api
from segshift.artefacts.store import make_folder, read_json, write_text
from segshift.config import AugmentSettings, NetSettings, RunSettings, StageNetSettings, StageSettings, validated
from segshift.data.classes import CITYSCAPES_19, canonical, read_classes
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import Size
from segshift.data.statistics import spread
from segshift.engine.inference import Options
from segshift.engine.progress import console
from segshift.errors import UserError
from segshift.methods.base import WeakReading
from segshift.miniatures import Pair, make_pair, make_weak_labels, plain_classes
from segshift.networks import with_nets
from segshift.setup import (
    UNEVEN,
    Domains,
    devices,
    dump_yaml,
    keep_apart,
    method_settings,
    open_domains,
    resolved,
    stage_folder,
)
from segshift.supervision import TOO_FEW, read_weak_labels

STEPS = 3
"""Of every stage that trains."""

SIDES: Mapping[str, int] = {"deeplab_lite": 64}
SIDE = 32
"""The shorter side, in pixels, that target images are scaled down to, by the run's network: at the stride of
deeplab_lite fewer pixels would leave too few cells for prototypes and feature pictures."""

LEAST = 32
"""No side of an image or a crop is shorter: the settings refuse it."""

BATCH, IMAGES, PANELS, SCALES = 2, 6, 2, 2
"""At most: images of a batch, of each domain of one's own, pictures in the report, scales at test time."""

PAIRS: Mapping[str, Pair] = {"gta5_cityscapes": "gta5", "synthia_cityscapes": "synthia"}
"""Folder of a recipe → miniatures of the data that it is for."""

_DATA = ("source", "target", "val", "truth", "weak")


@dataclass(frozen=True)
class Spent:
    """How long a part of a dry run took.

    Attributes:
        part: a stage's name, or what comes after the stages.
        seconds: wall-clock time.
    """

    part: str
    seconds: float


def dry_run(
    out: Path | None,
    config: Path | None = None,
    *,
    device: str = "auto",
    say: Callable[[str], None],
    **settings: Any,
) -> list[Spent]:
    """Run `STEPS` steps of every stage, the evaluation and the report, on images scaled down.

    With `source` and `target` in the settings a few images of theirs are used, else generated miniatures. The network,
    the methods and all else are those of the settings; published weights are left out where their file is not there.

    Args:
        out: a folder to keep everything in, new or empty; None: a temporary one, removed at the end.
        config, settings: as of `segshift.api.compose`.
        device: as of `segshift.api.adapt`.
        say: prints a line for people.

    Returns:
        A line for every stage, in order, then one for the evaluation and the report.

    Raises:
        UserError: whatever would stop the real run, and labels or pictures that it would only warn of.
    """
    asked = api.compose(config, **settings)
    where = devices(device)
    with _folder(out) as root:
        recipe = str(settings.get("recipe") or "")
        whole, domains = _with_data(asked, recipe, root / "data", say)
        small = _scaled(resolved(with_nets(whole), domains.target, where), say)
        small = _without_absent_weights(_short(small), say)
        path = root / "settings.yaml"
        write_text(path, dump_yaml(small))
        start = time.monotonic()
        done = api.adapt(root / "run", path, device=device, say=_of_the_real_run)
        spent = _spent(root / "run", small, time.monotonic() - start)
        _refuse_gaps(done, small, generated=asked.source is None)
    for line in spent:
        say(f"{line.part:<{max(len(each.part) for each in spent)}}  {line.seconds:6.1f} s")
    return spent


def _of_the_real_run(line: str) -> None:
    """Print a line, but not that control and adaptation differ in steps, or that few images have points: here every
    stage has as many, and every domain few."""
    if UNEVEN not in line and TOO_FEW not in line:
        console().print(line)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where everything is written: `out`, or a temporary folder that vanishes when the block ends, however it does.

    Raises:
        UserError: something is in `out` already; a run's finished stages must not be set aside for those of a dry run.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="segshift-dry-run-") as name, _tidy_end():
            yield Path(name)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"--out {out} is {'not empty' if out.is_dir() else 'a file'}",
            "for --dry-run a folder that is new or empty: a dry run must not mix with a real one",
            "choose another --out; remove this one if an earlier dry run left it, which is not gone on with; or leave "
            "--out out: the dry run is then removed at its end",
        )
    yield out


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Let SIGTERM (a batch system's, say) unwind: by default it would end the process with gigabytes left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- data


def _with_data(
    asked: RunSettings, recipe: str, folder: Path, say: Callable[[str], None]
) -> tuple[RunSettings, Domains]:
    """The settings with data for a dry run, opened: a few images of one's own, or miniatures.

    Raises:
        UserError: of one's own data a part is missing or cannot be used.
    """
    given = [part for part in _DATA if getattr(asked, part) is not None]
    if {"source", "target"} <= set(given):
        domains = open_domains(asked)
        keep_apart(folder, domains)
        own = _own(asked, domains, folder)
        say(f"data: at most {IMAGES} images each of {', '.join(part for part in given if part != 'weak')}")
        return own, open_domains(own)
    if given:
        raise UserError(
            f"a dry run with {', '.join(given)} of your own, but not with both source and target",
            "all of your data, or none of it: then miniatures are generated",
            "add --source and --target (or --data), or leave out " + " and ".join(f"--{part}" for part in given),
        )
    return _generated(asked, recipe, folder, say)


def _own(asked: RunSettings, domains: Domains, folder: Path) -> RunSettings:
    """The settings with lists of a few images of each domain, from all over it; of a target with weak labels, of images
    that have one."""
    make_folder(folder)
    opened = {"source": domains.source, "target": domains.target, "val": domains.val, "truth": domains.truth}
    labelled = set(read_weak_labels(asked, domains))
    update: dict[str, Any] = {}
    for part, domain in opened.items():
        if domain is None:
            continue
        items = [item for item in domain.items if part != "target" or not labelled or item.name in labelled]
        items = [item for item in items if _fits_a_line(item.name)]
        if not items:
            raise UserError(
                f"{part}: every name of an image has a line break, or bytes that are no text",
                "for a dry run a name that can be a line of a list",
                "rename an image, with its label",
            )
        lines = [f"./{items[i].name}{items[i].image.suffix}" for i in spread(len(items), IMAGES)]
        path = folder / f"{part}.txt"
        write_text(path, "\n".join(lines) + "\n")
        update[part] = domain.settings.model_copy(update={"list": path.resolve(), "limit": None})
    return asked.model_copy(update=update)


def _fits_a_line(name: str) -> bool:
    """Whether a list of images can hold this name: names of files may have line breaks, and bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(f"{name}.".splitlines()) == 1


def _generated(
    asked: RunSettings, recipe: str, folder: Path, say: Callable[[str], None]
) -> tuple[RunSettings, Domains]:
    """The settings with miniatures, which are written to `folder`."""
    make_folder(folder)
    pair: Pair = PAIRS.get(recipe.partition("/")[0], "folders")
    path = asked.classes or folder / "classes.txt"
    classes = plain_classes(path) if asked.classes is None else read_classes(path)
    if pair == "folders" and {canonical(n) for n in classes.names} <= {canonical(n) for n in CITYSCAPES_19}:
        pair = "folders" if asked.classes is None else "gta5"
    content = {part: validated(DomainSettings, own, part) for part, own in make_pair(folder, pair, classes).items()}
    whole = asked.model_copy(update={"classes": path, **content})
    say(f"data: generated miniatures ({_TOLD[pair]})")
    if any(_from_a_person(stage) for stage in whole.stages):
        truth: Domain = open_domain(content["target"], classes, labelled=True, name="target")
        make_weak_labels(folder / "weak.jsonl", truth)
        whole = whole.model_copy(update={"weak": folder / "weak.jsonl"})
        say(f"weak labels: tags and a point a class of all {len(truth)} images of the target")
    return whole, open_domains(whole)


_TOLD: Mapping[Pair, str] = {
    "gta5": "GTA5, Cityscapes",
    "synthia": "SYNTHIA-RAND-CITYSCAPES, Cityscapes",
    "folders": "plain folders",
}


def _from_a_person(stage: StageSettings) -> bool:
    """Whether a stage says that it learns from tags or points; `auto` takes what there is, and nobody gave any."""
    own = method_settings(stage) if stage.method else None
    return isinstance(own, WeakReading) and own.mode in ("tags", "points")


# ---- settings


def _scaled(settings: RunSettings, say: Callable[[str], None]) -> RunSettings:
    """The settings with sizes, crops and windows scaled by one factor, which brings target images down to `SIDES`."""
    size = settings.size
    assert size != "auto", "resolved before"
    factor = min(Fraction(1), Fraction(SIDES.get(settings.net.name, SIDE), min(size)))

    def less(value: Size) -> Size:
        return max(LEAST, round(value[0] * factor)), max(LEAST, round(value[1] * factor))

    def view(augment: AugmentSettings) -> AugmentSettings:
        return augment.model_copy(update={"crop": less(augment.crop)}) if augment.crop else augment

    def options(known: Options) -> Options:
        window = known.window and less(known.window)
        return known.model_copy(update={"window": window, "scales": known.scales[-SCALES:]})

    def stage(whole: StageSettings) -> StageSettings:
        views = {key: own for key in ("source_augment", "target_augment") if (own := getattr(whole, key))}
        own = whole.settings
        if own.get("evaluation"):
            tested = options(validated(Options, own["evaluation"], f"stage {whole.name}: evaluation"))
            own = {**own, "evaluation": tested.model_dump(mode="json")}
        return whole.model_copy(update={"settings": own, **{key: view(value) for key, value in views.items()}})

    source = settings.source_size and less(settings.source_size)
    told = f"target {_shape(size)} → {_shape(less(size))}"
    told += f", source {_shape(settings.source_size)} → {_shape(source)}" if settings.source_size and source else ""
    say(f"sizes: {told} (scale {float(factor):.3g}; crops and windows too, none below {LEAST} pixels)")
    update: dict[str, Any] = {
        "size": less(size),
        "source_size": source,
        "source_augment": view(settings.source_augment),
        "target_augment": view(settings.target_augment),
        "stages": tuple(map(stage, settings.stages)),
        "evaluation": options(settings.evaluation),
    }
    return settings.model_copy(update=update)


def _shape(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _short(settings: RunSettings) -> RunSettings:
    """The settings with few steps, small batches, few pictures, no mIoU curve (the evaluation at the end is the same
    code), and at most one process that reads images."""

    def stage(whole: StageSettings) -> StageSettings:
        batch = whole.batch_size and min(whole.batch_size, BATCH)
        return whole.model_copy(update={"steps": min(whole.steps, STEPS), "batch_size": batch})

    return settings.model_copy(
        update={
            "stages": tuple(map(stage, settings.stages)),
            "batch_size": min(settings.batch_size, BATCH),
            "log_every": 1,
            "validate_every": 0,
            "panels": min(settings.panels, PANELS),
            "workers": min(settings.workers, 1),
        }
    )


def _without_absent_weights(settings: RunSettings, say: Callable[[str], None]) -> RunSettings:
    """The settings without published weights whose file is not there; what is there is loaded, and so looked at."""
    absent: dict[Path, None] = {}

    def start(net: NetSettings | StageNetSettings | None) -> Any:
        if net is None or net.checkpoint is None or net.checkpoint.expanduser().exists():
            return net
        absent[net.checkpoint] = None
        return net.model_copy(update={"checkpoint": None, "layout": None})

    stages = tuple(stage.model_copy(update={"net": start(stage.net)}) for stage in settings.stages)
    small = settings.model_copy(update={"net": start(settings.net), "stages": stages})
    for path in absent:
        say(f"weights: {path} is not there, so the dry run starts from random ones; the real run needs it")
    return small


# ---- afterwards


def _spent(run: Path, settings: RunSettings, seconds: float) -> list[Spent]:
    """How long each stage took, and all that was not a stage."""
    names = [stage.name for stage in settings.stages]
    stages = [Spent(name, read_json(stage_folder(run, settings, name) / "stage.json")["seconds"]) for name in names]
    rest = seconds - sum(stage.seconds for stage in stages)
    return [*stages, Spent("evaluation, report", round(max(0.0, rest), 1))]


def _refuse_gaps(done: api.Adapted, settings: RunSettings, *, generated: bool) -> None:
    """Make an error of what a run only tells of, since its training does not hang on it.

    Raises:
        UserError: the evaluation or the pictures failed.
    """
    gaps = ["the evaluation"] if settings.val is not None and done.verdict is None else []
    if settings.panels and not any((done.root / "panels").glob("*")):
        gaps.append("the pictures of the report")
    # Of few images of one's own, scaled down, too little may be left for these.
    if settings.panels and generated and not (done.root / "features.json").exists():
        gaps.append("the feature pictures of the report")
    if gaps:
        raise UserError(
            f"every stage ran, but not {' and '.join(gaps)}; the lines above say why",
            "files that evaluation and report can read",
            "`segshift check` reads them all",
        )
