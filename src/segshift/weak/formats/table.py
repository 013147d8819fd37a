"""CSV in two forms: `image,classes` with classes between semicolons, and `image,x,y,class` with a point a row.

x and y are pixels of the image; whole numbers are pixel centres, (0, 0) that of the first pixel.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from segshift.artefacts.store import write_text
from segshift.errors import UserError
from segshift.weak.formats.base import Content, Entry, point, read_text
from segshift.weak.label import FARTHEST, WeakLabel

TAGS, POINTS = "csv-tags", "csv-points"
LOST = {
    TAGS: {"who", "when", "positive-only", "points"},
    POINTS: {"who", "when", "tags"},
}
_COLUMNS = {TAGS: ("image", "classes"), POINTS: ("image", "x", "y", "class")}
_WANTED = "a first line `image,classes` or `image,x,y,class`"


def recognised(start: str) -> str | None:
    """The name of the table that the first line of a file is the head of, None where it is none.

    Columns may be separated by something else than commas here: `read` says what is wrong then.
    """
    head = start.partition("\n")[0].strip()
    cells = {cell.strip().strip('"').lower() for cell in re.split("[,;\t]", head)}
    if "image" not in cells:
        return None
    return TAGS if "classes" in cells else POINTS if {"x", "y", "class"} & cells else None


def read(path: Path) -> Content:
    """The entries of a table, one a row.

    Raises:
        UserError: naming the line.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        head = [cell.strip().lower() for cell in next(reader, [])]
        form = next((form for form, columns in _COLUMNS.items() if sorted(head) == sorted(columns)), None)
        if form is None:
            other = any(sign in cell for cell in head for sign in ";\t")
            remedy = "separate the columns by commas" if other else "name the columns so"
            raise UserError(f"{path}, line 1: columns {', '.join(head) or '(none)'}", _WANTED, remedy)
        rows = list(_rows(reader, head, path))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}", "commas between cells, quotes closed", "mend the line"
        ) from error
    return Content(path, _tagged(rows) if form == TAGS else _pointed(rows))


_Row = tuple[str, dict[str, str]]


def _rows(reader: Iterator[list[str]], head: Sequence[str], path: Path) -> Iterator[_Row]:
    """Place and cells of every row that is not empty."""
    line = 2
    for cells in reader:
        where = f"{path}, line {line}"
        # A quoted cell may hold line breaks: the reader's count is of lines, and is that of the row's end.
        line = getattr(reader, "line_num", line) + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            raise UserError(
                f"{where}: {len(cells)} cells", f"{len(head)}: {','.join(head)}", "put names with commas in quotes"
            )
        row = {key: cell.strip() for key, cell in zip(head, cells, strict=True)}
        if not row["image"]:
            raise UserError(f"{where}: no image", "its path below the image folder", "mend the line")
        yield where, row


def _tagged(rows: Sequence[_Row]) -> list[Entry]:
    entries = []
    for where, row in rows:
        names = [name.strip() for name in row["classes"].split(";")] if row["classes"] else []
        if "" in names:
            raise UserError(f"{where}: classes {row['classes']!r}", "names with one ; between them", "mend the line")
        entries.append(Entry(row["image"], where, tuple(dict.fromkeys(names))))
    return entries


def _pointed(rows: Sequence[_Row]) -> list[Entry]:
    entries = []
    for where, row in rows:
        if not row["class"]:
            raise UserError(f"{where}: no class", "the class of the point", "mend the line")
        try:
            x, y = float(row["x"]), float(row["y"])
            if not (abs(x) < FARTHEST and abs(y) < FARTHEST):
                raise ValueError
        except ValueError as error:
            raise UserError(
                f"{where}: x, y are {row['x']!r}, {row['y']!r}", "pixels of the image, such as 10,20.5", "mend the line"
            ) from error
        entries.append(Entry(row["image"], where, points=(point(x, y, row["class"]),), part=True))
    return entries


def write_tags(labels: Sequence[WeakLabel], path: Path, classes: Sequence[str]) -> None:
    """Write `image,classes`.

    Raises:
        UserError: a class has a semicolon in its name.
    """
    del classes
    tagged = [label for label in labels if label.tags is not None]
    split = sorted({tag for label in tagged for tag in label.tags or () if ";" in tag})
    if split:
        raise UserError(f"class {split[0]!r} has a semicolon, which separates classes", "", "export to another format")
    _write(path, _COLUMNS[TAGS], [(label.image, ";".join(label.tags or ())) for label in tagged])


def write_points(labels: Sequence[WeakLabel], path: Path, classes: Sequence[str]) -> None:
    """Write `image,x,y,class`."""
    del classes
    _write(path, _COLUMNS[POINTS], [(label.image, x, y, name) for label in labels for x, y, name in label.points])


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([head, *rows])
    text = out.getvalue()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a table in UTF-8 cannot hold the name {_line_of(text, error.start)!r}",
            "names of files that are text",
            "rename the file, or choose label-studio or coco",
        ) from error
    write_text(path, text)


def _line_of(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 :].partition("\n")[0].partition(",")[0]
