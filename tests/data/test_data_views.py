"""Views: where every pixel is from, to a fraction of a pixel, and what the colours do."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from data_makers import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from segshift.data.images import nearest_indices, resize_nearest
from segshift.data.tensors import as_float
from segshift.data.views import PADDING, Draw, ViewSettings, affine_of, cut, draw, recolour

NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def gradient(width: int, height: int) -> np.ndarray:
    """An 8-bit image whose red is proportional to x and green to y."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(np.arange(width) * 255 / (width - 1))
    image[..., 1] = np.rint(np.arange(height) * 255 / (height - 1))[:, None]
    return image


@settings(max_examples=150)
@given(
    st.tuples(st.integers(60, 250), st.integers(60, 250)),
    st.tuples(st.integers(60, 200), st.integers(60, 200)),
    st.tuples(st.integers(20, 240), st.integers(20, 240)),
    st.floats(0.5, 2.0),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_affine_is_exact_on_coordinate_gradients(
    file: tuple[int, int], size: tuple[int, int], crop: tuple[int, int], scale: float, flip: bool, seed: int
) -> None:
    view = ViewSettings(size=size, crop=crop, scale=(scale, scale), flip=flip)
    chance = draw(view, torch.Generator().manual_seed(seed))
    image = np.asarray(Image.fromarray(gradient(*file)).resize(size, Image.Resampling.BICUBIC))
    seen, _ = cut(image, None, view, chance)
    assert seen.shape == (crop[1], crop[0], 3)
    matrix = affine_of(view, chance, (file[1], file[0]))
    inside = ~(seen == PADDING).all(-1)
    ys, xs = np.nonzero(inside)
    points = matrix.astype(np.float64) @ np.stack([xs, ys, np.ones_like(xs)])
    # Resampling bends a gradient near the image's border only.
    for axis, channel in ((0, 0), (1, 1)):
        # Filters reach over two pixels of the coarser grid.
        edge = 5.0 * max(1.0, file[axis] / size[axis], file[axis] / chance.scaled[axis])
        well = (points[axis] > edge) & (points[axis] < file[axis] - 1 - edge)
        found = seen[ys, xs, channel][well] / 255 * (file[axis] - 1)
        # Two roundings to 8 bits, each of half a grey value.
        assert np.abs(found - points[axis][well]).max(initial=0) < 1.6 * file[axis] / 255 + 0.02


@settings(max_examples=1500)
@given(st.floats(0.4, 2.5), st.booleans(), st.integers(0, 2**40))
def test_label_and_image_stay_together(scale: float, flip: bool, seed: int) -> None:
    view = ViewSettings(size=(96, 64), crop=(70, 80), scale=(scale, scale), flip=flip)
    chance = draw(view, torch.Generator().manual_seed(seed))
    blocks = np.random.default_rng(seed % 1000).integers(0, 4, (4, 6), dtype=np.uint8)
    label = np.kron(blocks, np.ones((16, 16), np.uint8))
    image = np.repeat((label * 60)[..., None], 3, 2)
    seen, seen_label = cut(image, label, view, chance)
    assert seen_label is not None
    padded = (seen == PADDING).all(-1)
    assert (seen_label[padded] == 255).all()
    assert not (seen_label[~padded] == 255).any()
    off = np.abs(seen[..., 0].astype(int) - seen_label.astype(int) * 60) > 45
    border = np.zeros_like(off)
    border[:, 1:] = seen_label[:, 1:] != seen_label[:, :-1]
    border[1:] |= seen_label[1:] != seen_label[:-1]
    reach = 1 + int(np.ceil(scale))
    near = [np.roll(border, (y, x), (0, 1)) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    wrong = off & ~np.any(near, axis=0) & ~padded
    # The border of two blocks may lie just outside the view.
    assert not wrong[reach:-reach, reach:-reach].any(), "only pixels at the border of two blocks may differ"


def test_label_pixels_are_those_that_the_affine_names() -> None:
    view = ViewSettings(size=(60, 40), crop=(50, 30), scale=(0.5, 2.0), flip=True)
    for seed in range(30):
        chance = draw(view, torch.Generator().manual_seed(seed))
        columns = np.tile(np.arange(60, dtype=np.uint8), (40, 1))
        _, seen = cut(np.zeros((40, 60, 3), np.uint8), columns, view, chance)
        assert seen is not None
        matrix = affine_of(view, chance, (40, 60)).astype(np.float64)
        ys, xs = np.nonzero(seen != 255)
        from_x = matrix[0, 0] * xs + matrix[0, 2]
        assert np.abs(from_x - seen[ys, xs]).max() <= 0.5 + 1e-4


def test_plain_view_is_the_image_itself() -> None:
    image, label = picture(0), np.arange(24 * 32, dtype=np.uint16).reshape(24, 32).astype(np.uint8)
    view = ViewSettings(size=(32, 24))
    chance = draw(view, torch.Generator().manual_seed(1))
    seen, seen_label = cut(image, label, view, chance)
    assert np.array_equal(seen, image)
    assert seen_label is not None
    assert np.array_equal(seen_label, label)
    assert np.array_equal(affine_of(view, chance, (24, 32)), np.eye(3))
    assert recolour(as_float(image[None]), view, [chance]) is not None


def test_working_size_only() -> None:
    chance = Draw((320, 240), (0, 0), False, NEUTRAL, 0.0)
    matrix = affine_of(ViewSettings(size=(320, 240)), chance, (360, 480))
    assert matrix.tolist() == [[1.5, 0, 0.25], [0, 1.5, 0.25], [0, 0, 1]]


def test_flip_mirrors_and_says_so() -> None:
    view = ViewSettings(size=(32, 24), flip=True)
    chance = Draw((32, 24), (0, 0), True, NEUTRAL, 0.0)
    assert np.array_equal(cut(picture(0), None, view, chance)[0], picture(0)[:, ::-1])
    assert (affine_of(view, chance, (24, 32)) @ np.array([0, 5, 1])).tolist() == [31, 5, 1]


def test_a_scaled_crop_is_the_crop_of_the_scaled_image() -> None:
    image, label = picture(3, 96, 64), np.random.default_rng(0).integers(0, 9, (64, 96), dtype=np.uint8)
    view = ViewSettings(size=(96, 64), crop=(50, 40), scale=(1.5, 1.5))
    chance = Draw((144, 96), (37, 21), False, NEUTRAL, 0.0)
    seen, seen_label = cut(image, label, view, chance)
    whole = np.asarray(Image.fromarray(image).resize((144, 96), Image.Resampling.BICUBIC))
    difference = np.abs(seen.astype(int) - whole[21:61, 37:87].astype(int))
    # At this scale every third pixel's weights are sixteenths: ties, which the last bit of the box decides.
    assert difference.max() <= 2
    assert difference.mean() < 0.2
    assert seen_label is not None
    assert np.array_equal(seen_label, resize_nearest(label, (144, 96))[21:61, 37:87])
    assert nearest_indices(2, 4).tolist() == [1, 3]


def test_draws_are_pure_and_independent_of_other_settings() -> None:
    base = ViewSettings(size=(64, 64), crop=(32, 32))
    more = ViewSettings(size=(64, 64), crop=(32, 32), flip=True, jitter=0.4, blur=0.5)
    for seed in range(20):
        a, b = (draw(v, torch.Generator().manual_seed(seed)) for v in (base, more))
        assert a.offset == b.offset
        assert b == draw(more, torch.Generator().manual_seed(seed))
    draws = [draw(more, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert 140 < sum(d.flip for d in draws) < 260
    assert 140 < sum(d.sigma > 0 for d in draws) < 260
    assert {d.offset[0] for d in draws} == set(range(33))
    assert all(0.6 <= f <= 1.4 for d in draws for f in d.colours[:3])


def neutral(**changes: float) -> Draw:
    colours = tuple(changes.get(n, v) for n, v in zip(("b", "c", "s", "h"), NEUTRAL, strict=True))
    return Draw((32, 24), (0, 0), False, (colours[0], colours[1], colours[2], colours[3]), changes.get("sigma", 0.0))


def test_colours_do_what_they_say() -> None:
    view = ViewSettings(size=(32, 24), jitter=0.5, blur=0.5)
    image = as_float(picture(0)[None]) * 0.5 + 0.2
    assert torch.allclose(recolour(image.clone(), view, [neutral()]), image, atol=1e-5)
    assert torch.allclose(recolour(image, view, [neutral(b=1.2)]), image * 1.2, atol=1e-5)
    grey = recolour(image, view, [neutral(s=0.0)])
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-5
    flat = recolour(image, view, [neutral(c=0.0)])
    assert flat.std() < 1e-5
    turned = recolour(image, view, [neutral(h=np.pi / 2)])
    red, green, blue = image[0, :, 5, 7].tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    expected = colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)
    assert torch.allclose(turned[0, :, 5, 7], torch.tensor(expected), atol=1e-3)
    blurred = recolour(image, view, [neutral(sigma=1.0)])
    assert (blurred - image).abs().max() > 1e-3
    assert abs(float(blurred.mean() - image.mean())) < 2e-3


def test_each_image_of_a_batch_has_its_own_colours() -> None:
    view = ViewSettings(size=(32, 24), jitter=0.5, blur=0.5)
    images = as_float(np.stack([picture(i) for i in range(4)]))
    chances = [neutral(b=0.8), neutral(sigma=0.9), neutral(s=1.4), neutral(h=0.3)]
    together = recolour(images.clone(), view, chances)
    for i, chance in enumerate(chances):
        alone = recolour(images[i : i + 1].clone(), view, [chance])
        assert torch.allclose(together[i], alone[0], atol=1e-6)
    assert together.min() >= 0
    assert together.max() <= 1


@pytest.mark.parametrize(
    "bad",
    [
        {"size": (0, 4)},
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"jitter": -1},
        {"blur": 2},
        {"crop": (0, 3)},
        {"x": 1},
    ],
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewSettings.model_validate({"size": (4, 4), **bad})
