"""The file `weak.jsonl`: a label a line, only ever appended to; of several lines of an image the last one holds.

Two processes may append at the same time, and one may be killed while it does: lines that were accepted stay whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from segshift.artefacts.store import atomic_path, make_folder, write_error
from segshift.errors import UserError
from segshift.weak.label import Point, WeakLabel, decode, encode

__all__ = ["Point", "WeakLabel", "WeakStore"]

log = logging.getLogger("segshift")

_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark."""


class WeakStore:
    """Weak labels in a file.

    Args:
        path: the file; it and its folder are made by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, WeakLabel]:
        """The label of each image by its path, in the order in which the images were first labelled.

        A label that says nothing (its image was taken back) is among them: see `WeakLabel.empty`.

        Raises:
            UserError: as `lines`.
        """
        return {label.image: label for label in self.lines()}

    def lines(self) -> list[WeakLabel]:
        """All labels, the oldest first, replaced ones too.

        A last line without newline that is not whole is what an interrupted writer left: it is dropped, with a warning.

        Raises:
            UserError: no such file, not readable, or a malformed line (naming file and line).
        """
        labels = []
        whole, torn = _split(self._bytes())
        for number, line in enumerate(whole, start=1):
            if line.strip():
                labels.append(decode(_text(line, f"{self.path}, line {number}"), f"{self.path}, line {number}"))
        if torn:
            log.warning("%s: its last line was cut off while it was written; it is not used", self.path)
        return labels

    def append(self, label: WeakLabel) -> None:
        """Add a label; when this returns, it is on disk.

        Raises:
            UserError: the label cannot be read back, or the file not be written; then it is as it was before.
        """
        data = self._checked([label])
        with self._locked() as file:
            self._drop_torn(file)
            start = os.fstat(file).st_size
            try:
                if os.write(file, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            except OSError as error:
                # Half a line, or one that was not promised to anybody.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, start)
                raise write_error(self.path, error) from error

    def extend(self, labels: Iterable[WeakLabel]) -> None:
        """Add labels, all of them or, whatever happens, none.

        Raises:
            UserError: as `append`.
        """
        data = self._checked(labels)
        if not data:
            return
        # The file is replaced by a longer one; whoever waits for the lock of the old one sees that and opens anew.
        with self._locked() as file:
            self._drop_torn(file)
            path = self.path.resolve()
            with atomic_path(path) as temporary:
                shutil.copy(path, temporary)
                with open(temporary, "ab") as longer:
                    longer.write(data)

    def _checked(self, labels: Iterable[WeakLabel]) -> bytes:
        lines = [encode(label) for label in labels]
        for line in lines:
            decode(line, f"a label for {self.path}")
        return "".join(line + "\n" for line in lines).encode()

    def _bytes(self) -> bytes:
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"weak labels {self.path} are no file", "a file with a label a line", "correct the path")
        try:
            with open(self.path, "rb") as file:
                # Without the lock a line that is being written would look torn.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_SH)
                return file.read()
        except FileNotFoundError as error:
            raise UserError(
                f"weak labels {self.path} do not exist",
                "a file with a label a line",
                "correct the path, or make labels with `segshift annotate` or `segshift labels import`",
            ) from error
        except OSError as error:
            raise UserError(f"weak labels {self.path} cannot be read: {error.strerror}", "a readable file") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open for appending, while no other process appends."""
        make_folder(self.path.parent)
        while True:
            try:
                fresh = not self.path.exists()
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise write_error(self.path, error) from error
            try:
                if fresh:
                    _sync_folder(self.path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(file, self.path):
                    yield file
                    return
            except OSError as error:
                raise write_error(self.path, error) from error
            finally:
                os.close(file)

    def _drop_torn(self, file: int) -> None:
        """Take away half a line that an interrupted writer left, so that the next one does not grow onto it."""
        size = os.fstat(file).st_size
        if not size or os.pread(file, 1, size - 1) == b"\n":
            return
        data = os.pread(file, size, 0)
        whole, torn = _split(data)
        if torn:
            log.warning("%s: dropped its last line, which was cut off while it was written", self.path)
            os.ftruncate(file, len(data) - len(torn))
        else:
            # An editor that ends no line; if that is no label, this may be another file altogether.
            where = f"{self.path}, line {len(whole)}"
            decode(_text(whole[-1], where), where)
            os.write(file, b"\n")


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a file, and what follows the last newline where that is only a part of one."""
    *lines, last = data.removeprefix(_MARK).split(b"\n")
    if not last.strip(b" \t\r"):
        return lines, b""
    # A write that was cut off leaves the beginning of an object or, after a power failure, zeros: all else is kept.
    if not last.startswith(b"{") and last.strip(b"\0"):
        return [*lines, last], b""
    # No part of an object is JSON; what is, was written by an editor that ends no line, and is read like any other.
    try:
        json.loads(last.decode())
    except (ValueError, RecursionError):
        return lines, last
    return [*lines, last], b""


def _text(line: bytes, where: str) -> str:
    try:
        # A file that some editors have saved begins with a mark, also where it was joined to another one.
        return line.removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text", "JSON in UTF-8", "save the file as UTF-8") from error


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Bring a new file's name to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
