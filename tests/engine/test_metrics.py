"""The confusion matrix against torchmetrics and a plain loop, and the figures derived from it."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from segshift.data.classes import CITYSCAPES_19
from segshift.engine.metrics import (
    ImageScore,
    Metrics,
    class_gain_intervals,
    confusion_matrix,
    gain_interval,
    image_score,
    iou_of,
    merge,
)
from segshift.types import IGNORE

SIXTEEN_NAMES = tuple(n for n in CITYSCAPES_19 if n not in ("terrain", "truck", "train"))


def maps(shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(classes, shape, generator=generator).to(torch.uint8)
    label = torch.randint(classes, shape, generator=generator).to(torch.uint8)
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    return predicted, label


@settings(max_examples=60)
@given(st.integers(1, 255), st.integers(0, 70), st.integers(0, 70), st.integers(0, 1000))
def test_confusion_equals_a_plain_count(classes: int, height: int, width: int, seed: int) -> None:
    predicted, label = maps((height, width), classes, seed)
    wanted = np.zeros((classes, classes), dtype=np.int64)
    valid = (label != 255).numpy()
    np.add.at(wanted, (label.numpy()[valid], predicted.numpy()[valid]), 1)
    assert np.array_equal(confusion_matrix(predicted, label, classes).numpy(), wanted)


@pytest.mark.parametrize("classes", [2, 19, 31, 32, 150])
def test_confusion_equals_torchmetrics(classes: int) -> None:
    predicted, label = maps((130, 257), classes)
    wanted = multiclass_confusion_matrix(predicted.long(), label.long(), classes, ignore_index=255)
    assert torch.equal(confusion_matrix(predicted, label, classes), wanted)


def test_confusion_takes_views_and_leaves_its_inputs() -> None:
    predicted, label = maps((64, 96), 5)
    before = predicted.clone(), label.clone()
    turned = confusion_matrix(predicted.T, label.T, 5)
    assert torch.equal(turned, confusion_matrix(predicted, label, 5))
    assert torch.equal(predicted, before[0])
    assert torch.equal(label, before[1])


def test_confusion_refuses_ids_outside_the_classes_and_other_shapes() -> None:
    predicted, label = maps((40, 40), 5)
    wrong = label.clone()
    wrong[3, 3] = 7
    with pytest.raises(ValueError, match=r"label id 7 is outside the 5 classes \(1 pixels\)"):
        confusion_matrix(predicted, wrong, 5)
    wrong = predicted.clone()
    wrong[3, 3] = 5
    with pytest.raises(ValueError, match="predicted id 5"):
        confusion_matrix(wrong, label, 5)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(predicted[:10], label, 5)


def test_iou_equals_torchmetrics_where_all_classes_occur() -> None:
    predicted, label = maps((200, 200), 7)
    metrics = Metrics(tuple("abcdefg"), confusion_matrix(predicted, label, 7).numpy(), 1)
    wanted = multiclass_jaccard_index(predicted.long(), label.long(), 7, average="none", ignore_index=255)
    assert np.allclose(metrics.iou, wanted.double().numpy(), atol=1e-6)
    assert metrics.miou == pytest.approx(float(wanted.double().mean()), abs=1e-6)


def test_figures_by_hand() -> None:
    # Class c is predicted (4 pixels) but never true: nan, and not in the mean. Its false positives cost a and b.
    confusion = np.array([[6, 2, 2], [1, 7, 2], [0, 0, 0]], dtype=np.int64)
    metrics = Metrics(("a", "b", "c"), confusion, 2)
    assert metrics.iou[0] == pytest.approx(6 / 11)
    assert metrics.iou[1] == pytest.approx(7 / 12)
    assert math.isnan(metrics.iou[2])
    assert metrics.miou == pytest.approx((6 / 11 + 7 / 12) / 2)
    assert metrics.pixel_accuracy == pytest.approx(13 / 20)
    assert metrics.mean_accuracy == pytest.approx((0.6 + 0.7) / 2)
    assert metrics.miou16 is None
    assert metrics.miou13 is None


def test_nothing_labelled_is_nan_everywhere_and_null_in_json() -> None:
    metrics = Metrics(("a", "b"), np.zeros((2, 2), dtype=np.int64), 1)
    assert all(math.isnan(v) for v in (metrics.miou, metrics.pixel_accuracy, metrics.mean_accuracy, *metrics.iou))
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert json.loads(text)["miou"] is None


def test_means_of_16_and_13() -> None:
    confusion = np.diag(np.arange(1, 20)) + np.ones((19, 19), dtype=np.int64)
    metrics = Metrics(CITYSCAPES_19, confusion.astype(np.int64), 1)
    by_name = dict(zip(CITYSCAPES_19, metrics.iou, strict=True))
    sixteen = [by_name[name] for name in SIXTEEN_NAMES]
    thirteen = [by_name[name] for name in SIXTEEN_NAMES if name not in ("wall", "fence", "pole")]
    assert len(sixteen) == 16
    assert len(thirteen) == 13
    assert metrics.miou16 == pytest.approx(np.mean(sixteen))
    assert metrics.miou13 == pytest.approx(np.mean(thirteen))
    narrow = Metrics(SIXTEEN_NAMES, np.eye(16, dtype=np.int64), 1)
    assert narrow.miou16 == 1
    assert narrow.miou13 == 1
    assert Metrics((*SIXTEEN_NAMES, "boat"), np.eye(17, dtype=np.int64), 1).miou16 is None


def test_dict_round_trip_is_exact() -> None:
    predicted, label = maps((50, 50), 3)
    confusion = confusion_matrix(predicted, label, 3).numpy()
    scores = (image_score("b/1", confusion), ImageScore("b/2", math.nan, math.nan))
    metrics = Metrics(("x", "y", "z"), confusion, 2, scores)
    again = Metrics.from_dict(json.loads(json.dumps(metrics.to_dict(), allow_nan=False)))
    assert again.to_dict() == metrics.to_dict()
    assert again.per_image[0] == scores[0]
    assert math.isnan(again.per_image[1].miou)


def test_csv_and_markdown() -> None:
    metrics = Metrics(("road, wet", "sky"), np.array([[3, 1], [0, 0]], dtype=np.int64), 1)
    rows = list(csv.DictReader(io.StringIO(metrics.to_csv())))
    assert rows[0] == {"class": "road, wet", "iou": "75.00", "accuracy": "75.00", "pixels": "4"}
    assert rows[1]["iou"] == "nan"
    assert rows[2]["class"] == "mean"
    assert rows[2]["iou"] == "75.00"
    header, rule = metrics.markdown_header().splitlines()
    row = metrics.markdown_row("advent")
    assert row == "| advent | 75.0 | nan | 75.0 | 75.0 |"
    assert header.count("|") == rule.count("|") == row.count("|")
    barred = Metrics(("road | wet", "sky\n"), np.array([[3, 1], [0, 0]], dtype=np.int64), 1)
    assert barred.markdown_header().splitlines()[0] == r"| model | road \| wet | sky | mIoU | pixel acc. |"


def test_merge_of_shards_is_the_whole() -> None:
    parts = []
    for index in range(3):
        confusion = confusion_matrix(*maps((20, 20), 4, index), 4).numpy()
        parts.append(Metrics(tuple("abcd"), confusion, 1, (image_score(f"{2 - index}", confusion),)))
    whole = merge(parts)
    assert np.array_equal(whole.confusion, sum(part.confusion for part in parts))
    assert whole.images == 3
    assert [score.name for score in whole.per_image] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="same classes"):
        merge([parts[0], Metrics(tuple("abce"), parts[0].confusion, 1)])


def measured(seed: int, images: int, classes: int = 4) -> Metrics:
    """Metrics of random predictions on the same labels for every seed."""
    confusions = []
    for index in range(images):
        label = maps((16, 16), classes, 100 + index)[1]
        confusions.append(confusion_matrix(maps((16, 16), classes, seed * 1000 + index)[0], label, classes).numpy())
    scores = tuple(image_score(str(index), confusion) for index, confusion in enumerate(confusions))
    return Metrics(tuple("abcdefgh"[:classes]), np.sum(confusions, axis=0), images, scores)


def test_gain_interval_equals_a_plain_bootstrap() -> None:
    before, after = measured(1, 6), measured(2, 6)
    draws = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=1000)
    gains = []
    for draw in draws:
        mious = []
        for seed in (1, 2):
            total = np.zeros((4, 4), dtype=np.int64)
            for index, count in enumerate(draw):
                label = maps((16, 16), 4, 100 + index)[1]
                total += count * confusion_matrix(maps((16, 16), 4, seed * 1000 + index)[0], label, 4).numpy()
            mious.append(Metrics(tuple("abcd"), total, 6).miou)
        gains.append(mious[1] - mious[0])
    assert gain_interval(before, after) == pytest.approx(np.quantile(gains, [0.025, 0.975]).tolist())


def test_gain_interval_leaves_out_images_without_labelled_pixels() -> None:
    empty = image_score("empty", np.zeros((4, 4), dtype=np.int64))
    before, after = measured(1, 3), measured(2, 3)
    wider = [Metrics(m.classes, m.confusion, 4, (*m.per_image, empty)) for m in (before, after)]
    assert gain_interval(wider[0], wider[1]) == gain_interval(before, after)
    assert gain_interval(measured(1, 1), measured(2, 1)) is None, "one image says nothing of others"
    with pytest.raises(ValueError, match="same images"):
        gain_interval(before, measured(2, 1))


def test_intervals_of_classes_equal_a_plain_bootstrap() -> None:
    """The last class is in four images alone: too few to say."""
    models = []
    for seed in (1, 2):
        confusions = []
        for place in range(6):
            label = maps((16, 16), 4, 100 + place)[1]
            if place < 2:
                label[label == 3] = IGNORE
            confusions.append(confusion_matrix(maps((16, 16), 4, seed * 1000 + place)[0], label, 4).numpy())
        scores = [image_score(str(place), confusion) for place, confusion in enumerate(confusions)]
        models.append((confusions, Metrics(tuple("abcd"), np.sum(confusions, axis=0), 6, tuple(scores))))
    draws = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=1000)
    drawn = [
        [iou_of(sum(n * c for n, c in zip(draw, confusions, strict=True))) for draw in draws]
        for confusions, _ in models
    ]
    wanted = np.quantile(np.subtract(drawn[1], drawn[0])[:, :3], [0.025, 0.975], axis=0).T
    found = class_gain_intervals(models[0][1], models[1][1])
    assert found is not None
    assert found[3] is None
    assert np.array(found[:3]) == pytest.approx(wanted)
    assert class_gain_intervals(measured(1, 1), measured(2, 1)) is None
    with pytest.raises(ValueError, match="same images"):
        class_gain_intervals(models[0][1], measured(2, 1))
