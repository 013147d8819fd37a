"""The cache: announced, whole or not there, and never stale."""

from __future__ import annotations

import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from data_makers import CLASSES, folders, label, picture, save

from segshift.data import cache as cache_module
from segshift.data.cache import cache_key, open_cache
from segshift.data.domains import Domain, DomainSettings, load_pair, open_domain
from segshift.errors import UserError


def domain_at(root: Path, labelled: bool = True, **settings: object) -> Domain:
    read = DomainSettings.model_validate({"root": root, **settings})
    return open_domain(read, CLASSES, labelled=labelled, name="source")


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_holds_what_the_files_hold(tmp_path: Path, labelled: bool, workers: int) -> None:
    domain = domain_at(folders(tmp_path / "d", 3), labelled)
    cache = open_cache(domain, (16, 12), tmp_path / "cache", workers=workers)
    for i, item in enumerate(domain.items):
        image, ids, original = cache.read(i)
        expected = load_pair(domain, item, (16, 12))
        assert np.array_equal(image, expected[0])
        assert (ids is None) == (expected[1] is None) == (not labelled)
        if ids is not None and expected[1] is not None:
            assert np.array_equal(ids, expected[1])
        assert original == (24, 32)
    assert image.flags.writeable
    assert not list((tmp_path / "cache").rglob("*.tmp*"))


def test_announced_once_and_then_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    domain = domain_at(folders(tmp_path / "d", 3))
    with caplog.at_level(logging.INFO, "segshift"):
        first = open_cache(domain, (16, 12), tmp_path / "cache", workers=0)
        assert "caching 3 images of source at 16x12" in caplog.text
        assert "GB" in caplog.text
        caplog.clear()
        assert open_cache(domain, (16, 12), tmp_path / "cache", workers=0) == first
        assert not caplog.text


def test_another_key_for_all_that_matters(tmp_path: Path) -> None:
    root = folders(tmp_path / "d", 3)
    keys = {cache_key(domain_at(root), (16, 12)), cache_key(domain_at(root), (12, 16))}
    keys.add(cache_key(domain_at(root, labelled=False), (16, 12)))
    keys.add(cache_key(domain_at(root, limit=2), (16, 12)))
    keys.add(cache_key(domain_at(root, class_map={"0": "sky", "*": "ignore"}), (16, 12)))
    keys.add(cache_key(domain_at(root, resize_labels=True), (16, 12)))
    assert len(keys) == 6
    save(root / "images" / "001.png", picture(9))
    os.utime(root / "images" / "001.png", ns=(1, 1))
    keys.add(cache_key(domain_at(root), (16, 12)))
    save(root / "labels" / "001.png", label(9))
    os.utime(root / "labels" / "001.png", ns=(1, 1))
    keys.add(cache_key(domain_at(root), (16, 12)))
    assert len(keys) == 8


def test_an_unfinished_cache_is_made_anew(tmp_path: Path) -> None:
    domain = domain_at(folders(tmp_path / "d", 3))
    path = domain.items[2].image
    whole = path.read_bytes()
    state = path.stat()
    path.write_bytes(whole[:60].ljust(len(whole), b"x"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UserError, match=r"002\.png"):
        open_cache(domain, (16, 12), tmp_path / "cache", workers=0)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert np.array_equal(open_cache(domain, (16, 12), tmp_path / "cache", workers=0).read(2)[0],
                          load_pair(domain, domain.items[2], (16, 12))[0])  # fmt: skip


def test_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = domain_at(folders(tmp_path / "d", 3))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(UserError, match="the cache needs") as caught:
        open_cache(domain, (16, 12), tmp_path / "cache", workers=0)
    assert "cache: false" in caught.value.remedy


def test_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = domain_at(folders(tmp_path / "d", 3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_fill", full)
    with pytest.raises(UserError, match="disk is full"):
        open_cache(domain, (16, 12), tmp_path / "cache", workers=0)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    with pytest.raises(UserError, match=r"cannot write .*000\.png"):
        open_cache(domain, (16, 12), domain.items[0].image, workers=0)


def test_vanished_file(tmp_path: Path) -> None:
    domain = domain_at(folders(tmp_path / "d", 3))
    domain.items[0].image.unlink()
    with pytest.raises(UserError, match=r"000\.png"):
        open_cache(domain, (16, 12), tmp_path / "cache", workers=0)
