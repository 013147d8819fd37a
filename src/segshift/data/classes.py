"""The class list of a task: read from a file, coloured, and related to Cityscapes' classes."""

from __future__ import annotations

import colorsys
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segshift.artefacts.plain_yaml import parse_yaml
from segshift.errors import UserError, nearest
from segshift.types import IGNORE, ClassSet

Colour = tuple[int, int, int]

CITYSCAPES_COLOURS: Mapping[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Names and colours of Cityscapes' 19 evaluated classes in train-id order (cityscapesScripts, helpers/labels.py)."""

CITYSCAPES_19: tuple[str, ...] = tuple(CITYSCAPES_COLOURS)
"""The 19 names in train-id order."""

SIXTEEN: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Train ids (of 19) of SYNTHIA's 16-class mean: without terrain, truck, train (ProDA cityscapes_dataset.py)."""

THIRTEEN: tuple[int, ...] = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Train ids (of 19) behind mIoU*: the 16 without wall, fence, pole (CBST issue 7)."""

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "cityscapes_19": CITYSCAPES_19,
    "cityscapes_16": tuple(CITYSCAPES_19[i] for i in SIXTEEN),
}
"""Class lists by name, without a file. There is none of 13 classes: mIoU* is trained with the 16 and is the mean of 13
of them (methods.md section 0.1)."""

# Short forms seen in class lists of the field; keys and values are canonical spellings.
_ALIASES: Mapping[str, str] = {
    "light": "trafficlight",
    "trafficlights": "trafficlight",
    "sign": "trafficsign",
    "signsymbol": "trafficsign",
    "trafficsigns": "trafficsign",
    "roads": "road",
    "sidewalks": "sidewalk",
    "pavement": "sidewalk",
    "buildings": "building",
    "walls": "wall",
    "fences": "fence",
    "poles": "pole",
    "veg": "vegetation",
    "pedestrian": "person",
    "pedestrians": "person",
    "motor": "motorcycle",
    "mbike": "motorcycle",
    "motorbike": "motorcycle",
    "bike": "bicycle",
}

# Only colours, not meanings: a class of this name is drawn like the Cityscapes class.
_COLOUR_LIKE: Mapping[str, str] = {"vehicle": "car", "vehicles": "car", "bicyclist": "bicycle", "tree": "vegetation"}


def canonical(name: str) -> str:
    """The spelling under which two names of one class compare equal ("Traffic_Light", "traffic light", "light")."""
    plain = "".join(c for c in name.lower() if c.isalnum())
    return _ALIASES.get(plain, plain)


_CANONICAL_19 = tuple(canonical(name) for name in CITYSCAPES_19)


def cityscapes_indices(classes: ClassSet, subset: Sequence[int]) -> tuple[int, ...] | None:
    """Where the classes of a subset of Cityscapes (`SIXTEEN`, `THIRTEEN`) stand in `classes`.

    Returns:
        Indices into `classes`, in the subset's order; None unless every class is one of Cityscapes' and all of the
        subset are there.
    """
    own = [canonical(name) for name in classes.names]
    wanted = [_CANONICAL_19[i] for i in subset]
    if not set(own) <= set(_CANONICAL_19) or not set(wanted) <= set(own):
        return None
    return tuple(own.index(name) for name in wanted)


def _distinct(taken: set[Colour]) -> Iterator[Colour]:
    """Endless colours that are not `taken` and far from each other (golden-ratio steps of the hue)."""
    for i in itertools.count():
        level = (0.95, 0.7, 0.5)[i // 12 % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.13 + i * 0.618034) % 1.0, 0.55 + 0.4 * (i % 2), level)
        colour = (round(red * 255), round(green * 255), round(blue * 255))
        if colour not in taken:
            taken.add(colour)
            yield colour


def _colours(names: Sequence[str], given: Sequence[Colour | None]) -> tuple[Colour, ...]:
    """Fill the colours that were not given: Cityscapes' by name where free, else distinct ones."""
    known = {canonical(name): colour for name, colour in CITYSCAPES_COLOURS.items()}
    taken = {colour for colour in given if colour is not None}
    filled = list(given)
    for like in ({}, _COLOUR_LIKE):
        for i, name in enumerate(names):
            plain = canonical(name)
            candidate = known.get(like.get(plain, plain))
            if filled[i] is None and candidate is not None and candidate not in taken:
                filled[i] = candidate
                taken.add(candidate)
    fresh = _distinct(taken)
    return tuple(colour if colour is not None else next(fresh) for colour in filled)


def parse_colour(value: Any, where: str) -> Colour:
    """A colour from [r, g, b], "r,g,b" or "#rrggbb".

    Raises:
        UserError: it is none of these; `where` names the file and key.
    """
    parts: Any = value
    if isinstance(value, str):
        text = value.strip()
        if len(text) == 7 and text.startswith("#"):
            try:
                parts = list(bytes.fromhex(text[1:]))
            except ValueError:
                parts = None
        else:
            parts = [int(p) for p in text.split(",")] if _is_triple(text) else None
    if (
        not isinstance(parts, Sequence)
        or len(parts) != 3
        or not all(isinstance(p, int) and not isinstance(p, bool) and 0 <= p <= 255 for p in parts)
    ):
        raise UserError(
            f"{where}: {value!r} is not a colour",
            'three whole numbers 0-255 as [128, 64, 128], "128,64,128" or "#804080"',
            "write the colour in one of these forms",
        )
    return int(parts[0]), int(parts[1]), int(parts[2])


def _is_triple(text: str) -> bool:
    parts = text.split(",")
    return len(parts) == 3 and all(part.strip().isdigit() for part in parts)


def is_colour(key: str) -> bool:
    """Whether a key of a class map is written as a colour."""
    return key.strip().startswith("#") or _is_triple(key)


def make_classes(names: Sequence[str], palette: Sequence[Colour | None] | None = None, where: str = "") -> ClassSet:
    """A checked class set; colours that are missing are filled in.

    Raises:
        UserError: no class, more than 255, an empty, reserved or duplicate name, or two classes of one colour.
    """
    where = where or "the class list"
    if not names:
        raise UserError(f"{where} lists no class", "at least one class name", "list the classes in train-id order")
    if len(names) > IGNORE:
        raise UserError(
            f"{where} lists {len(names)} classes", f"at most {IGNORE} (id {IGNORE} means ignore)", "merge some classes"
        )
    seen: dict[str, str] = {}
    for name in names:
        plain = canonical(name)
        if not plain or plain == "ignore":
            raise UserError(
                f"{where}: {name!r} cannot be a class name",
                "a name with letters or digits; pixels to ignore have id 255 and need no class",
                "rename or remove it",
            )
        if plain in seen:
            raise UserError(
                f"{where}: class {name!r} is listed twice (also as {seen[plain]!r})",
                "every class once",
                "remove or rename one of them",
            )
        seen[plain] = name
    given = list(palette) if palette is not None else [None] * len(names)
    if len(given) != len(names):
        raise UserError(
            f"{where}: palette has {len(given)} colours for {len(names)} classes",
            "one colour a class",
            "correct the palette, or leave it out and colours are chosen",
        )
    colours = _colours(names, given)
    for (i, a), (j, b) in itertools.combinations(enumerate(colours), 2):
        if a == b:
            raise UserError(
                f"{where}: classes {names[i]!r} and {names[j]!r} have the same colour {list(a)}",
                "distinct colours",
                "change one of them",
            )
    return ClassSet(tuple(names), colours)


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"class file {path} does not exist",
            "a .yaml, .json or .txt file with the class names in train-id order",
            "correct the path, or write the names one a line into a .txt file, or name a built-in list"
            f" ({nearest(str(path), BUILT_IN)})",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class file {path} cannot be read: {error}", "a text file", "check the path") from error
    if path.suffix.lower() == ".txt":
        lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
        return [line for line in lines if line]
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"class file {path} is not valid {path.suffix.lstrip('.').upper() or 'YAML'}: {error}",
            'for example {"classes": ["road", "sky"]}',
            "mend the file, or write the names one a line into a .txt file",
        ) from error


def _entry(entry: Any, where: str) -> tuple[str, Colour | None]:
    if isinstance(entry, str):
        return entry.strip(), None
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        extra = sorted(set(map(str, entry)) - {"name", "color", "colour"})
        if extra:
            raise UserError(
                f"{where}: unknown key {extra[0]!r}", "name and color", nearest(extra[0], ["name", "color"])
            )
        colour = entry.get("color", entry.get("colour"))
        return entry["name"].strip(), None if colour is None else parse_colour(colour, where)
    raise UserError(
        f"{where}: {entry!r} is not a class",
        'a name, or {"name": "road", "color": [128, 64, 128]}',
        "quote it if it is a number or a word such as yes, no, on, off",
    )


def is_built_in(path: Path) -> bool:
    """Whether this names a list of `BUILT_IN` and no file: a file of that name wins."""
    return str(path) in BUILT_IN and not path.is_file()


def read_classes(path: Path) -> ClassSet:
    """Read a class list.

    Args:
        path: YAML or JSON with {"classes": [names or {name, color}], "palette": [[r, g, b], ...] (optional)} or a bare
            list; or TXT with a name a line. The order is that of the train ids. Or the name of a list of `BUILT_IN`.

    Raises:
        UserError: naming the file and what is wrong: missing, not parseable, empty, duplicates, more than 255 classes.
    """
    if is_built_in(path):
        return make_classes(BUILT_IN[str(path)], where=str(path))
    content = _parse(path)
    if isinstance(content, dict):
        known = ["classes", "palette", "ignore"]
        extra = [str(key) for key in content if key not in known]
        if extra:
            raise UserError(f"{path}: unknown key {extra[0]!r}", "classes and palette", nearest(extra[0], known))
        if content.get("ignore", IGNORE) != IGNORE:
            raise UserError(
                f"{path}: ignore is {content['ignore']!r}",
                f"{IGNORE}",
                f"remove the key and map the files' id in the domain's class_map: `{content['ignore']}: ignore`",
            )
    listed = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(listed, list):
        raise UserError(f"{path} has no list of classes", 'for example {"classes": ["road", "sky"]}', "add the list")
    entries = [_entry(entry, f"{path}: classes[{i}]") for i, entry in enumerate(listed)]
    names = [name for name, _ in entries]
    colours = [colour for _, colour in entries]
    palette = content.get("palette") if isinstance(content, dict) else None
    if palette is not None:
        if not isinstance(palette, list):
            raise UserError(f"{path}: palette is not a list", "a list of [r, g, b]", "correct or remove it")
        colours = [parse_colour(colour, f"{path}: palette[{i}]") for i, colour in enumerate(palette)]
    return make_classes(names, colours, str(path))
