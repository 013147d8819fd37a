"""Means of classes and updates of prototypes against plain loops over images and classes in float64."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segshift.ops import class_means, update_prototypes
from segshift.types import IGNORE


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(seed: int = 0, k: int = 5, size: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor]:
    """Features (3, 7, h, w) and labels with ignored pixels; class 3 nowhere, class 4 on few pixels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k - 2, (3, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    labels[0, 0, :9], labels[1, 0, :10], labels[2, 0, :11] = k - 1, k - 1, k - 1
    return torch.randn(3, 7, *size, generator=generator) + labels.clamp(max=k).unsqueeze(1), labels


def plain_means(features: Tensor, labels: Tensor, classes: int) -> tuple[np.ndarray, np.ndarray]:
    means, counts = np.zeros((len(features), classes, features.shape[1])), np.zeros((len(features), classes), int)
    f, y = features.double().numpy(), labels.numpy()
    for b in range(len(f)):
        for c in range(classes):
            counts[b, c] = (y[b] == c).sum()
            if counts[b, c]:
                means[b, c] = f[b][:, y[b] == c].mean(axis=1)
    return means, counts


@pytest.mark.parametrize("size", [(1, 12), (9, 11), (800, 500)])
def test_means_of_classes(size: tuple[int, int]) -> None:
    features, labels = labelled(size=size)
    means, counts = class_means(features, labels, 5)
    wanted, numbers = plain_means(features, labels, 5)
    assert counts.dtype == torch.int64
    assert means.dtype == torch.float32
    assert torch.equal(counts, torch.from_numpy(numbers))
    np.testing.assert_allclose(means.numpy(), wanted, rtol=2e-5, atol=2e-6)
    assert torch.equal(means[:, 3], torch.zeros(3, 7))
    again, _ = class_means(features, labels, 5)
    assert torch.equal(again, means)


def test_means_of_bfloat16_features_and_other_layouts() -> None:
    features, labels = labelled()
    means, _ = class_means(features.bfloat16(), labels, 5)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, class_means(features.bfloat16().float(), labels, 5)[0])
    wanted, _ = class_means(features, labels, 5)
    for other in (features.to(memory_format=torch.channels_last), torch.cat([features, features], 3)[..., :11]):
        torch.testing.assert_close(class_means(other, labels, 5)[0], wanted)
    torch.testing.assert_close(class_means(features, labels.mT.contiguous().mT, 5)[0], wanted)


def test_means_of_many_pixels_far_from_the_origin() -> None:
    """A sum of float32 alone would be off by a thousandth."""
    features = torch.full((1, 2, 700, 700), 1000.1)
    features[:, :, ::2] += 1 / 64
    means, counts = class_means(features, torch.zeros(1, 700, 700, dtype=torch.int64), 1)
    assert counts.item() == 490_000
    np.testing.assert_allclose(means.numpy(), features[0, 0].double().mean().item(), rtol=1e-6)


def test_means_under_autocast_are_the_same() -> None:
    features, labels = labelled()
    wanted = class_means(features, labels, 5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(class_means(features, labels, 5), wanted, rtol=0, atol=0)


def test_means_of_ignored_pixels_alone() -> None:
    means, counts = class_means(normal(2, 3, 4, 4), torch.full((2, 4, 4), IGNORE), 5)
    assert torch.equal(means, torch.zeros(2, 5, 3))
    assert torch.equal(counts, torch.zeros(2, 5, dtype=torch.int64))


def plain_update(
    prototypes: Tensor, present: Tensor, features: Tensor, labels: Tensor, momentum: float, minimum: int
) -> tuple[np.ndarray, np.ndarray]:
    eta, known = prototypes.double().numpy().copy(), present.numpy().copy()
    means, counts = plain_means(features, labels, len(eta))
    for b in range(len(features)):
        for c in range(len(eta)):
            if counts[b, c] >= minimum:
                eta[c] = momentum * eta[c] + (1 - momentum) * means[b, c] if known[c] else means[b, c]
                known[c] = True
    return eta, known


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("known", [[True] * 5, [False] * 5, [True, False, True, True, False]])
@pytest.mark.parametrize("minimum", [1, 10, 11, 12])
def test_updates_go_image_by_image(momentum: float, known: list[bool], minimum: int) -> None:
    """Class 4 is on 9, 10 and 11 pixels of the three images."""
    features, labels = labelled()
    prototypes, present = normal(5, 7, seed=1), torch.tensor(known)
    before = prototypes.clone(), present.clone(), features.clone(), labels.clone()
    after, now = update_prototypes(prototypes, present, features, labels, momentum, minimum)
    wanted, wanted_present = plain_update(prototypes, present, features, labels, momentum, minimum)
    assert torch.equal(now, torch.from_numpy(wanted_present))
    np.testing.assert_allclose(after.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert after.dtype == torch.float32
    assert torch.equal(after[3], prototypes[3])
    for tensor, was in zip((prototypes, present, features, labels), before, strict=True):
        assert torch.equal(tensor, was)


def test_the_released_momentum_moves_a_prototype() -> None:
    """1e-4 of the way at a time, thousands of times: float32 keeps up with float64."""
    features, labels = torch.ones(1, 3, 4, 4) * 7, torch.zeros(1, 4, 4, dtype=torch.int64)
    prototypes, present = torch.full((1, 3), 5.0), torch.ones(1, dtype=torch.bool)
    for _ in range(2000):
        prototypes, present = update_prototypes(prototypes, present, features, labels, 0.9999)
    np.testing.assert_allclose(prototypes.numpy(), 7 - 2 * 0.9999**2000, rtol=1e-4)


def test_rows_of_absent_classes_are_not_read() -> None:
    features, labels = labelled()
    prototypes = torch.full((5, 7), math.nan)
    after, present = update_prototypes(prototypes, torch.zeros(5, dtype=torch.bool), features, labels, 0.5)
    assert present.tolist() == [True, True, True, False, True]
    assert torch.isfinite(after[present]).all()


def test_an_update_with_nothing_to_see_changes_nothing() -> None:
    prototypes, present = normal(5, 7), torch.tensor([True, False, True, True, False])
    after, now = update_prototypes(prototypes, present, normal(2, 7, 4, 4), torch.full((2, 4, 4), IGNORE), 0.5)
    assert torch.equal(after, prototypes)
    assert torch.equal(now, present)


def test_updates_record_no_graph_and_keep_the_type() -> None:
    features, labels = labelled()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        prototypes = normal(5, 7).to(dtype).requires_grad_()
        after, _ = update_prototypes(
            prototypes, torch.ones(5, dtype=torch.bool), features.requires_grad_(), labels, 0.5
        )
        assert not after.requires_grad
        assert after.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": -0.1}, "momentum must lie in"),
        ({"momentum": 1.1}, "momentum must lie in"),
        ({"momentum": math.nan}, "momentum must lie in"),
        ({"minimum": 0}, "minimum must be at least 1"),
        ({"labels": torch.full((1, 4, 4), 5)}, r"labels must lie in \[0, 5\) or be 255, got 5"),
        ({"labels": torch.full((1, 4, 4), -1)}, r"labels must lie in \[0, 5\) or be 255, got -1"),
        ({"prototypes": torch.zeros(5, 9)}, "features have 7 channels, the prototypes 9"),
        ({"prototypes": torch.zeros(6, 7)}, "`present` is of 5 classes, the rest of 6"),
    ],
)
def test_updates_that_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "prototypes": torch.zeros(5, 7),
        "present": torch.ones(5, dtype=torch.bool),
        "features": torch.zeros(1, 7, 4, 4),
        "labels": torch.zeros(1, 4, 4, dtype=torch.int64),
        "momentum": 0.5,
        "minimum": 10,
    }
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(update_prototypes)(**(arguments | change))


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 4, 4), (1, 4, 5)])
def test_labels_of_another_size_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are of different sizes"):
        inspect.unwrap(class_means)(torch.zeros(1, 7, 4, 4), torch.zeros(size, dtype=torch.int64), 5)
