"""Puts the measured figures of docs/results.md into the pages that speak of them; no number is typed.

    python bench/own_figures.py            # after bench/real_pair.py, which calls it

docs/choose.md and the pages of the methods hold a block between two comments, `BEGIN` and `END`. What stands between
them is made from the tables, commands and machine that docs/results.md names, and from nothing else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN = "<!-- measured: written by bench/own_figures.py from results.md, not by hand -->"
END = "<!-- measured: end -->"

CHOOSE = ("method", "seeds", "mIoU", "over source_only", "over its control", "of the gap", "minutes")
METHOD = ("row", "seeds", "mIoU", "over source_only", "over its control", "minutes")

ROWS_OF = {
    "source_only": ("source_only", "source_control", "source_only_long"),
    "advent": ("advent", "advent+minent"),
    "minent": ("minent", "advent+minent"),
    "distill": ("proda stage 1", "proda"),
}
"""Rows of the table that belong to a method's page, where those that begin with its name are not all, or too many."""

PREFIXES = {"weak_labels": "weak_"}


@dataclass(frozen=True)
class Measured:
    """One section of results.md with a table of methods.

    Attributes:
        title: of the section.
        header: cells of the table's first row.
        rows: the others, by the method's cell.
        commands: the command of a row, by the row's name, for those that have one of their own.
        machine: the sentence that names it.
    """

    title: str
    header: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    commands: dict[str, str]
    machine: str

    def cell(self, row: str, column: str) -> str:
        """A figure; of two columns of one name the later one, which belongs to `over its control`."""
        return dict(zip(self.header, self.rows[row], strict=True))[column]


def sections(results: str) -> list[Measured]:
    """What results.md tells of methods, section by section."""
    found = []
    for part in re.split(r"^## ", results, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        table = re.search(r"^\| method \| seeds \|.*\n\|[-:|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
        if table:
            header, _, *rows = (_cells(line) for line in table[0].splitlines())
            commands = {
                re.sub(r"-\d+$", "", Path(words[-1]).name): line
                for line in re.findall(r"^segshift .*$", text, re.MULTILINE)
                if (words := shlex.split(line))[-2] == "--out"
            }
            machine = re.search(r"^Machine: .*$", text, re.MULTILINE)
            by_name = {row[0]: row for row in rows}
            found.append(Measured(title.strip(), header, by_name, commands, machine[0] if machine else ""))
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _link(title: str, page: str) -> str:
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title}]({page}#{anchor})"


def for_choosing(measured: Sequence[Measured]) -> str:
    """The block of choose.md: every row, with its gains and its time."""
    lines: list[str] = []
    for part in measured:
        rows = [[part.cell(row, column) for column in CHOOSE] for row in part.rows if not row.startswith("source_")]
        lines += [f"{_link(part.title, 'results.md')}, mIoU in percent. {part.machine}", ""]
        lines += [*_table(CHOOSE, rows), ""]
    return "\n".join(lines)


def for_method(method: str, measured: Sequence[Measured]) -> str:
    """The block of a method's page: its rows, their commands, seeds and machine."""
    lines: list[str] = []
    for part in measured:
        names = [row for row in part.rows if row in rows_of(method, part.rows)]
        if not names:
            continue
        rows = [[row, *(part.cell(row, column) for column in METHOD[1:])] for row in names]
        commands = [f"- `{row}`: `{part.commands[row]}`" for row in names if row in part.commands]
        lines += [f"{_link(part.title, '../results.md')}, mIoU in percent. {part.machine}", ""]
        lines += [*_table(METHOD, rows), "", *commands, ""]
    return "\n".join(lines).rstrip() + "\n"


def rows_of(method: str, rows: Sequence[str] | dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The rows of a table that belong to a method's page."""
    prefix = PREFIXES.get(method, method)
    return ROWS_OF.get(method) or tuple(row for row in rows if row.startswith(prefix))


def filled(page: str, block: str) -> str:
    """A page with another block between its comments.

    Raises:
        ValueError: it does not have both comments, once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"a page for measured figures has the lines {BEGIN!r} and {END!r}, once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block.rstrip()}\n\n{END}{rest.split(END)[1]}"


def pages(docs: Path = DOCS) -> dict[Path, str]:
    """Every page with figures, as it should be."""
    measured = sections((docs / "results.md").read_text(encoding="utf-8"))
    blocks = {docs / "choose.md": for_choosing(measured)}
    blocks |= {page: for_method(page.stem, measured) for page in sorted((docs / "methods").glob("*.md"))}
    return {page: filled(page.read_text(encoding="utf-8"), block) for page, block in blocks.items()}


def main() -> None:
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
