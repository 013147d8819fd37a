"""Label Studio's JSON and JSON-MIN: choices and taxonomy are tags, keypoint labels are points (in percent).

Format: labelstud.io, "Label Studio JSON format of annotated tasks" (guide/task_format), tags KeyPointLabels, Choices,
Taxonomy. Coordinates are percent of the image's sides, measured from its upper left corner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from segshift.artefacts.store import write_json
from segshift.errors import UserError
from segshift.weak.formats.base import Content, Entry, at, parse_json, point
from segshift.weak.label import Point, WeakLabel

NAME = "label-studio"
LOST: set[str] = set()
"""What the format cannot hold; what it has no field for goes into a task's `meta`, which Label Studio keeps."""

ROUNDING = 1e-6
"""Percent by which a click on an edge may lie outside: its place is a quotient."""

UNPLACED = "keypointlabels without a place or class"

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_IMAGE_KEYS = ("image", "img", "picture", "photo", "url")
_TAG_KINDS = ("choices", "taxonomy")
_MIN_KEYS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}


def recognises(value: Any) -> bool:
    """Whether a JSON value looks like an export of Label Studio."""
    tasks = value if isinstance(value, list) else [value]
    first = next((task for task in tasks if isinstance(task, dict)), None)
    if first is None:
        return False
    return ("data" in first and ("annotations" in first or "completions" in first)) or "annotation_id" in first


def read(path: Path) -> Content:
    """The entries of an export, one for each annotation that was not skipped; of JSON-MIN, one for each record.

    Raises:
        UserError: naming the task.
    """
    value = parse_json(path)
    tasks = value if isinstance(value, list) else [value]
    if all(isinstance(task, dict) and "annotation_id" in task for task in tasks) and tasks:
        return _read_min(path, tasks)
    others: dict[str, int] = {}
    entries = []
    for index, task in enumerate(tasks):
        where = f"{path}, task {index + 1}"
        if not isinstance(task, dict):
            raise UserError(f"{where} is no object", "a task with `data` and `annotations`", "export as JSON")
        entries += list(_of_task(task, f"{where} (id {task['id']})" if "id" in task else where, others))
    return Content(path, entries, notes=_unread(others))


def _unread(others: Mapping[str, int]) -> list[str]:
    return [f"{number} regions of kind {kind} are not read" for kind, number in others.items()]


def _of_task(task: Mapping[str, Any], where: str, others: dict[str, int]) -> Iterator[Entry]:
    data = at(task, "data", dict, where, "an object with the image's address")
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise UserError(f"{where}: no annotations", "a list `annotations`", "export as JSON, not as the tasks alone")
    image, uploaded = image_name(_address(data, where), where)
    meta = task.get("meta") if isinstance(task.get("meta"), dict) else {}
    said = meta.get("segshift") if isinstance(meta, dict) else None
    ours: Mapping[str, Any] = said if isinstance(said, dict) else {}
    for annotation in annotations:
        if not isinstance(annotation, dict):
            raise UserError(f"{where}: an annotation is no object", "an object with `result`", "export it again")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        tags, points, size = _result(at(annotation, "result", list, where, "a list of results"), where, others)
        yield Entry(
            image, where, tags, ours.get("complete") is not False, points, size,
            who=_who(annotation.get("completed_by")) or _text(ours.get("who")),
            when=_text(annotation.get("updated_at")) or _text(annotation.get("created_at")) or _text(ours.get("when")),
            uploaded=uploaded,
        )  # fmt: skip


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _who(value: object) -> str | None:
    """The annotator, whom exports name by number, by e-mail, or by an object with one."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    return None if value is None or isinstance(value, bool) else str(value)


def _address(data: Mapping[str, Any], where: str) -> str:
    """What a task's data says of its image."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    named = [texts[key] for key in _IMAGE_KEYS if key in texts]
    found = named[:1] or [text for text in texts.values() if _is_of_image(text)]
    if len(found) != 1:
        raise UserError(
            f"{where}: data has {'several addresses' if found else 'no address'} of an image ({', '.join(data)})",
            f"one key, called {', '.join(_IMAGE_KEYS)} where there are more",
            "rename the key in the file",
        )
    return found[0]


def _is_of_image(text: str) -> bool:
    try:
        return _path_of(text).lower().endswith(_SUFFIXES)
    except ValueError:  # no address at all, such as "http://[x"
        return False


def _path_of(address: str) -> str:
    split = urlsplit(address)
    local = parse_qs(split.query).get("d")
    return local[0] if local else unquote(split.path)


def image_name(address: str, where: str) -> tuple[str, bool]:
    """The path in a task's address, and whether an upload may have changed the file's name.

    "/data/upload/1/0a1b2c3d-name.jpg" is an upload; "/data/local-files/?d=folder/name.jpg" is a path.

    Raises:
        UserError: no path in it.
    """
    try:
        path = _path_of(address).replace("\\", "/").strip("/")
    except ValueError as error:
        raise UserError(f"{where}: the image's address is {address!r}", "a path or an address", "mend it") from error
    if not path or address.startswith("data:"):
        raise UserError(f"{where}: the image's address is {address[:60]!r}", "a path or an address", "mend it")
    uploaded = "/upload/" in f"/{path}"
    return (path.rpartition("/")[2] if uploaded else path), uploaded


def _result(
    results: Sequence[Any], where: str, others: dict[str, int]
) -> tuple[tuple[str, ...] | None, tuple[Point, ...], tuple[int, int] | None]:
    """Tags, points and image size of one annotation; kinds of regions that are neither are counted in `others`."""
    tags: list[str] | None = None
    points: list[Point] = []
    size: tuple[int, int] | None = None
    for number, result in enumerate(results, start=1):
        here = f"{where}, result {number}"
        if not isinstance(result, dict):
            raise UserError(f"{here} is no object", "an object with `type` and `value`", "export it again")
        kind = result.get("type")
        if kind in _TAG_KINDS:
            value = at(result, "value", dict, here, f"an object with `{kind}`")
            tags = (tags or []) + _names(value.get(kind), kind, here)
        elif kind == "keypointlabels":
            value = at(result, "value", dict, here, "an object with x, y and `keypointlabels`")
            if not {"x", "y"} & set(value) or value.get("keypointlabels", value.get("labels")) == []:
                # A prompt for a model that made a mask, or a point whose class was taken away again.
                others[UNPLACED] = others.get(UNPLACED, 0) + 1
                continue
            size = _size(result, here, size)
            points.append(_keypoint(value, size, here))
        else:
            others[str(kind)] = others.get(str(kind), 0) + 1
    return None if tags is None else tuple(dict.fromkeys(tags)), tuple(points), size


def _names(value: object, kind: str, where: str) -> list[str]:
    """Classes from a list of choices, or from a taxonomy's list of paths, of which the last part is the class."""
    wrong = UserError(f"{where}: {kind} is {str(value)[:40]}", "a list of classes", "export the file again")
    if not isinstance(value, list):
        raise wrong
    if kind == "taxonomy":
        if not all(isinstance(entry, list) and entry for entry in value):
            raise wrong
        value = [entry[-1] for entry in value]
    if not all(isinstance(name, str) and name.strip() for name in value):
        raise wrong
    return [name.strip() for name in value]


def _size(result: Mapping[str, Any], where: str, known: tuple[int, int] | None) -> tuple[int, int]:
    """(w, h) of the image as a keypoint says it, which percent need."""
    what = "the image's side in pixels: coordinates are percent of it"
    sides = [at(result, key, int, where, what) for key in ("original_width", "original_height")]
    size = (sides[0], sides[1])
    if result.get("image_rotation"):
        raise UserError(
            f"{where}: the image was turned by {result['image_rotation']} degrees", "0", "annotate it as it is stored"
        )
    if min(size) < 1 or (known is not None and size != known):
        raise UserError(f"{where}: original size {size[0]}x{size[1]}", "one size for the image", "export it again")
    return size


def _keypoint(value: Mapping[str, Any], size: tuple[int, int], where: str) -> Point:
    x, y = (at(value, key, float, where, "percent of the image's side, 0 to 100") for key in ("x", "y"))
    names = _names(value.get("keypointlabels", value.get("labels")), "keypointlabels", where)
    if len(names) != 1:
        raise UserError(f"{where}: a point of {len(names)} classes", "one class a point", "mend it in Label Studio")
    if not (-ROUNDING <= x <= 100 + ROUNDING and -ROUNDING <= y <= 100 + ROUNDING):
        raise UserError(f"{where}: a point at {x:g} %, {y:g} %", "percent, 0 to 100", "export the file again")
    x, y = max(x, 0.0), max(y, 0.0)
    # A click on the right or lower edge itself is of the last pixel.
    return point(min(x / 100 * size[0], size[0] - 1e-3) - 0.5, min(y / 100 * size[1], size[1] - 1e-3) - 0.5, names[0])


def _read_min(path: Path, tasks: Sequence[Mapping[str, Any]]) -> Content:
    """JSON-MIN: a record an annotation, whose keys are the names of the controls.

    A single choice is a bare text there, and cannot be told from the task's data unless the same key holds a list of
    choices elsewhere in the file.
    """
    controls = {key for task in tasks for key, value in task.items() if isinstance(value, dict) and "choices" in value}
    entries = []
    others: dict[str, int] = {}
    for index, task in enumerate(tasks, start=1):
        where = f"{path}, record {index}"
        data = {key: value for key, value in task.items() if key not in _MIN_KEYS | controls}
        image, uploaded = image_name(_address(data, where), where)
        results: list[dict[str, Any]] = []
        for key, value in task.items():
            results += _min_results(key, value, key in controls)
        tags, points, size = _result(results, where, others)
        when = _text(task.get("updated_at")) or _text(task.get("created_at"))
        entries.append(
            Entry(image, where, tags, True, points, size, _who(task.get("annotator")), when, uploaded=uploaded)
        )
    return Content(path, entries, notes=_unread(others))


def _min_results(key: str, value: Any, control: bool) -> list[dict[str, Any]]:
    """The results, as JSON has them, that a key of a JSON-MIN record stands for."""
    if control:
        value = value if isinstance(value, dict) else {"choices": [value]}
        return [{"type": "choices", "value": value}]
    if key in _MIN_KEYS or not isinstance(value, list) or not value:
        return []
    if all(isinstance(entry, list) for entry in value):
        return [{"type": "taxonomy", "value": {"taxonomy": value}}]
    sides = ("original_width", "original_height")
    regions = [(_kind_of(entry), entry) for entry in value if isinstance(entry, dict)]
    return [{"type": kind, "value": r, **{k: r[k] for k in sides if k in r}} for kind, r in regions if kind]


def _kind_of(region: Mapping[str, Any]) -> str | None:
    """The kind of a region of JSON-MIN, its key that ends in "labels" (rectanglelabels); None: it is no region."""
    return next((key for key in sorted(region, key="keypointlabels".__ne__) if key.endswith("labels")), None)


def write(labels: Sequence[WeakLabel], path: Path, classes: Sequence[str]) -> None:
    """Write tasks with one annotation each, to import into a project whose storage serves the image folder.

    Labels must have their `size`.
    """
    del classes
    tasks = []
    for number, label in enumerate(labels, start=1):
        meta = {"complete": None if label.complete else False, "who": label.who, "when": label.when}
        meta = {key: value for key, value in meta.items() if value is not None}
        annotation: dict[str, Any] = {"result": list(_written(label))}
        if label.when is not None:
            annotation["created_at"] = label.when
        address = f"/data/local-files/?d={quote(label.image, errors='surrogateescape')}"
        task: dict[str, Any] = {"id": number, "data": {"image": address}, "annotations": [annotation]}
        tasks.append(task | ({"meta": {"segshift": meta}} if meta else {}))
    write_json(path, tasks)


def _written(label: WeakLabel) -> Iterator[dict[str, Any]]:
    """The results of one annotation."""
    if label.tags is not None:
        value = {"choices": list(label.tags)}
        yield {"id": "tags", "type": "choices", "from_name": "tags", "to_name": "image", "value": value}
    if label.size is None:
        return
    width, height = label.size
    for number, (x, y, name) in enumerate(label.points):
        yield {
            "id": f"p{number}",
            "type": "keypointlabels",
            "from_name": "points",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": (x + 0.5) / width * 100,
                "y": (y + 0.5) / height * 100,
                "width": 0.5,
                "keypointlabels": [name],
            },
        }
