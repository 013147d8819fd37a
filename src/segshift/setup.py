"""What is settled before the first step of a run: data opened and looked at, settings resolved, methods built."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from segshift.artefacts.store import write_error
from segshift.config import RunSettings, StageSettings, validated
from segshift.data.classes import is_built_in, read_classes
from segshift.data.domains import Domain, load_pair, open_domain
from segshift.data.images import image_size
from segshift.data.labels import in_colour
from segshift.data.statistics import spread
from segshift.engine.labelling import LabelSettings
from segshift.engine.producing import PrototypeSettings, SoftLabelSettings
from segshift.errors import UserError, nearest
from segshift.methods import METHODS, MethodSettings
from segshift.methods.base import Settings
from segshift.types import IGNORE, ClassSet

AUTO_PIXELS = 320 * 240
UNEVEN = "for a fair verdict"
"""In what is said of a control that trains for another number of steps than the adaptation."""

LOOK_AT = 16
"""Files of each domain that are decoded before the first step; `segshift check` reads them all."""


@dataclass(frozen=True)
class Domains:
    """The opened data of a run; `val` is the only one of the target's that has labels."""

    classes: ClassSet
    source: Domain
    target: Domain
    val: Domain | None
    truth: Domain | None = None


def open_domains(settings: RunSettings) -> Domains:
    """List the files of every domain. Labels of the target are not looked at: only `val`, the part to evaluate on,
    is opened with labels.

    Raises:
        UserError: a part is not declared, or cannot be used.
    """
    for part in ("classes", "source", "target"):
        if getattr(settings, part) is None:
            raise UserError(
                f"no {part} is given", f"--{part} on the command line or `{part}:` in the settings", f"add --{part}"
            )
    assert settings.classes is not None
    assert settings.source is not None
    assert settings.target is not None
    classes = read_classes(settings.classes)
    return Domains(
        classes,
        open_domain(settings.source, classes, labelled=True, name="source"),
        open_domain(settings.target, classes, labelled=False, name="target"),
        open_domain(settings.val, classes, labelled=True, name="val") if settings.val else None,
        open_domain(settings.truth, classes, labelled=True, name="truth") if settings.truth else None,
    )


def keep_apart(out: Path, domains: Domains) -> None:
    """Refuse to write pictures where a domain's images are looked for: the next call would train on them.

    Raises:
        UserError: `out` lies in the folder of a domain's images.
    """
    for domain in (domains.source, domains.target, domains.val, domains.truth):
        if domain is None:
            continue
        first = domain.items[0]
        images = first.image.parents[first.name.count("/")]
        if out.resolve().is_relative_to(images.resolve()):
            raise UserError(
                f"--out {out} lies among the images of the {domain.name}, {images}",
                "a folder elsewhere: pictures that are written there would be taken for images",
                "choose another --out, or move the images into a folder `images`",
            )


def look_at_data(domains: Domains) -> None:
    """Decode a few files of source and target as training will.

    Raises:
        UserError: one of them cannot be used, or no label of the source holds any class.
    """
    labelled = False
    items = domains.source.items
    for index in spread(len(items), LOOK_AT):
        _, label, _ = load_pair(domains.source, items[index], None)
        labelled |= label is not None and bool((label != IGNORE).any())
    if not labelled:
        raise UserError(
            f"source {domains.source.settings.root}: every pixel of the labels looked at is ignored",
            "labels with the classes of " + ", ".join(domains.classes.names),
            "look at the class_map of the source; `segshift check` shows what the files hold",
        )
    for index in spread(len(domains.target.items), LOOK_AT // 4):
        load_pair(domains.target, domains.target.items[index], None)


def resolved(settings: RunSettings, target: Domain, device: torch.device) -> RunSettings:
    """The settings with every `auto` replaced by what it means for this data and this machine."""
    size, precision = settings.size, settings.precision
    if size == "auto":
        size = auto_size(*image_size(target.items[0].image))
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return settings.model_copy(update={"size": size, "precision": precision})


def auto_size(height: int, width: int) -> tuple[int, int]:
    """Width and height, multiples of 8, of about `AUTO_PIXELS` pixels in the image's shape, and not above its size."""
    scale = min(1.0, math.sqrt(AUTO_PIXELS / (height * width)))
    return max(32, round(width * scale / 8) * 8), max(32, round(height * scale / 8) * 8)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with contextlib.suppress(OSError):
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text() or "amx_bf16" in Path("/proc/cpuinfo").read_text()
    return False


def method_settings(stage: StageSettings) -> MethodSettings:
    """The typed settings of a training stage's method.

    Raises:
        UserError: the method is unknown, or a setting of it.
    """
    assert stage.method is not None
    if stage.method not in METHODS:
        raise UserError(f"stage {stage.name}: unknown method {stage.method!r}; {nearest(stage.method, METHODS)}")
    return validated(METHODS[stage.method].settings, stage.settings, f"stage {stage.name} ({stage.method})", _OWN)


PRODUCTS: dict[str, type[Settings]] = {
    "pseudo_labels": LabelSettings,
    "soft_labels": SoftLabelSettings,
    "prototypes": PrototypeSettings,
}


def produce_settings(stage: StageSettings) -> Settings:
    """The typed settings of a stage that produces.

    Raises:
        UserError: a setting is unknown or does not fit.
    """
    assert stage.produce is not None
    return validated(PRODUCTS[stage.produce], stage.settings, f"stage {stage.name} ({stage.produce})", _OWN)


def stage_settings(stage: StageSettings) -> Settings:
    """The typed settings of a stage of either kind.

    Raises:
        UserError: see `method_settings` and `produce_settings`.
    """
    return produce_settings(stage) if stage.produce else method_settings(stage)


_OWN = sorted(set(StageSettings.model_fields) - {"name", "settings"})
"""Settings of a stage that may be meant where its method has none of that name."""


def digest(domain: Domain) -> str:
    """Hex digest of a domain's declaration and files (names and sizes): other data is another experiment, but the
    folder may move."""
    declaration = domain.settings.model_dump(mode="json", exclude={"root", "list", "limit"})
    files = [[item.name, _bytes(item.image), _bytes(item.label) if item.label else None] for item in domain.items]
    return hashlib.sha256(json.dumps([declaration, files, *_colours(domain)]).encode()).hexdigest()


def _colours(domain: Domain) -> list[list[Any]]:
    """What the colours of label files mean, where they are in colour: the class list's palette may decide it."""
    label = domain.items[0].label
    # A damaged file says nothing here; reading it as a label will name it.
    with contextlib.suppress(UserError):
        if domain.decoder is not None and label is not None and in_colour(label):
            return [sorted(domain.decoder.colours.items())]
    return []


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "a file", "mend or remove it") from error


def dump_yaml(settings: RunSettings) -> str:
    """All settings of a run, as a file that `segshift adapt` takes."""
    content: dict[str, Any] = settings.model_dump(mode="json")
    places = [(content, "classes"), (content, "weak"), (content["net"], "checkpoint")]
    places += [(stage["net"], "checkpoint") for stage in content["stages"] if stage["net"]]
    domains = [content[part] for part in ("source", "target", "val", "truth") if content[part]]
    places += [(domain, key) for domain in domains for key in ("root", "list")]
    for mapping, key in places:
        # A list file may also lie below the domain's root, where its name stays as it is.
        if key == "classes" and mapping[key] is not None and is_built_in(Path(mapping[key])):
            continue
        if mapping[key] is not None and (key != "list" or Path(mapping[key]).is_file()):
            mapping[key] = str(Path(mapping[key]).expanduser().resolve())
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def stage_folder(root: Path, settings: RunSettings, stage: str) -> Path:
    """Folder of a stage in that of its run."""
    return root / f"{[s.name for s in settings.stages].index(stage) + 1:02d}-{stage}"


def stage_before(settings: RunSettings, name: str) -> str | None:
    """The training stage that a training stage starts from or, where it starts afresh, learns from."""
    stages = {stage.name: stage for stage in settings.stages}
    stage = stages[name]
    labels = stages[stage.labels] if stage.labels is not None else None
    return stage.init or stage.teacher or (labels.init if labels else None)


def stage_chain(settings: RunSettings) -> list[str]:
    """Names of the training stages that led to the result, in order: the last stage's own comes last."""
    names = [settings.stages[-1].name]
    while (before := stage_before(settings, names[0])) is not None:
        names.insert(0, before)
    return names


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep a second segshift out of a run's folder; the lock dies with its process.

    Raises:
        UserError: another process works on the run.
    """
    path = root / ".lock"
    try:
        file = open(path, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise write_error(path, error) from error
    # Processes that read images shall not hold the lock: they outlive a killed run by seconds.
    os.register_at_fork(after_in_child=file.close)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another segshift works on {root}", remedy="wait for it to end, or choose another --out"
            ) from error
        yield


def devices(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported", "auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: torch sees no CUDA device here", remedy="use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here", "a lower number")
    return device
