"""Files written by hand to the documented formats of Label Studio, CVAT 1.1, CSV and COCO, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weak_files import (
    HEIGHT,
    WIDTH,
    Place,
    choices,
    coco,
    cvat,
    cvat_image,
    keypoint,
    label,
    make_place,
    save,
    take,
    task,
)

from segshift.weak.formats import masks, recognised
from segshift.weak.label import WeakLabel
from segshift.weak.store import Point


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def taken(place: Place, name: str, content: object, *more: str) -> dict[str, WeakLabel]:
    take(place, name, content, *more)
    return place.store.read()


# ---- Label Studio


@pytest.mark.parametrize(
    ("address", "image"),
    [
        ("/data/upload/1/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/1/83-0a1b2c3d-0002.png", "drive/0002.png"),
        ("/data/upload/a_x7Yp2Qk.jpg", "a.jpg"),
        ("/data/local-files/?d=drive/0001.png", "drive/0001.png"),
        ("/data/local-files/?d=project%2Fimages/drive/0001.png", "drive/0001.png"),
        ("s3://bucket/images/drive/0001.png", "drive/0001.png"),
        ("https://example.com/some/where/b.jpg?token=x", "b.jpg"),
        ("C:\\Users\\me\\images\\drive\\0001.png", "drive/0001.png"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_label_studio_addresses(place: Place, address: str, image: str) -> None:
    assert taken(place, "export.json", [task(address, choices("road"))]).keys() == {image}


def test_label_studio_uploads_of_odd_names(place: Place) -> None:
    save(place.images / "my photo (1).jpg")
    found = taken(place, "export.json", [task("/data/upload/3/0a1b2c3d-my_photo_1.jpg", choices("road"))])
    assert found.keys() == {"my photo (1).jpg"}


def test_label_studio_percent_becomes_pixels(place: Place) -> None:
    # 25 % of 64 pixels is 16 from the left edge: between the centres of pixels 15 and 16.
    results = [choices("road", "sky"), keypoint(25, 50, "road"), keypoint(0, 0, "sky"), keypoint(100, 100, "car")]
    (read,) = taken(place, "export.json", [task("/data/upload/1/0a1b2c3d-a.jpg", *results)]).values()
    assert read.tags == ("road", "sky")
    assert read.complete
    assert read.size == (WIDTH, HEIGHT)
    assert read.who == "10"
    assert [(p.x, p.y, p.name) for p in read.points[:2]] == [(15.5, 23.5, "road"), (-0.5, -0.5, "sky")]
    assert [(p.column, p.row) for p in read.points] == [(16, 24), (0, 0), (WIDTH - 1, HEIGHT - 1)]


def test_label_studio_taxonomy_and_other_regions(place: Place) -> None:
    taxonomy = {"type": "taxonomy", "value": {"taxonomy": [["ground", "road"], ["sky"]]}}
    box = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 2, "height": 3, "rectanglelabels": ["car"]}}
    done = take(place, "export.json", [task("a.jpg", taxonomy, box)])
    assert place.store.read()["a.jpg"].tags == ("road", "sky")
    assert "1 regions of kind rectanglelabels are not read" in done.out


def test_label_studio_several_annotations(place: Place) -> None:
    """Each is a line, in the order of time; skipped ones and a model's predictions are not read."""
    made = task("a.jpg", choices("road"), completed_by={"email": "b@x.org"}, updated_at="2025-03-09T22:16:08.728378Z")
    older = task("a.jpg", choices("sky"), updated_at="2025-03-09T22:16:07Z")["annotations"][0]
    skipped = task("a.jpg", choices("car"), was_cancelled=True)["annotations"][0]
    made["annotations"] += [older, skipped]
    made["predictions"] = [{"model_version": "m", "result": [choices("person")]}]
    done = take(place, "export.json", [made])
    assert [line.tags for line in place.store.lines()] == [("sky",), ("road",)]
    assert place.store.read()["a.jpg"].who == "b@x.org"
    assert "several annotations" in done.out


def test_label_studio_without_time_is_joined(place: Place) -> None:
    tasks = [task("a.jpg", choices("road"), keypoint(5, 5, "road")), task("a.jpg", choices("sky", "road"))]
    done = take(place, "export.json", tasks)
    assert [line.tags for line in place.store.lines()] == [("road", "sky")]
    assert "more than once" in done.out


def test_label_studio_min(place: Place) -> None:
    common = {"id": 1, "annotator": 1, "annotation_id": 4, "created_at": "2025-03-09T22:16:08Z", "lead_time": 4.2}
    point = {
        "x": 25,
        "y": 50,
        "width": 1,
        "keypointlabels": ["car"],
        "original_width": WIDTH,
        "original_height": HEIGHT,
    }
    records = [
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "split": "train", "tags": {"choices": ["road", "sky"]}, **common},
        {"image": "/data/upload/1/0a1b2c3e-b.jpg", "tags": "sky", "kp": [point], **common},
    ]
    box = {"x": 1, "y": 1, "width": 2, "height": 3, "rectanglelabels": ["car"]}
    done = take(place, "export.json", [{**records[0], "box": [box], "more": [{"a": 1}]}, records[1]])
    assert [line for line in done.out.splitlines() if "not read" in line] == [
        "1 regions of kind rectanglelabels are not read"
    ]
    found = place.store.read()
    assert found["a.jpg"].tags == ("road", "sky")
    assert found["b.jpg"].tags == ("sky",)
    assert found["b.jpg"].points == (Point(15.5, 23.5, "car"),)
    assert found["a.jpg"].when == "2025-03-09T22:16:08Z"


# ---- CVAT


def test_cvat(place: Place) -> None:
    inside = """<tag label="road" source="manual"></tag>
    <tag label="sky" source="manual"><attribute name="wet">no</attribute></tag>
    <points label="car" source="manual" occluded="0" points="16.00,24.00;64.00,48.00" z_order="0"></points>
    <points label="road" points="0.5,0.5" occluded="1"></points>
    <box label="car" occluded="0" xtl="1.0" ytl="1.0" xbr="5.0" ybr="5.0" z_order="4"></box>"""
    empty = cvat_image("", "b.jpg")
    done = take(place, "annotations.xml", cvat(cvat_image(inside), empty, cvat_image("<tag label='sky'/>", "0001.png")))
    found = place.store.read()
    assert found.keys() == {"a.jpg", "drive/0001.png"}
    assert found["a.jpg"].tags == ("road", "sky")
    assert found["a.jpg"].complete
    assert [(p.x, p.y, p.name) for p in found["a.jpg"].points[::2]] == [(15.5, 23.5, "car"), (0, 0, "road")]
    assert (found["a.jpg"].points[1].column, found["a.jpg"].points[1].row) == (WIDTH - 1, HEIGHT - 1)
    assert "1 <box> are not read" in done.out


def test_cvat_in_another_encoding(place: Place) -> None:
    save(place.images / "Straße.jpg")
    text = cvat(cvat_image("<tag label='sky'/>", "Straße.jpg")).replace("utf-8", "utf-16")
    assert taken(place, "annotations.xml", text.encode("utf-16")).keys() == {"Straße.jpg"}


def test_classes_that_nobody_could_choose_are_not_absent(place: Place) -> None:
    meta = cvat().replace("</annotations>\n", "").replace("<name>person</name>", "<name>road</name>")
    done = take(place, "annotations.xml", cvat(cvat_image('<tag label="sky"/>'), meta=meta))
    assert place.store.read()["a.jpg"].complete is False
    assert "nobody could choose person" in done.out
    again = cvat(cvat_image('<tag label="sky"/>'), meta=meta)
    assert taken(place, "annotations.xml", again, "--complete")["a.jpg"].complete
    assert taken(place, "all.xml", cvat(cvat_image('<tag label="sky"/>')), "--positive-only")["a.jpg"].complete is False


# ---- CSV


def test_csv_of_tags_then_of_points(place: Place) -> None:
    tags = taken(place, "tags.csv", "\ufeffimage,classes\r\na.jpg,road; sky\r\n\r\ndrive/0001.png,\r\n")
    assert tags["a.jpg"].tags == ("road", "sky")
    assert tags["drive/0001.png"].tags == ()
    done = take(place, "points.csv", 'class,image,x,y\nroad,a.jpg,10,20.5\ncar,b.jpg,-0.5,0\n"road",a.jpg,11,20\n')
    found = place.store.read()
    # The file speaks of points alone, and leaves the tags.
    assert found["a.jpg"] == WeakLabel(
        "a.jpg", ("road", "sky"), True, (Point(10, 20.5, "road"), Point(11, 20, "road")), (WIDTH, HEIGHT)
    )
    assert found["b.jpg"].tags is None
    assert "1 images were labelled before" in done.out
    kept = taken(place, "tags.csv", "image,classes\na.jpg,car\n")["a.jpg"]
    assert (kept.tags, len(kept.points)) == (("car",), 2)


# ---- COCO


def test_coco(place: Place) -> None:
    square = [[10, 10, 21, 10, 21, 21, 10, 21]]
    keypoints = [5, 6, 2, 7, 8, 1, 0, 0, 0, 9, 9, 2]
    made = coco(
        {"category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"category_id": 1, "segmentation": square, "bbox": [10, 10, 11, 11], "iscrowd": 0},
        {"category_id": 4, "keypoints": keypoints, "num_keypoints": 3, "bbox": [5, 6, 4, 3]},
    )
    read = taken(place, "coco.json", made)["a.jpg"]
    assert read.tags == ("car", "road")
    assert read.points == (Point(15, 15, "road"), Point(5, 6, "person"), Point(9, 9, "person"))


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_run_lengths(place: Place, compressed: bool) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:9, 20:29] = True
    counts: Any = runs(mask)
    made = coco({"category_id": 2, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}, "iscrowd": 1})
    if compressed:
        made["annotations"][0]["segmentation"]["counts"] = squeezed(counts)
    (point,) = taken(place, "coco.json", made)["a.jpg"].points
    assert (point.y, point.name) == (6, "sky")
    assert 22 <= point.x <= 26


def test_coco_category_lists_are_looked_at(place: Place) -> None:
    made = coco({"category_id": 1}, names=("car", "person"))
    assert taken(place, "coco.json", made)["a.jpg"].complete is False


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths, column by column, beginning with those outside: by counting one pixel after the other."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


def squeezed(counts: list[int]) -> str:
    """COCO's compressed counts, restated: six bits a character, the lowest first, sign in the last one."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 if more else bits))
    return text


def test_compressed_counts_of_published_masks() -> None:
    """Strings of pycocotools found in public code, with what is said of them there: sizes, and a box of the mask."""
    quarter = masks.counts_of("Xl4b1b1" + "0" * 98)
    mask = masks.of_runs(quarter, 100, 100)
    assert mask[:50, 50:].all()
    assert mask.sum() == 2500
    person = masks.of_runs(masks.counts_of("nYW31n>2N2FNbA48Kf=?XBDe=m0OM3M4YOPB8_>L4JXao5"), 640, 480)
    rows, columns = np.flatnonzero(person.any(axis=1)), np.flatnonzero(person.any(axis=0))
    assert abs(columns[0] - 219.9) < 1.5
    assert abs(columns[-1] - (219.9 + 11.14)) < 1.5
    assert abs(rows[0] - 176.12) < 1.5
    assert abs(rows[-1] - (176.12 + 34.23)) < 1.5
    assert sum(masks.counts_of("e`V39V9m1H5N10000000001O2O01O2M4K`ce3")) == 360 * 640


def test_polygons_are_filled_where_pixel_centres_are() -> None:
    # A square from corner (10, 10) to corner (21, 21) holds pixels 10 to 20; the second polygon leaves the image.
    square, triangle = [10, 10, 21, 10, 21, 21, 10, 21], [-5, -5, 5, -5, -5, 5]
    mask = masks.of_polygons([square, triangle], WIDTH, HEIGHT)
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[10:21, 10:21] = True
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    np.testing.assert_array_equal(mask, wanted | (x + y < 0))
    crossed = masks.of_polygons([[0, 0, 8, 8, 8, 0, 0, 8]], 8, 8)
    assert crossed.sum() < 64
    assert crossed[4, 1]
    assert not crossed[0, 4]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=30))
def test_compressed_counts_are_read_back(counts: list[int]) -> None:
    assert masks.counts_of(squeezed(counts)) == counts


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_inner_pixel_is_inside_and_deepest(width: int, height: int, random: Any) -> None:
    mask = np.array([[random.random() < 0.7 for _ in range(width)] for _ in range(height)])
    found = masks.inner_pixel(mask)
    assert (found is None) == (not mask.any())
    np.testing.assert_array_equal(masks.of_runs(runs(mask), width, height), mask)

    def depth(x: int, y: int) -> int:
        reach = 0
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            n = 0
            while 0 <= x + n * dx < width and 0 <= y + n * dy < height and mask[y + n * dy, x + n * dx]:
                n += 1
            reach = n if (dx, dy) == (1, 0) else min(reach, n)
        return reach

    if found is not None:
        depths = {(x, y): depth(x, y) for y in range(height) for x in range(width)}
        assert depths[found] == max(depths.values()) > 0


# ---- what all formats share


def test_images_of_other_sizes_are_scaled_or_refused(place: Place) -> None:
    save(place.images / "big.jpg", (2 * WIDTH, 2 * HEIGHT))
    done = take(place, "export.json", [task("big.jpg", keypoint(25, 50, "road"))])
    (point,) = place.store.read()["big.jpg"].points
    assert (point.x, point.y) == (31.5, 47.5)
    assert place.store.read()["big.jpg"].size == (2 * WIDTH, 2 * HEIGHT)
    assert "points are scaled" in done.out


def test_turned_photographs_are_warned_of(place: Place) -> None:
    save(place.images / "turned.jpg", orientation=3)
    assert "orientation flag" in take(place, "p.csv", "image,x,y,class\nturned.jpg,1,1,road\n").out


def test_ids_and_spellings_of_classes(place: Place) -> None:
    assert taken(place, "t.csv", "image,classes\na.jpg,Road;1;CAR\n")["a.jpg"].tags == ("road", "sky", "car")


def test_class_map(place: Place) -> None:
    made = "image,classes\na.jpg,truck;tram;road;tree\n"
    maps = ["--class-map", "truck=car", "--class-map", "tram=car", "--class-map", "*=ignore"]
    assert taken(place, "t.csv", made, *maps)["a.jpg"].tags == ("car", "road")


def test_unknown_images_are_left_out_when_asked(place: Place) -> None:
    done = take(place, "t.csv", "image,classes\na.jpg,road\nnone.jpg,road\n", "--skip-unknown")
    assert place.store.read().keys() == {"a.jpg"}
    assert "none.jpg" in done.out


def test_import_appends(place: Place) -> None:
    place.store.append(label("b.jpg", ("sky",), (1, 1, "sky")).stamped("me"))
    before = place.out.read_bytes()
    take(place, "t.csv", "image,classes\na.jpg,road\n")
    assert place.out.read_bytes().startswith(before)
    assert len(place.store.lines()) == 2


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([task("a.jpg")], "label-studio"),
        (task("a.jpg"), "label-studio"),
        ([{"image": "a.jpg", "annotation_id": 1, "annotator": 1}], "label-studio"),
        (coco(), "coco"),
        (cvat(), "cvat"),
        ("image,classes\n", "csv-tags"),
        ('"image","x","y","class"\n', "csv-points"),
    ],
)
def test_formats_are_recognised_by_content(place: Place, content: object, name: str) -> None:
    assert recognised(place.put("file", content)) == name


def test_json_is_read_with_a_byte_order_mark(place: Place) -> None:
    assert taken(place, "x.json", "\ufeff" + json.dumps([task("a.jpg", choices("road"))])).keys() == {"a.jpg"}
