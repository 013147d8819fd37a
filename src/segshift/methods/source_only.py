"""Source-only: supervised training on the source domain, the start and the control of every adaptation.

It never forwards a target image: with batch-norm in train mode that alone would adapt the running statistics, and
a "source-only" of about 36 mIoU becomes one of about 41 (methods.md section 0.4).
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import Tensor

from segshift.methods.base import Method, MethodSettings, OptimizerSettings, Task, Tuned, net_optimizer, supervised
from segshift.nets.base import SegmentationNet
from segshift.types import Batch


class SourceOnlySettings(MethodSettings):
    """Defaults: the ADVENT and AdaptSegNet releases (methods.md section 1)."""

    aux_weight: float = Field(0.1, ge=0, description="weight of the auxiliary head's cross-entropy, where there is one")
    optimizer: OptimizerSettings = OptimizerSettings()


class SourceOnly(Method):
    """L = CE(up(z), y) + 0.1 CE(up(z_aux), y), on source images alone."""

    def __init__(self, settings: SourceOnlySettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        yield supervised(self.net(source.image), source, self.settings.aux_weight).losses

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
