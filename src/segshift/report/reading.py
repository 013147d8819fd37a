"""A run folder as it lies on the disk, read so that a missing or damaged part costs only itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segshift.artefacts.plain_yaml import parse_yaml
from segshift.errors import UserError
from segshift.report.files import Colour, inside, load, palette, short, stage_folders
from segshift.report.labels import Labels, read_labels
from segshift.report.stages import LABELS, Stage, read_stage
from segshift.report.values import fraction, mapping, number, sequence, text, whole

KINDS: Mapping[str, str] = {
    "image": "Image",
    "control": "Source-only",
    "adapted": "Adapted",
    "entropy": "Entropy",
    "truth": "Ground truth",
}
"""The pictures of a panel, in the order in which they are shown."""


@dataclass(frozen=True)
class Model:
    """What one model scored; fractions in [0, 1], None where a value does not exist (class absent from the truth)."""

    name: str
    iou: tuple[float | None, ...]
    shares: tuple[float | None, ...]
    miou: float | None
    miou16: float | None
    miou13: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    images: int | None


Recorded = Literal["helped", "same", "hurt"]
RECORDED: tuple[Recorded, ...] = ("helped", "same", "hurt")
"""Verdicts that a run can have recorded."""


@dataclass(frozen=True)
class Part:
    """A row of metrics.json's ablation: a stage, what it adds, and the 95 % interval of what it gains over the row
    above it; None: not known, or none."""

    stage: str
    name: str
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Scores:
    """metrics.json: K classes with their colours, and the models measured on one labelled domain.

    `class_intervals` are the 95 % intervals of each class's gain over the images; empty: not known.
    """

    domain: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    control: Model | None
    adapted: Model | None
    others: tuple[Model, ...]
    verdict: str
    helped: bool | None
    state: Recorded | None
    interval: tuple[float, float] | None
    ablation: tuple[Part, ...] = ()
    class_intervals: tuple[tuple[float, float] | None, ...] = ()

    @property
    def gain(self) -> float | None:
        """mIoU of the adapted model minus that of the control, a fraction."""
        before = self.control.miou if self.control else None
        after = self.adapted.miou if self.adapted else None
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Sure:
    """How sure a model is of one image: its maps (`entropy`, `confidence`), and their means over the image."""

    model: str
    files: Mapping[str, Path]
    means: Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    """Pictures of one image, by the keys of `KINDS`; only files that lie inside panels/.

    Attributes:
        sure: the model before adaptation, where there is one, and the result; none in runs of older versions.
    """

    name: str
    caption: str
    files: Mapping[str, Path]
    control_miou: float | None
    adapted_miou: float | None
    sure: tuple[Sure, ...] = ()


@dataclass(frozen=True)
class Run:
    """Everything a report is made from, and in `problems` what could not be read."""

    path: Path
    name: str
    settings_text: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Scores | None
    stages: tuple[Stage, ...]
    labels: tuple[Labels, ...]
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Colour], ...]
    problems: tuple[str, ...]

    @property
    def adapts(self) -> bool:
        """Whether the run went beyond training on the source alone."""
        methods = [stage.method for stage in self.stages if stage.method]
        return not methods or any(method != "source_only" for method in methods)

    @property
    def control(self) -> str:
        """Name of the stage that the result is compared with; empty: none."""
        if self.scores is not None:
            return self.scores.control.name if self.scores.control else ""
        return text(self.settings.get("control"))

    @property
    def unfinished(self) -> bool:
        """Whether a stage did not end, or none has begun."""
        return not self.stages or not all(stage.finished for stage in self.stages)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Args:
        path: the folder that `segshift adapt` wrote.

    Raises:
        UserError: there is no such folder, or nothing in it is of a run.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", "the folder of a run", "give the folder that adapt wrote with --out")
    if not path.is_dir():
        raise UserError(f"{path} is a file", "the folder of a run", "give the folder that adapt wrote with --out")
    problems: list[str] = []
    settings_text, settings = _settings(path / "run.yaml", problems)
    environment = mapping(load(path, "env.json", problems))
    metrics = load(path, "metrics.json", problems) if (path / "metrics.json").exists() else None
    scores = None if metrics is None else _scores(metrics, problems)
    planned = {text(entry.get("name")): entry for entry in map(mapping, sequence(settings.get("stages")))}
    stages = tuple(read_stage(folder, planned, problems) for folder in stage_folders(path))
    legend = _legend(path, scores, problems)
    labels = tuple(read_labels(path, stage, legend, problems) for stage in stages if stage.kind == LABELS)
    panels = _panels(path, scores, problems) if (path / "panels").is_dir() else ()
    if not settings_text and not stages and scores is None and not panels:
        raise UserError(
            f"{path} holds nothing of a run",
            "run.yaml, metrics.json or stage folders such as 01-source",
            "give the folder that adapt wrote with --out; if the run has only just begun, wait for its first stage",
        )
    return Run(
        path=path,
        name=path.resolve().name or "run",
        settings_text=settings_text,
        settings=settings,
        environment=environment,
        scores=scores,
        stages=stages,
        labels=labels,
        panels=panels,
        legend=legend,
        problems=tuple(problems),
    )


def _settings(path: Path, problems: list[str]) -> tuple[str, Mapping[str, Any]]:
    if not path.exists():
        problems.append("run.yaml is missing: the settings are not known")
        return "", {}
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"run.yaml cannot be read ({error.strerror or error})")
        return "", {}
    try:
        return content, mapping(parse_yaml(content))
    except ValueError as error:
        problems.append(f"run.yaml is not valid YAML ({str(error).splitlines()[0]})")
        return content, {}


def _model(name: str, value: object, classes: tuple[str, ...]) -> Model:
    data = mapping(value)
    iou = data.get("iou")
    by_name = mapping(iou)
    values = [by_name.get(name) for name in classes] if by_name else list(sequence(iou))
    per_class = [fraction(item) for item in values[: len(classes)]]
    rows = [[number(cell) or 0.0 for cell in sequence(row)] for row in sequence(data.get("confusion"))]
    pixels = [sum(row) for row in rows[: len(classes)]]
    total = sum(pixels)
    shares = [count / total for count in pixels] if total > 0 and len(pixels) == len(classes) else []
    return Model(
        name=name,
        iou=tuple(per_class + [None] * (len(classes) - len(per_class))),
        shares=tuple(shares or [None] * len(classes)),
        miou=fraction(data.get("miou")),
        miou16=fraction(data.get("miou16")),
        miou13=fraction(data.get("miou13")),
        pixel_accuracy=fraction(data.get("pixel_accuracy")),
        mean_accuracy=fraction(data.get("mean_accuracy")),
        images=whole(data.get("images")),
    )


def _scores(value: object, problems: list[str]) -> Scores | None:
    data = mapping(value)
    if not mapping(data.get("models")):
        problems.append("metrics.json holds no models")
        return None
    classes = tuple(text(name, "?") for name in sequence(data.get("classes")))
    models = {name: _model(name, item, classes) for name, item in mapping(data.get("models")).items()}
    control, adapted = models.get(text(data.get("control"))), models.get(text(data.get("adapted")))
    for model in models.values():
        if model.miou is None:
            problems.append(f"metrics.json has no mIoU in [0, 1] for {model.name}")
    verdict = mapping(data.get("verdict"))
    helped = verdict.get("helped")
    return Scores(
        domain=short(text(data.get("domain"), "the labelled part")),
        classes=classes,
        palette=palette(data.get("palette"), len(classes)),
        control=control,
        adapted=adapted if adapted is not control else None,
        others=tuple(model for model in models.values() if model is not control and model is not adapted),
        verdict=text(verdict.get("text")),
        helped=helped if isinstance(helped, bool) else None,
        state=next((state for state in RECORDED if state == verdict.get("state")), None),
        interval=_interval(verdict.get("interval")),
        ablation=_ablation(data.get("ablation"), models, problems),
        class_intervals=_intervals(data.get("gain_intervals"), len(classes)),
    )


def _ablation(value: object, models: Mapping[str, Model], problems: list[str]) -> tuple[Part, ...]:
    parts = []
    for entry in map(mapping, sequence(value)):
        stage = text(entry.get("stage"))
        if stage not in models:
            problems.append(f"metrics.json has no figures of {stage or 'a nameless stage'}, a row of its ablation")
        parts.append(Part(stage, text(entry.get("name"), stage or "?"), _interval(entry.get("interval"))))
    return tuple(parts)


def _interval(value: object) -> tuple[float, float] | None:
    bounds = [number(bound) for bound in sequence(value)]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return bounds[0], bounds[1]


def _intervals(value: object, classes: int) -> tuple[tuple[float, float] | None, ...]:
    found = tuple(_interval(bounds) for bounds in sequence(value))
    return found if len(found) == classes else ()


def _legend(run: Path, scores: Scores | None, problems: list[str]) -> tuple[tuple[str, Colour], ...]:
    """Classes and their colours; a run without a labelled part has them beside its models."""
    if scores is not None:
        return tuple(zip(scores.classes, scores.palette, strict=True))
    for folder in reversed(stage_folders(run)):
        if (folder / "model" / "config.json").exists():
            described = mapping(load(run, f"{folder.name}/model/config.json", problems)).get("classes")
            names = tuple(text(name, "?") for name in sequence(mapping(described).get("names")))
            return tuple(zip(names, palette(mapping(described).get("palette"), len(names)), strict=True))
    return ()


def _panels(run: Path, scores: Scores | None, problems: list[str]) -> tuple[Panel, ...]:
    home = run / "panels"
    panels: list[Panel] = []
    for position, item in enumerate(sequence(load(run, "panels/index.json", problems))):
        entry = mapping(item)
        files: dict[str, Path] = {}
        for kind in KINDS:
            if not (name := text(entry.get(kind))):
                continue
            if path := inside(home, name, f"panels/{name}", problems):
                files[kind] = path
        if not files:
            continue
        miou = mapping(entry.get("miou"))
        control = scores.control.name if scores and scores.control else "control"
        adapted = scores.adapted.name if scores and scores.adapted else "adapted"
        panels.append(
            Panel(
                name=text(entry.get("name"), f"panel {position}"),
                caption=text(entry.get("caption")),
                files=files,
                control_miou=fraction(miou.get("control", miou.get(control))),
                adapted_miou=fraction(miou.get("adapted", miou.get(adapted))),
                sure=_sure(home, entry.get("certainty"), problems),
            )
        )
    return tuple(panels)


MAPS: Mapping[str, str] = {"entropy": "Entropy", "confidence": "Confidence"}
"""The maps of how sure a model is."""


def _sure(home: Path, value: object, problems: list[str]) -> tuple[Sure, ...]:
    found = []
    for entry in map(mapping, sequence(value)[:2]):
        files = {
            kind: path
            for kind in MAPS
            if (name := text(entry.get(kind))) and (path := inside(home, name, f"panels/{name}", problems))
        }
        means = {kind: mean for kind in MAPS if (mean := fraction(entry.get(f"mean_{kind}"))) is not None}
        if files:
            found.append(Sure(text(entry.get("model"), "?"), files, means))
    return tuple(found)
