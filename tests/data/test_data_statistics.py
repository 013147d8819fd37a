"""Class frequencies, what a scan finds, and the pictures of `check`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_makers import CLASSES, folders, label, picture, save
from PIL import Image

from segshift.data.contact import class_histogram, colour_label, contact_sheet, overlay
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import resize_nearest
from segshift.data.statistics import class_frequency, count_classes, scan, spread
from segshift.errors import UserError


def domain_at(root: Path, labelled: bool = True, **settings: object) -> Domain:
    read = DomainSettings.model_validate({"root": root, **settings})
    return open_domain(read, CLASSES, labelled=labelled, name="source")


@pytest.mark.parametrize("workers", [0, 1])
def test_class_frequency(tmp_path: Path, workers: int) -> None:
    domain = domain_at(folders(tmp_path, 4))
    labels = np.stack([label(i) for i in range(4)])
    expected = np.bincount(labels.ravel(), minlength=4) / labels.size
    shares = class_frequency(domain, workers=workers)
    assert shares.dtype == np.float64
    assert np.allclose(shares, expected)
    small = np.stack([resize_nearest(label(i), (8, 6)) for i in range(4)])
    assert np.allclose(class_frequency(domain, (8, 6)), np.bincount(small.ravel(), minlength=4) / small.size)


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    folders(tmp_path, 1)
    save(tmp_path / "labels" / "000.png", np.array([[0] * 16 + [255] * 16] * 24, np.uint8))
    assert class_frequency(domain_at(tmp_path)).tolist() == [1, 0, 0, 0]
    save(tmp_path / "labels" / "000.png", np.full((24, 32), 255, np.uint8))
    with pytest.raises(UserError, match="every pixel"):
        class_frequency(domain_at(tmp_path))
    assert count_classes(np.array([[0, 3, 3, 255]], np.uint8), 4).tolist() == [1, 0, 0, 2, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_scan_of_a_good_domain(tmp_path: Path, workers: int) -> None:
    domain = domain_at(folders(tmp_path, 4))
    calls: list[tuple[int, int]] = []
    found = scan(domain, workers=workers, progress=lambda done, total: calls.append((done, total)))
    assert found.problems(domain) == []
    assert found.images == 4
    assert found.sizes == {(24, 32): 4}
    assert np.allclose(found.shares, class_frequency(domain))
    assert found.images_with == (4, 4, 4, 4)
    assert found.ignored == 0
    assert calls[-1] == (4, 4)
    assert scan(domain, limit=2).images == 2
    target = domain_at(tmp_path, labelled=False)
    assert scan(target).problems(target) == []
    assert scan(target).shares == (0, 0, 0, 0)


def test_scan_collects_everything_that_is_wrong(tmp_path: Path) -> None:
    folders(tmp_path, 6)
    odd = label(0)
    odd[:1] = 17
    save(tmp_path / "labels" / "000.png", odd)
    odd[:2] = 18
    save(tmp_path / "labels" / "001.png", odd)
    save(tmp_path / "labels" / "002.png", label(0, 16, 12))
    save(tmp_path / "labels" / "003.png", np.full((24, 32), 255, np.uint8))
    (tmp_path / "images" / "004.png").write_bytes(b"not an image")
    (tmp_path / "labels" / "005.png").write_bytes(b"not a label")
    domain = domain_at(tmp_path)
    found = scan(domain)
    assert {value: (u.pixels, u.files, u.example.name) for value, u in found.unmapped.items()} == {
        17: (32, 1, "000.png"),
        18: (64, 1, "001.png"),
    }
    assert [(p.name, a, b) for p, a, b in found.mismatches] == [("002.png", (12, 16), (24, 32))]
    assert [p.name for p in found.all_ignored] == ["003.png"]
    assert len(found.unreadable) == 2
    texts = [str(problem) for problem in found.problems(domain)]
    assert len(texts) == 4
    assert any("17 (32 px)" in t and "18 (64 px)" in t for t in texts)
    assert any("resize_labels" in t for t in texts)
    assert found.ignored == 24 * 32
    resized = domain_at(tmp_path, resize_labels=True)
    assert len(scan(resized).problems(resized)) == 3


def test_a_domain_of_nothing_to_learn_is_a_problem(tmp_path: Path) -> None:
    folders(tmp_path, 2)
    for i in range(2):
        save(tmp_path / "labels" / f"00{i}.png", np.full((24, 32), 255, np.uint8))
    domain = domain_at(tmp_path)
    (problem,) = scan(domain).problems(domain)
    assert "every pixel" in problem.found
    assert len(scan(domain).all_ignored) == 2


def test_spread() -> None:
    assert spread(10, 3) == [1, 5, 8]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(600, 600) == list(range(600))
    assert spread(5, 0) == spread(0, 5) == []


def test_pictures_of_labels() -> None:
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    colours = colour_label(ids, CLASSES)
    assert tuple(colours[0, 0]) == CLASSES.palette[0]
    assert tuple(colours[1, 1]) == (0, 0, 0)
    mixed = overlay(np.full((2, 2, 3), 100, np.uint8), ids, CLASSES, weight=0.5)
    assert tuple(mixed[1, 1]) == (50, 50, 50)
    assert abs(int(mixed[0, 0, 0]) - (100 + CLASSES.palette[0][0]) / 2) <= 1


def test_contact_sheet_and_histogram(tmp_path: Path) -> None:
    source = domain_at(folders(tmp_path / "s", 9))
    target = domain_at(folders(tmp_path / "t", 3, labelled=False), labelled=False)
    contact_sheet(tmp_path / "sheet.png", [source, target], count=4, width=100)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    found = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    assert set(CLASSES.palette) <= found
    class_histogram(tmp_path / "h.png", CLASSES, {"source": [0.5, 0.3, 0.2, 0.0], "target": [0.1, 0.2, 0.3, 0.4]})
    with Image.open(tmp_path / "h.png") as histogram:
        assert histogram.width > 400
    assert not list(tmp_path.glob(".*"))


def test_contact_sheet_of_a_broken_domain(tmp_path: Path) -> None:
    folders(tmp_path, 3)
    (tmp_path / "images" / "000.png").write_bytes(b"x")
    save(tmp_path / "images" / "001.png", picture(0, 64, 80))
    save(tmp_path / "labels" / "002.png", np.full((24, 32), 77, np.uint8))
    contact_sheet(tmp_path / "sheet.png", [domain_at(tmp_path)], count=3, width=60)
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet(tmp_path / "no" / "sheet.png", [domain_at(tmp_path)])
