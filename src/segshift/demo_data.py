"""The built-in pair of domains: clear day with labels → dusk and fog without, and a small labelled part for figures."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent / "demo_pair"


def declaration() -> dict[str, str]:
    """Where the pair lies, as arguments of `segshift.adapt`."""
    return {
        "source": str(ROOT / "source"),
        "target": str(ROOT / "target"),
        "val": str(ROOT / "target_val"),
        "classes": str(ROOT / "classes.json"),
    }
