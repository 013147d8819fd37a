"""Reading values of files that may be damaged, and showing them to people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
"""What a number that does not exist is shown as."""


def number(value: object) -> float | None:
    """A finite number, or None for everything else (nan, null, text, booleans)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def fraction(value: object) -> float | None:
    """A number in [0, 1], or None for everything else."""
    result = number(value)
    return result if result is not None and 0.0 <= result <= 1.0 else None


def whole(value: object) -> int | None:
    """A whole number of at least 0, or None."""
    result = number(value)
    return int(result) if result is not None and result >= 0 and result == int(result) else None


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping (its keys as text), else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list | tuple) else []


def text(value: object, default: str = "") -> str:
    """A line of text: strings and numbers as they are, a list joined by spaces, everything else `default`."""
    if isinstance(value, str):
        return value.strip() or default
    if isinstance(value, bool) or value is None:
        return default
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str | int | float) for item in value):
        return " ".join(str(item) for item in value)
    return default


def points(share: float | None) -> str:
    """A fraction as percent points with one decimal: 0.311 → 31.1."""
    return ABSENT if share is None else f"{100 * share:.1f}"


def signed(share: float | None) -> str:
    """A difference of fractions as percent points with its sign: 0.078 → +7.8; what rounds to nothing is 0.0."""
    if share is None:
        return ABSENT
    rounded = round(100 * share, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def ratio(value: float | None) -> str:
    """A ratio of two lengths with two decimals."""
    return ABSENT if value is None else f"{value:.2f}"


def difference(after: float | None, before: float | None) -> float | None:
    """after - before, or None where either is unknown."""
    return None if after is None or before is None else after - before


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None or seconds < 0:
        return ABSENT
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole_seconds} s"
    minutes, rest = divmod(whole_seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def quantity(value: float, digits: int = 4) -> str:
    """A loss or another free number in a few significant digits."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e5):
        return f"{value:.2e}"
    return f"{value:.{digits}g}"


def spelled(value: object) -> str:
    """A setting of any depth on one line: mappings as `key value`, lists by commas."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {spelled(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(spelled(item) for item in value)
    return ABSENT if value is None else str(value)


def colour(rgb: Sequence[int]) -> str:
    """A CSS colour."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def below_one(value: float | None) -> str:
    """A probability with three digits, or with as many more as keep it apart from 1: 0.99996 → 0.99996."""
    if value is None:
        return ABSENT
    digits = next((digits for digits in (3, 4, 5) if value >= 1 or round(value, digits) < 1), 6)
    return f"{value:.{digits}f}"


def span(gains: Sequence[float | None]) -> tuple[float, float]:
    """The range that bars of these gains share; it holds 0."""
    known = [gain for gain in gains if gain is not None]
    return min([*known, 0.0]), max([*known, 0.0])
