"""Losses as pure functions of tensors: no weights, no state, no reduction modes.

Shapes: B images, K classes, H W pixels; labels are int64 train ids with `IGNORE` (255). Every function returns
float32 whatever the precision of its input, and a mean over no pixel is 0 (with a gradient of 0), never NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from segshift.types import IGNORE

SOURCE, TARGET = 0.0, 1.0
"""Domain labels of the discriminators (AdaptSegNet, released code: source 0, target 1)."""


def cross_entropy(logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, mean over the pixels that are not ignored; 0 where all are.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        labels: (B, H, W) train ids in [0, K) or `IGNORE`.
    """
    valid = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / valid


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


def domain_cross_entropy(scores: Float[Tensor, "B 1 h w"], domain: float) -> Float[Tensor, ""]:
    """Binary cross-entropy of a discriminator's logits against one domain label, mean over the patch map.

    Source: Tsai et al. (AdaptSegNet), CVPR 2018, equations 1 and 3; domain labels as in the released code.
    """
    scores = scores.float()
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def domain_least_squares(scores: Float[Tensor, "B 1 h w"], domain: float) -> Float[Tensor, ""]:
    """Squared distance of a discriminator's scores to one domain label, mean over the patch map (LS-GAN).

    Source: Mao et al., ICCV 2017, as used by the AdaptSegNet release for its single-level LS-GAN variant.
    """
    return (scores.float() - domain).square().mean()


def _masked_mean(per_pixel: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, H, W) values where `mask` holds; 0 with a gradient of 0 where it holds nowhere."""
    return torch.where(mask, per_pixel, 0).sum() / mask.sum().clamp(min=1)


def bootstrapping(
    logits: Float[Tensor, "B K H W"],
    labels: Int64[Tensor, "B H W"],
    beta: float,
    hard: bool = False,
    detach_target: bool = False,
) -> Float[Tensor, ""]:
    """Cross-entropy against a mixture of a noisy label t and the network's own opinion, mean over pixels not ignored.

    L = -sum_k [beta t_k + (1 - beta) q_k] log p_k with q = p (soft) or the one-hot argmax of p (hard), in nats.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        labels: (B, H, W) train ids in [0, K) or `IGNORE`.
        beta: share of the label in [0, 1]; 1 is `cross_entropy`.
        hard: the opinion is the most probable class and not the distribution.
        detach_target: q is a constant (self-distillation). By default the gradient flows through it, which adds
            (1 - beta) times entropy minimisation; the hard form has no gradient there either way.

    Source: Reed et al., ICLR 2015 workshop, equations for soft and hard bootstrapping (methods.md section 7).
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    valid = labels != IGNORE
    target = labels.masked_fill(~valid, 0).unsqueeze(1)
    per_pixel: Tensor = _Bootstrapping.apply(logits.float(), target, beta, hard, detach_target)  # type: ignore[no-untyped-call]
    return _masked_mean(per_pixel, valid)


class _Bootstrapping(torch.autograd.Function):
    """The bootstrapped loss of each pixel; keeps one tensor of K x H x W where the recorded operations keep three.

    Gradients of the logits: hard p - beta t - (1 - beta) q; soft beta (p - t), and where it flows through q too,
    - (1 - beta) p (log p - sum_j p_j log p_j) more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, beta: float, hard: bool, detach: bool) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        if hard:
            best, opinion = log_p.max(dim=1, keepdim=True)
        else:
            best = log_p.exp().mul_(log_p).sum(dim=1, keepdim=True)
            opinion = best
        ctx.save_for_backward(log_p, target, opinion)
        ctx.beta, ctx.hard, ctx.detach = beta, hard, detach
        return log_p.gather(1, target).mul_(-beta).sub_(best, alpha=1 - beta).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        log_p, target, opinion = ctx.saved_tensors
        beta, weight = ctx.beta, grad.unsqueeze(1)
        if ctx.hard:
            grad_logits = log_p.exp().mul_(weight)
            grad_logits.scatter_add_(1, opinion, (beta - 1) * weight)
        elif ctx.detach:
            grad_logits = log_p.exp().mul_(beta * weight)
        else:
            # p (beta - (1 - beta) (log p - sum_j p_j log p_j))
            grad_logits = (log_p - opinion).mul_(beta - 1).add_(beta).mul_(log_p.exp()).mul_(weight)
        return grad_logits.scatter_add_(1, target, -beta * weight), None, None, None, None


def mrkld(logits: Float[Tensor, "B K H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Regulariser -(1/K) sum_k log p_k: divergence of p from the uniform distribution, plus log K; mean over `mask`.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) the pixels that count: those with a pseudo-label.

    Source: Zou et al. (CRST), ICCV 2019, model regulariser MRKLD (methods.md section 6); the weight is the caller's.
    """
    per_pixel: Tensor = _Divergence.apply(logits.float())  # type: ignore[no-untyped-call]
    return _masked_mean(per_pixel, mask)


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
    return -math.log(logits.shape[1]) * _masked_mean(entropy(logits), mask)


def mrl2(logits: Float[Tensor, "B K H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Regulariser sum_k p_k^2: in [1/K, 1], mean over `mask`.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) the pixels that count: those with a pseudo-label.

    Source: Zou et al. (CRST), ICCV 2019, model regulariser MRL2 (methods.md section 6); the weight is the caller's.
    """
    per_pixel: Tensor = _SquaredNorm.apply(logits.float())  # type: ignore[no-untyped-call]
    return _masked_mean(per_pixel, mask)


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


def soft_cross_entropy(logits: Float[Tensor, "B K H W"], soft_labels: Float[Tensor, "B K H W"]) -> Float[Tensor, ""]:
    """-sum_k y_k log p_k in nats, mean over the pixels with a soft label.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        soft_labels: (B, K, H, W) not negative; of a pixel without a label all K are 0, of others they sum to 1.

    Source: Zou et al. (CRST), ICCV 2019, label-regularised self-training LRENT (methods.md section 6).
    """
    labelled = (soft_labels.amax(dim=1) > 0).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), soft_labels.float(), reduction="sum") / labelled
