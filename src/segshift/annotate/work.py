"""The labels of a folder's images while a person makes them: every accepted action is on disk before the next."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segshift.annotate.beside import Beside
from segshift.annotate.folder import Folder
from segshift.annotate.operations import Action, State, apply, state_of
from segshift.annotate.pictures import Header, header
from segshift.artefacts.store import sha256
from segshift.errors import UserError
from segshift.types import ClassSet
from segshift.weak.label import WeakLabel, decode, encode
from segshift.weak.matching import class_names, find_images, fitted, listed, misplaced, renamed, told_of_merged
from segshift.weak.store import WeakStore

log = logging.getLogger("segshift")

HEADERS = 512
"""Images whose headers are remembered."""


class Stale(Exception):
    """An action was meant for a state that is no more: another tab or program was faster."""


class NotSaved(UserError):
    """The file of labels cannot be read or written just now."""


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space: the page goes on by itself" if full else error.remedy
        raise NotSaved(error.found, error.wanted, remedy) from error


@dataclass(frozen=True)
class Progress:
    """How far the folder is labelled.

    Attributes:
        total: images.
        labelled: images with any label.
        complete: of those, images whose tags are complete.
        median: seconds spent on an image; None: none was labelled here.
        stamp: changes with every change of a label.
    """

    total: int
    labelled: int
    complete: int
    median: float | None
    stamp: str


class Work:
    """Labels of the images of a folder, in a file that other programs may append to as well.

    Args:
        folder: the images.
        classes: that can be given to them.
        store: of the labels.
        beside: times and dismissed suggestions.
        who: is labelling; None: not said.

    Raises:
        UserError: the file is damaged, names classes that the list does not have, or is about other images altogether.
    """

    def __init__(self, folder: Folder, classes: ClassSet, store: WeakStore, beside: Beside, who: str | None) -> None:
        self.folder, self.classes, self.who = folder, classes, who
        self._store, self._beside = store, beside
        self._lock = threading.RLock()
        self._labels: dict[str, WeakLabel] = {}
        self._done: dict[str, int] = {}
        self._seen: tuple[int, ...] | None = None
        self._dismissed = beside.dismissed()
        self._versions: dict[str, tuple[tuple[int, int], str]] = {}
        self._headers: OrderedDict[str, tuple[str, Header]] = OrderedDict()
        self._boot, self._changes = secrets.token_hex(4), 0
        self._load(first=True)

    # ---- what the page asks

    def state(self, name: str) -> State:
        """The label of an image now.

        Raises:
            NotSaved: the file of labels is damaged by now.
            UserError: no such image, or it cannot be read.
        """
        with self._lock:
            self._refresh()
            label = self._labels.get(name)
            if label is not None and label.points:
                try:
                    label, _ = fitted(label, self.header(name).size)
                except UserError as error:
                    take_back = json.dumps({"image": label.image})
                    raise UserError(
                        error.found, error.wanted,
                        f"put the image back that was labelled; or label it anew: append {take_back} to "
                        f"{self._store.path}, which takes back what was said of it",
                    ) from error  # fmt: skip
                wrong = misplaced(label)
                if wrong:
                    raise UserError(
                        f"{name}: {len(wrong)} points lie outside of the image or two on a pixel, as {list(wrong[0])}",
                        "points in pixels of this image",
                        f"take its line out of {self._store.path}",
                    )
            return state_of(label, self._dismissed.get(name, ()), self.classes.names)

    def note(self, name: str) -> str:
        """What a person should know of how an image's label is shown; empty: nothing.

        Raises:
            UserError: as `state`.
        """
        with self._lock:
            label = self._labels.get(name)
            size = self.header(name).size
            merged = fitted(label, size)[1] if label is not None and label.points else []
            return told_of_merged(len(merged), size) if merged else ""

    def header(self, name: str) -> Header:
        """Size and kind of an image, read from its file when that has changed.

        Raises:
            UserError: no such image, or it cannot be read.
        """
        kind = self.version(name)
        with self._lock:
            known = self._headers.get(name)
            if known is None or known[0] != kind:
                known = kind, header(self.folder.file(name))
                self._headers[name] = known
                while len(self._headers) > HEADERS:
                    self._headers.popitem(last=False)
            return known[1]

    def version(self, name: str) -> str:
        """A name for what an image's file holds now: it changes with the content, not with the file's time alone.

        Raises:
            UserError: no such image, or it is gone.
        """
        try:
            about = os.stat(self.folder.file(name))
            stamp = about.st_mtime_ns, about.st_size
            known = self._versions.get(name)
            if known is None or known[0] != stamp:
                known = self._versions[name] = stamp, sha256(self.folder.file(name))[:32]
            return known[1]
        except OSError as error:
            raise UserError(
                f"image {name} is gone: {error.strerror}", remedy="put it back, or go on without"
            ) from error

    def act(self, action: Action) -> State:
        """Apply an action and save what came of it; when this returns, it is on disk.

        Raises:
            Stale: it was meant for another state than the present one; nothing was changed.
            NotSaved: the disk is full or the file damaged; nothing was changed.
            UserError: it cannot be done to this image.
        """
        with self._lock:
            if action.file not in ("", self.version(action.image)):
                raise UserError("the image's file has changed since it was shown", remedy="look at it again")
            before = self.state(action.image)
            if before.revision != action.base:
                raise Stale
            size = self.header(action.image).size
            after = apply(before, action.ops, self.classes.names, size)
            changes = (after.tags, after.points, after.complete) != (before.tags, before.points, before.complete)
            # Refused here, not while it is saved: that would be tried again without end.
            label = self._label(action.image, after, size) if changes else None
            with _on_disk():
                self._beside.spend(action.image, action.visit, action.seconds)
                if label is not None:
                    self._save(action.image, after, label)
                if after.dismissed != before.dismissed:
                    changed = {**self._dismissed, action.image: list(after.dismissed)}
                    self._beside.dismiss({image: names for image, names in changed.items() if names})
                    self._dismissed = changed
                    # One action is one change: a page takes two for somebody else's.
                    self._changes += label is None
            return after

    def progress(self) -> Progress:
        """How far the folder is labelled now."""
        with self._lock:
            self._refresh()
            return Progress(
                len(self.folder.names),
                len(self._done),
                list(self._done.values()).count(2),
                self._beside.median(self._done),
                f"{self._boot}-{self._changes}",
            )

    def done(self) -> dict[str, int]:
        """Images with a label: 1 begun, 2 complete."""
        with self._lock:
            self._refresh()
            return dict(self._done)

    # ---- the file

    def _label(self, name: str, state: State, size: tuple[int, int]) -> WeakLabel:
        """The label to save, once it is known that it can be read back."""
        known = self._labels.get(name)
        # Under the path that the file has for this image already, such as that of another tool's export.
        label = state.label(known.image if known else name, size).stamped(self.who)
        decode(encode(label), f"the label of {name}")
        return label

    def _save(self, name: str, state: State, label: WeakLabel) -> None:
        self._store.append(label)
        longer = len(encode(label).encode()) + 1
        seen, before = _signature(self._store.path), self._seen or (0, 0, 0)
        # What another program has appended in between is read with the next question.
        if seen is not None and seen[2] == before[2] + longer and (self._seen is None or before[:2] == seen[:2]):
            self._seen = seen
        self._labels[name] = label
        self._done.pop(name, None)
        self._done |= {name: state.progress} if state.progress else {}
        self._changes += 1

    def _refresh(self) -> None:
        if _signature(self._store.path) != self._seen:
            with _on_disk():
                self._load(first=False)

    def _load(self, *, first: bool) -> None:
        """Read the labels' file, and find the image of each label."""
        seen = _signature(self._store.path)
        found = self._store.read() if seen is not None else {}
        labels: dict[str, WeakLabel] = {}
        names = class_names(found.values(), self.classes)
        items = {item.name: image for image, item in self.folder.items.items()}
        places = find_images(found, list(self.folder.items.values()))
        for image, item in places.items():
            name = items[item.name]
            if name in labels:
                raise UserError(
                    f"{self._store.path}: {labels[name].image} and {image} are both {name}",
                    "one path an image",
                    "take the lines of one of them out of the file",
                )
            labels[name] = renamed(found[image], names)
        gone = [image for image, label in found.items() if image not in places and not label.empty]
        if first and gone:
            self._say_gone(gone, labels)
        self._labels, self._seen = labels, seen
        states = {name: state_of(label, (), self.classes.names).progress for name, label in labels.items()}
        self._done = {name: progress for name, progress in states.items() if progress}
        self._changes += 1

    def _say_gone(self, gone: list[str], labels: dict[str, WeakLabel]) -> None:
        if not labels:
            raise UserError(
                f"{self._store.path} has labels of {len(gone)} images, and none of them is in {self.folder.home}: "
                f"{listed(gone)}",
                "labels of the images in this folder",
                "name the folder that they were made on, or another file with --out",
            )
        log.warning(
            "%s has labels of %d images that are not in %s: %s; they stay in the file, but training on this folder "
            "will refuse them: take their lines out, or put the images back",
            self._store.path, len(gone), self.folder.home, listed(gone),
        )  # fmt: skip


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to: device, inode, length, time; None where there is no file."""
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
