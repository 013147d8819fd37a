"""Weak labels from the command line: which mode a run has, what is an error before the first step, what trains anew."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from rounds_runs import BASE, command, did, small_net
from segshift.config import StageSettings
from segshift.methods.base import WeakReading
from segshift.methods.weak_labels import WeakLabels, WeakLabelsSettings
from segshift.supervision import chosen
from segshift.types import IGNORE, Batch
from segshift.weak.label import Point, WeakLabel
from workbench import Outcome, Pair, assert_told, make_pair, read_json, segshift, weights

assert small_net

OWN = {"align_outputs": False, "category_width": 8}
STAGES: list[dict[str, Any]] = [
    {"name": "start", "method": "source_only", "steps": 2},
    {"name": "weak_labels", "method": "weak_labels", "init": "start", "steps": 2, "settings": OWN},
]
TAGS: list[dict[str, Any]] = [
    {"image": "000.png", "tags": ["road", "sky"]},
    {"image": "001.png", "tags": ["road"], "complete": False},
]
POINTS: list[dict[str, Any]] = [
    {"image": "000.png", "tags": ["road"], "points": [[3, 4, "road"]]},
    {"image": "002.png", "points": [[9, 9, 1]]},
]
LAST = "02-weak_labels"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


def write(pair: Pair, lines: Sequence[dict[str, Any]]) -> Path:
    path = pair.root / "weak.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def adapt(pair: Pair, *sets: str, weak: Path | None = None, out: str = "x") -> Outcome:
    content = {**BASE, "panels": 0, "keep_checkpoints": True, "stages": copy.deepcopy(STAGES)}
    arguments = command(pair, content, *sets, out=pair.root / "runs" / out, val=False)
    return segshift(*arguments, *(("--weak", weak) if weak else ()))


def log_of(pair: Pair, out: str = "x") -> list[dict[str, Any]]:
    path = pair.root / "runs" / out / LAST / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def mode_of(pair: Pair, out: str = "x") -> str:
    settings = yaml.safe_load((pair.root / "runs" / out / "run.yaml").read_text())
    return str(settings["stages"][1]["settings"]["mode"])


@pytest.mark.parametrize(
    ("lines", "mode", "images", "losses"),
    [
        (None, "pseudo", 0, {"pseudo_tags"}),
        (TAGS, "tags", 2, {"tags", "pseudo_tags"}),
        (POINTS, "points", 2, {"tags", "pseudo_tags", "points"}),
    ],
)
def test_a_run_learns_from_what_there_is(
    pair: Pair, lines: list[dict[str, Any]] | None, mode: str, images: int, losses: set[str]
) -> None:
    done = adapt(pair, weak=write(pair, lines) if lines else None)
    assert did(done) == {"start": "made", "weak_labels": "made"}
    assert mode_of(pair) == mode, "run.yaml has no auto"
    assert (f"weak_labels learns from {mode} of {images} images of the target" in done.err) == bool(images)
    always = {"seg", "category", "category_source", "category_target"}
    for line in log_of(pair):
        assert set(line["loss"]) == losses | always
        assert set(line["figures"]) == {"present", "pooled_logit"}
    settings = yaml.safe_load((pair.run / "run.yaml").read_text())
    assert settings["weak"] == (str(pair.root / "weak.jsonl") if lines else None), "run.yaml repeats the run"
    again = segshift("adapt", pair.run / "run.yaml", "--out", pair.run, "--device", "cpu")
    assert did(again) == {"start": "skipped", "weak_labels": "skipped"}


def test_what_is_said_decides_whether_a_stage_trains_anew(pair: Pair) -> None:
    weak = write(pair, POINTS)
    adapt(pair, weak=weak)
    skipped, made = {"start": "skipped", "weak_labels": "skipped"}, {"start": "skipped", "weak_labels": "made"}
    lines = [
        {**POINTS[1], "who": "ada", "when": "2025-06-01T12:00:00Z"},
        {"image": "000.png", "tags": ["sky"]},
        POINTS[0],
    ]
    assert did(adapt(pair, weak=write(pair, lines))) == skipped, "said again, by somebody, in another order"
    moved = [{**line, "points": [[50, 40, line["points"][0][2]]]} for line in POINTS]
    before = weights(pair.run, LAST)
    assert did(adapt(pair, weak=write(pair, moved))) == made
    assert any(not torch.equal(value, before[name]) for name, value in weights(pair.run, LAST).items())
    assert did(adapt(pair, "weak_labels.mode=tags", weak=weak)) == made
    assert did(adapt(pair, "weak_labels.weak_images=1", weak=weak)) == made
    assert did(adapt(pair, "weak_labels.point_radius=9", weak=weak)) == made
    assert did(adapt(pair, "weak_labels.mode=pseudo", weak=weak)) == made
    without = adapt(pair)
    assert did(without) == skipped, "guessed tags know nothing of the file"
    assert did(adapt(pair, "weak_labels.point_weight=0.1")) == skipped, "nor of points"
    assert did(adapt(pair, "weak_labels.point_weight=0.1", weak=weak)) == made


def test_a_file_that_nobody_reads_is_told_of(pair: Pair) -> None:
    done = adapt(pair, "weak_labels.mode=pseudo", weak=write(pair, TAGS))
    assert done.code == 0
    assert "no stage of this run learns from the weak labels" in done.err
    done = adapt(pair, "weak_labels.mode=pseudo", "weak_labels.weak_images=1", weak=write(pair, TAGS))
    assert did(done) == {"start": "skipped", "weak_labels": "skipped"}
    assert "weak_labels.weak_images changes nothing" in done.err


def test_class_shares_make_up_for_balanced_clicks(pair: Pair) -> None:
    first = min((pair.source / "labels").iterdir())
    with Image.open(first) as opened:
        Image.new("L", opened.size, 0).save(first)
    weak = write(pair, POINTS)
    assert did(adapt(pair, "weak_labels.point_prior=1", weak=weak)) == {"start": "made", "weak_labels": "made"}
    shares = torch.tensor(read_json(pair.run / LAST / "class_shares.json"), dtype=torch.float32)
    state = torch.load(pair.run / LAST / "checkpoint.pt", weights_only=True)["method"]
    assert torch.equal(state["rarity"], -shares.clamp(min=1e-4).log())
    assert shares[0] > 0.25, "those of the source, no stand-in"
    assert did(adapt(pair, weak=weak)) == {"start": "skipped", "weak_labels": "made"}


def broken(text: str) -> Callable[[Pair], Path]:
    def make(pair: Pair) -> Path:
        path = pair.root / "weak.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    return make


BAD: dict[str, tuple[Callable[[Pair], Path] | None, tuple[str, ...], tuple[str, ...]]] = {
    "tags without a file": (None, ("mode=tags",), ("weak_labels", "mode tags", "--weak", "mode=pseudo")),
    "points without a file": (None, ("mode=points",), ("weak_labels", "mode points", "segshift annotate")),
    "no file there": (lambda pair: pair.root / "none.jsonl", (), ("none.jsonl", "do not exist", "segshift annotate")),
    "a folder": (lambda pair: pair.root, (), ("are no file",)),
    "no JSON": (broken('{"image": "000.png"}\n{oops\n{}\n'), (), ("weak.jsonl, line 2", "mend or delete")),
    "empty": (broken(""), (), ("no weak label", "segshift annotate")),
    "all taken back": (broken('{"image": "000.png"}\n'), (), ("no weak label",)),
    "another folder's": (broken('{"image": "z.png", "tags": []}\n'), (), ("z.png", "does not have")),
    "another class list's": (broken('{"image": "000.png", "tags": ["boat"]}\n'), (), ("boat", "class list")),
    "a point outside": (
        broken('{"image": "000.png", "points": [[64, 3, "sky"]]}\n'),
        (),
        ("000.png (64, 3)", "outside"),
    ),
    "points in the mode points": (
        broken('{"image": "000.png", "tags": ["sky"]}\n'),
        ("mode=points",),
        ("none of the 1 labelled images", "mode=tags"),
    ),
    "an unknown mode": (None, ("mode=dots",), ("mode", "'dots'", "pseudo")),
    "a negative number of images": (None, ("weak_images=-1",), ("weak_images",)),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_come_before_the_first_step(pair: Pair, name: str) -> None:
    make, sets, words = BAD[name]
    done = adapt(pair, *(f"weak_labels.{each}" for each in sets), weak=make(pair) if make else None)
    assert_told(done, *words)
    assert not pair.run.exists(), "nothing was written"


def test_weak_images_of_a_method_that_knows_none(pair: Pair) -> None:
    assert_told(adapt(pair, "start.weak_images=3", weak=write(pair, TAGS)), "start", "weak_images", "source_only")


def test_check_reads_weak_labels_too(pair: Pair) -> None:
    weak = write(pair, [{"image": "000.png", "tags": ["boat"]}])
    out = ("--out", pair.root / "check", "--set", f"weak={weak}")
    assert_told(segshift("check", *pair.data(), *out), "boat", code=1)
    write(pair, TAGS)
    assert segshift("check", *pair.data(), *out).code == 0


def test_fewer_images_than_are_labelled(pair: Pair) -> None:
    done = adapt(pair, "weak_labels.weak_images=1", weak=write(pair, POINTS))
    assert "learns from points of 1 images of the target" in done.err
    assert "note: with points on so few images" in done.err
    done = adapt(pair, weak=write(pair, [*POINTS, TAGS[1]]), out="w")
    assert "learns from points of 2 images of the target, and from tags of 1 others" in done.err
    done = adapt(pair, "weak_labels.weak_images=9", weak=write(pair, POINTS), out="y")
    assert "weak_images is 9; only 2 images are labelled" in done.err
    done = adapt(pair, "weak_labels.weak_images=0", weak=write(pair, POINTS), out="z")
    assert "learns from points of 0 images of the target" in done.err
    assert all(line["loss"]["points"] == line["loss"]["tags"] == 0 for line in log_of(pair, "z"))
    assert read_json(pair.root / "runs" / "z" / LAST / "stage.json")["done"]


# ---- the choice of images


def labels_of(count: int, pointed: int = 0) -> dict[str, WeakLabel]:
    points = (Point(1, 1, "road"),)
    return {f"{i:03d}": WeakLabel(f"{i:03d}.png", ("road",), True, points * (i < pointed)) for i in range(count)}


def choice(labels: dict[str, WeakLabel], count: int | None, seed: int = 0, mode: str = "tags") -> list[str]:
    stage = StageSettings(name="a", method="weak_labels", steps=1, weak_images=count)
    own = WeakLabelsSettings(mode=mode)
    assert isinstance(own, WeakReading)
    return list(chosen(stage, own, seed, labels))


def test_the_choice_is_seeded_and_grows() -> None:
    labels = labels_of(40)
    assert choice(labels, None) == list(labels)
    ten, thirty = choice(labels, 10), choice(labels, 30)
    assert len(ten) == 10
    assert ten == thirty[:10], "a curve adds images, it does not change them"
    assert ten == choice(dict(reversed(labels.items())), 10), "whatever their order"
    assert ten != sorted(ten)
    assert set(ten) != set(choice(labels, 10, seed=1))
    assert choice(labels, 99) == choice(labels, 40)
    assert choice(labels, 0) == []


def test_images_that_are_labelled_later_change_no_order() -> None:
    few, more = choice(labels_of(40), 40), choice(labels_of(60), 60)
    assert [name for name in more if name in few] == few


def test_points_are_chosen_among_images_with_points() -> None:
    labels = labels_of(40, pointed=12)
    assert set(choice(labels, 30, mode="points")) == {f"{i:03d}" for i in range(12)}
    assert len(choice(labels, 30, mode="tags")) == 30
    assert len(choice(labels, None, mode="points")) == 40, "all of them: tags of the others still help"


def test_padding_of_source_crops_is_told_to_the_method(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops that are larger than the images, or images that are scaled down, have padding in both domains."""
    seen, step = [], WeakLabels.step

    def spied(self: WeakLabels, source: Batch, target: Batch) -> Iterator[dict[str, Tensor]]:
        assert source.seen is not None
        assert source.label is not None
        assert ((source.label == IGNORE) | source.seen).all()
        assert not (~source.seen & (source.label != IGNORE)).any()
        seen.append(source.seen.float().mean().item())
        return step(self, source, target)

    monkeypatch.setattr(WeakLabels, "step", spied)
    assert adapt(pair).code == 0
    assert seen == [1, 1]
    done = adapt(pair, "source_augment.scale=[0.5,0.5]", out="small")
    assert done.code == 0, done.err
    assert seen[2:] == [0.25, 0.25]
