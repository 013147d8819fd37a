"""Losses on labels: hard, soft and noisy ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from segshift.losses.reduction import masked_mean
from segshift.types import IGNORE

LOWEST_PROBABILITY, LOWEST_LABEL = 1e-7, 1e-4
"""What `symmetric_cross_entropy` takes for a smaller probability, and for the 0 of a label in a logarithm."""


def cross_entropy(logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, mean over the pixels that are not ignored; 0 where all are.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        labels: (B, H, W) train ids in [0, K) or `IGNORE`.
    """
    valid = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / valid


def soft_cross_entropy(logits: Float[Tensor, "B K H W"], soft_labels: Float[Tensor, "B K H W"]) -> Float[Tensor, ""]:
    """-sum_k y_k log p_k in nats, mean over the pixels with a soft label.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        soft_labels: (B, K, H, W) not negative; of a pixel without a label all K are 0, of others they sum to 1.

    Source: Zou et al. (CRST), ICCV 2019, label-regularised self-training LRENT (methods.md section 6).
    """
    labelled = (soft_labels.amax(dim=1) > 0).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), soft_labels.float(), reduction="sum") / labelled


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
    return masked_mean(per_pixel, valid)


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


def symmetric_cross_entropy(
    logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"], alpha: float, beta: float
) -> Float[Tensor, ""]:
    """alpha CE(p, y) + beta RCE(p, y) in nats, mean over pixels not ignored; robust to labels that are wrong.

    RCE = -sum_k p_k log y_k is the cross-entropy with label and prediction exchanged. A label's zeros count as 1e-4
    in the logarithm and probabilities below 1e-7 as that, so RCE is 9.21 times the probability of the other classes.

    Args:
        logits: (B, K, H, W) at the labels' resolution.
        labels: (B, H, W) train ids in [0, K) or `IGNORE`.
        alpha: weight of the cross-entropy, not negative; ProDA: 0.1.
        beta: weight of the reverse one, not negative; ProDA: 1.

    Raises:
        ValueError: a negative weight.

    Source: Wang et al., ICCV 2019, as in the release of ProDA (methods.md section 10.4, item 7).
    """
    if not (alpha >= 0 and beta >= 0):
        raise ValueError(f"alpha and beta must not be negative, got {alpha} and {beta}")
    valid = labels != IGNORE
    target = labels.masked_fill(~valid, 0).unsqueeze(1)
    per_pixel: Tensor = _SymmetricCrossEntropy.apply(logits.float(), target, alpha, beta)  # type: ignore[no-untyped-call]
    return masked_mean(per_pixel, valid)


class _SymmetricCrossEntropy(torch.autograd.Function):
    """Both cross-entropies of each pixel; keeps one tensor of K x H x W where the recorded operations keep five.

    With o_k = p_k for the classes other than the label's that are not clamped, and 0 for the rest, the gradient of the
    logits is alpha (p - y) + 9.21 beta (o - p sum_j o_j).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_p, target)
        ctx.alpha, ctx.beta = alpha, -beta * math.log(LOWEST_LABEL)
        others = log_p.exp().clamp_(min=LOWEST_PROBABILITY).scatter_(1, target, 0).sum(dim=1)
        return others.mul_(ctx.beta).sub_(log_p.gather(1, target).squeeze(1), alpha=alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        log_p, target = ctx.saved_tensors
        p, weight = log_p.exp(), grad.unsqueeze(1)
        others = p.masked_fill(p < LOWEST_PROBABILITY, 0).scatter_(1, target, 0)
        grad_logits = others.addcmul_(p, others.sum(dim=1, keepdim=True), value=-1).mul_(ctx.beta)
        grad_logits.add_(p, alpha=ctx.alpha).mul_(weight)
        return grad_logits.scatter_add_(1, target, -ctx.alpha * weight), None, None, None
