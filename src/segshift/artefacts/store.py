"""Files that are either whole or not there: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from segshift.errors import UserError


def write_error(path: Path, error: OSError) -> UserError:
    """The error to show when `path` could not be written: what is wrong with the disk, and what to do."""
    if error.errno == errno.ENOSPC or error.errno == errno.EDQUOT:
        return UserError(
            f"the disk is full: cannot write {path}",
            remedy="free some space and run the same command again: it goes on from the last checkpoint",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"no permission to write {path}", remedy="choose another --out, or make the folder writable")
    return UserError(f"cannot write {path}: {error.strerror or error}", remedy="check the folder and run again")


def make_folder(path: Path) -> Path:
    """Create `path` and its parents.

    Raises:
        UserError: it cannot be made (read-only, full disk, a file of that name).
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{path} is a file", "a folder", "choose another name") from error
    except OSError as error:
        raise write_error(path, error) from error
    return path


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside `final`; what was written there becomes `final` when the block ends well, else vanishes.

    The data reaches the disk before the name does, so a power cut leaves the old file or the new one, never a half.

    Raises:
        UserError: the disk is full or read-only.
    """
    # The suffix stays: image writers choose their format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise write_error(final, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sweep(root: Path) -> None:
    """Remove what processes that were killed left half-written under `root`; the caller holds the folder's lock."""
    for path in list(root.rglob(".*.tmp*")):
        found = re.fullmatch(r"\..+\.(\d+)\.tmp(\.\w+)?", path.name)
        if found is None or _alive(int(found[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(pid: int) -> bool:
    """Whether another process of this number runs: it may be writing."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable by people."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Names of files may hold bytes that are no text; escaped they survive.
        text = json.dumps(value, indent=1)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that segshift wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", remedy="is this a finished run of segshift?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy="delete it and run the stage again") from error


SEAL = "manifest.json"
"""The file of an artefact that is written last and says what the others hold."""


def seal(folder: Path, kind: str, files: Iterable[Path]) -> None:
    """Finish an artefact: write, last of all, the checksums of its files.

    Args:
        folder: of the artefact.
        kind: what it is, for people.
        files: below `folder`.
    """
    sums = {str(path.relative_to(folder)): sha256(path) for path in sorted(files)}
    write_json(folder / SEAL, {"kind": kind, "files": sums})


def damaged(folder: Path) -> list[str]:
    """Files of a sealed artefact that are missing or not what was written; the seal itself where that is unreadable."""
    try:
        sums = dict(read_json(folder / SEAL)["files"])
    except (UserError, LookupError, TypeError, ValueError):
        return [SEAL]
    found = []
    for name, wanted in sums.items():
        try:
            whole = sha256(folder / name) == wanted
        except OSError:
            whole = False
        if not whole:
            found.append(name)
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
