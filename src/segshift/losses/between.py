"""Losses between two predictions: the student's and a teacher's, of which nothing is learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from segshift.losses.reduction import masked_mean


def assignment_kl(
    student_distance: Float[Tensor, "B K h w"],
    teacher_distance: Float[Tensor, "B K h w"],
    temperature: float,
    mask: Bool[Tensor, "B h w"],
    present: Bool[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Structure learning: KL(z~ || z) in nats of soft assignments to prototypes, z = softmax_k(-d_k * temperature).

    Args:
        student_distance: (B, K, h, w) of `ops.prototype_distance`.
        teacher_distance: (B, K, h, w), a constant: gives z~.
        temperature: multiplies the distances; at 0 the loss is 0.
        mask: (B, h, w) the pixels that count; mean over them.
        present: (K,) the classes that have a prototype: no pixel is assigned to the others. None: all.

    Raises:
        ValueError: the temperature is negative or not finite, no class is present, or `present` is of other classes.

    Source: Zhang et al. (ProDA), CVPR 2021, equation 9. The release takes the mean over the classes too, so its weight
    is K times ours (methods.md section 10.4, item 9).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"the temperature must be finite and not negative, got {temperature}")
    if present is not None:
        if len(present) != student_distance.shape[1]:
            raise ValueError(f"`present` is of {len(present)} classes, the distances of {student_distance.shape[1]}")
        if not present.any():
            raise ValueError("no class has a prototype")
        student_distance, teacher_distance = student_distance[:, present], teacher_distance[:, present]
    return masked_mean(
        _divergence(student_distance.float() * -temperature, teacher_distance.float() * -temperature), mask
    )


def distillation_kl(
    student_logits: Float[Tensor, "B K H W"],
    teacher_logits: Float[Tensor, "B K H W"],
    mask: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Distillation: KL(p_teacher || p_student) in nats, mean over the pixels of `mask` or over all.

    Args:
        student_logits: (B, K, H, W).
        teacher_logits: (B, K, H, W), a constant.
        mask: (B, H, W) the pixels that count. None: all.

    Source: Zhang et al. (ProDA), CVPR 2021, equation 12; what the authors say the code should be (methods.md 10.5).
    """
    return _mean(_divergence(student_logits.float(), teacher_logits.float()), mask)


def _mean(per_pixel: Tensor, mask: Tensor | None) -> Tensor:
    return masked_mean(per_pixel, torch.ones_like(per_pixel, dtype=torch.bool) if mask is None else mask)


def _divergence(student: Tensor, teacher: Tensor) -> Float[Tensor, "B H W"]:
    per_pixel: Tensor = _Divergence.apply(student, teacher.detach())  # type: ignore[no-untyped-call]
    return per_pixel


class _Divergence(torch.autograd.Function):
    """sum_k t_k (log t_k - log s_k) of each pixel, t and s the softmax of the inputs; the gradient of s's is s - t."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        t = log_t.exp()
        per_pixel = log_t.sub_(log_s).mul_(t).sum(dim=1)
        ctx.save_for_backward(log_s.exp_().sub_(t))
        return per_pixel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * grad.unsqueeze(1), None


def released_distillation(
    student_logits: Float[Tensor, "B K H W"],
    teacher_logits: Float[Tensor, "B K H W"],
    mask: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """The release's distillation, kept for comparison: sum_k p~_k (log p~_k - p_k) / K, mean over the pixels.

    `F.kl_div` was given the student's probabilities p where it wants their logarithms, and its mean is over the classes
    too. The loss is no divergence (it may be negative) and only pulls p towards the teacher's most probable class.

    Args:
        student_logits: (B, K, H, W).
        teacher_logits: (B, K, H, W), a constant.
        mask: (B, H, W) the pixels that count. None: all, as released.

    Source: the released code of ProDA (methods.md section 10.5, CODE≠PAPER).
    """
    log_t = F.log_softmax(teacher_logits.detach().float(), dim=1)
    per_pixel = F.kl_div(student_logits.float().softmax(dim=1), log_t, reduction="none", log_target=True).mean(dim=1)
    return _mean(per_pixel, mask)
