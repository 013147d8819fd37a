"""`segshift evaluate --points`: what the model says at the points is what `predict` writes there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from weak_files import label

from segshift.weak.label import WeakLabel
from segshift.weak.store import WeakStore
from workbench import NAMES, Pair, assert_told, assert_whole, segshift


def clicked(pair: Pair, folder: str, path: Path) -> list[tuple[str, int, int, int]]:
    """Two points of every class in each of a folder's images, from the labels of `val`; (image, x, y, class)."""
    points, store = [], WeakStore(path)
    for image in sorted((pair.root / folder / "images").iterdir()):
        truth = np.asarray(Image.open(pair.label("val", int(image.stem) % 2)))
        made = []
        for c in range(len(NAMES)):
            rows, columns = np.nonzero(truth == c)
            made += [(int(columns[i]), int(rows[i]), c) for i in (0, len(rows) // 2)]
        store.append(label(image.name, None, *((x + 0.3, y - 0.4, NAMES[c]) for x, y, c in made)))
        points += [(image.name, x, y, c) for x, y, c in made]
    return points


def test_hits_and_areas(trained: Pair, tmp_path: Path) -> None:
    points = clicked(trained, "target", tmp_path / "weak.jsonl")
    done = segshift("evaluate", trained.run, "--points", tmp_path / "weak.jsonl", "--out", tmp_path / "out")
    assert done.code == 0, done
    found = json.loads((tmp_path / "out" / "points.json").read_text())
    made = segshift("predict", trained.run, trained.target / "images", "--out", tmp_path / "ids")
    assert made.code == 0, made
    ids = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "ids" / "ids").iterdir()}
    for c, entry in enumerate(found["classes"]):
        right = [int(ids[image[:3]][y, x]) == c for image, x, y, k in points if k == c]
        assert entry["points"] == len(right) == 6
        assert entry["recall"] == pytest.approx(np.mean(right))
        assert entry["predicted_share"] == pytest.approx(np.mean([(i == c).mean() for i in ids.values()]))
    assert found["images"] == found["images_with_points"] == 3
    assert found["miou_interval"][0] <= found["miou_interval"][1]
    assert f"over {len(NAMES)} classes, from 24 points in 3 of 3 images" in done.out
    assert_whole(tmp_path / "out")


def test_against_another_model(trained: Pair, tmp_path: Path) -> None:
    clicked(trained, "val", tmp_path / "weak.jsonl")
    other = trained.run / "01-source_only"
    arguments: list[str | Path] = [
        "--points",
        tmp_path / "weak.jsonl",
        "--domain",
        trained.val,
        "--out",
        tmp_path / "out",
    ]
    done = segshift("evaluate", trained.run, *arguments, "--against", other)
    assert done.code == 0, done
    found = json.loads((tmp_path / "out" / "points.json").read_text())
    assert found["gain"] == pytest.approx(found["miou"] - found["against"]["miou"])
    assert f"mIoU of {trained.run} against {other}, estimated:" in done.out
    assert done.out.count("mIoU estimate") == 2
    alone = segshift("evaluate", other, *arguments[:4], "--flip")
    assert alone.code == 0, alone


def test_refusals(trained: Pair, tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    run = trained.run
    assert_told(segshift("evaluate", run, "--points", path), "weak.jsonl do not exist", "segshift annotate")
    store = WeakStore(path)
    store.append(label("000.png", ("road",)))
    assert_told(segshift("evaluate", run, "--points", path), "have no points", "segshift annotate")
    store.append(label("000.png", None, (1, 1, "raod")))
    assert_told(segshift("evaluate", run, "--points", path), "raod", "did you mean 'road'?")
    store.append(label("000.png", None, (64, 1, "road")))
    assert_told(segshift("evaluate", run, "--points", path), "000.png (64, 1)", "outside")
    store.append(WeakLabel("000.png"))
    store.append(label("nowhere.png", None, (1, 1, "road")))
    assert_told(segshift("evaluate", run, "--points", path), "nowhere.png", "does not have")
    assert_told(segshift("evaluate", run, "--against", run), "--against without --points", "add --points")
    assert_told(segshift("evaluate", run, "--points", path, "--classes", trained.classes), "leave it out")


def test_training_with_the_same_points_is_said(trained: Pair, tmp_path: Path) -> None:
    """An estimate from the points that a model learnt from is too good."""
    import shutil

    import yaml

    clicked(trained, "target", tmp_path / "weak.jsonl")
    copy = shutil.copytree(trained.run, tmp_path / "run")
    settings = yaml.safe_load((copy / "run.yaml").read_text())
    (copy / "run.yaml").write_text(yaml.safe_dump({**settings, "weak": str(tmp_path / "weak.jsonl")}))
    done = segshift("evaluate", copy, "--points", tmp_path / "weak.jsonl")
    assert done.code == 0, done
    assert "the estimate is too good" in " ".join((done.out + done.err).split())
    other = WeakStore(tmp_path / "other.jsonl")
    other.extend(replace(one, who="me") for one in WeakStore(tmp_path / "weak.jsonl").lines())
    again = segshift("evaluate", copy, "--points", tmp_path / "other.jsonl")
    assert again.code == 0
    assert "too good" not in again.out + again.err
