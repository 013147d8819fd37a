"""Files that other tools legally write and that look odd, and files of labels that went through an editor."""

from __future__ import annotations

import zipfile
from pathlib import Path
from unittest import mock

import pytest
from weak_files import HEIGHT, NAMES, WIDTH, Place, coco, cvat, cvat_image, keypoint, make_place, save, take, task

from segshift.weak.store import Point, WeakLabel
from workbench import assert_told, segshift


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def test_points_that_meet_because_the_file_is_smaller(place: Place) -> None:
    """The first of the file stays; the other's class is in the image all the same; all of it is told."""
    at = '<points label="{}" points="{},{}"></points>'
    inside = at.format("road", 8.5, 8.5) + at.format("sky", 9.5, 8.5) + at.format("car", 80.5, 40.5)
    big = cvat_image(inside, width=4 * WIDTH, height=4 * HEIGHT)
    done = take(place, "export.xml", cvat(big))
    read = place.store.read()["a.jpg"]
    assert [(p.column, p.row, p.name) for p in read.points] == [(2, 2, "road"), (20, 10, "car")]
    assert (read.tags, read.complete) == (("sky",), False)
    assert "points left out: 1, as on the smaller file each falls on one of another class: a.jpg" in done.out
    before = place.out.read_bytes()
    assert take(place, "again.xml", cvat(big)).out.count("left out") == 1
    assert place.out.read_bytes() == before * 2, "the same file gives the same labels"
    # At one pixel of what was labelled they are a mistake, also if the file is smaller.
    wrong = at.format("road", 8.5, 8.5) + at.format("sky", 8.4, 8.5)
    wrong = cvat(cvat_image(wrong, width=4 * WIDTH, height=4 * HEIGHT))
    refused = segshift("labels", "import", place.put("wrong.xml", wrong), *place.taking())
    assert_told(refused, "1 points are of two classes at one pixel", "one class a pixel")
    assert place.out.read_bytes() == before * 2


def test_points_of_two_annotations_that_meet_because_the_file_is_smaller(place: Place) -> None:
    size = {"original_width": 4 * WIDTH, "original_height": 4 * HEIGHT}
    tasks = [task("a.jpg", keypoint(x, 50, name, **size)) for x, name in ((50.1, "road"), (50.6, "sky"))]
    assert "points left out: 1" in take(place, "export.json", tasks).out
    assert [p.name for p in place.store.read()["a.jpg"].points] == ["road"]


@pytest.mark.parametrize("factor", [1, 4])
def test_points_of_two_annotations_at_one_pixel(place: Place, factor: int) -> None:
    """A mistake in any size of the file: it is not the file that brings them together."""
    size = {"original_width": factor * WIDTH, "original_height": factor * HEIGHT}
    tasks = [task("a.jpg", keypoint(50.1, 50, name, **size)) for name in ("road", "sky")]
    refused = segshift("labels", "import", place.put("export.json", tasks), *place.taking())
    assert_told(refused, "1 points are of two classes at one pixel", "one class a pixel")
    assert not place.out.exists()


def test_left_out_points_leave_earlier_tags_as_they_are(place: Place) -> None:
    """The file has no tags: those of an earlier label stay, also of images that lost a point."""
    place.store.append(WeakLabel("b.jpg", ("person",)))
    at = '<points label="{}" points="{},8.5"></points>'
    inside = at.format("road", 8.5) + at.format("sky", 9.5)
    images = [cvat_image(inside, name, 4 * WIDTH, 4 * HEIGHT) for name in ("a.jpg", "b.jpg")]
    take(place, "export.xml", cvat(*images))
    assert place.store.read()["b.jpg"].tags == ("person",)


def test_coco_people_whose_joints_nobody_sees(place: Place) -> None:
    """In COCO's person_keypoints people in a crowd have masks, and zeros for keypoints: they are there."""
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    hidden = {"keypoints": [0, 0, 0] * 17, "num_keypoints": 0, "bbox": [10, 10, 10, 10]}
    content = coco(
        {"category_id": 4, **hidden, "segmentation": [square]},
        {"category_id": 3, **hidden},
        {"category_id": 1, "keypoints": [5, 6, 1, 9, 9, 2], "num_keypoints": 2, "segmentation": [square]},
    )
    take(place, "person_keypoints_val.json", content)
    read = place.store.read()["a.jpg"]
    assert read.tags == ("person", "car")
    assert read.points == (Point(14, 14, "person"), Point(9, 9, "road"))


def test_label_studio_clicks_on_an_edge_that_are_rounded_beyond_it(place: Place) -> None:
    results = [keypoint(-1e-14, 100.00000000000001, "road"), keypoint(50, 50, "sky")]
    take(place, "export.json", [task("a.jpg", *results)])
    assert [(p.column, p.row) for p in place.store.read()["a.jpg"].points] == [(0, HEIGHT - 1), (32, 24)]
    refused = segshift(
        "labels", "import", place.put("x.json", [task("a.jpg", keypoint(-0.1, 5, "sky"))]), *place.taking()
    )
    assert_told(refused, "a point at -0.1 %")


@pytest.mark.parametrize(("suffix", "orientation", "warns"), [("png", 6, True), ("jpg", 0, False), ("tif", 6, False)])
def test_who_is_warned_of_a_camera_that_was_held_upright(
    place: Place, suffix: str, orientation: int, warns: bool
) -> None:
    """Pillow turns a TIFF as other programs do; an orientation of 0 is none."""
    save(place.images / f"c.{suffix}", orientation=orientation)
    done = take(place, "export.csv", f"image,x,y,class\nc.{suffix},3,4,road\n")
    assert ("orientation flag" in done.out) == warns


def test_images_are_not_decoded_to_import_points(place: Place) -> None:
    with mock.patch("PIL.ImageFile.ImageFile.load", side_effect=AssertionError("decoded")):
        take(place, "export.csv", "image,x,y,class\ndrive/0001.png,3,4,road\n")


def test_two_files_that_an_editor_has_marked_are_joined(place: Place) -> None:
    """`cat b.jsonl >> a.jsonl`, each with a byte order mark and lines as Windows ends them."""
    mark = b"\xef\xbb\xbf"
    lines = [f'{{"image": "{name}", "tags": ["road"]}}\r\n'.encode() for name in ("a.jpg", "b.jpg")]
    place.out.write_bytes(mark + lines[0] + mark + lines[1])
    assert place.store.read().keys() == {"a.jpg", "b.jpg"}
    place.store.append(WeakLabel("a.jpg", ("sky",)))
    assert place.store.read()["a.jpg"].tags == ("sky",)


def test_renaming_and_dropping_a_class_as_the_message_says(place: Place) -> None:
    place.store.append(WeakLabel("a.jpg", ("road", "car"), True, (Point(3, 4, "car"),), (WIDTH, HEIGHT), "Ann"))
    place.store.append(WeakLabel("b.jpg", ("sky", "person"), False, (), (WIDTH, HEIGHT)))
    old = place.put("old.json", {"classes": list(NAMES)})
    place.put("classes.json", {"classes": ["road", "sky", "vehicle"]})
    refused = segshift("labels", "stats", place.out, "--classes", place.classes)
    assert_told(refused, "does not have: car, person", "labels export", "--class-map 'OLD=NEW'")
    export = ("labels", "export", place.out, "--format", "label-studio", "--classes", old, "--out")
    assert segshift(*export, place.root / "e.json").code == 0
    fresh = place.root / "fresh.jsonl"
    taking = ("--images", place.images, "--classes", place.classes, "--out", fresh)
    maps = ("--class-map", "car=vehicle", "--class-map", "person=ignore")
    assert segshift("labels", "import", place.root / "e.json", *taking, *maps).code == 0
    read = type(place.store)(fresh).read()
    assert (read["a.jpg"].tags, read["a.jpg"].points) == (("road", "vehicle"), (Point(3, 4, "vehicle"),))
    assert (read["a.jpg"].who, read["a.jpg"].complete) == ("Ann", True)
    assert (read["b.jpg"].tags, read["b.jpg"].complete) == (("sky",), False)


def test_archives_are_to_be_unpacked(place: Place) -> None:
    """CVAT's exports, and Label Studio's to COCO, come as one."""
    with zipfile.ZipFile(place.root / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", cvat(cvat_image('<tag label="road"></tag>')))
    refused = segshift("labels", "import", place.root / "task.zip", *place.taking())
    assert_told(refused, "is a zip archive", "annotations.xml", "unzip")


@pytest.mark.parametrize("sign", [";", "\t"])
def test_tables_of_other_countries_are_told_what_is_wrong(place: Place, sign: str) -> None:
    table = "image,x,y,class\na.jpg,3,4,road\n".replace(",", sign)
    refused = segshift("labels", "import", place.put("x.csv", table), *place.taking())
    assert_told(refused, "x.csv, line 1", "separate the columns by commas")


@pytest.mark.parametrize("segmentation", [[10, 10, 20, 10, 20, 20, 10, 20], [[], [10, 10, 20, 10, 20, 20, 10, 20]]])
def test_coco_polygons_that_tools_write_otherwise(place: Place, segmentation: list[object]) -> None:
    """Without the list around them (roboflow/supervision issue 205, myvision issue 17), or with empty ones."""
    take(place, "x.json", coco({"category_id": 3, "segmentation": segmentation}))
    assert place.store.read()["a.jpg"].points == (Point(14, 14, "car"),)


def test_coco_boxes_with_an_empty_polygon(place: Place) -> None:
    take(place, "x.json", coco({"category_id": 3, "segmentation": [[]], "bbox": [1, 2, 3, 4], "keypoints": None}))
    read = place.store.read()["a.jpg"]
    assert (read.tags, read.points) == (("car",), ())


def test_label_studio_points_without_a_place_or_class(place: Place) -> None:
    """Prompts for SAM 2 are keypoints without x and y (label-studio-sdk issue 480)."""
    prompt = keypoint(1, 1, "road") | {"value": {"keypointlabels": ["road"]}}
    unnamed = keypoint(1, 1, "road") | {"value": {"x": 3, "y": 4, "width": 0.5, "keypointlabels": []}}
    done = take(place, "x.json", [task("a.jpg", prompt, unnamed, keypoint(50, 50, "sky"))])
    assert [p.name for p in place.store.read()["a.jpg"].points] == ["sky"]
    assert "2 regions of kind keypointlabels without a place or class are not read" in done.out
