"""What a run says of its weak labels when it is trained: how often guessed tags are right, and where networks look."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from segshift.artefacts.store import read_json, write_json
from segshift.config import StageSettings
from segshift.data.domains import Domain, Item
from segshift.data.images import load_resized
from segshift.data.statistics import spread
from segshift.data.weak_views import WeakViews
from segshift.engine.attention_panels import Look, choose_classes, write_attention_panels
from segshift.engine.metrics import Metrics
from segshift.engine.pipeline import fingerprint
from segshift.engine.producing import Answers
from segshift.engine.progress import track
from segshift.engine.tag_quality import FEWEST, MOST, Rule, classes_of_label, sampled, tag_quality
from segshift.errors import UserError
from segshift.methods.weak_labels import WeakLabelsSettings
from segshift.run import Run
from segshift.setup import digest
from segshift.supervision import chosen
from segshift.supervision import digest as weak_digest
from segshift.weak.label import WeakLabel

FILE, ATTENTION = "tags.json", "attention"
"""Beside the stage's network."""

VERSION = 1
"""Of the way in which both are made: with another one, older ones do not hold."""

CLASSES, IMAGES_EACH = 4, 2
"""Classes whose attention is shown, and images of each, at most."""

GUESSED_ON = 40
"""Images in which classes to show are looked for, where nobody tagged any."""


def tell_of_tags(run: Run, measured: Mapping[str, Metrics]) -> None:
    """Write tags.json and attention/ into the folder of every stage that learns from weak labels.

    Both are left as they are while they hold; what cannot be made is told of and removed.

    Args:
        run: a trained one.
        measured: its stages' metrics; the classes that gained and lost most are those whose attention is shown.
    """
    for stage in run.settings.stages:
        own = run.methods.get(stage.name)
        if not isinstance(own, WeakLabelsSettings):
            continue
        told = _Told(run, stage, own)
        for tell in (told.write_tags, partial(told.write_attention, measured)):
            try:
                tell()
            except UserError as error:
                run.say(f"{stage.name}: not everything about its weak labels can be shown: {error}")


class _Told:
    """What is told of one stage."""

    def __init__(self, run: Run, stage: StageSettings, own: WeakLabelsSettings) -> None:
        self.run, self.stage, self.own = run, stage, own
        self.rule = Rule(own.threshold, own.sharpness)
        self.folder = run.folder(stage.name)
        self.names = run.domains.classes.names
        learns = own.mode in ("tags", "points")
        self.learned = chosen(stage, own, run.settings.seed, run.weak_labels) if learns else {}
        self._answers: dict[str, Answers] = {}

    @property
    def networks(self) -> dict[str, Answers]:
        """The stage's own and, before it, that of the stage that it starts from."""
        if not self._answers:
            for name in filter(None, (self.stage.init, self.stage.name)):
                self._answers[name] = Answers(self.run.predictor(name), self.run.device, self.run.settings.precision)
        return self._answers

    def _fingerprint(self, **more: Any) -> str:
        decisive = {
            "version": VERSION,
            "rule": [self.rule.threshold, self.rule.sharpness],
            "size": self.run.size,
            "precision": self.run.settings.precision,
            "target": digest(self.run.domains.target),
            "weak": weak_digest(WeakViews(self.run.weak_labels, points_complete=self.own.points_complete)),
            "learned": sorted(self.learned),
            **more,
        }
        names = filter(None, (self.stage.init, self.stage.name))
        stages = [str(read_json(self.run.folder(name) / "stage.json")["fingerprint"]) for name in names]
        return fingerprint(decisive, "/".join(stages))

    # ---- tags.json

    def write_tags(self) -> None:
        """Measured again only when anything that it depends on changed; until it is, there are no figures.

        Raises:
            UserError: not everything could be measured. What could is written, and measured again next time.
        """
        path, labelled = self.folder / FILE, self._labelled()
        wanted = self._fingerprint(
            labels=digest(labelled) if labelled else None, points_complete=self.own.points_complete, most=[MOST, FEWEST]
        )
        if _holds(path, wanted):
            return
        path.unlink(missing_ok=True)
        parts, failed = [], None
        try:
            for measure in self._measures(labelled):
                parts.append(measure())
        except UserError as error:
            failed = error
        content = {
            "fingerprint": wanted if failed is None else None,
            "mode": self.own.mode,
            "threshold": self.rule.threshold,
            "sharpness": self.rule.sharpness,
            "fewest_pixels": FEWEST,
            "classes": list(self.names),
            "palette": [list(colour) for colour in self.run.domains.classes.palette],
            "named": self._named(),
            "parts": parts,
        }
        write_json(path, content)
        if failed is not None:
            raise failed

    def _named(self) -> dict[str, Any] | None:
        """In how many images, and by how many points, the labels that the stage learned from name each class."""
        if self.own.mode not in ("tags", "points"):
            return None
        said = self.learned.values()
        points = [point.name for label in said for point in label.points] if self.own.mode == "points" else []
        return {
            "labelled": len(said),
            "images": [sum(name in label.present for label in said) for name in self.names],
            "points": [points.count(name) for name in self.names],
        }

    def _complete(self, name: str) -> bool:
        """Whether a person named every class of an image."""
        label = self.run.weak_labels.get(name)
        if label is None:
            return False
        by_points = self.own.points_complete and label.tags is None and bool(label.points)
        return label.says_absent or by_points

    def _tagged(self) -> list[int]:
        """Images whose classes a person named; those that the stage did not learn from, where there are any."""
        items = self.run.domains.target.items
        complete = [index for index, item in enumerate(items) if self._complete(item.name)]
        return [index for index in complete if items[index].name not in self.learned] or complete

    def _labelled(self) -> Domain | None:
        """The domain whose labels say which classes are there, if it is to be asked: where nobody tagged, and beside
        tags that the stage learned from."""
        domains, tagged = self.run.domains, self._tagged()
        if not tagged:
            return domains.truth or domains.val
        # `truth` is of the target's own images, whose tags the stage has seen: `val` says more.
        seen = self.run.domains.target.items[tagged[0]].name in self.learned
        return (domains.val or domains.truth) if seen else None

    def _measures(self, labelled: Domain | None) -> list[Any]:
        """What is to be measured; each gives an entry of `parts`."""
        target, tagged, measures = self.run.domains.target, self._tagged(), []
        if tagged:
            seen = target.items[tagged[0]].name in self.learned
            measures.append(partial(self._measure, "tags", target, sampled(tagged), seen))
        if labelled is not None:
            measures.append(partial(self._measure, "labels", labelled, sampled(range(len(labelled))), False))
        return measures

    def _measure(self, by: str, domain: Domain, images: list[int], learned: bool) -> dict[str, Any]:
        truth = self._classes_tagged if by == "tags" else partial(classes_of_label, domain)
        with track(f"tags of {self.stage.name}", len(images)) as bar:
            found = tag_quality(
                self.networks,
                self.rule,
                domain,
                images,
                truth,
                self.run.size,
                workers=self.run.settings.workers,
                progress=bar,
            )
        return {"by": by, "domain": str(domain.settings.root), "of": len(domain), "learned": learned, **found}

    def _classes_tagged(self, item: Item) -> Bool[np.ndarray, " K"]:
        present = self.run.weak_labels[item.name].present
        return np.array([name in present for name in self.names])

    # ---- attention/

    def write_attention(self, measured: Mapping[str, Metrics]) -> None:
        """Pictures of a few classes in a few images; none where the run wants no pictures.

        Raises:
            UserError: a file cannot be read or written.
        """
        folder, count = self.folder / ATTENTION, self.run.settings.panels
        gains, over = self._gains(measured)
        wanted = self._fingerprint(gains=gains, over=over, count=count)
        if _holds(folder / "index.json", wanted):
            return
        (folder / "index.json").unlink(missing_ok=True)
        if count:
            looks = self._looks(gains, over, count)
            write_attention_panels(
                folder, self.networks, self.rule, self.run.domains.target, looks, self.run.size, wanted
            )

    def _gains(self, measured: Mapping[str, Metrics]) -> tuple[list[float | None], str]:
        """What each class gained in IoU over the control, without one over the stage that this one starts from; and
        the name of that stage."""
        before = (self.run.settings.control, self.stage.init)
        over = next((name for name in before if name in measured and name != self.stage.name), None)
        if over is None or self.stage.name not in measured:
            return [None] * len(self.names), ""
        gains = (measured[self.stage.name].iou - measured[over].iou).tolist()
        return [gain if math.isfinite(gain) else None for gain in gains], over

    def _looks(self, gains: list[float | None], over: str, count: int) -> list[Look]:
        shown = self._shown()
        classes = choose_classes(gains, [len(images) for images in shown], min(CLASSES, count))
        each = max(1, min(IMAGES_EACH, count // max(1, len(classes))))
        looks = []
        for k in classes:
            gain = gains[k]
            # + 0.0: no -0.0 where it rounds to nothing.
            why = "" if gain is None else f"{round(100 * gain, 1) + 0.0:+.1f} IoU points over {over}"
            for place in spread(len(shown[k]), each):
                index = shown[k][place]
                label = self._label(index)
                points = [(x, y) for x, y, name in label.points if name == self.names[k]] if label else []
                looks.append(Look(k, index, why, points))
        return looks

    def _label(self, index: int) -> WeakLabel | None:
        return self.run.weak_labels.get(self.run.domains.target.items[index].name)

    def _shown(self) -> list[list[int]]:
        """Images of each class: by a person's labels, else by what the stage's network says of some of them."""
        items = self.run.domains.target.items
        if self.run.weak_labels:
            labels = [(index, label) for index in range(len(items)) if (label := self._label(index)) is not None]
            return [[index for index, label in labels if name in label.present] for name in self.names]
        images = spread(len(items), GUESSED_ON)
        guessed = {index: self._guess(items[index]) for index in images}
        return [[index for index in images if guessed[index][k]] for k in range(len(self.names))]

    def _guess(self, item: Item) -> Bool[np.ndarray, " K"]:
        return self.rule.tags(self.networks[self.stage.name], load_resized(item.image, self.run.size)[0])


def _holds(path: Path, wanted: str) -> bool:
    """Whether a file is of this fingerprint; a damaged one is as good as none."""
    with contextlib.suppress(UserError, LookupError, TypeError):
        return bool(read_json(path)["fingerprint"] == wanted)
    return False
