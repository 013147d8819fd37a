"""What the command line and Python programs call: adapt, check, evaluate, predict, load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segshift import checking, recipes
from segshift.config import RunSettings, apply_set, merge, read_yaml, validated
from segshift.data.classes import read_classes
from segshift.data.domains import DomainSettings, open_domain
from segshift.engine.at_points import count_points
from segshift.engine.evaluate import evaluate as evaluate_nets
from segshift.engine.inference import Options
from segshift.engine.metrics import Metrics
from segshift.engine.model import Model, load_model, model_folder
from segshift.engine.point_estimate import estimate
from segshift.engine.point_result import PointEstimate
from segshift.engine.predict import Predicted, predict_folder
from segshift.engine.progress import console, track
from segshift.errors import UserError, nearest
from segshift.feature_pictures import Asked, draw_features
from segshift.methods import METHODS
from segshift.outcome import finish
from segshift.report import build_report
from segshift.run import Run
from segshift.setup import devices, has_bf16, keep_apart, locked, open_domains
from segshift.supervision import read_weak_labels
from segshift.weak.matching import match
from segshift.weak.store import WeakStore

StrPath = str | Path


def _say(text: str) -> None:
    console().print(text)


@dataclass(frozen=True)
class Adapted:
    """A finished run.

    Attributes:
        root: its folder.
        report: the HTML file to open.
        verdict: {"text", "gain", "helped"} against the stage that `control` names; None without a
            labelled part.
    """

    root: Path
    report: Path
    verdict: dict[str, Any] | None

    def model(self) -> Model:
        """The adapted model."""
        return load_model(self.root)


def compose(
    config: StrPath | None = None,
    *,
    recipe: str | None = None,
    method: str | None = None,
    data: StrPath | None = None,
    source: StrPath | None = None,
    target: StrPath | None = None,
    val: StrPath | None = None,
    classes: StrPath | None = None,
    weak: StrPath | None = None,
    set: Sequence[str] = (),
    control: bool = True,
) -> RunSettings:
    """Settings of a run: recipe ← settings file ← data file ← single arguments ← `set`, the later over the earlier.

    Args:
        config: YAML with any settings, such as an earlier run's run.yaml.
        recipe: name of a recipe; by default that of `method` for small machines.
        method: short for the recipe `cpu/METHOD`.
        data: YAML that says where the data lies: classes, source, target, val.
        source, target, val: folders; val is a labelled part of the target, for evaluation only.
        classes, weak: files: the class list; weak labels of the target's images.
        set: assignments such as "advent.steps=500".
        control: False leaves the source-only control out of the comparison, and out of the training where no stage
            starts from it.

    Raises:
        UserError: a file, a name or a value is wrong.
    """
    content: dict[str, Any] = read_yaml(Path(config)) if config else {}
    if method is not None:
        if recipe is not None:
            raise UserError(
                f"both a method, {method}, and a recipe, {recipe}, are given",
                "one of them: --method NAME is short for --recipe cpu/NAME",
                "leave one out",
            )
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        recipe = f"cpu/{method}"
    if recipe is not None and content.get("stages"):
        raise UserError(
            f"{config} has stages of its own, which the recipe {recipe} cannot replace",
            remedy="leave out --method and --recipe, or take the data alone from a file with --data",
        )
    if recipe is not None:
        content = merge(recipes.read(recipe), content)
    if data is not None:
        content = merge(content, read_yaml(Path(data)))
    for part, root in (("source", source), ("target", target), ("val", val)):
        if root is not None:
            content = merge(content, {part: {"root": str(root)}})
    for part, file in (("classes", classes), ("weak", weak)):
        if file is not None:
            content[part] = str(file)
    content = apply_set(content, list(set))
    files = [str(origin) for origin in (config or recipe, data) if origin]
    settings = validated(RunSettings, content, " with ".join([*files, *(["--set"] if set else [])]) or "settings")
    return settings if control else _without_control(settings)


def _without_control(settings: RunSettings) -> RunSettings:
    """The same run with no control in the comparison, and without its training where nothing needs it."""
    needed = {stage.init for stage in settings.stages} | {stage.name for stage in settings.stages[-1:]}
    needed |= {row.stage for row in settings.ablation} | set(settings.average)
    stages = tuple(s for s in settings.stages if s.name != settings.control or s.name in needed)
    return settings.model_copy(update={"control": None, "stages": stages})


def adapt(
    out: StrPath,
    config: StrPath | None = None,
    *,
    device: str = "auto",
    say: Callable[[str], None] = _say,
    **settings: Any,
) -> Adapted:
    """Run all stages of a recipe, evaluate, and write the report. The same call again resumes.

    Args:
        out: the run's folder.
        config, settings: see `compose`.
        device: auto, cpu, cuda or cuda:N.
        say: prints a line for people.

    Raises:
        UserError: before the first step where possible; what was computed is kept.
        segshift.errors.Interrupted: stopped by Ctrl-C or SIGTERM; the state is saved.
    """
    root = Path(out)
    run = Run(compose(config, **settings), root, devices(device), say)
    with run.lock():
        run.train()
        verdict = finish(run)
    return Adapted(root, root / "report.html", verdict)


def check(out: StrPath, config: StrPath | None = None, **settings: Any) -> checking.Checked:
    """Read all data as training will, and write a contact sheet and class histograms into `out`.

    Args:
        out: folder for the pictures.
        config, settings: see `compose`.
    """
    composed = compose(config, **settings)
    try:
        domains = open_domains(composed)
        keep_apart(Path(out), domains)
        read_weak_labels(composed, domains)
    except UserError as error:
        return checking.Checked([error], [], [], [])
    return checking.check(domains, Path(out), composed.workers)


def load(path: StrPath, device: str = "auto") -> Model:
    """A trained model: `segshift.load("runs/x").predict("image.jpg")`.

    Args:
        path: a run, one of its stages, or a folder with model.safetensors and config.json.
    """
    return load_model(Path(path), devices(device))


def _ensemble(paths: Sequence[StrPath], device: str) -> tuple[list[Model], Any]:
    """Models whose logits are averaged; all must know the same classes."""
    where = devices(device)
    models = [load_model(Path(path), where) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if model.classes.names != models[0].classes.names:
            raise UserError(
                f"{path} was trained for the classes {', '.join(model.classes.names)}",
                f"those of {paths[0]}: {', '.join(models[0].classes.names)}",
                "average models of the same class list only",
            )
    return models, where


def _settings_of(run: Path) -> Mapping[str, Any]:
    """The settings of the run that a path belongs to; empty for a model's folder on its own."""
    run = run.resolve()
    for folder in (run, run.parent, run.parent.parent):
        if (folder / "run.yaml").exists():
            return read_yaml(folder / "run.yaml")
    return {}


def _precision(known: Mapping[str, Any], where: Any) -> str:
    """The precision that a run was evaluated in; for a model on its own, what suits the device."""
    return str(known.get("precision") or ("bf16" if has_bf16(where) else "fp32"))


def _test_options(known: Mapping[str, Any]) -> Options:
    """The test-time options of a run."""
    return validated(Options, known.get("evaluation") or {}, "run.yaml: evaluation")


def evaluate(
    run: StrPath,
    domain: StrPath | Mapping[str, Any] | None = None,
    *,
    classes: StrPath | None = None,
    others: Sequence[StrPath] = (),
    options: Options | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Metrics:
    """Measure a model, or an average of models, on a labelled domain, at the labels' full size.

    Args:
        run: a run, one of its stages, or a model's folder.
        domain: folder or `DomainSettings` as a mapping; None: the `val` of the run.
        classes: class list of the domain's labels; it must be the model's. None: the model's own.
        others: further models; their logits are averaged with the first one's (AdvEnt+MinEnt).
        options: flip, scales, sliding window; None: the run's.

    Raises:
        UserError: no labels, bad labels, or models of other classes.
    """
    models, where = _ensemble([run, *others], device)
    known = _settings_of(Path(run))
    if domain is None:
        if not known.get("val"):
            raise UserError(f"{run} has no labelled part `val`", "labels to compare with", "add --domain DIR")
        domain = known["val"]
    declared = {"root": str(domain)} if isinstance(domain, (str, Path)) else dict(domain)
    if classes is not None and read_classes(Path(classes)).names != models[0].classes.names:
        raise UserError(
            f"{classes} lists {', '.join(read_classes(Path(classes)).names)}",
            f"the classes that {run} was trained for: {', '.join(models[0].classes.names)}",
            "evaluate with the class list of the training",
        )
    settings = validated(DomainSettings, declared, "domain")
    opened = open_domain(settings, models[0].classes, labelled=True, name="evaluation")
    chosen = options or _test_options(known)
    if precision == "auto":
        precision = _precision(known, where)
    with track("evaluate", len(opened)) as bar:
        return evaluate_nets(
            [model.net for model in models],
            opened,
            size=models[0].size,
            options=chosen,
            device=where,
            precision=precision,
            progress=bar,
        )


def evaluate_points(
    run: StrPath,
    points: StrPath,
    domain: StrPath | Mapping[str, Any] | None = None,
    *,
    others: Sequence[StrPath] = (),
    options: Options | None = None,
    device: str = "auto",
) -> PointEstimate:
    """Estimate how good a model, or an average of models, is from clicked points alone: no label of the domain is read.

    Args:
        run: a run, one of its stages, or a model's folder.
        points: file of weak labels with points.
        domain: folder of images or `DomainSettings` as a mapping; None: the `target` of the run.
        others, options: as of `evaluate`.

    Raises:
        UserError: no points, or labels that do not fit the images or the model's classes.
    """
    models, where = _ensemble([run, *others], device)
    known = _settings_of(Path(run))
    domain = known.get("target") if domain is None else domain
    if domain is None:
        raise UserError(f"{run} names no target", "the images that were clicked on", "add --domain DIR")
    declared = {"root": str(domain)} if isinstance(domain, (str, Path)) else dict(domain)
    settings = validated(DomainSettings, declared, "domain")
    opened = open_domain(settings, models[0].classes, labelled=False, name="target")
    labels = match(WeakStore(Path(points)).read(), opened, models[0].classes)
    if known.get("weak") and Path(known["weak"]).expanduser().resolve() == Path(points).resolve():
        _say(f"{run} was trained with the labels in {points}: the estimate is too good")
    with track("at points", len(opened)) as bar:
        counts = count_points(
            [model.net for model in models],
            opened,
            labels,
            size=models[0].size,
            options=options or _test_options(known),
            device=where,
            precision=_precision(known, where),
            progress=bar,
        )
    return estimate(counts)


def predict(
    run: StrPath,
    images: StrPath,
    out: StrPath,
    *,
    others: Sequence[StrPath] = (),
    options: Options | None = None,
    device: str = "auto",
    say: Callable[[str], None] = _say,
) -> Predicted:
    """Segment a folder of images: id PNG, overlay and confidence for each. The same call again goes on.

    It computes as `evaluate` does: the run's size, precision and, unless `options` are given, test-time options.

    Args:
        run: a run, one of its stages, or a model's folder.
        images: folder, searched with its sub-folders.
        out: folder to write to.
        others: further models to average with.
    """
    models, where = _ensemble([run, *others], device)
    known = _settings_of(Path(run))
    say(f"model: {model_folder(Path(run))}")
    return predict_folder(
        [model.net for model in models],
        Path(images),
        Path(out),
        classes=models[0].classes,
        size=models[0].size,
        options=options or _test_options(known),
        device=where,
        precision=_precision(known, where),
    )


def features(
    run: StrPath,
    *,
    embed: str = "pca",
    stages: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw the features of a run's stages on a plane, measure how compact the classes are, and write the report again.

    Args:
        run: the folder of a finished run.
        embed: pca, tsne (extra `embed`) or umap (extra `umap`).
        stages: names of training stages; None: those on the way to the result, and the control, four at most.
        domains: of val, target and source, the first one is measured; None: `val`, or `target` where the run has none,
            and `source` where its folder is still there.

    Returns:
        The content of features.json, see `segshift.feature_pictures.draw_features`.

    Raises:
        UserError: a stage, a domain or a package is not there, or a file cannot be used.
    """
    root, where = Path(run), devices(device)
    if not (root / "run.yaml").exists():
        raise UserError(f"{root} has no run.yaml", "the folder of a run", "name the folder that adapt wrote with --out")
    settings = validated(RunSettings, read_yaml(root / "run.yaml"), "run.yaml")
    asked = Asked(embed, tuple(stages) if stages else None, tuple(domains) if domains else None)
    with locked(root):
        drawn = draw_features(root, settings, asked, where)
        build_report(root)
    return drawn
