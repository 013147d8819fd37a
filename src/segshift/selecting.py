"""`segshift select`: label-free figures of trained models on the target's images, and the one that they recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segshift.artefacts.store import make_folder, read_json, sweep, write_json
from segshift.candidates import Candidate, candidate_at, find_candidates
from segshift.config import validated
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import image_size
from segshift.data.statistics import class_frequency, spread
from segshift.engine import tallies
from segshift.engine.answers import Place, grid_of, read_answers, sample, write_answers
from segshift.engine.inference import Options
from segshift.engine.model import class_set, load_model
from segshift.engine.pipeline import fingerprint
from segshift.engine.progress import console, track
from segshift.engine.selection import (
    Agreement,
    Collapse,
    agreement,
    collapse,
    effective_classes,
    infomax,
    ranks,
    shift,
)
from segshift.errors import UserError
from segshift.report import build_selection
from segshift.setup import devices, digest, has_bf16, locked
from segshift.types import ClassSet

VERSION = 1
"""Of the way in which answers are kept: with another one, older ones do not hold."""

SOURCE_LABELS = 200
"""Labels of the source, evenly spread, whose classes are counted at most."""

FIGURES: Mapping[str, tuple[str, bool]] = {
    "effective": ("effective classes", True),
    "shift_source": ("shift, source", False),
    "entropy": ("entropy", False),
    "infomax": ("InfoMax", True),
    "infomax_prior": ("InfoMax, prior", True),
    "density": ("density", True),
    "shift_model": ("shift, source model", False),
    "teacher": ("teacher, points", True),
    "consensus_pixels": ("others, points", True),
    "consensus_miou": ("others, mIoU", True),
}
"""Figures by their names in select.json: the head of their column, and whether higher is better."""

RULE = ("effective", "shift_source")
"""Figures whose ranks are added up; the lowest sum is recommended, of equal ones the better first figure."""


@dataclass(frozen=True)
class Asked:
    """What to choose from, and how closely to look.

    Attributes:
        stages: of runs: `last`, `all`, or names by commas.
        images: of the target, at most.
        seed: of their choice.
        target: folder or declaration of the target's images; None: the target of the runs.
    """

    stages: str = "last"
    images: int = 64
    seed: int = 0
    target: str | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Seen:
    """A candidate, what is known of its answers, and why nothing is known (empty: it is)."""

    candidate: Candidate
    answers: tallies.Answers | None = None
    look: tallies.Look | None = None
    failure: str = ""


def select(
    paths: Sequence[str | Path], out: str | Path, asked: Asked | None = None, *, device: str = "auto"
) -> dict[str, Any]:
    """Rank models without any label of the target; write select.json and select.html into `out`.

    Answers of the models are kept in `out`/answers: the same call again asks no network.

    Args:
        paths: runs' folders, stages of runs, or models' folders.
        out: folder to write to.
        asked: see `Asked`.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The content of select.json, see docs/select.md.

    Raises:
        UserError: a model is missing or of other classes, the runs have different targets, or a file cannot be used.
    """
    asked, where, root = asked or Asked(), devices(device), Path(out)
    if asked.images < 1:
        raise UserError(f"--images {asked.images}", "1 at least", "leave it out for 64")
    if asked.seed < 0:
        raise UserError(f"--seed {asked.seed}", "0 or more", "leave it out for 0")
    candidates, notes = find_candidates([Path(path) for path in paths], asked.stages)
    classes = class_set(candidates[0].config)
    target = _target(candidates, asked, classes)
    images = sample(len(target), asked.images, asked.seed)
    place = Place(target, images, grid_of(*image_size(target.items[images[0]].image)), where)
    with locked(make_folder(root)):
        sweep(root)
        make_folder(root / "answers")
        desk = _Desk(root / "answers", place, asked.seed, classes)
        content = _choose(desk, candidates, notes) | {"seed": asked.seed}
        write_json(root / "select.json", content)
        build_selection(root)
    return content


def _target(candidates: Sequence[Candidate], asked: Asked, classes: ClassSet) -> Domain:
    """The images to look at, without labels.

    Raises:
        UserError: no run names a target, or two name different ones.
    """
    if asked.target is not None:
        given = asked.target
        declared = {"root": given} if isinstance(given, str) else dict(given)
        return open_domain(validated(DomainSettings, declared, "target"), classes, labelled=False, name="target")
    named = [(c.name, c.settings.target) for c in candidates if c.settings and c.settings.target]
    if not named:
        raise UserError("no run names a target", "the images to choose for", "add --target DIR")
    for name, settings in named[1:]:
        if settings != named[0][1]:
            raise UserError(
                f"{name} was adapted to {settings.root}, {named[0][0]} to {named[0][1].root}",
                "one target to compare on",
                "name it: --target DIR",
            )
    return open_domain(named[0][1], classes, labelled=False, name="target")


class _Desk:
    """Asks each model once, and remembers what it said in a folder."""

    def __init__(self, folder: Path, place: Place, seed: int, classes: ClassSet) -> None:
        self.folder, self.place, self.seed, self.classes = folder, place, seed, classes
        items = [place.domain.items[index] for index in place.images]
        self.about = digest(replace(place.domain, items=tuple(items)))
        self.shape = (len(place.images), len(classes), *place.grid)

    def file(self, candidate: Candidate) -> Path:
        """Where a model's answers are kept; another one for other weights, images or ways to ask."""
        options, precision = self._manner(candidate)
        asked = {
            "version": VERSION,
            "weights": candidate.config["sha256"],
            "net": candidate.config["net"],
            "size": candidate.config["size"],
            "options": options.model_dump(mode="json"),
            "precision": precision,
            "grid": list(self.place.grid),
        }
        return self.folder / f"{fingerprint(asked, self.about)[:32]}.npy"

    def _manner(self, candidate: Candidate) -> tuple[Options, str]:
        settings = candidate.settings
        known = settings.precision if settings else "auto"
        precision = known if known != "auto" else "bf16" if has_bf16(self.place.device) else "fp32"
        return settings.evaluation if settings else Options(), precision

    def ask(self, wanted: Sequence[Candidate]) -> dict[Path, _Seen]:
        """Answers of models, by their file; those that are not there yet are asked for.

        Raises:
            UserError: a model cannot be loaded, or an image cannot be read.
        """
        by_file = {self.file(candidate): candidate for candidate in wanted}
        missing = [file for file in by_file if read_answers(file, self.shape) is None]
        failures: dict[Path, str] = {}
        if missing:
            with track("select", len(missing) * len(self.place.images)) as bar:
                for file in missing:
                    model = load_model(by_file[file].folder, self.place.device)
                    try:
                        write_answers(file, model, self.place, *self._manner(by_file[file]), bar)
                    except UserError as error:
                        if "not finite" not in error.found:
                            raise
                        failures[file] = error.found
        return {file: self._seen(file, candidate, failures.get(file, "")) for file, candidate in by_file.items()}

    def _seen(self, file: Path, candidate: Candidate, failure: str) -> _Seen:
        if failure:
            return _Seen(candidate, failure=failure)
        answers = read_answers(file, self.shape)
        assert answers is not None
        return _Seen(candidate, answers, tallies.look(answers, self.seed))

    def prior(self, candidate: Candidate, notes: list[str]) -> np.ndarray | None:
        """Class shares of the labels of a candidate's source; None, and a note, where they are not there."""
        settings = candidate.settings
        if settings is None or settings.source is None:
            return None
        try:
            domain = open_domain(settings.source, self.classes, labelled=True, name="source")
            few = replace(domain, items=tuple(domain.items[i] for i in spread(len(domain), SOURCE_LABELS)))
            # The same files hold other classes where the class list is another one.
            counted = fingerprint({"classes": list(self.classes.names)}, digest(few))
            path = self.folder / f"source-{counted[:32]}.json"
            known = _shares(path, len(self.classes))
            if known is None:
                console().print(f"counting the classes of {len(few)} labels of the source")
                known = class_frequency(few)
                write_json(path, known.tolist())
            return known
        except UserError as error:
            note = f"the source's labels cannot be counted: {error.found}"
            if note not in notes:
                notes.append(note)
            return None


def _shares(path: Path, classes: int) -> np.ndarray | None:
    """Class shares that were counted before; None where there are none, or not of so many classes."""
    try:
        known = np.array(read_json(path), np.float64)
    except (UserError, TypeError, ValueError):
        return None
    return known if known.shape == (classes,) and np.isfinite(known).all() else None


def _choose(desk: _Desk, candidates: Sequence[Candidate], notes: list[str]) -> dict[str, Any]:
    """All figures of all candidates, and the recommendation."""
    related = {folder: c for c in candidates for folder in (c.source, c.teacher) if folder is not None}
    others = {folder: candidate_at(folder, c.settings, folder.parent.name) for folder, c in related.items()}
    seen = desk.ask([*candidates, *others.values()])
    priors: dict[str, np.ndarray | None] = {}
    for candidate in candidates:
        source = str(candidate.settings.source if candidate.settings else None)
        if source not in priors:
            priors[source] = desk.prior(candidate, notes)
    rows, falls = [], []
    for candidate in candidates:
        own = seen[desk.file(candidate)]
        first = seen[desk.file(others[candidate.source])] if candidate.source else None
        teacher = seen[desk.file(others[candidate.teacher])] if candidate.teacher else None
        prior = priors[str(candidate.settings.source if candidate.settings else None)]
        rows.append(_alone(own, first, teacher, prior))
        falls.append(_fallen(own, first, prior, desk.classes))
    _agree(rows, [seen[desk.file(candidate)] for candidate in candidates], falls)
    return _content(desk, candidates, rows, falls, notes, seen)


def _alone(own: _Seen, first: _Seen | None, teacher: _Seen | None, prior: np.ndarray | None) -> dict[str, float | None]:
    """The figures of one candidate that need no other candidate; None where there is nothing to compare with."""
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    if own.look is None or own.answers is None:
        return figures
    looked = own.look
    figures |= {
        "entropy": looked.entropy,
        "infomax": infomax(looked.mean, looked.entropy),
        "density": looked.density,
        "effective": effective_classes(looked.histogram),
    }
    if prior is not None:
        figures["infomax_prior"] = infomax(looked.mean, looked.entropy, prior)
        figures["shift_source"] = shift(looked.histogram, prior)
    if first is not None and first.look is not None:
        figures["shift_model"] = shift(looked.histogram, first.look.histogram)
    if teacher is not None and teacher.answers is not None:
        figures["teacher"] = agreement(tallies.confusion(teacher.answers, own.answers)).pixels
    return figures


def _fallen(own: _Seen, first: _Seen | None, prior: np.ndarray | None, classes: ClassSet) -> Collapse:
    if own.look is None:
        return Collapse((own.failure,), ())
    if first is not None and first.look is not None and first.answers is not None and own.answers is not None:
        same = agreement(tallies.confusion(first.answers, own.answers)).pixels
        return collapse(own.look.histogram, first.look.histogram, classes.names, same=same)
    return collapse(own.look.histogram, prior, classes.names, "the source, by its labels,")


def _agree(rows: list[dict[str, float | None]], seen: Sequence[_Seen], falls: Sequence[Collapse]) -> None:
    """Add how far each candidate agrees with the others that have not collapsed."""
    there = [place for place, one in enumerate(seen) if one.answers is not None]
    answers = [one.answers for one in seen if one.answers is not None]
    if not answers:
        return
    members = [not falls[place].reasons for place in there]
    for place, counts in zip(there, tallies.against_the_others(answers, members), strict=True):
        if counts is not None:
            found: Agreement = agreement(counts)
            rows[place] |= {"consensus_pixels": found.pixels, "consensus_miou": found.miou}


def recommend(rows: Sequence[Mapping[str, float | None]], collapsed: Sequence[bool]) -> list[float | None]:
    """The sum of the ranks of `RULE` of each candidate that has not collapsed, among these; the lowest is recommended.

    A figure that no candidate has is left out; a candidate that lacks one which others have is ranked behind them.
    """
    standing = [place for place, fallen in enumerate(collapsed) if not fallen]
    sums: list[float | None] = [0.0 if not fallen else None for fallen in collapsed]
    for figure in RULE:
        values = [rows[place].get(figure) for place in standing]
        if all(value is None for value in values):
            continue
        for place, rank in zip(standing, ranks(values, higher=FIGURES[figure][1]), strict=True):
            sums[place] = (sums[place] or 0.0) + (len(standing) if rank is None else rank)
    return sums


def best(rows: Sequence[Mapping[str, float | None]], sums: Sequence[float | None]) -> int | None:
    """The index of the recommended candidate; None where all have collapsed."""
    known = [(total, -(rows[i].get(RULE[0]) or 0.0), i) for i, total in enumerate(sums) if total is not None]
    return min(known)[2] if known else None


def _content(
    desk: _Desk,
    candidates: Sequence[Candidate],
    rows: Sequence[dict[str, float | None]],
    falls: Sequence[Collapse],
    notes: Sequence[str],
    seen: Mapping[Path, _Seen],
) -> dict[str, Any]:
    sums = recommend(rows, [bool(fall.reasons) for fall in falls])
    chosen = best(rows, sums)
    names = desk.classes.names
    entries = []
    for candidate, figures, fall, total in zip(candidates, rows, falls, sums, strict=True):
        looked = seen[desk.file(candidate)].look
        entries.append(
            {
                "name": candidate.name,
                "folder": str(candidate.folder.resolve()),
                "also": list(candidate.also),
                "weights": candidate.config["sha256"],
                "answers": desk.file(candidate).name,
                "score": total,
                "figures": figures,
                "collapsed": list(fall.reasons),
                "lost": [names[k] for k in fall.lost],
                "histogram": None if looked is None else looked.histogram.tolist(),
            }
        )
    return {
        "target": desk.place.domain.settings.root.expanduser().resolve().as_posix(),
        "images": [desk.place.domain.items[index].name for index in desk.place.images],
        "grid": list(desk.place.grid),
        "classes": list(names),
        "palette": [list(colour) for colour in desk.classes.palette],
        "figures": [{"name": key, "head": head, "higher": higher} for key, (head, higher) in FIGURES.items()],
        "rule": list(RULE),
        "recommended": None if chosen is None else candidates[chosen].name,
        "candidates": entries,
        "notes": list(notes),
    }
