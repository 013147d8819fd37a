"""COCO's JSON: an annotation's category is a tag; a visible keypoint, or a pixel inside the mask, is a point.

Format: cocodataset.org, "Data format". What an annotation becomes:
- keypoints: a point of the category at each keypoint that is labelled and visible (v = 2), and nothing else; COCO's
  keypoints are pixel indices, so whole coordinates are pixel centres, as here. Where none is visible (people far away
  or in a crowd have zeros for all of them) the annotation is taken as if it had none:
- segmentation (polygons or run lengths): a tag, and a point at the pixel deepest inside (`masks.inner_pixel`);
- a box alone, or nothing: a tag; the middle of a box may lie beside the object. Annotations of a category and nothing
  else are how Datumaro and CVAT write image labels in COCO (`labels`), and how tags are exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segshift.artefacts.store import write_json
from segshift.errors import UserError
from segshift.weak.formats.base import Content, Entry, at, parse_json, point
from segshift.weak.label import FARTHEST, Point, WeakLabel

NAME = "coco"
MOST_PIXELS = 1 << 30
"""Of an image; with more, its size is a mistake."""
LOST = {"who", "when", "positive-only", "none tagged"}


def recognises(value: Any) -> bool:
    """Whether a JSON value looks like COCO's."""
    return isinstance(value, dict) and "images" in value and "annotations" in value


def read(path: Path) -> Content:
    """The entries of a file, one for each image that has annotations.

    Raises:
        UserError: naming the annotation.
    """
    value = parse_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no object", "COCO's `images`, `annotations`, `categories`", "export it again")
    images = _images(at(value, "images", list, str(path), "a list of images"), path)
    names = _categories(at(value, "categories", list, str(path), "a list of categories"), path)
    annotations = at(value, "annotations", list, str(path), "a list of annotations")
    tags: dict[int, list[str]] = {}
    points: dict[int, list[Point]] = {}
    for index, annotation in enumerate(annotations):
        where = f"{path}, annotations[{index}]"
        image = at(annotation, "image_id", int, where, "the id of an image")
        category = at(annotation, "category_id", int, where, "the id of a category")
        for known, number, kind in ((images, image, "image"), (names, category, "category")):
            if number not in known:
                raise UserError(f"{where}: no {kind} has id {number}", "an id of the file", "export the file again")
        visible = _keypoints(annotation["keypoints"], names[category], where) if annotation.get("keypoints") else []
        made = visible or _inner_point(annotation, names[category], images[image][2], where)
        points.setdefault(image, []).extend(made)
        if not visible:
            tags.setdefault(image, []).append(names[category])
    entries = []
    for number, (name, where, size) in images.items():
        if tags.get(number) or points.get(number):
            tagged = tuple(dict.fromkeys(tags[number])) if number in tags else None
            entries.append(Entry(name, where, tagged, True, tuple(dict.fromkeys(points.get(number, ()))), size))
    return Content(path, entries, tuple(names.values()))


_Image = tuple[str, str, tuple[int, int] | None]


def _images(listed: Sequence[Any], path: Path) -> dict[int, _Image]:
    """Name, place in the file and (w, h) of the images by id."""
    images: dict[int, _Image] = {}
    for index, image in enumerate(listed):
        where = f"{path}, images[{index}]"
        number = at(image, "id", int, where, "a number")
        name = at(image, "file_name", str, where, "the image's path")
        if number in images:
            raise UserError(f"{where}: id {number} is taken by {images[number][0]}", "an id an image", "mend the ids")
        size = None
        if image.get("width") is not None or image.get("height") is not None:
            width, height = (at(image, side, int, where, "pixels of the image's side") for side in ("width", "height"))
            # A mask of the image is held in memory.
            if min(width, height) < 1 or max(width, height) > FARTHEST or width * height > MOST_PIXELS:
                raise UserError(f"{where}: size {width}x{height}", "pixels of the image's sides", "mend the file")
            size = (width, height)
        images[number] = (name, where, size)
    return images


def _categories(listed: Sequence[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, category in enumerate(listed):
        where = f"{path}, categories[{index}]"
        number = at(category, "id", int, where, "a number")
        if number in names:
            raise UserError(f"{where}: id {number} is taken by {names[number]}", "an id a category", "mend the ids")
        names[number] = at(category, "name", str, where, "the name of a class").strip()
    return names


def _inner_point(annotation: Mapping[str, Any], name: str, size: tuple[int, int] | None, where: str) -> list[Point]:
    """The pixel deepest inside an annotation's mask; none where it has no mask."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        # Some tools write a polygon without the list around it, and one without corners for a box.
        flat = all(isinstance(value, int | float) for value in segmentation)
        segmentation = [polygon for polygon in ([segmentation] if flat else segmentation) if polygon != []]
    if not segmentation:
        return []
    if size is None:
        raise UserError(f"{where}: a mask of an image without width and height", "the image's size", "export it again")
    inside = _inside(segmentation, size, where)
    return [] if inside is None else [point(*inside, name)]


def _keypoints(values: Any, name: str, where: str) -> list[Point]:
    fits = isinstance(values, list) and len(values) % 3 == 0
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in values):
        raise UserError(
            f"{where}: keypoints are no x, y, v, x, y, v, ...", "three numbers a keypoint", "export it again"
        )
    triples = zip(values[::3], values[1::3], values[2::3], strict=True)
    return [point(x, y, name) for x, y, visible in triples if visible == 2]


def _inside(segmentation: Any, size: tuple[int, int], where: str) -> tuple[int, int] | None:
    # numpy comes with the first mask; the store and the other formats do without.
    from segshift.weak.formats import masks

    try:
        if isinstance(segmentation, dict):
            height, width = (int(side) for side in segmentation["size"])
            if (width, height) != size:
                raise ValueError(f"a mask of {width}x{height} pixels in an image of {size[0]}x{size[1]}")
            counts = segmentation["counts"]
            runs = masks.counts_of(counts) if isinstance(counts, str) else [int(count) for count in counts]
            mask = masks.of_runs(runs, width, height)
        else:
            polygons = [[float(value) for value in polygon] for polygon in segmentation]
            if any(len(polygon) % 2 or len(polygon) < 6 for polygon in polygons):
                raise ValueError("a polygon needs three corners and more, x and y of each")
            if not all(abs(value) < 1e6 for polygon in polygons for value in polygon):
                raise ValueError("a corner is far outside the image")
            mask = masks.of_polygons(polygons, *size)
    except (ValueError, TypeError, KeyError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: segmentation: {found}", "polygons or run lengths", "export it again") from error
    return masks.inner_pixel(mask)


def write(labels: Sequence[WeakLabel], path: Path, classes: Sequence[str]) -> None:
    """Write tags as annotations of a category alone, points as annotations with one keypoint.

    Labels must have their `size`.
    """
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, label in enumerate(labels, start=1):
        width, height = label.size or (0, 0)
        images.append({"id": number, "file_name": label.image, "width": width, "height": height})
        made: list[dict[str, Any]] = [{"category_id": numbers[tag]} for tag in label.tags or ()]
        for x, y, name in label.points:
            place = {"keypoints": [x, y, 2], "num_keypoints": 1, "bbox": [x, y, 0, 0], "area": 0, "iscrowd": 0}
            made.append({"category_id": numbers[name], **place})
        annotations += [{"id": len(annotations) + i, "image_id": number, **one} for i, one in enumerate(made, start=1)]
    categories = [
        {"id": number, "name": name, "supercategory": "", "keypoints": ["point"], "skeleton": []}
        for name, number in numbers.items()
    ]
    info = {"description": "weak labels exported by segshift"}
    write_json(path, {"info": info, "images": images, "annotations": annotations, "categories": categories})
