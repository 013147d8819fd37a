"""What the report's tests see of a page: its tags, what it would load, its visible text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from segshift.report import build_report

SOURCES = {"src", "href", "action", "data", "poster", "srcset", "xlink:href", "background", "formaction"}


class Reader(HTMLParser):
    """Collects what a page would load, its tags, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.loads += [value or "" for name, value in attrs if name in SOURCES]
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(run: Path) -> tuple[str, Reader]:
    html = build_report(run).read_text(encoding="utf-8")
    return html, Reader(html)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def part(html: str, name: str) -> str:
    """The page's section of this id, as visible text."""
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert found is not None
    return Reader(found[0]).text


def rounds(html: str) -> list[str]:
    """The parts of the labels stages, as visible text."""
    found = re.findall(r'<details class="round".*?(?=<details class="round"|</section>)', html, re.DOTALL)
    return [Reader(each).text for each in found]


def content(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def problems_of(html: str) -> str:
    """The page's list of what is missing or damaged."""
    found = re.search(r'<section class="notes".*?</section>', html, re.DOTALL)
    return found[0] if found else ""
