"""Wrong data: one screen that names the file and the remedy, exit code 2, no half file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench import (
    COLOURS,
    NAMES,
    Pair,
    assert_told,
    assert_whole,
    cut_short,
    label,
    make_pair,
    picture,
    save,
    segshift,
    spawn,
    write_classes,
)

Spoil = Callable[[Pair], object]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


def _swap(path: Path, suffix: str) -> Path:
    """The same image in another file type."""
    new = path.with_suffix(suffix)
    with Image.open(path) as image:
        image.save(new)
    path.unlink()
    return new


def _truncated_jpeg(path: Path) -> None:
    cut_short(_swap(path, ".jpg"), 0.7)


def _zero_end(path: Path, share: float = 0.5) -> None:
    """What a power cut may leave: the right length, but zeros behind the first part."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))].ljust(len(data), b"\0"))


def _gone(path: Path) -> Path:
    """Remove a file; its path."""
    path.unlink()
    return path


def _without(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _every_label(pair: Pair, values: np.ndarray) -> None:
    for index in range(3):
        save(pair.label("source", index), values)


def _with_id(value: int) -> np.ndarray:
    ids = label(1)
    ids[0, :5] = value
    return ids


def _palette_with(pair: Pair, value: int) -> None:
    image = Image.fromarray(_with_id(value))
    image.putpalette(list(range(256)) * 3)
    image.save(pair.label("source"))


def _many(pair: Pair) -> None:
    """A label list of 255 and more classes."""
    write_classes(pair.classes, [f"class {i}" for i in range(256)])
    content = json.loads(pair.classes.read_text())
    pair.classes.write_text(json.dumps({"classes": content["classes"]}))


def _colours(pair: Pair, extra: tuple[int, int, int]) -> None:
    values = np.array(COLOURS, np.uint8)[label(1)]
    values[0, :5] = extra
    save(pair.label("source"), values)


# What is wrong with the data: (what to do to it, words that the message must hold).
DATA: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "source folder missing": (lambda p: p.source.rename(p.root / "sauce"), ("source", "does not exist", "sauce")),
    "target folder missing": (lambda p: p.target.rename(p.root / "targte"), ("target", "does not exist", "targte")),
    "val folder missing": (lambda p: p.val.rename(p.root / "vall"), ("val", "does not exist", "vall")),
    "class list missing": (lambda p: p.classes.unlink(), ("classes.json", "does not exist", "to do")),
    "source is a file": (
        lambda p: (p.source.rename(p.root / "old"), p.source.write_text("x")),
        ("source", "is a file", "to do"),
    ),
    "source without image": (lambda p: _without(p.source / "images"), ("no image in", "source", "to do")),
    "target without image": (lambda p: _without(p.target / "images"), ("no image in", "target", "to do")),
    "source without label folder": (
        lambda p: (p.source / "labels").rename(p.root / "elsewhere"),
        ("no folder of labels", "source", "`labels`"),
    ),
    "source without label": (lambda p: _without(p.source / "labels"), ("no label in", "source", "to do")),
    "image without label": (lambda p: p.label("source").unlink(), ("1 image has no label: 000", "labels", "to do")),
    "label without image": (lambda p: p.image("source").unlink(), ("1 label has no image: 000", "images", "to do")),
    "val image without label": (lambda p: p.label("val").unlink(), ("'val'", "1 image has no label: 000", "to do")),
    "source PNG truncated": (lambda p: cut_short(p.image("source")), ("000.png", "truncated", "to do")),
    "source JPEG truncated": (lambda p: _truncated_jpeg(p.image("source", 1)), ("001.jpg", "truncated", "to do")),
    "target PNG truncated": (lambda p: cut_short(p.image("target")), ("target", "000.png", "truncated", "to do")),
    "target JPEG truncated": (lambda p: _truncated_jpeg(p.image("target", 1)), ("001.jpg", "truncated", "to do")),
    "label truncated": (lambda p: cut_short(p.label("source", 2)), ("labels/002.png", "cannot be decoded", "to do")),
    "source PNG with zeros at its end": (lambda p: _zero_end(p.image("source")), ("000.png", "checksum", "to do")),
    "target JPEG with zeros at its end": (
        lambda p: _zero_end(_swap(p.image("target"), ".jpg"), 0.8),
        ("000.jpg", "truncated", "to do"),
    ),
    "label with zeros at its end": (lambda p: _zero_end(p.label("source")), ("labels/000.png", "decoded", "to do")),
    "source image of zero bytes": (lambda p: p.image("source").write_bytes(b""), ("000.png", "cannot be decoded")),
    "target image of zero bytes": (lambda p: p.image("target").write_bytes(b""), ("000.png", "cannot be decoded")),
    "label of zero bytes": (lambda p: p.label("source").write_bytes(b""), ("labels/000.png", "cannot be decoded")),
    "text named .png as source": (lambda p: p.image("source").write_text("hello"), ("000.png", "cannot be decoded")),
    "text named .png as target": (lambda p: p.image("target").write_text("hello"), ("000.png", "cannot be decoded")),
    "text named .png as label": (lambda p: p.label("source").write_text("hello"), ("labels/000.png", "decoded")),
    "pipe as label": (
        lambda p: os.mkfifo(_gone(p.label("source"))),
        ("labels/000.png", "to do"),
    ),
    "pipe as target image": (
        lambda p: os.mkfifo(_gone(p.image("target"))),
        ("images/000.png", "to do"),
    ),
    "dead link as image": (
        lambda p: _gone(p.image("source")).symlink_to("nowhere.png"),
        ("000.png", "to do"),
    ),
    "folder in place of an image": (
        lambda p: _gone(p.image("source")).mkdir(),
        ("has no image: 000", "to do"),
    ),
    "label of another size": (
        lambda p: save(p.label("source"), label(1, 32, 24)),
        ("000.png", "32x24", "64x48", "resize_labels: true"),
    ),
    "label id outside the map": (
        lambda p: save(p.label("source"), _with_id(17)),
        ("000.png", "17", "5 px", "17: ignore", "class_map"),
    ),
    "palette label with an id outside": (lambda p: _palette_with(p, 77), ("000.png", "77", "77: ignore")),
    "16-bit label with an id outside": (
        lambda p: save(p.label("source"), _with_id(9).astype(np.uint16) * 100),
        ("000.png", "900", "ignore"),
    ),
    "every label all ignored": (
        lambda p: _every_label(p, np.full((48, 64), 255, np.uint8)),
        ("source", "ignored", "class_map"),
    ),
    "label in an unknown colour": (lambda p: _colours(p, (1, 2, 3)), ("000.png", "1,2,3", "ignore", "class_map")),
    "label of fractions": (
        lambda p: save(_gone(p.label("source")).with_suffix(".tif"), label(1).astype(np.float32)),
        ("000.tif", "fractions", "8-bit PNG"),
    ),
    "JPEG labels": (
        lambda p: [_swap(p.label("source", i), ".jpg") for i in range(3)],
        ("JPEG", "labels", "PNG"),
    ),
    "two source images of one stem": (
        lambda p: save(p.image("source").with_suffix(".jpg"), picture(5)),
        ("000.jpg", "000.png", "rename"),
    ),
    "two target images of one stem": (
        lambda p: save(p.image("target").with_suffix(".jpg"), picture(5)),
        ("000.jpg", "000.png", "rename"),
    ),
    "two labels of one stem": (
        lambda p: save(p.label("source").with_suffix(".bmp"), label(5)),
        ("000.bmp", "000.png", "rename"),
    ),
    "class list empty": (lambda p: write_classes(p.classes, []), ("classes.json", "no class", "to do")),
    "class file of zero bytes": (lambda p: p.classes.write_bytes(b""), ("classes.json", "not valid JSON", "to do")),
    "class twice": (
        lambda p: write_classes(p.classes, ["road", "sky", "Road"]),
        ("classes.json", "'Road'", "twice", "to do"),
    ),
    "class list cut off": (lambda p: cut_short(p.classes), ("classes.json", "not valid JSON", "to do")),
    "class list of bytes": (lambda p: p.classes.write_bytes(b"\xff\xfe\x00road"), ("classes.json", "to do")),
    "class that is a number": (
        lambda p: p.classes.write_text('{"classes": ["road", 5]}'),
        ("classes.json", "5 is not a class", "quote"),
    ),
    "unknown key in the class list": (
        lambda p: p.classes.write_text('{"clases": ["road"]}'),
        ("classes.json", "'clases'", "'classes'"),
    ),
    "palette too short": (
        lambda p: p.classes.write_text('{"classes": ["road", "sky"], "palette": [[1, 2, 3]]}'),
        ("classes.json", "1 colours for 2 classes", "to do"),
    ),
    "palette without colours": (
        lambda p: p.classes.write_text('{"classes": ["road"], "palette": ["red"]}'),
        ("classes.json", "palette[0]", "'red' is not a colour", "to do"),
    ),
    "too many classes": (_many, ("classes.json", "256 classes", "at most 255", "to do")),
    "class list that is a folder": (lambda p: _gone(p.classes).mkdir(), ("classes.json", "to do")),
}


@pytest.mark.parametrize("verb", ["adapt", "check"])
@pytest.mark.parametrize("case", DATA)
def test_bad_data(pair: Pair, case: str, verb: str) -> None:
    spoil, words = DATA[case]
    spoil(pair)
    if verb == "adapt":
        assert_told(segshift(*pair.adapt(val=True)), *words)
        assert not pair.run.exists(), "written before the data was looked at"
    else:
        out = pair.root / "check"
        assert_told(segshift("check", *pair.data(val=True), "--out", out), *words, code=1)
        assert_whole(out)


# Data that looks odd and is right: (what to do to it).
FINE: dict[str, Spoil] = {
    "palette label": lambda p: _palette_with(p, 0),
    "16-bit label": lambda p: save(p.label("source"), label(1).astype(np.uint16)),
    "label in the classes' colours": lambda p: _colours(p, COLOURS[0]),
    "one label all ignored": lambda p: save(p.label("source"), np.full((48, 64), 255, np.uint8)),
    "RGBA images": lambda p: [save(p.image(d), picture(3), "RGBA") for d in ("source", "target", "val")],
    "grey images": lambda p: [save(p.image(d, 1), picture(3), "L") for d in ("source", "target", "val")],
    "16-bit images": lambda p: [
        save(p.image(d, 1), picture(3)[..., 0].astype(np.uint16) * 257) for d in ("source", "target", "val")
    ],
    "palette images": lambda p: [save(p.image(d, 1), picture(3), "P") for d in ("source", "target", "val")],
    "CMYK images": lambda p: [
        save(_gone(p.image(d)).with_suffix(".jpg"), picture(3), "CMYK") for d in ("source", "target")
    ],
    "names with spaces, accents and markup": lambda p: [
        path.rename(path.with_name(f"straße <b>&'\" 東京{suffix}"))
        for d in ("source", "target", "val")
        for path, suffix in ((p.image(d), ".png"), (p.label(d), ".png"))
        if path.exists()
    ],
    "a text file beside the images": lambda p: (p.target / "images" / "readme.txt").write_text("hello"),
    "capital suffixes": lambda p: p.image("target").rename(p.image("target").with_suffix(".PNG")),
}


@pytest.mark.parametrize("case", FINE)
def test_odd_data_that_is_right(pair: Pair, case: str) -> None:
    FINE[case](pair)
    checked = segshift("check", *pair.data(val=True), "--out", pair.root / "check")
    assert checked.code == 0, checked
    assert "the data is in order" in checked.out
    assert_whole(pair.root / "check")


def test_all_the_odd_data_trains(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "odd <i>&'\" ü")
    for case in ("palette label", "RGBA images", "grey images", "names with spaces, accents and markup"):
        FINE[case](pair)
    done = segshift(*pair.adapt(val=True))
    assert done.code == 0, done
    assert_whole(pair.run)
    report = (pair.run / "report.html").read_text()
    assert "<b>&'" not in report
    assert "東京" in report
    made = segshift("predict", pair.run, pair.target / "images", "--out", pair.root / "predictions")
    assert made.code == 0, made
    assert len(list((pair.root / "predictions" / "ids").iterdir())) == 3


def test_many_broken_files_fit_on_a_screen(pair: Pair) -> None:
    for index in range(60):
        pair.image("target", 100 + index).write_text("hello")
    checked = segshift("check", *pair.data(), "--out", pair.root / "check")
    assert_told(checked, "100.png", code=1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda p: p.image("target").write_text("hello"),
        lambda p: save(p.label("source"), _with_id(17)),
        lambda p: p.classes.unlink(),
    ],
    ids=["image", "label", "classes"],
)
def test_a_process_of_its_own(pair: Pair, broken: Spoil) -> None:
    broken(pair)
    assert_told(spawn(*pair.adapt()), "to do")
    assert not pair.run.exists()


def test_no_module_is_named_in_usage_errors() -> None:
    for args in (["adpat"], ["adapt", "--sorce", "x"], ["predict"], ["evaluate"], ["compare"]):
        told = segshift(*args)
        assert told.code == 2
        assert "Traceback" not in told.err
        assert len(told.err.splitlines()) <= 24


def test_the_number_of_cases() -> None:
    assert len(DATA) >= 40
    assert len(NAMES) == len(COLOURS)
