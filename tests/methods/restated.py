"""Plain torch for the restatements of the papers' steps. Nothing here calls segshift.losses or segshift.ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segshift.engine.trainer import Loop, one_step
from segshift.methods import Method
from segshift.nets.base import SegmentationNet
from segshift.run import EMPTY
from segshift.types import Batch
from tiny import source_batch, target_batch

STEPS, HORIZON = 2, 5
"""Steps compared, and the stage's length, which the learning rate decays over."""


@dataclass
class Plain:
    """Copies of a method's networks with optimisers as the releases set them up (methods.md sections 1 and 2).

    Every scalar is kept as it was added to a loss, under the name that the method reports it by.
    """

    net: SegmentationNet
    discriminators: list[nn.Module]
    lr: float = 2.5e-4
    head_factor: float = 10
    weight_decay: float = 5e-4
    power: float = 0.9
    aux_weight: float = 0.1
    losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        heads = [p for head in self.net.head_modules() for p in head.parameters()]
        ids = {id(p) for p in heads}
        body = [p for p in self.net.parameters() if id(p) not in ids and p.requires_grad]
        self.rates = (self.lr, self.head_factor * self.lr)
        groups = [{"params": params, "lr": rate} for params, rate in zip((body, heads), self.rates, strict=True)]
        self.sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=self.weight_decay)
        self.adams = [torch.optim.Adam(d.parameters(), lr=1e-4, betas=(0.9, 0.99)) for d in self.discriminators]

    def start(self, step: int) -> None:
        """Learning rates of the step, gradients at zero."""
        left = 1 - step / HORIZON
        for group, base in zip(self.sgd.param_groups, self.rates, strict=True):
            group["lr"] = base * left**self.power
        for adam in self.adams:
            adam.param_groups[0]["lr"] = 1e-4 * left**0.9
        self.sgd.zero_grad()
        for adam in self.adams:
            adam.zero_grad()
        self.losses = {}

    def finish(self) -> None:
        self.sgd.step()
        for adam in self.adams:
            adam.step()

    def keep(self, **losses: Tensor) -> Tensor:
        """Note the losses, return their sum."""
        self.losses |= {name: loss.item() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()


def plain_copy(method: Method, discriminators: list[nn.Module], **settings: Any) -> Plain:
    """Independent copies with the method's weights; `settings` are fields of `Plain`."""
    net = copy.deepcopy(method.predictor())
    return Plain(net.train(), [copy.deepcopy(d).train() for d in discriminators], **settings)


def up(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size=size[-2:], mode="bilinear", align_corners=True)


def segment_source(plain: Plain, source: Batch) -> tuple[Tensor, Tensor | None]:
    """Steps 1 of all methods: cross-entropy, backward. Returns the upsampled logits of both heads."""
    assert source.label is not None
    prediction = plain.net(source.image)
    main = up(prediction.logits, source.label.shape)
    losses = {"seg": F.cross_entropy(main, source.label, ignore_index=255)}
    aux = None
    if prediction.aux is not None:
        aux = up(prediction.aux, source.label.shape)
        losses["seg_aux"] = plain.aux_weight * F.cross_entropy(aux, source.label, ignore_index=255)
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]
    return main, aux


def learn_target(
    plain: Plain, target: Batch, on_logits: Callable[[Tensor], dict[str, Tensor]], target_weight: float = 1.0
) -> None:
    """The second half of a step of self-training: the same losses on both heads, backward."""
    prediction = plain.net(target.image)
    losses = {name: target_weight * loss for name, loss in on_logits(up(prediction.logits, target.image.shape)).items()}
    if prediction.aux is not None:
        on_aux = on_logits(up(prediction.aux, target.image.shape))
        losses |= {f"{name}_aux": target_weight * plain.aux_weight * loss for name, loss in on_aux.items()}
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]


def mean_where(per_pixel: Tensor, mask: Tensor) -> Tensor:
    """Mean of the pixels where the mask holds; 0, with a gradient of 0, where it holds nowhere."""
    return per_pixel[mask].mean() if mask.any() else 0 * per_pixel.sum()


def negative_log(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of the label at each pixel that has one, mean; 255 is none."""
    log_p = torch.log(F.softmax(logits, dim=1)).permute(0, 2, 3, 1)
    chosen = log_p.gather(3, labels.where(labels != 255, 0)[..., None])[..., 0]
    return mean_where(-chosen, labels != 255)


REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mrkld": lambda p: -torch.log(p).sum(1) / p.shape[1],
    "mrent": lambda p: (p * torch.log(p)).sum(1),
    "mrl2": lambda p: (p * p).sum(1),
}
"""Probabilities (B, K, H, W) → the regulariser of CRST at each pixel (methods.md section 6)."""


def requires_grad(networks: list[nn.Module], flag: bool) -> None:
    for network in networks:
        for parameter in network.parameters():
            parameter.requires_grad = flag


def align_outputs(
    plain: Plain,
    represent: Callable[[Tensor], Tensor],
    domain_loss: Callable[[Tensor, float], Tensor],
    weights: tuple[float, float],
    source: Batch,
    target: Batch,
    on_target: Callable[[Tensor], dict[str, Tensor]] = lambda logits: {},
) -> None:
    """methods.md section 2, steps 1 to 4, written with flags as the releases do. Source is 0, target is 1."""
    requires_grad(plain.discriminators, False)
    source_main, source_aux = segment_source(plain, source)

    prediction = plain.net(target.image)
    target_main = up(prediction.logits, target.image.shape)
    target_aux = None if prediction.aux is None else up(prediction.aux, target.image.shape)
    losses = {"adversarial": weights[0] * domain_loss(plain.discriminators[0](represent(target_main)), 0.0)}
    if target_aux is not None:
        losses["adversarial_aux"] = weights[1] * domain_loss(plain.discriminators[1](represent(target_aux)), 0.0)
    plain.keep(**losses, **on_target(target_main)).backward()  # type: ignore[no-untyped-call]

    requires_grad(plain.discriminators, True)
    for suffix, network, of_source, of_target in zip(
        ("", "_aux"), plain.discriminators, (source_main, source_aux), (target_main, target_aux), strict=False
    ):
        assert of_source is not None
        assert of_target is not None
        source_loss = domain_loss(network(represent(of_source.detach())), 0.0) / 2
        plain.keep(**{f"discriminator_source{suffix}": source_loss}).backward()  # type: ignore[no-untyped-call]
        target_loss = domain_loss(network(represent(of_target.detach())), 1.0) / 2
        plain.keep(**{f"discriminator_target{suffix}": target_loss}).backward()  # type: ignore[no-untyped-call]


Batches = Callable[[int], tuple[Batch, Batch]]
"""Step → a batch of the source and one of the target."""


def both(number: int) -> tuple[Batch, Batch]:
    return source_batch(number), target_batch(number)


def smooth(network: nn.Module) -> None:
    """Replace its LeakyReLUs, whose kink is a matter of luck: on another processor a unit may round to one side of 0 in
    one network and to the other side in its copy, and their gradients are no longer the same."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.Tanh())


def compare(
    method: Method,
    discriminators: list[nn.Module],
    plain: Plain,
    step: Callable[[Batch, Batch], None],
    batches: Batches = both,
) -> None:
    """Take the same steps with the method and in plain torch; losses, gradients, weights and statistics must agree."""
    for network in (*discriminators, *plain.discriminators):
        smooth(network)
    method.train()
    tuned = method.tuned()
    loop = Loop(steps=HORIZON, seed=0, device=torch.device("cpu"))
    for number in range(STEPS):
        source, target = batches(number)
        losses = one_step(method, tuned, source, target if method.needs else EMPTY, number, loop)

        plain.start(number)
        step(source, target)
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(plain.losses, rel=1e-4, abs=1e-8)
        for ours, theirs in pairs_of(method, discriminators, plain):
            # The halves of a discriminator's loss all but cancel at the start: what is left of them is less exact.
            same_gradients(ours, theirs, 1e-4 if theirs is plain.net else 1e-3)
        plain.finish()
    for ours, theirs in pairs_of(method, discriminators, plain):
        same_weights(ours, theirs)


def pairs_of(method: Method, discriminators: list[nn.Module], plain: Plain) -> list[tuple[nn.Module, nn.Module]]:
    assert len(discriminators) == len(plain.discriminators)
    return [(method.predictor(), plain.net), *zip(discriminators, plain.discriminators, strict=True)]


def named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def same_gradients(ours: nn.Module, theirs: nn.Module, share: float = 1e-4) -> None:
    """Single values may differ by a share of the largest one."""
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            scale = b.grad.abs().max().item()
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=share * scale, msg=named(name))


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Adam moves every weight by about 1e-4 a step, whatever the size of its gradient: rounding shows where that is
    nearly 0, so single weights may differ by more than all do on average."""
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5, msg=named(name))
        assert (a - b).abs().float().mean() < 1e-7, name
