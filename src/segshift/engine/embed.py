"""Maps of points from many dimensions to two: PCA, and t-SNE and UMAP where their packages are installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from segshift.errors import UserError, gist, nearest

PERPLEXITY = 30.0
"""Neighbours that t-SNE looks at: the value of its authors' examples, within their 5 to 50 (van der Maaten & Hinton,
JMLR 2008)."""

NEIGHBOURS, DISTANCE = 15, 0.1
"""n_neighbors and min_dist of UMAP: its package's defaults."""


@dataclass(frozen=True)
class Map:
    """Points on a plane.

    Attributes:
        places: (N, 2).
        explained: share of the points' variance that lies in the plane; None where the map is not linear.
    """

    places: Float[np.ndarray, "N 2"]
    explained: float | None = None


def pca(features: Float[np.ndarray, "N D"]) -> Map:
    """The two directions of largest variance. Of the two signs of each, the one whose largest coefficient is positive.

    Args:
        features: (N, D), N at least 1.
    """
    return pca_together([features])[0]


def pca_together(parts: Sequence[Float[np.ndarray, "N D"]]) -> list[Map]:
    """`pca` of several sets of features with the same axes: the two directions of largest variance within them.

    Each set is moved to its own mean first, so that the axes are not spent on how far the sets lie apart.

    Args:
        parts: each (N, D), N at least 1, all of the same D.

    Returns:
        The map of each; `explained` is of its own variance.
    """
    moved = [part.astype(np.float64) - part.mean(axis=0, dtype=np.float64) for part in parts]
    centred = np.concatenate(moved)
    points, dimensions = centred.shape
    # The eigenvectors of the smaller of two matrices of products: at D = 2048 several times faster than an SVD.
    if dimensions <= points:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, ::-1][:, :2]
    else:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ vectors[:, ::-1][:, :2]
        axes = axes / np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    maps = []
    for part in moved:
        places = np.zeros((len(part), 2))
        places[:, : axes.shape[1]] = part @ axes
        total = float(np.square(part).sum())
        maps.append(Map(places, min(1.0, float(np.square(places).sum()) / total) if total > 0 else 1.0))
    return maps


def tsne(features: Float[np.ndarray, "N D"]) -> Map:
    """t-SNE by openTSNE (extra `embed`), started from the PCA, with a fixed seed on one thread.

    Raises:
        UserError: openTSNE is not installed, or there are too few points.
    """
    package: Any = _package("tsne")
    if len(features) < 8:
        raise UserError(f"t-SNE of {len(features)} points", "8 at least", "use the map pca")
    made = package.TSNE(
        perplexity=min(PERPLEXITY, (len(features) - 2) / 3),
        initialization="pca",
        neighbors="exact",
        n_jobs=1,
        random_state=0,
    ).fit(features.astype(np.float64))
    return Map(np.asarray(made, np.float64))


def umap(features: Float[np.ndarray, "N D"]) -> Map:
    """UMAP by umap-learn (extra `umap`), with a fixed seed on one thread.

    Raises:
        UserError: umap-learn is not installed, or there are too few points.
    """
    package: Any = _package("umap")
    if len(features) < 8:
        raise UserError(f"UMAP of {len(features)} points", "8 at least", "use the map pca")
    made = package.UMAP(
        n_neighbors=min(NEIGHBOURS, len(features) - 1), min_dist=DISTANCE, random_state=0, n_jobs=1
    ).fit_transform(features.astype(np.float32))
    return Map(np.asarray(made, np.float64))


EMBEDDINGS: Mapping[str, Callable[[Float[np.ndarray, "N D"]], Map]] = {"pca": pca, "tsne": tsne, "umap": umap}


def check_embedding(name: str) -> None:
    """Refuse a map that does not exist or whose package is missing.

    Raises:
        UserError: it names the remedy.
    """
    if name not in EMBEDDINGS:
        raise UserError(f"unknown map {name!r}; {nearest(name, EMBEDDINGS)}", remedy="choose --embed pca, tsne or umap")
    if name in PACKAGES:
        _package(name)


PACKAGES: Mapping[str, tuple[str, str]] = {"tsne": ("openTSNE", "openTSNE>=1.0"), "umap": ("umap", "umap-learn>=0.5")}
"""What a map needs: the module, and what pip calls it (pyproject.toml: extras `embed` and `umap`)."""


def _package(name: str) -> Any:
    module, wanted = PACKAGES[name]
    try:
        with warnings.catch_warnings():
            # umap warns of TensorFlow, which only a part of it that is not used here needs.
            warnings.simplefilter("ignore", ImportWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the map {name} needs {module}, which cannot be imported here: {gist(error)}",
            wanted,
            f'pip install "{wanted}" -c constraints.txt (the file keeps pip from replacing torch), or --embed pca',
        ) from error


def turned(places: Float[np.ndarray, "N 2"], like: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    """A map moved to the origin, turned and mirrored so that its points lie as much as they can like those of another.

    No distance changes. Source: orthogonal Procrustes problem (Schönemann, Psychometrika 1966).
    """
    centred = places - places.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (like - like.mean(axis=0)))
    result: Float[np.ndarray, "N 2"] = centred @ (left @ right)
    return result


def heart(places: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " 2"]:
    """Where points lie densest: the one with the nearest quarter of the others closest around it.

    A name there lies on the points that it names, also where they fall into several groups.
    """
    near = max(1, len(places) // 4)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    radius = np.partition(distance, min(near, len(places) - 1), axis=1)[:, min(near, len(places) - 1)]
    densest: Float[np.ndarray, " 2"] = places[int(radius.argmin())]
    return densest
