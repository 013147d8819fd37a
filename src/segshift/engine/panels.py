"""Pictures for the report: a few images of a domain, with what each model says of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segshift.artefacts.store import atomic_path, make_folder, write_json
from segshift.data.domains import Domain, Item
from segshift.data.images import load_resized, resize_nearest
from segshift.data.statistics import spread
from segshift.engine.certainty import Certainty, certainty
from segshift.engine.evaluate import evaluate, truth_of
from segshift.engine.inference import Options, as_input, autocast, check_predictors, class_ids, logits_at
from segshift.engine.metrics import Metrics
from segshift.engine.predict import class_picture
from segshift.errors import UserError
from segshift.nets.base import SegmentationNet

WIDTH = 480
"""Largest width of a picture in pixels."""


@dataclass(frozen=True)
class Choice:
    """An image of the domain (its index) and why it was chosen, for its caption."""

    index: int
    caption: str


def choose(
    names: Sequence[str],
    count: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    models: tuple[str, str],
) -> list[Choice]:
    """Images to show: the one that gained most, the one that lost most (or gained least), the rest evenly spread.

    With fewer than three to show, or fewer than two scored ones, all are spread. Those that are spread are the same
    ones whatever the scores, as far as they can be: runs on the same images can then be looked at side by side.

    Args:
        names: of the domain's images, in its order.
        before, after: mIoU by image of the control and of the adapted model; images without both are only spread.
        models: the names of control and adapted model, for the captions.
    """
    scored = [
        index
        for index, name in enumerate(names)
        if all(math.isfinite(scores.get(name, math.nan)) for scores in (before, after))
    ]
    gains = [after[names[index]] - before[names[index]] for index in scored]
    chosen: list[Choice] = []
    if len(scored) > 1 and count > 2:
        # Of equal gains the first image counts as best and the last as worst: two images, also when all are equal.
        best, worst = gains.index(max(gains)), len(gains) - 1 - gains[::-1].index(min(gains))
        for place, kind in ((best, "largest gain"), (worst, "largest loss" if min(gains) < 0 else "smallest gain")):
            name = names[scored[place]]
            figures = f"{models[0]} {100 * before[name]:.1f}, {models[1]} {100 * after[name]:.1f}"
            caption = f"{kind} of {len(scored)} images: {100 * gains[place]:+.1f} mIoU points ({figures})"
            chosen.append(Choice(scored[place], caption))
    for index in _spread_beside([choice.index for choice in chosen], len(names), count):
        chosen.append(Choice(index, f"image {index + 1} of {len(names)}, chosen by even spacing"))
    return chosen


def _spread_beside(taken: Sequence[int], total: int, count: int) -> list[int]:
    """Of 0 … total - 1, evenly spread ones that make up `count` with those taken, in their order.

    All but two of `count` are spread, a taken one giving way to the next free one; then the widest gaps are halved.
    """
    found: list[int] = []
    for place in spread(total, count - 2 if count > 2 else count):
        if len(found) + len(taken) < count:
            free = [index % total for index in range(place, place + total) if index % total not in {*taken, *found}]
            found += free[:1]
    while len(found) + len(taken) < min(count, total):
        used = sorted([-1, *taken, *found, total])
        left, right = max(itertools.pairwise(used), key=lambda gap: gap[1] - gap[0])
        found.append((left + right) // 2)
    return sorted(found)


def choose_and_write_panels(
    folder: Path,
    predictors: Mapping[str, SegmentationNet],
    control: str | None,
    adapted: str,
    domain: Domain,
    *,
    size: tuple[int, int],
    count: int = 8,
    options: Options | None = None,
    device: torch.device | None = None,
    precision: str = "fp32",
    workers: int = 1,
    metrics: Mapping[str, Metrics] | None = None,
    start: str | None = None,
) -> list[dict[str, Any]]:
    """Write pictures of a few images of a domain into `folder`, and index.json last.

    Each entry of index.json: name, caption, file names of image (JPEG), control, adapted, truth (palette PNG in the
    classes' colours, null where there is none), and miou, each model's own figure on this image (null without labels).
    `certainty` is a list of the model before adaptation (where there is one) and of the adapted one, each with its
    name as `model`, the file names `entropy` and `confidence` (palette PNG of 255 levels in magma, dark is sure: level
    255 h and 255 (1 - c)) and their means over the image, `mean_entropy` h and `mean_confidence` c; a network of one
    class has none. `entropy` is the adapted one's file again. Deterministic.

    Args:
        folder: made where missing; panels of an earlier call in it are replaced.
        predictors: networks by name.
        control, adapted: names in `predictors`; control None: there is none.
        domain: with labels or without; without, no label is looked for.
        size: (w, h) that images are resized to before they enter a network.
        count: at most so many images.
        metrics: what `evaluate` said of the models on this domain; None: a labelled domain is evaluated here.
        start: name of the model before adaptation where there is no control: its certainty alone is shown.

    Raises:
        UserError: a file cannot be read or written, or a network does not fit.
    """
    shown = [name for name in (control, adapted) if name is not None]
    before = control or (start if start != adapted else None)
    check_predictors([predictors[name] for name in dict.fromkeys([*shown, before or adapted])], domain.classes)
    device = device or torch.device("cpu")
    if metrics is None and domain.labelled and count > 0:
        how = partial(evaluate, size=size, options=options, device=device, precision=precision, workers=workers)
        metrics = {name: how([predictors[name]], domain) for name in shown}
    scores = {name: _scores(metrics, name) for name in shown}
    names = [item.name for item in domain.items]
    choices = choose(names, count, scores.get(control or "", {}), scores[adapted], (control or "", adapted))
    clear_panels(make_folder(folder))
    entries = []
    for number, choice in enumerate(choices):
        item = domain.items[choice.index]
        view = _View(item, size, options, device, precision)
        logits = {name: view.logits(predictors[name]) for name in (before, adapted) if name is not None}
        drawn = _entry(folder, number, view, domain, logits, control)
        miou = {name: _finite(scores[name].get(item.name)) for name in shown}
        entries.append({"name": item.name, "caption": choice.caption, **drawn, "miou": miou})
    write_json(folder / "index.json", entries)
    return entries


class _View:
    """One image at the size of its panel, and the models' logits there."""

    def __init__(
        self, item: Item, size: tuple[int, int], options: Options | None, device: torch.device, precision: str
    ) -> None:
        self.item = item
        self._options, self._device, self._precision = options, device, precision
        self._pixels, self.original = load_resized(item.image, size)
        width = min(WIDTH, self.original[1])
        self.size = (width, max(1, round(self.original[0] * width / self.original[1])))

    def image(self) -> Image.Image:
        return Image.fromarray(load_resized(self.item.image, self.size)[0])

    def logits(self, net: SegmentationNet) -> Float[Tensor, "1 K H W"]:
        net.to(self._device)
        with autocast(self._device, self._precision):
            image = as_input(self._pixels, self._device)
            return logits_at([net], image, (self.size[1], self.size[0]), self._options)


def _entry(
    folder: Path, number: int, view: _View, domain: Domain, logits: Mapping[str, Tensor], control: str | None
) -> dict[str, Any]:
    """Write the pictures of an image, and name them as index.json does.

    Args:
        logits: (1, K, H, W) by model: the one before adaptation, where there is one, and the adapted one last.
    """
    adapted = list(logits)[-1]
    known = {"control": logits.get(control or ""), "adapted": logits[adapted]}
    pictures = _pictures(view, known, domain)
    files = {kind: _save(folder, number, kind, picture) for kind, picture in pictures.items()}
    sure = [
        _certainty_entry(folder, number, "after" if name == adapted else "before", name, maps)
        for name, values in logits.items()
        if (maps := certainty(values)) is not None
    ]
    return {**files, "entropy": sure[-1]["entropy"] if sure else None, "certainty": sure}


def _pictures(view: _View, logits: Mapping[str, Tensor | None], domain: Domain) -> dict[str, Image.Image | None]:
    pictures: dict[str, Image.Image | None] = {"image": view.image()}
    for kind, values in logits.items():
        known = None if values is None else class_ids(values)[0].cpu().numpy()
        pictures[kind] = None if known is None else class_picture(known, domain.classes)
    truth = truth_of(domain, view.item, view.original) if domain.labelled else None
    pictures["truth"] = None if truth is None else class_picture(resize_nearest(truth, view.size), domain.classes)
    return pictures


def _certainty_entry(folder: Path, number: int, when: str, model: str, sure: Certainty) -> dict[str, Any]:
    files = {kind: _save(folder, number, f"{kind}-{when}", picture) for kind, picture in sure.pictures().items()}
    return {"model": model, **files, **{f"mean_{kind}": mean for kind, mean in sure.means.items()}}


def _scores(metrics: Mapping[str, Metrics] | None, name: str) -> dict[str, float]:
    known = metrics.get(name) if metrics is not None else None
    return {score.name: score.miou for score in known.per_image} if known is not None else {}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _save(folder: Path, number: int, kind: str, picture: Image.Image | None) -> str | None:
    if picture is None:
        return None
    name = f"{number:03d}-{kind}." + ("jpg" if kind == "image" else "png")
    with atomic_path(folder / name) as path:
        if kind == "image":
            picture.save(path, quality=88)
        else:
            picture.save(path, optimize=True)
    return name


def clear_panels(folder: Path) -> None:
    """Remove the panels of an earlier call, their index first: it never names a file of another call."""
    for path in [folder / "index.json", *sorted(folder.glob("[0-9][0-9][0-9]-*"))]:
        try:
            with suppress(FileNotFoundError):
                path.unlink()
        except OSError as error:
            raise UserError(f"cannot remove {path}: {error.strerror}", remedy="make the folder writable") from error
