"""Prediction on a folder: what the files hold, going on after a stop, and images that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import CLASSES, Colour, Tiny, write_domain

from segshift.data.domains import DomainSettings, open_domain
from segshift.engine import predict
from segshift.engine.evaluate import evaluate
from segshift.engine.metrics import confusion_matrix
from segshift.engine.predict import Predicted, find_images, predict_folder
from segshift.errors import UserError


def run(net: Colour | Tiny, images: Path, out: Path, workers: int = 1) -> Predicted:
    return predict_folder([net], images, out, classes=CLASSES, size=(96, 48), workers=workers, progress=False)


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for kind in ("ids", "overlay") for path in out.rglob(f"{kind}/**/*.*")}


def test_ids_overlay_and_confidence(tmp_path: Path) -> None:
    images = write_domain(tmp_path / "in", 3, labelled=True)
    done = run(Colour(gain=2.0), images / "images", tmp_path / "out")
    assert done == Predicted(written=3, skipped=0)
    with Image.open(tmp_path / "out/ids/seq1/001.png") as picture:
        assert picture.mode == "P"
        ids = np.array(picture)
        assert tuple(np.array(picture.convert("RGB"))[0, 0]) == CLASSES.palette[ids[0, 0]]
    with Image.open(images / "labels/seq1/001.png") as picture:
        label = np.array(picture)
    assert np.array_equal(ids[:, 1:], label[:, 1:])
    with Image.open(tmp_path / "out/confidence/seq1/001.png") as picture:
        assert picture.mode == "L"
        wanted = 255 * np.exp(2) / (np.exp(2) + 2)
        assert abs(np.array(picture).astype(float) - wanted).max() <= 0.51
    with Image.open(tmp_path / "out/overlay/seq1/001.jpg") as picture:
        assert picture.size == (96, 48)
    assert len(list((tmp_path / "out").rglob("*.*"))) == 10  # nothing temporary is left
    assert json.loads((tmp_path / "out/predict.json").read_text())["classes"]["names"] == list(CLASSES.names)


@pytest.mark.parametrize("size", [(96, 48), (40, 20), (12, 6)])
def test_ids_score_as_evaluate_says(tmp_path: Path, size: tuple[int, int]) -> None:
    root = write_domain(tmp_path / "in", 2, labelled=True)
    for path in (root / "images").rglob("*.png"):  # JPEG, which the decoder reduces where it is much too large
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".jpg"))
        path.unlink()
    net = Tiny()
    domain = open_domain(DomainSettings(root=root), CLASSES, labelled=True, name="val")
    metrics = evaluate([net], domain, size=size)
    predict_folder([net], root / "images", tmp_path / "out", classes=CLASSES, size=size, progress=False)
    total = np.zeros((3, 3), dtype=np.int64)
    for item in domain.items:
        assert item.label is not None
        with Image.open(tmp_path / f"out/ids/{item.name}.png") as ids, Image.open(item.label) as label:
            total += confusion_matrix(torch.tensor(np.array(ids)), torch.tensor(np.array(label)), 3).numpy()
    assert np.array_equal(total, metrics.confusion)


def test_goes_on_where_it_stopped_and_only_there(tmp_path: Path) -> None:
    images, out = write_domain(tmp_path / "in", 4, labelled=False) / "images", tmp_path / "out"
    run(Colour(), images, out)
    first = times(out)
    assert run(Colour(), images, out) == Predicted(written=0, skipped=4)
    assert times(out) == first
    (out / "confidence/seq0/000.png").unlink()
    whole = (out / "ids/seq0/002.png").read_bytes()
    (out / "ids/seq0/002.png").write_bytes(whole[:20])
    with Image.open(images / "seq1/001.png") as picture:
        turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(images / "seq1/001.png")
    assert run(Colour(), images, out, workers=0) == Predicted(written=3, skipped=1)
    assert (out / "ids/seq0/002.png").read_bytes() == whole
    assert run(Colour(gain=3.0), images, out) == Predicted(written=0, skipped=4)  # no weight, so the same state


def test_other_weights_write_anew(tmp_path: Path) -> None:
    images, out = write_domain(tmp_path / "in", 2, labelled=False) / "images", tmp_path / "out"
    net = Colour()
    run(net, images, out)
    torch.nn.init.constant_(net.weight, 0.5)
    assert run(net, images, out) == Predicted(written=2, skipped=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_after_the_others_are_done(tmp_path: Path, workers: int) -> None:
    images, out = write_domain(tmp_path / "in", 5, labelled=False) / "images", tmp_path / "out"
    bad = images / "seq0/002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=r"1 of 5 images could not be read(.|\n)*002\.png(.|\n)*the other 4 are done"):
        run(Colour(), images, out, workers)
    assert len(list((out / "ids").rglob("*.png"))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_writing_ends_at_once(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = write_domain(tmp_path / "in", 12, labelled=False) / "images", tmp_path / "out"

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(predict, "_write", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(Colour(), images, out, workers)
    assert not list(out.rglob("*.png"))


def test_results_inside_the_image_folder_are_no_images(tmp_path: Path) -> None:
    images = write_domain(tmp_path, 2, labelled=False) / "images"
    for out in (images, images / "masks", images / "masks2"):
        assert run(Colour(), images, out) == Predicted(written=2, skipped=0)
        assert run(Colour(), images, out) == Predicted(written=0, skipped=2)


def test_modes_of_images_and_a_single_file(tmp_path: Path) -> None:
    for mode in ("RGBA", "L", "P", "I;16"):
        Image.new(mode, (33, 17)).save(tmp_path / f"{mode.replace(';', '')}.png")
    assert run(Tiny(), tmp_path, tmp_path / "out").written == 4
    assert run(Tiny(), tmp_path / "L.png", tmp_path / "one").written == 1
    with Image.open(tmp_path / "one/ids/L.png") as picture:
        assert picture.size == (33, 17)


def test_what_is_refused_before_the_first_image(tmp_path: Path) -> None:
    images = write_domain(tmp_path, 2, labelled=False) / "images"
    with pytest.raises(UserError, match="does not exist"):
        find_images(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        find_images(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="predicts 5 classes"):
        run(Tiny(5), images, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(images / "seq0/000.jpg")
    with pytest.raises(UserError, match=r"000\.jpg and .*000\.png would both"):
        run(Colour(), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
