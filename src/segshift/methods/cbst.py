"""CBST: class-balanced self-training (Zou, Yu, Kumar, Wang, ECCV 2018), the half of it that trains.

The paper alternates between two minimisations. The labels ŷ given the network, with class-balanced thresholds λ_k, are
a labels stage; the network given ŷ is this step. A round is one of each.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from segshift.losses import cross_entropy
from segshift.methods.base import Method, Task, Tuned, net_optimizer
from segshift.methods.self_training import ConstantRate, SelfTrainingSettings, pseudo_labels, self_training_step
from segshift.nets.base import SegmentationNet
from segshift.types import Batch


class CbstSettings(SelfTrainingSettings):
    """Defaults: the CRST release, which runs CBST with its regulariser's weight at 0 (methods.md section 5)."""

    optimizer: ConstantRate = ConstantRate()


class Cbst(Method):
    """min over w of CE(up(z_s), y) + CE(up(z_t), ŷ), where ŷ = argmax_k p_k / λ_k of the round's first network."""

    needs = frozenset({"image", "pseudo_label"})

    def __init__(self, settings: CbstSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        # -Σ_k ŷ_k log(p_k / λ_k) of the paper: λ is constant here, so what is left is the cross-entropy with ŷ.
        def learn(logits: Tensor) -> dict[str, Tensor]:
            return {"pseudo": cross_entropy(logits, pseudo_labels(target))}

        yield from self_training_step(self.net, self.settings, source, target, learn)

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
