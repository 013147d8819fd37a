"""The methods, one file a paper. To add one: a file, a line here, a test (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from segshift.methods.adaptsegnet import AdaptSegNet, AlignmentSettings
from segshift.methods.advent import Advent, AdventSettings, MinEnt, MinEntSettings
from segshift.methods.base import Method, MethodSettings
from segshift.methods.cbst import Cbst, CbstSettings
from segshift.methods.crst import Crst, CrstSettings
from segshift.methods.distill import Distill, DistillSettings
from segshift.methods.proda import Proda, ProdaSettings
from segshift.methods.self_training import SelfTraining, SelfTrainingSettings
from segshift.methods.source_only import SourceOnly, SourceOnlySettings
from segshift.methods.tpld import Tpld, TpldSettings
from segshift.methods.weak_labels import WeakLabels, WeakLabelsSettings


class Entry(NamedTuple):
    """A method: build(settings, net, task), the class of its settings, and what it is for in one sentence."""

    build: Callable[..., Method]
    settings: type[MethodSettings]
    purpose: str


METHODS: dict[str, Entry] = {
    "source_only": Entry(
        SourceOnly,
        SourceOnlySettings,
        "learn the classes from the labelled source images",
    ),
    "adaptsegnet": Entry(
        AdaptSegNet,
        AlignmentSettings,
        "make the target's predictions look like the source's to a discriminator",
    ),
    "minent": Entry(MinEnt, MinEntSettings, "make the target's predictions confident (low entropy)"),
    "advent": Entry(
        Advent,
        AdventSettings,
        "make the target's entropy maps look like the source's to a discriminator",
    ),
    "self_training": Entry(SelfTraining, SelfTrainingSettings, "learn the target's own confident predictions"),
    "cbst": Entry(
        Cbst, CbstSettings, "learn the target's own predictions, the most confident ones of every class alike"
    ),
    "crst": Entry(Crst, CrstSettings, "learn the target's own predictions, held back from growing too sure of them"),
    "tpld": Entry(
        Tpld, TpldSettings, "learn densified labels of the target, then make its hard images look like its easy ones"
    ),
    "proda": Entry(
        Proda, ProdaSettings, "learn the target's soft labels, denoised by the class prototypes of a moving teacher"
    ),
    "distill": Entry(Distill, DistillSettings, "learn on strong views what another network says of the target"),
    "weak_labels": Entry(
        WeakLabels,
        WeakLabelsSettings,
        "learn which classes each image of the target shows, from tags, points or guesses, and align class by class",
    ),
}

__all__ = ["METHODS", "Entry", "Method", "MethodSettings"]
