"""YAML of files that may come from somebody else: aliases cannot hold themselves, nor make it endlessly large."""

from __future__ import annotations

from typing import Any

import yaml

MOST = 100_000
"""Values that a text may come to, aliases counted as often as they stand; settings have some hundreds."""


def parse_yaml(text: str) -> Any:
    """The value that a YAML text says.

    Raises:
        ValueError: it is no YAML, has a date that does not exist, is nested too deeply, or its aliases make it endless.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST:
            raise ValueError(f"its aliases (*) hold themselves, or it comes to more than {MOST} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, AttributeError) as error:  # `!!bool maybe`, `!!timestamp soon`
        raise ValueError("a value is not of the type that its tag (!!) names") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes at and below a node, aliases as often as they stand. `known` holds them by the nodes' ids."""
    if id(node) not in known:
        known[id(node)] = MOST + 1  # so it is for whoever meets it below itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
