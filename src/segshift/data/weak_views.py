"""Weak labels as a view shows their image: tags of the classes in it, discs around the points in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from segshift.data.views import Draw, ViewSettings, cut_map
from segshift.types import IGNORE
from segshift.weak.label import WeakLabel

PRESENT, ABSENT, UNKNOWN = 1.0, 0.0, -1.0
"""Values of a tag."""


def shown(view: ViewSettings, chance: Draw) -> Bool[np.ndarray, "H W"]:
    """Where a view shows its image and no padding."""
    return cut_map(np.ones((view.size[1], view.size[0]), np.bool_), view, chance, outside=0)


def shows_all(view: ViewSettings, chance: Draw) -> bool:
    """Whether a view cuts nothing off its image."""
    return all(
        first <= 0 and first + part >= whole
        for first, part, whole in zip(chance.offset, view.shape, chance.scaled, strict=True)
    )


def place_points(
    label: WeakLabel, affine: Float32[np.ndarray, "3 3"], seen: Bool[np.ndarray, "H W"]
) -> list[tuple[float, float, bool]]:
    """Where a view has the points of a label: x, y in pixels of the view, and whether the view shows that pixel.

    Args:
        label: points in pixels of the file's image.
        affine: pixel centre of the view → pixel centre of the file's image.
        seen: where the view shows the image.
    """
    back = np.linalg.inv(affine.astype(np.float64))
    places = []
    for point in label.points:
        x, y, _ = (back @ [point.x, point.y, 1.0]).tolist()
        column, row = (int(np.floor(place + 0.5)) for place in (x, y))
        inside = 0 <= row < seen.shape[0] and 0 <= column < seen.shape[1]
        places.append((x, y, inside and bool(seen[row, column])))
    return places


def tags_of(
    label: WeakLabel | None, names: Sequence[str], *, points_complete: bool, whole: bool, visible: Sequence[bool]
) -> Float32[np.ndarray, " K"]:
    """What a label says of each class in a view: present, absent or unknown.

    A class with a tag or a point is present; the others are absent where the label names all classes, and unknown
    otherwise. A crop may have cut a class away: in it only classes with a point inside are known to be present, while
    absent ones stay absent.

    Args:
        label: with class names of `names`; None: the image has none.
        names: of the K classes.
        points_complete: an image with points and without tags has a point on every class that it shows.
        whole: the view shows the whole image.
        visible: for each point of the label, whether it lies in the view.
    """
    if label is None:
        return np.full(len(names), UNKNOWN, np.float32)
    complete = label.says_absent or (points_complete and label.tags is None and bool(label.points))
    tags = np.full(len(names), ABSENT if complete else UNKNOWN, np.float32)
    for name in label.present:
        tags[names.index(name)] = PRESENT if whole else UNKNOWN
    for point, inside in zip(label.points, visible, strict=True):
        if inside:
            tags[names.index(point.name)] = PRESENT
    return tags


def _span(middle: float, pixel: int, reach: float, side: int) -> slice:
    """The pixels of a side, 0 to `side`, that a disc may hold: its middle's own, and those within its reach."""
    first, last = min(pixel, int(np.ceil(middle - reach))), max(pixel, int(np.floor(middle + reach)))
    return slice(max(0, first), max(0, min(side, last + 1)))


def draw_discs(
    ids: Sequence[int],
    places: Sequence[tuple[float, float, bool]],
    seen: Bool[np.ndarray, "H W"],
    radius: float,
    scale: tuple[float, float],
) -> Int64[np.ndarray, "H W"]:
    """Train ids in discs around points, `IGNORE` elsewhere; where discs meet, the nearer point's (the first's of two
    that are equally near).

    A disc also holds the pixel that its point lies in, however small the radius. Discs of points beside the view reach
    into it, as if they had been drawn on the whole image; they never reach into padding.

    Args:
        ids: train id of each point.
        places: of each point in the view, as `place_points` gives them.
        seen: where the view shows the image.
        radius: in pixels of the working size.
        scale: pixels of the view for one of the working size, in x and y: a view that shows its image larger has
            larger discs.
    """
    discs = np.full(seen.shape, IGNORE, np.int64)
    nearest = np.full(seen.shape, np.inf)
    height, width = seen.shape
    reach_x, reach_y = radius * scale[0], radius * scale[1]
    for train_id, (x, y, _) in zip(ids, places, strict=True):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        part = _span(y, row, reach_y, height), _span(x, column, reach_x, width)
        ys, xs = np.arange(height)[part[0], None], np.arange(width)[None, part[1]]
        distance = ((xs - x) / scale[0]) ** 2 + ((ys - y) / scale[1]) ** 2
        inside = (distance <= radius**2) | ((xs == column) & (ys == row))
        nearer = inside & seen[part] & (distance < nearest[part])
        discs[part][nearer] = train_id
        nearest[part][nearer] = distance[nearer]
    return discs


@dataclass(frozen=True)
class WeakViews:
    """Weak labels of a domain's images, and how batches show them.

    Attributes:
        labels: by the items' names, as `segshift.weak.matching.match` gives them; images without one are unlabelled.
        point_radius: of the disc around a point, in pixels of the working size.
        points_complete: an image with points and without tags has a point on every class that it shows.
    """

    labels: Mapping[str, WeakLabel]
    point_radius: float = 4.0
    points_complete: bool = False

    def fields(
        self,
        name: str,
        wanted: Collection[str],
        names: Sequence[str],
        view: ViewSettings,
        chance: Draw,
        affine: Float32[np.ndarray, "3 3"],
    ) -> dict[str, np.ndarray]:
        """Of "tags" and "points", the fields of a batch that are wanted, for one view of an image.

        Args:
            name: of the item.
            wanted: names of fields.
            names: of the K classes.
            view: the settings of the view.
            chance: its draw.
            affine: its matrix.
        """
        label, seen = self.labels.get(name), shown(view, chance)
        places = place_points(label, affine, seen) if label is not None else []
        fields: dict[str, np.ndarray] = {}
        if "tags" in wanted:
            whole, visible = shows_all(view, chance), [inside for _, _, inside in places]
            fields["tags"] = tags_of(label, names, points_complete=self.points_complete, whole=whole, visible=visible)
        if "points" in wanted:
            ids = [names.index(point.name) for point in label.points] if label is not None else []
            scale = chance.scaled[0] / view.size[0], chance.scaled[1] / view.size[1]
            fields["points"] = draw_discs(ids, places, seen, self.point_radius, scale)
        return fields
