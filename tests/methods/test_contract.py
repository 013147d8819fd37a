"""What the trainer relies on, asked of every method in METHODS: a new one is tested here without a line of its own.

Settings that change what a step needs or how many networks it trains are asked too (`VARIANTS`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segshift.engine import checkpoint
from segshift.engine.trainer import Loop, one_step, train
from segshift.errors import UserError
from segshift.methods import METHODS, Method, MethodSettings
from segshift.methods.base import Tuned
from segshift.nets.base import SegmentationNet
from segshift.run import EMPTY, checked
from segshift.types import Batch
from tiny import Stop, TinyNet, pairs, source_batch, stopping, target_batch, task
from tiny import build as build_method

SECONDS = 2.0
CPU = torch.device("cpu")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "crst-mrent": ("crst", {"regulariser": "mrent"}),
    "crst-mrl2": ("crst", {"regulariser": "mrl2"}),
    "crst-lrent": ("crst", {"regulariser": "lrent"}),
    "tpld-mrkld": ("tpld", {"regulariser": "mrkld"}),
    "tpld-lrent": ("tpld", {"regulariser": "lrent"}),
    "tpld-phase-2-lrent": ("tpld", {"phase": 2, "regulariser": "lrent"}),
    "tpld-phase-2": ("tpld", {"phase": 2}),
    "tpld-phase-2-whole": ("tpld", {"phase": 2, "regulariser": "mrkld", "hard_label_weight": 1.0}),
    "proda-offline": ("proda", {"denoise": False, "structure_weight": 0}),
    "proda-denoising": ("proda", {"structure_weight": 0}),
    "proda-structure": ("proda", {"denoise": False}),
    "proda-paper": ("proda", {"prototype_labels": "denoised", "regulariser_weight": 0.1, "divide_by_classes": False}),
    "proda-train": ("proda", {"teacher_mode": "train", "resolution": 2, "structure_weight": 1.0}),
    "distill-released": ("distill", {"released_kd": True}),
    "distill-labels": ("distill", {"kd_weight": 0}),
    "weak_labels-pseudo": ("weak_labels", {"mode": "pseudo", "align_outputs": False}),
    "weak_labels-tags": ("weak_labels", {"mode": "tags"}),
    "weak_labels-skip": ("weak_labels", {"mode": "tags", "unknown": "skip"}),
    "weak_labels-points": ("weak_labels", {"mode": "points"}),
    "weak_labels-prior": ("weak_labels", {"mode": "points", "point_prior": 1.0}),
}
"""What is tested: a method and settings that are not its defaults. Every method is here with its defaults."""

every_method = pytest.mark.parametrize("name", METHODS)
every_variant = pytest.mark.parametrize("name", VARIANTS)
with_and_without_aux = pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Processor time, so that a busy machine is no failure."""
    start = time.process_time()
    yield
    assert time.process_time() - start < SECONDS


def build(name: str, net: SegmentationNet | None = None, seed: int = 0, **settings: Any) -> Method:
    """A method of VARIANTS on a tiny network, with random weights from `seed`."""
    method, own = VARIANTS[name]
    return build_method(method, net, seed, **own, **settings)


def target_for(method: Method, step: int) -> Batch:
    """Just what the method says that it needs."""
    if not method.needs:
        return EMPTY
    batch = target_batch(step)
    lacking = [field for field in method.needs if getattr(batch, field, None) is None]
    assert not lacking, f"teach tests/tiny.py's target_batch to make {lacking}"
    return batch


def run_step(method: Method, step: int = 0) -> list[dict[str, Tensor]]:
    """A step as the trainer takes it, without the optimisers."""
    groups = []
    for group in method.step(source_batch(step), target_for(method, step)):
        groups.append(group)
        torch.stack(list(group.values())).sum().backward()  # type: ignore[no-untyped-call]
    return groups


def optimised(method: Method) -> list[torch.nn.Parameter]:
    return [p for t in method.tuned().values() for group in t.optimizer.param_groups for p in group["params"]]


@every_method
def test_entry(name: str) -> None:
    entry = METHODS[name]
    assert issubclass(entry.settings, MethodSettings)
    assert entry.settings().model_config["extra"] == "forbid"
    assert type(build(name)) is entry.build
    assert build(name).needs >= type(build(name)).needs
    assert entry.purpose


@every_variant
@with_and_without_aux
def test_groups_are_finite_scalars_with_gradient(name: str, aux: bool) -> None:
    groups = run_step(build(name, TinyNet(aux)))
    assert groups
    names = [loss for group in groups for loss in group]
    assert len(names) == len(set(names)), "a name stands for one loss"
    for group in groups:
        for loss in group.values():
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            assert loss.requires_grad
            assert torch.isfinite(loss)


@every_variant
@with_and_without_aux
@pytest.mark.parametrize("batch_norm", ["train", "frozen", "as-reference"])
def test_tuned_parameters_get_a_gradient_and_others_none(name: str, aux: bool, batch_norm: str) -> None:
    method = build(name, TinyNet(aux, batch_norm)).train()  # type: ignore[arg-type]
    tuned = {id(p) for p in optimised(method)}
    run_step(method)
    for key, parameter in method.named_parameters():
        if id(parameter) in tuned:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key


@every_variant
@with_and_without_aux
def test_each_trained_parameter_is_in_one_optimiser(name: str, aux: bool) -> None:
    method = build(name, TinyNet(aux))
    parameters = [id(p) for p in optimised(method)]
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == {id(p) for p in method.parameters() if p.requires_grad}


@every_variant
def test_rates_are_pure_functions_of_the_step(name: str) -> None:
    for tuned in build(name).tuned().values():
        factors = [tuned.factor(step, 10) for step in (*range(10), *range(10))]
        assert factors[:10] == factors[10:]
        assert all(0 <= factor <= 1 for factor in factors)
        assert any(factors)


@every_variant
def test_predictor_is_a_network_of_the_methods_own(name: str) -> None:
    method = build(name)
    net = method.predictor()
    assert isinstance(net, SegmentationNet)
    assert net in set(method.modules())


@every_variant
def test_what_is_missing_is_an_error_before_the_first_step(name: str) -> None:
    method = build(name)
    assert [batch.names for batch in checked(iter([target_for(method, 0)]), method)]
    for field in method.needs:
        without = target_batch(0)
        object.__setattr__(without, field, None)
        with pytest.raises(UserError, match=field) as caught:
            next(checked(iter([without]), method))
        assert caught.value.remedy


class Demanding(Method):
    """Needs what no stage of these tests makes."""

    needs = frozenset({"image", "prototypes"})

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        raise AssertionError("the check comes before the step")

    def tuned(self) -> dict[str, Tuned]:
        return {}

    def predictor(self) -> SegmentationNet:
        return self.net


def test_a_need_that_batches_know_nothing_of() -> None:
    with pytest.raises(UserError, match="prototypes") as caught:
        next(checked(iter([target_batch(0)]), Demanding()))
    assert "Demanding" in str(caught.value)
    assert "before this one" in caught.value.remedy


def equal(a: object, b: object) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@every_variant
@with_and_without_aux
def test_resume_is_equal_bit_for_bit(name: str, aux: bool, tmp_path: Path) -> None:
    loop = Loop(steps=4, seed=3, device=CPU, checkpoint_every=2, log_every=4)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train(build(name, TinyNet(aux)), pairs, loop, tmp_path / "whole")
    with pytest.raises(Stop):
        train(build(name, TinyNet(aux)), stopping(3), loop, tmp_path / "parts")
    # Other random weights: nothing of the method may come from elsewhere than the checkpoint.
    train(build(name, TinyNet(aux, seed=1), seed=1), pairs, loop, tmp_path / "parts")
    whole, parts = (torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True) for folder in ("whole", "parts"))
    assert equal(whole, parts)
    assert whole["loop"]["step"] == 4
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == (tmp_path / "parts" / "log.jsonl").read_bytes()


@every_variant
def test_all_memory_is_in_the_state_dict(name: str, tmp_path: Path) -> None:
    """A step after `restore` into a fresh method equals the step without it, in every loss."""
    loop = Loop(steps=9, seed=0, device=CPU)
    old, new = build(name).train(), build(name, TinyNet(seed=5), seed=5).train()
    tuned_old, tuned_new = old.tuned(), new.tuned()
    for step in range(2):
        one_step(old, tuned_old, source_batch(step), target_for(old, step), step, loop)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, old, {key: t.optimizer for key, t in tuned_old.items()}, checkpoint.LoopState(2, 0, {}))
    checkpoint.restore(path, new, {key: t.optimizer for key, t in tuned_new.items()})
    for step in (2, 3):
        losses = [
            one_step(method, tuned, source_batch(step), target_for(method, step), step, loop)
            for method, tuned in ((old, tuned_old), (new, tuned_new))
        ]
        assert equal(*losses)


@every_variant
@with_and_without_aux
def test_the_loss_falls(name: str, aux: bool) -> None:
    net = TinyNet(aux)
    method = build(name, net, optimizer={"lr": 0.1, "head_factor": 1}).train()

    def source_loss() -> float:
        batch = source_batch(0)
        assert batch.label is not None
        with torch.no_grad():
            logits = method.predictor()(batch.image).logits
        return F.cross_entropy(F.interpolate(logits, batch.label.shape[-2:]), batch.label, ignore_index=255).item()

    tuned, before = method.tuned(), source_loss()
    loop = Loop(steps=15, seed=0, device=CPU)
    for step in range(15):
        one_step(method, tuned, source_batch(step), target_for(method, step), step, loop)
    assert source_loss() < 0.7 * before


@every_variant
@with_and_without_aux
def test_bfloat16(name: str, aux: bool) -> None:
    """Autocast around the step: losses stay float32 and near those of fp32, weights stay float32."""
    found = {}
    for precision in ("fp32", "bf16"):
        method = build(name, TinyNet(aux)).train()
        loop = Loop(steps=4, seed=0, device=CPU, precision=precision)
        tuned = method.tuned()
        for step in range(2):
            losses = one_step(method, tuned, source_batch(step), target_for(method, step), step, loop)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
        found[precision] = losses
    for key, value in found["fp32"].items():
        assert found["bf16"][key].item() == pytest.approx(value.item(), rel=0.05, abs=1e-4), key


@every_variant
def test_step_leaves_gradients_enabled_and_modes_alone(name: str) -> None:
    method = build(name).train()
    modes = [module.training for module in method.modules()]
    run_step(method)
    assert modes == [module.training for module in method.modules()]
    assert torch.is_grad_enabled()
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    assert trained == {key for key, p in build(name).named_parameters() if p.requires_grad}


@every_method
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        METHODS[name].settings(no_such_setting=1)  # type: ignore[call-arg]


def test_task_without_shares_is_enough_by_default() -> None:
    for entry in METHODS.values():
        method = entry.build(entry.settings(), TinyNet(), task(shares=None))
        assert run_step(method)
        assert not entry.settings().wants_class_shares
