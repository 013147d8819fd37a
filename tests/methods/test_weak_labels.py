"""Weak labels against the paper's step (methods.md section 9) in plain torch, cell by cell and class by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from restated import Plain, both, compare, plain_copy, requires_grad, up
from torch import Tensor, nn

from segshift.methods.weak_labels import WeakLabels, WeakLabelsSettings, rarity
from segshift.nets.discriminators import CategoryDiscriminators
from segshift.types import IGNORE, Batch
from tiny import CLASSES, TinyNet, build, target_batch
from tiny import task as tiny_task

CASES: dict[str, dict[str, Any]] = {
    "pseudo": {"mode": "pseudo"},
    "auto": {"mode": "auto"},
    "alone": {"mode": "pseudo", "align_outputs": False, "sharpness": 3.0, "threshold": 0.5},
    "tags": {"mode": "tags"},
    "skip": {"mode": "tags", "unknown": "skip", "tag_weight": 0.7},
    "points": {"mode": "points", "point_weight": 0.5, "pseudo_tag_weight": 0.05},
    "prior": {"mode": "points", "point_prior": 0.7},
}


def cells_of(batch: Batch, rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """For each image the cells of the grid that see any of it; the grid divides the view evenly here."""
    assert batch.seen is not None
    high, wide = batch.seen.shape[1] // rows, batch.seen.shape[2] // columns
    every = [(i, j) for i in range(rows) for j in range(columns)]
    return [
        [(i, j) for i, j in every if seen[i * high : (i + 1) * high, j * wide : (j + 1) * wide].any()]
        for seen in batch.seen
    ]


def smooth_max(maps: Tensor, k: float, cells: list[list[tuple[int, int]]]) -> Tensor:
    """(B, K): (1 / k) log of the mean of exp(k A) over the cells."""
    rows = []
    for image, own in zip(maps, cells, strict=True):
        values = torch.stack([image[:, i, j] for i, j in own])
        rows.append(torch.log(torch.exp(k * values).sum(0) / len(own)) / k)
    return torch.stack(rows)


def attend(features: Tensor, maps: Tensor, cells: list[list[tuple[int, int]]]) -> Tensor:
    """(B, K, D): features weighed by the softmax of each class's map over the cells."""
    rows = []
    for f, image, own in zip(features, maps, cells, strict=True):
        weights = torch.stack([torch.exp(image[:, i, j]) for i, j in own])
        weights = weights / weights.sum(0)
        rows.append(sum(w[:, None] * f[None, :, i, j] for w, (i, j) in zip(weights, own, strict=True)))
    return torch.stack(rows)


def score(network: nn.Module, pooled: Tensor, c: int) -> Tensor:
    """(B,) what class c's own perceptron says of its features."""
    assert isinstance(network, CategoryDiscriminators)
    x = pooled[:, c]
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = F.linear(x, weight[c].T, bias[c, 0])
        if number < 2:
            x = torch.where(x > 0, x, 0.2 * x)
    return x[:, 0]


def of_categories(network: nn.Module, pooled: Tensor, present: Tensor, is_target: bool) -> Tensor:
    """-log D or -log(1 - D), summed over the classes that are there, mean over the images."""
    total = torch.zeros(())
    for c in range(CLASSES):
        p = torch.sigmoid(score(network, pooled, c))
        for b in range(len(pooled)):
            if present[b, c]:
                total = total - torch.log(p[b] if is_target else 1 - p[b])
    return total / len(pooled)


def on_tags(pooled: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the tags that are known."""
    losses = []
    for logit, tag in zip(pooled.flatten(), tags.flatten().tolist(), strict=True):
        if tag >= 0:
            p = torch.sigmoid(logit)
            losses.append(-torch.log(p) if tag == 1 else -torch.log(1 - p))
    return torch.stack(losses).mean() if losses else 0 * pooled.sum()


def source_half(plain: Plain, source: Batch, align: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Step 1; the softmax maps, what the source's classes look like, and which are there."""
    assert source.label is not None
    prediction = plain.net(source.image)
    heads = [prediction.logits] if prediction.aux is None else [prediction.logits, prediction.aux]
    logits = [up(head, source.label.shape) for head in heads]
    losses = {"seg": F.cross_entropy(logits[0], source.label, ignore_index=IGNORE)}
    if len(logits) > 1:
        losses["seg_aux"] = 0.1 * F.cross_entropy(logits[1], source.label, ignore_index=IGNORE)
    plain.keep(**losses).backward()  # type: ignore[no-untyped-call]
    cells = cells_of(source, *prediction.logits.shape[2:])
    assert 0 < len(cells[0]) < prediction.logits[0, 0].numel()
    looks = attend(prediction.features, prediction.logits, cells).detach()
    present = torch.tensor([[bool((label == c).any()) for c in range(CLASSES)] for label in source.label])
    return [F.softmax(level, dim=1).detach() for level in logits if align], looks, present


def tags_of(pooled: Tensor, target: Batch, settings: WeakLabelsSettings) -> tuple[Tensor, Tensor]:
    """A person's tags and those that are guessed, -1 where there are none."""
    guessed = torch.where(torch.sigmoid(pooled) > settings.threshold, 1.0, 0.0)
    if settings.mode in ("pseudo", "auto"):
        return torch.full_like(guessed, -1), guessed
    assert target.tags is not None
    left = target.tags == -1
    return target.tags, torch.where(left, guessed, -1.0) if settings.unknown == "pseudo" else -torch.ones_like(guessed)


def at_points(logits: Tensor, target: Batch, strength: float) -> Tensor:
    """Mean of -log p(class | clicked), which is as p(class) over the class's share, to the power of the setting."""
    shares = tiny_task(0).class_shares
    assert target.points is not None
    assert shares is not None
    clicked = F.softmax(logits, dim=1) / shares.view(1, -1, 1, 1) ** strength
    log_p = torch.log(clicked / clicked.sum(1, keepdim=True))
    ys = (target.points != IGNORE).nonzero().tolist()
    return torch.stack([-log_p[b, int(target.points[b, y, x]), y, x] for b, y, x in ys]).mean()


def vanilla(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


@pytest.mark.parametrize("aux", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("case", CASES)
def test_step_is_the_papers(aux: bool, case: str) -> None:
    method = build("weak_labels", TinyNet(aux), category_weight=0.03, adversarial_weight=2e-3, **CASES[case])
    assert isinstance(method, WeakLabels)
    settings = method.settings
    patches: list[nn.Module] = list(method.discriminators)
    assert len(patches) == (1 + aux) * settings.align_outputs
    plain = plain_copy(method, [*patches, method.categories])
    seen_tags = []

    def step(source: Batch, target: Batch) -> None:
        *outputs, categories = plain.discriminators
        requires_grad(plain.discriminators, False)
        source_maps, source_looks, source_present = source_half(plain, source, settings.align_outputs)

        prediction = plain.net(target.image)
        cells = cells_of(target, *prediction.logits.shape[2:])
        assert 0 < len(cells[0]) < prediction.logits[0, 0].numel()
        pooled = smooth_max(prediction.logits, settings.sharpness, cells)
        given, guessed = tags_of(pooled, target, settings)
        present = (given == 1) | (guessed == 1)
        seen_tags.append((given, guessed))
        looks = attend(prediction.features, prediction.logits, cells)
        losses = {"category": 0.03 * of_categories(categories, looks, present, is_target=False)}
        if settings.mode in ("tags", "points"):
            losses["tags"] = settings.tag_weight * on_tags(pooled, given)
        if settings.unknown == "pseudo":
            losses["pseudo_tags"] = settings.pseudo_tag_weight * on_tags(pooled, guessed)
        heads = [prediction.logits] if prediction.aux is None else [prediction.logits, prediction.aux]
        maps = [F.softmax(up(head, target.image.shape), dim=1) for head in heads if settings.align_outputs]
        for name, weight, network, level in zip(("", "_aux"), (2e-3, 2e-4), outputs, maps, strict=False):
            losses[f"adversarial{name}"] = weight * vanilla(network(level), 0.0)
        if settings.mode == "points":
            logits = up(prediction.logits, target.image.shape)
            losses["points"] = settings.point_weight * at_points(logits, target, settings.point_prior)
        plain.keep(**losses).backward()  # type: ignore[no-untyped-call]

        requires_grad(plain.discriminators, True)
        of_source = of_categories(categories, source_looks, source_present, is_target=False) / 2
        of_target = of_categories(categories, looks.detach(), present, is_target=True) / 2
        plain.keep(category_source=of_source, category_target=of_target).backward()  # type: ignore[no-untyped-call]
        for name, network, before, level in zip(("", "_aux"), outputs, source_maps, maps, strict=False):
            parts = {f"discriminator_source{name}": vanilla(network(before), 0.0) / 2}
            parts[f"discriminator_target{name}"] = vanilla(network(level.detach()), 1.0) / 2
            plain.keep(**parts).backward()  # type: ignore[no-untyped-call]

    compare(method, [*patches, method.categories], plain, step)
    figures = {name: value.item() for name, value in method.figures().items()}
    given, guessed = seen_tags[-1]
    assert figures["present"] == ((given == 1) | (guessed == 1)).sum().item() / len(given)
    assert figures.keys() == {"present", "pooled_logit"}
    guesses = {value for tags in seen_tags for value in tags[1].flatten().tolist()}
    wanted = {"alone": {0.0, 1.0}, "skip": {-1.0}, "pseudo": {1.0}, "auto": {1.0}}
    assert guesses == wanted.get(case, {-1.0, 1.0}), "untrained, a class has a probability of about one half"


def test_what_each_mode_needs() -> None:
    plain = {"image", "seen"}
    needs = {mode: build("weak_labels", mode=mode).needs for mode in ("auto", "pseudo", "tags", "points")}
    assert needs == {"auto": plain, "pseudo": plain, "tags": plain | {"tags"}, "points": plain | {"tags", "points"}}


def test_classes_that_no_image_shows_have_no_part() -> None:
    """Tags that say so keep a class from its discriminator; with none present nothing is divided by 0."""
    method = build("weak_labels", mode="tags", unknown="skip")
    source, target = both(0)
    assert source.label is not None
    assert target.tags is not None
    object.__setattr__(source, "label", source.label.where(source.label != 1, IGNORE))
    object.__setattr__(target, "tags", torch.tensor([[1.0, 0, 0], [0, 0, -1]]))
    groups = []
    for group in method.step(source, target):
        groups.append(group)
        torch.stack(list(group.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert isinstance(method, WeakLabels)
    for parameter in method.categories.parameters():
        assert parameter.grad is not None
        assert [bool(parameter.grad[c].any()) for c in range(CLASSES)] == [True, False, True]
    object.__setattr__(target, "tags", torch.zeros(2, CLASSES))
    losses: dict[str, Tensor] = {}
    for group in method.step(source, target):
        losses |= group
    assert losses["category"].item() == losses["category_target"].item() == 0
    assert method.figures()["present"].item() == 0


def test_positive_only_tags_pull_up_alone() -> None:
    """With unknown tags left out, only the classes that are known to be there have a gradient of the tags' loss."""
    method = build("weak_labels", mode="tags", unknown="skip", category_weight=0, align_outputs=False)
    target = target_batch(0)
    object.__setattr__(target, "tags", torch.tensor([[-1.0, 1, -1], [-1, -1, -1]]))
    pooled = torch.zeros(2, CLASSES, requires_grad=True)
    assert isinstance(method, WeakLabels)
    (loss,) = method._classify(pooled, method._tags(pooled.detach(), target)).values()
    loss.backward()  # type: ignore[no-untyped-call]
    assert pooled.grad is not None
    assert (pooled.grad < 0).tolist() == [[False, True, False], [False, False, False]]
    assert not pooled.grad[pooled.grad >= 0].any()


def test_defaults_are_those_of_the_sheet() -> None:
    settings = WeakLabelsSettings()
    assert (settings.pseudo_tag_weight, settings.tag_weight, settings.category_weight) == (0.01, 0.2, 0.001)
    assert (settings.threshold, settings.sharpness, settings.point_radius) == (0.2, 1, 4)
    assert settings.align_outputs
    assert (settings.adversarial_weight, settings.discriminator.lr) == (1e-3, 1e-4)


def test_shares_are_asked_for_only_where_they_are_used() -> None:
    def wants(**settings: Any) -> bool:
        return WeakLabelsSettings.model_validate(settings).wants_class_shares

    assert not wants()
    assert not wants(mode="points")
    assert not wants(mode="tags", point_prior=1.0)
    assert wants(mode="points", point_prior=1.0)
    settings = WeakLabelsSettings(mode="points", point_prior=1.0)
    with pytest.raises(ValueError, match="class shares"):
        WeakLabels(settings, TinyNet(), replace(tiny_task(0), class_shares=None))


def test_a_class_without_pixels_in_the_source_has_a_finite_shift() -> None:
    shares = torch.tensor([1.0, 0.0, 0.0][:CLASSES] + [0.0] * max(0, CLASSES - 3))
    shift = rarity(replace(tiny_task(0), class_shares=shares), 1.0)
    assert shift[0] == 0
    torch.testing.assert_close(shift[1:], torch.full((CLASSES - 1,), 9.2103), atol=1e-3, rtol=0)
