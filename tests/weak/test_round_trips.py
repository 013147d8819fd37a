"""Export and import again: the same labels, less what the export says is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weak_files import CLASSES, HEIGHT, NAMES, PATHS, WIDTH, Place, label, make_place

from segshift.errors import UserError
from segshift.weak.exporting import export
from segshift.weak.formats import FORMATS, recognised
from segshift.weak.importing import gather
from segshift.weak.label import Point, WeakLabel
from workbench import assert_whole, segshift

SIZE = (WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("round"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


classes = st.sampled_from(NAMES)
coordinates = st.tuples(
    st.integers(0, 1000 * WIDTH - 1).map(lambda n: (n - 500) / 1000),
    st.integers(0, 1000 * HEIGHT - 1).map(lambda n: (n - 500) / 1000),
)
points = st.dictionaries(coordinates, classes, max_size=6)


def whole(made: dict[tuple[float, float], str]) -> tuple[Point, ...]:
    """Points of which no two share a pixel."""
    taken = {(Point(x, y, name).column, Point(x, y, name).row): Point(x, y, name) for (x, y), name in made.items()}
    return tuple(taken.values())


def sure(made: WeakLabel) -> WeakLabel:
    """What has no tags says nothing of their completeness."""
    return made if made.tags is not None else replace(made, complete=True)


labels = st.lists(
    st.builds(
        WeakLabel,
        image=st.sampled_from(PATHS),
        tags=st.none() | st.lists(classes, unique=True).map(tuple),
        complete=st.booleans(),
        points=points.map(whole),
        size=st.just(SIZE),
        who=st.none() | st.sampled_from(["me@x.org", "you"]),
        when=st.none() | st.sampled_from(["2025-06-01T12:00:00.000Z", "2025-06-01T12:00:01Z"]),
    ).map(sure),
    min_size=1,
    max_size=4,
    unique_by=lambda made: made.image,
)


def kept(made: WeakLabel, lost: set[str]) -> WeakLabel:
    """What of a label a format can hold."""
    made = replace(made, who=None if "who" in lost else made.who, when=None if "when" in lost else made.when)
    if "positive-only" in lost or "tags" in lost or made.tags is None:
        made = replace(made, complete=True)
    if "tags" in lost or (made.tags == () and "none tagged" in lost):
        made = replace(made, tags=None, complete=True)
    return replace(made, points=()) if "points" in lost else made


@pytest.mark.parametrize("form", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(made=labels)
def test_what_comes_back(form: str, folder: Place, made: list[WeakLabel]) -> None:
    out, images = folder.root / f"out.{form}", {path: folder.images / path for path in PATHS}
    out.unlink(missing_ok=True)
    lost = FORMATS[form].lost
    wanted = [kept(one, lost) for one in made if not one.empty]
    wanted = [one for one in wanted if not one.empty]
    store = {one.image: one for one in made}
    if not wanted:
        with pytest.raises(UserError, match="no label has anything"):
            export(store, form, out, CLASSES)
        return
    count, said = export(store, form, out, CLASSES)
    assert count == len(wanted)
    assert recognised(out) == form
    came = gather(FORMATS[form].read(out), images, CLASSES).labels
    assert {one.image: one for one in came} == {one.image: one for one in wanted}
    if not said:
        assert {one.image: one for one in came} == {one.image: one for one in made if not one.empty}


def test_label_studio_holds_everything() -> None:
    assert FORMATS["label-studio"].lost == set()


def test_what_is_lost_is_said(place: Place) -> None:
    place.store.append(label("a.jpg", ("road",), (1, 2, "road")).stamped("me"))
    place.store.append(replace(label("b.jpg", ("sky",)), complete=False))
    place.store.append(label("drive/0001.png", ()))
    place.store.append(WeakLabel("drive/0002.png"))
    said: dict[str, list[str]] = {}
    for form in FORMATS:
        arguments: list[Any] = ["--format", form, "--classes", place.classes, "--images", place.images]
        done = segshift("labels", "export", place.out, *arguments, "--out", place.root / f"out-{form}")
        assert done.code == 0, done
        said[form] = [line.removeprefix("lost: ") for line in done.out.splitlines()[:-1]]
    dated = ["who made them, of 1 images", "when they were made, of 1 images"]
    unsure, none = "that the tags are positive-only, of 1 images", "that none of the classes is there, of 1 images"
    assert said == {
        "label-studio": [],
        "cvat": [*dated, unsure, none],
        "coco": [*dated, unsure, none],
        "csv-tags": [*dated, unsure, "the points, of 1 images"],
        "csv-points": [*dated, "the tags, of 3 images"],
    }
    assert_whole(place.root)


def test_names_that_need_care(place: Place, tmp_path: Path) -> None:
    """Quotes, ampersands, commas and line breaks in the names of images and classes."""
    from segshift.data.classes import make_classes

    odd = make_classes(['a "b" & <c>', "d, e", "f=g"])
    image = 'x "1" & <2>, 100%.jpg'
    (place.images / "a.jpg").rename(place.images / image)
    made = WeakLabel(image, odd.names, True, (Point(1.25, 2, odd.names[0]),), SIZE)
    for form, kind in FORMATS.items():
        out = tmp_path / f"out-{form}"
        export({image: made}, form, out, odd)
        (came,) = gather(kind.read(out), {image: place.images / image}, odd).labels
        assert came == kept(made, kind.lost)


def test_a_semicolon_cannot_be_in_a_list_of_classes(tmp_path: Path) -> None:
    from segshift.data.classes import make_classes

    with pytest.raises(UserError, match="semicolon"):
        export({"a": label("a", ("b;c",))}, "csv-tags", tmp_path / "out", make_classes(["b;c"]))
    assert not list(tmp_path.iterdir())


def test_xml_cannot_hold_all_names(tmp_path: Path) -> None:
    made = replace(label("a\x01.jpg"), size=SIZE)
    with pytest.raises(UserError, match="XML cannot hold"):
        export({made.image: made}, "cvat", tmp_path / "out", CLASSES)
    assert not list(tmp_path.iterdir())
