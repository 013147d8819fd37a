"""`has_aux` tells how many heads predictions have, in every network: methods build a discriminator for each."""

from __future__ import annotations

import pytest
import torch

from segshift.nets import NETS

CASES = [
    ("deeplab_lite", {"weights": "none"}, False),
    ("deeplab_lite", {"weights": "none", "aux": True}, True),
    ("deeplab_v2_resnet101", {"aux": False}, False),
    ("deeplab_v2_resnet101", {"aux": True}, True),
    ("deeplab_v2_vgg16", {}, False),
    ("deeplab_v2_resnet101_proda", {}, False),
]


@pytest.mark.parametrize(("name", "options", "expected"), CASES)
def test_has_aux_agrees_with_the_prediction(name: str, options: dict[str, object], expected: bool) -> None:
    net = NETS[name](3, **options).eval()
    with torch.no_grad():
        prediction = net(torch.rand(1, 3, 64, 64))
    assert net.has_aux is expected
    assert (prediction.aux is not None) is expected
