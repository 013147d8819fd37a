"""The trained models that a choice is made from: of which runs and stages, and what each of them came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segshift.artefacts.store import read_json
from segshift.config import RunSettings, StageSettings, read_yaml, validated
from segshift.engine.model import class_set, model_folder
from segshift.errors import UserError, nearest
from segshift.setup import stage_before, stage_folder


@dataclass(frozen=True)
class Candidate:
    """A trained model, by its files; nothing is loaded.

    Attributes:
        name: RUN/STAGE, or the folder of a model on its own.
        folder: with model.safetensors and config.json.
        config: content of config.json.
        settings: of its run; None for a model on its own.
        source: the model that training on the source alone gave and this one started from, directly or by other stages.
            None: not known, or this very model.
        teacher: the model that it learned the target from: that of its `teacher`, else the one that made its labels.
        also: names of other candidates with the very same weights.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    settings: RunSettings | None = None
    source: Path | None = None
    teacher: Path | None = None
    also: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Models of one key give the same answers: weights, and how they are asked."""
        manner = (self.settings.evaluation.model_dump_json(), self.settings.precision) if self.settings else ""
        return str(self.config["sha256"]), str(self.config["size"]), str(manner)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it was trained for."""
        return tuple(self.config["classes"]["names"])


def find_candidates(paths: Sequence[Path], stages: str = "last") -> tuple[list[Candidate], list[str]]:
    """The models of runs, stages and models' folders, each weights once, and what was left out, in words.

    Args:
        paths: runs' folders, stages of runs, or models' folders.
        stages: of runs: `last` training stage, `all` finished ones, or names by commas.

    Raises:
        UserError: a path holds no finished model, no run has a stage of this name, or two were trained for different
            classes.
    """
    notes: list[str] = []
    _known_stages(paths, stages)
    found = [candidate for path in paths for candidate in _of_path(path, stages, notes)]
    if not found:
        raise UserError(
            f"no finished stage {stages} in {', '.join(map(str, paths))}",
            "a stage with its model",
            "run its command again: it goes on",
        )
    for other in found[1:]:
        if other.classes != found[0].classes:
            raise UserError(
                f"{other.name} was trained for the classes {', '.join(other.classes)}",
                f"those of {found[0].name}: {', '.join(found[0].classes)}",
                "choose between models of the same class list only",
            )
    return _once(_distinct(found)), notes


def _known_stages(paths: Sequence[Path], stages: str) -> None:
    """Refuse a name that no run has: a slip of the pen would leave out a candidate without a word."""
    runs = [settings for path in paths if (settings := _settings(path))]
    if stages in ("last", "all") or not runs:
        return
    known = {stage.name for run in runs for stage in run.stages if stage.method}
    for name in (name.strip() for name in stages.split(",")):
        if name not in known:
            told = f"no run has a stage {name}" if name else f"--stages {stages!r} names no stage"
            raise UserError(told, "last, all, or names of training stages by commas", nearest(name, known))


def candidate_at(folder: Path, settings: RunSettings | None, name: str) -> Candidate:
    """A model that is no candidate itself but what one came from.

    Raises:
        UserError: its config.json is damaged.
    """
    config = read_json(folder / "config.json")
    try:
        complete = bool(class_set(config).names and config["net"] and len(config["size"]) == 2 and config["sha256"])
    except (LookupError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"{folder / 'config.json'} is no model's", remedy="restore it, or train the stage again")
    if not (folder / "model.safetensors").exists():
        # Answers of it may be kept from an earlier call: what cannot be used must not be recommended.
        raise UserError(f"{folder / 'model.safetensors'} does not exist", remedy="restore it, or train the stage again")
    return Candidate(name, folder, config, settings)


def _settings(path: Path) -> RunSettings | None:
    file = path / "run.yaml"
    return validated(RunSettings, read_yaml(file), str(file)) if file.exists() else None


def _of_path(path: Path, stages: str, notes: list[str]) -> list[Candidate]:
    settings = _settings(path)
    if settings is None:
        folder = model_folder(path)
        stage = folder.parent if folder.name == "model" else folder
        around = _settings(stage.parent)
        found = candidate_at(folder, around, f"{stage.resolve().parent.name}/{stage.resolve().name}")
        if around is None:
            return [found]
        name = next((s.name for s in around.stages if stage_folder(stage.parent, around, s.name) == stage), None)
        return [_related(found, stage.parent, around, name)]
    trained = [stage for stage in settings.stages if stage.method]
    if stages == "last":
        trained = trained[-1:]
        if trained and _model_of(path, settings, trained[0].name) is None:
            raise UserError(
                f"{path} is not finished: {trained[0].name} has no model yet",
                "a finished run",
                "run its command again: it goes on; or choose between what there is: --stages all",
            )
    elif stages != "all":
        names = {name.strip() for name in stages.split(",")}
        trained = [stage for stage in trained if stage.name in names]
    return [c for stage in trained if (c := _of_stage(path, settings, stage, notes)) is not None]


def _of_stage(root: Path, settings: RunSettings, stage: StageSettings, notes: list[str]) -> Candidate | None:
    folder, name = _model_of(root, settings, stage.name), f"{root.resolve().name}/{stage.name}"
    if folder is None:
        notes.append(f"{name} is not finished and was left out")
        return None
    return _related(candidate_at(folder, settings, name), root, settings, stage.name)


def _model_of(root: Path, settings: RunSettings, stage: str) -> Path | None:
    folder = stage_folder(root, settings, stage) / "model"
    return folder if (folder / "config.json").exists() else None


def _related(candidate: Candidate, root: Path, settings: RunSettings, stage: str | None) -> Candidate:
    """With the models that it came from. Of a stage that was set aside (None) the run knows the source model alone."""
    before = stage or next((s.name for s in reversed(settings.stages) if s.method), None)
    while before is not None and (earlier := stage_before(settings, before)) is not None:
        before = earlier
    first = next((s for s in settings.stages if s.name == before and s.method == "source_only"), None)
    source = _model_of(root, settings, first.name) if first else None
    taught = _taught_by(settings, stage) if stage else None
    return replace(
        candidate,
        source=None if source == candidate.folder else source,
        teacher=_model_of(root, settings, taught) if taught else None,
    )


def _taught_by(settings: RunSettings, name: str) -> str | None:
    stages = {stage.name: stage for stage in settings.stages}
    stage = stages[name]
    labels = stage.soft_labels or stage.labels
    return stage.teacher or (stages[labels].init if labels in stages else None)


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """The same, with as many of the folders above in the names as tell apart those that would have the same one."""
    named: dict[str, set[Path]] = {}
    for candidate in found:
        named.setdefault(candidate.name, set()).add(candidate.folder.resolve())
    return [replace(c, name=_longer(c, named[c.name])) for c in found]


def _longer(candidate: Candidate, twins: set[Path]) -> str:
    """The name of a candidate, longer where the folders of several share it."""
    if len(twins) == 1:
        return candidate.name
    own = candidate.folder.resolve()
    depths = range(1, len(own.parts))
    depth = next((d for d in depths if len({_above(twin, d) for twin in twins}) == len(twins)), depths[-1])
    return f"{_above(own, depth)}/{candidate.name}"


def _above(folder: Path, depth: int) -> str:
    """Some folders above the one that the name of a model in `folder` begins with."""
    stage = folder.parent if folder.name == "model" else folder
    return "/".join(stage.parent.parent.parts[-depth:])


def _once(found: list[Candidate]) -> list[Candidate]:
    """One candidate for each weights: hard-linked stages of several runs are the same model."""
    by_key: dict[tuple[str, str, str], Candidate] = {}
    for candidate in found:
        first = by_key.get(candidate.key)
        if first is None:
            by_key[candidate.key] = candidate
        elif first.folder.resolve() != candidate.folder.resolve():
            by_key[candidate.key] = replace(first, also=(*first.also, candidate.name))
    return list(by_key.values())
