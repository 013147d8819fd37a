"""Files of a run folder, which may be damaged: what cannot be read becomes a line in `problems`."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from segshift.artefacts.store import read_json
from segshift.errors import UserError
from segshift.report.values import sequence, whole

Colour = tuple[int, int, int]


def load(run: Path, name: str, problems: list[str]) -> Any:
    """Content of a JSON file of a run; None, and a line in `problems`, where it is missing or damaged."""
    path = run / name
    if not path.exists():
        problems.append(f"{name} is missing")
        return None
    try:
        return read_json(path)
    except (UserError, RecursionError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        problems.append(f"{name} cannot be read ({reason})")
        return None


def inside(home: Path, name: str, shown: str, problems: list[str]) -> Path | None:
    """A file that lies inside `home`; None, and a line in `problems` that calls it `shown`, where there is none.

    The folder may come from somebody else: nothing outside it goes into a page that is passed on.
    """
    try:
        path = (home / name).resolve()
        if path.is_relative_to(home.resolve()) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        pass
    problems.append(f"{shown} is missing")
    return None


def palette(value: object, classes: int) -> tuple[Colour, ...]:
    """One colour a class; grey for each that is missing or no colour."""
    colours: list[Colour] = []
    for entry in sequence(value)[:classes]:
        levels = [whole(level) for level in sequence(entry)]
        valid = [level for level in levels if level is not None and level <= 255]
        colours.append((valid[0], valid[1], valid[2]) if len(valid) == 3 == len(levels) else (128, 128, 128))
    return tuple(colours + [(128, 128, 128)] * (classes - len(colours)))


def stage_folders(run: Path) -> list[Path]:
    """The NN-STAGE folders of a run, in order."""
    # Stages that were set aside carry a dot in their name and are no part of the run any more.
    return sorted(path for path in run.iterdir() if path.is_dir() and re.fullmatch(r"\d{2,}-[^.]+", path.name))


def short(name: str) -> str:
    """A domain that is named by its whole path: by its last two folders."""
    return "/".join(PurePath(name).parts[-2:]) if PurePath(name).is_absolute() else name
