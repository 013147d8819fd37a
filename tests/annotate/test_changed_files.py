"""Images whose files change while they are labelled, and labels that were made on larger or other files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from annotate_browser import alone, browser, drawn, find_marker, listen, settle, shown, toast, visit
from annotate_site import Client, Site, make_site, marked, point, serving, tag
from PIL import Image

from segshift.annotate.pictures import header
from segshift.weak.store import Point, WeakLabel

if TYPE_CHECKING:
    from playwright.sync_api import Browser

assert browser

VIEWPORT: Any = {"width": 1100, "height": 700}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, 3)


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with serving(site) as opened:
        yield opened


def replace_image(site: Site, name: str, width: int, height: int, column: int, row: int) -> None:
    path = site.images / name
    before = path.stat().st_mtime_ns
    Image.fromarray(marked(width, height, column, row)).save(path)
    # Clocks of file systems may be coarse.
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_what_was_meant_for_another_picture_is_refused(site: Site, client: Client) -> None:
    """Else a click would be saved in the pixels of a file that nobody has looked at."""
    file = client.label("00.png")["file"]
    assert client.get("api/picture?image=00.png").headers["etag"] == f'"{file}"'
    assert client.act("00.png", point("sky", 3, 4), file=file).status == 200
    os.utime(site.images / "00.png", ns=(1, 1))
    assert client.act("00.png", point("sky", 3, 4), file=file).status == 200, "touched, but the same picture"
    replace_image(site, "00.png", 640, 480, 300, 200)
    assert client.label("00.png")["file"] != file
    refused = client.act("00.png", point("road", 9, 9), file=file)
    assert refused.status == 422
    assert "changed since it was shown" in refused.json["found"]
    assert [p.name for p in site.labels["00.png"].points] == ["sky"]
    assert client.act("00.png", point("road", 9, 9), file=client.label("00.png")["file"]).status == 200


def test_the_page_shows_what_the_file_holds_now(browser: Browser, site: Site, client: Client) -> None:
    page = browser.new_context(viewport=VIEWPORT).new_page()
    said: list[str] = []
    listen(page, said)
    visit(page, client.link, "00.png")
    with alone(page):
        page.keyboard.press("Digit1")
        settle(page)
        replace_image(site, "00.png", 640, 480, 300, 200)
        page.mouse.click(*find_marker(page))
        toast(page, "the image's file has changed since it was shown")
    page.locator('#stage:not(.loading) #picture[width="640"]').wait_for()
    drawn(page)
    page.mouse.click(*find_marker(page))
    page.locator('.point:not(.waiting)[data-name="road"]').wait_for(state="attached")
    (made,) = site.labels["00.png"].points
    assert abs(made.x - 300) <= 1
    assert abs(made.y - 200) <= 1
    # Gone to another image and back: the picture is not that of before.
    page.keyboard.press("ArrowRight")
    shown(page, "01.jpg")
    replace_image(site, "00.png", 640, 480, 100, 50)
    page.keyboard.press("ArrowLeft")
    shown(page, "00.png")
    drawn(page)
    page.keyboard.press("Digit2")
    page.mouse.click(*find_marker(page))
    page.locator('.point:not(.waiting)[data-name="sidewalk"]').wait_for(state="attached")
    made = site.labels["00.png"].points[-1]
    assert abs(made.x - 100) <= 1
    assert abs(made.y - 50) <= 1
    # What was done to an older file is not undone in the pixels of this one.
    for status in (200, 200, 422):  # the point, its tag; the point in the file before this one
        with page.expect_response("**/api/act") as answer:
            page.keyboard.press("u")
        assert answer.value.status == status
        settle(page)
    assert [p.name for p in site.labels["00.png"].points] == ["road"]
    # Another shape: the old picture goes, and it says how to go on.
    replace_image(site, "00.png", 300, 480, 100, 50)
    page.mouse.click(*find_marker(page))
    page.locator("#problem", has_text='append {"image": "00.png"} to').wait_for()
    assert said == []
    page.context.close()


def test_labels_of_another_shape_can_be_taken_back(site: Site, client: Client) -> None:
    site.store.append(WeakLabel("00.png", ("sky",), True, (Point(10, 10, "sky"),), (100, 300)))
    told = client.get("api/label?image=00.png")
    assert told.status == 422
    assert '{"image": "00.png"}' in told.json["remedy"]
    with open(site.out, "a", encoding="utf-8") as file:
        file.write('{"image": "00.png"}\n')
    assert client.act("00.png", tag("road")).status == 200
    assert site.labels["00.png"].tags == ("road",)


def test_points_that_meet_because_the_file_is_smaller(site: Site, client: Client) -> None:
    """The first stays and the page tells of the other, whose class is in the image all the same."""
    points = (Point(8, 8, "sky"), Point(9, 8, "road"), Point(80, 8, "road"), Point(10, 9, "pole"))
    site.store.append(WeakLabel("00.png", None, True, points, (4 * 320, 4 * 240)))
    label = client.label("00.png")
    assert [(int(x), int(y), name) for x, y, name in label["points"]] == [(1, 1, "sky"), (19, 1, "road")]
    assert label["note"].startswith("points left out: 2, as on the image's 320x240 pixels")
    assert label["tags"] == ["road", "pole", "sky"]
    assert not label["complete"]
    assert client.act("00.png", tag("sign")).json["label"]["note"] == ""
    assert site.labels["00.png"].tags == ("road", "pole", "sign", "sky")
    # Two classes at one pixel of what was looked at are a mistake.
    site.store.append(WeakLabel("02.png", None, True, (Point(8, 8, "sky"), Point(8, 8, "road")), (3200, 1800)))
    assert client.get("api/label?image=02.png").status == 422


@pytest.mark.parametrize(("orientation", "turned"), [(None, False), (0, False), (1, False), (6, True)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_which_images_are_shown_turned_elsewhere(
    tmp_path: Path, suffix: str, orientation: int | None, turned: bool
) -> None:
    """Pillow itself turns a TIFF, and 0 says nothing."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(marked(32, 24, 9, 9)).save(path, exif=exif)
    assert header(path).turned == (turned and suffix != ".tif")


def test_a_png_is_not_decoded_to_learn_its_size(tmp_path: Path) -> None:
    """It took a quarter of a second for two megapixels, at each image that a person went to."""
    Image.fromarray(marked(64, 48, 9, 9)).save(tmp_path / "a.png")
    with mock.patch("PIL.ImageFile.ImageFile.load", side_effect=AssertionError("decoded")):
        assert header(tmp_path / "a.png").size == (64, 48)


def test_a_full_disk_is_told_as_the_page_needs_it(client: Client) -> None:
    """No command is to be run again, and there are no checkpoints."""
    with mock.patch("os.write", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        told = client.act("00.png", tag("sky"))
    assert told.status == 503
    assert "the disk is full" in told.json["found"]
    assert told.json["remedy"] == "free some space: the page goes on by itself"
    assert client.act("00.png", tag("sky")).status == 200
