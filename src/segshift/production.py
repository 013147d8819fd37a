"""The stages of a run that make something with a trained network: pseudo-labels, soft labels, prototypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from segshift.artefacts.store import damaged
from segshift.config import RunSettings, StageSettings
from segshift.engine.labelling import PRIOR, Labeller, LabelSettings, clear_damaged, make_pseudo_labels
from segshift.engine.model import load_model
from segshift.engine.pipeline import Stage
from segshift.engine.priors import read_prior, write_prior
from segshift.engine.producing import Answers, PrototypeSettings, make_prototypes, make_soft_labels
from segshift.setup import Domains, produce_settings

PURPOSES = {
    "pseudo_labels": "label the target's images with the network of {}",
    "soft_labels": "keep what the network of {} says of the target's images, unsure as it is",
    "prototypes": "find the mean feature of each class in the target's images with the network of {}",
}
KINDS = {"pseudo_labels": "labels", "soft_labels": "soft_labels", "prototypes": "prototypes"}
"""What stage.json calls them."""


class Production:
    """Makes the stages of a run that produce.

    Args:
        settings: of the run, resolved.
        domains: its data.
        digests: of the source and the target, for fingerprints.
        folder: a stage's name → its folder.
        device: where networks run.
        say: prints a line for people.
    """

    def __init__(
        self,
        settings: RunSettings,
        domains: Domains,
        digests: Mapping[str, str],
        folder: Callable[[str], Path],
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        assert settings.size != "auto"
        self.run, self.size, self.domains, self.digests = settings, settings.size, domains, digests
        self.folder, self.device, self.say = folder, device, say
        self.settings = {stage.name: produce_settings(stage) for stage in settings.stages if stage.produce}

    def stage(self, stage: StageSettings) -> Stage:
        """A stage that produces, for the pipeline."""
        assert stage.produce is not None
        assert stage.init is not None
        chosen = self.settings[stage.name]
        decisive: dict[str, Any] = {
            "produce": stage.produce,
            "init": stage.init,
            "settings": chosen.model_dump(mode="json"),
            "size": self.size,
            "precision": self.run.precision,
            "classes": self.domains.classes.names,
            "target": self.digests["target"],
        }
        if isinstance(chosen, LabelSettings) and chosen.spatial_prior is not None:
            decisive["source"] = self.digests["source"]
        return Stage(
            stage.name,
            decisive,
            stage.purpose or PURPOSES[stage.produce].format(stage.init),
            lambda folder: self._make(stage, folder),
            {"kind": KINDS[stage.produce], "init": stage.init},
            after=(stage.init,),
            damage=damaged,
        )

    def labeller(self, stage: str) -> Labeller:
        """What makes the labels of a labels stage.

        The first call for a stage with a spatial prior counts the source's labels.
        """
        settings = self.settings[stage]
        assert isinstance(settings, LabelSettings)
        prior = None
        if settings.spatial_prior is not None:
            path = self.folder(stage) / PRIOR
            if not path.exists():
                self.say("counting where the classes of the source's labels are")
                write_prior(path, self.domains.source, self.size, settings.spatial_prior)
            prior = read_prior(path)
        net = load_model(self.folder(self._init(stage)), self.device).net
        return Labeller(net, self.size, settings, self.device, self.run.precision, prior)

    def _init(self, stage: str) -> str:
        return next(s.init for s in self.run.stages if s.name == stage) or ""

    def _make(self, stage: StageSettings, folder: Path) -> None:
        settings, target, workers = self.settings[stage.name], self.domains.target, self.run.workers
        if isinstance(settings, LabelSettings):
            clear_damaged(folder)  # before its spatial prior is read
            make_pseudo_labels(self.labeller(stage.name), target, folder, workers=workers)
            return
        net = load_model(self.folder(self._init(stage.name)), self.device).net
        answers = Answers(net, self.device, self.run.precision)
        if isinstance(settings, PrototypeSettings):
            make_prototypes(answers, target, self.size, folder, settings, workers=workers)
        else:
            make_soft_labels(answers, target, self.size, folder, self.say, workers=workers)
