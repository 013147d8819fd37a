"""Opening domains: every layout, every way of naming a part, and what goes wrong."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_makers import CLASSES, folders, label, palette_png, picture, png16, save
from pydantic import ValidationError

from segshift.data.classes import CITYSCAPES_19, CITYSCAPES_COLOURS, make_classes
from segshift.data.domains import Domain, DomainSettings, load_label, load_pair, open_domain
from segshift.data.tables import CAMVID_32
from segshift.errors import UserError
from segshift.types import ClassSet

NINETEEN = make_classes(CITYSCAPES_19)


def opened(root: Path, labelled: bool = True, classes: ClassSet = CLASSES, **settings: object) -> Domain:
    return open_domain(DomainSettings.model_validate({"root": root, **settings}), classes, labelled=labelled, name="d")


def names(domain: Domain) -> list[str]:
    return [item.name for item in domain.items]


def first_label(domain: Domain) -> np.ndarray:
    return load_label(domain, domain.items[0])


def test_folders(tmp_path: Path) -> None:
    domain = opened(folders(tmp_path))
    assert names(domain) == ["000", "001", "002", "003", "004"]
    assert domain.labelled
    assert len(domain) == 5
    assert np.array_equal(first_label(domain), label(0))
    image, small, original = load_pair(domain, domain.items[1], (16, 12))
    assert image.shape == (12, 16, 3)
    assert small is not None
    assert small.shape == (12, 16)
    assert original == (24, 32)


@pytest.mark.parametrize("style", ["images/train", "train/images", "train"])
def test_splits(tmp_path: Path, style: str) -> None:
    save(tmp_path / style / "a.jpg", picture(0))
    save(tmp_path / style.replace("train", "val") / "b.jpg", picture(0))
    assert names(opened(tmp_path, labelled=False, split="train")) == ["a"]


def test_masks_nested_folders_suffixes_and_overrides(tmp_path: Path) -> None:
    for name in ("x/a", "x/b", "y/a"):
        save(tmp_path / "images" / f"{name}.jpg", picture(0))
        save(tmp_path / "masks" / f"{name}_mask.png", label(0))
    (tmp_path / "images" / ".hidden.jpg").write_text("")
    (tmp_path / "images" / "Thumbs.db").write_text("")
    assert names(opened(tmp_path)) == ["x/a", "x/b", "y/a"]
    assert names(opened(tmp_path, images="images/x", labels="masks/x")) == ["a", "b"]
    (tmp_path / "images").rename(tmp_path / "frames")
    (tmp_path / "masks").rename(tmp_path / "truth")
    assert len(opened(tmp_path, images="frames", labels="truth")) == 3


def test_images_directly_in_the_root(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.JPG", picture(i))
        save(tmp_path / "labels" / f"{i}.png", label(i))
    assert names(opened(tmp_path, labelled=False)) == ["0", "1", "2"], "labels are not taken for images"
    assert names(opened(tmp_path)) == ["0", "1", "2"]


def test_a_link_to_a_parent_ends(tmp_path: Path) -> None:
    folders(tmp_path, labelled=False)
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert len(opened(tmp_path, labelled=False)) == 5


def test_limit_and_list(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "list.txt").write_text("# chosen\n003.png\n\nimages/001.png labels/001.png\n./000\n")
    assert names(opened(tmp_path, limit=2)) == ["000", "001"]
    assert names(opened(tmp_path, list=tmp_path / "list.txt")) == ["000", "001", "003"]
    assert names(opened(tmp_path, list="list.txt", limit=1, labelled=False)) == ["000"], "relative to root"


@pytest.mark.parametrize(
    ("text", "says"), [("000\nnine\n", "nine"), ("", "names no image"), ("a.png", "may be")], ids=str
)
def test_bad_lists(tmp_path: Path, text: str, says: str) -> None:
    folders(tmp_path, labelled=False)
    for folder in "xy":
        save(tmp_path / "images" / folder / "a.png", picture(0))
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        opened(tmp_path, labelled=False, list=tmp_path / "list.txt")
    assert "list.txt" in caught.value.found
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path, labelled=False, list=tmp_path / "none.txt")


def test_gta5(tmp_path: Path) -> None:
    colours = {i: CITYSCAPES_COLOURS[n] for i, n in ((7, "road"), (11, "building"), (23, "sky"), (26, "car"))}
    for i in range(3):
        save(tmp_path / "images" / f"{i:05d}.png", picture(i, 8, 4))
        palette_png(
            tmp_path / "labels" / f"{i:05d}.png", np.array([[7, 11, 23, 26, 0, 34, 33, 8]] * 4, np.uint8), colours
        )
    for domain in (opened(tmp_path, classes=NINETEEN, layout="gta5"), opened(tmp_path, classes=NINETEEN)):
        assert first_label(domain)[0].tolist() == [0, 2, 10, 13, 255, 255, 18, 1]
    with pytest.raises(UserError, match="26"):
        first_label(opened(tmp_path, classes=NINETEEN, layout="folders"))


def test_synthia(tmp_path: Path) -> None:
    values = np.zeros((2, 4, 3), np.uint16)
    values[..., 0], values[..., 1] = [3, 1, 8, 22], 4000
    save(tmp_path / "RGB" / "0000000.png", picture(0, 4, 2))
    png16(tmp_path / "GT" / "LABELS" / "0000000.png", values)
    domain = opened(tmp_path, classes=NINETEEN)
    assert first_label(domain)[0].tolist() == [0, 10, 13, 255]


def test_cityscapes(tmp_path: Path) -> None:
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "munster")):
        stem = f"{city}/{city}_000000_000019"
        save(tmp_path / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", picture(0, 4, 2))
        save(tmp_path / "gtFine" / split / f"{stem}_gtFine_labelIds.png", np.full((2, 4), 7, np.uint8))
        save(tmp_path / "gtFine" / split / f"{stem}_gtFine_instanceIds.png", np.full((2, 4), 7000, np.uint16))
        save(tmp_path / "gtFine" / split / f"{stem}_gtFine_color.png", picture(0, 4, 2))
    domain = opened(tmp_path, classes=NINETEEN, split="train")
    assert names(domain) == ["aachen/aachen_000000_000019", "bochum/bochum_000000_000019"]
    assert (first_label(domain) == 0).all()
    with pytest.raises(UserError, match="train, val") as caught:
        opened(tmp_path, labelled=False)
    assert "`split: train`" in caught.value.remedy
    (tmp_path / "list.txt").write_text("leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png\n")
    assert names(opened(tmp_path, False, split="train", list="list.txt")) == ["bochum/bochum_000000_000019"]


def test_cityscapes_endings_in_plain_folders(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a_leftImg8bit.png", picture(0, 4, 2))
    save(tmp_path / "labels" / "a_gtFine_labelTrainIds.png", np.full((2, 4), 13, np.uint8))
    assert (first_label(opened(tmp_path)) == 2).all(), "train id 13 is car, by name"
    save(tmp_path / "labels" / "a_gtFine_labelIds.png", np.full((2, 4), 23, np.uint8))
    assert (first_label(opened(tmp_path)) == 1).all()


def test_acdc(tmp_path: Path) -> None:
    for weather in ("fog", "night"):
        for split in ("train", "val", "train_ref"):
            stem = f"{weather}/{split}/GOPR1/GOPR1_frame_1"
            save(tmp_path / "rgb_anon" / f"{stem}_rgb_anon.png", picture(0, 4, 2))
            if split != "train_ref":
                save(tmp_path / "gt" / f"{stem}_gt_labelIds.png", np.full((2, 4), 7, np.uint8))
                save(tmp_path / "gt" / f"{stem}_gt_labelTrainIds.png", np.full((2, 4), 1, np.uint8))
    domain = opened(tmp_path, classes=NINETEEN, split="train")
    assert names(domain) == ["fog/train/GOPR1/GOPR1_frame_1", "night/train/GOPR1/GOPR1_frame_1"]
    assert (first_label(domain) == 0).all()
    assert names(opened(tmp_path, split="fog/val")) == ["fog/val/GOPR1/GOPR1_frame_1"]
    with pytest.raises(UserError, match="train, train_ref, val"):
        opened(tmp_path, labelled=False)


def test_camvid(tmp_path: Path) -> None:
    save(tmp_path / "o/701_StillsRaw_full/0001TP_1.png", picture(0, 4, 2))
    colours = np.array([[CAMVID_32[n] for n in ("Road", "Sky", "Car", "Void")]] * 2, np.uint8)
    save(tmp_path / "o/LabeledApproved_full/0001TP_1_L.png", colours)
    official = opened(tmp_path / "o")
    assert names(official) == ["0001TP_1"]
    assert first_label(official)[0].tolist() == [0, 1, 2, 255]
    save(tmp_path / "s/train/1.png", picture(0, 4, 2))
    save(tmp_path / "s/trainannot/1.png", np.array([[3, 0, 8, 11]] * 2, np.uint8))
    assert first_label(opened(tmp_path / "s", split="train"))[0].tolist() == [0, 1, 2, 255]
    save(tmp_path / "f/images/1.png", picture(0, 4, 2))
    save(tmp_path / "f/labels/1_P.png", np.array([[17, 21, 5, 30]] * 2, np.uint8))
    (tmp_path / "f/codes.txt").write_text("\n".join(CAMVID_32))
    assert first_label(opened(tmp_path / "f"))[0].tolist() == [0, 1, 2, 255]


def test_carla(tmp_path: Path) -> None:
    values = np.zeros((2, 4, 3), np.uint8)
    values[..., 0] = [7, 13, 10, 4]
    save(tmp_path / "CameraRGB" / "1.png", picture(0, 4, 2))
    save(tmp_path / "CameraSeg" / "1.png", values)
    assert first_label(opened(tmp_path, layout="carla_0_9_13"))[0].tolist() == [0, 1, 2, 3]
    values[..., 0] = [1, 11, 14, 12]
    save(tmp_path / "CameraSeg" / "1.png", values)
    assert first_label(opened(tmp_path, layout="carla"))[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"0\.9\.14") as caught:
        opened(tmp_path)
    assert "layout: carla_0_9_13" in caught.value.remedy
    assert len(opened(tmp_path, labelled=False)) == 1


def _no_images(root: Path) -> None:
    (root / "images").mkdir()


def _image_without_label(root: Path) -> None:
    folders(root, 7)
    for i in (2, 3, 4, 5, 6):
        (root / "labels" / f"{i:03d}.png").unlink()


def _label_without_image(root: Path) -> None:
    folders(root)
    (root / "images" / "004.png").unlink()


def _no_labels(root: Path) -> None:
    folders(root, labelled=False)


def _empty_labels(root: Path) -> None:
    folders(root, labelled=False)
    (root / "labels").mkdir()


def _jpeg_labels(root: Path) -> None:
    folders(root, labelled=False)
    save(root / "labels" / "000.jpg", label(0))


def _same_name(root: Path) -> None:
    folders(root)
    save(root / "images" / "000.jpg", picture(0))


def _several_parts(root: Path) -> None:
    folders(root / "train")
    folders(root / "val")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_no_images, "no image in"),
        (_image_without_label, "5 images have no label: 002, 003, 004, 005 and 1 more"),
        (_label_without_image, "1 label has no image: 004"),
        (_no_labels, "no folder of labels"),
        (_empty_labels, "no label in"),
        (_jpeg_labels, "only JPEG"),
        (_same_name, "both image '000'"),
        (_several_parts, "train, val"),
    ],
)
def test_errors_name_the_folder_and_the_fix(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        opened(tmp_path)
    assert caught.value.remedy
    assert caught.value.wanted
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_missing_root_file_and_split(tmp_path: Path) -> None:
    folders(tmp_path / "city")
    with pytest.raises(UserError, match="did you mean 'city'"):
        opened(tmp_path / "citty")
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "no" / "where")
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "city" / "images" / "000.png")
    with pytest.raises(UserError, match="split: tarin"):
        opened(tmp_path / "city", split="tarin")
    with pytest.raises(UserError, match="no folder of images"):
        opened(tmp_path / "city", images="frames")


def test_settings_are_checked(tmp_path: Path) -> None:
    for bad in ({"layout": "citiscapes"}, {"limit": 0}, {"lables": "x"}, {"class_map": {1: 2}}):
        with pytest.raises(ValidationError):
            DomainSettings.model_validate({"root": tmp_path, **bad})
    keys = DomainSettings.model_validate({"root": tmp_path, "class_map": {7: "road", "8": "sky", "*": "ignore"}})
    assert keys.class_map == {7: "road", "8": "sky", "*": "ignore"}


def test_reading_a_label_of_an_unlabelled_domain_is_a_mistake(tmp_path: Path) -> None:
    domain = opened(folders(tmp_path), labelled=False)
    with pytest.raises(ValueError, match="without labels"):
        first_label(domain)


def _guard(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Let a function of the system fail when it is asked about anything of the labels."""
    real = getattr(module, name)

    def guarded(path: object = ".", *args: object, **kwargs: object) -> object:
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        assert "labels" not in str(text).split(os.sep), f"{name}({text})"
        return real(path, *args, **kwargs)

    monkeypatch.setattr(module, name, guarded)


@pytest.mark.parametrize("where", ["images", ""])
def test_without_labels_no_label_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    for i in range(3):
        save(tmp_path / where / f"{i}.png", picture(i))
        save(tmp_path / "labels" / f"{i}.png", label(i))
    for module, functions in (
        (os, ("stat", "lstat", "listdir", "scandir", "open")),
        (builtins, ("open",)),
        (io, ("open",)),
    ):
        for function in functions:
            _guard(monkeypatch, module, function)
    domain = opened(tmp_path, labelled=False, class_map={"nonsense": "that is never read"})
    assert len(domain) == 3
    assert all(item.label is None for item in domain.items)
    assert domain.decoder is None
    assert load_pair(domain, domain.items[0], (8, 8))[1] is None
