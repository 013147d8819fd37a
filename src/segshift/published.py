"""Published checkpoints: which network a file holds is found out, and it is measured as its release measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from segshift.config import validated
from segshift.data.classes import BUILT_IN, read_classes
from segshift.data.domains import DomainSettings, open_domain
from segshift.data.images import image_size
from segshift.engine.evaluate import evaluate
from segshift.engine.inference import Options, whole_float32
from segshift.engine.metrics import Metrics
from segshift.engine.model import Model, build_net
from segshift.engine.progress import track
from segshift.errors import UserError, nearest
from segshift.nets.recognition import RECOGNISED, Network, Release, Shapes, remarks
from segshift.nets.weights import LAYOUTS, LayoutName, LoadReport, assign, read_published
from segshift.setup import devices
from segshift.types import ClassSet

CITYSCAPES = (1024, 2048)
"""(H, W) of Cityscapes' images and labels."""


@dataclass(frozen=True)
class Protocol:
    """How a release measures.

    Attributes:
        size: (w, h) that images are fed at.
        options: scales and flip at test time.
        source: where the release says so.
    """

    size: tuple[int, int]
    options: Options
    source: str


PROTOCOLS: dict[Release, Protocol] = {
    "advent": Protocol((1024, 512), Options(), "ADVENT: eval_UDA.py, config.py"),
    "adaptsegnet": Protocol((1024, 512), Options(), "AdaptSegNet: evaluate_cityscapes.py"),
    "crst": Protocol((2048, 1024), Options(scales=(0.9, 1.0, 1.2), flip=True), "CRST: crst_seg.py, cbst.sh"),
    "proda": Protocol((2048, 1024), Options(), "ProDA: test.py"),
}
"""methods.md section 0.3."""


@dataclass(frozen=True)
class Published:
    """A published file as a model.

    Attributes:
        path: the file.
        model: ready to use; its size is the one that the release feeds.
        network: what was found of it.
        protocol: of its release.
        report: what became of every tensor.
        remarks: what should be known before its figures are believed.
    """

    path: Path
    model: Model
    network: Network
    protocol: Protocol
    report: LoadReport
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        network = self.network
        found = ", ".join(f"{key} {_plain(value)}" for key, value in network.options.items() if key not in network.told)
        told = ", ".join(f"{key} {_plain(network.options[key])}" for key in network.told)
        lines = [
            f"{self.path}: layout {network.layout}, sha256 {self.report.sha256}",
            f"  network   {network.name}, {network.classes} classes; of the file: {found or 'its shapes'}; "
            f"of the release: {told}",
            *(f"  remark    {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)


def open_published(
    path: str | Path, layout: str, *, classes: str | Path | None = None, device: torch.device | None = None
) -> Published:
    """Build the network that a published checkpoint is of, and load it.

    Args:
        path: the release's file; read with `weights_only=True`, it cannot run code.
        layout: a release (`advent`, `adaptsegnet`, `crst`, `proda`) or, where that has several, one of its layouts.
        classes: class list; None: `cityscapes_19` or `cityscapes_16`, by the number of outputs.
        device: None means CPU.

    Raises:
        UserError: the file cannot be read, is of another network or release, or of another number of classes.
    """
    path = Path(path)
    release = _release(layout)
    tensors, sha256 = read_published(path, _layouts(release)[0])
    network = _recognised(path, release, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    if layout not in (release, network.layout):
        raise UserError(
            f"{path} is of layout {network.layout}, not {layout}",
            remedy=f"--layout {network.layout}, or --layout {release} for any of that release",
        )
    known = _classes(path, network.classes, classes)
    net = build_net(network.name, network.classes, network.options)
    report = assign(net, tensors, LAYOUTS[network.layout], name=network.layout, source=str(path), sha256=sha256)
    config = {"net": {"name": network.name, "options": network.options}, "published": network.layout, "sha256": sha256}
    protocol = PROTOCOLS[release]
    model = Model(net.to(device or torch.device("cpu")).eval(), known, protocol.size, config)
    return Published(path, model, network, protocol, report, remarks(network, tensors))


def _layouts(release: Release) -> list[LayoutName]:
    return [name for name in LAYOUTS if name == release or name.startswith(f"{release}_")]


def _release(layout: str) -> Release:
    for release in get_args(Release):
        if layout in _layouts(release):
            return release  # type: ignore[no-any-return]
    whole = [name for release in get_args(Release) for name in _layouts(release)]
    if layout in LAYOUTS:
        raise UserError(
            f"layout {layout} is of pretrained weights: its file has no trained segmentation head",
            "the layout of a trained network: " + ", ".join(whole),
            "as a start of training it is named in the settings, net.checkpoint and net.layout",
        )
    raise UserError(f"weights layout {layout!r} is not known", "one of " + ", ".join(whole), nearest(layout, whole))


def _recognised(path: Path, release: Release, shapes: Shapes) -> Network:
    network = RECOGNISED[release](shapes)
    if network is not None:
        return network
    others = [name for name, recognise in RECOGNISED.items() if name != release and recognise(shapes)]
    first = ", ".join(list(shapes)[:4])
    if first.startswith("module."):
        raise UserError(
            f"the names of {path}'s tensors begin with `module.`: they are of a DataParallel",
            "the network's own names",
            "save it without: torch.save({k.removeprefix('module.'): v for k, v in "
            "torch.load(FILE, weights_only=True).items()}, NAME)",
        )
    raise UserError(
        f"{path} is no network of the {release} release: its {len(shapes)} tensors begin with {first or 'none'}",
        f"a trained network of {release}, with its classifier",
        f"its tensors are named as those of: {', '.join(others)}; try --layout {others[0]}"
        if others
        else "check that this is the release's trained model and not its initialisation or a discriminator",
    )


def _classes(path: Path, outputs: int, given: str | Path | None) -> ClassSet:
    if given is None:
        built_in = {len(names): name for name, names in BUILT_IN.items()}
        if outputs not in built_in:
            raise UserError(
                f"{path} predicts {outputs} classes",
                " or ".join(f"{count} ({name})" for count, name in built_in.items()) + ", or a class list",
                f"name its {outputs} classes, in the order of its outputs, with --classes",
            )
        return read_classes(Path(built_in[outputs]))
    classes = read_classes(Path(given))
    if len(classes) != outputs:
        raise UserError(
            f"{given} lists {len(classes)} classes, {path} predicts {outputs}",
            f"{outputs} classes, in the order of its outputs",
            "leave out --classes: Cityscapes' 19 and 16 are known" if outputs in (16, 19) else "mend the list",
        )
    return classes


@dataclass(frozen=True)
class Measured:
    """Figures of published files.

    Attributes:
        metrics: as of `segshift.evaluate`.
        files: what was measured; their logits are averaged.
        options: scales and flip that were used.
        images: (W, H) of the first image.
        device: where it was computed.
    """

    metrics: Metrics
    files: tuple[Published, ...]
    options: Options
    images: tuple[int, int]
    device: str
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join([*map(str, self.files), *self.notes, ""])

    def to_dict(self) -> dict[str, Any]:
        """How the figures were measured, as plain JSON values; the figures are `metrics.to_dict()`."""
        protocol = self.files[0].protocol
        return {
            "files": [
                {
                    "file": str(each.path),
                    "sha256": each.report.sha256,
                    "layout": each.network.layout,
                    "net": {"name": each.network.name, "options": each.network.options},
                    "classes": list(each.model.classes.names),
                    "remarks": list(each.remarks),
                }
                for each in self.files
            ],
            "size": list(protocol.size),
            "options": self.options.model_dump(mode="json"),
            "protocol": protocol.source if self.options == protocol.options else None,
            "precision": "fp32",
            "device": self.device,
            "notes": list(self.notes),
        }


def evaluate_published(
    files: Sequence[str | Path],
    layout: str,
    domain: str | Path | Mapping[str, Any],
    *,
    classes: str | Path | None = None,
    options: Options | None = None,
    device: str = "auto",
) -> Measured:
    """Measure a published checkpoint, or the average of several, in the protocol of its release.

    Images are fed at the release's size, logits upsampled bilinearly with aligned corners to the label's own size, and
    one confusion matrix is accumulated, in float32 on every device (no TF32).

    Args:
        files: of one release; logits are averaged with equal weights (ADVENT's AdvEnt+MinEnt).
        layout, classes: see `open_published`.
        domain: folder or `DomainSettings` as a mapping, with labels.
        options: instead of the release's scales and flip; the figures are then not comparable with the paper's.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: see `open_published` and `segshift.evaluate`.
    """
    where = devices(device)
    opened = tuple(open_published(path, layout, classes=classes, device=where) for path in files)
    first = opened[0]
    for other in opened[1:]:
        if other.model.classes.names != first.model.classes.names:
            raise UserError(
                f"{other.path} predicts {other.network.classes} classes, {first.path} {first.network.classes}",
                "files of the same classes: their logits are averaged",
                "evaluate them one by one",
            )
    declared = {"root": str(domain)} if isinstance(domain, (str, Path)) else dict(domain)
    settings = validated(DomainSettings, declared, "domain")
    labelled = open_domain(settings, first.model.classes, labelled=True, name="evaluation")
    chosen = options or first.protocol.options
    height, width = image_size(labelled.items[0].image)
    with track("evaluate", len(labelled)) as bar, whole_float32():
        metrics = evaluate(
            [each.model.net for each in opened],
            labelled,
            size=first.protocol.size,
            options=chosen,
            device=where,
            progress=bar,
        )
    notes = _notes(first.protocol, chosen, len(opened), (height, width), metrics.images)
    return Measured(metrics, opened, chosen, (width, height), str(where), notes)


def _notes(protocol: Protocol, chosen: Options, files: int, image: tuple[int, int], images: int) -> tuple[str, ...]:
    """What was done, and what of it is not as in the papers, in sentences for people."""
    done = f"images fed at {protocol.size[0]} x {protocol.size[1]}, {_said(chosen)}"
    if files > 1:
        done += f", mean of {files} files' logits"
    done += "; logits upsampled bilinearly (aligned corners) to the label's size, one confusion matrix, float32"
    own = chosen == protocol.options
    lines = [f"protocol {'of the release' if own else 'NOT of the release'} ({protocol.source}): {done}"]
    if not own:
        lines.append(f"not comparable with published figures: the release has {_said(protocol.options)}")
    if image != CITYSCAPES:
        lines.append(
            f"not comparable with published figures: these images are {image[1]} x {image[0]}, Cityscapes' 2048 x 1024"
        )
    lines.append(f"measured here on {images} images; published figures are of Cityscapes val, 500 images")
    return tuple(lines)


def _said(options: Options) -> str:
    scales = "one scale" if options.scales == (1.0,) else "scales " + ", ".join(f"{s:g}" for s in options.scales)
    window = "" if options.window is None else f", windows of {options.window[0]} x {options.window[1]}"
    return f"{scales}, {'flip' if options.flip else 'no flip'}{window}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
