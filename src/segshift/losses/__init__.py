"""Losses as pure functions of tensors: no weights, no state, no reduction modes.

Shapes: B images, K classes, H W pixels; labels are int64 train ids with `IGNORE` (255). Every function returns
float32 whatever the precision of its input, and a mean over no pixel is 0 (with a gradient of 0), never NaN.
"""

from __future__ import annotations

from segshift.losses.adversarial import SOURCE, TARGET, domain_cross_entropy, domain_least_squares
from segshift.losses.between import assignment_kl, distillation_kl, released_distillation
from segshift.losses.of_labels import bootstrapping, cross_entropy, soft_cross_entropy, symmetric_cross_entropy
from segshift.losses.of_tags import category_domain_cross_entropy, tag_cross_entropy
from segshift.losses.of_uncertainty import (
    class_ratio_prior,
    entropy,
    entropy_in_range,
    mrent,
    mrkld,
    mrl2,
    self_information,
)

__all__ = [
    "SOURCE",
    "TARGET",
    "assignment_kl",
    "bootstrapping",
    "category_domain_cross_entropy",
    "class_ratio_prior",
    "cross_entropy",
    "distillation_kl",
    "domain_cross_entropy",
    "domain_least_squares",
    "entropy",
    "entropy_in_range",
    "mrent",
    "mrkld",
    "mrl2",
    "released_distillation",
    "self_information",
    "soft_cross_entropy",
    "symmetric_cross_entropy",
    "tag_cross_entropy",
]
