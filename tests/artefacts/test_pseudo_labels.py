"""Pseudo-labels as files: what any viewer shows, what training reads back, and what happens to damaged ones."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segshift.artefacts.pseudo_labels import (
    PseudoLabel,
    PseudoLabels,
    open_pseudo_labels,
    read_ids,
    read_soft,
    stack,
    write_ids,
    write_palette,
    write_soft,
)
from segshift.artefacts.store import SEAL, damaged, seal
from segshift.errors import UserError
from segshift.types import IGNORE, ClassSet

CLASSES = ClassSet(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
IDS = np.array([[0, 1, 2, 255], [2, 2, 1, 0], [255, 255, 0, 1]], np.uint8)


def some_soft(seed: int = 0, shape: tuple[int, int] = (5, 7), classes: int = 4) -> np.ndarray:
    """Distributions, about half of which are all zeros."""
    chance = np.random.default_rng(seed)
    soft = chance.dirichlet(np.full(classes, 0.3), shape) * (chance.uniform(size=shape) < 0.5)[..., None]
    return soft.astype(np.float32)


def statistics(**changes: Any) -> dict[str, Any]:
    rows = [{"name": name, "labelled": 0.2, "score": 0.5, "easy": None} for name in ("a", "b/c")]
    return {"predicted": [60, 39, 1], "easy_cutoff": None, "per_image": rows, **changes}


def folder_of(root: Path, **changes: Any) -> Path:
    """A folder with labels of two images, of which the second one's are one class higher in `full`."""
    for name, shift in (("a", 0), ("b/c", 1)):
        write_ids(root / "labels" / f"{name}.png", IDS, CLASSES)
        write_ids(root / "full" / f"{name}.png", np.full_like(IDS, shift), CLASSES)
    (root / "statistics.json").write_text(json.dumps(statistics(**changes)))
    return root


# ---- files


def test_a_label_is_a_picture_in_the_colours_of_its_classes(tmp_path: Path) -> None:
    write_ids(tmp_path / "below" / "x.png", IDS, CLASSES)
    with Image.open(tmp_path / "below" / "x.png") as picture:
        assert (picture.mode, picture.size) == ("P", (4, 3))
        colours = np.asarray(picture.convert("RGB"))
    for value in np.unique(IDS):
        wanted = CLASSES.palette[value] if value < 3 else (0, 0, 0)
        assert {tuple(c) for c in colours[value == IDS].tolist()} == {wanted}
    np.testing.assert_array_equal(read_ids(tmp_path / "below" / "x.png"), IDS)


def test_every_number_survives(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_palette(tmp_path / "x.png", values, ((1, 2, 3),))
    np.testing.assert_array_equal(read_ids(tmp_path / "x.png"), values)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 255))
def test_soft_labels_survive_to_a_rounding(tmp_path_factory: pytest.TempPathFactory, seed: int, classes: int) -> None:
    path = tmp_path_factory.getbasetemp() / "soft" / "x.npz"
    soft = some_soft(seed, (3, 4), classes)
    write_soft(path, soft)
    found = read_soft(path)
    assert found.dtype == np.float32
    assert (found.any(axis=2) == soft.any(axis=2)).all()
    chosen = found[soft.any(axis=2)]
    np.testing.assert_allclose(chosen.sum(axis=1), 1, atol=1e-5)
    # Roundings of all K entries are put right by one factor.
    assert np.abs(found - soft).max() <= (0.5 + classes / 2) / 255


def test_equal_labels_are_equal_bytes_at_any_time(tmp_path: Path) -> None:
    soft = some_soft()
    for name in ("a", "b"):
        write_soft(tmp_path / f"{name}.npz", soft)
        write_ids(tmp_path / f"{name}.png", IDS, CLASSES)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as content:
        assert {entry.date_time for entry in content.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "no time of writing"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_damage_is_an_error_that_names_the_file_and_the_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    read = read_ids if kind == "png" else read_soft
    if kind == "png":
        write_ids(path, IDS, CLASSES)
    else:
        write_soft(path, some_soft())
    whole, good = path.read_bytes(), read(path)
    refused = []
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytes(byte ^ (0x55 if i == place else 0) for i, byte in enumerate(whole))
        for content in (flipped, whole[:place], whole[:place].ljust(len(whole), b"\0")):
            path.write_bytes(content)
            try:
                found = read(path)
            except UserError as error:
                refused.append(error)
            else:
                # A PNG decoder does not look at checksums: for that there is the seal.
                assert kind == "png" or np.array_equal(found, good)
    assert len(refused) > 60
    assert all(str(path) in error.found and "run the same command again" in error.remedy for error in refused)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        read(path)


# ---- a folder of them


def test_an_image_without_a_split_has_the_label_of_the_thresholds(tmp_path: Path) -> None:
    labels = open_pseudo_labels(folder_of(tmp_path))
    assert (labels.easy, labels.soft, labels.predicted) == (None, False, (60, 39, 1))
    for name in ("a", "b/c"):
        label = labels.read(name)
        np.testing.assert_array_equal(label.hard, IDS)
        assert (label.soft, label.easy) == (None, None)


@pytest.mark.parametrize("cutoff", [0.5, None])
def test_an_easy_image_has_its_full_label(tmp_path: Path, cutoff: float | None) -> None:
    rows = [{"name": name, "easy": easy and cutoff is not None} for name, easy in (("a", False), ("b/c", True))]
    labels = open_pseudo_labels(folder_of(tmp_path, per_image=rows, easy_cutoff=cutoff))
    hard, easy = labels.read("a"), labels.read("b/c")
    assert (hard.easy, easy.easy) == (False, cutoff is not None), "a split of which no image is easy is a split"
    np.testing.assert_array_equal(hard.hard, IDS)
    np.testing.assert_array_equal(easy.hard, np.full_like(IDS, 1) if cutoff is not None else IDS)


def test_soft_labels_are_read_where_they_are_and_filled_where_a_pixel_has_a_hard_one_alone(tmp_path: Path) -> None:
    write_soft(folder_of(tmp_path) / "soft" / "a.npz", some_soft(0, IDS.shape, 3))
    labels = open_pseudo_labels(tmp_path)
    assert labels.soft
    soft, given_soft = labels.read("a").soft, read_soft(tmp_path / "soft" / "a.npz")
    assert soft is not None
    there = given_soft.any(axis=2)
    assert there.any()
    np.testing.assert_array_equal(soft[there], given_soft[there])
    alone = ~there & (IDS != IGNORE)
    assert alone.any()
    np.testing.assert_array_equal(soft[alone], np.eye(3)[IDS[alone]])
    assert not soft[~there & (IDS == IGNORE)].any()
    with pytest.raises(UserError, match=r"soft/b/c\.npz"):
        labels.read("b/c")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"predicted": [1]}', '{"predicted": 3, "easy_cutoff": 1, "per_image": []}']
)
def test_damaged_statistics(tmp_path: Path, content: str) -> None:
    (folder_of(tmp_path) / "statistics.json").write_text(content)
    with pytest.raises(UserError, match=r"statistics\.json"):
        open_pseudo_labels(tmp_path)
    (tmp_path / "statistics.json").unlink()
    with pytest.raises(UserError, match=r"statistics\.json does not exist"):
        open_pseudo_labels(tmp_path)


def test_rare_classes(tmp_path: Path) -> None:
    def rare(predicted: list[int], below: float, fallback: int) -> list[int]:
        return sorted(PseudoLabels(tmp_path, None, False, tuple(predicted)).rare(below, fallback))

    assert rare([900, 99, 1, 0], 1e-3, 3) == [0, 1, 2], (
        "a share of exactly the limit is not below it; class 3 is absent"
    )
    assert rare([9000, 990, 9, 1], 1e-3, 3) == [2, 3]
    assert rare([9000, 990, 9, 1], 1e-3, 0) == [2, 3]
    assert rare([500, 300, 150, 50], 1e-3, 3) == [1, 2, 3], "the three of the smallest shares"
    assert rare([500, 300, 150, 50], 1e-3, 0) == [], "CRST mines none then"
    assert rare([5, 5, 0, 0], 1e-3, 3) == [0, 1]
    assert rare([0, 0], 1e-3, 3) == []


def test_fields_of_a_batch() -> None:
    soft = some_soft(0, (3, 4), 3)
    both = [PseudoLabel(IDS, soft, True), PseudoLabel(255 - IDS, soft[::-1], False)]
    fields = stack(both)
    assert set(fields) == {"pseudo_label", "soft_label", "easy"}
    assert fields["pseudo_label"].dtype == np.int64
    np.testing.assert_array_equal(fields["pseudo_label"][1], 255 - IDS)
    assert fields["soft_label"].shape == (2, 3, 3, 4)
    np.testing.assert_array_equal(fields["soft_label"][1, 2], soft[::-1, :, 2])
    assert fields["easy"].tolist() == [True, False]
    assert set(stack([PseudoLabel(IDS)])) == {"pseudo_label"}
    assert stack([PseudoLabel(IDS)])["pseudo_label"].max() == IGNORE
    assert stack([]) == {}


# ---- the seal


def test_the_seal_names_what_is_missing_or_changed(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.0/\xff.png")  # a folder with a dot, bytes that are no text
    for name in ("a.png", odd, "notes.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode(errors="surrogateescape"))
    assert damaged(tmp_path) == [SEAL]
    seal(tmp_path, "test", [tmp_path / name for name in ("notes.json", "a.png", odd)])
    first = (tmp_path / SEAL).read_bytes()
    assert damaged(tmp_path) == []
    (tmp_path / "a.png").write_bytes(b"b.png")
    assert damaged(tmp_path) == ["a.png"]
    (tmp_path / odd).unlink()
    assert sorted(damaged(tmp_path)) == sorted(["a.png", odd])
    (tmp_path / odd).mkdir()
    assert odd in damaged(tmp_path), "a folder in the place of the file"
    (tmp_path / odd).rmdir()
    for name in ("a.png", odd):
        (tmp_path / name).write_bytes(name.encode(errors="surrogateescape"))
    assert damaged(tmp_path) == []
    (tmp_path / "more.png").touch()
    assert damaged(tmp_path) == []
    seal(tmp_path, "test", [tmp_path / name for name in (odd, "a.png", "notes.json")])
    assert (tmp_path / SEAL).read_bytes() == first, "whatever the order of the files"
    for content in (b"", b"{", b"[]", b"{}", b'{"files": 3}', b"\xff\xfe"):
        (tmp_path / SEAL).write_bytes(content)
        assert damaged(tmp_path) == [SEAL]


def test_what_cannot_be_sealed_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        seal(tmp_path, "test", [tmp_path / "missing.png"])
    assert not (tmp_path / SEAL).exists()
