"""The miniatures are what they stand for: true names, folders and kinds of files, labels that agree with pictures."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segshift.config import validated
from segshift.data.classes import BUILT_IN, CITYSCAPES_19, SIXTEEN, make_classes
from segshift.data.domains import Domain, DomainSettings, load_label, load_pair, open_domain
from segshift.data.labels import read_values
from segshift.miniatures import Pair, make_pair, make_weak_labels, write_png16
from segshift.types import IGNORE, ClassSet
from segshift.weak.matching import match
from segshift.weak.store import WeakStore
from workbench import assert_told, segshift

# methods.md section 0.1: ADVENT dataset/gta5.py and info.json; DADA dataset/synthia.py.
FROM_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
            28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
FROM_SYNTHIA = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12, 19: 13, 12: 14,
                11: 15}  # fmt: skip

OF_PAIR: dict[Pair, str] = {"gta5": "cityscapes_19", "synthia": "cityscapes_16"}


def classes_of(name: str) -> ClassSet:
    return make_classes(BUILT_IN[name])


def opened(root: Path, pair: Pair, classes: ClassSet) -> dict[str, Domain]:
    declared = make_pair(root, pair, classes)
    return {
        part: open_domain(validated(DomainSettings, content, part), classes, labelled=True, name=part)
        for part, content in declared.items()
    }


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.*")}


def mapped(values: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """The ids of a file as the releases' code maps them, a value at a time."""
    result = np.full(values.shape, IGNORE, np.uint8)
    for value, train_id in table.items():
        result[values == value] = train_id
    return result


def test_folders_and_names_are_those_of_the_releases(tmp_path: Path) -> None:
    make_pair(tmp_path / "a", "gta5", classes_of("cityscapes_19"))
    gta5 = {f"{folder}/{i:05d}.png" for folder in ("images", "labels") for i in (1, 2)}
    assert names_below(tmp_path / "a" / "gta5") == gta5
    make_pair(tmp_path / "b", "synthia", classes_of("cityscapes_16"))
    synthia = {f"{folder}/{i:07d}.png" for folder in ("RGB", "GT/LABELS") for i in (0, 1)}
    assert names_below(tmp_path / "b" / "RAND_CITYSCAPES") == synthia
    for root in ("a", "b"):
        cityscapes = names_below(tmp_path / root / "cityscapes")
        assert "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png" in cityscapes
        assert "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png" in cityscapes
        assert "leftImg8bit/val/frankfurt/frankfurt_000001_000019_leftImg8bit.png" in cityscapes
        assert "gtFine/val/frankfurt/frankfurt_000001_000019_gtFine_labelIds.png" in cityscapes


def test_kinds_of_label_files(tmp_path: Path) -> None:
    make_pair(tmp_path / "a", "gta5", classes_of("cityscapes_19"))
    make_pair(tmp_path / "b", "synthia", classes_of("cityscapes_16"))
    with Image.open(tmp_path / "a" / "gta5" / "labels" / "00001.png") as label:
        assert label.mode == "P"
        palette = label.getpalette("RGB")
        assert palette is not None
        assert palette[3 * 7 : 3 * 8] == [128, 64, 128]  # 7 is road
    folder = tmp_path / "a" / "cityscapes" / "gtFine" / "val" / "frankfurt"
    with Image.open(folder / "frankfurt_000000_000019_gtFine_labelIds.png") as label:
        assert label.mode == "L"
    header = (tmp_path / "b" / "RAND_CITYSCAPES" / "GT" / "LABELS" / "0000000.png").read_bytes()[:33]
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    assert (width, height, depth, colour) == (160, 95, 16, 2)  # 16 bits a channel, RGB


def test_16_bit_files_keep_every_value(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (7, 5, 3)).astype(np.uint16)
    write_png16(tmp_path / "x.png", values)
    np.testing.assert_array_equal(read_values(tmp_path / "x.png"), values)


@pytest.mark.parametrize("pair", OF_PAIR)
def test_pictures_agree_with_their_labels(tmp_path: Path, pair: Pair) -> None:
    classes = classes_of(OF_PAIR[pair])
    domains = opened(tmp_path, pair, classes)
    for part, domain in domains.items():
        for item in domain.items:
            image, label, _ = load_pair(domain, item, None)
            assert label is not None
            # GTA5's last label is a pixel larger than its image and brought to its size.
            seen = set(np.unique(label).tolist()) - {IGNORE}
            assert seen == set(range(len(classes))), f"{part} {item.name}"
            for train_id in seen:
                wanted = np.array(classes.palette[train_id])
                wanted = wanted if part == "source" else 0.5 * wanted + [0, 10, 30]
                found = np.median(image[label == train_id], axis=0)
                assert np.abs(found - np.clip(wanted, 0, 255)).max() < 8, classes.names[train_id]


@pytest.mark.parametrize("name", BUILT_IN)
def test_gta5_and_cityscapes_are_decoded_as_the_releases_do(tmp_path: Path, name: str) -> None:
    """With 16 classes terrain, truck and train are ignored, in the source and where it is measured."""
    kept = {train_id: place for place, train_id in enumerate(SIXTEEN if name == "cityscapes_16" else range(19))}
    table = {value: kept[train_id] for value, train_id in FROM_IDS.items() if train_id in kept}
    for part, domain in opened(tmp_path, "gta5", classes_of(name)).items():
        for item in domain.items:
            assert item.label is not None
            with Image.open(item.label) as file:
                values = np.asarray(file)
            assert {22, 27, 31} <= set(values.flat), "terrain, truck and train are there"
            np.testing.assert_array_equal(load_label(domain, item), mapped(values, table), err_msg=part)


def test_synthia_is_decoded_as_the_releases_do(tmp_path: Path) -> None:
    domain = opened(tmp_path, "synthia", classes_of("cityscapes_16"))["source"]
    for item in domain.items:
        assert item.label is not None
        values = read_values(item.label)[..., 0]
        assert {0, 22} <= set(values.flat), "void and lane markings are there"
        np.testing.assert_array_equal(load_label(domain, item), mapped(values, FROM_SYNTHIA))


def test_synthia_has_no_terrain_truck_and_train(tmp_path: Path) -> None:
    domain = opened(tmp_path, "synthia", classes_of("cityscapes_19"))["source"]
    found = {CITYSCAPES_19[i] for item in domain.items for i in np.unique(load_label(domain, item)) if i != IGNORE}
    assert set(CITYSCAPES_19) - found == {"terrain", "truck", "train"}


@pytest.mark.parametrize("pair", OF_PAIR)
def test_check_finds_the_miniatures_in_order(tmp_path: Path, pair: Pair) -> None:
    content = {"classes": OF_PAIR[pair], **make_pair(tmp_path / "data", pair, classes_of(OF_PAIR[pair]))}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = segshift("check", "--data", tmp_path / "data.yaml", "--out", tmp_path / "check")
    assert found.code == 0, found
    assert "the data is in order" in found.out


def test_layouts_are_recognised_by_themselves(tmp_path: Path) -> None:
    """SYNTHIA by its folder, GTA5 by its palette: only the label of another size has to be allowed."""
    make_pair(tmp_path / "a", "gta5", classes_of("cityscapes_19"))
    make_pair(tmp_path / "b", "synthia", classes_of("cityscapes_16"))
    for root, source, sets in (("a", "gta5", ["--set", "source.limit=1"]), ("b", "RAND_CITYSCAPES", [])):
        name = {"a": "cityscapes_19", "b": "cityscapes_16"}[root]
        data: list[str | Path] = [
            "--source",
            tmp_path / root / source,
            "--target",
            tmp_path / root / "cityscapes",
            "--classes",
            name,
        ]
        split = ["--set", "target.split=train"]
        found = segshift("check", *data, *split, *sets, "--out", tmp_path / f"check-{root}")
        assert found.code == 0, found
    whole = segshift(
        "check", "--source", tmp_path / "a" / "gta5", *data[2:4], "--classes", name, *split, "--out", tmp_path / "whole"
    )
    assert_told(whole, "00002.png", "resize_labels", code=1)


def test_weak_labels_say_what_is_there(tmp_path: Path) -> None:
    target = opened(tmp_path, "gta5", classes_of("cityscapes_16"))["target"]
    make_weak_labels(tmp_path / "weak.jsonl", target)
    labels = match(WeakStore(tmp_path / "weak.jsonl").read(), target, target.classes)
    assert set(labels) == {item.name for item in target.items}
    for item in target.items:
        truth, label = load_label(target, item), labels[item.name]
        present = {target.classes.names[i] for i in np.unique(truth) if i != IGNORE}
        assert set(label.tags or ()) == present
        assert {point.name for point in label.points} == present
        assert all(target.classes.names[truth[p.row, p.column]] == p.name for p in label.points)


def test_plain_folders_have_the_classes_of_the_task(tmp_path: Path) -> None:
    classes = make_classes(["lawn", "gravel", "hedge"])
    for domain in opened(tmp_path, "folders", classes).values():
        assert all(set(np.unique(load_label(domain, item))) == {0, 1, 2, IGNORE} for item in domain.items)
