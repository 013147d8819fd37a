"""The networks once more, in plain functions that walk a state dict: independent of the modules that they check."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Batch norm with running statistics, written out."""
    mean, var, weight, bias = (
        state[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def same_conv(x: Tensor, weight: Tensor, stride: int, depthwise: bool) -> Tensor:
    """TensorFlow's SAME on an explicit canvas: output ceil(n / stride), the odd zero at the end."""
    kernel = weight.shape[-1]
    height, width = x.shape[2:]
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    total = [max((out - 1) * stride + kernel - n, 0) for out, n in ((rows, height), (columns, width))]
    canvas = x.new_zeros(*x.shape[:2], height + total[0], width + total[1])
    canvas[:, :, total[0] // 2 :, total[1] // 2 :][:, :, :height, :width] = x
    return F.conv2d(canvas, weight, stride=stride, groups=x.shape[1] if depthwise else 1)


def efficientnet_lite0(state: State, x: Tensor) -> Tensor:
    """The published classifier from the wheel's own keys: normalised (B, 3, H, W) → (B, 1000)."""
    eps = 0.001

    def relu6(y: Tensor) -> Tensor:
        return y.clamp(0, 6)

    x = relu6(norm(state, "_bn0", same_conv(x, state["_conv_stem.weight"], 2, False), eps))
    # The blocks that halve the image; everything else can be read off the shapes of the weights.
    halving = {1, 3, 5, 11}
    for index in range(16):
        at = f"_blocks.{index}"
        y = x
        if f"{at}._expand_conv.weight" in state:
            y = relu6(norm(state, f"{at}._bn0", F.conv2d(y, state[f"{at}._expand_conv.weight"]), eps))
        y = same_conv(y, state[f"{at}._depthwise_conv.weight"], 2 if index in halving else 1, True)
        y = relu6(norm(state, f"{at}._bn1", y, eps))
        y = norm(state, f"{at}._bn2", F.conv2d(y, state[f"{at}._project_conv.weight"]), eps)
        x = x + y if y.shape == x.shape else y
    x = relu6(norm(state, "_bn1", F.conv2d(x, state["_conv_head.weight"]), eps))
    return x.mean(dim=(2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


def resnet101(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dilated ResNet-101 of DeepLab-v2 from torchvision's keys: normalised image → layer3, layer4."""
    eps = 1e-5
    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(state, "bn1", x, eps).relu(), 3, 2, 1, ceil_mode=True)
    stages = {}
    for layer, (blocks, stride, dilation) in {1: (3, 1, 1), 2: (4, 2, 1), 3: (23, 1, 2), 4: (3, 1, 4)}.items():
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            shortcut = x
            step = stride if block == 0 else 1
            if block == 0:
                shortcut = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=step)
                shortcut = norm(state, f"{at}.downsample.1", shortcut, eps)
            # The stride is taken by the first 1x1 (Caffe) and not by the 3x3 (torchvision).
            y = norm(state, f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"], stride=step), eps).relu()
            y = F.conv2d(y, state[f"{at}.conv2.weight"], padding=dilation, dilation=dilation)
            y = F.conv2d(norm(state, f"{at}.bn2", y, eps).relu(), state[f"{at}.conv3.weight"])
            x = (norm(state, f"{at}.bn3", y, eps) + shortcut).relu()
        stages[layer] = x
    return stages[3], stages[4]


def aspp(state: State, name: str, x: Tensor, branches: int) -> Tensor:
    """Sum of the first `branches` dilated convolutions, from ADVENT's keys."""
    total = torch.zeros(())
    for index, dilation in list(enumerate((6, 12, 18, 24)))[:branches]:
        weight, bias = (state[f"{name}.conv2d_list.{index}.{part}"] for part in ("weight", "bias"))
        total = total + F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    return total


def proda_head(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """ProDA's head without dropout, from its own keys: layer4 → features, logits."""
    parts = []
    for index, dilation in enumerate((1, 6, 12, 18, 24)):
        at = f"layer5.conv2d_list.{index}"
        padding = 0 if index == 0 else dilation
        y = F.conv2d(x, state[f"{at}.0.weight"], state[f"{at}.0.bias"], padding=padding, dilation=dilation)
        parts.append(F.group_norm(y, 32, state[f"{at}.1.weight"], state[f"{at}.1.bias"]).relu())
    y = torch.cat(parts, dim=1)
    at = "layer5.bottleneck"
    gate = (y.mean(dim=(2, 3)) @ state[f"{at}.0.se.0.weight"].T + state[f"{at}.0.se.0.bias"]).relu()
    gate = (gate @ state[f"{at}.0.se.2.weight"].T + state[f"{at}.0.se.2.bias"]).sigmoid()
    y = F.conv2d(y * gate[..., None, None], state[f"{at}.1.weight"], state[f"{at}.1.bias"], padding=1)
    features = F.group_norm(y, 32, state[f"{at}.2.weight"], state[f"{at}.2.bias"])
    return features, F.conv2d(features, state["layer5.head.1.weight"])


def vgg16(state: State, x: Tensor) -> Tensor:
    """conv1_1 … conv5_3 of DeepLab-v2's VGG-16 from torchvision's keys: normalised image → conv5_3 after ReLU."""
    positions = [0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, 24, 26, 28]
    for position in positions:
        if position == "pool":
            x = F.max_pool2d(x, 2, 2)
            continue
        dilation = 2 if position in (24, 26, 28) else 1
        weight, bias = state[f"features.{position}.weight"], state[f"features.{position}.bias"]
        x = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation).relu()
    return x


def randomise(shapes: dict[str, Tensor], seed: int = 0) -> State:
    """Random weights of the given shapes under which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, like in shapes.items():
        if key.endswith("tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        elif like.ndim > 1:
            gain = math.sqrt(2 / like[0].numel())
            state[key] = torch.randn(like.shape, generator=generator) * gain
        elif key.endswith("running_var"):
            state[key] = torch.rand(like.shape, generator=generator) + 0.5
        elif key.endswith("weight"):
            # Batch norms at the end of a residual branch are small, so that 33 additions stay of order one.
            small = 0.2 if "bn3" in key else 1.0
            state[key] = small * (torch.rand(like.shape, generator=generator) + 0.5)
        else:
            state[key] = 0.1 * torch.randn(like.shape, generator=generator)
    return state
