"""Weak labels in batches: discs where the points are whatever the view, tags that know what a crop may cut away."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import CLASSES, folders, rng, save
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.loader import batches
from segshift.data.views import Draw, ViewSettings, affine_of, cut_map, draw
from segshift.data.weak_views import WeakViews, draw_discs, place_points, shown, shows_all, tags_of
from segshift.types import IGNORE, Batch
from segshift.weak.label import Point, WeakLabel
from segshift.weak.matching import match
from segshift.weak.store import WeakStore

NAMES = CLASSES.names
WEAK = frozenset({"tags", "points", "seen"})
VIEW = ViewSettings(size=(24, 16), crop=(20, 12), scale=(0.7, 1.6), flip=True)
PLAIN = ViewSettings(size=(24, 16))


def label(*points: tuple[float, float, str], tags: tuple[str, ...] | None = None, complete: bool = True) -> WeakLabel:
    return WeakLabel("x.png", tags, complete, tuple(Point(*point) for point in points))


LABELS = {
    "000": label((3, 4, "road"), (25, 20, "car"), tags=("road", "car", "sky")),
    "001": label((16, 12, "person")),
    "002": label(tags=("sky",), complete=False),
    "004": label((0, 0, "sky"), (31, 23, "road"), (15.5, 11.5, "car"), tags=()),
}
"""Of files of 32x24 pixels; 003, 005 and 006 have none."""


def domain_at(root: Path) -> Domain:
    return open_domain(DomainSettings(root=root), CLASSES, labelled=False, name="target")


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return domain_at(folders(tmp_path, 7, labelled=False))


def take(domain: Domain, view: ViewSettings = VIEW, start: int = 0, stop: int = 4, **options: object) -> list[Batch]:
    given = {"batch_size": 4, "seed": 5, "workers": 0, "extras": WEAK, "weak": WeakViews(LABELS), **options}
    return list(batches(domain, view, start=start, stop=stop, **given))  # type: ignore[arg-type]


def tensors(batch: Batch) -> dict[str, Tensor]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def same(a: Batch, b: Batch) -> bool:
    first, second = tensors(a), tensors(b)
    return a.names == b.names and first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ---- batches


def test_what_is_asked_for_is_there_and_nothing_else(domain: Domain) -> None:
    plain = tensors(take(domain, extras=frozenset())[0])
    assert plain.keys() == {"image", "affine"}
    for wanted in ("seen", "tags", "points", "tags points seen"):
        found = tensors(take(domain, stop=1, extras=frozenset(wanted.split()))[0])
        assert found.keys() - plain.keys() == set(wanted.split())
        assert all(torch.equal(found[name], plain[name]) for name in plain), "extras change nothing else"
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in found.items() if name in WEAK}
    assert shapes == {
        "tags": ((4, 4), torch.float32),
        "points": ((4, 12, 20), torch.int64),
        "seen": ((4, 12, 20), torch.bool),
    }
    assert all(value.is_contiguous() for value in found.values())
    with pytest.raises(ValueError, match=r"\['points'\] without weak labels"):
        take(domain, extras=frozenset({"points"}), weak=None)


def test_a_function_of_seed_and_step_whatever_the_workers(domain: Domain) -> None:
    whole = take(domain, stop=5)
    assert all(same(a, b) for a, b in zip(whole[3:], take(domain, start=3, stop=5), strict=True))
    assert all(same(a, b) for a, b in zip(whole, take(domain, stop=5, workers=1), strict=True))
    (first,) = take(domain, stop=1)
    parts = [take(domain, stop=1, shard=(rank, 2))[0] for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert all(torch.equal(tensors(part)[k], tensors(first)[k][rank::2]) for k in WEAK)


def test_a_plain_view(domain: Domain) -> None:
    """Files of 32x24 seen at 24x16: a point (x, y) is at ((x + 0.5) * 3/4 - 0.5, (y + 0.5) * 2/3 - 0.5)."""
    (batch,) = take(domain, PLAIN, stop=1, batch_size=7, weak=WeakViews(LABELS, point_radius=1.0))
    assert batch.tags is not None
    assert batch.points is not None
    assert batch.seen is not None
    assert batch.seen.all()
    tags = dict(zip(batch.names, batch.tags.tolist(), strict=True))
    assert tags == {
        "000": [1, 1, 1, 0],
        "001": [-1, -1, -1, 1],
        "002": [-1, 1, -1, -1],
        "004": [1, 1, 1, 0],
        **{name: [-1] * 4 for name in ("003", "005", "006")},
    }
    points = dict(zip(batch.names, batch.points, strict=True))
    for name in ("002", "003", "005", "006"):
        assert (points[name] == IGNORE).all()
    # (16, 12) → (11.875, 7.83): the pixels within 1 of it.
    found = (points["001"] == NAMES.index("person")).nonzero().tolist()
    near = [[y, x] for y in range(16) for x in range(24) if (x - 11.875) ** 2 + (y - 7.0 - 5 / 6) ** 2 <= 1]
    assert found == near == [[7, 12], [8, 11], [8, 12]]
    assert points["004"][0, 0] == NAMES.index("sky")
    assert points["004"][15, 23] == NAMES.index("road")


def test_discs_are_where_the_image_shows_the_point(tmp_path: Path) -> None:
    """A bright square around the point: the view's disc lies on it, through scale, crop, flip and padding."""
    clicked = {"a": (40.0, 30.0), "b": (150.0, 95.0), "c": (101.5, 60.25)}
    for name, (x, y) in clicked.items():
        pixels = np.zeros((120, 200, 3), np.uint8)
        pixels[round(y) - 7 : round(y) + 8, round(x) - 7 : round(x) + 8] = 255
        save(tmp_path / "images" / f"{name}.png", pixels)
    weak = WeakViews({name: label((*place, "car")) for name, place in clicked.items()}, point_radius=2.0)
    view = ViewSettings(size=(100, 60), crop=(80, 70), scale=(0.6, 1.5), flip=True)
    found = 0
    for batch in take(domain_at(tmp_path), view, stop=20, batch_size=3, weak=weak):
        assert batch.affine is not None
        assert batch.points is not None
        for name, image, affine, points in zip(batch.names, batch.image, batch.affine, batch.points, strict=True):
            ys, xs = (points == NAMES.index("car")).nonzero().T
            assert (image[0][points != IGNORE] > 0.95).all()
            if len(xs) and xs.min() > 3 and xs.max() < 76 and ys.min() > 3 and ys.max() < 66:
                found += 1
                middle = affine @ torch.tensor([xs.float().mean(), ys.float().mean(), 1.0])
                # Pixels are whole; a disc's middle is its point to half of one.
                assert (middle[:2] - torch.tensor(clicked[name])).abs().max() < 0.5 * affine[0, 0].abs() + 0.01
    assert found > 20


# ---- discs


def chance_of(view: ViewSettings, seed: int) -> Draw:
    return draw(view, torch.Generator().manual_seed(seed))


def many_points(seed: int, count: int) -> WeakLabel:
    generator = rng(seed)
    places = generator.random((count, 2)) * [32, 24] - 0.5
    return label(*((float(x), float(y), NAMES[i % 4]) for i, (x, y) in enumerate(places)))


def discs_of(given: WeakLabel, view: ViewSettings, chance: Draw, radius: float) -> np.ndarray:
    weak, affine = WeakViews({"x": given}, radius), affine_of(view, chance, (24, 32))
    return weak.fields("x", {"points"}, NAMES, view, chance, affine)["points"]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 9), st.sampled_from([0.0, 0.4, 1.0, 2.5, 4.0, 30.0]))
def test_discs_are_those_of_a_loop_over_pixels(seed: int, count: int, radius: float) -> None:
    given, chance = many_points(seed, count), chance_of(VIEW, seed)
    affine = affine_of(VIEW, chance, (24, 32)).astype(np.float64)
    seen = shown(VIEW, chance)
    found = discs_of(given, VIEW, chance, radius)
    own = {  # pixels that hold a point, in view coordinates
        (math.floor(x + 0.5), math.floor(y + 0.5), i)
        for i, (x, y, _) in enumerate(place_points(given, affine.astype(np.float32), seen))
    }
    # A pixel of the working size in pixels of the file: files of 32x24, the working size is 24x16.
    unit_x, unit_y = 32 / 24, 24 / 16
    for y in range(12):
        for x in range(20):
            file_x, file_y, _ = affine @ [x, y, 1]
            best, wanted = math.inf, IGNORE
            for i, point in enumerate(given.points):
                distance = ((point.x - file_x) / unit_x) ** 2 + ((point.y - file_y) / unit_y) ** 2
                if seen[y, x] and (distance <= radius**2 or (x, y, i) in own) and distance < best - 1e-9:
                    best, wanted = distance, NAMES.index(point.name)
            close = [p for p in given.points if _nearly(p, file_x, file_y, unit_x, unit_y, best, radius)]
            assert found[y, x] == wanted or close, (x, y)


def _nearly(point: Point, x: float, y: float, unit_x: float, unit_y: float, best: float, radius: float) -> bool:
    """Whether rounding decides: on the disc's rim, or as near as the nearest."""
    distance = ((point.x - x) / unit_x) ** 2 + ((point.y - y) / unit_y) ** 2
    return abs(distance - radius**2) < 1e-4 or 0 < abs(distance - best) < 1e-4


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.booleans())
def test_discs_of_a_crop_are_the_crop_of_the_discs(seed: int, larger: bool) -> None:
    """Without scaling: points beside the crop reach into it, and nothing reaches into padding."""
    view = ViewSettings(size=(24, 16), crop=(30, 12) if larger else (11, 9), flip=True)
    given, chance = many_points(seed, 6), chance_of(view, seed)
    whole = discs_of(given, PLAIN, chance_of(PLAIN, 0), 3.0)
    assert np.array_equal(discs_of(given, view, chance, 3.0), cut_map(whole, view, chance, IGNORE))


def test_where_discs_meet_the_nearer_point_wins() -> None:
    seen = np.ones((9, 20), np.bool_)
    discs = draw_discs([0, 1], [(4.0, 4.0, True), (10.0, 4.0, True)], seen, 4.0, (1.0, 1.0))
    assert discs[4].tolist() == [0] * 8 + [1] * 7 + [IGNORE] * 5, "of equally near ones the first"
    swapped = draw_discs([1, 0], [(10.0, 4.0, True), (4.0, 4.0, True)], seen, 4.0, (1.0, 1.0))
    assert swapped[4].tolist() == [0] * 7 + [1] * 8 + [IGNORE] * 5
    assert (discs == 0).sum() == sum((x - 4) ** 2 + (y - 4) ** 2 <= 16 and x < 8 for x in range(20) for y in range(9))


@pytest.mark.parametrize("place", [(-3.0, 4.0), (22.0, 4.0), (4.0, -9.0), (4.0, 40.0), (-90.0, -90.0)])
def test_points_beside_the_view(place: tuple[float, float]) -> None:
    seen = np.ones((9, 20), np.bool_)
    discs = draw_discs([2], [(*place, False)], seen, 4.0, (1.0, 1.0))
    wanted = [[(x - place[0]) ** 2 + (y - place[1]) ** 2 <= 16 for x in range(20)] for y in range(9)]
    assert ((discs == 2) == np.array(wanted)).all()


def test_a_larger_view_has_larger_discs() -> None:
    """The radius is in pixels of the working size: a disc covers the same part of the image at any scale."""
    given, areas = label((16, 12, "car")), {}
    for factor in (1, 2):
        view = ViewSettings(size=(240, 160), crop=(240 * factor, 160 * factor), scale=(factor, factor))
        areas[factor] = (discs_of(given, view, chance_of(view, 0), 12.0) != IGNORE).sum()
    assert areas[1] == pytest.approx(math.pi * 144, rel=0.02)
    assert areas[2] == pytest.approx(4 * areas[1], rel=0.02)


# ---- tags


def tags(given: WeakLabel | None, *, whole: bool = True, points_complete: bool = False, **visible: bool) -> str:
    """A sign a class: + present, - absent, ? unknown; points are visible unless told otherwise by their class."""
    inside = [visible.get(point.name, True) for point in given.points] if given else []
    found = tags_of(given, NAMES, points_complete=points_complete, whole=whole, visible=inside)
    assert found.dtype == np.float32
    return "".join({1.0: "+", 0.0: "-", -1.0: "?"}[value] for value in found.tolist())


def test_tags_of_whole_images() -> None:
    points = (1.0, 1.0, "road"), (2.0, 2.0, "car")
    assert tags(None) == "????"
    assert tags(label(tags=("road", "sky"))) == "++--"
    assert tags(label(tags=())) == "----"
    assert tags(label(tags=("road", "sky"), complete=False)) == "++??"
    assert tags(label(*points)) == "+?+?"
    assert tags(label(*points), points_complete=True) == "+-+-"
    assert tags(label(*points, tags=("sky",))) == "+++-"
    assert tags(label(*points, tags=("sky",), complete=False), points_complete=True) == "+++?", "the tags say"
    assert tags(label(tags=("sky",), complete=False), points_complete=True) == "?+??"


def test_tags_of_crops_know_what_may_be_cut_away() -> None:
    points = (1.0, 1.0, "road"), (2.0, 2.0, "car")
    given = label(*points, tags=("road", "sky", "car"))
    assert tags(given) == "+++-"
    assert tags(given, whole=False) == "+?+-", "the sky may be outside; a person is not there"
    assert tags(given, whole=False, car=False) == "+??-"
    assert tags(label(*points), whole=False, points_complete=True, road=False) == "?-+-"
    assert tags(label(tags=("sky",), complete=False), whole=False) == "????"
    assert tags(None, whole=False) == "????"


def test_which_views_show_all() -> None:
    neutral = (1.0, 1.0, 1.0, 0.0)
    for scaled, offset, size, wanted in [
        ((24, 16), (0, 0), (24, 16), True),
        ((24, 16), (-3, -2), (30, 20), True),
        ((24, 16), (0, 0), (23, 16), False),
        ((24, 16), (1, 0), (24, 16), False),
        ((20, 12), (-2, -1), (24, 16), True),
        ((24, 16), (-3, 0), (30, 12), False),
    ]:
        view = ViewSettings(size=(24, 16), crop=size)
        chance = Draw(scaled, offset, False, neutral, 0.0)
        assert shows_all(view, chance) is wanted
        assert (shown(view, chance).sum() == scaled[0] * scaled[1]) == wanted


def test_crops_in_batches(domain: Domain) -> None:
    """Whatever the view: known tags are right, and a class with a visible point is known to be there."""
    truth = {"000": "+++-", "001": "???+", "002": "?+??", "004": "+++-"}
    met: set[tuple[str, float]] = set()
    for batch in take(domain, VIEW, stop=30, weak=WeakViews(LABELS, point_radius=0)):
        assert batch.tags is not None
        assert batch.points is not None
        for name, found, points in zip(batch.names, batch.tags.tolist(), batch.points, strict=True):
            for k, (value, right) in enumerate(zip(found, truth.get(name, "????"), strict=True)):
                met.add((right, value))
                assert value == -1 or {1.0: "+", 0.0: "-"}[value] == right
                assert value == 1 or not (points == k).any()
    assert met == {("+", 1.0), ("+", -1.0), ("-", 0.0), ("?", -1.0)}


def test_labels_from_a_file(tmp_path: Path) -> None:
    """The file's line, the domain's item, the view's disc."""
    for name in ("drive/a", "drive/b"):
        save(tmp_path / "images" / f"{name}.png", np.zeros((24, 32, 3), np.uint8))
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(WeakLabel("drive/b.png", ("Sky",), True, (Point(9, 7, "car"),)))
    domain = domain_at(tmp_path)
    weak = WeakViews(match(store.read(), domain, CLASSES), point_radius=0)
    (batch,) = take(domain, ViewSettings(size=(32, 24)), stop=1, batch_size=2, weak=weak)
    at = batch.names.index("drive/b")
    assert batch.tags is not None
    assert batch.points is not None
    assert batch.tags[at].tolist() == [0, 1, 1, 0]
    assert batch.tags[1 - at].tolist() == [-1] * 4
    assert (batch.points != IGNORE).nonzero().tolist() == [[at, 7, 9]]
