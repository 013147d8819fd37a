"""What every segmentation network promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from segshift.errors import UserError
from segshift.types import Prediction

BatchNormPolicy = Literal["train", "frozen", "as-reference"]


class SegmentationNet(nn.Module, ABC):
    """Image → Prediction on the network's own grid; input normalisation is inside, upsampling is not.

    Args:
        num_classes: K.
        batch_norm: `train`: statistics of the batch, trained weight and bias. `frozen`: running statistics as loaded,
            weight and bias not trained. `as-reference`: weight and bias not trained but statistics of the batch, and
            running ones updated, as the AdaptSegNet and ADVENT releases do (methods.md section 0.4). It is
            `train` where the network's own release trains its batch norms (`reference_trains_batch_norm`).

    Raises:
        UserError: the batch norm policy is not known.
    """

    reference_trains_batch_norm: ClassVar[bool] = False
    num_features: int
    """D, channels of `Prediction.features`; each network says it when it is made."""

    def __init__(self, num_classes: int, batch_norm: BatchNormPolicy, has_aux: bool = False) -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormPolicy):
            policies = ", ".join(get_args(BatchNormPolicy))
            raise UserError(f"batch norm policy {batch_norm!r} is not known", f"one of {policies}")
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.has_aux = has_aux

    @abstractmethod
    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Prediction: ...

    @abstractmethod
    def head_modules(self) -> list[nn.Module]:
        """The parts that start from random weights and learn faster: classifier and auxiliary heads."""

    def head_parameters(self) -> Iterator[nn.Parameter]:
        for module in self.head_modules():
            yield from module.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        head = {id(p) for p in self.head_parameters()}
        return (p for p in self.parameters() if id(p) not in head)

    def apply_batch_norm_policy(self) -> None:
        """Called by a builder once the network is whole."""
        trained = self.batch_norm == "train" or (self.batch_norm == "as-reference" and self.reference_trains_batch_norm)
        for module in self._batch_norms():
            module.requires_grad_(trained)
        self.train(self.training)

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)))

    def train(self, mode: bool = True) -> SegmentationNet:
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self._batch_norms():
                module.eval()
        return self
