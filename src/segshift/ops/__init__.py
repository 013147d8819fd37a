"""Small tensor operations that are not losses."""

from __future__ import annotations

from segshift.ops.geometry import grid_affine, warp
from segshift.ops.pooling import category_pool, classes_in, seen_cells, smooth_max
from segshift.ops.prototypes import class_means, prototype_distance, prototype_weight, update_prototypes
from segshift.ops.resize import upsample
from segshift.ops.training import frozen, poly
from segshift.ops.voting import window_vote

__all__ = [
    "category_pool",
    "class_means",
    "classes_in",
    "frozen",
    "grid_affine",
    "poly",
    "prototype_distance",
    "prototype_weight",
    "seen_cells",
    "smooth_max",
    "update_prototypes",
    "upsample",
    "warp",
    "window_vote",
]
