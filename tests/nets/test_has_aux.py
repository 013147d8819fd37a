"""What networks say of their predictions: how many heads they have, and how many features; discriminators need it."""

from __future__ import annotations

import pytest
import torch

from segshift.nets import NETS

CASES = [
    ("deeplab_lite", {"weights": "none"}, False),
    ("deeplab_lite", {"weights": "none", "aux": True}, True),
    ("deeplab_lite", {"weights": "none", "width": 48}, False),
    ("deeplab_v2_resnet101", {"aux": False}, False),
    ("deeplab_v2_resnet101", {"aux": True}, True),
    ("deeplab_v2_vgg16", {}, False),
    ("deeplab_v2_resnet101_proda", {}, False),
]


@pytest.mark.parametrize(("name", "options", "expected"), CASES)
def test_has_aux_and_num_features_agree_with_the_prediction(
    name: str, options: dict[str, object], expected: bool
) -> None:
    net = NETS[name](3, **options).eval()
    with torch.no_grad():
        prediction = net(torch.rand(1, 3, 64, 64))
    assert net.has_aux is expected
    assert (prediction.aux is not None) is expected
    assert net.num_features == prediction.features.shape[1]


def test_every_network_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(NETS)
