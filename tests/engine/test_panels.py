"""Panels of the report: which images are chosen, what is written, and that unlabelled domains stay unlabelled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import CLASSES, Colour, Tiny, write_domain

from segshift.data.domains import DomainSettings, open_domain
from segshift.engine.certainty import MAP_WIDTH, certainty, doubt_picture
from segshift.engine.evaluate import evaluate
from segshift.engine.panels import Choice, choose, choose_and_write_panels
from segshift.errors import UserError
from segshift.types import Prediction

NAMES = [f"i{index}" for index in range(10)]
MODELS = ("source", "advent")


def test_choice_holds_best_gain_worst_loss_and_an_even_spread() -> None:
    before = dict.fromkeys(NAMES, 0.5)
    after = {name: 0.5 + 0.01 * index for index, name in enumerate(NAMES)} | {"i3": 0.75, "i7": 0.2}
    choices = choose(NAMES, 5, before, after, MODELS)
    assert choices[0] == Choice(3, "largest gain of 10 images: +25.0 mIoU points (source 50.0, advent 75.0)")
    assert choices[1] == Choice(7, "largest loss of 10 images: -30.0 mIoU points (source 50.0, advent 20.0)")
    rest = [choice.index for choice in choices[2:]]
    assert rest == sorted(rest)
    assert not {3, 7} & set(rest)
    assert rest[0] <= 2
    assert rest[-1] >= 6
    assert choose(NAMES, 5, before, after, MODELS) == choices


def test_spread_images_are_the_same_whatever_the_scores() -> None:
    """So that `compare` finds them in every run."""
    names = [f"i{index}" for index in range(101)]
    random = np.random.default_rng(0)
    shown = [{choice.index for choice in choose(names, 8, {}, {}, MODELS)}]
    for _ in range(20):
        before, after = (dict(zip(names, random.random(101).tolist(), strict=True)) for _ in range(2))
        choices = choose(names, 8, before, after, MODELS)
        shown.append({choice.index for choice in choices})
        assert len(shown[-1]) == len(choices) == 8
    assert min(len(one & other) for one in shown for other in shown) >= 4
    assert len(set.intersection(*shown)) >= 3
    for count in range(1, 12):
        assert len({choice.index for choice in choose(NAMES, count, {}, {}, MODELS)}) == min(count, 10)


def test_choice_without_scores_or_with_few_images() -> None:
    assert [choice.index for choice in choose(NAMES, 5, {}, {}, MODELS)] == [1, 3, 5, 6, 8]
    assert len(choose(NAMES[:2], 5, {}, {}, MODELS)) == 2
    same = dict.fromkeys(NAMES, 0.5)
    choices = choose(NAMES, 3, same, same, MODELS)
    assert len({choice.index for choice in choices}) == 3
    assert "smallest gain" in choices[1].caption
    nan = same | {"i0": float("nan")}
    assert 0 not in [choice.index for choice in choose(NAMES, 3, same, nan, MODELS)[:2]]
    assert len(choose(NAMES, 10, same, same, MODELS)) == 10
    assert choose([], 3, {}, {}, MODELS) == choose(NAMES, 0, same, same, MODELS) == []


def test_labelled_domain(tmp_path: Path) -> None:
    root = write_domain(tmp_path / "in", 5, labelled=True, size=(640, 320))
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=True, name="val")
    nets = {"source": Colour(wrong=True), "advent": Colour(gain=3.0)}
    folder = tmp_path / "run/panels"
    entries = choose_and_write_panels(folder, nets, "source", "advent", domain, size=(640, 320), count=4)
    assert json.loads((folder / "index.json").read_text()) == entries
    assert len(entries) == 4
    assert entries[0]["miou"] == {"source": 0.0, "advent": 1.0}
    assert entries[0]["caption"].startswith("largest gain of 5 images: +100.0")
    names = {entry[kind] for entry in entries for kind in ("image", "control", "adapted", "entropy", "truth")}
    names |= {sure[kind] for entry in entries for sure in entry["certainty"] for kind in ("entropy", "confidence")}
    assert names | {"index.json"} == {path.name for path in folder.iterdir()}
    with Image.open(folder / entries[0]["truth"]) as truth, Image.open(folder / entries[0]["adapted"]) as adapted:
        assert truth.size == adapted.size == (480, 240)
        known = np.array(truth) != 255
        assert (np.array(truth)[known] == np.array(adapted)[known]).mean() > 0.95
    with Image.open(folder / entries[0]["image"]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (480, 240))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    metrics = {name: evaluate([net], domain, size=(640, 320)) for name, net in nets.items()}
    choose_and_write_panels(folder, nets, "source", "advent", domain, size=(640, 320), count=4, metrics=metrics)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    choose_and_write_panels(folder, nets, "source", "advent", domain, size=(640, 320), count=1, metrics=metrics)
    assert len(list(folder.iterdir())) == 1 + 4 + 4


def test_unlabelled_domain_opens_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_domain(tmp_path / "in", 3, labelled=True)
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=False, name="target")
    for path in (root / "labels").rglob("*.png"):
        path.unlink()
    entries = choose_and_write_panels(tmp_path / "p", {"advent": Tiny()}, None, "advent", domain, size=(96, 48))
    assert len(entries) == 3
    for entry in entries:
        assert entry["truth"] is entry["control"] is None
        assert entry["miou"] == {"advent": None}
        assert "even spacing" in entry["caption"]
    assert choose_and_write_panels(tmp_path / "p", {"a": Tiny()}, None, "a", domain, size=(96, 48), count=0) == []


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)


def test_certainty_of_both_models_on_the_same_images(tmp_path: Path) -> None:
    """Means and maps against the softmax in plain numpy, of a network that answers alike everywhere."""
    root = write_domain(tmp_path / "in", 3, labelled=False, size=(96, 48))
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=False, name="target")
    nets = {"source": Even(0.5), "advent": Even(4.0)}
    entries = choose_and_write_panels(tmp_path / "p", nets, "source", "advent", domain, size=(96, 48))
    for entry in entries:
        assert [sure["model"] for sure in entry["certainty"]] == ["source", "advent"]
        assert entry["entropy"] == entry["certainty"][-1]["entropy"]
        for sure, gain in zip(entry["certainty"], (0.5, 4.0), strict=True):
            share = np.exp(np.array([gain] + [0.0] * (len(CLASSES) - 1)))
            share /= share.sum()
            doubt = float(-(share * np.log(share)).sum() / np.log(len(CLASSES)))
            assert sure["mean_entropy"] == pytest.approx(doubt, abs=1e-5)
            assert sure["mean_confidence"] == pytest.approx(share.max(), abs=1e-5)
            assert np.unique(levels(tmp_path / "p" / sure["entropy"])).tolist() == [round(255 * doubt)]
            assert np.unique(levels(tmp_path / "p" / sure["confidence"])).tolist() == [round(255 * (1 - share.max()))]


class Even(Tiny):
    """The first class is ahead of all others by `gain`, everywhere."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, image: torch.Tensor) -> Prediction:
        answer: Prediction = super().forward(image)
        logits = torch.zeros_like(answer.logits)
        logits[:, 0] = self.gain
        return Prediction(logits, answer.features)


def test_a_start_without_a_control_shows_its_certainty_alone(tmp_path: Path) -> None:
    root = write_domain(tmp_path / "in", 2, labelled=True)
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=True, name="val")
    nets = {"start": Tiny(), "weak": Tiny()}
    entries = choose_and_write_panels(tmp_path / "p", nets, None, "weak", domain, size=(96, 48), start="start")
    for entry in entries:
        assert entry["control"] is None
        assert list(entry["miou"]) == ["weak"]
        assert [sure["model"] for sure in entry["certainty"]] == ["start", "weak"]
    alone = choose_and_write_panels(tmp_path / "p", nets, None, "weak", domain, size=(96, 48), start="weak")
    assert [sure["model"] for sure in alone[0]["certainty"]] == ["weak"]


def test_doubt_is_kept_in_the_values() -> None:
    picture = doubt_picture(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.array(picture).tolist() == [[0, 128, 255]]
    colours = np.array(picture.convert("RGB")).astype(int).sum(axis=2)[0]
    assert colours[0] < colours[1] < colours[2]


def test_large_maps_are_made_smaller_by_means() -> None:
    fine = np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (2 * MAP_WIDTH, MAP_WIDTH))
    picture = doubt_picture(fine)
    assert picture.size == (MAP_WIDTH, MAP_WIDTH)
    assert set(np.unique(np.array(picture)).tolist()) <= {127, 128}


def test_one_class_has_no_certainty() -> None:
    assert certainty(torch.zeros(1, 1, 4, 4)) is None


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    root = write_domain(tmp_path / "in", 1, labelled=False)
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=False, name="target")
    with pytest.raises(UserError, match="predicts 4 classes"):
        choose_and_write_panels(tmp_path / "p", {"a": Tiny(4)}, None, "a", domain, size=(96, 48))
    assert not (tmp_path / "p").exists()
