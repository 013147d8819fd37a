"""Files of weak labels for tests: a folder of images, stores, and exports as other programs write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segshift.data.classes import make_classes
from segshift.weak.store import Point, WeakLabel, WeakStore
from workbench import Outcome, segshift

NAMES = ("road", "sky", "car", "person")
CLASSES = make_classes(NAMES)
WIDTH, HEIGHT = 64, 48
PATHS = ("a.jpg", "b.jpg", "drive/0001.png", "drive/0002.png")


@dataclass(frozen=True)
class Place:
    """A folder with `images`, `classes.json` and room for more."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def classes(self) -> Path:
        return self.root / "classes.json"

    @property
    def out(self) -> Path:
        return self.root / "weak.jsonl"

    @property
    def store(self) -> WeakStore:
        return WeakStore(self.out)

    def put(self, name: str, content: object) -> Path:
        """A file: text and bytes as they are, all else as JSON."""
        path = self.root / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def taking(self, *more: str | Path) -> list[str | Path]:
        """The arguments of `labels import` behind the file."""
        return ["--images", self.images, "--classes", self.classes, "--out", self.out, *more]


def take(place: Place, name: str, content: object, *more: str) -> Outcome:
    """Import a file, whose format is to be recognised by its content; the outcome, which must be well."""
    done = segshift("labels", "import", place.put(name, content), *place.taking(*more))
    assert done.code == 0, done
    return done


def make_place(root: Path) -> Place:
    place = Place(root)
    for path in PATHS:
        save(place.images / path)
    place.put("classes.json", {"classes": list(NAMES)})
    return place


def save(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int | None = None) -> Path:
    """An image file of (w, h), with a camera's orientation flag where asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    exif = image.getexif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def label(
    image: str = "a.jpg", tags: tuple[str, ...] | None = ("road",), *points: tuple[float, float, str]
) -> WeakLabel:
    return WeakLabel(image, tags, points=tuple(Point(*point) for point in points))


# ---- Label Studio


def choices(*names: str) -> dict[str, Any]:
    return {"type": "choices", "from_name": "tags", "to_name": "image", "value": {"choices": list(names)}}


def keypoint(x: float, y: float, name: str, **changed: Any) -> dict[str, Any]:
    """A keypoint at percent of the sides."""
    return {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.6, "keypointlabels": [name]},
        "id": "hqudA4A3U4",
        "from_name": "kp",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    } | changed


def task(image: str, *results: Any, **annotation: Any) -> dict[str, Any]:
    made = {"id": 1, "result": list(results), "was_cancelled": False, "completed_by": 10} | annotation
    return {"id": 7, "data": {"image": image}, "annotations": [made], "predictions": [], "project": 83}


# ---- CVAT

META = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><name>weak</name><size>2</size><mode>annotation</mode>
    <labels>
      <label><name>road</name><attributes><attribute><name>wet</name></attribute></attributes></label>
      <label><name>sky</name><attributes></attributes></label>
      <label><name>car</name><attributes></attributes></label>
      <label><name>person</name><attributes></attributes></label>
    </labels></task><dumped>2018-09-25 11:38:28.799808+03:00</dumped></meta>
"""


def cvat(*images: str, meta: str = META) -> str:
    return meta + "".join(images) + "</annotations>\n"


def cvat_image(inside: str, name: str = "a.jpg", width: object = WIDTH, height: object = HEIGHT) -> str:
    return f'  <image id="0" name="{name}" width="{width}" height="{height}">\n{inside}\n  </image>\n'


# ---- COCO


def coco(*annotations: dict[str, Any], names: tuple[str, ...] = NAMES, **changed: Any) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": 5, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": i, "image_id": 5} | one for i, one in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(names, start=1)],
    } | changed
