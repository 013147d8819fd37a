"""Arrays in .npz files that are whole or not there, equal byte for byte where the arrays are equal."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segshift.artefacts.store import atomic_path, make_folder
from segshift.errors import UserError, gist


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> None:
    """Write arrays by name.

    Raises:
        UserError: the disk is full or read-only.
    """
    file, content = io.BytesIO(), dict[str, Any](arrays)
    (np.savez_compressed if compressed else np.savez)(file, **content)
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def read_arrays(path: Path, names: Iterable[str], what: str = "file", remedy: str = "") -> dict[str, np.ndarray]:
    """Some arrays of a file.

    Args:
        what: the file is, for the message.
        remedy: what to do about a damaged one.

    Raises:
        UserError: the file is missing or damaged, or has no array of a name.
    """
    try:
        # By way of memory: np.load leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return {name: file[name] for name in names}
    # Depending on where the damage is, numpy and the zip reader below it raise any of these.
    except (OSError, ValueError, LookupError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"the {what} {path} cannot be read: {gist(error)}", remedy=remedy) from error
