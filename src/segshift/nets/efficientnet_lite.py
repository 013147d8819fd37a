"""EfficientNet-Lite0, exact to the published ImageNet model, with a dilated form for dense prediction.

Source: Tan and Le (EfficientNet), ICML 2019, and the "lite" variants of the TensorFlow TPU release: no
squeeze-and-excitation, ReLU6, TensorFlow's SAME padding, batch norm with eps 1e-3 and momentum 0.01.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01

# (blocks, kernel, stride of the first block, expansion, output channels) of the seven stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
CHANNELS_MIDDLE = 112
"""Channels after the fifth stage (stride 16)."""
CHANNELS_OUT = 320
"""Channels after the last stage."""


class DepthwiseOnCpu(torch.autograd.Function):
    """Depthwise convolution of stride 1 and SAME padding with a quicker backward pass for CPUs.

    torch's own has no fast kernel for dilations and for bfloat16 (1152 channels of 15 x 20, 5x5, dilation 2:
    49 ms on one EPYC core, 7 ms here): the gradient of the input is a convolution with the reversed weight, that of the
    weight is taken in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """Convolve: (B, C, H, W), (C, 1, k, k) with k odd → (B, C, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _depthwise(x, weight.to(x.dtype), dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = _depthwise(grad, weight.to(grad.dtype).flip(2, 3), ctx.dilation)
        wide = torch.promote_types(torch.float32, x.dtype)
        grad_weight = _depthwise_weight_grad(x.to(wide), grad.to(wide), weight.shape[-1], ctx.dilation)
        return grad_x, grad_weight.to(weight.dtype), None


def _depthwise(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def _depthwise_weight_grad(x: Tensor, grad: Tensor, kernel: int, dilation: int) -> Tensor:
    padding = dilation * (kernel // 2)
    channels, height, width = x.shape[1:]
    if dilation == 1:
        shape = (channels, 1, kernel, kernel)
        weight_grad: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            x, shape, grad, padding=padding, groups=channels
        )
        return weight_grad
    # One product a tap, into one buffer; with the channels last each is a plain pass over memory.
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    last = grad.permute(0, 2, 3, 1)
    starts = range(0, kernel * dilation, dilation)
    product = torch.empty_like(last)
    taps = []
    for i in starts:
        for j in starts:
            torch.mul(padded[:, i : i + height, j : j + width], last, out=product)
            taps.append(product.sum((0, 1, 2)))
    return torch.stack(taps, dim=1).view(channels, 1, kernel, kernel)


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's SAME padding, batch norm and, where wanted, ReLU6.

    SAME: the output is ceil(size / stride), and where the padding is odd the extra row and column lie at the end.

    Args:
        inputs, outputs: channels.
        kernel, stride, dilation: of the convolution, the same in both directions.
        groups: of the convolution.
        activation: ReLU6 after the batch norm.
        eps, momentum: of the batch norm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation + 1
        self.stride = stride
        self.activation = activation
        # With stride 1 SAME is symmetric and independent of the size: the convolution pads by itself, without a copy.
        padding = self.reach // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs, eps=eps, momentum=momentum)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        if self.stride > 1:
            rows, columns = (self._missing(size) for size in x.shape[2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = self.norm(self._convolve(x))
        return F.relu6(x, inplace=True) if self.activation else x

    def _convolve(self, x: Tensor) -> Tensor:
        depthwise = self.conv.groups > 1
        if not depthwise or x.device.type != "cpu" or not torch.is_grad_enabled():
            return self.conv(x)  # type: ignore[no-any-return]
        if self.stride == 1:
            if torch.is_autocast_enabled("cpu"):
                x = x.to(torch.get_autocast_dtype("cpu"))
            out: Tensor = DepthwiseOnCpu.apply(x, self.conv.weight, self.conv.dilation[0])  # type: ignore[no-untyped-call]
            return out
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float())  # type: ignore[no-any-return]

    def _missing(self, size: int) -> int:
        """Rows (or columns) of zeros that SAME adds to an input of that size."""
        return max((-(-size // self.stride) - 1) * self.stride + self.reach - size, 0)


class InvertedResidual(nn.Module):
    """MBConv block without squeeze-and-excitation: 1x1 expand, depthwise, 1x1 project, identity where shapes allow."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int, dilation: int, residual: bool
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = residual
        self.expand = ConvNorm(inputs, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden)
        self.project = ConvNorm(hidden, outputs, activation=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.residual else out


class EfficientNetLite0(nn.Module):
    """The convolutional trunk: normalised image → 112 channels at stride 16 and 320 at the output stride.

    Args:
        output_stride: 32 is the published classifier. 16 gives the last strided stage stride 1 and the layers behind it
            dilation 2, so that they see what they were trained to see (as DeepLab does with ResNet).
    """

    def __init__(self, output_stride: Literal[16, 32] = 16) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        inputs, reached, dilation = 32, 2, 1
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                first = index == 0 and stride > 1
                if first and reached * stride > output_stride:
                    # The block that would have strided still reads the undilated grid.
                    block_stride, block_dilation, dilation = 1, dilation, dilation * stride
                else:
                    block_stride, block_dilation = stride if first else 1, dilation
                reached *= block_stride
                blocks.append(
                    InvertedResidual(
                        inputs,
                        outputs,
                        kernel,
                        stride=block_stride,
                        expansion=expansion,
                        dilation=block_dilation,
                        # Decided by the published stride: removing a stride must not create a shortcut.
                        residual=inputs == outputs and not first,
                    )
                )
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self._middle = sum(stage[0] for stage in STAGES[:5])

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 112 h w"], Float[Tensor, "B 320 i j"]]:
        """Features after the fifth and after the last stage."""
        x = self.stem(image)
        middle = x
        for index, block in enumerate(self.blocks, start=1):
            x = block(x)
            if index == self._middle:
                middle = x
        return middle, x


class EfficientNetLite0Classifier(nn.Module):
    """The published ImageNet classifier: normalised image → 1000 logits. It proves the trunk exact."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(output_stride=32)
        self.top = ConvNorm(CHANNELS_OUT, 1280)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1000"]:
        logits: Tensor = self.classifier(self.top(self.backbone(image)[1]).mean(dim=(2, 3)))
        return logits
