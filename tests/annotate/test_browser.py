"""A person's half hour in a minute: twenty images by keyboard and mouse, with a crash and a second tab in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from annotate_browser import (
    alone,
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
from annotate_site import CLASSES, COUNT, Site, make_site, marker, name_of
from PIL import Image

from segshift.weak.store import WeakLabel

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

assert browser

VIEWPORT: Any = {"width": 1100, "height": 700}
ZOOMS = (0, 3, 9)
"""Turns of the wheel: the image fits the window, is some two times, and some ten times as large."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = make_site(tmp_path_factory.mktemp("browser"))
    yield site
    site.end()


@pytest.fixture
def said() -> Iterator[list[str]]:
    said: list[str] = []
    yield said
    assert said == []


def zoomed(page: Page, turns: int) -> tuple[int, int]:
    """Zoom in on the marker; returns where it is then."""
    x, y = find_marker(page)
    if turns:
        page.mouse.move(x, y)
        for _ in range(turns):
            page.mouse.wheel(0, -120)
        drawn(page)
        x, y = find_marker(page)
    return x, y


def tags_of(site: Site) -> tuple[str, ...] | None:
    return site.labels["00.png"].tags


def is_near(found: Sequence[float | str], wanted: tuple[int, int], by: int = 1) -> bool:
    """Whether a place is within some pixels of another."""
    return all(abs(float(a) - b) <= by for a, b in zip(found[:2], wanted, strict=True))


class Told:
    """What was clicked, to be compared with the file."""

    def __init__(self) -> None:
        self.tags: dict[str, set[str]] = {}
        self.points: dict[str, list[tuple[str, int, int]]] = {}
        self.complete: set[str] = set()

    def assert_saved(self, labels: dict[str, WeakLabel]) -> None:
        assert {image for image, label in labels.items() if not label.empty} == set(self.tags)
        for image, tags in self.tags.items():
            label = labels[image]
            assert label.tags == tuple(name for name in CLASSES if name in tags), image
            assert label.complete == (image in self.complete), image
            width, height, *_ = marker(int(image[:2]))
            assert label.size == (width, height)
            clicked = self.points.get(image, [])
            assert [point.name for point in label.points] == [name for name, *_ in clicked], image
            for point, (_, column, row) in zip(label.points, clicked, strict=True):
                assert is_near(point, (column, row)), (image, point, column, row)


def crash(site: Site, page: Page, told: Told, image: str) -> None:
    """kill -9 while the person goes on; what she did then is not lost, what she is kept from does not happen."""
    settle(page)
    with alone(page):
        site.kill()
        press_class(page, 10)
        page.locator("#trouble").wait_for()
    assert "The server does not answer" in page.locator("#trouble").inner_text()
    assert "1 action not saved yet" in page.locator("#trouble").inner_text()
    for index in (0, 5):
        press_class(page, index)
    page.keyboard.press("Enter")
    page.mouse.click(300, 300)
    assert "bicyclist" not in site.labels[image].present
    site.start()
    page.locator("#trouble").wait_for(state="hidden")
    settle(page)
    told.tags[image].add("bicyclist")
    assert set(site.labels[image].tags or ()) == told.tags[image]
    shown(page, image)


def label_one(site: Site, page: Page, told: Told, i: int) -> None:
    """Tags, a point on the marker, second thoughts, and on to the next image."""
    image, (_, _, column, row) = name_of(i), marker(i)
    shown(page, image)
    first, *more = np.random.default_rng(i).permutation(10)[: 1 + i % 3].tolist()
    for index in more:
        press_class(page, index)
    # Shift and the key make it current without a tag, the point brings it; else the key does both.
    press_class(page, first, shift=i % 2 == 0)
    page.mouse.click(*zoomed(page, ZOOMS[i % 3]))
    told.tags[image] = {CLASSES[index] for index in (first, *more)}
    told.points[image] = [(CLASSES[first], column, row)]
    if i % 4 == 1:  # second thoughts
        other = next(index for index in range(10) if index not in (first, *more))
        press_class(page, other)
        page.keyboard.press("Control+z")
        page.keyboard.press("u")
        page.keyboard.press("Shift+U")
    if i == 7:
        settle(page)
        page.reload()
        shown(page, image)
        page.keyboard.press("u")
        page.keyboard.press("Control+y")
        settle(page)
    if i == 12:
        crash(site, page, told, image)
    if i % 3 == 0:
        told.complete.add(image)
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("ArrowRight" if i % 2 else "Space")


def test_twenty_images(browser: Browser, site: Site, said: list[str]) -> None:
    page = listen(browser.new_page(viewport=VIEWPORT), said)
    visit(page, site.start())
    told = Told()
    for i in range(COUNT):
        label_one(site, page, told, i)
    settle(page)
    told.assert_saved(site.labels)
    assert page.locator("#labelled").inner_text() == f"{COUNT} / {COUNT} labelled"
    assert "s an image" in page.locator("#median").inner_text()
    # And what is saved is what is shown after all is opened anew.
    page.reload()
    for i in (0, 5, 12):
        visit(page, site.link, name_of(i))
        assert set(ticked(page)) == told.tags[name_of(i)]
        assert points_shown(page) == [name for name, *_ in told.points[name_of(i)]]
    page.close()


@pytest.fixture
def fresh(browser: Browser, site: Site, said: list[str]) -> Iterator[Page]:
    """The page of a running server, with no labels yet."""
    site.out.unlink(missing_ok=True)
    link = site.link if site.process else site.start()
    context = browser.new_context(viewport=VIEWPORT)
    yield visit(listen(context.new_page(), said), link)
    context.close()


def test_corners_and_edges(fresh: Page, site: Site) -> None:
    """The outermost pixels of an image can be clicked, what is beside it cannot."""
    box = fresh.locator("#picture").bounding_box()
    assert box is not None
    press_class(fresh, 0)
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    for x, y in ((box["x"] - 3, box["y"] + 9), (right + 3, bottom - 9), (box["x"] + 9, bottom + 3)):
        fresh.mouse.click(x, y)
    for x, y in ((box["x"] + 1, box["y"] + 1), (right - 2, bottom - 2)):
        fresh.mouse.click(x, y)
    settle(fresh)
    assert [(p.x, p.y) for p in site.labels["00.png"].points] == [(0, 0), (319, 239)]


def test_points_are_chosen_and_deleted(fresh: Page, site: Site) -> None:
    x, y = find_marker(fresh)
    for index, (dx, dy) in enumerate([(0, 0), (40, 0), (0, 40), (40, 40)]):
        press_class(fresh, index)
        fresh.mouse.click(x + dx, y + dy)
    settle(fresh)
    fresh.mouse.click(x + 40, y + 40)  # chooses it
    fresh.mouse.move(5, 300)
    fresh.keyboard.press("Delete")
    fresh.mouse.move(x + 1, y + 1)  # under the mouse
    fresh.keyboard.press("x")
    fresh.mouse.click(x + 40, y, button="right")
    settle(fresh)
    assert [p.name for p in site.labels["00.png"].points] == ["building"]
    assert tags_of(site) == CLASSES[:4]
    # A tag with points goes with a second press only; undo brings the tag and its points back.
    press_class(fresh, 2)
    toast(fresh, "building has 1 point. Press 3 again")
    press_class(fresh, 2)
    settle(fresh)
    assert ticked(fresh) == ["road", "sidewalk", "fence"]
    fresh.keyboard.press("u")
    settle(fresh)
    assert [p.name for p in site.labels["00.png"].points] == ["building"]
    # A tag without points goes at once.
    press_class(fresh, 0)
    settle(fresh)
    assert tags_of(site) == CLASSES[1:4]


def test_two_tabs(fresh: Page, site: Site, browser: Browser, said: list[str]) -> None:
    other = listen(fresh.context.new_page(), said)
    visit(other, site.link, "00.png")
    with alone(other):
        press_class(fresh, 0)
        settle(fresh)
        # The second tab has not heard of it yet: its action is refused, and made again on the newer label.
        press_class(other, 7)
        other.mouse.click(*find_marker(other))
        toast(other, "both changes are kept")
    settle(other)
    assert tags_of(site) == ("road", "sky")
    # Tag and point are two actions, and may be heard of one by one.
    fresh.locator('.point[data-name="sky"]').wait_for(state="attached")
    assert (points_shown(fresh), ticked(fresh)) == (["sky"], ["road", "sky"])
    # Both at once.
    for index in (1, 2, 3):
        press_class(fresh, index)
        press_class(other, index + 3)
    for page in (fresh, other):
        settle(page)
    assert tags_of(site) == CLASSES[:8]
    # Undo takes back what was done here, nothing of the other.
    for _ in range(3):
        fresh.keyboard.press("u")
    settle(fresh)
    assert tags_of(site) == ("road", "pole", "sign", "vegetation", "sky")
    other.close()


def test_going_about(fresh: Page, site: Site) -> None:
    fresh.keyboard.press("Enter")
    toast(fresh, "No class is ticked")
    fresh.keyboard.press("ArrowLeft")
    toast(fresh, "This is the first image")
    for i in (0, 1, 2):
        shown(fresh, name_of(i))
        fresh.keyboard.press("Shift+Enter" if i == 1 else "Digit3")
        fresh.keyboard.press("Backquote" if i == 0 else "ArrowLeft" if i == 2 else "Shift")
    shown(fresh, "01.jpg")
    assert fresh.locator("#pill").inner_text() == "nothing present"
    fresh.keyboard.press("n")
    shown(fresh, "03.jpg")
    settle(fresh)
    labels = site.labels
    assert [(labels[name_of(i)].tags, labels[name_of(i)].complete) for i in range(3)] == [
        (("building",), True), ((), True), (("building",), False),
    ]  # fmt: skip
    # Undo goes to where it happened.
    fresh.keyboard.press("u")
    shown(fresh, "02.png")
    settle(fresh)
    assert site.labels["02.png"].empty
    fresh.locator("#strip").click(position={"x": VIEWPORT["width"] - 40, "y": 3})
    shown(fresh, "19.jpg")
    fresh.keyboard.press("ArrowRight")
    toast(fresh, "This is the last image. N goes to one of the 18 without a label")


def test_moving_the_zoomed_image_is_no_click(fresh: Page, site: Site) -> None:
    press_class(fresh, 0)
    before = zoomed(fresh, 4)
    drags: list[tuple[Any, str | None]] = [("left", None), ("middle", None), ("left", "Space")]
    for button, key in drags:
        x, y = find_marker(fresh)
        if key:
            fresh.keyboard.down(key)
        fresh.mouse.move(x, y)
        fresh.mouse.down(button=button)
        fresh.mouse.move(x + 15, y + 25, steps=3)
        fresh.mouse.up(button=button)
        if key:
            fresh.keyboard.up(key)
        moved = find_marker(fresh)
        assert is_near((moved[0] - x, moved[1] - y), (15, 25), 2), button
    shown(fresh, "00.png")  # the space key moved the image and did not go on
    assert points_shown(fresh) == []
    fresh.keyboard.press("f")
    drawn(fresh)
    assert find_marker(fresh) != before
    for key in ("+", "+", "-"):
        fresh.keyboard.press(key)
    fresh.mouse.click(*find_marker(fresh))
    settle(fresh)
    (saved,) = site.labels["00.png"].points
    assert is_near(saved, marker(0)[2:])


def test_images_that_are_turned_or_broken(fresh: Page, site: Site) -> None:
    """An orientation flag is not applied by the data layer, so neither here: a click counts in pixels as stored."""
    width, height, column, row = marker(0)
    flag = Image.Exif()
    flag[0x0112] = 6
    saved = (site.images / "00.png").read_bytes(), (site.images / "01.jpg").read_bytes()
    try:
        Image.open(site.images / "00.png").save(site.images / "00.png", exif=flag)
        (site.images / "01.jpg").write_bytes(b"<svg/>")
        fresh.reload()
        shown(fresh, "00.png")
        assert "as it is stored" in fresh.locator("#notes").inner_text()
        press_class(fresh, 4)
        fresh.mouse.click(*find_marker(fresh))
        settle(fresh)
        label = site.labels["00.png"]
        assert label.size == (width, height)
        assert is_near(label.points[0], (column, row))
        fresh.keyboard.press("Space")
        fresh.locator("#problem", has_text="01.jpg cannot be shown").wait_for()
        press_class(fresh, 4)
        toast(fresh, "This image cannot be labelled")
        fresh.keyboard.press("Space")
        shown(fresh, "02.png")
        assert "01.jpg" not in site.labels
    finally:
        (site.images / "00.png").write_bytes(saved[0])
        (site.images / "01.jpg").write_bytes(saved[1])


def test_an_answer_that_is_lost(fresh: Page, site: Site) -> None:
    """Saved, but nobody heard of it: sent again, it changes nothing, and can be undone."""
    lost: list[str] = []

    def lose_one(route: Route) -> None:
        answer = route.fetch()
        if lost:
            route.fulfill(response=answer)
        else:
            lost.append(answer.text())
            route.abort()

    fresh.route("**/api/act", lose_one)
    press_class(fresh, 7, shift=True)
    fresh.mouse.click(*find_marker(fresh))
    fresh.locator("#trouble").wait_for()
    assert len(site.labels["00.png"].points) == 1
    fresh.locator("#trouble").wait_for(state="hidden")
    settle(fresh)
    assert len(site.labels["00.png"].points) == 1
    assert not fresh.locator("#toast.shown").is_visible()
    fresh.keyboard.press("u")
    settle(fresh)
    assert site.labels["00.png"].empty


def test_a_file_that_cannot_be_written(fresh: Page, site: Site) -> None:
    press_class(fresh, 0)
    settle(fresh)
    good = site.out.read_bytes()
    with alone(fresh):
        site.out.write_bytes(good + b"rubbish\n")
        press_class(fresh, 1)
        fresh.locator("#trouble", has_text="line 2 is not JSON").wait_for()
    site.out.write_bytes(good)
    fresh.locator("#trouble").wait_for(state="hidden")
    settle(fresh)
    assert tags_of(site) == ("road", "sidewalk")
    # Or the person gives up on it.
    good = site.out.read_bytes()
    with alone(fresh):
        site.out.write_bytes(good + b"rubbish\n")
        press_class(fresh, 2)
        fresh.locator("#trouble button").click()
    site.out.write_bytes(good)
    fresh.locator("#trouble").wait_for(state="hidden")
    assert ticked(fresh) == ["road", "sidewalk"]
    assert tags_of(site) == ("road", "sidewalk")
