"""Time of window voting at 1024x2048 with 19 classes and 3 passes, for a window of 15 and of 57, in turns.

Run: python bench/window_vote.py [rounds]. Bars, on the best round of each with 2 threads: under 3 s at window 57, and
under 1.3 times the time at window 15 (a cost that grows with the window would be 3.8 or 14 times). The image is made
like a real one: smooth regions, a fifth of the pixels labelled. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

from segshift.ops import upsample, window_vote
from segshift.types import IGNORE

HEIGHT, WIDTH, CLASSES, PASSES, ALPHA = 1024, 2048, 19, 3, 0.7
WINDOWS = (15, 57)
SECONDS, RATIO = 3.0, 1.3


def street(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (K, H, W), labels (H, W) of the most confident fifth, and the threshold (K,) that made them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(1, CLASSES, HEIGHT // 32, WIDTH // 32, generator=generator)
    noise = torch.randn(CLASSES, HEIGHT, WIDTH, generator=generator)
    probabilities = (upsample(coarse, (HEIGHT, WIDTH))[0] + 0.5 * noise).softmax(dim=0)
    confidence, ids = probabilities.max(dim=0)
    threshold = confidence.flatten().kthvalue(int(0.8 * confidence.numel())).values
    return probabilities, torch.where(confidence > threshold, ids, IGNORE), threshold.expand(CLASSES)


def main(rounds: int) -> int:
    """Measure; 0 when both bars are met."""
    torch.set_num_threads(2)
    probabilities, labels, thresholds = street(0)
    times: dict[int, list[float]] = {window: [] for window in WINDOWS}
    shares: dict[int, list[float]] = {}
    for round_number in range(rounds + 1):
        for window in WINDOWS:
            start = time.perf_counter()
            after = window_vote(probabilities, labels, thresholds, window, ALPHA, PASSES)
            if round_number:  # the first round warms up
                times[window].append(time.perf_counter() - start)
            shares[window] = [(result != IGNORE).float().mean().item() for result in (labels, *after)]
    print(f"{HEIGHT}x{WIDTH}, {CLASSES} classes, {PASSES} passes, {torch.get_num_threads()} threads, {rounds} rounds")
    for window, seconds in times.items():
        coverage = " ".join(f"{share:.3f}" for share in shares[window])
        best, middle = min(seconds), statistics.median(seconds)
        print(f"  window {window}: best {best:.3f} s, median {middle:.3f} s; labelled before and after: {coverage}")
    small, large = (min(times[window]) for window in WINDOWS)
    fast, flat = large < SECONDS, large / small < RATIO
    print(f"  window {WINDOWS[1]}: {large:.3f} s (bar {SECONDS:.0f} s): {'pass' if fast else 'FAIL'}")
    print(f"  over window {WINDOWS[0]}: {large / small:.2f} times (bar {RATIO}): {'pass' if flat else 'FAIL'}")
    return 0 if fast and flat else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
