"""Batch norm policies of all networks: what is trained, which statistics are used, and that `.train()` keeps it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from segshift.errors import UserError
from segshift.nets import NETS, BatchNormPolicy, SegmentationNet

WITH_BATCH_NORM = ["deeplab_lite", "deeplab_v2_resnet101", "deeplab_v2_resnet101_proda"]
POLICIES: list[BatchNormPolicy] = ["train", "frozen", "as-reference"]


def build(name: str, **options: Any) -> SegmentationNet:
    if name == "deeplab_lite":
        options.setdefault("weights", "none")
    return NETS[name](3, **options)


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_what_is_trained(name: str, policy: BatchNormPolicy) -> None:
    with torch.device("meta"):
        net = build(name, batch_norm=policy)
    # ProDA's release trains its batch norms: there the reference is `train`.
    trained = policy == "train" or (policy == "as-reference" and name == "deeplab_v2_resnet101_proda")
    assert {p.requires_grad for m in norms(net) for p in m.parameters()} == {trained}
    others = {id(p) for m in norms(net) for p in m.parameters()}
    assert all(p.requires_grad for p in net.parameters() if id(p) not in others)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_train_and_eval_keep_the_policy(name: str, policy: BatchNormPolicy) -> None:
    with torch.device("meta"):
        net = build(name, batch_norm=policy)
    for mode in (True, False, True, True):
        assert net.train(mode) is net
        assert net.training is mode
        assert {m.training for m in norms(net)} == {mode and policy != "frozen"}
    outer = nn.ModuleList([net]).eval().train()
    assert {m.training for m in norms(outer)} == {policy != "frozen"}
    assert {m.training for m in norms(copy.deepcopy(net).train())} == {policy != "frozen"}


@pytest.mark.parametrize("policy", POLICIES)
def test_statistics_in_a_training_step(policy: BatchNormPolicy) -> None:
    torch.manual_seed(0)
    net = build("deeplab_lite", batch_norm=policy).train()
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    image = torch.rand(2, 3, 48, 48)
    training = net(image).logits
    changed = {not torch.equal(before[k], v) for k, v in net.state_dict().items() if "running" in k}
    # Whole images of one grey, say, are the case where both would agree; noise is not.
    same_as_eval = torch.equal(training, net.eval()(image).logits)
    assert changed == {policy != "frozen"}
    assert same_as_eval == (policy == "frozen")


def test_defaults() -> None:
    with torch.device("meta"):
        assert build("deeplab_lite").batch_norm == "train"
        assert {build(name).batch_norm for name in NETS if name != "deeplab_lite"} == {"as-reference"}


@pytest.mark.parametrize("name", sorted(NETS))
def test_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="'forzen'"):
        build(name, batch_norm="forzen")


def test_synchronised_batch_norms_stay_frozen() -> None:
    net = build("deeplab_lite", batch_norm="frozen")
    nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    net.train()
    assert {m.training for m in net.modules() if isinstance(m, nn.SyncBatchNorm)} == {False}
