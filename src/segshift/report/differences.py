"""What differs between runs that are shown side by side: how they were measured, how they were trained, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from segshift.report import values
from segshift.report.chain import result_of, steps_to
from segshift.report.reading import Run

Named = Sequence[tuple[str, Run]]
"""Runs with the names under which they are shown."""

MOST = 80
"""Settings that are listed at most."""


def measured_unlike(runs: Named) -> list[str]:
    """Why the figures of these runs do not measure the same thing, if they do not."""
    measured = [(name, run, run.scores) for name, run in runs if run.scores]
    warnings = []
    if len({scores.classes for _, _, scores in measured}) > 1:
        warnings.append("The runs have different classes: their mIoU are means over different things.")
    # The same data lies elsewhere on another machine: only the last two folders of its path count.
    if len({_folder(scores.domain) for _, _, scores in measured}) > 1:
        of = ", ".join(f"{name} on {scores.domain}" for name, _, scores in measured)
        warnings.append(f"The runs were measured on different domains ({of}).")
    counts = {}
    for name, _, scores in measured:
        model = scores.adapted or scores.control
        if model and model.images is not None:
            counts[name] = model.images
    if len(set(counts.values())) > 1:
        warnings.append(f"The runs were measured on different numbers of images ({_listed(counts)}).")
    roots = {_folder(values.text(_root(run, "val"))) for _, run, _ in measured} - {""}
    if len(roots) > 1:
        warnings.append(f"The labelled images come from different folders ({', '.join(sorted(roots))}).")
    sizes = _known((name, run.settings.get("size")) for name, run, _ in measured)
    if len(set(sizes.values())) > 1:
        warnings.append(f"Images enter the networks in different sizes ({_listed(sizes)}).")
    ways = _known((name, run.settings.get("evaluation")) for name, run, _ in measured)
    if len(set(ways.values())) > 1:
        warnings.append(f"The runs were evaluated in different ways ({_listed(ways)}).")
    return warnings


def trained_unlike(runs: Named) -> list[str]:
    """What else than the method tells the runs apart: seeds, steps, training images."""
    warnings = []
    seeds = _known((name, seed_of(run)) for name, run in runs)
    if len(set(seeds.values())) > 1:
        warnings.append(f"The seeds differ ({_listed(seeds)}): two seeds of one method differ by points too.")
    steps = {name: count for name, run in runs if (count := steps_to(run, result_of(run))) is not None}
    if len(set(steps.values())) > 1:
        warnings.append(
            f"The results took different numbers of training steps ({_listed(steps)}): compare gains, each over its own"
            " control that trained as long."
        )
    for role, what in (("source", "source"), ("target", "target")):
        roots = _known((name, _folder(values.text(_root(run, role)))) for name, run in runs)
        if len(set(roots.values())) > 1:
            warnings.append(f"The {what} images come from different folders ({_listed(roots)}).")
    networks = _known((name, values.mapping(run.settings.get("net")).get("name")) for name, run in runs)
    if len(set(networks.values())) > 1:
        warnings.append(f"The networks differ ({_listed(networks)}).")
    return warnings


def seed_of(run: Run) -> str:
    """The seed of a run; empty: not known."""
    return values.text(run.settings.get("seed"), values.text(run.environment.get("seed")))


def _known(entries: Any) -> dict[str, str]:
    return {name: said for name, value in entries if (said := _spelled(value))}


def _spelled(value: object) -> str:
    return values.spelled(value) if value not in (None, "", {}, []) else ""


def _listed(entries: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in entries.items())


def _folder(path: str) -> str:
    return "/".join(PurePath(path).parts[-2:])


def _root(run: Run, role: str) -> object:
    for place in (
        values.mapping(run.environment.get("domains")),
        run.settings,
        values.mapping(run.settings.get("data")),
    ):
        if root := values.mapping(place.get(role)).get("root"):
            return root
    return None


# ---- settings


@dataclass(frozen=True)
class SettingRow:
    """A setting that not all runs have alike; empty: the run has no such setting."""

    name: str
    values: tuple[str, ...]


WITHOUT_EFFECT = frozenset(
    {"about", "workers", "cache", "checkpoint_every", "log_every", "validate_every", "panels", "command"}
)
"""Settings that change no figure."""


def setting_rows(runs: Sequence[Run]) -> tuple[list[SettingRow], int]:
    """Settings that differ, in the order of the runs' files, at most `MOST`; and how many more there are.

    A stage or a domain that only some of the runs have is one line.
    """
    parts = [_parts(run) for run in runs]
    rows = []
    for part in dict.fromkeys(part for one in parts for part in one):
        if all(part in one for one in parts):
            names = dict.fromkeys(name for one in parts for name in one[part])
            rows += [SettingRow(part + name, tuple(one[part].get(name, "") for one in parts)) for name in names]
        else:
            rows.append(SettingRow(part.rstrip(":. "), tuple(_brief(one.get(part)) for one in parts)))
    differing = [row for row in rows if len(set(row.values)) > 1]
    return differing[:MOST], max(0, len(differing) - MOST)


BRIEF: Mapping[str, str] = {"method": "", "produce": "", "root": "", "steps": " steps"}
"""What is said of a part that not all runs have, and its unit."""


def _brief(part: Mapping[str, str] | None) -> str:
    said = [part[name] + unit for name, unit in BRIEF.items() if part.get(name, "0") != "0"] if part else []
    return ", ".join(said) or ("yes" if part else "")


def _parts(run: Run) -> dict[str, dict[str, str]]:
    """The settings of a run by their part: "" for what is of no part, domains, and stages by their name, but the
    control and the last one by their role.

    So the last stages of two methods, whatever they are called, stand in the same lines.
    """
    found: dict[str, dict[str, str]] = {"": {}}
    for key, value in run.settings.items():
        if key in ("source", "target", "val", "truth"):
            if values.mapping(value):
                _flatten("", value, found.setdefault(f"{key}.", {}))
        elif key not in WITHOUT_EFFECT and key not in ("stages", "control"):
            _flatten(key, value, found[""])
    stages = [values.mapping(stage) for stage in values.sequence(run.settings.get("stages"))]
    control = values.text(run.settings.get("control"))
    for place, stage in enumerate(stages, 1):
        name = values.text(stage.get("name"), f"stage {place}")
        role = "result" if place == len(stages) else "control" if name == control else name
        part = found.setdefault(f"{role}: ", {})
        for key, value in stage.items():
            if key not in ("name", "purpose"):
                _flatten("" if key == "settings" else key, value, part)
    return found


def _flatten(name: str, value: object, found: dict[str, str], depth: int = 0) -> None:
    inner = values.mapping(value)
    if not inner or depth > 6:
        if (said := _spelled(value)) or isinstance(value, bool):
            found[name] = said or str(value)
        return
    for key, each in inner.items():
        _flatten(f"{name}.{key}" if name else key, each, found, depth + 1)
