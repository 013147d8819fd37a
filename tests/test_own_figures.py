"""The figures in choose.md and in the methods' pages are those of results.md: written, not typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))

import own_figures  # noqa: E402
from segshift.methods import METHODS  # noqa: E402

RESULTS = """# Results

## a → b, CPU

| method | seeds | mIoU | over source_only | of the gap | over its control | of the gap | road | minutes |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| source_only | 0 | 40.0 | +0.0 | 0 % | -2.0 | -9 % | 80.0 | 3.5 |
| advent | 0, 1 | 50.0 ± 1.0 | +10.0 | 50 % | +8.0 | 44 % | 90.0 | 11.1 |
| cbst round 1 | 0 | 51.0 | +11.0 | 55 % | +9.0 | 50 % | 91.0 | |

| row | what |
|---|---|
| advent | not a figure |

Machine: one of ours.

```sh
segshift adapt --method advent --out runs/real/advent-0
segshift adapt --method cbst --out runs/real/cbst-0
```

## another matter

| run | labels |
|---|---|
| advent | 1 |
"""


@pytest.fixture
def measured() -> list[own_figures.Measured]:
    return own_figures.sections(RESULTS)


def test_pages_hold_what_is_measured() -> None:
    for page, text in own_figures.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page} is behind: python bench/own_figures.py"


def test_every_method_has_figures_with_command_seed_and_machine() -> None:
    measured = own_figures.sections((own_figures.DOCS / "results.md").read_text(encoding="utf-8"))
    for method in METHODS:
        block = own_figures.for_method(method, measured)
        assert "Machine: " in block, method
        assert "segshift adapt" in block, method
        assert "seeds" in block, method


def test_sections_are_read(measured: list[own_figures.Measured]) -> None:
    (part,) = measured
    assert part.title == "a → b, CPU"
    assert list(part.rows) == ["source_only", "advent", "cbst round 1"]
    assert part.cell("advent", "mIoU") == "50.0 ± 1.0"
    assert part.cell("advent", "of the gap") == "44 %"
    assert part.machine == "Machine: one of ours."
    assert part.commands["advent"].endswith("runs/real/advent-0")


def test_block_of_a_method(measured: list[own_figures.Measured]) -> None:
    block = own_figures.for_method("cbst", measured)
    assert "| cbst round 1 | 0 | 51.0 | +11.0 | +9.0 |  |" in block
    assert "| advent |" not in block
    assert "(../results.md#a--b-cpu)" in block
    assert own_figures.for_method("tpld", measured).strip() == ""


def test_block_for_choosing(measured: list[own_figures.Measured]) -> None:
    block = own_figures.for_choosing(measured)
    assert "| advent | 0, 1 | 50.0 ± 1.0 | +10.0 | +8.0 | 44 % | 11.1 |" in block
    assert "| source_only |" not in block


def test_a_page_without_its_comments_is_refused() -> None:
    page = f"before\n{own_figures.BEGIN}\nold\n{own_figures.END}\nafter\n"
    assert own_figures.filled(page, "new").split() == [
        "before", *own_figures.BEGIN.split(), "new", *own_figures.END.split(), "after",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="once each"):
        own_figures.filled(page + page, "new")
