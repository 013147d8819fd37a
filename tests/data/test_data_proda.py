"""What batches carry for ProDA: whole images, strong views and soft labels, each with its place in the file's image."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import CLASSES, folders, rng, save
from torch import Tensor

from segshift.artefacts.pseudo_labels import PseudoLabels, write_ids, write_soft
from segshift.artefacts.soft_labels import SoftLabels
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import load_resized
from segshift.data.loader import batches
from segshift.data.strong import StrongSettings
from segshift.data.tensors import as_float
from segshift.data.views import ViewSettings
from segshift.errors import UserError
from segshift.types import Batch

ALL = frozenset({"full", "strong"})
VIEW = ViewSettings(size=(24, 16), crop=(20, 12), scale=(0.7, 1.6), flip=True)
NEW = ("full", "full_affine", "strong", "strong_affine", "strong_seen", "soft_full")


def domain_at(root: Path, labelled: bool = True) -> Domain:
    return open_domain(DomainSettings(root=root), CLASSES, labelled=labelled, name="target")


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return domain_at(folders(tmp_path, 7, suffix=".jpg"))


@pytest.fixture
def soft(domain: Domain, tmp_path: Path) -> SoftLabels:
    """Soft labels of (h, w) = (3, 5) that differ from image to image."""
    for i, item in enumerate(domain.items):
        values = rng(i).random((3, 5, 4)).astype(np.float32) ** 4
        write_soft(tmp_path / "made" / "soft" / f"{item.name}.npz", values / values.sum(2, keepdims=True))
    return SoftLabels(tmp_path / "made")


def take(domain: Domain, view: ViewSettings = VIEW, start: int = 0, stop: int = 4, **options: object) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 5, "workers": 0, "extras": ALL, **options}
    return list(batches(domain, view, start=start, stop=stop, **settings))  # type: ignore[arg-type]


def tensors(batch: Batch) -> dict[str, Tensor]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def same(a: Batch, b: Batch) -> bool:
    first, second = tensors(a), tensors(b)
    return a.names == b.names and first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_what_is_asked_for_is_there_and_nothing_else(domain: Domain, soft: SoftLabels) -> None:
    asked: dict[str, dict[str, object]] = {
        "": {"extras": frozenset()},
        "full full_affine": {"extras": frozenset({"full"})},
        "strong strong_affine strong_seen": {"extras": frozenset({"strong"})},
        "soft_full": {"extras": frozenset(), "soft_labels": soft},
        " ".join(NEW): {"soft_labels": soft},
    }
    plain = tensors(take(domain, extras=frozenset())[0])
    assert plain.keys() == {"image", "label", "affine"}
    for wanted, options in asked.items():
        found = tensors(take(domain, VIEW, 0, 1, **options)[0])
        assert found.keys() - plain.keys() == set(wanted.split())
        assert all(torch.equal(found[name], plain[name]) for name in plain), "extras change nothing else"
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in found.items() if name in NEW}
    assert shapes == {
        "full": ((4, 3, 16, 24), torch.float32),
        "full_affine": ((4, 3, 3), torch.float32),
        "strong": ((4, 3, 12, 20), torch.float32),
        "strong_affine": ((4, 3, 3), torch.float32),
        "strong_seen": ((4, 12, 20), torch.bool),
        "soft_full": ((4, 4, 3, 5), torch.float32),
    }
    assert all(value.is_contiguous() for value in found.values())
    with pytest.raises(ValueError, match=r"\['weak'\] are none of \['full', "):
        take(domain, extras=frozenset({"weak", "full"}))


def test_full_is_the_image_at_the_working_size(domain: Domain) -> None:
    jittered = VIEW.model_copy(update={"jitter": 0.5, "blur": 1.0})
    by_name = {item.name: item for item in domain.items}
    for view in (VIEW, jittered):
        for batch in take(domain, view):
            assert batch.full is not None
            assert batch.full_affine is not None
            for i, name in enumerate(batch.names):
                assert torch.equal(batch.full[i], as_float(load_resized(by_name[name].image, (24, 16))[0]))
                # Files are 32x24.
                expected = torch.tensor([[4 / 3, 0, 1 / 6], [0, 1.5, 0.25], [0, 0, 1]])
                assert torch.allclose(batch.full_affine[i], expected, atol=1e-6)


def test_strong_view_without_any_change_is_the_weak_view(domain: Domain) -> None:
    nothing = StrongSettings(operations=0, flip=0, cutout=0)
    larger = ViewSettings(size=(24, 16), crop=(30, 12), scale=(0.8, 1.6), flip=True)
    hidden = 0
    for batch in take(domain, larger, stop=8, strong=nothing):
        assert batch.strong is not None
        assert batch.label is not None
        assert torch.equal(batch.strong, batch.image)
        assert batch.strong_affine is not None
        assert batch.affine is not None
        assert torch.equal(batch.strong_affine, batch.affine)
        # The labels of the tests cover their whole images, so what is ignored is padding.
        assert batch.strong_seen is not None
        assert torch.equal(batch.strong_seen, batch.label != 255)
        hidden += int((~batch.strong_seen).sum())
    assert hidden > 100


def test_strong_views_have_colours_of_their_own(domain: Domain) -> None:
    jittered = VIEW.model_copy(update={"jitter": 0.5, "blur": 1.0})
    for usual, other in zip(take(domain), take(domain, jittered), strict=True):
        assert not torch.equal(usual.image, other.image)
        assert usual.strong is not None
        assert other.strong is not None
        assert torch.equal(usual.strong, other.strong)


FILE = (84, 60)


def coordinates(values: Tensor, axis: int) -> Tensor:
    """The coordinate in the file that the colours of (3, H, W) say."""
    return (values[0] - values[2] + 1) / 2 * 255 / (252 // FILE[axis])


@pytest.mark.parametrize("shape", [(50, 36), (90, 70)])
def test_affines_lead_to_the_same_place_of_the_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Every pixel of weak view, strong view and whole image shows its place in the file, to a fraction of a pixel."""
    for axis, name in enumerate(("x", "y")):
        level = 252 // FILE[axis] * np.arange(FILE[axis])
        plane = np.broadcast_to(level if axis == 0 else level[:, None], FILE[::-1])
        save(tmp_path / "images" / f"{name}.png", np.stack([plane, plane, 255 - plane], -1).astype(np.uint8))
    view = ViewSettings(size=(70, 66), crop=shape, scale=(0.8, 1.5), flip=True)
    settings = StrongSettings(colours=False, probability=1, operations=3, cutout=0.2)
    biases: dict[str, list[float]] = {"image": [], "strong": [], "full": []}
    for batch in take(domain_at(tmp_path, labelled=False), view, stop=12, strong=settings):
        found = tensors(batch)
        for kind in biases:
            affine = found["affine" if kind == "image" else f"{kind}_affine"].double()
            assert not torch.equal(affine[0], affine[1]) or kind == "full"
            for i, name in enumerate(batch.names):
                axis, values = "xy".index(name), found[kind][i].double()
                ys, xs = torch.meshgrid(*map(torch.arange, values.shape[1:]), indexing="ij")
                places = torch.einsum("ij,jyx->iyx", affine[i], torch.stack([xs, ys, torch.ones_like(xs)]).double())[:2]
                limits = torch.tensor(FILE)[:, None, None] - 1
                inner = ((places > 3) & (places < limits - 3)).all(0)
                if kind == "strong":
                    seen = np.pad(found["strong_seen"][i].numpy(), 2)
                    inner &= torch.from_numpy(np.lib.stride_tricks.sliding_window_view(seen, (5, 5)).all((2, 3)))
                off = (coordinates(values, axis) - places[axis])[inner]
                assert off.abs().max() < (1.3 if kind == "strong" else 0.5)
                biases[kind].append(float(off.mean()))
    for kind, bias in biases.items():
        assert np.abs(bias).max() < (0.06 if kind == "strong" else 0.03), kind
        assert len(bias) == 48


def test_seen_pixels_show_the_image_and_the_others_do_not(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.full((60, 80, 3), 255, np.uint8))
    view = ViewSettings(size=(40, 30), crop=(44, 24), scale=(0.8, 1.5), flip=True)
    settings = StrongSettings(colours=False, probability=1)
    shares = []
    for batch in take(domain_at(tmp_path, labelled=False), view, stop=10, strong=settings):
        assert batch.strong is not None
        assert batch.strong_seen is not None
        assert torch.equal(batch.strong_seen, (batch.strong > 0.998).all(1))
        shares += batch.strong_seen.float().mean((1, 2)).tolist()
    assert 0.6 < np.mean(shares) < 0.9


def test_soft_labels_belong_to_their_images(domain: Domain, soft: SoftLabels) -> None:
    for batch in take(domain, soft_labels=soft):
        assert batch.soft_full is not None
        for name, values in zip(batch.names, batch.soft_full, strict=True):
            assert np.array_equal(values.numpy(), soft.read(name).transpose(2, 0, 1))
        assert torch.allclose(batch.soft_full.sum(1), torch.ones(4, 3, 5), atol=1e-6)


def test_soft_labels_of_another_size_are_named(domain: Domain, soft: SoftLabels) -> None:
    odd = domain.items[2].name
    write_soft(soft.folder / "soft" / f"{odd}.npz", np.full((4, 5, 4), 0.25, np.float32))
    with pytest.raises(UserError, match=r"soft_full of \d+ is \(4, .*\), of \d+ \(4, ") as caught:
        take(domain, soft_labels=soft, batch_size=7)
    assert odd in caught.value.found
    (soft.folder / "soft" / f"{odd}.npz").unlink()
    with pytest.raises(UserError, match=f"{odd}.npz cannot be read"):
        take(domain, soft_labels=soft, batch_size=7)


# ---- a function of (seed, step)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_whatever_the_workers(domain: Domain, soft: SoftLabels, workers: int) -> None:
    torch.set_num_threads(2)
    try:
        own = take(domain, soft_labels=soft)
    finally:
        torch.set_num_threads(1)
    assert all(tensors(batch).keys() >= set(NEW) for batch in own)
    assert all(same(a, b) for a, b in zip(own, take(domain, soft_labels=soft, workers=workers), strict=True))


def test_a_function_of_seed_and_step(domain: Domain, soft: SoftLabels, tmp_path: Path) -> None:
    whole = take(domain, soft_labels=soft)
    assert all(same(a, b) for a, b in zip(whole[2:], take(domain, soft_labels=soft, start=2), strict=True))
    cached = take(domain, soft_labels=soft, cache=tmp_path / "cache", workers=1)
    assert all(same(a, b) for a, b in zip(whole, cached, strict=True))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(domain)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is left alone"
    other = take(domain, soft_labels=soft, seed=6)[0]
    assert not torch.equal(tensors(other)["strong_affine"], tensors(whole[0])["strong_affine"])


def test_each_image_and_each_step_has_a_strong_draw_of_its_own(tmp_path: Path) -> None:
    domain = domain_at(folders(tmp_path, 1), labelled=False)
    view = ViewSettings(size=(24, 16))
    masks = {m.numpy().tobytes() for b in take(domain, view, stop=8) for m in tensors(b)["strong_seen"]}
    assert len(masks) > 25


def test_shards_make_up_the_batch(domain: Domain, soft: SoftLabels) -> None:
    (whole,) = take(domain, stop=1, soft_labels=soft)
    for rank in (0, 1):
        (part,) = take(domain, stop=1, soft_labels=soft, shard=(rank, 2))
        assert part.names == whole.names[rank::2]
        for name, value in tensors(part).items():
            assert torch.equal(value, tensors(whole)[name][rank::2])


def test_a_crop_around_a_rare_class_has_its_strong_view_there(domain: Domain, tmp_path: Path) -> None:
    for item in domain.items:
        ids = np.full((16, 24), 255, np.uint8)
        ids[2, 3] = 1
        write_ids(tmp_path / "made" / "labels" / f"{item.name}.png", ids, CLASSES)
    labels = PseudoLabels(tmp_path / "made", None, False, (1, 1, 1, 1))
    view = ViewSettings(size=(24, 16), crop=(8, 6), scale=(1.0, 2.0), mine=1.0)
    nothing = StrongSettings(operations=0, cutout=0, flip=0)
    for batch in take(domain, view, pseudo_labels=labels, rare=(1,), strong=nothing):
        assert batch.strong is not None
        assert torch.equal(batch.strong, batch.image)
        assert batch.strong_affine is not None
        assert batch.affine is not None
        assert torch.equal(batch.strong_affine, batch.affine)
        assert batch.pseudo_label is not None
        assert (batch.pseudo_label == 1).any((1, 2)).all()


def test_every_tensor_moves(domain: Domain, soft: SoftLabels) -> None:
    (batch,) = take(domain, stop=1, soft_labels=soft)
    moved = tensors(batch.to(torch.device("meta")))
    assert moved.keys() == tensors(batch).keys() >= set(NEW)
    assert all(value.is_meta for value in moved.values())
