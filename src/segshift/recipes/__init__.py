"""Recipes: what to do, as plain YAML files beside this one; where the data lies is the user's part."""

from __future__ import annotations

import difflib
from importlib import resources
from typing import Any

import yaml

from segshift.errors import UserError


def names() -> list[str]:
    """Names of all recipes, such as `cpu/advent`."""
    root = resources.files(__package__)
    found = [f"{folder.name}/{file.name}" for folder in root.iterdir() if folder.is_dir() for file in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def groups() -> list[str]:
    """The folders of recipes, such as `cpu`."""
    return list(dict.fromkeys(name.partition("/")[0] for name in names()))


def text(name: str) -> str:
    """A recipe's YAML.

    Raises:
        UserError: there is no recipe of this name.
    """
    if name not in names():
        raise UserError(f"unknown recipe {name!r}; {_meant(name)}", remedy="`segshift recipes` lists them")
    return resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """A recipe's settings."""
    # libyaml's reader where there is one: the list reads all of them.
    content = yaml.load(text(name), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(content, dict)
    return content


def _meant(name: str) -> str:
    """Which recipe may have been meant; there are too many of them to name all."""
    group, _, last = name.rpartition("/")
    if (whole := group if not last else name) in groups():
        return f"it is a group of them: `segshift recipes {whole}` lists it"
    close = [known for known in names() if known.partition("/")[2] == last]
    close = close or difflib.get_close_matches(name, [*names(), *groups()], n=1, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"groups of them: {', '.join(groups())}"
