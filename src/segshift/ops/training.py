"""Helpers of training steps: a schedule, and networks that are not to learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def poly(step: int, horizon: int, power: float = 0.9) -> float:
    """Polynomial decay (1 - step / horizon) ** power of the DeepLab family; 0 from `horizon` on."""
    return float(max(0.0, 1 - step / horizon) ** power)


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Forward passes recorded inside give the modules' parameters no gradient; their inputs still get one."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
