"""Recipes: what to do, as plain YAML files beside this one; where the data lies is the user's part."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from segshift.errors import UserError, nearest


def names() -> list[str]:
    """Names of all recipes, such as `cpu/advent`."""
    root = resources.files(__package__)
    found = [f"{folder.name}/{file.name}" for folder in root.iterdir() if folder.is_dir() for file in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def text(name: str) -> str:
    """A recipe's YAML.

    Raises:
        UserError: there is no recipe of this name.
    """
    if name not in names():
        raise UserError(f"unknown recipe {name!r}; {nearest(name, names())}", remedy="`segshift recipes` lists them")
    return resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """A recipe's settings."""
    content = yaml.safe_load(text(name))
    assert isinstance(content, dict)
    return content
