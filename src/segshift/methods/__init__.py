"""The methods, one file a paper. To add one: a file, a line here, a test (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from segshift.methods.adaptsegnet import AdaptSegNet, AlignmentSettings
from segshift.methods.advent import Advent, AdventSettings, MinEnt, MinEntSettings
from segshift.methods.base import Method, MethodSettings
from segshift.methods.source_only import SourceOnly, SourceOnlySettings


class Entry(NamedTuple):
    """A method: build(settings, net, task), the class of its settings, and what it is for in one sentence."""

    build: Callable[..., Method]
    settings: type[MethodSettings]
    needs: frozenset[str]
    purpose: str


METHODS: dict[str, Entry] = {
    "source_only": Entry(
        SourceOnly,
        SourceOnlySettings,
        SourceOnly.needs,
        "learn the classes from the labelled source images",
    ),
    "adaptsegnet": Entry(
        AdaptSegNet,
        AlignmentSettings,
        AdaptSegNet.needs,
        "make the target's predictions look like the source's to a discriminator",
    ),
    "minent": Entry(MinEnt, MinEntSettings, MinEnt.needs, "make the target's predictions confident (low entropy)"),
    "advent": Entry(
        Advent,
        AdventSettings,
        Advent.needs,
        "make the target's entropy maps look like the source's to a discriminator",
    ),
}

__all__ = ["METHODS", "Entry", "Method", "MethodSettings"]
