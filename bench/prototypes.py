"""Distances to prototypes against the loop over classes, in turns, at 256x512 with 19 classes and 256 channels.

Run: python bench/prototypes.py [rounds]. Bars, on the best round of each with 2 threads: 3 times faster, forward alone
and forward with backward; peak extra memory of the forward pass under 1.2 times its own output; distances and gradients
equal to 1e-4. Both keep freed memory, as training does, save where memory is measured: in a process of its own, by the
kernel's count of resident pages. Features close to their prototypes, which take more work, are timed too, and so is the
rest of a step: weights, means, update. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from segshift.engine.memory import keep_freed_memory
from segshift.ops import prototype_distance, prototype_weight, update_prototypes

HEIGHT, WIDTH, CLASSES, CHANNELS = 256, 512, 19, 256
SPEED, MEMORY, EQUAL = 3.0, 1.2, 1e-4
TIGHT = 0.05

Distance = Callable[[Tensor, Tensor], Tensor]


def loop(features: Tensor, prototypes: Tensor) -> Tensor:
    """The release's way: one norm a class."""
    return torch.stack([torch.norm(eta.view(1, -1, 1, 1) - features, 2, dim=1) for eta in prototypes], dim=1)


def clusters(spread: float) -> tuple[Tensor, Tensor]:
    """Features (1, D, h, w) that scatter by `spread` around prototypes (K, D) of a unit normal, off the origin."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLASSES, CHANNELS, generator=generator) + 1
    labels = torch.randint(CLASSES, (HEIGHT * WIDTH,), generator=generator)
    noise = torch.randn(CHANNELS, HEIGHT * WIDTH, generator=generator)
    return noise.mul_(spread).add_(prototypes.T[:, labels]).view(1, CHANNELS, HEIGHT, WIDTH), prototypes


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def both_ways(distance: Distance, features: Tensor, prototypes: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and the gradients of features and prototypes."""
    features, prototypes = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    result = distance(features, prototypes)
    result.backward(grad)  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert prototypes.grad is not None
    return result.detach(), features.grad, prototypes.grad


def speed(rounds: int) -> bool:
    """Print times of both and how far apart their results are; whether above the bar."""
    features, prototypes = clusters(1.0)
    grad = torch.randn(1, CLASSES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    ways: dict[str, Distance] = {"loop": loop, "segshift": prototype_distance}
    forward: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[Tensor, ...]] = {}
    for round_number in range(rounds + 1):
        for name, distance in ways.items():
            with torch.no_grad():
                alone = timed(lambda distance=distance: distance(features, prototypes))  # type: ignore[misc]
            start = time.perf_counter()
            results[name] = both_ways(distance, features, prototypes, grad)
            if round_number:  # the first round warms up
                forward[name].append(alone)
                whole[name].append(time.perf_counter() - start)
    passed = True
    for what, times in (("forward", forward), ("forward and backward", whole)):
        ratio = min(times["loop"]) / min(times["segshift"])
        passed &= ratio >= SPEED
        shown = ", ".join(f"{n} {1e3 * min(t):.0f} ms ({1e3 * statistics.median(t):.0f} ms)" for n, t in times.items())
        print(f"  {what}: {shown}; {ratio:.1f} times faster (bar {SPEED:.0f}): {verdict(ratio >= SPEED)}")
    pairs = list(zip(results["segshift"], results["loop"], strict=True))
    apart = [((pairs[0][0] - pairs[0][1]) / pairs[0][1]).abs().max().item()]
    apart += [((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs[1:]]
    equal = max(apart) < EQUAL
    shown = ", ".join(f"{value:.1e}" for value in apart)
    print(f"  largest difference of distances, gradients of features, of prototypes: {shown}: {verdict(equal)}")
    return passed and equal


def verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def rest(rounds: int) -> None:
    """Print the times of features close to their prototypes, and of a step's other calls."""
    tight, prototypes = clusters(TIGHT)
    grad = torch.ones(1, CLASSES, HEIGHT, WIDTH)
    distance = prototype_distance(tight, prototypes)
    nearest, present = distance.argmin(dim=1), torch.ones(CLASSES, dtype=torch.bool)
    calls: dict[str, Callable[[], object]] = {
        f"close features (scatter {TIGHT} of the prototypes'), forward": lambda: prototype_distance(tight, prototypes),
        "the same, forward and backward": lambda: both_ways(prototype_distance, tight, prototypes, grad),
        "prototype_weight": lambda: prototype_weight(distance, 1.0),
        "update_prototypes": lambda: update_prototypes(prototypes, present, tight, nearest, 0.9999, 10),
    }
    for name, call in calls.items():
        print(f"  {name}: {1e3 * min(timed(call) for _ in range(rounds + 1)):.0f} ms")


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at most since the count was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak() -> None:
    """Print peak extra memory over the output's, in a fresh process that gives freed memory back."""
    torch.set_num_threads(2)
    features, prototypes = clusters(1.0)
    prototype_distance(features[:, :, :1].contiguous(), prototypes)  # threads are started, libraries set up
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    distance = prototype_distance(features, prototypes)
    print((resident("VmHWM") - before) / (distance.numel() * distance.element_size()))


def memory() -> bool:
    """Print the peak of a process of its own; whether below the bar."""
    if not Path("/proc/self/clear_refs").exists():
        print("  memory: not measured, this needs Linux's /proc")
        return True
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "peak"], env=environment, capture_output=True, text=True, check=True
    )
    ratio = float(done.stdout)
    passed = ratio < MEMORY
    print(f"  peak extra memory of the forward pass: {ratio:.3f} times its output (bar {MEMORY}): {verdict(passed)}")
    return passed


def main(rounds: int) -> int:
    """Measure; 0 when all bars are met."""
    torch.set_num_threads(2)
    keep_freed_memory()
    print(f"{HEIGHT}x{WIDTH}, {CLASSES} classes, {CHANNELS} channels, 2 threads, {rounds} rounds: best (median)")
    passed = [memory(), speed(rounds)]
    rest(rounds)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["peak"]:
        peak()
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
