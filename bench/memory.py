"""Peak memory of a training step, by default of ProDA's stage 1 at the paper's size with its network.

    python bench/memory.py                                        # CPU, batch 1, fp32 and bf16
    python bench/memory.py --device cuda --batch 1 2              # a GPU; bar: 16 GB in bf16 at batch 2
    python bench/memory.py --crop 256 448 --whole 512 1024        # (height, width), smaller
    python bench/memory.py --method advent --net deeplab_v2_resnet101 --option aux=true --source 720 1280

Each figure is of a fresh process. Held: networks, their gradients, the optimiser's state and the batch, before the step
(on CPU without what torch and Python take themselves). Peak: at most during the step, all of that included. On CPU by
the kernel's count of resident pages, with freed memory given back to the system at once, and by `--keep` as training
does it (`engine/memory.py`): then it includes what the allocator holds for later. On CUDA by torch's count of allocated
and, in brackets, of reserved bytes. The step that is measured comes after one of a tiny batch, which makes gradients
and the optimiser's state and starts threads and libraries.

On CPU no process is started where the machine has less than --spare GiB available. Exits with 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from segshift.engine.memory import keep_freed_memory
from segshift.engine.trainer import Loop, one_step
from segshift.methods import METHODS
from segshift.methods.base import Task
from segshift.nets import NETS
from segshift.types import Batch
from step import target_batch

GIB = 2**30
BAR, BAR_BATCH = 16e9, 2
"""Bytes that a step in bf16 at this batch may take on a GPU."""

TINY = 65
"""Side in pixels of the images of the step before; ProDA's network says 9x9 points of them."""


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at most since the count was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def available() -> int:
    """Bytes that the machine can give to a new process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


LARGE = ("full", "strong", "soft_label", "soft_full", "pseudo_label", "points")
"""What a target batch holds by the pixel besides its image; each for methods that ask for it."""


def batches(
    images: int,
    sides: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    classes: int,
    device: str,
    needs: frozenset[str] | None = None,
) -> tuple[Batch, Batch]:
    """A source and a target batch; sides are the (h, w) of the source's crops, of the target's, and of the whole target
    images, whose upper left the crops are. Of what can be large the target has what is needed, all where that is None.
    """
    source, crop, whole = sides

    def picture(size: tuple[int, int]) -> Tensor:
        return torch.rand(images, 3, *size, device=device)

    label = torch.randint(0, classes, (images, *source), device=device)
    points = torch.empty(images, 1, *(side // 8 + 1 for side in whole), device=device)
    target = target_batch(picture(crop), points, classes)
    target = dataclasses.replace(target, full=picture(whole))
    # What other methods ask for would be held for nothing: a soft label is K maps at full size.
    spare: dict[str, Any] = {name: None for name in LARGE if needs is not None and name not in needs}
    seen = torch.ones_like(label, dtype=torch.bool)
    return Batch(picture(source), label, names=("a",), seen=seen), dataclasses.replace(target, **spare)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Bytes held and at most, in this process; options are those of one row of the table."""
    device, is_cuda = options.device, options.device.startswith("cuda")
    torch.manual_seed(0)
    if not is_cuda and options.keep:
        keep_freed_memory()
    bare = 0 if is_cuda else resident("VmRSS")
    chosen = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.option)}
    net, teacher = (NETS[options.net](options.classes, **chosen).to(device) for _ in range(2))
    tiny = batches(options.batch, ((TINY, TINY),) * 3, options.classes, device)
    with torch.no_grad():
        depth = net(tiny[0].image).features.shape[1]
    prototypes = torch.randn(options.classes, depth, device=device), torch.ones(options.classes, dtype=torch.bool)
    entry = METHODS[options.method]
    task = Task(options.classes, None, prototypes, teacher if options.method == "distill" else None)
    method = entry.build(entry.settings(), net, task).to(device).train()
    del teacher
    tuned, loop = method.tuned(), Loop(10**6, 0, torch.device(device), options.precision)
    one_step(method, tuned, *tiny, 0, loop)
    sides = (options.source or options.crop, options.crop, options.whole)
    shown = batches(options.batch, sides, options.classes, device, frozenset(method.needs))
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        held = resident("VmRSS") - bare
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    losses = one_step(method, tuned, *shown, 1, loop)
    if is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    assert all(loss.isfinite() for loss in losses.values()), losses
    peak = torch.cuda.max_memory_allocated() if is_cuda else resident("VmHWM") - bare
    reserved = torch.cuda.max_memory_reserved() if is_cuda else 0
    return {"held": held, "peak": peak, "reserved": reserved, "seconds": seconds}


def row(options: argparse.Namespace, batch: int, precision: str) -> dict[str, Any] | None:
    """One measurement in a process of its own; None where the machine has too little memory for it."""
    if options.device == "cpu" and available() < options.spare * GIB:
        return None
    # Large blocks are mapped one by one, so that what is freed is given back and not counted.
    environment = os.environ | ({} if options.keep else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    own = vars(options) | {"batch": batch, "precision": precision}
    command = [sys.executable, __file__, "--measure", json.dumps(own)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Measure; 0 unless the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--net", default="deeplab_v2_resnet101_proda")
    parser.add_argument("--method", default="proda")
    parser.add_argument("--option", nargs="*", default=[], help="of the network, KEY=VALUE")
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--crop", type=int, nargs=2, default=(512, 896), help="height and width of the crops")
    parser.add_argument("--source", type=int, nargs=2, help="the same of the source's; default: as --crop")
    parser.add_argument("--whole", type=int, nargs=2, default=(1024, 2048), help="height and width of the whole images")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--precision", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--keep", action="store_true", help="CPU: keep freed memory, as training does")
    parser.add_argument("--spare", type=float, default=14, help="CPU: GiB that must be available to start")
    options = parser.parse_args()
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        print("not measured: on CPU this needs Linux's /proc")
        return 0
    sides = (options.source or options.crop, options.crop, options.whole)
    source, crop, whole = ("x".join(map(str, size)) for size in sides)
    net = ", ".join([options.net, *options.option, options.method])
    print(f"torch {torch.__version__}, {net}, source {source}, target {crop}, whole images {whole}, GiB")
    passed = True
    for batch in options.batch:
        for precision in options.precision:
            found = row(options, batch, precision)
            if found is None:
                print(f"  batch {batch} {precision}: not measured, less than {options.spare} GiB are available")
                continue
            held, peak, reserved = (found[name] / GIB for name in ("held", "peak", "reserved"))
            shown = f" ({reserved:.2f})" if reserved else ""
            line = f"  batch {batch} {precision}: held {held:6.2f}  step {peak - held:6.2f}  peak {peak:6.2f}{shown}"
            if options.device != "cpu" and precision == "bf16" and batch == BAR_BATCH:
                met = max(found["peak"], found["reserved"]) < BAR
                passed &= met
                line += f"  bar {BAR / GIB:.1f}: {'pass' if met else 'FAIL'}"
            print(f"{line}  {found['seconds']:.1f} s", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(argparse.Namespace(**json.loads(sys.argv[2])))))
    else:
        sys.exit(main())
