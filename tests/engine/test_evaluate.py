"""Evaluation on real folders: the number itself, labels' own size, options that change nothing, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import CLASSES, Colour, Tiny, stripes, write_domain

from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.engine.evaluate import evaluate, preview_labels, truth_of
from segshift.engine.inference import Options
from segshift.engine.metrics import merge
from segshift.errors import UserError


def opened(root: Path, *, labelled: bool = True, **settings: object) -> Domain:
    return open_domain(
        DomainSettings.model_validate({"root": root, **settings}), CLASSES, labelled=labelled, name="val"
    )


class Count:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


def test_a_perfect_and_a_wrong_network(tmp_path: Path) -> None:
    domain, bar = opened(write_domain(tmp_path, 4, labelled=True)), Count()
    perfect = evaluate([Colour()], domain, size=(96, 48), progress=bar)
    assert perfect.miou == 1
    assert perfect.images == bar.done == 4
    assert perfect.confusion.sum() == 4 * 48 * 95  # the ignored column is not counted
    assert [score.name for score in perfect.per_image] == [item.name for item in domain.items]
    wrong = evaluate([Colour(wrong=True)], domain, size=(96, 48))
    assert wrong.miou == wrong.pixel_accuracy == 0


def test_equals_a_plain_restatement_at_label_resolution(tmp_path: Path) -> None:
    domain, net = opened(write_domain(tmp_path, 3, labelled=True)), Tiny().eval()
    confusion = np.zeros((3, 3), dtype=np.int64)
    for item in domain.items:
        with Image.open(item.image) as picture:
            small = np.array(picture.resize((40, 20), Image.Resampling.BICUBIC))
        x = torch.from_numpy(small).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            logits = net(x).logits
        full = torch.nn.functional.interpolate(logits, (48, 96), mode="bilinear", align_corners=True)
        label = truth_of(domain, item)
        valid = label != 255
        np.add.at(confusion, (label[valid], full.argmax(1)[0].numpy()[valid]), 1)
    difference = evaluate([net], domain, size=(40, 20)).confusion - confusion
    assert np.abs(difference).sum() <= 4  # a pixel or two whose best classes are equal to rounding


def test_threads_and_shards_change_nothing_and_training_mode_stays(tmp_path: Path) -> None:
    domain, net = opened(write_domain(tmp_path, 7, labelled=True)), Tiny().train()
    whole = evaluate([net], domain, size=(48, 24), workers=0)
    assert evaluate([net], domain, size=(48, 24), workers=3).to_dict() == whole.to_dict()
    parts = [evaluate([net], domain, size=(48, 24), shard=(rank, 2)) for rank in range(2)]
    assert merge(parts).to_dict() == whole.to_dict()
    assert net.training
    state = torch.get_rng_state()
    evaluate([net], domain, size=(48, 24), options=Options(flip=True, scales=(0.5, 1)), precision="bf16")
    assert torch.equal(torch.get_rng_state(), state)


def test_limit_takes_images_evenly(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 9, labelled=True))
    few = evaluate([Colour()], domain, size=(96, 48), limit=3)
    assert [score.name for score in few.per_image] == [domain.items[index].name for index in (1, 4, 7)]


def test_preview_labels(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 4, labelled=True))
    shown = preview_labels(domain, 2)
    assert [item.name for item, _ in shown] == [domain.items[1].name, domain.items[3].name]
    assert np.array_equal(shown[0][1], stripes(96, 48, int(shown[0][0].name[-3:]))[1])


def test_images_only_fails_with_a_clear_message(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 2, labelled=False), labelled=False)
    with pytest.raises(UserError, match="'val' has no labels"):
        evaluate([Colour()], domain, size=(96, 48))


def test_a_label_that_vanished_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 2, labelled=True))
    label = domain.items[1].label
    assert label is not None
    label.unlink()
    with pytest.raises(UserError, match=f"label {label} does not exist"):
        evaluate([Colour()], domain, size=(96, 48))
    label.mkdir()  # unlike chmod 0, no user can read this
    with pytest.raises(UserError, match=str(label)):
        evaluate([Colour()], domain, size=(96, 48))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named(tmp_path: Path, workers: int) -> None:
    domain = opened(write_domain(tmp_path, 3, labelled=True))
    item = domain.items[1]
    assert item.label is not None
    whole = item.label.read_bytes()
    item.label.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=str(item.label)):
        evaluate([Colour()], domain, size=(96, 48), workers=workers)
    Image.new("L", (10, 10)).save(item.label)
    with pytest.raises(UserError, match="10x10 but its image is 96x48"):
        evaluate([Colour()], domain, size=(96, 48), workers=workers)
    Image.new("L", (96, 48), 9).save(item.label)
    with pytest.raises(UserError, match="9"):
        evaluate([Colour()], domain, size=(96, 48), workers=workers)


def test_labels_of_another_size_where_allowed(tmp_path: Path) -> None:
    write_domain(tmp_path, 1, labelled=True)
    domain = opened(tmp_path, resize_labels=True)
    assert domain.items[0].label is not None
    Image.fromarray(stripes(96, 48, 0)[1][::2, ::2]).save(domain.items[0].label)
    assert evaluate([Colour()], domain, size=(96, 48)).pixel_accuracy == 1


def test_all_ignored_and_wrong_networks_are_refused(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path, 1, labelled=True))
    assert domain.items[0].label is not None
    Image.new("L", (96, 48), 255).save(domain.items[0].label)
    with pytest.raises(UserError, match="not one pixel"):
        evaluate([Colour()], domain, size=(96, 48))
    with pytest.raises(UserError, match="predicts 4 classes"):
        evaluate([Tiny(4)], domain, size=(96, 48))
