"""Tags that a trained model predicts, computed by a process of its own and kept beside the labels.

They are no labels: the page shows them as suggestions until a person confirms them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from segshift.annotate.folder import Folder
from segshift.errors import UserError
from segshift.types import ClassSet
from segshift.weak.matching import known_as


@dataclass(frozen=True)
class Suggested:
    """What the model says of an image.

    Attributes:
        tags: classes that it sees, in the order of the class list.
        entropy: mean over the pixels, 0 (sure everywhere) to 1 (all classes equally likely everywhere).
    """

    tags: tuple[str, ...]
    entropy: float


class Suggestions:
    """Suggestions for a folder's images, more and more of them while the other process works.

    Args:
        run: a run, one of its stages, or a model's folder.
        folder: the images.
        classes: that can be given to them; the model may know others too, which are not suggested.
        beside: folder where they are kept, so that the next start has them at once.
        first: images to compute first: those that are not labelled.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: the model cannot be loaded, or knows none of the classes.
    """

    def __init__(
        self, run: Path, folder: Folder, classes: ClassSet, beside: Path, first: set[str], device: str = "auto"
    ) -> None:
        self._folder, self._run, self._classes = folder, run, classes
        self._lock = threading.Lock()
        self._known: dict[str, Suggested] = {}
        self._problems: dict[str, str] = {}
        self._failure = ""
        self._listener: threading.Thread | None = None
        if not run.exists():
            raise UserError(f"--suggest {run} does not exist", "a run, a stage of a run, or a model's folder")
        command = [sys.executable, "-m", "segshift.annotate.predicting", str(run), device]
        # A session of its own, so that Ctrl-C in the terminal stops it after the server, not before.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
        )
        try:
            hello = self._hello()
            names = self._usable(hello["classes"])
            kept = hashlib.sha256(json.dumps([hello["model"], names]).encode()).hexdigest()[:16]
            self._kept = beside / f"suggestions-{kept}.jsonl"
            self._prints = {name: fingerprint(folder.file(name)) for name in folder.names}
            self._read_kept()
            todo = sorted(set(folder.names) - set(self._known), key=lambda name: (name not in first, name))
            content = [[name, str(folder.file(name))] for name in todo]
            self._pipe().write(json.dumps({"names": names, "files": content}) + "\n")
            self._pipe().flush()
        except BaseException:
            self.stop()
            raise
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def of(self, name: str) -> tuple[str, ...] | None:
        """Suggested tags of an image; None: not computed (yet)."""
        with self._lock:
            known = self._known.get(name)
            return known.tags if known else None

    def standing(self) -> dict[str, Any]:
        """How far the computation is, and what went wrong."""
        with self._lock:
            return {
                "run": self._run.name,
                "computed": len(self._known) + len(self._problems),
                "unreadable": len(self._problems),
                "failure": self._failure,
            }

    def ranked(self) -> tuple[str, ...] | None:
        """The images in the order in which a label would help most: by entropy, highest first; None: not yet known."""
        with self._lock:
            if len(self._known) + len(self._problems) < len(self._folder.names):
                return None
            last = Suggested((), -1.0)
            return tuple(sorted(self._folder.names, key=lambda name: (-self._known.get(name, last).entropy, name)))

    def stop(self) -> None:
        """End the other process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._pipe().close()
        if self._listener is not None:
            self._listener.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    # ---- the other process

    def _pipe(self) -> IO[str]:
        if self._process.stdin is None:
            raise RuntimeError("the process was started with a pipe")
        return self._process.stdin

    def _hello(self) -> dict[str, Any]:
        """What the process says when it has loaded the model."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise UserError(
                f"--suggest {self._run}: the process that computes suggestions ended",
                remedy="see its message above, or leave out --suggest",
            )
        hello: dict[str, Any] = json.loads(line)
        if "found" in hello:
            raise UserError(f"--suggest {self._run}: {hello['found']}", hello["wanted"], hello["remedy"])
        return hello

    def _usable(self, known: list[str]) -> list[str | None]:
        """For each class of the model, its name in the class list; None: not in it."""
        # A name of digits of another list is no train id of this one.
        mine = self._classes
        names = [None if name.isdecimal() and name not in mine.names else known_as(name, mine) for name in known]
        if not any(names):
            raise UserError(
                f"--suggest {self._run}: the model knows {', '.join(known)}",
                f"some of the classes of --classes: {', '.join(self._classes.names)}",
                "name a run that was trained with this class list",
            )
        return names

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._take(json.loads(line))
        code = self._process.wait()
        with self._lock:
            if code > 0 and not self._failure:
                self._failure = f"the process that computes suggestions ended with code {code}"

    def _take(self, said: dict[str, Any]) -> None:
        with self._lock:
            if "failure" in said:
                self._failure = said["failure"]
            elif "problem" in said:
                self._problems[said["image"]] = said["problem"]
            else:
                self._know(said)
                line = json.dumps({**said, "file": self._prints[said["image"]]}) + "\n"
                try:
                    with open(self._kept, "a", encoding="utf-8") as file:
                        file.write(line)
                except OSError as error:
                    # They hold in this session all the same.
                    self._failure = f"suggestions cannot be kept for the next start: {error.strerror}"

    def _know(self, said: dict[str, Any]) -> None:
        tags = tuple(name for name in self._classes.names if name in said["tags"])
        self._known[said["image"]] = Suggested(tags, float(said["entropy"]))

    def _read_kept(self) -> None:
        lines = self._kept.read_bytes().splitlines() if self._kept.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                if self._prints.get(entry["image"]) == entry["file"]:
                    self._know(entry)
            except (ValueError, LookupError, TypeError):
                # Cut off by a crash; it is computed again.
                continue


def fingerprint(file: Path) -> str:
    """What changes with an image's file: length and time; empty for one that is gone, of which nothing is known."""
    try:
        about = os.stat(file)
    except OSError:
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}"
