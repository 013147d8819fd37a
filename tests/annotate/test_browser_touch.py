"""The page on phones and narrow windows: fingers, layout, contrast; and what a model suggests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from annotate_browser import (
    Fingers,
    browser,
    drawn,
    find_marker,
    listen,
    points_shown,
    press_class,
    settle,
    shown,
    ticked,
    toast,
    visit,
)  # fmt: skip
from annotate_site import CLASSES, Site, make_site, marker, name_of, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

assert browser

PHONE: Any = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("touch"), 6)


@pytest.fixture(scope="module")
def link(site: Site) -> Iterator[str]:
    with serving(site) as client:
        yield client.link


@pytest.fixture
def said() -> Iterator[list[str]]:
    said: list[str] = []
    yield said
    assert said == []


@pytest.fixture
def phone(browser: Browser, site: Site, link: str, said: list[str]) -> Iterator[Page]:
    site.out.unlink(missing_ok=True)
    context = browser.new_context(**PHONE)
    yield visit(listen(context.new_page(), said), link)
    context.close()


def test_by_finger(phone: Page, site: Site) -> None:
    phone.locator('.class[data-name="pole"] .tick').tap()
    phone.locator('.class[data-name="sky"] .pick').tap()
    x, y = find_marker(phone)
    phone.touchscreen.tap(x, y)
    settle(phone)
    label = site.labels["00.png"]
    assert label.tags == ("pole", "sky")
    # At 1.16 screen pixels a pixel; tighter with two fingers, below.
    assert all(abs(a - b) <= 1 for a, b in zip(label.points[0][:2], marker(0)[2:], strict=True))
    # A tap on a point chooses it; the button deletes it.
    phone.touchscreen.tap(x + 2, y + 2)
    phone.locator(".point.chosen").wait_for(state="attached")
    phone.locator('[data-do="delete"]').tap()
    settle(phone)
    assert site.labels["00.png"].points == ()
    phone.locator('[data-do="undo"]').tap()
    settle(phone)
    assert points_shown(phone) == ["sky"]
    assert len(site.labels["00.png"].points) == 1
    phone.locator('[data-do="done"]').tap()
    shown(phone, "01.jpg")
    settle(phone)
    assert site.labels["00.png"].complete


def test_two_fingers_zoom_and_place_nothing(phone: Page, site: Site) -> None:
    phone.locator('.class[data-name="car"] .pick, .class[data-name="vehicle"] .pick').first.tap()
    x, y = find_marker(phone)
    fingers = Fingers(phone)
    fingers.touch("touchStart", (x - 20, y))
    fingers.touch("touchStart", (x - 20, y), (x + 20, y))
    for far in (30, 50, 70, 80):
        fingers.touch("touchMove", (x - far, y), (x + far, y))
    fingers.touch("touchEnd")
    drawn(phone)
    assert points_shown(phone) == []
    near_x, near_y = find_marker(phone)
    assert abs(near_x - x) <= 6
    assert abs(near_y - y) <= 6
    zoom = int(phone.locator("#zoom span").inner_text().split()[0])
    assert 400 < zoom < 600
    # One finger moves the zoomed image.
    fingers.touch("touchStart", (near_x, near_y))
    for step in (10, 25, 40):
        fingers.touch("touchMove", (near_x - step, near_y + step / 2))
    fingers.touch("touchEnd")
    drawn(phone)
    moved_x, moved_y = find_marker(phone)
    assert abs(moved_x - near_x + 40) <= 14  # less the way that still counts as a tap
    assert abs(moved_y - near_y - 20) <= 14
    assert points_shown(phone) == []
    phone.touchscreen.tap(moved_x, moved_y)
    settle(phone)
    assert all(abs(a - b) <= 1 for a, b in zip(site.labels["00.png"].points[0][:2], marker(0)[2:], strict=True))


BEYOND = """(width) => [...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return e.checkVisibility() && !e.closest("#stage, dialog") && (box.right > width + 1 || box.left < -1);
}).map((e) => e.outerHTML.slice(0, 90))"""
SMALL = """() => [...document.querySelectorAll("#panel button, #top button")].filter((e) => e.checkVisibility())
  .map((e) => [e.outerHTML.slice(0, 60), e.getBoundingClientRect()])
  .filter(([, box]) => box.width < 30 || box.height < 30).map(([text]) => text)"""
CUT = """() => [...document.querySelectorAll("#actions button span, .name, #labelled, #saved, .pill")]
  .filter((e) => e.checkVisibility() && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1)
  .map((e) => e.textContent)"""


@pytest.mark.parametrize(
    ("width", "height"), [(340, 640), (390, 844), (844, 390), (820, 1180), (1100, 700), (1920, 1080)]
)
def test_everything_fits(browser: Browser, site: Site, link: str, said: list[str], width: int, height: int) -> None:
    site.out.unlink(missing_ok=True)
    page = listen(browser.new_page(viewport={"width": width, "height": height}, has_touch=width < 400), said)
    visit(page, link, name_of(3))
    press_class(page, 3)
    settle(page)
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
        width,
        height,
    ]
    assert page.evaluate(BEYOND, width) == []
    assert page.evaluate(SMALL) == []
    assert page.evaluate(CUT) == []
    stage, image = page.locator("#stage").bounding_box(), page.locator("#picture").bounding_box()
    assert stage is not None
    assert image is not None
    assert stage["width"] * stage["height"] > 0.25 * width * height
    assert image["width"] <= stage["width"]
    assert image["height"] <= stage["height"]
    # All classes can be reached.
    for name in (CLASSES[0], CLASSES[-1]):
        page.locator(f'.class[data-name="{name}"]').scroll_into_view_if_needed()
        box = page.locator(f'.class[data-name="{name}"]').bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height
    page.close()


class Stub:
    """What a model would say, told at once; the real one is tried in test_suggestions.py."""

    def __init__(self, computed: int) -> None:
        self.computed = computed

    def of(self, name: str) -> tuple[str, ...] | None:
        return ("road", "sky", "person") if self.computed else None

    def standing(self) -> dict[str, Any]:
        return {"run": "x", "computed": self.computed, "unreadable": 0, "failure": ""}

    def ranked(self) -> tuple[str, ...] | None:
        return tuple(map(name_of, (4, 2, 0, 1, 3, 5))) if self.computed == 6 else None


CONTRAST = """() => {
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll("#top *, #panel *, dialog *, #trouble *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const below = [];
    for (let e = element; e; e = e.parentElement) below.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [light(rgb(below)), light(rgb([...below, getComputedStyle(element).color]))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(element.className + " " + element.textContent.slice(0, 40) + " " + ratio.toFixed(2));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, tmp_path: Path, said: list[str], scheme: Any) -> None:
    """WCAG 2.2 AA, 1.4.3: a contrast of at least 4.5 to 1; with everything on the page that can be."""
    with serving(make_site(tmp_path, 6), who="Ann", suggestions=Stub(6)) as client:
        page = listen(browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 760}), said)
        visit(page, client.link, name_of(0))
        press_class(page, 3)
        settle(page)
        assert page.evaluate(CONTRAST) == []
        page.keyboard.press("?")
        page.locator("#keys").wait_for()
        assert page.evaluate(CONTRAST) == []
        page.keyboard.press("Escape")
        page.close()


# ---- suggestions


def suggested(page: Page) -> list[str]:
    return [row.get_attribute("data-name") or "" for row in page.locator(".class.suggested").all()]


def test_suggestions_are_no_labels_until_they_are_confirmed(browser: Browser, tmp_path: Path, said: list[str]) -> None:
    site, stub = make_site(tmp_path, 6), Stub(0)
    with serving(site, suggestions=stub) as client:
        page = listen(browser.new_page(viewport={"width": 1100, "height": 760}), said)
        visit(page, client.link)
        shown(page, "00.png")
        assert suggested(page) == []
        assert page.locator("#suggest").inner_text() == "suggestions 0 / 6"
        # They come while the page is open, and with the last of them the order.
        stub.computed = 6
        toast(page, "The images are in a new order")
        page.locator(".class.suggested").first.wait_for()
        assert suggested(page) == ["road", "sky", "person"]
        assert not site.out.exists()
        page.keyboard.press("Space")
        shown(page, "04.png")
        assert page.locator("#place").inner_text() == "1 / 6"
        # A class's key takes its tick away, another class's adds one; what is suggested is not saved yet.
        press_class(page, 7)
        press_class(page, 3)
        settle(page)
        assert suggested(page) == ["road", "person"]
        assert (site.labels["04.png"].tags, site.labels["04.png"].complete) == (("fence",), False)
        page.reload()  # what was taken away stays away
        shown(page, "04.png")
        page.locator(".class.suggested").first.wait_for()
        assert suggested(page) == ["road", "person"]
        page.keyboard.press("Enter")
        shown(page, "02.png")
        settle(page)
        assert (site.labels["04.png"].tags, site.labels["04.png"].complete) == (("road", "fence", "person"), True)
        # Undo makes them suggestions again.
        page.keyboard.press("u")
        shown(page, "04.png")
        settle(page)
        assert suggested(page) == ["road", "person"]
        assert ticked(page) == ["fence"]
        page.keyboard.press("Space")
        shown(page, "02.png")
        page.keyboard.press("Shift+Enter")
        shown(page, "00.png")
        settle(page)
        assert (site.labels["02.png"].tags, site.labels["02.png"].complete) == ((), True)
        page.close()
