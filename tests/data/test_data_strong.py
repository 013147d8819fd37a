"""Strong views: where every pixel is from, to a fraction of a pixel; what is hidden; what chance decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from data_makers import picture, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from segshift.data.strong import COLOURS, FILL, SHAPES, Operation, StrongDraw, StrongSettings, draw_strong, strengthen

SHAPES_ONLY = StrongSettings(colours=False, probability=1, cutout=0)


def coded(length: int, axis: int, size: tuple[int, int]) -> np.ndarray:
    """An image whose red rises by a whole grey level for each step of a coordinate, and whose blue falls."""
    level = 250 // length
    red = level * np.arange(length)
    plane = np.broadcast_to(red if axis == 0 else red[:, None], (size[1], size[0]))
    return np.stack([plane, plane, 255 - plane], -1).astype(np.uint8)


def origins(chance: StrongDraw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(2, H, W) coordinates that a strong view's pixels had, read from its colours; its affine; what is seen."""
    found = []
    for axis, length in enumerate(chance.size):
        strong, affine, seen = strengthen(coded(length, axis, chance.size), chance)
        # Pillow cuts fractions off; with a channel that rises and one that falls that cancels.
        red, blue = strong[..., 0].astype(float), strong[..., 2].astype(float)
        found.append((red - blue + 255) / 2 / (250 // length))
    return np.stack(found), affine, seen


def pixels(size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) homogeneous pixel centres."""
    ys, xs = np.mgrid[: size[1], : size[0]]
    return np.stack([xs, ys, np.ones_like(xs)]).astype(float)


def chance_of(*operations: tuple[str, float], size: tuple[int, int] = (60, 48), flip: bool = False) -> StrongDraw:
    return StrongDraw(size, flip, tuple(Operation(*operation) for operation in operations), None)


def check_origins(chance: StrongDraw) -> None:
    found, affine, seen = origins(chance)
    said = np.einsum("ij,jyx->iyx", affine, pixels(chance.size))[:2]
    # What is from the outermost half pixel, of the weak view or between two steps, is repeated and not interpolated.
    near = np.lib.stride_tricks.sliding_window_view(np.pad(seen, 2), (5, 5))
    inner = near.all((2, 3))
    assert inner.sum() > 100
    off = (found - said)[:, inner]
    # Each resampling may lose up to a grey level, of which there are four to six a pixel; on average hardly anything.
    assert np.abs(off).max() < 0.05 + 0.15 * len(chance.operations)
    assert np.abs(off.mean(1)).max() < 0.02 + 0.01 * len(chance.operations)


EXTREMES = {
    "rotate": (3, 27),
    "shear_x": (0.03, 0.27),
    "shear_y": (0.03, 0.27),
    "translate_x": (1, 14),
    "translate_y": (1, 14),
}
OTHERS = {"rotate": 20, "shear_x": 0.18, "shear_y": 0.21, "translate_x": 9, "translate_y": 5}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_affine_of_every_shape_is_exact(name: str, flip: bool) -> None:
    for strength in EXTREMES[name]:
        for sign in (-1, 1):
            check_origins(chance_of((name, sign * strength), flip=flip))


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_affine_of_two_shapes_is_their_product_in_order(first: str, second: str) -> None:
    # The same one twice too: the release forgets the first.
    one, two = (first, OTHERS[first]), (second, -EXTREMES[second][1])
    check_origins(chance_of(one, two))
    check_origins(chance_of(two, one, flip=True))


def test_order_of_shapes_matters_and_is_told() -> None:
    turn, shear = ("rotate", 20), ("shear_x", 0.27)
    a, b = (strengthen(picture(0, 60, 48), chance_of(*both))[1] for both in ((turn, shear), (shear, turn)))
    assert np.abs(a - b).max() > 0.05
    straight, flipped = (strengthen(picture(0, 60, 48), chance_of(turn, flip=f))[1] for f in (False, True))
    assert np.allclose(flipped, np.array([[-1, 0, 59], [0, 1, 0], [0, 0, 1]]) @ straight)


@settings(max_examples=60)
@given(st.tuples(st.integers(40, 62), st.integers(40, 62)), st.integers(0, 2**40))
def test_affine_is_exact_for_what_chance_draws(size: tuple[int, int], seed: int) -> None:
    chance = draw_strong(torch.Generator().manual_seed(seed), size, SHAPES_ONLY)
    check_origins(chance)


def test_shapes_as_released() -> None:
    """Against Pillow's own rotation, and the release's matrices for the others."""
    image = Image.fromarray(picture(1, 60, 48))
    grey = (FILL, FILL, FILL)
    pillows = {
        ("rotate", 12): image.rotate(12, Image.Resampling.BILINEAR, fillcolor=grey),
        ("shear_x", 0.12): (1, 0.12, 0, 0, 1, 0),
        ("shear_y", -0.2): (1, 0, 0, -0.2, 1, 0),
        ("translate_x", 7): (1, 0, 7, 0, 1, 0),
        ("translate_y", -9): (1, 0, 0, 0, 1, -9),
    }
    for operation, wanted in pillows.items():
        if isinstance(wanted, tuple):
            how = (Image.Transform.AFFINE, wanted, Image.Resampling.BILINEAR)
            wanted = image.transform(image.size, *how, fillcolor=grey)
        strong, _, _ = strengthen(np.asarray(image), chance_of(operation))
        assert np.abs(strong.astype(int) - np.asarray(wanted)).max() <= 1


# ---- what is seen


@settings(max_examples=60)
@given(st.tuples(st.integers(30, 90), st.integers(30, 90)), st.integers(0, 2**40))
def test_seen_is_what_is_free_of_padding(size: tuple[int, int], seed: int) -> None:
    chance = draw_strong(torch.Generator().manual_seed(seed), size, SHAPES_ONLY)
    white = np.full((size[1], size[0], 3), 255, np.uint8)
    strong, affine, seen = strengthen(white, chance)
    assert np.array_equal(seen, (strong == 255).all(-1))
    if len(chance.operations) == 1:
        points = np.einsum("ij,jyx->iyx", affine, pixels(size))[:2]
        limits = np.array(size)[:, None, None]
        depth = np.minimum(points + 0.5, limits - 0.5 - points).min(0)
        assert seen[depth > 1e-6].all()
        assert not seen[depth < -1e-6].any()
        assert (strong[depth < -1e-6] == FILL).all()


def test_padding_of_the_weak_view_is_not_seen() -> None:
    shown = np.ones((48, 60), np.bool_)
    shown[:, 50:] = False
    weak = np.where(shown[..., None], 200, 10).astype(np.uint8).repeat(3, 2)
    for chance in (
        chance_of(),
        chance_of(flip=True),
        chance_of(("rotate", 15)),
        chance_of(("shear_y", 0.2), flip=True),
    ):
        strong, _, seen = strengthen(weak, chance, shown)
        assert np.array_equal(seen, (strong == 200).all(-1))
        assert 0 < seen.sum() < 0.9 * seen.size
    assert np.array_equal(strengthen(weak, chance_of(), shown)[2], shown)
    assert not shown[:, 50:].any(), "the mask of the weak view is left alone"


def test_cutout_is_grey_and_not_seen() -> None:
    chance = StrongDraw((60, 48), False, (Operation("brightness", 0.5),), (10, 20, 26, 36))
    image = np.full((48, 60, 3), 200, np.uint8)
    strong, affine, seen = strengthen(image, chance)
    hidden = np.zeros((48, 60), np.bool_)
    hidden[20:36, 10:26] = True
    assert np.array_equal(seen, ~hidden)
    assert (strong[hidden] == FILL).all(), "cut out last: no other operation changes its grey"
    assert (strong[~hidden] == 100).all()
    assert np.array_equal(affine, np.eye(3))
    assert (image == 200).all(), "the weak view is left alone"


def test_cutout_lies_as_released() -> None:
    size = (90, 60)
    draws = [draw_strong(torch.Generator().manual_seed(seed), size) for seed in range(3000)]
    boxes = np.array([d.cutout for d in draws])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 90).all()
    assert (bottom <= 60).all()
    # Over the left and upper border a square is moved inside whole, so those are many; at the others it is cut.
    assert np.array_equal(right - left, np.minimum(20, 90 - left))
    assert np.array_equal(bottom - top, np.minimum(20, 60 - top))
    assert 0.09 < (left == 0).mean() < 0.16
    assert 0.14 < (top == 0).mean() < 0.23
    assert 0.08 < (right - left < 20).mean() < 0.15
    assert left.max() == 79
    assert top.max() == 49
    for side in range(1, 400):
        box = draw_strong(torch.Generator().manual_seed(3), (side, 10**6)).cutout
        height = 0 if box is None else box[3] - box[1]
        assert height == side // 3, "the same as the release's whole division"
    assert draw_strong(torch.Generator(), (90, 60), StrongSettings(cutout=0)).cutout is None


# ---- colours


def colour(name: str, value: float, image: np.ndarray) -> np.ndarray:
    strong, affine, seen = strengthen(image, chance_of((name, value), size=(image.shape[1], image.shape[0])))
    assert np.array_equal(affine, np.eye(3))
    assert seen.all()
    return strong.astype(float)


def test_colours_do_what_they_say() -> None:
    image = picture(0)
    image = (image // 2 + 40).astype(np.uint8)
    plain = image.astype(float)
    grey = plain @ [0.299, 0.587, 0.114]
    assert np.array_equal(colour("identity", 0, image), plain)
    assert np.abs(colour("brightness", 0.4, image) - 0.4 * plain).max() <= 1
    assert np.abs(colour("color", 0.3, image) - (0.3 * plain + 0.7 * grey[..., None])).max() <= 2
    assert np.abs(colour("contrast", 0.6, image) - (0.6 * plain + 0.4 * grey.mean())).max() <= 2
    assert np.array_equal(colour("posterize", 5, image), image & 0b11111000)
    assert np.array_equal(colour("solarize", 100, image), np.where(image < 100, image, 255 - image))
    stretched = colour("autocontrast", 0, image)
    low, high = plain.min((0, 1)), plain.max((0, 1))
    assert np.abs(stretched - (plain - low) * 255 / (high - low)).max() <= 1
    noise = rng(0).integers(100, 140, (64, 64, 3), dtype=np.uint8)
    flat = colour("equalize", 0, noise)
    assert flat.min() < 10
    assert flat.max() > 245
    smooth = colour("sharpness", 0.14, noise)
    assert smooth[1:-1, 1:-1].std() < 0.6 * noise.std()
    assert colour("sharpness", 0.86, noise).std() > smooth.std()


# ---- chance


def released(v: int) -> dict[str, set[float]]:
    """Values of every operation at a strength, for views of 320x110 pixels (methods.md section 10.4)."""
    factor, shear = {round(0.09 * v + 0.05, 9)}, {round(0.03 * v, 9), round(-0.03 * v, 9)}
    across, down = int(0.03 * v * 320), int(0.03 * v * 110)
    return {
        "brightness": factor, "color": factor, "contrast": factor, "sharpness": factor,
        "posterize": {int(0.4 * v) + 4},
        "solarize": {256 - int(25.6 * v)},
        "rotate": {3 * v, -3 * v},
        "shear_x": shear, "shear_y": shear,
        "translate_x": {across, -across}, "translate_y": {down, -down},
        "autocontrast": {0}, "equalize": {0}, "identity": {0},
    }  # fmt: skip


@pytest.mark.parametrize("v", range(1, 10))
def test_values_are_those_of_the_release(v: int) -> None:
    generator, found = torch.Generator().manual_seed(v), dict[str, set[float]]()
    for _ in range(200):
        chance = draw_strong(generator, (320, 110), StrongSettings(strength=(v, v), probability=1))
        for name, value in chance.operations:
            found.setdefault(name, set()).add(round(value, 9))
    assert found == released(v)


def test_chance_is_that_of_the_release() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [draw_strong(generator, (320, 110)) for _ in range(8000)]
    applied = [operation for d in draws for operation in d.operations]
    counts = Counter(operation.name for operation in applied)
    assert len(COLOURS + SHAPES) == len(counts) == 14
    # 16 000 times one of 14, applied every second time: 571, with a deviation of 24.
    assert all(460 < count < 680 for count in counts.values())
    assert 3800 < sum(d.flip for d in draws) < 4200
    twice = sum(len(d.operations) == 2 and d.operations[0].name == d.operations[1].name for d in draws)
    assert 100 < twice < 190, "drawn with replacement"
    values = Counter(operation.value for operation in applied if operation.name == "rotate")
    assert values.keys() == {sign * 3 * v for v in range(1, 10) for sign in (-1, 1)}
    assert max(values.values()) < 3 * min(values.values()), "strengths are uniform, signs too"
    boxes = [d.cutout or (0, 0, 0, 0) for d in draws]
    whats = [sum(o.name in SHAPES for o in d.operations) for d in draws]
    causes = np.array([[d.flip for d in draws], [b[0] for b in boxes], [b[1] for b in boxes], whats], float)
    together = np.corrcoef(causes)[~np.eye(4, dtype=bool)]
    assert np.abs(together).max() < 0.05, "nothing depends on anything else"


def test_a_draw_takes_a_fixed_number_of_random_numbers() -> None:
    for seed in range(30):
        a, b = (torch.Generator().manual_seed(seed) for _ in range(2))
        draw_strong(a, (60, 48))
        torch.rand(11, generator=b, dtype=torch.float64)
        assert torch.equal(a.get_state(), b.get_state())


def test_one_setting_does_not_shift_another() -> None:
    for seed in range(60):
        usual, no_shapes, no_colours, no_cutout, no_flip, more = (
            draw_strong(torch.Generator().manual_seed(seed), (60, 48), s)
            for s in (
                StrongSettings(),
                StrongSettings(shapes=False),
                StrongSettings(colours=False),
                StrongSettings(cutout=0),
                StrongSettings(flip=0),
                StrongSettings(operations=5),
            )
        )
        assert usual == draw_strong(torch.Generator().manual_seed(seed), (60, 48)), "a function of the generator alone"
        assert no_shapes.operations == tuple(o for o in usual.operations if o.name in COLOURS)
        assert no_colours.operations == tuple(o for o in usual.operations if o.name in SHAPES)
        assert no_cutout.operations == no_flip.operations == usual.operations
        assert no_shapes.cutout == no_flip.cutout == more.cutout == usual.cutout
        assert no_shapes.flip == no_cutout.flip == more.flip == usual.flip
        assert not no_flip.flip
        assert more.operations[: len(usual.operations)] == usual.operations


def test_nothing_is_drawn_where_nothing_is_wanted() -> None:
    nothing = StrongSettings(operations=0, flip=0, cutout=0)
    image = picture(2)
    for seed in range(5):
        strong, affine, seen = strengthen(image, draw_strong(torch.Generator().manual_seed(seed), (32, 24), nothing))
        assert np.array_equal(strong, image)
        assert np.array_equal(affine, np.eye(3))
        assert seen.all()
    for probability, count in ((0, 0), (1, 2)):
        drawn = draw_strong(torch.Generator(), (32, 24), StrongSettings(probability=probability))
        assert len(drawn.operations) == count


def test_one_pixel_and_a_draw_for_another_size() -> None:
    one = np.full((1, 1, 3), 9, np.uint8)
    for seed in range(40):
        strong, _, seen = strengthen(one, draw_strong(torch.Generator().manual_seed(seed), (1, 1)))
        assert strong.shape == (1, 1, 3)
        assert seen.shape == (1, 1)
    with pytest.raises(ValueError, match="the draw is for 1x1 pixels, the image has 32x24"):
        strengthen(picture(0), chance_of(size=(1, 1)))


@pytest.mark.parametrize(
    "bad",
    [
        {"operations": -1}, {"probability": 1.1}, {"strength": (3, 2)}, {"strength": (-1, 2)}, {"strength": (1, 11)},
        {"flip": -0.1}, {"cutout": 1.5}, {"rotate": 30},
    ],
)  # fmt: skip
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StrongSettings.model_validate(bad)
