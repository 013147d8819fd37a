"""From settings to a finished run: domains, networks, methods and stages put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from segshift.artefacts.prototypes import read_prototypes
from segshift.artefacts.pseudo_labels import PseudoLabels, open_pseudo_labels
from segshift.artefacts.soft_labels import open_soft_labels
from segshift.artefacts.store import make_folder, read_json, write_json, write_text
from segshift.config import RunSettings, StageSettings
from segshift.data.domains import Domain
from segshift.data.loader import EXTRAS, WEAK, batches
from segshift.data.order import seed_of
from segshift.data.statistics import class_frequency
from segshift.data.views import ViewSettings
from segshift.data.weak_views import WeakViews
from segshift.engine import checkpoint
from segshift.engine.evaluate import evaluate
from segshift.engine.metrics import Metrics
from segshift.engine.model import load_model, save_model
from segshift.engine.pipeline import Stage, run_stages
from segshift.engine.progress import Bar
from segshift.engine.trainer import Loop, train
from segshift.errors import UserError
from segshift.methods import METHODS, Method
from segshift.methods.base import Task
from segshift.nets.base import SegmentationNet
from segshift.networks import Networks, with_nets
from segshift.production import Production
from segshift.room import Need, Sizes, check_room, needs_of, produced, sizes_of, with_teacher
from segshift.setup import (
    UNEVEN,
    digest,
    dump_yaml,
    keep_apart,
    locked,
    look_at_data,
    method_settings,
    open_domains,
    resolved,
    stage_before,
    stage_chain,
    stage_folder,
)
from segshift.stage_checks import check_needs, check_unused, check_uses
from segshift.supervision import check_weak_labels, read_weak_labels, weak_views, with_modes
from segshift.supervision import digest as weak_digest
from segshift.types import Batch

CURVE_IMAGES = 48
"""Images that a point of the mIoU curve is measured on."""

EMPTY = Batch(torch.empty(0, 3, 1, 1))
"""The target batch of a method that needs none."""


class Run:
    """A run: its settings, resolved, its data, and its stages.

    Args:
        settings: with data and at least one stage.
        root: the run's folder.
        device: where to train.
        say: prints a line for people.

    Raises:
        UserError: something is missing or does not fit; nothing has been written by then.
    """

    def __init__(self, settings: RunSettings, root: Path, device: torch.device, say: Callable[[str], None]) -> None:
        if not settings.stages:
            raise UserError("the settings have no stages", "at least one", "name a --recipe or a --method")
        self.root, self.device, self.say = root, device, say
        self.methods = {stage.name: method_settings(stage) for stage in settings.stages if stage.method}
        self.domains = open_domains(settings)
        if len(self.domains.classes) < 2:
            raise UserError(
                f"{settings.classes} lists 1 class, {self.domains.classes.names[0]!r}",
                "at least two classes: with one, every pixel is of it",
                "add a class for the rest of the image",
            )
        keep_apart(root, self.domains)
        self.weak_labels = read_weak_labels(settings, self.domains)
        settings = with_modes(settings, self.methods, self.weak_labels)
        self.methods = {stage.name: method_settings(stage) for stage in settings.stages if stage.method}
        self.settings = with_nets(resolved(settings, self.domains.target, device))
        self._digests = {d.name: digest(d) for d in (self.domains.source, self.domains.target)}
        self.production = Production(self.settings, self.domains, self._digests, self.folder, device, say)
        look_at_data(self.domains)
        self._say_if_unmatched()
        count = len(self.domains.classes)
        # Real shares are counted when a stage begins: only what methods need of a batch is asked for here.
        task = Task(count, torch.full((count,), 1 / count))
        self.networks = Networks(self.settings, task.num_classes, say)
        nets = self.networks.check()  # wrong options or weights shall fail now, not after the first stage
        self.needs: dict[str, frozenset[str]] = {}
        self._sizes: dict[str, Sizes | Need] = {}
        for stage in self.settings.stages:
            name, net = stage.name, nets[stage.init if stage.produce and stage.init else stage.name]
            if stage.method is None:
                self._sizes[name] = produced(self.production.settings[name], net, len(self.domains.target), self.size)
                continue
            method = METHODS[stage.method].build(self.methods[name], net, with_teacher(task, stage, nets))
            self.needs[name], self._sizes[name] = method.needs, sizes_of(method)
            del method  # one at a time: each may hold a teacher and discriminators
        for line in check_weak_labels(self.settings, self.methods, self.needs, self.weak_labels):
            say(line)
        check_needs(self.settings.stages, {name: fields - WEAK for name, fields in self.needs.items()})
        check_uses(self.settings.stages, self.methods)
        for line in check_unused(self.settings, self.methods, self.needs):
            say(line)

    def _say_if_unmatched(self) -> None:
        """Tell when control and adaptation train for different numbers of steps: the verdict would mix the two up."""
        stages = {stage.name: stage for stage in self.settings.stages}

        def steps(name: str | None) -> int:
            return stages[name].steps + steps(stage_before(self.settings, name)) if name else 0

        control, adapted = self.settings.control, self.adapted
        if control and steps(control) != steps(adapted):
            self.say(
                f"note: {control} trains for {steps(control)} steps and {adapted} for {steps(adapted)}; {UNEVEN}"
                f" add --set {control}.steps={max(1, steps(adapted) - steps(stages[control].init))}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images that enter the network."""
        assert self.settings.size != "auto"
        return self.settings.size

    @property
    def adapted(self) -> str:
        """Name of the stage that gives the run's result."""
        return self.settings.stages[-1].name

    @property
    def chain(self) -> list[str]:
        """Names of the training stages that led to the result, in order: its own last."""
        return stage_chain(self.settings)

    def _method(self, stage: str) -> str:
        method = next(s.method for s in self.settings.stages if s.name == stage)
        assert method is not None
        return method

    def folder(self, stage: str) -> Path:
        """Folder of a stage."""
        return stage_folder(self.root, self.settings, stage)

    def train(self) -> None:
        """Bring all training stages to their end.

        Raises:
            UserError: before the first step, the disk has no room for the largest stage.
            UserError, Interrupted: what was computed is kept; the same call goes on.
        """
        make_folder(self.root)
        stages = [self._stage(stage) for stage in self.settings.stages]
        if line := check_room(self.root, needs_of(self.settings, self.domains, self.root, stages, self._sizes)):
            self.say(line)
        write_text(self.root / "run.yaml", dump_yaml(self.settings))
        run_stages(self.root, stages, self.say)

    @property
    def compared(self) -> list[str]:
        """Names of the stages to measure: those on the way to the adapted one, the ablation's, those to average, the
        control's, if any, and itself."""
        rows = {row.stage for row in self.settings.ablation} | set(self.settings.average)
        branches = [stage.name for stage in self.settings.stages if stage.name in rows]
        names = dict.fromkeys((*self.chain[:-1], *branches, self.settings.control, self.adapted))
        return [name for name in names if name]

    def predictor(self, stage: str) -> SegmentationNet:
        """The trained network of a stage."""
        return load_model(self.folder(stage), self.device).net

    def measure(
        self, nets: list[SegmentationNet], domain: Domain, limit: int | None = None, progress: Bar | None = None
    ) -> Metrics:
        """Evaluate an ensemble of networks on a labelled domain with the run's protocol."""
        return evaluate(
            nets,
            domain,
            size=self.size,
            options=self.settings.evaluation,
            device=self.device,
            precision=self.settings.precision,
            workers=self.settings.workers,
            limit=limit,
            progress=progress,
        )

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of the run's folder, which is made where it is missing."""
        return locked(make_folder(self.root))

    def _stage(self, stage: StageSettings) -> Stage:
        if stage.method is None:
            return self.production.stage(stage)
        settings, method = self.settings, METHODS[stage.method]
        decisive: dict[str, Any] = {
            "method": stage.method,
            "steps": stage.steps,
            "init": stage.init,
            "settings": self.methods[stage.name].decisive(),
            "net": self.networks.decisive(stage.name),
            "size": self.size,
            "source_view": _facts(self._view(stage, True)),
            "batch_size": stage.batch_size or settings.batch_size,
            "seed": settings.seed,
            "precision": settings.precision,
            "clip": settings.clip,
            "classes": self.domains.classes.names,
            "source": self._digests["source"],
        }
        if self.needs[stage.name]:
            decisive |= {"target_view": _facts(self._view(stage, False)), "target": self._digests["target"]}
        facts = {"kind": "train", "method": stage.method, "steps": stage.steps}
        decisive |= stage.uses
        if stage.labels is not None:
            augment = stage.target_augment or settings.target_augment
            decisive |= {"mine": [augment.mine_below, augment.mine_rarest]} if augment.mine else {}
            facts["labels"] = stage.labels
        if "strong" in self.needs[stage.name]:
            decisive["strong"] = settings.strong.model_dump(mode="json")
        if self.needs[stage.name] & WEAK:
            decisive["weak"] = weak_digest(self._weak_views(stage))
        return Stage(
            stage.name,
            decisive,
            stage.purpose or method.purpose,
            lambda folder: self._train(stage, folder),
            facts,
            after=tuple(name for name in (stage.init, *stage.uses.values()) if name),
            unfinished=() if self._keeps_checkpoint(stage) else (checkpoint.FILE,),
        )

    def _keeps_checkpoint(self, stage: StageSettings) -> bool:
        """Two thirds of what a stage takes on the disk are for going on. Pictures of easy images ask a discriminator,
        which is nowhere else."""
        return self.settings.keep_checkpoints or "easy" in self.needs[stage.name]

    def build(self, stage: StageSettings) -> Method:
        """The method of a training stage as it is before the first step."""
        torch.manual_seed(seed_of(self.settings.seed, stage.name))  # random weights of heads and discriminators
        net = self.networks.fresh(stage.name)
        if stage.init is not None:
            self.networks.take_over(stage.name, net, load_model(self.folder(stage.init)).net.state_dict())
        entry = METHODS[self._method(stage.name)]
        return entry.build(self.methods[stage.name], net, self._task(stage, self.folder(stage.name)))

    def _train(self, stage: StageSettings, folder: Path) -> None:
        settings = self.settings
        seed = seed_of(settings.seed, stage.name)
        method = self.build(stage)
        loop = Loop(
            steps=stage.steps,
            seed=seed,
            device=self.device,
            precision=settings.precision,
            clip=settings.clip,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
            validate_every=settings.validate_every,
        )

        @contextlib.contextmanager
        def stream(start: int) -> Iterator[Iterator[tuple[Batch, Batch]]]:
            with contextlib.ExitStack() as stack:
                source = stack.enter_context(self._batches(stage, True, seed, start))
                target = iter([EMPTY] * (stage.steps - start))
                if method.needs:
                    target = stack.enter_context(self._batches(stage, False, seed, start))
                yield zip(source, checked(target, method), strict=True)

        validate = self._curve_point if settings.validate_every and self.domains.val else None
        train(method, stream, loop, folder, stage.name, validate)
        net = self.networks.settings(stage.name)
        options = {key: value for key, value in net.options.items() if key != "weights"}
        save_model(folder / "model", method.predictor(), net.name, options, self.domains.classes, self.size)

    def _batches(
        self, stage: StageSettings, is_source: bool, seed: int, start: int
    ) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        labels: PseudoLabels | None = None
        rare: tuple[int, ...] = ()
        if stage.labels is not None and not is_source:
            labels = open_pseudo_labels(self.folder(stage.labels))
            augment = stage.target_augment or self.settings.target_augment
            rare = labels.rare(augment.mine_below, augment.mine_rarest) if augment.mine else ()
        stream = batches(
            self.domains.source if is_source else self.domains.target,
            self._view(stage, is_source),
            batch_size=stage.batch_size or self.settings.batch_size,
            seed=seed,
            start=start,
            stop=stage.steps,
            workers=self.settings.workers,
            pin=self.device.type == "cuda",
            cache=self.root / "cache" if self.settings.cache else None,
            pseudo_labels=labels,
            rare=rare,
            **self._extras(stage, is_source),
        )
        return contextlib.closing(stream)

    def _extras(self, stage: StageSettings, is_source: bool) -> dict[str, Any]:
        """Further views and labels of target images, where the stage's method asks for them; of source images, where
        they are seen: whoever leaves padding out of one domain leaves it out of both."""
        if is_source:
            return {"extras": self.needs[stage.name] & {"seen"}}
        soft = stage.soft_labels and open_soft_labels(self.folder(stage.soft_labels), self.domains.classes.names)
        extras = self.needs[stage.name] & EXTRAS
        weak = self._weak_views(stage) if extras & WEAK else None
        return {"extras": extras, "soft_labels": soft or None, "strong": self.settings.strong, "weak": weak}

    def _weak_views(self, stage: StageSettings) -> WeakViews:
        return weak_views(stage, self.methods[stage.name], self.settings.seed, self.weak_labels)

    def _view(self, stage: StageSettings, is_source: bool) -> ViewSettings:
        if is_source:
            augment = stage.source_augment or self.settings.source_augment
            return ViewSettings(size=self.settings.source_size or self.size, **augment.view())
        augment = stage.target_augment or self.settings.target_augment
        return ViewSettings(size=self.size, **augment.view())

    def _task(self, stage: StageSettings, folder: Path) -> Task:
        shares = None
        if self.methods[stage.name].wants_class_shares:
            path = folder / "class_shares.json"
            if not path.exists():
                self.say("counting the classes of the source's labels")
                write_json(path, class_frequency(self.domains.source, self._view(stage, True).size).tolist())
            shares = torch.tensor(read_json(path), dtype=torch.float32)
        known = stage.prototypes and read_prototypes(self.folder(stage.prototypes), self.domains.classes.names)
        return Task(
            len(self.domains.classes),
            shares,
            (known.means, known.present) if known else None,
            load_model(self.folder(stage.teacher)).net if stage.teacher else None,
        )

    def _curve_point(self, net: SegmentationNet) -> dict[str, float]:
        assert self.domains.val is not None
        try:
            return {"miou": self.measure([net], self.domains.val, limit=CURVE_IMAGES).miou}
        except UserError as error:
            # Training needs no labels of the target: a bad one costs a point of the curve, nothing else.
            self.say(f"no point for the mIoU curve: {error.found}")
            return {}


def _facts(view: ViewSettings) -> dict[str, Any]:
    """A view for a fingerprint; a setting that came later is left out where it changes nothing, so that stages of older
    runs still count."""
    return {key: value for key, value in view.model_dump(mode="json").items() if key != "mine" or value}


def checked(stream: Iterator[Batch], method: Method) -> Iterator[Batch]:
    """The target's batches, after making sure that they carry what the method needs.

    Raises:
        UserError: a field is missing.
    """
    for batch in stream:
        for field in sorted(method.needs):
            if getattr(batch, field, None) is None:
                raise UserError(
                    f"the method {type(method).__name__} needs {field!r} of every target image, which this stage's"
                    " target does not carry",
                    remedy="put the stage that makes it before this one",
                )
        yield batch
