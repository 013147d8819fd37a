"""The training loop: rates, log, clipping, errors, stopping, resuming."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segshift.engine.trainer import Batches, Loop, one_step, train
from segshift.errors import Interrupted, UserError
from segshift.methods import Method
from segshift.methods.base import Tuned
from segshift.nets.base import SegmentationNet
from segshift.types import Batch
from tiny import Stop, TinyNet, build, pairs, source_batch, stopping, target_batch

CPU = torch.device("cpu")


def loop_of(steps: int = 7, **changes: Any) -> Loop:
    settings: dict[str, Any] = {"checkpoint_every": 2, "log_every": 3} | changes
    return Loop(steps, 1, CPU, **settings)


def with_action(at: int, action: Callable[[], None]) -> Batches:
    """`pairs` that do something when step `at` is asked for."""

    def batches(start: int) -> contextlib.AbstractContextManager[Iterator[tuple[Batch, Batch]]]:
        @contextlib.contextmanager
        def stream() -> Iterator[Iterator[tuple[Batch, Batch]]]:
            def generate() -> Iterator[tuple[Batch, Batch]]:
                for step in range(start, 10_000):
                    if step == at:
                        action()
                    yield source_batch(step), target_batch(step)

            yield generate()

        return stream()

    return batches


def log_lines(folder: Path, kind: str = "loss") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in line]


def content(folder: Path) -> dict[str, Any]:
    loaded = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# ---- learning rates


@pytest.mark.parametrize("horizon", [None, 250])
def test_rates_decay_from_their_own_base(horizon: int | None) -> None:
    method = build("adaptsegnet", optimizer={"horizon": horizon}, discriminator={"lr": 3e-4, "power": 0.5}).train()
    tuned = method.tuned()
    for step in range(4):
        one_step(method, tuned, source_batch(step), target_batch(step), step, loop_of(10))
        factor = (1 - step / (horizon or 10)) ** 0.9
        rates = [group["lr"] for group in tuned["net"].optimizer.param_groups]
        assert rates == pytest.approx([2.5e-4 * factor, 2.5e-3 * factor], rel=1e-9)
        rates = [group["lr"] for group in tuned["discriminators"].optimizer.param_groups]
        assert rates == pytest.approx([3e-4 * (1 - step / 10) ** 0.5], rel=1e-9)


def test_rates_after_a_resume_are_those_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(build("source_only"), stopping(4), loop_of(6, log_every=1), tmp_path)
    train(build("source_only"), pairs, loop_of(6, log_every=1), tmp_path)
    wanted = [2.5e-4 * (1 - step / 6) ** 0.9 for step in range(6)]
    assert [line["lr"]["net"] for line in log_lines(tmp_path)] == pytest.approx(wanted, rel=1e-9)


# ---- log


def test_log_holds_means_since_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "each").mkdir()
    (tmp_path / "means").mkdir()
    train(build("minent"), pairs, loop_of(log_every=1), tmp_path / "each")
    train(build("minent"), pairs, loop_of(), tmp_path / "means")
    each = [line["loss"] for line in log_lines(tmp_path / "each")]
    means = log_lines(tmp_path / "means")
    assert [line["step"] for line in means] == [3, 6, 7]
    for line, part in zip(means, (each[:3], each[3:6], each[6:]), strict=True):
        assert set(line["loss"]) == {"seg", "entropy"}
        for name, value in line["loss"].items():
            assert value == pytest.approx(sum(losses[name] for losses in part) / len(part), rel=1e-5)


def test_log_holds_means_of_other_figures_beside_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("minent")
    told = iter([2.0, 4.0, 9.0, 1.0, 1.0, 4.0, 7.0])
    monkeypatch.setattr(method, "figures", lambda: {"present": torch.tensor(next(told))})
    train(method, pairs, loop_of(), tmp_path)
    assert [line["figures"] for line in log_lines(tmp_path)] == [{"present": 5.0}, {"present": 2.0}, {"present": 7.0}]
    assert all(set(line["loss"]) == {"seg", "entropy"} for line in log_lines(tmp_path)), "they are no losses"
    (tmp_path / "none").mkdir()
    train(build("minent"), pairs, loop_of(), tmp_path / "none")
    assert not log_lines(tmp_path / "none", "figures")


def test_log_is_cut_to_the_checkpoint_on_resume(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train(build("source_only"), pairs, loop_of(), whole)
    with pytest.raises(Stop):
        train(build("source_only"), stopping(5), loop_of(), parts)
    assert content(parts)["loop"]["step"] == 4
    assert content(parts)["loop"]["sums"]["steps"] == 1  # step 4 is counted, the line of step 3 is written
    with open(parts / "log.jsonl", "a") as file:
        file.write('{"step": 5, "loss": {"half a li')
    train(build("source_only"), pairs, loop_of(), parts)
    assert (whole / "log.jsonl").read_bytes() == (parts / "log.jsonl").read_bytes()
    assert same(content(whole), content(parts))


def test_a_finished_stage_does_nothing(tmp_path: Path) -> None:
    train(build("source_only"), pairs, loop_of(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def no_batches(start: int) -> Any:
        raise AssertionError("no batch is needed")

    train(build("source_only"), no_batches, loop_of(), tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_what_fails_before_the_first_step_leaves_no_open_file(tmp_path: Path) -> None:
    def no_batches(start: int) -> Any:
        raise UserError("no image")

    with pytest.raises(UserError, match="no image"):
        train(build("source_only"), no_batches, loop_of(), tmp_path)


# ---- clipping


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_is_over_all_trained_parameters(clip: float) -> None:
    method, free = build("advent").train(), build("advent").train()
    for each, bound in ((method, clip), (free, None)):
        one_step(each, each.tuned(), source_batch(0), target_batch(0), 0, loop_of(clip=bound))
    gradients, unclipped = (
        torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]) for each in (method, free)
    )
    assert unclipped.norm() > 1e-2
    torch.testing.assert_close(gradients, unclipped * min(1.0, clip / unclipped.norm().item()), rtol=1e-3, atol=1e-9)


# ---- losses that are not finite


def spoilt(at: int) -> Batches:
    """`pairs` with a NaN in a source image of step `at`."""

    def batches(start: int) -> contextlib.AbstractContextManager[Iterator[tuple[Batch, Batch]]]:
        @contextlib.contextmanager
        def stream() -> Iterator[Iterator[tuple[Batch, Batch]]]:
            with pairs(start) as clean:

                def spoil() -> Iterator[tuple[Batch, Batch]]:
                    for step, (source, target) in enumerate(clean, start):
                        if step == at:
                            source.image[0, 0, 0, 0] = float("nan")
                        yield source, target

                yield spoil()

        return stream()

    return batches


@pytest.mark.parametrize("step", [0, 5])
def test_a_loss_that_is_not_finite_names_the_images_and_harms_nothing(tmp_path: Path, step: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train(build("minent"), pairs, loop_of(), whole)
    with pytest.raises(UserError) as caught:
        train(build("minent"), spoilt(step), loop_of(), parts, title="adapt")
    text = str(caught.value)
    assert f"adapt, step {step + 1}:" in text
    assert "seg = nan" in text
    assert all(name in text for name in (f"s{step}_0", f"s{step}_1", f"t{step}_0", f"t{step}_1"))
    assert ("the last checkpoint is intact" if step else "no checkpoint was written yet") in text
    assert (parts / "checkpoint.pt").exists() == bool(step)
    train(build("minent"), pairs, loop_of(), parts)
    assert same(content(whole), content(parts))


def test_weights_broken_by_a_gradient_do_not_reach_the_checkpoint(tmp_path: Path) -> None:
    """The loss of the step is finite, so is that of all steps before: only the weights tell."""
    method, calls = build("source_only"), [0]

    def burst(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * (float("inf") if calls[0] == 4 else 1)

    net = method.predictor()
    assert isinstance(net, TinyNet)
    net.classifier.weight.register_hook(burst)  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match=r"classifier\.weight") as caught:
        train(method, pairs, loop_of(), tmp_path)
    assert "step 4" in str(caught.value)
    assert "s3_0" in str(caught.value)
    saved = content(tmp_path)
    assert saved["loop"]["step"] == 2
    assert all(value.isfinite().all() for value in saved["method"].values())


# ---- stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals, at: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    before = signal.getsignal(number)
    train(build("source_only"), pairs, loop_of(), whole)
    with pytest.raises(Interrupted, match=f"stopped after step {at + 1} of 7"):
        train(build("source_only"), with_action(at, lambda: os.kill(os.getpid(), number)), loop_of(), parts)
    assert content(parts)["loop"]["step"] == at + 1
    assert signal.getsignal(number) == before
    train(build("source_only"), pairs, loop_of(), parts)
    assert same(content(whole), content(parts))
    assert (whole / "log.jsonl").read_bytes() == (parts / "log.jsonl").read_bytes()


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(build("source_only"), with_action(3, twice), loop_of(), tmp_path)
    assert signal.getsignal(signal.SIGINT) == before
    assert content(tmp_path)["loop"]["step"] == 2


# ---- validation


@pytest.mark.parametrize("name", ["source_only", "advent"])
def test_validation_changes_nothing(tmp_path: Path, name: str) -> None:
    modes = []

    def validate(net: SegmentationNet) -> dict[str, float]:
        """As bad as it gets: draws random numbers and leaves the network in another mode."""
        torch.rand(3)
        net.eval()
        with torch.no_grad():
            net(torch.rand(1, 3, 40, 40))
        modes.append(net.training)
        return {"miou": 0.25}

    loop = loop_of(5, validate_every=2)
    for folder, call in (("with", validate), ("without", None)):
        (tmp_path / folder).mkdir()
        train(build(name), pairs, loop, tmp_path / folder, validate=call)
    saved, plain = content(tmp_path / "with"), content(tmp_path / "without")
    assert same(saved["method"], plain["method"])
    assert same(saved["optimizers"], plain["optimizers"])
    assert log_lines(tmp_path / "with") == log_lines(tmp_path / "without")
    points = log_lines(tmp_path / "with", "val")
    assert points == [{"step": step, "val": {"miou": 0.25}} for step in (2, 4, 5)]
    assert len(modes) == 3


# ---- randomness and groups


class Noisy(TinyNet):
    """Draws random numbers in its forward pass."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image + 0.1 * torch.randn(image.shape))


def test_random_numbers_are_a_function_of_the_step(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train(build("source_only", Noisy()), pairs, loop_of(), whole)
    with pytest.raises(Stop):
        train(build("source_only", Noisy()), stopping(5), loop_of(), parts)
    torch.manual_seed(12345)
    train(build("source_only", Noisy()), pairs, loop_of(), parts)
    assert same(content(whole), content(parts))


class Groups(Method):
    """Records how the trainer walks through the groups; the first is empty, the last adds to the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.events: list[tuple[str, float | None, float]] = []

    def _note(self, event: str) -> None:
        gradient = None if self.weight.grad is None else self.weight.grad.item()
        self.events.append((event, gradient, self.weight.item()))

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        self._note("first")
        yield {}
        yield {"a": 2 * self.weight, "b": 3 * self.weight}
        self._note("second")
        yield {"c": 10 * self.weight}
        self._note("third")

    def tuned(self) -> dict[str, Any]:
        return {"all": Tuned(torch.optim.SGD([self.weight], lr=0.1), lambda step, steps: 1.0)}

    def predictor(self) -> SegmentationNet:
        return self.net

    def after_step(self, step: int) -> None:
        self._note(f"after {step}")


def test_each_group_is_differentiated_before_the_next_and_optimisers_step_once() -> None:
    method = Groups()
    losses = one_step(method, method.tuned(), source_batch(0), target_batch(0), 4, loop_of())
    assert method.events == [
        ("first", None, 1.0),
        ("second", 5.0, 1.0),
        ("third", 15.0, 1.0),
        ("after 4", 15.0, pytest.approx(-0.5)),
    ]
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 2.0, "b": 3.0, "c": 10.0}
    assert not any(loss.requires_grad for loss in losses.values())
