"""segshift: adapt a semantic segmentation model from a labelled source to an unlabelled target domain."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segshift.api import adapt as adapt
    from segshift.api import check as check
    from segshift.api import evaluate as evaluate
    from segshift.api import features as features
    from segshift.api import load as load
    from segshift.api import predict as predict

__all__ = ["__version__", "adapt", "check", "evaluate", "features", "load", "predict"]


def __getattr__(name: str) -> Any:
    # torch is imported only when a function that needs it is asked for: `segshift --help` stays instant.
    if name in __all__:
        return getattr(importlib.import_module("segshift.api"), name)
    raise AttributeError(f"module 'segshift' has no attribute {name!r}")
