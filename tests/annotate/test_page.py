"""The page's scripts against the server's Python and the documentation: what both say has to be the same."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate_browser import browser, listen, visit
from annotate_site import make_site, serving
from pydantic import TypeAdapter

from segshift.annotate.app import PAGE
from segshift.annotate.operations import Operation, State, apply

if TYPE_CHECKING:
    from playwright.sync_api import Browser

assert browser

NAMES = ("road", "sky", "car")
SIZE = (9, 4)
READ = TypeAdapter[list[Operation]](list[Operation])
DOCS = Path(__file__).parents[2] / "docs" / "annotate.md"


def script(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def drawn(rng: random.Random) -> dict[str, Any]:
    """An operation that the server would accept."""
    i = rng.randrange(3)
    return rng.choice(
        [
            {"kind": "tag", "name": NAMES[i], "present": rng.random() < 0.5},
            {"kind": "complete", "value": rng.random() < 0.5},
            {"kind": "suggestion", "name": NAMES[i], "dismissed": rng.random() < 0.5},
            # Columns of its own: one class a pixel.
            {
                "kind": "point", "name": NAMES[i], "x": float(3 * i + rng.randrange(3)), "y": float(rng.randrange(4)),
                "present": rng.random() < 0.7,
            },
        ]
    )  # fmt: skip


def as_page(state: State) -> dict[str, Any]:
    points = [list(point) for point in state.points]
    return {"tags": list(state.tags), "points": points, "complete": state.complete, "dismissed": list(state.dismissed)}


def contents(label: dict[str, Any]) -> tuple[Any, ...]:
    """A label without regard to order."""
    points = {(float(x), float(y), name) for x, y, name in label["points"]}
    return set(label["tags"]), points, label["complete"], set(label["dismissed"])


def test_the_page_applies_operations_as_the_server_does(browser: Browser, tmp_path: Path) -> None:
    """And what it keeps for undoing them brings back the label that was there."""
    rng = random.Random(3)
    cases = []
    for _ in range(400):
        before = apply(State(), READ.validate_python([drawn(rng) for _ in range(rng.randrange(8))]), NAMES, SIZE)
        ops = [drawn(rng) for _ in range(rng.randrange(1, 5))]
        cases.append((before, ops))
    said: list[str] = []
    with serving(make_site(tmp_path, 1)) as client:
        page = visit(listen(browser.new_page(), said), client.link)
        answers = page.evaluate(
            """async (cases) => {
              const { applied, inverse } = await import("./label.js");
              return cases.map(([before, ops]) => [applied(before, ops), inverse(before, ops)]);
            }""",
            [[as_page(before), ops] for before, ops in cases],
        )
        page.close()
    assert said == []
    for (before, ops), (after, back) in zip(cases, answers, strict=True):
        wanted = apply(before, READ.validate_python(ops), NAMES, SIZE)
        assert contents(after) == contents(as_page(wanted)), (before, ops)
        assert [tuple(point) for point in after["points"]] == [tuple(point) for point in wanted.points]
        undone = apply(wanted, READ.validate_python(back), NAMES, SIZE)
        assert contents(as_page(undone)) == contents(as_page(before)), (before, ops, back)


def test_undo_touches_no_other_class(browser: Browser, tmp_path: Path) -> None:
    """Another page may have changed it meanwhile."""
    with serving(make_site(tmp_path, 1)) as client:
        page = visit(browser.new_page(), client.link)
        back = page.evaluate(
            """async () => (await import("./label.js")).inverse(
              {tags: ["sky", "car"], points: [[1, 1, "sky"]], complete: true, dismissed: ["road"]},
              [{kind: "point", name: "road", x: 2, y: 3, present: true}])"""
        )
        page.close()
    assert {op.get("name") for op in back} == {"road"}
    assert {op["kind"] for op in back} == {"point", "tag", "suggestion"}


def test_every_key_and_button_does_something() -> None:
    keys = set(re.findall(r': "(\w+)"', re.findall(r"COMMANDS = \{(.*?)\};", script("keys.js"), re.DOTALL)[0]))
    buttons = set(re.findall(r'data-do="(\w+)"', script("index.html")))
    block = re.findall(r"const commands = \{(.*?)\n\};", script("main.js"), re.DOTALL)[0]
    known = set(re.findall(r"(?:^\s*|[,{]\s*)(\w+)(?=:|,|$)", block, re.MULTILINE)) | {"help"}
    assert buttons <= keys <= known


def test_the_documentation_names_the_keys() -> None:
    text = DOCS.read_text(encoding="utf-8")
    letters = re.findall(r'LETTERS = "(\w+)"', script("keys.js"))[0]
    assert f"`{' '.join(letters)}`" in text
    single = set(re.findall(r"[ {](\w): \"", re.findall(r"COMMANDS = \{(.*?)\};", script("keys.js"), re.DOTALL)[0]))
    assert single == set("nuxcfl")
    assert not single & set(letters)
    for key in single:
        assert f"| `{key.upper()}`" in text or f"; `{key.upper()}`" in text or f", `{key.upper()}`" in text
        assert f"<kbd>{key.upper()}</kbd>" in script("index.html")
