"""Maps to two dimensions: PCA against numpy's SVD, t-SNE and UMAP where their packages are installed, turning."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from segshift.engine.embed import EMBEDDINGS, check_embedding, heart, pca, pca_together, tsne, turned, umap
from segshift.errors import UserError


def cloud(points: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """A cloud of another extent along every axis, away from the origin, turned."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(dimensions, dimensions)))
    extents = np.arange(dimensions, 0, -1)
    return np.asarray((random.normal(size=(points, dimensions)) * extents) @ turn + 5)


def groups(per_group: int = 40, dimensions: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Three groups far from each other, with the group of each point."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), per_group)
    return 20 * np.eye(3, dimensions)[labels] + random.normal(size=(len(labels), dimensions)), labels


@pytest.mark.parametrize(("points", "dimensions"), [(50, 7), (7, 50), (30, 30), (40, 2), (3, 5)])
def test_pca_equals_the_singular_vectors(points: int, dimensions: int) -> None:
    features = cloud(points, dimensions)
    made = pca(features)
    centred = features - features.mean(axis=0)
    _, levels, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.where(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)] < 0, -1, 1)
    np.testing.assert_allclose(made.places, centred @ axes[:2].T * signs, atol=1e-8)
    assert made.explained == pytest.approx((levels[:2] ** 2).sum() / (levels**2).sum())


def test_pca_of_float32_is_computed_in_float64() -> None:
    features = cloud(60, 9).astype(np.float32) + 1e4
    np.testing.assert_allclose(pca(features).places, pca(features.astype(np.float64)).places, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (2, 2), (1, 1)])
def test_pca_of_next_to_nothing(shape: tuple[int, int]) -> None:
    made = pca(np.random.default_rng(0).normal(size=shape))
    assert made.places.shape == (shape[0], 2)
    assert np.isfinite(made.places).all()
    assert made.explained == pytest.approx(1)


def test_maps_together_have_the_same_axes() -> None:
    """Two clouds far apart, the second one a moved and shrunk first: its map is the first one's, shrunk."""
    first = cloud(60, 5)
    second = 0.5 * first + 100
    maps = pca_together([first, second])
    np.testing.assert_allclose(maps[1].places, 0.5 * maps[0].places, atol=1e-9)
    assert maps[0].explained == pytest.approx(maps[1].explained)
    alone = pca(first)
    np.testing.assert_allclose(maps[0].places, alone.places, atol=1e-9)
    assert maps[0].explained == pytest.approx(alone.explained)


def test_explained_is_each_map_s_own() -> None:
    """The second set varies along axes that the plane, which is the first one's, does not hold."""
    random = np.random.default_rng(0)
    wide, other = np.zeros((50, 4)), np.zeros((50, 4))
    wide[:, :2], other[:, 2:] = 10 * random.normal(size=(50, 2)), random.normal(size=(50, 2))
    maps = pca_together([wide, other])
    assert maps[0].explained == pytest.approx(1)
    assert maps[1].explained == pytest.approx(0, abs=1e-9)


def test_pca_of_one_place() -> None:
    made = pca(np.full((6, 5), 2.0))
    assert not made.places.any()
    assert made.explained == 1


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_groups_stay_apart_and_the_map_is_the_same_every_time(name: str) -> None:
    modules = {"tsne": "openTSNE", "umap": "umap"}
    if name in modules:
        pytest.importorskip(modules[name], reason=f"THE MAP {name} WAS NOT TRIED: it is an extra", exc_type=ImportError)
    features, labels = groups()
    made = EMBEDDINGS[name](features)
    assert made.places.shape == (120, 2)
    assert made.places.dtype == np.float64
    assert (made.explained is None) == (name != "pca")
    distance = np.linalg.norm(made.places[:, None] - made.places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    means = np.stack([made.places[labels == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(made.places[:, None] - means[None], axis=-1).argmin(axis=1)
    assert (nearest == labels).all()
    np.testing.assert_array_equal(EMBEDDINGS[name](features).places, made.places)


@pytest.mark.parametrize(("make", "module"), [(tsne, "openTSNE"), (umap, "umap")])
def test_a_missing_package_is_named_with_its_command(
    make: object, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: make(cloud(20, 3)), lambda: check_embedding("tsne" if module == "openTSNE" else "umap")):  # type: ignore[operator]
        with pytest.raises(UserError, match=module) as caught:
            call()
        assert "pip install" in caught.value.remedy
        assert "-c constraints.txt" in caught.value.remedy
        assert "--embed pca" in caught.value.remedy
    check_embedding("pca")


def test_unknown_maps_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'tsne'"):
        check_embedding("tnse")


def test_too_few_points_for_neighbours() -> None:
    pytest.importorskip("openTSNE")
    with pytest.raises(UserError, match="t-SNE of 7 points"):
        tsne(cloud(7, 3))
    assert tsne(cloud(8, 3)).places.shape == (8, 2)


def test_turning_finds_a_turned_and_mirrored_map() -> None:
    places = cloud(30, 2)
    for mirror in (1, -1):
        angle = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, mirror])
        back = turned(3 * places @ angle + 7, places)
        np.testing.assert_allclose(back, 3 * (places - places.mean(axis=0)), atol=1e-9)


def test_turning_changes_no_distance() -> None:
    places, like = cloud(30, 2), cloud(30, 2, seed=1)
    result = turned(places, like)
    for a, b in ((0, 1), (5, 29), (11, 3)):
        assert np.linalg.norm(result[a] - result[b]) == pytest.approx(np.linalg.norm(places[a] - places[b]))


def test_the_heart_is_in_the_larger_of_two_groups() -> None:
    random = np.random.default_rng(0)
    places = np.concatenate([random.normal(size=(40, 2)), 50 + 5 * random.normal(size=(20, 2))])
    assert np.linalg.norm(heart(places)) < 1
    assert heart(np.array([[4.0, 5.0]])).tolist() == [4, 5]
    assert heart(np.zeros((3, 2))).tolist() == [0, 0]
