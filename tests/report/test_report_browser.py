"""The pages in a real browser: nothing overflows on a phone, nothing is asked of a network, the keyboard is enough."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_ablation import write_ablation_run
from fake_labels import write_rounds_run
from fake_run import write_run

from segshift.report import build_report, compare_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

LONG = "frame_with_a_very_long_name_without_any_place_to_break_it_0123456789_0123456789_0123456789"

PATIENCE = 90_000
"""Milliseconds to wait for anything: other tests and programs may have the machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium; these tests are skipped, and say so, where it is missing."""
    why = "THE PAGES WERE NOT TRIED IN A BROWSER: "
    api = pytest.importorskip("playwright.sync_api", reason=why + "pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(why + "no chromium found (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    runs = [write_run(home / name, panels=2) for name in ("first", LONG, "third")]
    index = runs[1] / "panels" / "index.json"
    index.write_text(index.read_text().replace("seq0/frame_0000", LONG))
    log = runs[1] / "02-adapt" / "log.jsonl"
    log.write_text(log.read_text().replace("adversarial", LONG))
    scores = runs[1] / "metrics.json"
    scores.write_text(scores.read_text().replace("vegetation", LONG))
    ablation = write_ablation_run(home / "ablation")
    scores = ablation / "metrics.json"
    scores.write_text(scores.read_text().replace("+ denoising", LONG))
    return {
        "report": build_report(runs[0]),
        "long": build_report(runs[1]),
        "rounds": build_report(write_rounds_run(home / "rounds")),
        "ablation": build_report(ablation),
        "compare": compare_runs(runs, home / "compare.html"),
    }


def opened(browser: Browser, path: Path, width: int, said: list[str], scheme: Any = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('#labels details').forEach((part) => { part.open = true; })")
    return page


def focused(page: Page, tile: Locator) -> None:
    """The picture last seen gets the focus; the browser tells a dialog's end a moment after it."""
    page.wait_for_function("(tile) => document.activeElement === tile", arg=tile.element_handle())


@pytest.mark.parametrize("name", ["report", "long", "rounds", "ablation", "compare"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_overflows(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    said: list[str] = []
    page = opened(browser, pages[name], width, said)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing but the text of a scrolling table may reach beyond the window.
    beyond = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, pre, svg")
        && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""
    assert page.evaluate(beyond) == []
    assert page.evaluate("[...document.images].every((i) => i.id == 'v-image' || (i.complete && i.naturalWidth > 0))")
    assert said == []
    page.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_pictures_enlarge_by_keyboard(browser: Browser, pages: dict[str, Path], name: str) -> None:
    said: list[str] = []
    page = opened(browser, pages[name], 1280, said)
    viewer, image = page.locator("#viewer"), page.locator("#v-image")
    tiles = page.locator(".panel").first.locator(".tile")
    assert not viewer.is_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "tile":
            break
    page.keyboard.press("Enter")
    assert viewer.is_visible()
    assert image.get_attribute("src") == tiles.nth(0).locator("img").get_attribute("src")
    box = image.bounding_box()
    assert box is not None
    assert box["width"] * box["height"] > 500 * 500
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("src") == tiles.nth(1).locator("img").get_attribute("src")
    page.keyboard.press("ArrowDown")
    second = page.locator(".panel").nth(1).locator(".tile").nth(1)
    assert image.get_attribute("src") == second.locator("img").get_attribute("src")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    focused(page, second)
    assert said == []
    page.close()


def test_pictures_enlarge_by_tap(browser: Browser, pages: dict[str, Path]) -> None:
    said: list[str] = []
    page = opened(browser, pages["report"], 390, said)
    page.locator(".tile").nth(2).click()
    assert page.locator("#viewer").is_visible()
    assert page.locator("#v-caption").inner_text() == "Adapted"
    page.locator("#v-next").click()
    assert page.locator("#v-caption").inner_text() == "Entropy"
    page.locator("#v-close").click()
    assert not page.locator("#viewer").is_visible()
    assert said == []
    page.close()


CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const below = [];
    for (let e = element; e; e = e.parentElement) below.unshift(getComputedStyle(e).backgroundColor);
    const style = getComputedStyle(element), svg = element.closest("svg");
    const [a, b] = [light(rgb(below)), light(rgb([...below, svg ? style.fill : style.color]))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(element.className + " " + element.textContent.slice(0, 40) + " " + ratio.toFixed(2));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "rounds", "ablation", "compare"])
def test_text_stands_out(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    """WCAG 2.2 AA, 1.4.3: a contrast of at least 4.5 to 1."""
    page = opened(browser, pages[name], 1280, [], scheme)
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 26)") == (scheme == "dark")
    page.close()


def test_pictures_of_labels_enlarge_and_folded_ones_are_passed_over(browser: Browser, pages: dict[str, Path]) -> None:
    said: list[str] = []
    page = opened(browser, pages["rounds"], 1280, said)
    page.evaluate("document.querySelector('#labels details').open = false")
    first, last = page.locator("details.round").first, page.locator("details.round").last
    assert not first.locator(".tile").first.is_visible()
    assert (
        last.locator(".tiles").first.evaluate("(e) => getComputedStyle(e).gridTemplateColumns.split(' ').length") == 3
    )
    last.locator('.tile[data-kind="added"]').first.click()
    assert page.locator("#v-caption").inner_text() == "What voting added"
    page.keyboard.press("ArrowUp")
    assert page.locator("#v-caption").inner_text() != "What voting added"
    page.keyboard.press("Escape")
    # From the first picture of the last round up to the run's own last panel.
    focused(page, page.locator("#panels .panel").nth(1).locator(".tile").nth(3))
    assert said == []
    page.close()


def test_prints(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["report"], 1280, [])
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator("details").evaluate("(block) => block.open")
    page.close()
