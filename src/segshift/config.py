"""Settings of a run: typed, complete, unknown keys refused with the nearest known one.

A run's settings are a recipe (what to do) with the user's data (where it lies) and single values on top.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segshift.artefacts.plain_yaml import parse_yaml
from segshift.data.domains import DomainSettings
from segshift.data.strong import StrongSettings
from segshift.engine.inference import Options
from segshift.errors import UserError, nearest
from segshift.nets.weights import LayoutName


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetSettings(_Settings):
    """Which network, and what it starts from."""

    name: str = "deeplab_lite"
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the network's builder")
    checkpoint: Path | None = Field(None, description="published weights to start from; needs `layout`")
    layout: LayoutName | None = Field(None, description="key layout of `checkpoint`: see segshift.nets.weights")

    @model_validator(mode="after")
    def _pair(self) -> NetSettings:
        _check_pair(self.checkpoint, self.layout)
        return self


class StageNetSettings(_Settings):
    """A stage's own network. Without `name`, what is not said is that of the network it would have otherwise (of its
    `init`, or the run's), options one by one; with it, all is as it stands here."""

    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the network's builder")
    checkpoint: Path | None = Field(None, description="published weights to start from; needs `layout`")
    layout: LayoutName | None = Field(None, description="key layout of `checkpoint`: see segshift.nets.weights")

    @model_validator(mode="after")
    def _pair(self) -> StageNetSettings:
        _check_pair(self.checkpoint, self.layout)
        return self


def _check_pair(checkpoint: Path | None, layout: LayoutName | None) -> None:
    if (checkpoint is None) != (layout is None):
        raise ValueError("`net.checkpoint` and `net.layout` go together: set both, or none")


Product = Literal["pseudo_labels", "soft_labels", "prototypes"]


class AugmentSettings(_Settings):
    """Random changes of a training image. Defaults: none, as in the AdaptSegNet and ADVENT releases."""

    crop: tuple[int, int] | None = Field(
        None, description="width, height in pixels of the working size; None: whole image"
    )
    scale: tuple[float, float] = Field((1.0, 1.0), description="random scale before the crop")
    flip: bool = False
    jitter: float = Field(0.0, ge=0, le=1, description="strength of the colour jitter")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    mine: float = Field(
        0.0, ge=0, le=1, description="patch mining: probability that a pseudo-labelled image is cropped at a rare class"
    )
    mine_below: float = Field(1e-3, ge=0, le=1, description="share of the pixels below which a class is rare (CBST)")
    mine_rarest: int = Field(3, ge=0, description="where none is: so many of the rarest (CBST 3, CRST 0)")

    def view(self) -> dict[str, Any]:
        """What of this is a matter of the view alone."""
        return self.model_dump(exclude={"mine_below", "mine_rarest"})

    @field_validator("crop")
    @classmethod
    def _large_enough(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 32:
            raise ValueError(f"crops of {value[0]}x{value[1]} pixels are too small: 32 a side at least")
        return value

    @field_validator("scale")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("a range is (low, high) with 0 < low <= high")
        return value


class StageSettings(_Settings):
    """One stage: it trains (a method, for how long, from which weights) or it produces (labels, by which network)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    method: str | None = Field(None, description="what a training stage trains by")
    produce: Product | None = Field(None, description="what any other stage makes")
    steps: int = Field(0, ge=0, description="of a training stage")
    purpose: str = Field("", description="what the stage is for, one sentence; empty: what its method is for")
    init: str | None = Field(
        None, description="earlier stage whose network this one starts from or labels with; None: `net`"
    )
    net: StageNetSettings | None = Field(
        None, description="a training stage's own network; None: that of `init`, or the run's"
    )
    labels: str | None = Field(None, description="earlier stage whose pseudo-labels this one trains on")
    soft_labels: str | None = Field(None, description="earlier stage whose soft labels this one trains on")
    prototypes: str | None = Field(None, description="earlier stage whose prototypes this one starts from")
    teacher: str | None = Field(None, description="earlier training stage whose network this one learns from")
    weak_images: int | None = Field(
        None, ge=0, description="learn from the weak labels of so many images only, a seeded choice; None: of all"
    )
    batch_size: int | None = Field(None, gt=0, description="instead of the run's, in this stage")
    source_augment: AugmentSettings | None = Field(None, description="instead of the run's, in this stage")
    target_augment: AugmentSettings | None = Field(None, description="instead of the run's, in this stage")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the method, or of the labels")

    @model_validator(mode="after")
    def _one_kind(self) -> StageSettings:
        if (self.method is None) == (self.produce is None):
            raise ValueError(f"stage {self.name!r} needs either `method` (it trains) or `produce` (it makes labels)")
        if self.method is not None and not self.steps:
            raise ValueError(f"stage {self.name!r}: steps must be at least 1")
        fields = type(self).model_fields
        wrong = [key for key in (*_OF_TRAINING, *TAKES) if getattr(self, key) != fields[key].default]
        if self.produce is not None and wrong:
            raise ValueError(f"stage {self.name!r} makes {self.produce}: it takes no {' or '.join(wrong)}")
        if self.produce is not None and self.init is None:
            raise ValueError(f"stage {self.name!r}: `init` must name the stage whose network makes the labels")
        if self.init is not None and self.net is not None and self.net.checkpoint is not None:
            both = f"{self.init} (`init`) and the file {self.net.checkpoint} (`net.checkpoint`)"
            raise ValueError(f"stage {self.name!r} cannot start from {both}; leave one of them out")
        return self

    @property
    def uses(self) -> dict[str, str]:
        """Earlier stages that this one builds on besides `init`, by what it takes from them."""
        taken = {kind: getattr(self, kind) for kind in TAKES}
        return {kind: name for kind, name in taken.items() if name is not None}


_OF_TRAINING = ("steps", "net", "weak_images", "batch_size", "source_augment", "target_augment")
"""Settings that a stage which produces has no use for, besides those of `TAKES`."""

TAKES = {"labels": "pseudo_labels", "soft_labels": "soft_labels", "prototypes": "prototypes", "teacher": None}
"""Settings of a stage that name another one, and what that one must produce; None: it must train."""


class AblationRow(_Settings):
    """A row of the ablation table."""

    stage: str = Field(description="training stage whose network is measured")
    name: str = Field("", description="what the row adds to the row above it, for the table; empty: the stage's name")

    @property
    def title(self) -> str:
        """What people read in the table."""
        return " ".join(self.name.split()) or self.stage


class RunSettings(_Settings):
    """All settings of a run."""

    about: str = Field("", description="what this recipe is, one sentence")
    classes: Path | None = Field(None, description="class list: YAML, JSON or a name a line")
    source: DomainSettings | None = None
    target: DomainSettings | None = None
    val: DomainSettings | None = Field(None, description="labelled part of the target domain, for evaluation only")
    weak: Path | None = Field(None, description="file of weak labels of the target's images, tags and points")
    truth: DomainSettings | None = Field(
        None, description="labelled images to measure pseudo-labels on, after training; None: those of `val`"
    )

    size: tuple[int, int] | Literal["auto"] = Field(
        "auto", description="width, height that target images are resized to; auto: their shape at about 77,000 pixels"
    )
    source_size: tuple[int, int] | None = Field(None, description="the same for source images; None: as `size`")
    source_augment: AugmentSettings = AugmentSettings()
    target_augment: AugmentSettings = AugmentSettings()
    strong: StrongSettings = Field(StrongSettings(), description="strong views, for methods that ask for them")
    net: NetSettings = NetSettings()
    stages: tuple[StageSettings, ...] = ()
    control: str | None = Field(None, description="stage whose network the verdict compares with; None: no control")
    ablation: tuple[AblationRow, ...] = Field(
        (), description="stages to measure and to compare row by row; the first is what all others are compared with"
    )
    average: tuple[str, ...] = Field((), description="training stages to measure as one model too, logits averaged")
    evaluation: Options = Options()

    batch_size: int = Field(4, gt=0, description="images of each domain in a step")
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the processor has it")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; None: no clipping")
    workers: int = Field(1, ge=0, description="processes that read images; changes no result")
    cache: bool = Field(False, description="keep resized images on disk; changes no result")
    checkpoint_every: int = Field(100, gt=0)
    keep_checkpoints: bool = Field(
        False, description="keep checkpoint.pt (optimisers, discriminators, teachers) of finished stages"
    )
    log_every: int = Field(5, gt=0)
    validate_every: int = Field(0, ge=0, description="steps between points of the mIoU curve; 0: no curve")
    panels: int = Field(8, ge=0, description="pictures in the report")

    @field_validator("size", "source_size")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        if isinstance(value, tuple) and min(value) < 32:
            raise ValueError(f"images of {value[0]}x{value[1]} pixels are too small: 32 a side at least")
        return value

    @model_validator(mode="after")
    def _stages_fit(self) -> RunSettings:
        seen: list[str] = []
        made: dict[str, str] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            if stage.name in type(self).model_fields:
                raise ValueError(f"a stage cannot be called {stage.name!r}: that is a setting's name")
            trained = [name for name in seen if name not in made]
            if stage.init is not None and stage.init not in trained:
                hint = nearest(stage.init, trained)
                raise ValueError(f"stage {stage.name!r}: init {stage.init!r} is no earlier training stage; {hint}")
            for kind, name in stage.uses.items():
                fitting = [known for known in seen if made.get(known) == TAKES[kind]]
                if name not in fitting:
                    wanted = f"stage that produces {TAKES[kind]}" if TAKES[kind] else "training stage"
                    raise ValueError(
                        f"stage {stage.name!r}: {kind} {name!r} is no earlier {wanted}; {nearest(name, fitting)}"
                    )
            seen.append(stage.name)
            made |= {stage.name: stage.produce} if stage.produce else {}
        if self.control is not None and self.control not in [name for name in seen if name not in made]:
            raise ValueError(f"control {self.control!r} is no training stage; {nearest(self.control, seen)}")
        for name in self.average:
            if name not in seen or name in made:
                raise ValueError(f"average: {name!r} is no training stage; {nearest(name, seen)}")
        if seen and seen[-1] in made:
            raise ValueError(f"the last stage, {seen[-1]!r}, makes {made[seen[-1]]}; a training stage must follow")
        return self

    @model_validator(mode="after")
    def _ablation_fits(self) -> RunSettings:
        made = {stage.name: stage.produce for stage in self.stages if stage.produce}
        free = [stage.name for stage in self.stages if stage.method]
        for row in self.ablation:
            if row.stage in made:
                raise ValueError(
                    f"ablation: {row.stage!r} makes {made[row.stage]}, no network; {nearest(row.stage, free)}"
                )
            if row.stage not in free:
                known = any(row.stage == stage.name for stage in self.stages)
                wrong = "has two rows" if known else "is no training stage"
                raise ValueError(f"ablation: {row.stage!r} {wrong}; {nearest(row.stage, free)}")
            free.remove(row.stage)
        titles = [row.title for row in self.ablation]
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise ValueError(f"ablation: two rows are called {twice!r}; give each a `name` of its own")
        if len(titles) == 1:
            raise ValueError(f"ablation: its one row, {titles[0]!r}, is compared with nothing; name a second stage")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"settings file {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"settings file {path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"settings file {path} is not YAML: {error}", remedy="mend the line it names") from error
    if not isinstance(content, dict | None):
        raise UserError(f"settings file {path} holds a {type(content).__name__}", "`key: value` lines")
    return content or {}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mappings key by key; everything else is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def apply_set(settings: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` assignments, values in YAML. `STAGE.key` reaches a stage by its name, and the settings of its
    method where `key` is none of the stage's own.

    Raises:
        UserError: an assignment has no `=`, or leads through something that is no mapping.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}", "KEY=VALUE, as in --set seed=1 or --set advent.steps=500")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"--set {assignment}: {text!r} is no YAML value: {error}") from error
        path = key.strip().split(".")
        declared = settings.get("stages")
        stages = list(declared) if isinstance(declared, list | tuple) else []
        names = [stage.get("name") if isinstance(stage, Mapping) else None for stage in stages]
        if path[0] in names:
            stage, rest = names.index(path[0]), path[1:]
            if not rest:
                raise UserError(f"--set {assignment} names a stage alone", f"a key, as in --set {path[0]}.steps=500")
            if rest[0] not in StageSettings.model_fields:
                rest = ["settings", *rest]
            stages[stage] = _assigned(stages[stage], rest, value, assignment)
            settings = {**settings, "stages": stages}
        else:
            settings = _assigned(settings, path, value, assignment)
    return settings


def _assigned(mapping: Mapping[str, Any], path: list[str], value: Any, assignment: str) -> dict[str, Any]:
    if len(path) == 1:
        return {**mapping, path[0]: value}
    inner = mapping.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise UserError(f"--set {assignment}: {path[0]} is a single value, it has no key {path[1]!r}")
    return {**mapping, path[0]: _assigned(inner, path[1:], value, assignment)}


Model = TypeVar("Model", bound=BaseModel)

SHOWN = 5
"""Wrong settings that one message names."""


def validated(model: type[Model], content: Mapping[str, Any], where: str, others: Collection[str] = ()) -> Model:
    """`content` as a `model`.

    Args:
        where: what is being read, for messages ("run.yaml", "stage advent").
        others: keys beside the model's own that may have been meant.

    Raises:
        UserError: lists every key that is unknown (with the nearest known one) or whose value does not fit.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explained(model, problem, others) for problem in error.errors(include_url=False)]
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
        raise UserError(f"{where}: " + "\n".join(lines), remedy="mend these settings and run again") from error


def _explained(model: type[BaseModel], problem: Any, others: Collection[str]) -> str:
    location = [part for part in problem["loc"] if not str(part).startswith(("function-", "tuple[", "literal["))]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known = [*_fields_at(model, location[:-1]), *(others if len(location) == 1 else ())]
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
        return f"unknown setting {key!r}; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    if problem["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {message} (found {problem['input']!r})"


def _fields_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Names of the settings at a place inside `model`."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        current = _model_in(field.annotation)
    return sorted(current.model_fields) if hasattr(current, "model_fields") else []


def _model_in(annotation: Any) -> Any:
    """The settings class inside an annotation such as `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)
