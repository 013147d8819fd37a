"""Evaluation against its definition: per-class IoU and the means of 19, 16 and 13 classes, counted pixel by pixel.

Generated label pairs: classes that are absent from the labels, from the predictions, or from both, ignored pixels, and
images without any labelled pixel. The restatement shares no line with the package: names of classes are written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from segshift.data.classes import make_classes
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.engine.evaluate import evaluate
from segshift.engine.metrics import Metrics, confusion_matrix, image_score, merge
from segshift.nets.base import SegmentationNet
from segshift.ops import upsample
from segshift.types import Prediction

# methods.md section 0.1: the order of Cityscapes' train ids, with the label ids of its files.
IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
NAMES_19 = tuple(IDS)
NAMES_16 = tuple(name for name in NAMES_19 if name not in {"terrain", "truck", "train"})
NAMES_13 = tuple(name for name in NAMES_16 if name not in {"wall", "fence", "pole"})
VOID = 255


class Pair(NamedTuple):
    """An image's labels and predictions, (H, W) of train ids."""

    label: np.ndarray
    predicted: np.ndarray


class Figures(NamedTuple):
    iou: dict[str, float]
    mean: float
    mean16: float
    mean13: float
    pixels: float
    accuracy: float


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def definition(pairs: Sequence[Pair], names: Sequence[str]) -> Figures:
    """IoU = TP / (TP + FP + FN) over the pixels of all images whose label is a class; nan without a true pixel."""
    right, wrong, missed = (dict.fromkeys(names, 0) for _ in range(3))
    for label, predicted in pairs:
        for true, said in zip(label.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if true == VOID:
                continue
            if true == said:
                right[names[true]] += 1
            else:
                missed[names[true]] += 1
                wrong[names[said]] += 1
    iou, recall = {}, []
    for name in names:
        there = right[name] + missed[name]
        iou[name] = right[name] / (there + wrong[name]) if there else math.nan
        recall.append(right[name] / there if there else math.nan)
    counted = sum(right.values()) + sum(missed.values())
    return Figures(
        iou,
        mean([iou[name] for name in names]),
        mean([iou[name] for name in NAMES_16]),
        mean([iou[name] for name in NAMES_13]),
        sum(right.values()) / counted if counted else math.nan,
        mean(recall),
    )


def measured(pairs: Sequence[Pair], names: Sequence[str]) -> Metrics:
    """The same pairs through the package."""
    confusions = [
        confusion_matrix(torch.from_numpy(pair.predicted), torch.from_numpy(pair.label), len(names)).numpy()
        for pair in pairs
    ]
    scores = tuple(image_score(f"{place:03d}", confusion) for place, confusion in enumerate(confusions))
    return Metrics(tuple(names), np.sum(confusions, axis=0), len(pairs), scores)


def assert_equal(found: Metrics, wanted: Figures) -> None:
    assert found.iou.tolist() == pytest.approx(list(wanted.iou.values()), nan_ok=True)
    figures = (found.miou, found.miou16, found.miou13, found.pixel_accuracy, found.mean_accuracy)
    assert figures == pytest.approx(wanted[1:], nan_ok=True)


@st.composite
def label_pairs(draw: st.DrawFn, classes: int) -> list[Pair]:
    """One to four images; labels and predictions each of a subset of the classes of its own."""
    pairs = []
    in_labels = draw(st.sets(st.integers(0, classes - 1), min_size=1))
    in_predictions = draw(st.sets(st.integers(0, classes - 1), min_size=1))
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        label = rng.choice(sorted(in_labels), shape)
        predicted = rng.choice(sorted(in_predictions), shape)
        agree = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        predicted[agree & np.isin(label, sorted(in_predictions))] = label[
            agree & np.isin(label, sorted(in_predictions))
        ]
        label[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = VOID
        pairs.append(Pair(label.astype(np.uint8), predicted.astype(np.uint8)))
    return pairs


# ---- figures


@pytest.mark.parametrize("names", [NAMES_19, NAMES_16], ids=["19", "16"])
@settings(max_examples=150)
@given(data=st.data())
def test_figures_are_those_of_the_definition(names: tuple[str, ...], data: st.DataObject) -> None:
    pairs = data.draw(label_pairs(len(names)))
    found = measured(pairs, names)
    assert_equal(found, definition(pairs, names))
    for score, pair in zip(found.per_image, pairs, strict=True):
        alone = definition([pair], names)
        assert (score.miou, score.pixel_accuracy) == pytest.approx((alone.mean, alone.pixels), nan_ok=True)


@settings(max_examples=60)
@given(label_pairs(19))
def test_figures_are_those_of_torchmetrics(pairs: list[Pair]) -> None:
    label, predicted = (
        torch.from_numpy(np.concatenate([values.ravel() for values in images])).long()
        for images in zip(*pairs, strict=True)
    )
    found = measured(pairs, NAMES_19)
    wanted = multiclass_confusion_matrix(predicted, label, 19, ignore_index=VOID)
    assert torch.equal(torch.from_numpy(found.confusion), wanted)
    iou = multiclass_jaccard_index(predicted, label, 19, average="none", ignore_index=VOID).double().numpy()
    there = wanted.sum(dim=1).numpy() > 0
    assert np.array_equal(~np.isnan(found.iou), there)
    assert np.allclose(found.iou[there], iou[there], atol=1e-6)
    only_predicted = ~there & (wanted.sum(dim=0).numpy() > 0)
    if there.any() and not only_predicted.any():
        # With no such class, torchmetrics' mean and that of the ADVENT release (nan where TP + FP + FN = 0) are ours.
        macro = multiclass_jaccard_index(predicted, label, 19, average="macro", ignore_index=VOID)
        assert found.miou == pytest.approx(float(macro), abs=1e-6)


def test_a_class_in_the_predictions_alone_is_no_class_of_the_mean() -> None:
    """The ADVENT release counts it as 0: on the full Cityscapes val, where every class occurs, there is none."""
    label = np.zeros((4, 4), dtype=np.uint8)
    predicted = label.copy()
    predicted[0] = NAMES_19.index("train")
    found = measured([Pair(label, predicted)], NAMES_19)
    assert found.iou[0] == found.miou == found.miou16 == found.miou13 == 12 / 16
    assert math.isnan(found.iou[NAMES_19.index("train")])


def test_nothing_labelled_has_no_figures() -> None:
    void = np.full((3, 5), VOID, dtype=np.uint8)
    empty = Pair(void, np.zeros_like(void))
    assert_equal(measured([empty], NAMES_19), definition([empty], NAMES_19))
    rng = np.random.default_rng(0)
    full = Pair(rng.integers(0, 19, (9, 9), dtype=np.uint8), rng.integers(0, 19, (9, 9), dtype=np.uint8))
    assert measured([empty, full, empty], NAMES_19).to_dict()["miou"] == measured([full], NAMES_19).miou


@settings(max_examples=60)
@given(label_pairs(19), st.integers(1, 4))
def test_shards_are_the_whole(pairs: list[Pair], world: int) -> None:
    whole = measured(pairs, NAMES_19)
    nothing = np.zeros((19, 19), dtype=np.int64)
    parts = []
    for rank in range(world):
        scores = whole.per_image[rank::world]
        own = measured(pairs[rank::world], NAMES_19).confusion if scores else nothing
        parts.append(Metrics(NAMES_19, own, len(scores), scores))
    assert merge(parts).to_dict() == whole.to_dict()


# ---- from files


class Echo(SegmentationNet):
    """Predicts the train id that the image's red channel holds: what is predicted can be written into the image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, "frozen")
        self.num_features = 1

    def forward(self, image: Tensor) -> Prediction:
        ids = (image[:, 0] * 255).round().long()
        logits = torch.nn.functional.one_hot(ids, self.num_classes).permute(0, 3, 1, 2).float()
        return Prediction(logits, image[:, :1])

    def head_modules(self) -> list[torch.nn.Module]:
        return []


def written(root: Path, names: Sequence[str], seed: int) -> tuple[Domain, list[Pair]]:
    """Five images in Cityscapes' folders with labels of all 19 classes and of none, and predictions of `names`.

    Returns:
        the domain, and its pairs in train ids of `names`: labels of other classes are ignored.
    """
    rng, pairs = np.random.default_rng(seed), []
    for number in range(5):
        shown = rng.choice(19, 9, replace=False)
        scene = rng.choice(shown, (16, 32))
        ids = np.array(list(IDS.values()), dtype=np.uint8)[scene]
        # Of the ids of Cityscapes' files that are no class of the 19: 0 unlabeled, 4 static, 14 guard rail, 29 caravan.
        void = (rng.random(ids.shape) < 0.2) | (number == 3)
        ids[void] = rng.choice([0, 4, 14, 29], ids.shape).astype(np.uint8)[void]
        predicted = rng.choice(len(names), ids.shape, p=rng.dirichlet(np.full(len(names), 0.3))).astype(np.uint8)
        own = np.array([names.index(name) if name in names else VOID for name in NAMES_19], dtype=np.uint8)
        label = np.where(void, VOID, own[scene]).astype(np.uint8)
        right = (rng.random(ids.shape) < 0.6) & (label != VOID)
        predicted[right] = label[right]
        stem = f"frankfurt_{number:06d}_000019"
        for folder, ending, values in (
            ("leftImg8bit", "leftImg8bit", np.dstack([predicted, predicted, predicted])),
            ("gtFine", "gtFine_labelIds", ids),
        ):
            path = root / folder / "val" / "frankfurt" / f"{stem}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
        pairs.append(Pair(label, predicted))
    settings = DomainSettings(root=root, split="val")
    return open_domain(settings, make_classes(names), labelled=True, name="val"), pairs


@pytest.mark.parametrize("names", [NAMES_19, NAMES_16], ids=["19", "16"])
@pytest.mark.parametrize("seed", range(3))
def test_files_are_measured_as_defined(tmp_path: Path, names: tuple[str, ...], seed: int) -> None:
    """Also a network of 16 classes on Cityscapes' 19: pixels of terrain, truck and train are ignored."""
    domain, pairs = written(tmp_path, names, seed)
    found = evaluate([Echo(len(names))], domain, size=(32, 16))
    wanted = definition(pairs, names)
    assert_equal(found, wanted)
    assert 0.05 < wanted.mean < 0.95
    assert found.confusion.sum() == sum(int((pair.label != VOID).sum()) for pair in pairs)
    if len(names) == 16:
        assert found.miou == found.miou16
    assert math.isnan(found.per_image[3].miou), "the image without a labelled pixel"


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_shards_of_files_are_the_whole(tmp_path: Path, world: int) -> None:
    """Also more processes than images, and one whose only image has no labelled pixel."""
    domain, _ = written(tmp_path, NAMES_19, seed=5)
    whole = evaluate([Echo(19)], domain, size=(32, 16))
    parts = [evaluate([Echo(19)], domain, size=(32, 16), shard=(rank, world)) for rank in range(world)]
    assert [part.images for part in parts] == [len(range(rank, 5, world)) for rank in range(world)]
    assert merge(parts).to_dict() == whole.to_dict()


# ---- upsampling


@pytest.mark.parametrize("grid", [(65, 129), (129, 257)], ids=["1024x512", "2048x1024"])
def test_upsampling_to_cityscapes_is_torchs(grid: tuple[int, int]) -> None:
    """Bilinear with aligned corners, as `nn.Upsample` in ADVENT, AdaptSegNet and ProDA.

    Measured here: ours is within 4e-6 of torch's in float64; torch's own float32 is up to 2.4e-4 off it, since it
    computes positions in float32. Of the two million pixels, 1 and 7 have another best class, where two are equal to
    that rounding.
    """
    size = (1024, 2048)
    logits = 5 * torch.randn(1, 6, *grid, generator=torch.Generator().manual_seed(0))
    ours = upsample(logits, size)
    exact = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=0)
    theirs = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
    other = ours.argmax(1) != theirs.argmax(1)
    assert int(other.sum()) < 50
    best, second = theirs.topk(2, dim=1).values.unbind(1)
    assert bool((best - second)[other].lt(1e-3).all())
