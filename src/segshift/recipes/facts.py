"""What is known of a recipe without running it: figures of its paper, its steps, its memory, what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import yaml

STATUSES = ("verified", "secondary", "not verified", "none")
"""How sure a figure is: read where `source` says, read in a later paper's table, recalled, or there is none."""


@dataclass(frozen=True)
class Published:
    """Figures of the paper that a recipe follows; none of them was measured with segshift.

    Attributes:
        miou19, miou16, miou13: mIoU over so many classes, percent (13*: no wall, fence, pole); None: not reported.
        status: one of `STATUSES`.
        source: where the figures stand.
        note: what else to know, such as figures of reproductions.
        iou: IoU by class in percent, in Cityscapes' order; empty where no row is known.
    """

    status: str
    source: str
    miou19: float | None = None
    miou16: float | None = None
    miou13: float | None = None
    note: str = ""
    iou: tuple[float, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Peak memory of a recipe's training steps, the most demanding stage's.

    Attributes:
        gib: GiB, of the networks, the optimiser's state and one step.
        derived: whether a smaller step was measured, of fewer images or of smaller ones, and scaled up.
    """

    gib: float
    derived: bool


def published(name: str) -> Published | None:
    """What the paper of a recipe reports; None for recipes that follow no paper's protocol (`cpu/`, `demo/`)."""
    entry = _table("published.yaml").get(name)
    return None if entry is None else Published(**entry | {"iou": tuple(entry.get("iou", ()))})


def published_names() -> list[str]:
    """Names of the recipes that have an entry."""
    return sorted(_table("published.yaml"))


def training_stages(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The stages of a recipe that train."""
    return [stage for stage in recipe["stages"] if "method" in stage]


def steps(recipe: Mapping[str, Any]) -> int:
    """Training steps of all stages, the control's included."""
    return sum(stage["steps"] for stage in training_stages(recipe))


def weights(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the published files that a recipe starts from, in order, each once."""
    nets = [recipe.get("net") or {}, *(stage.get("net") or {} for stage in recipe["stages"])]
    return list(dict.fromkeys(PurePosixPath(net["checkpoint"]).name for net in nets if net.get("checkpoint")))


def weak_labels(recipe: Mapping[str, Any]) -> str | None:
    """The kind of weak labels that a recipe needs from a person, "tags" or "points"; None where it needs none."""
    for stage in training_stages(recipe):
        mode = (stage.get("settings") or {}).get("mode")
        if stage["method"] == "weak_labels" and mode in ("tags", "points"):
            return str(mode)
    return None


def memory(recipe: Mapping[str, Any]) -> Memory | None:
    """Peak memory of a recipe in fp32, from measured cases; None where a stage of it is none of them."""
    found = []
    for shape, method, batch in _shapes(recipe):
        fitting = [case for case in _table("memory.yaml")["cases"] if _stands_for(case, shape, method)]
        if not fitting:
            return None
        for case in fitting:
            gib = case["held"] + case["step"] * case["scale"] * batch / case["batch"]
            found.append(Memory(gib, case["scale"] != 1 or batch != case["batch"]))
    return max(found, key=lambda each: each.gib, default=None)


def _stands_for(case: Mapping[str, Any], shape: Shape, method: str) -> bool:
    own = _shape(case)
    if method == "source_only":  # never sees an image of the target
        own, shape = own[:3], shape[:3]
    return own == shape and method in (case["method"], *case["also"])


Shape = tuple[str | bool | tuple[int, ...], ...]
"""Network, whether it has an auxiliary head, and (width, height) of source and target images as they are trained on."""


def _shapes(recipe: Mapping[str, Any]) -> Iterator[tuple[Shape, str, int]]:
    """Shape, method and batch size of every training stage; with several, each once."""
    nets: dict[str, Mapping[str, Any]] = {}
    for stage in training_stages(recipe):
        base = nets.get(stage.get("init") or "", recipe.get("net") or {})
        own = stage.get("net") or {}
        net = own if own.get("name") else {**base, "options": {**base.get("options", {}), **own.get("options", {})}}
        nets[stage["name"]] = net
        size = recipe.get("size", "auto")
        source, target = (
            (stage.get(f"{side}_augment") or recipe.get(f"{side}_augment") or {}).get("crop") or whole
            for side, whole in (("source", recipe.get("source_size") or size), ("target", size))
        )
        facts = {"net": net.get("name", "deeplab_lite"), "aux": net.get("options", {}).get("aux", False)}
        batch = stage.get("batch_size") or recipe.get("batch_size", 4)
        yield _shape(facts | {"source": source, "target": target}), stage["method"], batch


def _shape(facts: Mapping[str, Any]) -> Shape:
    sides = [side if isinstance(side, str) else tuple(side) for side in (facts["source"], facts["target"])]
    return facts["net"], facts.get("aux", False), sides[0], sides[1]


@cache
def _table(name: str) -> dict[str, Any]:
    """A file of facts beside the recipes."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(content, dict)
    return content
