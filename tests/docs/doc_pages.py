"""The documentation as tests see it: pages, their code blocks, and the commands of a shell block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)[ \t]*(?P<file>[^\n]*)\n(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: its path below the repository.
        line: of the page, where the block begins.
        language: what stands behind the fence; empty where nothing does.
        file: what stands behind the language: the name that the block is saved under; mostly empty.
        text: its content.
    """

    page: str
    line: int
    language: str
    file: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path below the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        content = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(name_of(page), line, match["language"], match["file"].strip(), content))
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(found), f"{name_of(page)}: {fences} fences, but {len(found)} blocks were understood"
    return found


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a shell block: continued lines joined, `&&` separated, comments and prompts left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line.strip().removeprefix("$ ")).strip()
        yield from (part.strip() for part in bare.split(" && ") if part.strip())
