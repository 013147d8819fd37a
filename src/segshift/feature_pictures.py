"""The feature picture of a run: of which stages and domains, whether it still holds, and the file that keeps it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from segshift.artefacts.store import read_json, write_text
from segshift.config import RunSettings
from segshift.data.classes import read_classes
from segshift.data.domains import Domain, open_domain
from segshift.data.statistics import spread
from segshift.engine.embed import EMBEDDINGS, Map, check_embedding, heart, pca_together, turned
from segshift.engine.features import FEWEST, Points, choose_points, compactness, domain_gap, features_at, ids_on_grid
from segshift.engine.model import load_model
from segshift.engine.pipeline import fingerprint
from segshift.engine.producing import Answers
from segshift.engine.progress import Bar, track
from segshift.errors import UserError, nearest
from segshift.setup import digest, stage_chain, stage_folder
from segshift.types import ClassSet

FILE = "features.json"
VERSION = 2
"""Of the way in which a picture is made: with another one, older pictures do not hold."""

IMAGES, POINTS = (40, 20), (2000, 1000)
"""Images and points that a picture shows at most: of the first domain, which is measured, and of each other one."""

STAGES = 4
"""Stages side by side that are chosen by themselves, at most."""

UNITS = 1000
"""Width and height of a map in whole units."""

DOMAINS = ("val", "target", "source")


@dataclass(frozen=True)
class Asked:
    """What a picture is to show.

    Attributes:
        embed: pca, tsne or umap.
        stages: names of training stages; None: `default_stages`.
        domains: of `DOMAINS`, one or more; the first is measured. None: `val`, or `target` where the run has no `val`,
            and `source` where its folder is still there.
    """

    embed: str = "pca"
    stages: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Part:
    """A domain, the (w, h) at which its images enter the networks, and the points of it that are shown."""

    domain: Domain
    size: tuple[int, int]
    points: Points

    @property
    def images(self) -> int:
        return len(np.unique(self.points.image))


def default_stages(settings: RunSettings) -> tuple[str, ...]:
    """The training stages on the way to the result, and the control; at most `STAGES`, in the order of the run.

    Where these are too many: the control (without one, the first stage), the next two on the way, and the result.
    """
    way = stage_chain(settings)
    names = {*way, *([settings.control] if settings.control else [])}
    if len(names) > STAGES:
        names = {settings.control or way[0], *way[1 : STAGES - 1], way[-1]}
    return tuple(stage.name for stage in settings.stages if stage.name in names)


def keep_features(root: Path, settings: RunSettings, device: torch.device, draw: bool) -> None:
    """See to it that the picture in a run's folder is of the networks there: it is left, or drawn anew as it was asked
    for last.

    Args:
        root: of a finished run.
        settings: that the run has, resolved.
        device: where the networks run.
        draw: False: a picture that does not hold any more is removed, and none is drawn.

    Raises:
        UserError: there is no picture now; it says why.
    """
    asked, held = _asked_last(root, settings), None
    try:
        held = _held(root, _fingerprint(root, settings, asked))
    finally:
        if held is None:
            (root / FILE).unlink(missing_ok=True)
    if held is None and draw:
        draw_features(root, settings, asked, device)


def draw_features(root: Path, settings: RunSettings, asked: Asked, device: torch.device) -> dict[str, Any]:
    """Write features.json into a run's folder, unless this very picture is there already.

    Returns:
        Its content: `domains` shown, `domain` (its index, of each point) and `stages`, each with name, `compactness`
        (None where it cannot be said), `by_class`, `nearest`, `gap` between the first two domains, `explained` share of
        the variance, `same_axes` (and scale) as the first one, and of each point `class`, `x` and `y`.

    Raises:
        UserError: a stage, a domain or a package is not there, or a file cannot be used.
    """
    check_embedding(asked.embed)
    wanted = _fingerprint(root, settings, asked)
    if (held := _held(root, wanted)) is not None:
        return held
    domains, names = _domains(settings, asked), _stages(settings, asked)
    parts = [_part(root, settings, domain, names[-1], device, place > 0) for place, domain in enumerate(domains)]
    with track("features", len(names) * sum(part.images for part in parts)) as bar:
        stages = _entries(root, settings, asked.embed, names, parts, device, bar)
    classes = domains[0].classes
    content = {
        "fingerprint": wanted,
        "asked": {
            "embed": asked.embed,
            "stages": list(asked.stages) if asked.stages else None,
            "domains": list(asked.domains) if asked.domains else None,
        },
        "embed": asked.embed,
        "classes": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "domains": [
            {
                "name": part.domain.name,
                "root": str(part.domain.settings.root),
                "images": part.images,
                "classes_by": "truth" if part.domain.labelled else "prediction",
            }
            for part in parts
        ],
        "units": UNITS,
        "domain": [index for index, part in enumerate(parts) for _ in range(len(part.points))],
        "stages": stages,
    }
    # On one line: write_json would give each coordinate a line of its own.
    write_text(root / FILE, json.dumps(content) + "\n")
    return content


def _stages(settings: RunSettings, asked: Asked) -> tuple[str, ...]:
    """Names of the stages to show, in the order of the run."""
    known = [stage.name for stage in settings.stages if stage.method is not None]
    if not known:
        raise UserError("run.yaml has no training stages", remedy="name the folder of a run that adapt made")
    for name in asked.stages or ():
        if name not in known:
            raise UserError(f"--stages: {name!r} is no training stage of this run; {nearest(name, known)}")
    wanted = asked.stages or default_stages(settings)
    return tuple(name for name in known if name in wanted)


def _domains(settings: RunSettings, asked: Asked) -> list[Domain]:
    """The domains to show. The labels of `target` are not looked at."""
    declared = {name: getattr(settings, name) for name in DOMAINS}
    names = asked.domains or _default_domains(settings)
    if settings.classes is None:
        raise UserError("run.yaml names no class list", remedy="name the folder of a run that adapt made")
    for name in names:
        if name not in DOMAINS or declared[name] is None:
            known = [each for each in DOMAINS if declared[each] is not None]
            raise UserError(f"--domain: this run has no domain {name!r}; {nearest(name, known)}")
    classes = read_classes(settings.classes)
    return [open_domain(declared[name], classes, labelled=name != "target", name=name) for name in dict.fromkeys(names)]


def _default_domains(settings: RunSettings) -> tuple[str, ...]:
    """The target's labelled part or, without one, the target; and the source where it is still at hand."""
    names = ["val" if settings.val is not None else "target"]
    if settings.source is not None and settings.source.root.expanduser().exists():
        names.append("source")
    return tuple(names)


def _size(settings: RunSettings, domain: Domain) -> tuple[int, int]:
    if settings.size == "auto":
        raise UserError("run.yaml does not say the size of the images", "width and height", "run adapt again")
    return settings.source_size or settings.size if domain.name == "source" else settings.size


def _fingerprint(root: Path, settings: RunSettings, asked: Asked) -> str:
    """Of all that a picture depends on: networks, images, labels, and what is asked for."""
    domains, names = _domains(settings, asked), _stages(settings, asked)
    stages = []
    for name in names:
        folder = stage_folder(root, settings, name)
        record = read_json(folder / "stage.json") if (folder / "model" / "config.json").exists() else {}
        if not record.get("done"):
            raise UserError(f"stage {name} of {root} is not finished", remedy="run its command again: it goes on")
        stages.append(str(record.get("fingerprint")))
    decisive = {
        "version": VERSION,
        "embed": asked.embed,
        "domains": [[domain.name, digest(domain), list(_size(settings, domain))] for domain in domains],
        "precision": settings.precision,
    }
    return fingerprint(decisive, "/".join(stages))


def _held(root: Path, wanted: str) -> dict[str, Any] | None:
    """The picture in the run's folder where it has this fingerprint; a damaged one is as good as none."""
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        known: dict[str, Any] = read_json(root / FILE)
        if known["fingerprint"] == wanted and known["stages"]:
            return known
    return None


def _asked_last(root: Path, settings: RunSettings) -> Asked:
    """What the picture in the run's folder was to show, as far as the run still has it."""
    asked: dict[str, Any] = {}
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        asked = dict(read_json(root / FILE)["asked"])
    stages, domains = (tuple(map(str, asked.get(key) or ())) for key in ("stages", "domains"))
    here = {stage.name for stage in settings.stages if stage.method is not None}
    there = {name for name in DOMAINS if getattr(settings, name) is not None}
    return Asked(
        embed=str(asked["embed"]) if asked.get("embed") in EMBEDDINGS else "pca",
        stages=stages if stages and here.issuperset(stages) else None,
        domains=domains if domains and there.issuperset(domains) else None,
    )


def _answers(root: Path, settings: RunSettings, stage: str, classes: ClassSet, device: torch.device) -> Answers:
    model = load_model(stage_folder(root, settings, stage), device)
    if model.classes.names != classes.names:
        raise UserError(
            f"stage {stage} was trained for {', '.join(model.classes.names)}",
            f"the classes of {settings.classes}: {', '.join(classes.names)}",
            "restore the class list of the training",
        )
    return Answers(model.net, device, settings.precision)


def _part(root: Path, settings: RunSettings, domain: Domain, last: str, device: torch.device, other: bool) -> _Part:
    """The points of a domain to show; without labels, chosen by what the network of the last stage says."""
    size, images = _size(settings, domain), spread(len(domain), IMAGES[other])
    answers = _answers(root, settings, last, domain.classes, device)
    ids = ids_on_grid(answers, domain, images, size, settings.workers)
    points = choose_points(ids, images, len(domain.classes), POINTS[other])
    if not len(points):
        raise UserError(
            f"domain {domain.name!r}: no class has {FEWEST} points on the network's grid in {len(images)} images",
            "labels with some of the classes",
            "run `segshift check` and look at the contact sheet and the class_map",
        )
    return _Part(domain, size, points)


def _entries(
    root: Path,
    settings: RunSettings,
    embed: str,
    names: tuple[str, ...],
    parts: list[_Part],
    device: torch.device,
    bar: Bar,
) -> list[dict[str, Any]]:
    """The map and the figures of each stage."""
    classes = parts[0].domain.classes
    found: list[list[np.ndarray]] = []
    labels: list[list[np.ndarray]] = []
    for name in names:
        answers = _answers(root, settings, name, classes, device)
        asked = [features_at(answers, p.domain, p.points, p.size, settings.workers, bar) for p in parts]
        found.append([features for features, _ in asked])
        labels.append(
            [p.points.label if p.domain.labelled else said for p, (_, said) in zip(parts, asked, strict=True)]
        )
    maps, alike = _maps(settings, embed, names, [np.concatenate(features) for features in found])
    frame = _frame(np.concatenate([made.places for made, same in zip(maps, alike, strict=True) if same]))
    entries = []
    for name, features, known, made, same in zip(names, found, labels, maps, alike, strict=True):
        measured = compactness(features[0], known[0], len(classes))
        gap = domain_gap(features[0], known[0], features[1], known[1], len(classes)) if len(parts) > 1 else None
        entries.append(
            {
                "name": name,
                "compactness": measured.value,
                "by_class": list(measured.by_class),
                "nearest": measured.nearest,
                "gap": gap,
                "same_axes": same,
                **_places(made, frame if same else _frame(made.places), np.concatenate(known), len(known[0])),
            }
        )
    return entries


def _maps(
    settings: RunSettings, embed: str, names: tuple[str, ...], features: list[np.ndarray]
) -> tuple[list[Map], list[bool]]:
    """The map of each stage, and whether it has the axes and the scale of the first one.

    Stages that come of one network have the same dimensions of features, so PCA can share its axes. What started
    elsewhere, and t-SNE and UMAP, whose axes mean nothing, are turned to lie like the map before them.
    """
    first = _origin(settings, names[0])
    alike = [
        embed == "pca" and _origin(settings, name) == first and values.shape[1] == features[0].shape[1]
        for name, values in zip(names, features, strict=True)
    ]
    alike[0] = True
    if embed == "pca":
        together = iter(pca_together([values for values, same in zip(features, alike, strict=True) if same]))
    maps: list[Map] = []
    for values, same in zip(features, alike, strict=True):
        made = next(together) if embed == "pca" and same else EMBEDDINGS[embed](values)
        if maps and not same:
            made = Map(turned(made.places, maps[-1].places), made.explained)
        maps.append(made)
    return maps, alike


def _origin(settings: RunSettings, name: str) -> str:
    """The stage whose network a stage's own comes of, by `init` alone; its own name where it started afresh."""
    init = {stage.name: stage.init for stage in settings.stages}
    while (before := init[name]) is not None:
        name = before
    return name


Frame = tuple[Float[np.ndarray, " 2"], float]
"""Middle and side of the square of the plane that a map shows."""


def _places(made: Map, frame: Frame, labels: Int64[np.ndarray, " N"], first: int) -> dict[str, Any]:
    """Class and place of each point; `hearts`: [class, x, y], where the classes of the first domain lie densest."""
    places = fitted(made.places, frame)
    main = labels[:first]
    known = [int(k) for k in np.unique(main) if (main == k).sum() >= FEWEST]
    hearts = [[k, *map(int, heart(places[:first][main == k].astype(np.float64)))] for k in known]
    return {
        "explained": made.explained,
        "hearts": hearts,
        "class": labels.tolist(),
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
    }


def _frame(places: Float[np.ndarray, "N 2"]) -> Frame:
    """Of points: one scale for both axes. The outermost four of a thousand of each axis would shrink all others."""
    low, high = np.percentile(places, [0.2, 99.8], axis=0)
    return (low + high) / 2, max(float((high - low).max()), float(np.finfo(np.float64).tiny))


def fitted(places: Float[np.ndarray, "N 2"], frame: Frame | None = None) -> Int64[np.ndarray, "N 2"]:
    """Places in whole units of a square of `UNITS`; those that lie outside are moved to the edge.

    Args:
        places: (N, 2) in the plane.
        frame: what the square shows; None: these points without their outermost ones.
    """
    middle, side = frame or _frame(places)
    units = ((places - middle) / side * 0.94 + 0.5) * UNITS
    whole: Int64[np.ndarray, "N 2"] = np.clip(np.rint(units), 0, UNITS).astype(np.int64)
    return whole
