"""Pseudo-labels in batches: seen exactly as their image is seen; crops laid around rare classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import CLASSES, rng, save

from segshift.artefacts.pseudo_labels import PseudoLabels, write_ids, write_soft
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import nearest_indices, resize_nearest
from segshift.data.loader import batches
from segshift.data.views import Draw, ViewSettings, centred, draw
from segshift.errors import UserError
from segshift.types import IGNORE, Batch

SIZE = (96, 64)
PLAIN = ViewSettings(size=SIZE)
VIEW = ViewSettings(size=SIZE, crop=(56, 40), scale=(0.6, 1.6), flip=True)
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)
COUNT = 6


def ids_of(index: int) -> np.ndarray:
    """Train ids in blocks of 16 pixels, some of them ignored."""
    blocks = rng(index).choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), (4, 6))
    return np.kron(blocks, np.ones((16, 16), np.uint8))


def picture_of(ids: np.ndarray) -> np.ndarray:
    """An image whose colours say the ids; grey where they are ignored."""
    return np.where((ids == IGNORE)[..., None], np.uint8(128), COLOURS[np.where(ids == IGNORE, 0, ids)])


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    root = tmp_path_factory.mktemp("target")
    for index in range(COUNT):
        save(root / "images" / f"seq{index % 2}" / f"{index}.png", picture_of(ids_of(index)))
    return open_domain(DomainSettings(root=root), CLASSES, labelled=False, name="target")


def index_of(name: str) -> int:
    return int(name.rpartition("/")[2])


def soft_of(ids: np.ndarray) -> np.ndarray:
    """0.8 on the class, the rest on the next one."""
    eye = np.eye(4, dtype=np.float32)[np.where(ids == IGNORE, 0, ids)]
    soft: np.ndarray = (0.8 * eye + 0.2 * np.roll(eye, 1, axis=2)) * (ids != IGNORE)[..., None]
    return soft


def labels_at(
    folder: Path, domain: Domain, *, size: tuple[int, int] = SIZE, soft: bool = False, split: bool = False
) -> PseudoLabels:
    """Pseudo-labels that say what the images' colours say; the full ones have class 0 where those are ignored."""
    for item in domain.items:
        ids = resize_nearest(ids_of(index_of(item.name)), size)
        write_ids(folder / "labels" / f"{item.name}.png", ids, CLASSES)
        write_ids(folder / "full" / f"{item.name}.png", np.where(ids == IGNORE, 0, ids).astype(np.uint8), CLASSES)
        write_soft(folder / "soft" / f"{item.name}.npz", soft_of(ids))
    easy = {item.name: index_of(item.name) % 3 == 0 for item in domain.items} if split else None
    return PseudoLabels(folder, easy, soft, (1, 1, 1, 1))


def take(domain: Domain, view: ViewSettings, start: int = 0, stop: int = 4, **options: Any) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 5, "workers": 0, **options}
    return list(batches(domain, view, start=start, stop=stop, **settings))


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    for a, b in zip(some, others, strict=True):
        assert a.names == b.names
        for field in ("image", "affine", "pseudo_label", "soft_label", "easy"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None) == (y is None), field
            assert x is None or torch.equal(x, y), field


# ---- geometry


GEOMETRIES: list[dict[str, Any]] = [
    {}, {"flip": True}, {"crop": (112, 80)}, {"scale": (1.5, 1.5)}, {"scale": (0.7, 0.7)},
    {"crop": (56, 40), "scale": (0.7, 1.6), "flip": True},
]  # fmt: skip


@pytest.mark.parametrize("size", [SIZE, (48, 32), (120, 90)])
@pytest.mark.parametrize("changes", GEOMETRIES)
def test_a_pseudo_label_is_seen_as_its_image(
    tmp_path: Path, domain: Domain, size: tuple[int, int], changes: dict[str, Any]
) -> None:
    view = ViewSettings(size=SIZE, **changes)
    labels = labels_at(tmp_path, domain, size=size, soft=True)
    compared, ignored = 0, 0
    for batch in take(domain, view, stop=2, pseudo_labels=labels):
        assert batch.label is None
        assert batch.pseudo_label is not None
        assert batch.soft_label is not None
        shape = (view.shape[1], view.shape[0])
        assert batch.pseudo_label.shape == (4, *shape)
        assert batch.pseudo_label.dtype == torch.int64
        assert batch.soft_label.shape == (4, 4, *shape)
        assert batch.soft_label.dtype == torch.float32
        assert batch.soft_label.is_contiguous()
        pixels = (255 * batch.image).round().permute(0, 2, 3, 1)
        far = torch.stack([(pixels - torch.tensor(colour)).abs().amax(-1) for colour in COLOURS.astype(np.float32)])
        closest = far.argmin(dim=0)
        grey = (pixels - 128).abs().amax(-1) < 3
        pure = far.amin(dim=0) < 3
        # Pixels of one colour away from the edges of blocks, where bicubic and nearest resizing differ.
        inner, soft = batch.pseudo_label, batch.soft_label
        for _ in range(2 if size == SIZE else 4):
            pure, grey = (eroded(mask) for mask in (pure, grey))
        assert torch.equal(inner[pure], closest[pure])
        assert (inner[grey] == IGNORE).all()
        compared, ignored = compared + int(pure.sum()), ignored + int(grey.sum())
        assert torch.equal(soft.sum(dim=1) > 0, inner != IGNORE), "soft labels are cut as the hard ones are"
        best, label = soft.max(dim=1)
        assert torch.equal(label[inner != IGNORE], inner[inner != IGNORE])
        assert ((best - 0.8).abs()[inner != IGNORE] < 0.01).all()
        assert ((soft.sum(dim=1) - 1).abs()[inner != IGNORE] < 1e-5).all()
    assert compared > 500
    assert ignored > 100


def eroded(mask: torch.Tensor) -> torch.Tensor:
    outside = torch.nn.functional.max_pool2d((~mask).float()[:, None], 3, 1, 1)
    return mask & (outside[:, 0] == 0)


@pytest.mark.parametrize("view", [PLAIN, VIEW])
def test_a_pseudo_label_is_cut_exactly_as_a_label_of_its_size(
    tmp_path: Path, domain: Domain, view: ViewSettings
) -> None:
    """The same ids as labels of a labelled domain of the same name: equal to the last pixel."""
    root = tmp_path / "same"
    for item in domain.items:
        save(root / "images" / f"{item.name}.png", picture_of(ids_of(index_of(item.name))))
        save(root / "labels" / f"{item.name}.png", ids_of(index_of(item.name)))
    labelled = open_domain(DomainSettings(root=root), CLASSES, labelled=True, name="target")
    own = take(domain, view, pseudo_labels=labels_at(tmp_path / "labels", domain))
    for batch, other in zip(own, take(labelled, view), strict=True):
        assert batch.pseudo_label is not None
        assert other.label is not None
        assert torch.equal(batch.image, other.image)
        assert torch.equal(batch.pseudo_label, other.label)


def test_what_an_easy_image_carries(tmp_path: Path, domain: Domain) -> None:
    easy = 0
    for batch in take(domain, PLAIN, pseudo_labels=labels_at(tmp_path, domain, split=True)):
        assert batch.easy is not None
        assert batch.easy.dtype == torch.bool
        assert batch.soft_label is None
        for name, label, one in zip(batch.names, batch.pseudo_label, batch.easy.tolist(), strict=True):  # type: ignore[arg-type]
            assert one == (index_of(name) % 3 == 0)
            ids = ids_of(index_of(name))
            wanted = np.where(ids == IGNORE, 0, ids) if one else ids
            np.testing.assert_array_equal(label.numpy(), wanted)
            easy += one
    assert easy > 0


def test_without_pseudo_labels_the_fields_are_empty_and_the_images_the_same(tmp_path: Path, domain: Domain) -> None:
    plain = take(domain, VIEW)
    assert all((b.pseudo_label, b.soft_label, b.easy) == (None, None, None) for b in plain)
    for batch, other in zip(plain, take(domain, VIEW, pseudo_labels=labels_at(tmp_path, domain)), strict=True):
        assert torch.equal(batch.image, other.image)


# ---- a function of the seed and the step

MINING = ViewSettings(size=SIZE, crop=(40, 32), scale=(0.9, 1.6), flip=True, mine=0.5, jitter=0.2)


@pytest.mark.parametrize("cache", [False, True])
def test_workers_resume_and_shards_change_nothing(tmp_path: Path, domain: Domain, cache: bool) -> None:
    options: dict[str, Any] = {
        "pseudo_labels": labels_at(tmp_path / "labels", domain, soft=True, split=True), "rare": (2, 3),
        "cache": tmp_path / "cache" if cache else None,
    }  # fmt: skip
    whole = take(domain, MINING, **options)
    assert_equal(take(domain, MINING, workers=1, **options), whole)
    assert_equal(take(domain, MINING, start=2, **options), whole[2:])
    parts = [take(domain, MINING, shard=(rank, 2), **options) for rank in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for field in ("image", "pseudo_label", "soft_label", "easy"):
            for rank, half in enumerate(halves):
                assert torch.equal(getattr(batch, field)[rank::2], getattr(half, field)), field
    other = take(domain, MINING, seed=6, **options)
    assert not all(torch.equal(a.image, b.image) for a, b in zip(whole, other, strict=True))


def test_a_pseudo_label_that_is_gone_is_named(tmp_path: Path, domain: Domain) -> None:
    labels = labels_at(tmp_path, domain)
    (tmp_path / "labels" / f"{domain.items[3].name}.png").unlink()
    for workers in (0, 1):
        with pytest.raises(UserError, match=domain.items[3].name) as caught:
            take(domain, PLAIN, workers=workers, pseudo_labels=labels)
        assert "run the same command again" in caught.value.remedy


# ---- patch mining

CROP = ViewSettings(size=(200, 120), crop=(40, 32), mine=1.0)


def rare_label(places: dict[int, list[tuple[int, int]]], shape: tuple[int, int] = (120, 200)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    for k, pixels in places.items():
        for y, x in pixels:
            label[y, x] = k
    return label


def mined(view: ViewSettings, label: np.ndarray, classes: tuple[int, ...], count: int) -> list[tuple[Draw, Draw]]:
    """Draws before and after."""
    pairs = []
    for seed in range(count):
        before = draw(view, torch.Generator().manual_seed(seed))
        pairs.append((before, centred(view, before, label, classes, torch.Generator().manual_seed(10_000 + seed))))
    return pairs


@pytest.mark.parametrize("place", [(60, 100), (0, 0), (119, 199), (3, 150), (90, 8)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.7)])
def test_the_crop_lies_around_the_pixel_and_inside_the_image(
    place: tuple[int, int], scale: tuple[float, float]
) -> None:
    view = CROP.model_copy(update={"scale": scale, "flip": True})
    label = rare_label({2: [place]})
    for before, after in mined(view, label, (2, 3), 30):
        assert (after.scaled, after.flip, after.colours) == (before.scaled, before.flip, before.colours)
        # Where nearest resizing shows the pixel (it may drop it when it makes the image smaller), the crop does.
        for axis, wanted in ((0, place[1]), (1, place[0])):
            room = after.scaled[axis] - view.shape[axis]
            assert 0 <= after.offset[axis] <= room
            shown = np.nonzero(nearest_indices(after.scaled[axis], view.size[axis]) == wanted)[0]
            where = shown - after.offset[axis]
            assert ((where >= 0) & (where < view.shape[axis])).all()
            if 0 < after.offset[axis] < room and len(shown):
                assert np.abs(where - view.shape[axis] // 2).max() <= scale[1], "in the middle where there is room"


def test_an_image_smaller_than_the_crop_stays_where_chance_put_it() -> None:
    view = ViewSettings(size=(30, 120), crop=(40, 32), mine=1.0)
    for before, after in mined(view, rare_label({1: [(100, 3)]}, (120, 30)), (1,), 10):
        assert after.offset[0] == before.offset[0]
        assert after.offset[1] == 100 - 16 if after.offset[1] < 88 else after.offset[1] == 88


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_mining_happens_at_the_asked_rate(rate: float) -> None:
    view, count = CROP.model_copy(update={"mine": rate}), 400 if 0 < rate < 1 else 40
    pairs = mined(view, rare_label({3: [(60, 100)]}), (3,), count)
    moved = sum(after.offset == (80, 44) != before.offset for before, after in pairs)
    assert all(after.offset in (before.offset, (80, 44)) for before, after in pairs)
    assert abs(moved - rate * count) <= 4 * (rate * (1 - rate) * count) ** 0.5 + 2


def test_every_rare_class_and_every_pixel_of_it_has_the_same_chance() -> None:
    """A class is drawn first, so one of few pixels is shown as often as one of many."""
    label = rare_label({1: [(60, 50), (60, 150)], 2: [(60, 100)], 3: [(30, 60)]})
    found = [after.offset for _, after in mined(CROP, label, (1, 2), 400)]
    shares = [found.count((x - 20, 44)) / 400 for x in (50, 150, 100)]
    assert sum(shares) == pytest.approx(1), "class 3 is not asked for"
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.1)


def test_nothing_rare_in_the_image_changes_nothing() -> None:
    for classes in ((), (2,), (IGNORE - 1,)):
        assert all(before == after for before, after in mined(CROP, rare_label({1: [(60, 50)]}), classes, 20))


def test_the_loader_mines_the_pseudo_label(tmp_path: Path, domain: Domain) -> None:
    """A block of class 3 in each image, in labels of half the size; every mined crop shows it."""
    size, crop = (240, 160), (40, 32)
    labels = labels_at(tmp_path, domain)
    for item in domain.items:
        ids = np.zeros((80, 120), np.uint8)
        ids[60:64, 30 + index_of(item.name) : 34 + index_of(item.name)] = 3
        write_ids(tmp_path / "labels" / f"{item.name}.png", ids, CLASSES)

    def seen(view: ViewSettings, **options: Any) -> float:
        taken = [batch.pseudo_label for batch in take(domain, view, stop=20, pseudo_labels=labels, **options)]
        shown = torch.cat([label for label in taken if label is not None]) == 3
        return float(shown.flatten(1).any(dim=1).float().mean())

    view = ViewSettings(size=size, crop=crop, scale=(0.8, 1.2), flip=True, mine=1.0)
    assert seen(view, rare=(3,)) == 1
    by_chance = seen(view.model_copy(update={"mine": 0.0}), rare=(3,))
    assert by_chance < 0.35
    assert seen(view, rare=(1,)) == seen(view) == by_chance
    half = seen(view.model_copy(update={"mine": 0.5}), rare=(3,))
    assert half == pytest.approx(0.5 + 0.5 * by_chance, abs=0.15)
