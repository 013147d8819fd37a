"""Class thresholds from histograms: memory, error and time against collecting every confidence and sorting.

Run: python bench/thresholds.py [images] [rounds]. Images are 1024x2048 with 19 classes, generated one at a time and not
kept: regions whose confidences crowd towards 1, differently for each class, and one class that is never predicted.
Bars: a pass over 500 images has a peak memory less than 150 MB above that over 50 (a fresh process each), and the
threshold of every class, at several portions, differs from the sorted one by less than 1e-3 (over `images` images, 20
unless told, which fit into memory). The time ratio over these images is that of the best of `rounds` rounds (3 unless
told), ours and theirs in turns, one thread each. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from segshift.artefacts.thresholds import OUT_OF_REACH, ConfidenceHistogram, class_balanced

HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
FEW, MANY, MEGABYTES = 50, 500, 150.0
PORTIONS, ERROR = (0.001, 0.1, 0.2, 0.5, 0.9, 1.0), 1e-3


def street(seed: int) -> tuple[Tensor, Tensor]:
    """Predicted ids (H, W) uint8 in regions of 64 pixels, all classes but the last, and confidences (H, W) float32."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randint(CLASSES - 1, (HEIGHT // 64, WIDTH // 64), generator=generator)
    ids = regions.to(torch.uint8).repeat_interleave(64, 0).repeat_interleave(64, 1)
    # 1 - p = 0.9 u^(class + 1): half of the pixels above 0.55 in class 0, above 0.99999 from class 15 on.
    exponents = (regions + 1).float().repeat_interleave(64, 0).repeat_interleave(64, 1)
    return ids, torch.rand(HEIGHT, WIDTH, generator=generator).pow_(exponents).mul_(-0.9).add_(1)


def peak(images: int) -> float:
    """Peak memory in MB of a process that makes thresholds from this many images."""
    done = subprocess.run([sys.executable, __file__, "pass", str(images)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def one_pass(images: int) -> None:
    """Make thresholds from generated images and print this process's peak memory in MB."""
    histogram = ConfidenceHistogram(CLASSES)
    for seed in range(images):
        histogram.add(*street(seed))
    class_balanced(histogram, 0.2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def ours(images: list[tuple[Tensor, Tensor]]) -> list[list[float]]:
    """Thresholds of each class at each portion, from a histogram."""
    histogram = ConfidenceHistogram(CLASSES)
    for ids, confidence in images:
        histogram.add(ids, confidence)
    return [class_balanced(histogram, portion).tolist() for portion in PORTIONS]


def theirs(images: list[tuple[Tensor, Tensor]]) -> list[list[float]]:
    """The same from every confidence, collected by class and sorted (numpy's sort, the fastest at hand)."""
    collected: list[list[np.ndarray]] = [[] for _ in range(CLASSES)]
    for ids, confidence in images:
        for k, of_class in enumerate(collected):
            of_class.append(confidence[ids == k].numpy())
    ordered = [np.sort(np.concatenate(of_class)) for of_class in collected]
    return [[exact(values, portion) for values in ordered] for portion in PORTIONS]


def exact(ascending: np.ndarray, portion: float) -> float:
    """The floor(n p)-th largest value, as CBST has it; `OUT_OF_REACH` where that is none."""
    wanted = math.floor(len(ascending) * portion)
    return float(ascending[len(ascending) - wanted]) if wanted else OUT_OF_REACH


def measure(images: int, rounds: int) -> bool:
    """Print the times and errors; whether the errors are below the bar."""
    streets = [street(seed) for seed in range(images)]
    runs: dict[str, Callable[[list[tuple[Tensor, Tensor]]], list[list[float]]]] = {"histogram": ours, "sorting": theirs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, call in runs.items():
            start = time.perf_counter()
            results[name] = np.array(call(streets))
            times[name].append(time.perf_counter() - start)
    print(f"{images} images, {torch.get_num_threads()} thread, {rounds} rounds: best")
    for name, seconds in times.items():
        print(f"  {name:10s} {min(seconds):8.3f} s ({1e3 * min(seconds) / images:.1f} ms an image)")
    print(f"  time ratio {min(times['sorting']) / min(times['histogram']):.0f} (no bar)")
    errors = np.abs(results["histogram"] - results["sorting"])
    for portion, row in zip(PORTIONS, errors, strict=True):
        print(f"  portion {portion:5.3f}: largest error of a class {row.max():.1e}")
    passed = bool(errors.max() < ERROR)
    print(f"  error {errors.max():.1e} (bar {ERROR:.0e}): {'pass' if passed else 'FAIL'}")
    return passed


def main(images: int, rounds: int) -> int:
    """Measure; 0 when both bars are met."""
    torch.set_num_threads(1)
    few, many = peak(FEW), peak(MANY)
    small = many - few < MEGABYTES
    print(f"{HEIGHT}x{WIDTH}, {CLASSES} classes")
    print(f"  peak memory over {FEW} images {few:.0f} MB, over {MANY} images {many:.0f} MB")
    print(f"  growth {many - few:.1f} MB (bar {MEGABYTES:.0f} MB): {'pass' if small else 'FAIL'}")
    accurate = measure(images, rounds)
    return 0 if small and accurate else 1


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["pass"]:
        one_pass(int(arguments[1]))
    else:
        sys.exit(main(*(int(given) for given in (*arguments, *("20", "3")[len(arguments) :]))))
