"""CRST: confidence-regularised self-training (Zou, Yu, Liu, Kumar, Wang, ICCV 2019), on top of CBST's rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor

from segshift.losses import cross_entropy, mrent, mrkld, mrl2, soft_cross_entropy
from segshift.methods.base import Method, Task, Tuned, net_optimizer
from segshift.methods.self_training import ConstantRate, SelfTrainingSettings, pseudo_labels, self_training_step
from segshift.nets.base import SegmentationNet
from segshift.types import IGNORE, Batch


class Regulariser(NamedTuple):
    """loss((B, K, H, W) logits, (B, H, W) bool of the pixels that count) and the weight that it is used with."""

    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float


# The weight of MRKLD is the release's (mrkld.sh). The others are not verified against the paper (methods.md section 6).
REGULARISERS = {"mrkld": Regulariser(mrkld, 0.1), "mrent": Regulariser(mrent, 0.1), "mrl2": Regulariser(mrl2, 0.025)}


class CrstSettings(SelfTrainingSettings):
    """Defaults: the CRST release, mrkld.sh (methods.md sections 5 and 6)."""

    regulariser: Literal["mrkld", "mrent", "mrl2", "lrent"] = Field(
        "mrkld", description="of the network (mrkld, mrent, mrl2) or of the labels (lrent, with soft labels)"
    )
    weight: float | None = Field(
        None, ge=0, description="alpha; None: 0.1, 0.1, 0.025 for mrkld, mrent, mrl2; lrent's is in its labels"
    )
    released_weight: bool = Field(
        True, description="mrkld alone: alpha squared in place of alpha, as the released code computes it"
    )
    optimizer: ConstantRate = ConstantRate()

    @model_validator(mode="after")
    def _lrent_has_its_weight_elsewhere(self) -> CrstSettings:
        if self.regulariser == "lrent" and self.weight is not None:
            raise ValueError("lrent's alpha shapes the soft labels: set it in the labels stage, and leave weight null")
        return self


class Crst(Method):
    """CE(up(z_s), y) + CE(up(z_t), ŷ) + α R(p_t) over the selected pixels; LRENT: CE with soft ŷ and no R."""

    needs = frozenset({"image", "pseudo_label"})

    def __init__(self, settings: CrstSettings, net: SegmentationNet, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.net = net
        if settings.regulariser == "lrent":
            self.needs = self.needs | {"soft_label"}

    def step(self, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        learn = self._label_regularised if self.settings.regulariser == "lrent" else self._model_regularised
        yield from self_training_step(self.net, self.settings, source, target, lambda logits: learn(logits, target))

    def _model_regularised(self, logits: Tensor, target: Batch) -> dict[str, Tensor]:
        """MRKLD, MRENT, MRL2: the network shall not be too sure of the pixels that it learns from itself."""
        name, labels = self.settings.regulariser, pseudo_labels(target)
        regulariser, alpha = REGULARISERS[name]
        if self.settings.weight is not None:
            alpha = self.settings.weight
        # The release multiplies with the weight twice: each pixel's term, and the sum over the pixels.
        if name == "mrkld" and self.settings.released_weight:
            alpha *= alpha
        return {"pseudo": cross_entropy(logits, labels), name: alpha * regulariser(logits, labels != IGNORE)}

    def _label_regularised(self, logits: Tensor, target: Batch) -> dict[str, Tensor]:
        """LRENT: α Σ_k ŷ_k log ŷ_k made the labels soft, and is constant where the network is learned."""
        if target.soft_label is None:
            raise ValueError("the target batch carries no soft labels")
        return {"pseudo": soft_cross_entropy(logits, target.soft_label)}

    def tuned(self) -> dict[str, Tuned]:
        return {"net": net_optimizer(self.net, self.settings.optimizer)}

    def predictor(self) -> SegmentationNet:
        return self.net
