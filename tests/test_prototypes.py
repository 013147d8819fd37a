"""Distances to prototypes against the loop over classes in float64, near and far; weights against a restatement."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segshift.ops import prototype_distance, prototype_weight


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loop(features: Tensor, prototypes: Tensor) -> Tensor:
    """The definition, a class at a time, in float64; torch gives the norm of 0 a gradient of 0."""
    return torch.stack([(features.double() - eta.double().view(1, -1, 1, 1)).norm(dim=1) for eta in prototypes], dim=1)


def near_and_far(kind: str) -> tuple[Tensor, Tensor]:
    """Features (2, 40, 9, 11), prototypes (6, 40)."""
    features, prototypes = normal(2, 40, 9, 11), normal(6, 40, seed=1)
    owners = torch.randint(6, (2, 9, 11), generator=torch.Generator().manual_seed(2))
    own = prototypes[owners].movedim(-1, 1)
    if kind.startswith("close"):
        return own + float(kind.split()[1]) * features, prototypes
    if kind == "equal":
        features[:, :, ::2] = own[:, :, ::2]
        return features, prototypes
    if kind == "off the origin":
        return features + 100, prototypes + 100
    if kind == "off the origin, close":
        return own + 1e-2 * features + 30, prototypes + 30
    if kind == "the same prototype twice":
        prototypes[4] = prototypes[1]
        features[0] = prototypes[1].view(-1, 1, 1) + 1e-3 * features[0]
        return features, prototypes
    if kind == "all prototypes the same":
        return features * 1e-4 + prototypes[0].view(1, -1, 1, 1), prototypes[:1].expand(6, -1).clone()
    if kind == "one that is absent":
        prototypes[2] = 0
        features[0, :, 0, 0] = 0
        return features + 3, prototypes + 3
    if kind == "tiny":
        return features * 1e-12, prototypes * 1e-12
    if kind == "huge":
        return features * 1e12, prototypes * 1e12
    assert kind == "plain"
    return features, prototypes


KINDS = [
    "plain", "close 0.3", "close 0.15", "close 0.1", "close 1e-2", "close 1e-4", "close 1e-6", "equal", "tiny", "huge",
    "off the origin", "off the origin, close", "the same prototype twice", "all prototypes the same",
    "one that is absent",
]  # fmt: skip


def both_ways(features: Tensor, prototypes: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Distance, gradient of features, of prototypes: ours and the definition's."""
    found = []
    for distance, dtype in ((prototype_distance, torch.float32), (loop, torch.float64)):
        f, p = (x.detach().to(dtype).requires_grad_() for x in (features, prototypes))
        result = distance(f, p)
        (result * weight.to(dtype)).sum().backward()  # type: ignore[no-untyped-call]
        assert f.grad is not None
        assert p.grad is not None
        found.append((result.detach(), f.grad, p.grad))
    return found


def assert_as_defined(features: Tensor, prototypes: Tensor, tolerance: float = 3e-5) -> None:
    weight = normal(len(features), len(prototypes), *features.shape[2:], seed=5)
    ours, wanted = both_ways(features, prototypes, weight)
    torch.testing.assert_close(ours[0].double(), wanted[0], rtol=tolerance, atol=0)
    for mine, defined in zip(ours[1:], wanted[1:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - defined).abs().max() <= tolerance * defined.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_distance_and_gradients_are_those_of_the_loop(kind: str) -> None:
    assert_as_defined(*near_and_far(kind))


@pytest.mark.parametrize(
    ("channels", "classes", "size"),
    [
        (1, 3, (4, 5)),
        (2, 3, (400, 400)),  # more pixels than one part of a forward pass
        (300, 2, (90, 90)),  # more than one of a backward pass, and not whole runs
        (16, 1, (3, 3)),
        (17, 19, (1, 1)),
        (33, 5, (1, 70)),
        (40_000, 2, (2, 2)),  # of one pixel more than a run
    ],
)
def test_distance_of_any_size(channels: int, classes: int, size: tuple[int, int]) -> None:
    features, prototypes = normal(2, channels, *size), normal(classes, channels, seed=1)
    features[1] = features[1] * 0.01 + prototypes[0].view(-1, 1, 1)
    assert_as_defined(features, prototypes)


@settings(max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 8), st.floats(-6, 1), st.floats(-3, 2), st.booleans())
def test_distance_at_any_scatter_and_offset(
    seed: int, channels: int, classes: int, scatter: float, offset: float, tight: bool
) -> None:
    prototypes = normal(classes, channels, seed=seed) + 10**offset
    own = prototypes[torch.arange(15).view(1, 3, 5) % classes].movedim(-1, 1)
    features = normal(1, channels, 3, 5, seed=seed + 1) * 10**scatter + (own if tight else 10**offset)
    assert_as_defined(features, prototypes)


def test_a_feature_that_is_a_prototype_has_distance_and_gradients_of_zero() -> None:
    prototypes = normal(5, 40, seed=1) * 10 + 3
    features = prototypes[2].view(1, -1, 1, 1).expand(1, -1, 4, 6).clone().requires_grad_()
    prototypes.requires_grad_()
    distance = prototype_distance(features, prototypes)
    assert torch.equal(distance[:, 2], torch.zeros(1, 4, 6))
    distance[:, 2].sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert prototypes.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert torch.equal(prototypes.grad, torch.zeros_like(prototypes))


def test_the_smallest_difference_that_float32_has_is_a_distance() -> None:
    prototypes = normal(3, 64)
    features = prototypes[1].view(1, -1, 1, 1).clone()
    features[0, 7] = torch.nextafter(features[0, 7], torch.tensor(9.0))
    distance = prototype_distance(features, prototypes)
    torch.testing.assert_close(distance.double(), loop(features, prototypes), rtol=3e-5, atol=0)
    assert distance[0, 1, 0, 0] > 0


def test_bfloat16_features_give_float32_distances() -> None:
    features, prototypes = normal(1, 24, 5, 6).bfloat16().requires_grad_(), normal(4, 24, seed=1)
    distance = prototype_distance(features, prototypes)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, prototype_distance(features.float(), prototypes), rtol=0, atol=0)
    distance.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    wide = features.detach().float().requires_grad_()
    prototype_distance(wide, prototypes).sum().backward()  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    assert torch.equal(features.grad, wide.grad.bfloat16())
    narrow = prototype_distance(normal(1, 24, 5, 6), prototypes.bfloat16())
    torch.testing.assert_close(narrow, prototype_distance(normal(1, 24, 5, 6), prototypes.bfloat16().float()))


def test_distance_under_autocast_is_the_same() -> None:
    def run() -> tuple[Tensor, Tensor | None, Tensor | None]:
        features, prototypes = normal(1, 40, 5, 6).requires_grad_(), normal(4, 40, seed=1).requires_grad_()
        distance = prototype_distance(features, prototypes)
        distance.sum().backward()  # type: ignore[no-untyped-call]
        return distance.detach(), features.grad, prototypes.grad

    wanted = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert prototype_weight(found[0].bfloat16(), 1.0).dtype == torch.float32


def test_distance_of_features_in_any_memory_layout() -> None:
    features, prototypes, weight = normal(2, 20, 12, 15), normal(4, 20, seed=1), normal(2, 4, 12, 15, seed=5)
    wanted = both_ways(features, prototypes, weight)[0]
    for other in (
        features.to(memory_format=torch.channels_last),
        torch.cat([features, features], dim=3)[..., :15],
        features.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        f, p = other.detach().requires_grad_(), prototypes.clone().requires_grad_()
        distance = prototype_distance(f, p)
        (distance * weight).sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(distance.detach(), wanted[0])
        torch.testing.assert_close(f.grad, wanted[1])
        torch.testing.assert_close(p.grad, wanted[2])


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    for of_features in (True, False):
        features, prototypes = normal(1, 8, 3, 4), normal(3, 8, seed=1)
        asking = (features if of_features else prototypes).requires_grad_()
        prototype_distance(features, prototypes).sum().backward()  # type: ignore[no-untyped-call]
        wanted = both_ways(features, prototypes, torch.ones(1, 3, 3, 4))[0]
        assert asking.grad is not None
        torch.testing.assert_close(asking.grad, wanted[1] if of_features else wanted[2])
        assert (prototypes if of_features else features).grad is None
    with torch.no_grad():
        assert not prototype_distance(features, prototypes).requires_grad


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor):
                # What it holds and not what it shows: a view has the storage of another tensor.
                self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return result


def test_nothing_larger_than_the_result_is_made() -> None:
    features, prototypes = normal(2, 64, 96, 128), normal(19, 64, seed=1)
    with Largest() as largest:
        distance = prototype_distance(features, prototypes)
    assert largest.elements == features.numel() > distance.numel()
    features.requires_grad_()
    distance = prototype_distance(features, prototypes)
    with Largest() as largest:
        distance.sum().backward()  # type: ignore[no-untyped-call]
    assert largest.elements == features.numel()


def test_distance_repeats_bit_for_bit_and_leaves_its_input() -> None:
    features, prototypes = near_and_far("close 0.1")
    before = features.clone(), prototypes.clone()
    first = both_ways(features, prototypes, torch.ones(2, 6, 9, 11))[0]
    again = both_ways(features, prototypes, torch.ones(2, 6, 9, 11))[0]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(features, before[0])
    assert torch.equal(prototypes, before[1])


def test_distances_that_are_refused() -> None:
    unchecked = inspect.unwrap(prototype_distance)
    with pytest.raises(ValueError, match="features have 8 channels, the prototypes 9"):
        unchecked(torch.zeros(1, 8, 2, 2), torch.zeros(3, 9))
    with pytest.raises(ValueError, match="no prototype"):
        prototype_distance(torch.zeros(1, 8, 2, 2), torch.zeros(0, 8))
    assert prototype_distance(torch.zeros(0, 8, 2, 2), torch.zeros(3, 8)).shape == (0, 3, 2, 2)


# ---- weights


def plain_weight(distance: Tensor, temperature: float, present: list[bool]) -> np.ndarray:
    d = distance.double().numpy()
    e = np.where(np.array(present).reshape(1, -1, 1, 1), np.exp(-temperature * (d - d.min())), 0.0)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("present", [None, [True, False, True, True], [False, False, True, False]])
def test_weights(temperature: float, present: list[bool] | None) -> None:
    distance = 5 * normal(2, 4, 3, 5).abs()
    given_present = None if present is None else torch.tensor(present)
    weight = prototype_weight(distance, temperature, given_present)
    wanted = plain_weight(distance, temperature, present or [True] * 4)
    np.testing.assert_allclose(weight.numpy(), wanted, atol=1e-6, rtol=1e-4)


def test_an_absent_class_is_never_nearest() -> None:
    distance = torch.tensor([0.0, 3.0, 4.0]).view(1, 3, 1, 1)
    weight = prototype_weight(distance, 1.0, torch.tensor([False, True, True]))
    assert weight[0, 0, 0, 0] == 0
    assert weight.argmax(1).item() == 1
    torch.testing.assert_close(weight.flatten(), torch.tensor([0, 1, math.exp(-1)]) / (1 + math.exp(-1)))
    for at in (0.0, math.inf, 1e30):
        distance[0, 0] = at
        assert torch.equal(prototype_weight(distance, 1.0, torch.tensor([False, True, True])), weight)


def test_a_temperature_of_zero_weighs_the_present_classes_alike() -> None:
    weight = prototype_weight(normal(1, 4, 2, 2).abs(), 0.0, torch.tensor([True, False, True, False]))
    assert torch.equal(weight, torch.tensor([0.5, 0, 0.5, 0]).view(1, 4, 1, 1).expand(1, 4, 2, 2))
    assert torch.equal(prototype_weight(normal(1, 4, 2, 2).abs(), 0.0), torch.full((1, 4, 2, 2), 0.25))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 1e3), st.floats(-3, 8), st.sampled_from([torch.float32, torch.bfloat16]))
def test_weights_are_a_distribution(seed: int, temperature: float, size: float, dtype: torch.dtype) -> None:
    distance = (normal(1, 5, 3, 4, seed=seed).abs() * 10**size).to(dtype)
    weight = prototype_weight(distance, temperature, torch.tensor([True, True, False, True, True]))
    assert weight.dtype == torch.float32
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.sum(1), torch.ones(1, 3, 4))
    seen = weight[:, [0, 1, 3, 4]]
    nearest = distance[:, [0, 1, 3, 4]].argmin(1, keepdim=True)
    assert (seen.gather(1, nearest) >= seen.amax(1, keepdim=True) - 1e-6).all()


def test_far_from_all_prototypes_it_is_the_differences_that_count() -> None:
    distance = torch.tensor([8e6, 8e6 + 0.5]).view(1, 2, 1, 1)
    weight = prototype_weight(distance, 1.7)
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.0, -0.85]).softmax(0))
    with_absent = torch.cat([distance, torch.zeros(1, 1, 1, 1)], dim=1)
    assert torch.equal(prototype_weight(with_absent, 1.7, torch.tensor([True, True, False]))[:, :2], weight)


def test_weights_pass_gradients_of_the_distances() -> None:
    distance = normal(1, 4, 2, 3).abs().requires_grad_()
    target = normal(1, 4, 2, 3, seed=1)
    (prototype_weight(distance, 2.0, torch.tensor([True, True, False, True])) * target).sum().backward()  # type: ignore[no-untyped-call]
    plain = distance.detach().clone().requires_grad_()
    ((-2.0 * plain[:, [0, 1, 3]]).softmax(1) * target[:, [0, 1, 3]]).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(distance.grad, plain.grad)


def test_weights_leave_the_distances() -> None:
    distance = normal(1, 4, 2, 3).abs()
    before = distance.clone()
    prototype_weight(distance, 2.0, torch.tensor([True, True, False, True]))
    prototype_weight(distance, 0.0)
    assert torch.equal(distance, before)


@pytest.mark.parametrize("temperature", [-1.0, -1e-9, math.nan, math.inf])
def test_temperatures_that_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be finite and not negative"):
        prototype_weight(torch.ones(1, 2, 1, 1), temperature)


def test_weights_without_prototypes_are_refused() -> None:
    with pytest.raises(ValueError, match="no class has a prototype"):
        prototype_weight(torch.ones(1, 2, 1, 1), 1.0, torch.tensor([False, False]))
    with pytest.raises(ValueError, match="`present` is of 3 classes, the rest of 2"):
        inspect.unwrap(prototype_weight)(torch.ones(1, 2, 1, 1), 1.0, torch.tensor([True, True, True]))
