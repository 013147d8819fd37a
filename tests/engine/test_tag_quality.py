"""How right guessed tags are, restated from pixels; when a class counts as present."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import CLASSES, Colour, Tiny
from test_evaluate import Count, opened

from segshift.data.domains import Domain, Item
from segshift.engine.producing import Answers
from segshift.engine.tag_quality import FEWEST, MOST, Rule, classes_of_label, sampled, tag_quality
from segshift.errors import UserError

CPU = torch.device("cpu")
SIZE = (24, 12)
SHOWN: tuple[tuple[int, ...], ...] = ((0,), (0, 1), (0, 1), (1,), (0, 1, 2), (0,), (1, 0))
"""Classes of each image: red is in six, green in five, blue in one."""


def image_of(classes: tuple[int, ...]) -> np.ndarray:
    """Vertical bands of the classes' pure colours, and their train ids as the label."""
    bands = np.array(classes)[np.arange(SIZE[0]) * len(classes) // SIZE[0]]
    return np.broadcast_to(bands, (SIZE[1], SIZE[0])).astype(np.uint8)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    for index, classes in enumerate(SHOWN):
        ids = image_of(classes)
        for kind, values in (("images", 255 * np.eye(3, dtype=np.uint8)[ids]), ("labels", ids)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / kind / f"{index:03d}.png")
    return opened(tmp_path)


def answers(**how: Any) -> Answers:
    return Answers(Colour(**how), CPU, "fp32")


def tags_of(item: Item) -> np.ndarray:
    return np.array([k in SHOWN[int(item.name)] for k in range(3)])


def quality(domain: Domain, networks: dict[str, Answers], rule: Rule, **how: Any) -> dict[str, Any]:
    return tag_quality(networks, rule, domain, range(len(SHOWN)), how.pop("truth", tags_of), SIZE, **how)


# ---- what a network guesses


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_probabilities_are_the_method_s(sharpness: float) -> None:
    """Sigmoid of (1/k) log mean exp(k A), restated cell by cell."""
    network, pixels = Tiny().eval(), np.random.default_rng(0).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).logits[0].double().numpy()
    found = Rule(0.2, sharpness).probabilities(Answers(network, CPU, "fp32"), pixels)
    for k in range(3):
        cells = [math.exp(sharpness * value) for value in logits[k].ravel()]
        pooled = math.log(sum(cells) / len(cells)) / sharpness
        assert found[k] == pytest.approx(1 / (1 + math.exp(-pooled)), rel=1e-5)


def test_a_class_is_guessed_above_the_threshold_alone() -> None:
    pixels = 255 * np.eye(3, dtype=np.uint8)[image_of((0,))]
    exact = Rule(0.5, 1.0).probabilities(answers(gain=1.0), pixels)
    assert exact[1] == 0.5, "logits of 0 everywhere"
    assert Rule(0.5, 1.0).tags(answers(gain=1.0), pixels).tolist() == [True, False, False]
    assert Rule(0.499, 1.0).tags(answers(gain=1.0), pixels).tolist() == [True, True, True]


# ---- precision and recall


def test_a_network_that_is_right(domain: Domain) -> None:
    found = quality(domain, {"good": answers()}, Rule(0.6, 1.0))
    assert (found["images"], found["present"]) == (7, [6, 5, 1])
    assert found["per_image"] == pytest.approx(12 / 7)
    (good,) = found["networks"]
    assert (good["name"], good["precision"], good["recall"]) == ("good", 1.0, 1.0)
    assert good["per_image"] == pytest.approx(12 / 7)
    assert good["classes"] == [{"guessed": n, "precision": 1.0, "recall": 1.0} for n in (6, 5, 1)]


def test_a_network_that_is_wrong_by_hand(domain: Domain) -> None:
    """It takes every colour for the next class: it guesses green where red is, blue where green is, red where blue."""
    found = quality(domain, {"good": answers(), "wrong": answers(wrong=True)}, Rule(0.6, 1.0))
    assert [network["name"] for network in found["networks"]] == ["good", "wrong"]
    wrong = found["networks"][1]
    # Green is guessed in six images (those with red), and in four of them it is; of its five images one is missed.
    assert wrong["classes"] == [
        {"guessed": 1, "precision": 1.0, "recall": 1 / 6},
        {"guessed": 6, "precision": 4 / 6, "recall": 4 / 5},
        {"guessed": 5, "precision": 1 / 5, "recall": 1.0},
    ]
    assert wrong["precision"] == pytest.approx((1 + 4 + 1) / 12)
    assert wrong["recall"] == pytest.approx((1 + 4 + 1) / 12)


def test_more_guesses_cost_precision_and_not_recall(domain: Domain) -> None:
    (all_three,) = quality(domain, {"all": answers()}, Rule(0.4, 1.0))["networks"]
    assert all_three["per_image"] == 3
    assert all_three["recall"] == 1.0
    assert all_three["precision"] == pytest.approx(12 / 21)


def test_nothing_guessed_and_nothing_there(domain: Domain) -> None:
    (none,) = quality(domain, {"none": answers()}, Rule(1.0, 1.0))["networks"]
    assert (none["precision"], none["recall"], none["per_image"]) == (None, 0.0, 0.0)
    assert none["classes"] == [{"guessed": 0, "precision": None, "recall": 0.0}] * 3
    empty = quality(domain, {"good": answers()}, Rule(0.6, 1.0), truth=lambda item: np.zeros(3, np.bool_))
    assert empty["networks"][0]["recall"] is None
    assert empty["networks"][0]["precision"] == 0.0
    assert [each["recall"] for each in empty["networks"][0]["classes"]] == [None] * 3


def test_threads_change_nothing_and_the_bar_is_told(domain: Domain) -> None:
    networks, bar = {"good": answers(), "wrong": answers(wrong=True)}, Count()
    found = quality(domain, networks, Rule(0.6, 1.0), workers=0, progress=bar)
    assert bar.done == len(SHOWN)
    assert quality(domain, networks, Rule(0.6, 1.0), workers=3) == found


def test_only_the_images_asked_for(domain: Domain) -> None:
    found = tag_quality({"good": answers()}, Rule(0.6, 1.0), domain, [4, 0], tags_of, SIZE)
    assert (found["images"], found["present"]) == (2, [2, 1, 1])


@pytest.mark.parametrize("count", [0, 3, MOST, MOST + 1, 1000])
def test_the_sample_is_of_the_images_given(count: int) -> None:
    images = [7 * index for index in range(count)]
    found = sampled(images)
    assert len(found) == min(count, MOST)
    assert set(found) <= set(images)
    assert found == sorted(set(found))
    if count <= MOST:
        assert found == images


# ---- the truth


def labelled(root: Path, label: np.ndarray) -> Domain:
    for kind, values in (("images", np.zeros((*label.shape, 3), np.uint8)), ("labels", label)):
        (root / kind).mkdir(parents=True)
        Image.fromarray(values).save(root / kind / "a.png")
    return opened(root)


def test_a_class_needs_some_pixels_of_the_label_at_its_own_size(tmp_path: Path) -> None:
    label = np.full((40, 60), 255, np.uint8)
    label.ravel()[:FEWEST] = 0
    label.ravel()[100 : 100 + FEWEST - 1] = 1
    domain = labelled(tmp_path, label)
    assert classes_of_label(domain, domain.items[0]).tolist() == [True, False, False]
    assert len(CLASSES) == 3


def test_without_labels_it_says_so(domain: Domain) -> None:
    blind = opened(domain.settings.root, labelled=False)
    with pytest.raises(UserError, match="has no labels"):
        classes_of_label(blind, blind.items[0])
