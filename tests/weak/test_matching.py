"""Which label belongs to which image of a domain, with class names as the list has them and points in the file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from weak_files import CLASSES, HEIGHT, WIDTH, Place, label, make_place, save

from segshift.data.classes import make_classes
from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.errors import UserError
from segshift.weak.matching import known_as, match
from segshift.weak.names import Images
from segshift.weak.store import Point, WeakLabel


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def domain(place: Place, **settings: object) -> Domain:
    return open_domain(DomainSettings(root=place.root, **settings), CLASSES, labelled=False, name="target")


def matched(place: Place, *labels: WeakLabel, **settings: object) -> dict[str, WeakLabel]:
    return match({one.image: one for one in labels}, domain(place, **settings), CLASSES)


def test_by_path_name_and_end(place: Place) -> None:
    paths = ("a.jpg", "images/b.jpg", "drive/0001", "0002.png")
    found = matched(place, *(label(path) for path in paths))
    assert {name: one.image for name, one in found.items()} == {
        "a": "a.jpg", "b": "images/b.jpg", "drive/0001": "drive/0001", "drive/0002": "0002.png"
    }  # fmt: skip


def test_names_of_datasets_lose_their_endings(tmp_path: Path) -> None:
    save(tmp_path / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png")
    settings = DomainSettings(root=tmp_path, split="train")
    opened = open_domain(settings, CLASSES, labelled=False, name="target")
    image = "ulm/ulm_000001_000019_leftImg8bit.png"
    (found,) = match({image: label(image)}, opened, CLASSES).values()
    assert found.image == image


def test_classes_by_name_spelling_and_id(place: Place) -> None:
    made = label("a.jpg", ("Road", "road", "1", "3"), (1, 2, "PERSON"), (1, 2, "person"), (4, 4, "2"))
    (found,) = matched(place, made).values()
    assert found.tags == ("road", "sky", "person")
    assert found.points == (Point(1, 2, "person"), Point(4, 4, "car"))
    assert found.size == (WIDTH, HEIGHT)


def test_a_name_of_digits_goes_before_an_id(place: Place) -> None:
    digits = make_classes(["1", "0"])
    (found,) = match({"a.jpg": label("a.jpg", ("0", "1"))}, domain(place), digits).values()
    assert found.tags == ("0", "1")


def test_ids_are_short() -> None:
    assert known_as("0003", CLASSES) == "person"
    assert known_as("4", CLASSES) is None
    assert known_as("1" * 5000, CLASSES) is None, "Python refuses to read so many digits"


def test_what_says_nothing_is_left_out(place: Place) -> None:
    unsure = WeakLabel("drive/0001.png", (), complete=False)  # of no class that it is there, or not
    assert matched(place, WeakLabel("a.jpg"), WeakLabel("gone.jpg"), unsure, label("b.jpg", ())).keys() == {"b"}


def test_points_of_another_size_are_scaled(place: Place) -> None:
    made = replace(label("a.jpg", None, (1.5, 3.5, "road")), size=(4 * WIDTH, 4 * HEIGHT))
    (found,) = matched(place, made).values()
    assert found.points == (Point(0, 0.5, "road"),)
    assert found.size == (WIDTH, HEIGHT)


def test_points_that_come_to_one_pixel_by_scaling(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Neighbours on a larger copy: the first stays. Two classes at one pixel of the copy itself are an error."""
    big = (4 * WIDTH, 4 * HEIGHT)
    made = replace(label("a.jpg", None, (1, 3, "road"), (2, 3, "sky"), (9, 3, "sky")), size=big)
    with caplog.at_level(logging.WARNING, "segshift"):
        (found,) = matched(place, made).values()
    assert [point.name for point in found.points] == ["road", "sky"]
    assert [point.column for point in found.points] == [0, 2]
    assert "a.jpg: points left out: 1, as on the image's 64x48 pixels" in caplog.text
    with pytest.raises(UserError, match="another class"):
        matched(place, replace(label("a.jpg", None, (1, 3, "road"), (1, 3, "sky")), size=big))


def test_long_names_do_not_fill_the_screen(place: Place) -> None:
    with pytest.raises(UserError) as told:
        matched(place, label("a.jpg", ("x" * 5000,)))
    assert "x" * 39 + "…" in str(told.value)
    assert len(str(told.value)) < 400


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (label("c.jpg"), "c.jpg"),
        (label("walk/0001.png"), "walk/0001.png"),
        (label("a.jpg", ("raod",)), "did you mean 'road'?"),
        (label("a.jpg", None, (1, 1, "4")), "does not have: 4"),
        (label("a.jpg", None, (WIDTH - 0.5, 1, "road")), "(63.5, 1)"),
        (label("a.jpg", None, (1, 1, "road"), (1.2, 0.9, "sky")), "another class: a.jpg (1.2, 0.9) sky"),
        (replace(label("a.jpg", None, (1, 1, "road")), size=(HEIGHT, WIDTH)), "48x64"),
    ],
)
def test_refused(place: Place, made: WeakLabel, said: str) -> None:
    with pytest.raises(UserError) as told:
        matched(place, label("b.jpg"), made)
    assert said in str(told.value)
    assert told.value.remedy


def test_one_image_under_two_names(place: Place) -> None:
    with pytest.raises(UserError, match="are both the image 'a'"):
        matched(place, label("a.jpg"), label("images/a.jpg"))


def test_a_part_of_a_folder_warns(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "segshift"):
        assert matched(place, label("a.jpg"), label("b.jpg"), limit=1).keys() == {"a"}
    assert "1 weak labels are of images outside" in caplog.text


def test_finding_images() -> None:
    folder = Images(["1.jpg", "a/1.jpg", "a/2.jpg", "b/2.jpg", "b/3.jpg"])
    assert folder.find("1.jpg") == ["1.jpg"]
    assert folder.find("/srv/x/a/1.jpg") == ["a/1.jpg"]
    assert folder.find("c/1.jpg") == ["1.jpg"]
    assert folder.find("2.jpg") == ["a/2.jpg", "b/2.jpg"]
    assert folder.find("3.jpg") == ["b/3.jpg"]
    assert folder.find("c/3.jpg") == []
    assert folder.find_uploaded("0a1b2c3d-3.jpg") == ["b/3.jpg"]
    assert folder.find_uploaded("3.jpg", only_marked=True) == []
    odd = Images(["a/x (1).jpg", "b/x (1).jpg", "b/y z.jpg"])
    assert odd.find_uploaded("0a1b2c3d-x_1.jpg") == ["a/x (1).jpg", "b/x (1).jpg"]
    assert odd.find_uploaded("0a1b2c3d-y_z.jpg") == ["b/y z.jpg"]
