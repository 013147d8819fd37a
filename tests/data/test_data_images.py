"""Opening images of every kind, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import picture, png16, save
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segshift.data.images import (
    image_size,
    load_resized,
    nearest_indices,
    open_image,
    resize_nearest,
)
from segshift.data.tensors import as_float, to_tensor
from segshift.errors import UserError


def test_every_kind_becomes_rgb(tmp_path: Path) -> None:
    rgb = picture(0)
    grey = rgb[..., 0]
    same = np.stack([grey] * 3, -1)
    alpha = np.dstack([rgb, np.full(grey.shape, 9, np.uint8)])
    cases = {
        "rgb.png": (save(tmp_path / "rgb.png", rgb), rgb),
        "rgba.png": (save(tmp_path / "rgba.png", alpha), rgb),
        "grey.png": (save(tmp_path / "grey.png", grey), same),
        "la.png": (save(tmp_path / "la.png", alpha, "LA"), None),
        "sixteen.png": (save(tmp_path / "sixteen.png", grey.astype(np.uint16) * 257), same),
        "bits.png": (save(tmp_path / "bits.png", grey > 99), np.stack([(grey > 99) * 255] * 3, -1)),
        "deep.png": (png16(tmp_path / "deep.png", rgb.astype(np.uint16) * 257), rgb),
        "palette.png": (save(tmp_path / "palette.png", rgb, "P"), None),
        "clear.png": (save(tmp_path / "clear.png", rgb, "P", transparency=bytes([0, 128, 255])), None),
        "cmyk.jpg": (save(tmp_path / "cmyk.jpg", rgb, "CMYK"), None),
    }
    for name, (path, expected) in cases.items():
        image = open_image(path)
        assert image.mode == "RGB", name
        assert image.size == (32, 24), name
        assert image_size(path) == (24, 32)
        if expected is not None:
            assert np.array_equal(np.asarray(image), expected), name
        assert np.array_equal(load_resized(path, None)[0], np.asarray(image)), name


def test_float_images(tmp_path: Path) -> None:
    grey = picture(0)[..., 0]
    assert np.array_equal(np.asarray(open_image(save(tmp_path / "a.tif", grey.astype(np.float32))))[..., 0], grey)
    with pytest.raises(UserError, match="outside 0-255"):
        open_image(save(tmp_path / "b.tif", grey.astype(np.float32) * 10))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0, 3, 30, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = save(
        tmp_path / f"broken{suffix}", np.asarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)), np.uint8)
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    for read in (open_image, lambda p: load_resized(p, (20, 20))):
        with pytest.raises(UserError, match="cannot be decoded") as caught:
            read(path)
        assert str(path) in caught.value.found
        assert caught.value.remedy


def test_not_an_image_missing_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="cannot be decoded"):
        open_image(tmp_path / "text.png")
    with pytest.raises(UserError, match="does not exist"):
        image_size(tmp_path / "gone.png")
    with pytest.raises(UserError, match="cannot be decoded"):
        open_image(tmp_path)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", picture(0), exif=exif)
    assert open_image(path).size == (32, 24)
    assert load_resized(path, None)[1] == (24, 32)


def test_resize_is_bicubic_and_keeps_the_original_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(0))
    pixels, original = load_resized(path, (16, 20))
    assert original == (24, 32)
    expected = Image.fromarray(picture(0)).resize((16, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels, np.asarray(expected))
    assert torch.equal(to_tensor(open_image(path), (16, 20)), as_float(pixels))


def test_reduced_decoding_of_large_jpegs_changes_little(tmp_path: Path) -> None:
    path = save(tmp_path / "large.jpg", picture(1, 512, 384), quality=95)
    reduced, original = load_resized(path, (100, 80))
    whole = open_image(path).resize((100, 80), Image.Resampling.BICUBIC)
    difference = np.abs(reduced.astype(int) - np.asarray(whole).astype(int))
    assert original == (384, 512)
    assert difference.mean() < 0.6
    assert difference.max() <= 4


def test_float_conversion() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    tensor = as_float(values)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert torch.allclose(tensor[1].flatten() * 255, torch.arange(256.0), atol=1e-4)
    assert as_float(np.stack([values] * 2)).shape == (2, 3, 16, 16)


@given(st.integers(1, 50), st.integers(1, 50))
def test_nearest_indices_hold_the_pixel_centre(wanted: int, available: int) -> None:
    found = nearest_indices(wanted, available)
    exact = [(2 * i + 1) * available / (2 * wanted) for i in range(wanted)]
    assert all(index <= place <= index + 1 for index, place in zip(found, exact, strict=True))
    assert np.array_equal(nearest_indices(available, available), np.arange(available))


def test_nearest_agrees_with_pillow() -> None:
    ids = np.random.default_rng(0).integers(0, 9, (31, 47), dtype=np.uint8)
    for size in ((20, 13), (94, 62), (47, 31), (5, 50)):
        assert np.array_equal(
            resize_nearest(ids, size), np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
        )
