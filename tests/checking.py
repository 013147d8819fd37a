"""The type checker of the tests: beartype, save for options that a user's settings reach and that check themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from beartype import BeartypeConf, FrozenDict, beartype

# A user's typing mistake in one of these is a UserError of the library's own, which tests want to see.
SELF_CHECKED = {
    Literal["train", "frozen", "as-reference"]: str,
    Literal["imagenet", "none"]: str,
    Literal["caffe", "imagenet", "none", "tf"]: str,
    Literal[
        "torchvision_resnet101",
        "torchvision_vgg16",
        "caffe_resnet101",
        "simclr_v2_resnet101",
        "advent",
        "proda",
        "efficientnet_lite0",
    ]: str,
    Literal[2, 4]: int,
}

_CHECK: Callable[..., Any] = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(SELF_CHECKED), is_pep484_tower=True))


def typecheck(checked: Any) -> Any:
    """Decorate a function or class (named in conftest.py's import hook)."""
    return _CHECK(checked)
