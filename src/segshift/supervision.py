"""The weak labels of a run: read and matched before the first step, chosen and fingerprinted for each stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from segshift.config import RunSettings, StageSettings
from segshift.data.loader import WEAK
from segshift.data.order import seed_of
from segshift.data.weak_views import WeakViews
from segshift.errors import UserError
from segshift.methods import MethodSettings
from segshift.methods.base import WeakReading
from segshift.setup import Domains
from segshift.weak.label import WeakLabel
from segshift.weak.matching import match
from segshift.weak.store import WeakStore

Labels = Mapping[str, WeakLabel]
"""Weak labels by the names of the target's images."""

FEW, TOO_FEW = 50, "with points on so few images"
"""Images with points: on 10 and on 30 they gained nothing over guessed tags, on 100 they did (docs/results.md)."""


def read_weak_labels(settings: RunSettings, domains: Domains) -> dict[str, WeakLabel]:
    """The weak labels of the target's images; none where the settings name no file.

    Raises:
        UserError: the file cannot be used, does not fit the target, or labels none of its images.
    """
    if settings.weak is None:
        return {}
    path = settings.weak.expanduser()
    labels = match(WeakStore(path).read(), domains.target, domains.classes)
    if not labels:
        raise UserError(
            f"{path} holds no weak label of the target's {len(domains.target)} images",
            "tags or points of at least one image",
            "correct --weak, or label images with `segshift annotate`",
        )
    return labels


def with_modes(settings: RunSettings, methods: Mapping[str, MethodSettings], labels: Labels) -> RunSettings:
    """The settings with every mode `auto` replaced by what it means with these labels."""
    found = "points" if any(label.points for label in labels.values()) else "tags" if labels else "pseudo"

    def resolved(stage: StageSettings) -> StageSettings:
        own = methods.get(stage.name)
        if not isinstance(own, WeakReading) or own.mode != "auto":
            return stage
        return stage.model_copy(update={"settings": {**stage.settings, "mode": found}})

    return settings.model_copy(update={"stages": tuple(map(resolved, settings.stages))})


def check_weak_labels(
    settings: RunSettings,
    methods: Mapping[str, MethodSettings],
    needs: Mapping[str, frozenset[str]],
    labels: Labels,
) -> list[str]:
    """Make sure, before anything is trained, that stages get the weak labels that they learn from.

    Args:
        settings: of the run.
        methods: settings of the methods, by training stage.
        needs: by training stage, fields that its target batches must carry.
        labels: of the run.

    Returns:
        What a person should know, a sentence each.

    Raises:
        UserError: names the stage and what to do.
    """
    told = []
    for stage in settings.stages:
        own, wanted = methods.get(stage.name), needs.get(stage.name, frozenset()) & WEAK
        if stage.weak_images is not None and not isinstance(own, WeakReading):
            raise UserError(
                f"stage {stage.name}: weak_images is set, but {stage.method} does not learn from weak labels",
                remedy=f"leave out {stage.name}.weak_images",
            )
        if not wanted:
            if stage.weak_images is not None:
                told.append(f"note: {stage.name}.weak_images changes nothing: in the mode pseudo no weak label is used")
            continue
        assert isinstance(own, WeakReading)
        _check_stage(stage, own.mode, settings, labels)
        usable = _usable(labels, own.mode)
        if stage.weak_images is not None and stage.weak_images > len(usable):
            told.append(
                f"note: {stage.name}.weak_images is {stage.weak_images}; only {len(usable)} images are labelled"
            )
        seen = chosen(stage, own, settings.seed, labels)
        count = len(_usable(seen, own.mode))
        others = f", and from tags of {len(seen) - count} others" if count < len(seen) else ""
        told.append(f"{stage.name} learns from {own.mode} of {count} images of the target{others}")
        if own.mode == "points" and 0 < count < FEW:
            told.append(f"note: {TOO_FEW}, guessed tags ({stage.name}.mode=pseudo) were as good where it was measured")
    used = any(fields & WEAK for fields in needs.values())
    if labels and not used:
        told.append(f"note: no stage of this run learns from the weak labels {settings.weak}")
    return told


def _check_stage(stage: StageSettings, mode: str, settings: RunSettings, labels: Labels) -> None:
    if not labels:
        raise UserError(
            f"stage {stage.name}: {stage.method} in the mode {mode} learns from a person's weak labels, and the run has"
            " none",
            "a file of weak labels: --weak weak.jsonl",
            "make one with `segshift annotate` or `segshift labels import`, or do without:"
            f" --set {stage.name}.mode=pseudo",
        )
    if not _usable(labels, mode):
        raise UserError(
            f"stage {stage.name}: {stage.method} in the mode {mode}, but none of the {len(labels)} labelled images in"
            f" {settings.weak} has a point",
            "points of at least one image",
            f"click points with `segshift annotate`, or learn from the tags alone: --set {stage.name}.mode=tags",
        )


def _usable(labels: Labels, mode: str) -> dict[str, WeakLabel]:
    """Labels that say something of what a mode learns from: of points, those with points."""
    return {name: label for name, label in labels.items() if label.points or mode != "points"}


def chosen(stage: StageSettings, own: WeakReading, seed: int, labels: Labels) -> dict[str, WeakLabel]:
    """The labels that a stage sees: all, or the first `weak_images` of those that it can learn from.

    Their order is that of a hash of seed and name: fewer images are a part of more images, and images that are labelled
    later do not change the order of the others.
    """
    if stage.weak_images is None:
        return dict(labels)
    usable = _usable(labels, own.mode)
    order = sorted(usable, key=lambda name: (seed_of(seed, "weak", name), name))
    return {name: usable[name] for name in order[: stage.weak_images]}


def weak_views(stage: StageSettings, own: MethodSettings, seed: int, labels: Labels) -> WeakViews:
    """What the batches of a stage that learns from weak labels show of them."""
    assert isinstance(own, WeakReading)
    return WeakViews(chosen(stage, own, seed, labels), own.point_radius, own.points_complete)


def digest(views: WeakViews) -> str:
    """Hex digest of what labels say (not who said it, and when), for a stage's fingerprint."""
    said: dict[str, Any] = {}
    for name, label in sorted(views.labels.items()):
        content = asdict(label)
        said[name] = [sorted(content["tags"] or ()), label.says_absent, label.tags is None, content["points"]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
