"""Time of our confusion matrix against torchmetrics', interleaved, at 1024x2048 with 19 classes (bar: 20 times faster).

Run: python bench/confusion.py [rounds]. Each side is given what it is usually given: ours the uint8 train ids that
files hold, torchmetrics int64 tensors with its default arguments; torchmetrics on the same uint8 tensors is shown too.
The bar is on the best round of each, with one thread and with all: what the code costs when nothing else runs.
Exits with 1 if the results differ or the bar is missed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from segshift.engine.metrics import confusion_matrix
from segshift.types import IGNORE

HEIGHT, WIDTH, CLASSES, BAR = 1024, 2048, 19, 20.0


def street(seed: int) -> tuple[Tensor, Tensor]:
    """Predictions and labels (H, W) uint8 made like real ones: regions of 64 pixels, 30 % wrong, 10 % ignored."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randint(CLASSES, (HEIGHT // 64, WIDTH // 64), generator=generator)
    label = regions.repeat_interleave(64, 0).repeat_interleave(64, 1).to(torch.uint8)
    noise = torch.randint(CLASSES, label.shape, generator=generator).to(torch.uint8)
    predicted = torch.where(torch.rand(label.shape, generator=generator) < 0.3, noise, label)
    label[torch.rand(label.shape, generator=generator) < 0.1] = IGNORE
    return predicted, label


def measure(rounds: int) -> bool:
    """Print the times and their ratios at the present number of threads; whether equal and above the bar."""
    predicted, label = street(0)
    wide_predicted, wide_label = predicted.long(), label.long()

    def theirs(predicted: Tensor, label: Tensor) -> Tensor:
        return multiclass_confusion_matrix(predicted, label, CLASSES, ignore_index=IGNORE)

    runs: dict[str, Callable[[], Tensor]] = {
        "segshift uint8": lambda: confusion_matrix(predicted, label, CLASSES),
        "torchmetrics int64": lambda: theirs(wide_predicted, wide_label),
        "torchmetrics uint8": lambda: theirs(predicted, label),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Tensor] = {}
    for round_number in range(rounds + 1):
        for name, call in runs.items():
            start = time.perf_counter()
            results[name] = call()
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    ours = times["segshift uint8"]
    print(f"{HEIGHT}x{WIDTH}, {CLASSES} classes, {torch.get_num_threads()} threads, {rounds} rounds: best (median)")
    for name, seconds in times.items():
        best, middle = min(seconds), statistics.median(seconds)
        ratios = f"{best / min(ours):6.1f} x ({middle / statistics.median(ours):.1f} x)"
        print(f"  {name:20s} {1e3 * best:8.2f} ms ({1e3 * middle:.2f} ms) {ratios}")
    equal = all(torch.equal(result.long(), results["segshift uint8"]) for result in results.values())
    ratio = min(times["torchmetrics int64"]) / min(ours)
    print(f"  equal: {equal}; ratio {ratio:.1f} (bar {BAR:.0f})")
    return equal and ratio >= BAR


def main(rounds: int) -> int:
    """Measure with one thread and with all; 0 when both meet the bar."""
    threads = torch.get_num_threads()
    passed = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        passed.append(measure(rounds))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 25))
