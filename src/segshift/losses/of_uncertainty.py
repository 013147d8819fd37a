"""Losses on a prediction alone: its entropy, its divergence from uniform, its shares of classes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from segshift.losses.reduction import masked_mean


def _check_classes(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ValueError(f"entropy needs at least 2 classes, the logits have {logits.shape[1]}")


def self_information(logits: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
    """Weighted self-information I = -p log p / log K of each class at each pixel; sums over K to `entropy`.

    Source: Vu et al. (ADVENT), CVPR 2019, section 3.2. The normaliser is log K, so the base of the logarithm cancels.
    """
    _check_classes(logits)
    maps: Tensor = _SelfInformation.apply(logits.float())  # type: ignore[no-untyped-call]
    return maps


class _SelfInformation(torch.autograd.Function):
    """I_k = -p_k log p_k / log K and its gradient in closed form; the reason is `_Entropy`'s.

    With a_k = g_k p_k (1 + log p_k) the gradient of the logits is -(a_k - p_k sum_j a_j) / log K.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_p)
        return log_p.exp().mul_(log_p).div_(-math.log(logits.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (log_p,) = ctx.saved_tensors
        p = log_p.exp()
        a = (log_p + 1).mul_(p).mul_(grad)
        grad_logits: Tensor = a.addcmul_(p, a.sum(dim=1, keepdim=True), value=-1)
        return grad_logits.div_(-math.log(log_p.shape[1]))


def entropy(logits: Float[Tensor, "B K H W"]) -> Float[Tensor, "B H W"]:
    """Shannon entropy of softmax(logits) at each pixel, over log K: in [0, 1].

    Source: Vu et al. (ADVENT), CVPR 2019, equation 2.
    """
    _check_classes(logits)
    per_pixel: Tensor = _Entropy.apply(logits.float())  # type: ignore[no-untyped-call]
    return per_pixel


class _Entropy(torch.autograd.Function):
    """H = -sum_k p_k log p_k / log K; its gradient in closed form is -p_k (log p_k - sum_j p_j log p_j) / log K.

    Less than half the time of the recorded operations, which matters at full resolution (bench/step.py).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        p = log_p.exp()
        negative = (p * log_p).sum(dim=1)
        ctx.save_for_backward(p, log_p, negative)
        return negative / -math.log(logits.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        p, log_p, negative = ctx.saved_tensors
        scale = grad / -math.log(p.shape[1])
        grad_logits: Tensor = (log_p - negative.unsqueeze(1)).mul_(p).mul_(scale.unsqueeze(1))
        return grad_logits


def entropy_in_range(logits: Float[Tensor, "B K H W"], low: float, high: float) -> Float[Tensor, ""]:
    """Mean `entropy` of the pixels between two quantiles of their own image's entropies (MinEnt+ER).

    Args:
        logits: (B, K, H, W).
        low, high: quantiles, 0 <= low < high <= 1; (0, 1) is the plain mean of MinEnt.

    Source: ADVENT section 3.1, whose text restricts the loss to a range; which range is not verified against the
    paper (methods.md section 3), hence both bounds are arguments.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got low={low}, high={high}")
    per_pixel = entropy(logits)
    if (low, high) == (0, 1):
        return per_pixel.mean()
    # By rank and not by value: images with ties (large flat regions) still keep exactly (high - low) of their pixels.
    ordered = per_pixel.flatten(1).sort(dim=1).values
    first = min(int(low * ordered.shape[1]), ordered.shape[1] - 1)
    last = max(int(high * ordered.shape[1]), first + 1)
    return ordered[:, first:last].mean()


def class_ratio_prior(logits: Float[Tensor, "B K H W"], prior: Float[Tensor, " K"], mu: float) -> Float[Tensor, ""]:
    """Penalty for predicting a class on a smaller share of the pixels than a relaxed prior: sum_c max(0, mu p_c - q_c).

    Args:
        logits: (B, K, H, W); q_c is the mean over all B H W pixels of the probability of class c.
        prior: (K,) class shares of the source labels, summing to 1.
        mu: relaxation in [0, 1]; 0 switches the penalty off.

    Source: ADVENT section 3.3; the exact form is not verified against the paper (methods.md sections 3 and 20).
    """
    if not 0 <= mu <= 1:
        raise ValueError(f"mu must lie in [0, 1], got {mu}")
    predicted = logits.float().softmax(dim=1).mean(dim=(0, 2, 3))
    return (mu * prior - predicted).clamp(min=0).sum()


def mrkld(logits: Float[Tensor, "B K H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Regulariser -(1/K) sum_k log p_k: divergence of p from the uniform distribution, plus log K; mean over `mask`.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) the pixels that count: those with a pseudo-label.

    Source: Zou et al. (CRST), ICCV 2019, model regulariser MRKLD (methods.md section 6); the weight is the caller's.
    """
    per_pixel: Tensor = _Divergence.apply(logits.float())  # type: ignore[no-untyped-call]
    return masked_mean(per_pixel, mask)


class _Divergence(torch.autograd.Function):
    """-(1/K) sum_k log p_k of each pixel; its gradient is p - 1/K."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_p)
        return -log_p.mean(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (log_p,) = ctx.saved_tensors
        grad_logits: Tensor = log_p.exp().sub_(1 / log_p.shape[1])
        return grad_logits.mul_(grad.unsqueeze(1))


def mrent(logits: Float[Tensor, "B K H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Regulariser sum_k p_k log p_k, the negative entropy in nats: in [-log K, 0], mean over `mask`.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) the pixels that count: those with a pseudo-label.

    Source: Zou et al. (CRST), ICCV 2019, model regulariser MRENT (methods.md section 6); the weight is the caller's.
    """
    return -math.log(logits.shape[1]) * masked_mean(entropy(logits), mask)


def mrl2(logits: Float[Tensor, "B K H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Regulariser sum_k p_k^2: in [1/K, 1], mean over `mask`.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) the pixels that count: those with a pseudo-label.

    Source: Zou et al. (CRST), ICCV 2019, model regulariser MRL2 (methods.md section 6); the weight is the caller's.
    """
    per_pixel: Tensor = _SquaredNorm.apply(logits.float())  # type: ignore[no-untyped-call]
    return masked_mean(per_pixel, mask)


class _SquaredNorm(torch.autograd.Function):
    """sum_k p_k^2 of each pixel; its gradient is 2 p (p - sum_j p_j^2)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        p = F.softmax(logits, dim=1)
        square = p.square().sum(dim=1)
        ctx.save_for_backward(p, square)
        return square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        p, square = ctx.saved_tensors
        grad_logits: Tensor = (p - square.unsqueeze(1)).mul_(p)
        return grad_logits.mul_(2 * grad.unsqueeze(1))
