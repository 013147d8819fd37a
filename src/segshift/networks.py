"""The network of each training stage: which it is, what it starts from, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from segshift.artefacts.store import sha256
from segshift.config import NetSettings, RunSettings, StageNetSettings, StageSettings
from segshift.engine.model import build_net
from segshift.errors import UserError, gist
from segshift.nets.base import SegmentationNet
from segshift.nets.weights import load_published


def with_nets(settings: RunSettings) -> RunSettings:
    """The settings with every stage's `net` complete: what it left to another network is written out."""
    nets = _nets(settings)

    def complete(stage: StageSettings) -> StageSettings:
        if stage.net is None:
            return stage
        whole = StageNetSettings(**nets[stage.name].model_dump())
        return stage.model_copy(update={"net": whole})

    return settings.model_copy(update={"stages": tuple(map(complete, settings.stages))})


def _nets(settings: RunSettings) -> dict[str, NetSettings]:
    """Settings of the network of every training stage: its own, else that of its `init`, else the run's."""
    nets: dict[str, NetSettings] = {}
    for stage in settings.stages:
        if stage.method is not None:
            base = nets[stage.init] if stage.init is not None else settings.net
            nets[stage.name] = base if stage.net is None else _over(base, stage.net, fresh=stage.init is None)
    return nets


def _over(base: NetSettings, own: StageNetSettings, *, fresh: bool) -> NetSettings:
    """`own` over `base`; a network that is not fresh starts from another stage's weights and not from a file."""
    if own.name is not None:
        return NetSettings(**own.model_dump())
    start = own if {"checkpoint", "layout"} & own.model_fields_set or not fresh else base
    return NetSettings(
        name=base.name, options={**base.options, **own.options}, checkpoint=start.checkpoint, layout=start.layout
    )


class Networks:
    """The networks of a run's training stages.

    Args:
        settings: of the run.
        num_classes: K.
        say: prints a line for people.
    """

    def __init__(self, settings: RunSettings, num_classes: int, say: Callable[[str], None]) -> None:
        self._stages = {stage.name: stage for stage in settings.stages}
        self._nets = _nets(settings)
        self._num_classes = num_classes
        self._say = say
        self._files: dict[Path, str] = {}

    def check(self) -> dict[str, SegmentationNet]:
        """Build every network once, with its published weights, and look at it: what is wrong with that of the last
        stage shall fail before the first one trains.

        Returns:
            By training stage, a network like its own; stages of the same settings have the same one.

        Raises:
            UserError: an option is wrong, published weights do not fit, or networks that must fit each other do not.
        """
        known: dict[str, SegmentationNet] = {}
        made: dict[str, SegmentationNet] = {}
        for name, chosen in self._nets.items():
            key = repr(chosen)
            if key not in known:
                known[key] = self.fresh(name)
            made[name] = known[key]
        for name in made:
            self._check_start(self._stages[name], made)
            self._check_prototypes(self._stages[name], made)
        return made

    def settings(self, stage: str) -> NetSettings:
        """Name, options and start of a training stage's network."""
        return self._nets[stage]

    def decisive(self, stage: str) -> dict[str, Any]:
        """The same for the stage's fingerprint: of published weights the content counts and not the place."""
        chosen = self._nets[stage]
        content = None
        if chosen.checkpoint is not None:
            path = chosen.checkpoint.expanduser()
            content = self._files[path] = self._files.get(path) or sha256(path)
        return {**chosen.model_dump(mode="json"), "checkpoint": content}

    def fresh(self, stage: str) -> SegmentationNet:
        """The stage's network with the weights that it has without `init`: random ones, the builder's, or a file's.

        Raises:
            UserError: an option is wrong, or published weights do not fit.
        """
        chosen = self._nets[stage]
        where = f"stage {stage}: " if self._stages[stage].net is not None else ""
        try:
            net = build_net(chosen.name, self._num_classes, chosen.options)
            # Of a stage with `init`, the settings may still name the file that the first of its line started from.
            if chosen.checkpoint is not None and self._stages[stage].init is None:
                assert chosen.layout is not None, "the settings have both or none"
                self._say(str(load_published(net, chosen.checkpoint.expanduser(), chosen.layout)))
        except UserError as error:
            raise UserError(where + error.found, error.wanted, error.remedy) from error
        return net

    def take_over(self, stage: str, net: SegmentationNet, weights: Mapping[str, Tensor]) -> None:
        """Give a network the weights of the stage that it starts from, in place.

        Raises:
            UserError: they are another network's.
        """
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"stage {stage}: the model of {self._stages[stage].init}, which it starts from, is another network than"
                f" {_told(self._nets[stage])}: {gist(error)}",
                "the model that this run trained",
                "restore the files of that stage, or remove its folder: it is then trained again",
            ) from error

    def _check_start(self, stage: StageSettings, made: Mapping[str, SegmentationNet]) -> None:
        """Only a network of the stage's own can differ from that whose weights it takes over."""
        if stage.init is None or stage.net is None:
            return
        own, theirs = (_shapes(made[name]) for name in (stage.name, stage.init))
        wrong = [f"it has no {key}" for key in theirs if key not in own]
        wrong += [f"{key} is only in it" for key in own if key not in theirs]
        wrong += [f"{key} is {own[key]} and not {theirs[key]}" for key in own if own[key] != theirs.get(key, own[key])]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"stage {stage.name} starts from {stage.init}, which is {_told(self._nets[stage.init])}, but its own"
                f" `net`, {_told(self._nets[stage.name])}, cannot take those weights: {'; '.join(wrong[:3])}{more}",
                "options that leave the weights as they are (batch_norm, say), or a network with a start of its own",
                f"take these options out of {stage.name}.net, or set {stage.name}.init to null",
            )

    def _check_prototypes(self, stage: StageSettings, made: Mapping[str, SegmentationNet]) -> None:
        """Distances to prototypes need features of as many channels."""
        source = self._stages[stage.prototypes].init if stage.prototypes is not None else None
        if source is None:
            return
        own, theirs = made[stage.name].num_features, made[source].num_features
        if own != theirs:
            raise UserError(
                f"stage {stage.name}: its network, {_told(self._nets[stage.name])}, has features of {own} channels, and"
                f" the prototypes of {stage.prototypes} are means of {theirs}, of {_told(self._nets[source])}",
                "prototypes found with a network of the same features",
                f"find them with the network that {stage.name} starts from, or give {stage.name} that network",
            )


def _shapes(net: SegmentationNet) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}


def _told(net: NetSettings) -> str:
    """A network in words."""
    options = ", ".join(f"{key}={value}" for key, value in net.options.items())
    return f"{net.name}({options})" if options else net.name
