"""Commands of the documentation that no test runs, each with the reason and with what is checked instead."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

from doc_pages import ROOT


@dataclass(frozen=True)
class Declared:
    """Commands that are not run.

    Attributes:
        pattern: the whole command, as a regular expression.
        reason: why it cannot be run in a test.
        check: what is asked of the command instead; fails with an AssertionError.
    """

    pattern: str
    reason: str
    check: Callable[[str], None]


def _make(command: str) -> None:
    """make knows the targets, and what it would do."""
    words = shlex.split(command)
    told = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def _install(command: str) -> None:
    """The files are there, the package and its extras are ours, other packages are those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    words = shlex.split(command)
    words = words[words.index("install") + 1 :]
    while words:
        word = words.pop(0)
        if word == "-c":
            assert (ROOT / words.pop(0)).is_file(), command
        elif word != "-e":
            own = re.fullmatch(rf"(?:{project['name']}|\.)(?:\[(\w+)\])?", word)
            known = own[1] is None or own[1] in extras if own else any(word in needed for needed in extras.values())
            assert known, f"{command}: {word} is neither this package nor one of its extras {extras}"


def _script(command: str) -> None:
    """The script is there and knows the options."""
    _, script, *rest = shlex.split(command)
    text = (ROOT / script).read_text(encoding="utf-8")
    unknown = [word for word in rest if word.startswith("--") and f'"{word}"' not in text]
    assert not unknown, f"{command}: {script} has no {unknown}"


def _nothing(command: str) -> None:
    """There is nothing of ours in it."""


DECLARED = (
    Declared(r"make (demo|test|check|bench)", "installs, runs all tests, or trains for minutes", _make),
    Declared(r"(\.venv/bin/)?pip install .+", "installs packages from the network", _install),
    Declared(r"python3 -m venv \.venv", "makes an environment, for the installation that follows", _nothing),
    Declared(r"\. \.venv/bin/activate", "changes the shell's own path; the tests call what it finds", _nothing),
    Declared(r"git clone URL segshift", "URL stands for the address of the repository", _nothing),
    Declared(r"cd segshift", "goes into the clone that was not made", _nothing),
    Declared(r"python bench/(step|selection|real_pair)\.py( .*)?", "measures for minutes or trains for hours", _script),
)


def declaration(command: str) -> Declared | None:
    """The entry of a command that is not run."""
    return next((entry for entry in DECLARED if re.fullmatch(entry.pattern, command)), None)
