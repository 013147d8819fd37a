"""The page in a real browser: what is on the screen is found in screenshots, not asked of the page."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from annotate_site import MARKER, until
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WHY = "THE PAGE OF `segshift annotate` WAS NOT TRIED IN A BROWSER: "
PATIENCE = 90_000
"""Milliseconds to wait for anything: other tests and programs may have the machine."""

KEYS = "1234567890q"
"""Of the eleven classes."""

SLOW = """
window.told = [];  // messages, which go away by themselves, perhaps before a slow test has looked
addEventListener("DOMContentLoaded", () => {
  const toast = document.getElementById("toast"), note = () => toast.matches(".shown") && told.push(toast.textContent);
  if (toast) new MutationObserver(note).observe(toast, { attributes: true, childList: true });
});
const limit = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (ms) => limit(10 * ms);  // a server that is slow is not gone
"""
"""Runs before the page's own program, and makes up for a machine that pauses for seconds."""

HEARD = """(text) => {
  const at = told.findIndex((one) => one.includes(text));
  told.splice(0, at + 1);
  return at >= 0;
}"""
ALONE = """async () => {
  const real = fetch;
  window.hear = () => { window.fetch = real; };
  window.fetch = (path, ...more) => (path === "api/pulse" ? new Promise(() => undefined) : real(path, ...more));
  await real("api/pulse");  // one that was under way is answered by then
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium; these tests are skipped, and say so, where it is missing."""
    api = pytest.importorskip("playwright.sync_api", reason=WHY + "pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(WHY + "no chromium found (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        yield opened
        opened.close()


def listen(page: Page, said: list[str]) -> Page:
    """Note down what the page complains about, and what it asks of others; to be called before the page is opened."""
    page.add_init_script(SLOW)
    page.on("pageerror", lambda error: said.append(str(error)))
    # The browser notes every answer that is an error; those that are no answers to what the page asked for are wrong.
    page.on("console", lambda entry: None if entry.text.startswith("Failed to load") else said.append(entry.text))
    page.on("response", lambda got: said.append(f"{got.status} {got.url}") if got.status in (403, 404, 500) else None)
    page.on("request", lambda asked: said.append(asked.url) if "://127.0.0.1:" not in asked.url else None)
    return page


def drawn(page: Page) -> None:
    """Wait until the page has handled what was done to it and the screen shows what came of that."""
    # What is asked of the page waits behind the input before it; the second frame comes after one with its effect.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def visit(page: Page, link: str, image: str | None = None) -> Page:
    """Open the link, at an image."""
    page.set_default_timeout(PATIENCE)
    page.goto(link + (f"#{image}" if image else ""))
    page.locator("#stage[data-image]").wait_for()
    if image:
        shown(page, image)
    return page


def shown(page: Page, image: str) -> None:
    """Wait until an image is there."""
    page.locator(f'#stage[data-image="{image}"]:not(.loading)').wait_for()


def settle(page: Page) -> None:
    """Wait until everything is saved."""
    page.locator("#saved:not(.waiting)", has_text="saved").wait_for()


def pixels(page: Page, of: str = "#stage") -> tuple[np.ndarray, float, float]:
    """What the screen shows, (H, W, 3), and where that begins."""
    box = page.locator(of).bounding_box()
    assert box is not None
    shot = page.screenshot(clip=box, animations="disabled")
    return np.array(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int), box["x"], box["y"]


def find_marker(page: Page) -> tuple[int, int]:
    """The pixel of the screen in the middle of the marked square."""
    page.mouse.move(2, 2)  # the name of the current class follows the mouse
    screen, left, top = pixels(page)
    scale = screen.shape[1] / page.locator("#stage").evaluate("(e) => e.clientWidth")
    rows, columns = np.nonzero(np.abs(screen - MARKER).max(axis=2) < 90)
    assert rows.size, "the marker is not on the screen"
    assert np.ptp(rows) < 250 * scale
    middle_x, middle_y = (columns.min() + columns.max()) / 2 / scale, (rows.min() + rows.max()) / 2 / scale
    return round(left + middle_x), round(top + middle_y)


def press_class(page: Page, index: int, *, shift: bool = False) -> None:
    """The key of a class; with Shift as a keyboard types it, another sign."""
    key = KEYS[index]
    code = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
    page.keyboard.press(f"Shift+{code}" if shift else code)


def points_shown(page: Page) -> list[str]:
    """Names of the points on the image."""
    return [dot.get_attribute("data-name") or "" for dot in page.locator(".point").all()]


def ticked(page: Page) -> list[str]:
    """Names of the classes that are ticked."""
    return [row.get_attribute("data-name") or "" for row in page.locator(".class.present").all()]


def toast(page: Page, text: str) -> None:
    """Wait for a message, which may be gone by now; those before it count no more."""
    until(lambda: page.evaluate(HEARD, text), PATIENCE / 1000)


@contextlib.contextmanager
def alone(page: Page) -> Iterator[None]:
    """While this holds, the page does not ask by itself what is new: every two seconds it would hear of what a test
    has just done to the server, and once in a hundred times before the test has done the next thing."""
    page.evaluate(ALONE)
    yield
    page.evaluate("hear()")


class Fingers:
    """Fingers on the screen; Playwright itself only knows taps."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)

    def touch(self, kind: str, *at: tuple[float, float]) -> None:
        """touchStart, touchMove or touchEnd, with all fingers that are down then."""
        points: list[Any] = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(at)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
