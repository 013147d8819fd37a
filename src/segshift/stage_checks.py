"""Checks before the first step: every stage gets what its method learns from, and names nothing in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segshift.config import RunSettings, StageSettings
from segshift.engine.labelling import LabelSettings
from segshift.engine.producing import SoftLabelSettings
from segshift.errors import UserError
from segshift.methods import MethodSettings
from segshift.methods.base import Settings
from segshift.setup import produce_settings


def check_needs(stages: Sequence[StageSettings], needs: Mapping[str, frozenset[str]]) -> None:
    """Make sure, before anything is trained, that every stage gets the labels that its method learns from.

    Args:
        needs: by training stage, fields that its target batches must carry.

    Raises:
        UserError: names the stage and what to add.
    """
    made = {s.name: provides for s in stages if s.produce and (provides := _provides(produce_settings(s)))}
    for stage in stages:
        if stage.method is None:
            continue
        given = frozenset().union(*(made.get(name, frozenset()) for name in stage.uses.values()))
        for field in sorted(needs[stage.name] - VIEWS - given):
            key, remedy = _MAKES[field]
            if stage.labels is not None:
                remedy = f"set {stage.labels}.{key}" if key else remedy
            raise UserError(
                f"stage {stage.name}: {stage.method} with these settings learns from {field!r} of every target image,"
                f" which {stage.labels + ' does not make' if stage.labels else 'no stage makes for it'}",
                remedy=remedy,
            )


def check_uses(stages: Sequence[StageSettings], methods: Mapping[str, MethodSettings]) -> None:
    """Make sure, before anything is trained, that methods get the prototypes and the teacher that they start from.

    Raises:
        UserError: names the stage and what to add.
    """
    for stage in stages:
        own = methods.get(stage.name)
        if own is not None and own.wants_prototypes and stage.prototypes is None:
            raise UserError(
                f"stage {stage.name}: {stage.method} with these settings starts from prototypes, and none are named",
                remedy="put a stage with `produce: prototypes` before it and name that one in its `prototypes`",
            )
        if own is not None and own.wants_teacher and stage.teacher is None:
            raise UserError(
                f"stage {stage.name}: {stage.method} learns from another network, and none is named",
                remedy="name an earlier training stage in its `teacher`",
            )


def check_unused(
    settings: RunSettings, methods: Mapping[str, MethodSettings], needs: Mapping[str, frozenset[str]]
) -> list[str]:
    """Make sure, before anything is trained, that no training stage names what would silently change nothing.

    Args:
        settings: of the run, resolved.
        methods: settings of the methods, by training stage.
        needs: by training stage, fields that its target batches must carry.

    Returns:
        What a person should know, a sentence each: what a setting of the method switched off, which may be meant, and
        prototypes of another network than the one that the stage starts from.

    Raises:
        UserError: names the stage and what it names in vain.
    """
    told, inits = [], {stage.name: stage.init for stage in settings.stages if stage.produce}
    for stage in settings.stages:
        if stage.method is None:
            continue
        own, fields = methods[stage.name], needs[stage.name]
        used = {"labels": "pseudo_label" in fields, "soft_labels": "soft_full" in fields}
        used |= {"prototypes": own.wants_prototypes, "teacher": own.wants_teacher}
        switchable = {kind for kind in ("prototypes", "teacher") if _decides(own, f"wants_{kind}")}
        for kind, name in stage.uses.items():
            if used[kind]:
                continue
            if kind not in switchable:
                raise UserError(
                    f"stage {stage.name}: {kind} names {name!r}, but {stage.method} learns from no {_SAID[kind]}",
                    remedy=f"leave out {stage.name}.{kind}, or choose another method",
                )
            told.append(f"note: {stage.name} with these settings of {stage.method} does not use its {kind}, {name}")
        of = inits[stage.prototypes] if own.wants_prototypes and stage.prototypes else stage.init
        if of != stage.init:
            told.append(
                f"note: {stage.name} starts from {stage.init or 'a fresh network'}, and its prototypes are of features"
                f" of {of}; distances to them mean little unless one was trained from the other"
            )
        _check_mining(stage, settings, mined="pseudo_label" in fields)
    if settings.target_augment.mine and not any("pseudo_label" in fields for fields in needs.values()):
        told.append("note: target_augment.mine changes nothing: no stage of this run learns from pseudo-labels")
    return told


_SAID = {
    "labels": "pseudo-labels",
    "soft_labels": "soft labels",
    "prototypes": "prototypes",
    "teacher": "other network",
}
"""What a method learns from by each of `TAKES`."""


def _decides(own: MethodSettings, wants: str) -> bool:
    """Whether a method's settings can ask for something, though these may not."""
    return getattr(type(own), wants) is not getattr(MethodSettings, wants)


def _check_mining(stage: StageSettings, settings: RunSettings, mined: bool) -> None:
    """Patch mining moves crops of images with pseudo-labels: without room to move, or without labels, it is nothing."""
    if (stage.source_augment or settings.source_augment).mine:
        raise UserError(
            f"stage {stage.name}: source_augment.mine is set, but patch mining is of pseudo-labels, which the source"
            " has none of",
            remedy="set target_augment.mine instead",
        )
    if stage.target_augment is not None and stage.target_augment.mine and not mined:
        raise UserError(
            f"stage {stage.name}: target_augment.mine is set, but {stage.method} learns from no pseudo-labels",
            remedy=f"leave out {stage.name}.target_augment.mine",
        )
    augment, size = stage.target_augment or settings.target_augment, settings.size
    assert size != "auto"
    largest = [round(side * augment.scale[1]) for side in size]
    if mined and augment.mine and all(a <= b for a, b in zip(largest, augment.crop or size, strict=True)):
        crop = "no crop is" if augment.crop is None else f"the crop, {augment.crop[0]}x{augment.crop[1]}, is not"
        raise UserError(
            f"stage {stage.name}: target_augment.mine lays crops around rare classes, but {crop} smaller than the"
            f" images, {size[0]}x{size[1]} pixels",
            "a crop (width, height) that leaves room to move",
            "add, say, --set target_augment.crop=[{},{}], or leave out mine".format(*(_half(side) for side in size)),
        )


def _half(side: int) -> int:
    return max(32, side // 2)


def _provides(settings: Settings) -> frozenset[str]:
    """Fields that a batch carries with what a stage of these settings made."""
    if isinstance(settings, LabelSettings):
        return settings.provides
    return frozenset({"soft_full"}) if isinstance(settings, SoftLabelSettings) else frozenset()


VIEWS = frozenset({"image", "full", "strong", "seen"})
"""Fields of a target batch that are made from its images alone."""

_MAKES = {
    "pseudo_label": ("", "put a stage with `produce: pseudo_labels` before it and name that one in its `labels`"),
    "soft_label": ("soft_alpha", "name a labels stage that sets `soft_alpha` in its `labels`"),
    "easy": ("split", "name a labels stage that sets `split` in its `labels`"),
    "soft_full": ("", "put a stage with `produce: soft_labels` before it and name that one in its `soft_labels`"),
}
"""Field of a batch → the setting of a labels stage that makes it, and what to do without such a stage."""
