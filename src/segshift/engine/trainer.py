"""The training loop: the one place where backward, learning rates, precision, checks, checkpoints and the log are."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from segshift.artefacts.store import write_error
from segshift.data.order import seed_of
from segshift.engine import checkpoint
from segshift.engine.memory import keep_freed_memory
from segshift.engine.progress import track
from segshift.errors import Interrupted, UserError
from segshift.methods.base import Method, Tuned
from segshift.nets.base import SegmentationNet
from segshift.types import Batch

Batches = Callable[[int], contextlib.AbstractContextManager[Iterator[tuple[Batch, Batch]]]]
"""First step → the batches of that step and the ones after it."""


@dataclass(frozen=True)
class Loop:
    """How long and how carefully to train; nothing here but `steps`, `seed`, `precision` and `clip` changes weights.

    Attributes:
        steps: steps of the whole stage.
        seed: every random number of step t is a function of (seed, t).
        device: where the method lives.
        precision: `fp32`, or `bf16` for autocast.
        clip: largest gradient norm over all trained parameters, or None for no clipping.
        checkpoint_every, log_every, validate_every: in steps; validate_every 0 means never.
    """

    steps: int
    seed: int
    device: torch.device
    precision: str = "fp32"
    clip: float | None = None
    checkpoint_every: int = 100
    log_every: int = 5
    validate_every: int = 0


def train(
    method: Method,
    batches: Batches,
    loop: Loop,
    folder: Path,
    title: str = "train",
    validate: Callable[[SegmentationNet], dict[str, float]] | None = None,
) -> None:
    """Train `method` for `loop.steps` steps, going on from the checkpoint in `folder` where there is one.

    Afterwards `folder` holds checkpoint.pt (of the last step) and log.jsonl.

    Args:
        validate: called every `loop.validate_every` steps with the predictor; its figures go to the log. It cannot
            change training: no random number and no weight depends on it.

    Raises:
        UserError: a loss is not finite (names the images), the disk is full, or the checkpoint does not fit.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    if loop.device.type == "cpu":
        keep_freed_memory()
    method.to(loop.device).train()
    tuned = method.tuned()
    path = folder / checkpoint.FILE
    state = checkpoint.LoopState(0, 0, {})
    if path.exists():
        state = checkpoint.restore(path, method, {name: t.optimizer for name, t in tuned.items()})
    if state.step >= loop.steps:
        return
    finite = FiniteCheck(title, path)
    with (
        _Log(folder / "log.jsonl", state) as log,
        stop_signals() as stopped,
        batches(state.step) as stream,
        track(title, loop.steps, state.step) as bar,
    ):
        for step, (source, target) in zip(range(state.step, loop.steps), stream, strict=False):
            losses = one_step(method, tuned, source.to(loop.device), target.to(loop.device), step, loop)
            finite(step, losses, source, target)
            log.add(losses, method.figures())
            done = step + 1
            last = done == loop.steps
            if done % loop.log_every == 0 or last:
                log.write(done, {name: t.optimizer.param_groups[0]["lr"] for name, t in tuned.items()})
            bar.advance(note=log.note)
            if validate is not None and loop.validate_every and (done % loop.validate_every == 0 or last):
                log.line({"step": done, "val": validate(method.predictor())})
                method.train()
            if last or done % loop.checkpoint_every == 0 or stopped.is_set():
                finite.settle()
                finite.weights(step, method, source, target)
                reached = checkpoint.LoopState(done, log.flush(), log.sums)
                checkpoint.save(path, method, {name: t.optimizer for name, t in tuned.items()}, reached)
            if stopped.is_set():
                raise Interrupted(f"stopped after step {done} of {loop.steps}; run the same command to go on")


def one_step(
    method: Method, tuned: dict[str, Tuned], source: Batch, target: Batch, step: int, loop: Loop
) -> dict[str, Tensor]:
    """One training step: each group of losses is differentiated before the next is asked for; optimisers step once.

    Returns:
        The detached losses by name.
    """
    torch.manual_seed(seed_of(loop.seed, step))  # a method's own random numbers, such as dropout
    for optimised in tuned.values():
        factor = optimised.factor(step, loop.steps)
        for group in optimised.optimizer.param_groups:
            # The base rate is remembered in the group, so that it is in the optimiser's state_dict.
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
        optimised.optimizer.zero_grad(set_to_none=True)

    losses: dict[str, Tensor] = {}
    groups = method.step(source, target)
    while True:
        with torch.autocast(loop.device.type, torch.bfloat16, enabled=loop.precision == "bf16"):
            group_losses = next(groups, None)
        if group_losses is None:
            break
        if group_losses:
            torch.stack(list(group_losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        losses |= {name: loss.detach() for name, loss in group_losses.items()}

    if loop.clip is not None:
        trained = [p for t in tuned.values() for group in t.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, loop.clip)
    for optimised in tuned.values():
        optimised.optimizer.step()
    method.after_step(step)
    return losses


class FiniteCheck:
    """Raises when a loss is not finite, naming the step's images.

    On a GPU the values are read one step late, so that the check does not make the host wait for the device; `settle`
    reads what is outstanding, and is called before every checkpoint.
    """

    def __init__(self, title: str, checkpoint_path: Path) -> None:
        self._title, self._checkpoint = title, checkpoint_path
        self._pending: tuple[int, Tensor, torch.cuda.Event | None, list[str], str] | None = None

    def __call__(self, step: int, losses: dict[str, Tensor], source: Batch, target: Batch) -> None:
        values, arrived = torch.stack(list(losses.values())), None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self.settle()
        self._pending = (step, values, arrived, list(losses), _images(source, target))
        if arrived is None:
            self.settle()

    def settle(self) -> None:
        """Read the outstanding values.

        Raises:
            UserError: one of them is not finite.
        """
        if self._pending is None:
            return
        step, values, arrived, names, images = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        found = zip(names, values.tolist(), strict=True)
        bad = ", ".join(f"{name} = {value}" for name, value in found if not math.isfinite(value))
        if bad:
            raise self._error(step, f"the loss is not finite ({bad})", "losses", images)

    def weights(self, step: int, method: Method, source: Batch, target: Batch) -> None:
        """Keep weights that the step's gradients broke out of the checkpoint: the loss may have been finite still.

        Raises:
            UserError: a weight is not finite.
        """
        numbers = {name: value for name, value in method.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in numbers.values()]).tolist()
        bad = [name for name, good in zip(numbers, finite, strict=True) if not good]
        if bad:
            broken = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else bad[0]
            raise self._error(step, f"the weights are no longer finite ({broken})", "weights", _images(source, target))

    def _error(self, step: int, found: str, wanted: str, images: str) -> UserError:
        kept = "the last checkpoint is intact" if self._checkpoint.exists() else "no checkpoint was written yet"
        return UserError(
            f"{self._title}, step {step + 1}: {found}\nimages: {images}",
            f"finite {wanted}",
            "look at these images and labels; lower the learning rate"
            f" (--set {self._title}.optimizer.lr=…), clip gradients (--set clip=1), or train with"
            f" --set precision=fp32 ({kept})",
        )


def _images(source: Batch, target: Batch) -> str:
    return f"source {', '.join(source.names)}" + (f"; target {', '.join(target.names)}" if target.names else "")


_FIGURE = "figure:"
"""Before the names of a method's figures among the sums, which a checkpoint remembers."""


class _Log:
    """log.jsonl: only what is a function of the settings, so that a resumed run's log equals an undisturbed one's."""

    def __init__(self, path: Path, state: checkpoint.LoopState) -> None:
        self._path = path
        self.sums = dict(state.sums)
        self.note = ""
        try:
            self._file = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
            self._file.truncate(state.log_bytes)
        except OSError as error:
            raise write_error(path, error) from error

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, losses: dict[str, Tensor], figures: dict[str, Tensor]) -> None:
        told = {_FIGURE + name: value for name, value in figures.items()}
        for name, loss in (losses | told | {"steps": torch.ones(())}).items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss.clone()

    def write(self, step: int, rates: dict[str, float]) -> None:
        """A line with the losses' means since the last one, and those of other figures where the method has any."""
        sums = {name: float(value) for name, value in self.sums.items()}
        steps = sums.pop("steps")
        means = {name: value / steps for name, value in sums.items() if not name.startswith(_FIGURE)}
        told = {name.removeprefix(_FIGURE): sums[name] / steps for name in sums if name.startswith(_FIGURE)}
        self.sums = {}
        self.line({"step": step, "loss": means, **({"figures": told} if told else {}), "lr": rates})
        self.note = " ".join(f"{name} {value:.3g}" for name, value in list(means.items())[:3])

    def line(self, content: dict[str, object]) -> None:
        try:
            self._file.write((json.dumps(content) + "\n").encode())
        except OSError as error:
            raise write_error(self._path, error) from error

    def flush(self) -> int:
        """Bring the log to the disk; its length in bytes."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise write_error(self._path, error) from error


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
