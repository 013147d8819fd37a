"""Time of a training step of each method over the time of the bare network passes that it must do.

    python bench/step.py                                         # CPU, 128x256 crops
    python bench/step.py --device cuda --height 512 --width 1024 --batch 1 --classes 19

Bare passes: forward and backward of the segmentation network (and, in adversarial methods, of the discriminators) on
the same shapes in the same precision, with nothing around them: no upsampling, no loss, no optimiser, no checks.
Step: `segshift.engine.trainer.one_step` and the trainer's finite check, that is everything but reading images.
Both are timed in turns (A B A B …), so that what else the machine does meets both; the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segshift.engine.memory import keep_freed_memory
from segshift.engine.trainer import FiniteCheck, Loop, one_step
from segshift.methods import METHODS
from segshift.methods.base import Task, levels
from segshift.methods.weak_labels import WeakLabels
from segshift.nets import NETS
from segshift.types import IGNORE, Batch

BUILD: dict[str, dict[str, Any]] = {"deeplab_lite": {"weights": "none"}, "deeplab_v2_resnet101": {"aux": True}}


Shown = list[tuple[nn.Module, Tensor]]
"""Discriminators with what stands for what they are shown, made beforehand: (B, K, H, W) maps, (B, K, D) features."""


def bare_passes(net: nn.Module, discriminators: Shown, loop: Loop, batch: Batch, images: int) -> None:
    """The network passes of a step: `images` batches through the network, and three through each discriminator."""

    def both_ways(module: nn.Module, inputs: Tensor) -> list[Tensor]:
        with torch.autocast(loop.device.type, torch.bfloat16, enabled=loop.precision == "bf16"):
            out = module(inputs)
            outputs = levels(out) if module is net else [out]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        return outputs

    for _ in range(images):
        both_ways(net, batch.image)
    for discriminator, maps in discriminators:
        discriminator.requires_grad_(False)
        both_ways(discriminator, maps.detach().requires_grad_())
        discriminator.requires_grad_(True)
        both_ways(discriminator, maps.detach())
        both_ways(discriminator, maps.detach())
    for module in (net, *(discriminator for discriminator, _ in discriminators)):
        module.zero_grad(set_to_none=True)


PASSES = {"source_only": (1, 0), "proda": (3, 1), "distill": (2, 1)}
"""Batches through the network, both ways, and through a teacher, forward alone; of all other methods: 2 and 0."""

SETTINGS: dict[str, dict[str, Any]] = {"weak_labels": {"mode": "points"}}
"""Settings of a method that are not its defaults: those under which its step does most."""


def target_batch(image: Tensor, features: Tensor, classes: int) -> Batch:
    """Everything that any method asks of a target batch; the weak view is mirrored, the strong one turned as well."""
    size, (height, width) = len(image), image.shape[-2:]
    device, whole = image.device, torch.eye(3, device=image.device).expand(size, 3, 3).contiguous()
    weak, turn = whole.clone(), torch.eye(3, dtype=torch.float64, device=device)
    weak[:, 0, 0], weak[:, 0, 2] = -1, width - 1
    turn[:2, :2] = torch.tensor([[0.98, -0.2], [0.2, 0.98]], device=device)
    labels = torch.randint(0, classes, (size, height, width), device=device)
    return Batch(
        image,
        affine=weak,
        names=("b",),
        pseudo_label=labels,
        soft_label=nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2).float(),
        easy=torch.arange(size, device=device) % 2 == 0,
        full=image.flip(-1).contiguous(),
        full_affine=whole,
        strong=image.flip(-2).contiguous(),
        strong_affine=(weak.double() @ turn).float(),
        strong_seen=torch.rand(size, height, width, device=device) > 0.1,
        soft_full=torch.rand(size, classes, *features.shape[-2:], device=device).softmax(dim=1),
        tags=torch.randint(-1, 2, (size, classes), device=device).float(),
        points=labels.where(torch.rand(size, height, width, device=device) < 0.01, IGNORE),
        seen=torch.ones(size, height, width, dtype=torch.bool, device=device),
    )


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(net_name: str, method_name: str, precision: str, options: argparse.Namespace) -> str:
    device = torch.device(options.device)
    torch.manual_seed(0)
    size = (options.batch, options.height, options.width)
    image = torch.rand(size[0], 3, *size[1:], device=device)
    label = torch.randint(0, options.classes, size, device=device)
    maps = torch.rand(size[0], options.classes, *size[1:], device=device)
    net, teacher = (NETS[net_name](options.classes, **BUILD[net_name]).to(device) for _ in range(2))
    with torch.no_grad():
        features = net(image).features
    seen = torch.ones(size, dtype=torch.bool, device=device)
    source = Batch(image, label, names=("a",), seen=seen)
    target = target_batch(image.flip(0), features, options.classes)
    prototypes = torch.randn(options.classes, features.shape[1]), torch.ones(options.classes, dtype=torch.bool)
    entry = METHODS[method_name]
    task = Task(options.classes, None, prototypes, teacher)
    method = entry.build(entry.settings(**SETTINGS.get(method_name, {})), net, task).to(device).train()
    tuned = method.tuned()
    loop = Loop(10**6, 0, device, precision)
    check = FiniteCheck("bench", Path("none"))
    shown = [(discriminator, maps) for discriminator in getattr(method, "discriminators", nn.ModuleList())]
    if isinstance(method, WeakLabels):
        shown.append((method.categories, torch.randn(size[0], options.classes, features.shape[1], device=device)))

    def bare() -> None:
        images, taught = PASSES.get(method_name, (2, 0))
        bare_passes(net, shown, loop, source, images)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.no_grad(), autocast:
            for _ in range(taught):
                teacher(image)

    def step() -> None:
        check(0, one_step(method, tuned, source, target, 0, loop), source, target)

    for _ in range(5):  # the first rounds of a process pay for kernels being chosen and memory being found
        bare()
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pairs = [(timed(bare, device), timed(step, device)) for _ in range(options.rounds)]
    bare_s, step_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(step / bare for bare, step in pairs)
    best = min(step for _, step in pairs) / min(bare for bare, _ in pairs)
    memory = f"  {torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB" if device.type == "cuda" else ""
    return (
        f"{net_name:22} {method_name:12} {precision}  bare {1e3 * bare_s:8.1f} ms  step {1e3 * step_s:8.1f} ms"
        f"  ratio {ratio:5.3f}  ratio of the fastest {best:5.3f}  {size[0] / step_s:6.2f} images/s{memory}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="*", default=list(BUILD))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    options = parser.parse_args()
    if options.device == "cpu":
        keep_freed_memory()  # as `train` does; bare passes gain from it too
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options}")
    for net in options.nets:
        for precision in options.precisions:
            for method in options.methods:
                print(measure(net, method, precision, options), flush=True)


if __name__ == "__main__":
    main()
