"""Files that cannot be accepted: one screen that names file, place and remedy; no traceback; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from weak_files import Place, choices, coco, cvat, cvat_image, keypoint, label, make_place, save, task

from workbench import assert_told, segshift, spawn


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


LAUGHS = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotations><version>1.1</version>
<image id="0" name="a.jpg" width="64" height="48"><tag label="&b;"/></image></annotations>"""
THIEF = LAUGHS.replace('<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/passwd">')


def shape(inside: str, **attributes: object) -> str:
    return cvat(cvat_image(inside, **attributes))  # type: ignore[arg-type]


# File name, content, and words that the message must hold besides the file's name and a remedy.
FILES: dict[str, tuple[str, object, tuple[str, ...]]] = {
    # ---- none of the formats
    "empty": ("x", "", ("none of the known formats",)),
    "an image": ("x.json", b"\x89PNG\r\n\x1a\n", ("none of the known formats",)),
    "text": ("x.txt", "a.jpg is a road", ("none of the known formats",)),
    "JSON of something": ("x.json", {"a": 1}, ("none of the known formats",)),
    "weak labels already": ("x.json", '{"image": "a.jpg", "tags": []}\n', ("weak labels of segshift already",)),
    # ---- JSON
    "JSON cut short": ("x.json", '[{"id": 7,\n "data": {"image"', ("line 2", "no JSON")),
    "JSON with NaN": ("x.json", '[{"data": {}, "annotations": [], "x": NaN}]', ("NaN",)),
    "JSON too deep": ("x.json", "[" * 100_000, ("no JSON",)),
    "JSON of Latin-1": ("x.json", '[{"data": {"image": "é"}, "annotations": []}]'.encode("latin-1"), ("UTF-8",)),
    # ---- Label Studio
    "a task that is a number": ("x.json", [task("a.jpg"), 3], ("task 2", "no object")),
    "a task without data": ("x.json", [task("a.jpg"), {"id": 9, "annotations": []}], ("task 2 (id 9)", "no data")),
    "a task without annotations": ("x.json", [task("a.jpg"), {"data": {"image": "a"}}], ("task 2", "no annotations")),
    "a task without image": ("x.json", [{"data": {"text": "no"}, "annotations": []}], ("task 1", "no address")),
    "a task without image but with a broken address": (
        "x.json",
        [{"data": {"page": "http://[x.jpg"}, "annotations": []}],
        ("task 1", "no address", "(page)"),
    ),
    "a task with an embedded image": ("x.json", [task("data:image/png;base64,AAAA", choices("road"))], ("address",)),
    "an annotation without result": ("x.json", [{"data": {"image": "a"}, "annotations": [{}]}], ("no result",)),
    "choices that are a text": (
        "x.json",
        [task("a.jpg", {"type": "choices", "value": {"choices": "road"}})],
        ("task 1", "result 1", "choices is road"),
    ),
    "a taxonomy of texts": (
        "x.json",
        [task("a.jpg", {"type": "taxonomy", "value": {"taxonomy": ["a"]}})],
        ("taxonomy",),
    ),
    "a keypoint without size": (
        "x.json",
        [task("a.jpg", keypoint(1, 1, "road", original_width=None))],
        ("original_width", "percent"),
    ),
    "a keypoint beyond 100 %": ("x.json", [task("a.jpg", keypoint(101, 5, "road"))], ("101 %", "0 to 100")),
    "a keypoint of texts": ("x.json", [task("a.jpg", keypoint("5", 5, "road"))], ("x is", "percent")),  # type: ignore[arg-type]
    "a keypoint of two classes": (
        "x.json",
        [task("a.jpg", keypoint(5, 5, "x", value={"x": 1, "y": 1, "keypointlabels": ["road", "sky"]}))],
        ("2 classes",),
    ),
    "a turned image": ("x.json", [task("a.jpg", keypoint(5, 5, "road", image_rotation=90))], ("90 degrees",)),
    "two sizes of one image": (
        "x.json",
        [task("a.jpg", keypoint(5, 5, "road"), keypoint(5, 5, "sky", original_width=65))],
        ("65x48", "one size"),
    ),
    "another shape": (
        "x.json",
        [task("a.jpg", keypoint(5, 5, "road", original_width=48, original_height=64))],
        ("48x64", "64x48", "orientation"),
    ),
    "a date that is none": ("x.json", [task("a.jpg", choices("road"), updated_at="soon")], ("task 1", "ISO 8601")),
    "nothing but boxes": ("x.json", [task("a.jpg", {"type": "rectanglelabels"})], ("no tags and no points",)),
    # ---- CVAT
    "XML cut short": ("x.xml", cvat(cvat_image("<tag label='sky'/>"))[:-30], ("line", "no XML")),
    "XML of something": ("x.xml", '<?xml version="1.0"?>\n<html></html>', ("line 2", "<html>")),
    "XML with entities": ("x.xml", LAUGHS, ("line 1", "document type or entity", "remove it")),
    "XML with a file": ("x.xml", THIEF, ("line 1", "document type or entity")),
    "an entity that is not there": ("x.xml", shape('<tag label="&what;"/>'), ("line", "undefined entity")),
    "CVAT 1.0": ("x.xml", cvat().replace("<version>1.1", "<version>1.0"), ("line 3", "version '1.0'")),
    "CVAT for video": ("x.xml", cvat('<track id="0" label="car"></track>'), ("line 11", "<track>", "for images")),
    "an image without name": ("x.xml", shape("", name=""), ("line 11", "<image> without name")),
    "an image without width": ("x.xml", shape("", width=""), ("line 11", "without width")),
    "a width of letters": ("x.xml", shape("", width="wide"), ("line 11", "'wide'")),
    "a width of thousands of digits": ("x.xml", shape("", width="9" * 5000), ("line 11", "width is '999")),
    "an image in an image": ("x.xml", cvat(cvat_image(cvat_image(""))), ("line 12", "inside another")),
    "a tag without label": ("x.xml", shape("<tag/>"), ("line 12", "<tag> without label")),
    "points without points": ("x.xml", shape('<points label="road"/>'), ("line 12", "without points")),
    "points of one number": ("x.xml", shape('<points label="road" points="3"/>'), ("line 12", "'3'")),
    "points at infinity": ("x.xml", shape('<points label="road" points="1,2;inf,3"/>'), ("line 12", "'inf,3'")),
    "points outside": (
        "x.xml",
        shape('<points label="road" points="65,3"/>'),
        ("a.jpg (64.5, 2.5)", "outside", "line 11"),
    ),
    # ---- CSV
    "CSV with semicolons": ("x.csv", "image;x;y;class\na.jpg;1;2;road\n", ("line 1", "separate the columns by commas")),
    "CSV of other columns": ("x.csv", "image,x,y\na.jpg,1,2\n", ("line 1", "image,x,y,class")),
    "CSV with a short row": ("x.csv", "image,classes\na.jpg,road\nb.jpg\n", ("line 3", "1 cells")),
    "CSV with an open quote": ("x.csv", 'image,classes\na.jpg,road\nb.jpg,"road\n', ("line 3", "mend the line")),
    "CSV without an image": ("x.csv", "image,classes\n,road\n", ("line 2", "no image")),
    "CSV with an empty class": ("x.csv", "image,classes\na.jpg,road;;sky\n", ("line 2", "'road;;sky'")),
    "CSV with letters for x": ("x.csv", "image,x,y,class\na.jpg,1,2,road\na.jpg,one,2,road\n", ("line 3", "'one'")),
    "CSV with x not a number": ("x.csv", "image,x,y,class\na.jpg,nan,2,road\n", ("line 2", "'nan'")),
    "CSV of points without class": ("x.csv", "image,x,y,class\na.jpg,1,2,\n", ("line 2", "no class")),
    "CSV outside the image": (
        "x.csv",
        "image,x,y,class\na.jpg,1,2,road\na.jpg,63.5,2,road\n",
        ("(63.5, 2)", "outside", "line 3"),
    ),
    "CSV of two classes at one pixel": (
        "x.csv",
        "image,x,y,class\na.jpg,1,2,road\na.jpg,1.2,2,sky\n",
        ("(1.2, 2) sky (", "line 3"),
    ),
    "CSV of nothing": ("x.csv", "image,classes\n", ("no tags and no points",)),
    # ---- COCO
    "COCO without categories": ("x.json", {k: v for k, v in coco().items() if k != "categories"}, ("no categories",)),
    "COCO with an unknown image": ("x.json", coco({"category_id": 1, "image_id": 6}), ("annotations[0]", "id 6")),
    "COCO with an unknown category": ("x.json", coco({"category_id": 9}), ("annotations[0]", "category has id 9")),
    "COCO without category": ("x.json", coco({"caption": "a street"}), ("annotations[0]", "no category_id")),
    "COCO with two images of an id": (
        "x.json",
        coco(images=[{"id": 5, "file_name": "a.jpg"}] * 2),
        ("images[1]", "taken"),
    ),
    "COCO of an image without end": (
        "x.json",
        coco(images=[{"id": 5, "file_name": "a.jpg", "width": 10**6, "height": 10**6}]),
        ("images[0]", "1000000x1000000"),
    ),
    "COCO with keypoints in pairs": ("x.json", coco({"category_id": 1, "keypoints": [1, 2]}), ("keypoints", "three")),
    "COCO with a line for a polygon": (
        "x.json",
        coco({"category_id": 1, "segmentation": [[1, 2, 3, 4]]}),
        ("corners",),
    ),
    "COCO with runs of another size": (
        "x.json",
        coco({"category_id": 1, "segmentation": {"size": [48, 64], "counts": [5, 5]}}),
        ("annotations[0]", "add up to 10"),
    ),
    "COCO with torn counts": (
        "x.json",
        coco({"category_id": 1, "segmentation": {"size": [48, 64], "counts": "52\\u00e9"}}),
        ("annotations[0]", "segmentation"),
    ),
    # ---- images and classes
    "an unknown image": ("x.csv", "image,classes\na.jpg,road\nc.jpg,sky\n", ("c.jpg (", "line 3", "--skip-unknown")),
    "an image of another folder": ("x.csv", "image,classes\nwalk/0001.png,road\n", ("walk/0001.png", "line 2")),
    "an image out of the folder": ("x.csv", "image,classes\n../../etc/passwd,road\n", ("not in the folder",)),
    "two names of one image": ("x.csv", "image,classes\none/a.jpg,road\ntwo/a.jpg,sky\n", ("would both be a.jpg",)),
    "an unknown class": ("x.csv", "image,classes\na.jpg,roat\n", ("'roat' (", "line 2", "--class-map 'roat=CLASS'")),
    "an id beyond the list": ("x.csv", "image,classes\na.jpg,4\n", ("'4' (", "--class-map")),
}


@pytest.mark.parametrize("case", FILES)
def test_refused_and_nothing_written(place: Place, case: str) -> None:
    name, content, said = FILES[case]
    file = place.put(name, content)
    assert_told(segshift("labels", "import", file, *place.taking()), str(file), *said, "to do")
    assert not place.out.exists()
    place.store.append(label())
    before = place.out.read_bytes()
    assert segshift("labels", "import", file, *place.taking()).code == 2
    assert place.out.read_bytes() == before
    assert {path.name for path in place.root.iterdir()} == {"images", "classes.json", "weak.jsonl", name}


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 25


def test_no_traceback_from_the_installed_command(place: Place) -> None:
    done = spawn("labels", "import", place.put("x.xml", LAUGHS), *place.taking())
    assert_told(done, "x.xml, line 1", "document type")


CALLS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown format": (["--format", "cvatt"], ("did you mean 'cvat'?",)),
    "the wrong format": (["--format", "coco"], ("x.csv, line 1", "no JSON")),
    "a class map without =": (["--class-map", "road"], ("--class-map road", "THEIRS=OURS")),
    "a class map to nothing known": (["--class-map", "road=raod"], ("'raod' is no class", "did you mean 'road'?")),
    "a class map of nothing used": (["--class-map", "tram=car"], ("no class 'tram'",)),
    "no image left": (["--images", "EMPTY"], ("no image in",)),
    "no such folder": (["--images", "nowhere"], ("nowhere does not exist",)),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls(place: Place, case: str, tmp_path: Path) -> None:
    more, said = CALLS[case]
    empty = tmp_path / "empty"
    empty.mkdir()
    file = place.put("x.csv", "image,classes\na.jpg,road\n")
    more = [str(empty) if word == "EMPTY" else word for word in more]
    assert_told(segshift("labels", "import", file, *place.taking(*more)), *said)
    assert not place.out.exists()


def test_not_one_image_known(place: Place) -> None:
    file = place.put("x.csv", "image,classes\nc.jpg,road\n")
    assert_told(segshift("labels", "import", file, *place.taking("--skip-unknown")), "not one image", "--images")


def test_a_damaged_store_is_not_appended_to(place: Place) -> None:
    place.out.write_text("{}\n")
    file = place.put("x.csv", "image,classes\na.jpg,road\n")
    assert_told(segshift("labels", "import", file, *place.taking()), "weak.jsonl, line 1", "no image")
    assert place.out.read_text() == "{}\n"


def test_long_class_names_do_not_fill_the_screen(place: Place) -> None:
    file = place.put("x.csv", "image,classes\na.jpg,road;" + "x" * 3000 + "\n")
    for more in ([], ["--class-map", "tram=car"], ["--class-map", "x" * 3000 + "=raod"]):
        told = segshift("labels", "import", file, *place.taking(*more))
        assert told.code == 2
        assert len(told.message) < 800
        assert "x" * 39 + "…" in "".join(told.message.split())
    assert "--class-map '*=CLASS'" in segshift("labels", "import", file, *place.taking()).message


def test_missing_file(place: Place) -> None:
    assert_told(
        segshift("labels", "import", place.root / "none.json", *place.taking()), "none.json", "correct the path"
    )
    done = segshift("labels", "import", place.root / "none.xml", *place.taking("--format", "cvat"))
    assert_told(done, "none.xml")
    assert_told(segshift("labels", "stats", place.out), "do not exist", "segshift labels import")


def test_an_image_that_is_clear_nowhere(place: Place) -> None:
    save(place.images / "walk/0001.png")
    file = place.put("x.csv", "image,classes\n0001.png,road\n")
    told = segshift("labels", "import", file, *place.taking())
    assert_told(told, "may be drive/0001.png or walk/0001.png", "line 2", "rename")


def exported(place: Place, form: str, *more: Any) -> Any:
    return segshift(
        "labels", "export", place.out, "--format", form, "--classes", place.classes, "--out", place.root / "o", *more
    )


def test_exports_that_cannot_be(place: Place) -> None:
    place.store.append(label("a.jpg", ("road",)))
    assert_told(exported(place, "cvat"), "size of 1 images", "--images")
    assert_told(exported(place, "cvatt"), "did you mean 'cvat'?")
    assert_told(exported(place, "csv-points"), "no label has anything", "--format")
    place.store.append(label("c.jpg", ("road",)))
    assert_told(exported(place, "coco", "--images", place.images), "size of 1 images", "c.jpg", "correct --images")
    place.store.append(label("c.jpg", ("tram",)))
    assert_told(exported(place, "csv-tags"), "'tram'")
    place.put("o", "mine")
    assert_told(exported(place, "csv-tags"), "is there already")
    (place.root / "o").unlink()
    place.out.write_text('{"image": "b\\udcff.jpg", "tags": ["road"]}\n')
    assert_told(exported(place, "csv-tags"), "UTF-8", "'b\\udcff.jpg'", "rename")
    assert not (place.root / "o").exists()
    place.put("o", "mine")
    assert (place.root / "o").read_text() == "mine"
