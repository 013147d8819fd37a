"""What the page remembers besides labels, in a folder beside the labels' file; it can be deleted at any time.

It holds the token of the link (so that an open page goes on after the server was started anew), the time spent on each
image, suggestions that were dismissed, and computed suggestions.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import statistics
from collections.abc import Collection
from pathlib import Path

from segshift.artefacts.store import make_folder, write_error, write_json
from segshift.errors import UserError

TOKEN_BYTES = 24
"""Of randomness in the link: 192 bits."""


class Beside:
    """The folder `NAME.annotate` beside a file of labels.

    Args:
        out: the file of labels.

    Raises:
        UserError: it cannot be made, or another server uses it.
    """

    def __init__(self, out: Path) -> None:
        try:
            self.folder = make_folder(out.with_name(out.name + ".annotate"))
        except UserError as error:
            raise UserError(f"--out {out}: {error.found}", error.wanted, error.remedy) from error
        self._times = self.folder / "times.jsonl"
        self._dismissed = self.folder / "dismissed.json"
        try:
            # Held until the process ends, however it ends.
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(self.folder / "lock", error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UserError(
                f"{out} is being labelled by another `segshift annotate`",
                "one server a file; its page can be open in several tabs",
                "use the link that it printed, or stop it with Ctrl-C",
            ) from error
        self._spent: dict[str, dict[str, float]] = {}
        self._read_times()

    def close(self) -> None:
        """Let another server use the folder; a start that came to nothing leaves none behind."""
        with contextlib.suppress(OSError):
            if os.listdir(self.folder) == ["lock"]:
                (self.folder / "lock").unlink()
                self.folder.rmdir()
        os.close(self._lock)

    def token(self) -> str:
        """The secret in the link: random, made once, readable by this user alone."""
        path = self.folder / "token"
        try:
            kept = path.read_text().strip() if path.exists() else ""
            if len(kept) >= TOKEN_BYTES and kept.replace("-", "").replace("_", "").isalnum():
                return kept
            fresh = secrets.token_urlsafe(TOKEN_BYTES)
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(fresh)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be used: {error}", "a file that this user can read and write", f"delete {self.folder}"
            ) from error
        return fresh

    # ---- time spent

    def spend(self, image: str, visit: str, seconds: float) -> None:
        """Remember how long a person has worked on an image since the page showed it."""
        visits = self._spent.setdefault(image, {})
        if seconds <= visits.get(visit, 0.0):
            return
        visits[visit] = seconds
        line = json.dumps({"image": image, "visit": visit, "seconds": round(seconds, 2)})
        try:
            with open(self._times, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise write_error(self._times, error) from error

    def median(self, images: Collection[str]) -> float | None:
        """Median seconds that were spent on an image, of those of `images` that time was spent on."""
        spent = [sum(visits.values()) for image, visits in self._spent.items() if image in images]
        return statistics.median(spent) if spent else None

    def _read_times(self) -> None:
        lines = self._times.read_bytes().splitlines() if self._times.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                image, visit, seconds = str(entry["image"]), str(entry["visit"]), float(entry["seconds"])
            except (ValueError, LookupError, TypeError):
                # Cut off by a crash: a time is no label.
                continue
            self._spent.setdefault(image, {})[visit] = seconds

    # ---- suggestions that were dismissed

    def dismissed(self) -> dict[str, list[str]]:
        """Classes that a person took out of an image's suggestions, by image."""
        try:
            content = json.loads(self._dismissed.read_text(encoding="utf-8"))
            return {str(image): [str(name) for name in names] for image, names in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{self._dismissed} cannot be read: {error}", remedy="delete it: dismissed suggestions come back"
            ) from error

    def dismiss(self, content: dict[str, list[str]]) -> None:
        """Write `dismissed` anew."""
        write_json(self._dismissed, content)
