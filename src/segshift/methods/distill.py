"""ProDA, stages 2 and 3: a fresh network learns the labels and the distributions of a trained one on strong views.

Zhang, Zhang, Zhang, Chen, Wang, Wen: CVPR 2021, section 3.4. Stage 1 is `proda`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from segshift.losses import cross_entropy, distillation_kl, released_distillation
from segshift.methods.base import Method, OptimizerSettings, Task, Tuned, levels, net_optimizer, supervised
from segshift.methods.grid import Grid, carried
from segshift.methods.self_training import SelfTrainingSettings, over_heads, pseudo_labels
from segshift.nets.base import SegmentationNet
from segshift.ops import upsample
from segshift.types import IGNORE, Batch


class DistillRate(OptimizerSettings):
    """Optimiser of stages 2 and 3. Defaults: ProDA's release (methods.md section 10.5)."""

    lr: float = Field(6e-4, gt=0)
    weight_decay: float = Field(2e-4, ge=0)


class DistillSettings(SelfTrainingSettings):
    """Defaults: ProDA's release (methods.md section 10.5), but for its distillation loss, which is not the paper's."""

    kd_weight: float = Field(1.0, ge=0, description="of the divergence from the teacher; 0: no teacher")
    released_kd: bool = Field(False, description="the release's loss, which takes probabilities for their logarithms")
    resolution: int = Field(4, ge=1, description="the target's losses are at 1/resolution of the view")
    optimizer: DistillRate = DistillRate()

    @property
    def wants_teacher(self) -> bool:
        return self.kd_weight > 0


class Distill(Method):
    """L = CE_s + CE_t(hard labels) + w KL(teacher ‖ student), the target's terms on strong views."""

    needs = frozenset({"image", "strong", "pseudo_label"})

    def __init__(self, settings: DistillSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        self.teacher = task.teacher if settings.kd_weight else None
        if self.teacher is not None:
            if self.teacher.num_classes != task.num_classes:
                raise ValueError(f"a teacher of {self.teacher.num_classes} classes for a task of {task.num_classes}")
            self.teacher.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Distill:
        """The teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        settings = self.settings
        if settings.kd_weight and self.teacher is None:
            raise ValueError("these settings need a network to learn from (Task.teacher), there is none")
        view, affine = carried(target, "strong"), carried(target, "strong_affine")
        strong = Grid.over(view, affine, settings.resolution)
        labels = self._labels(target, strong)

        # 1. Segment the source.
        yield supervised(self.net(source.image), source, settings.aux_weight).losses

        # 2. Learn the hard labels on the strong view, and what the teacher, which sees the same view, thinks of it.
        taught = self._teach(view, strong)
        logits = [upsample(head, strong.size) for head in levels(self.net(view))]
        losses = over_heads(logits, settings, lambda level: {"pseudo": cross_entropy(level, labels)})
        if taught is not None:
            divergence = released_distillation if settings.released_kd else distillation_kl
            losses["distillation"] = settings.kd_weight * divergence(logits[0], taught)
        yield losses

    def _labels(self, target: Batch, strong: Grid) -> Int64[Tensor, "B h w"]:
        """The weak view's labels on the grid; ignored where the strong view shows nothing of the image."""
        labels = strong.read(pseudo_labels(target), carried(target, "affine"), IGNORE)
        seen = strong.read(carried(target, "strong_seen").long(), carried(target, "strong_affine"), 0)
        return labels.masked_fill(seen == 0, IGNORE)

    @torch.no_grad()
    def _teach(self, view: Float[Tensor, "B 3 H W"], strong: Grid) -> Float[Tensor, "B K h w"] | None:
        return None if self.teacher is None else upsample(self.teacher(view).logits, strong.size)

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
