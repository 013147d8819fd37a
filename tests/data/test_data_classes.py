"""Class lists: every way to write one, and every way to get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segshift.data.classes import (
    CITYSCAPES_19,
    CITYSCAPES_COLOURS,
    SIXTEEN,
    THIRTEEN,
    canonical,
    cityscapes_indices,
    make_classes,
    parse_colour,
    read_classes,
)
from segshift.errors import UserError


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("c.json", '{"classes": ["road", "sky"], "ignore": 255}'),
        ("c.json", '["road", "sky"]'),
        ("c.yaml", "classes: [road, sky]"),
        ("c.yml", "- road\n- name: sky\n"),
        ("c.txt", "# order of train ids\nroad\n\nsky  # above\n"),
    ],
)
def test_reads_every_form(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    classes = read_classes(tmp_path / file)
    assert classes.names == ("road", "sky")
    assert classes.palette == (CITYSCAPES_COLOURS["road"], CITYSCAPES_COLOURS["sky"])


def test_colours_given_known_and_chosen(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "classes:\n- {name: road, color: '#010203'}\n- sign\n- vehicle\n- dragon\n- {name: elf, color: [9, 8, 7]}"
    )
    classes = read_classes(path)
    assert classes.palette[0] == (1, 2, 3)
    assert classes.palette[1] == CITYSCAPES_COLOURS["traffic sign"]
    assert classes.palette[2] == CITYSCAPES_COLOURS["car"]
    assert classes.palette[4] == (9, 8, 7)
    assert len(set(classes.palette)) == 5
    path.write_text(json.dumps({"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]}))
    assert read_classes(path).palette == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("c.yaml", "classes: []", "lists no class"),
        ("c.txt", "\n", "lists no class"),
        ("c.yaml", "classes: [road, Road]", "listed twice"),
        ("c.yaml", "classes: [traffic light, light]", "listed twice"),
        ("c.yaml", "classes: [ignore]", "cannot be a class name"),
        ("c.yaml", "clases: [road]", "did you mean 'classes'"),
        ("c.yaml", "classes: road", "no list of classes"),
        ("c.yaml", "classes: [1]", "is not a class"),
        ("c.yaml", "classes: [{name: a, colr: [1, 2, 3]}]", "did you mean 'color'"),
        ("c.yaml", "classes: [{name: a, color: [1, 2, 300]}]", "not a colour"),
        ("c.yaml", "classes: [a, b]\npalette: [[1, 2, 3]]", "palette has 1 colours for 2 classes"),
        ("c.yaml", "classes: [a, b]\npalette: [[1, 2, 3], [1, 2, 3]]", "same colour"),
        ("c.yaml", "classes: [a]\npalette: 3", "palette is not a list"),
        ("c.yaml", "classes: [a]\nignore: 0", "ignore is 0"),
        ("c.yaml", "classes: [a", "not valid YAML"),
        ("c.json", "{classes}", "not valid JSON"),
        ("c.yaml", "classes: &x [*x]", "not valid YAML"),
        pytest.param("c.json", 100_000 * "[", "not valid JSON", id="deep"),
        ("c.txt", "\n".join(f"class{i}" for i in range(256)), "256 classes"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, file: str, text: str, says: str) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) < 24


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_classes(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path)


def test_255_classes_have_distinct_colours() -> None:
    classes = make_classes([f"class{i}" for i in range(255)])
    assert len(set(classes.palette)) == 255


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_colour_forms_agree(colour: tuple[int, int, int]) -> None:
    red, green, blue = colour
    forms = (list(colour), f"{red},{green}, {blue}", "#{:02x}{:02X}{:02x}".format(*colour))
    assert {parse_colour(form, "x") for form in forms} == {colour}


@pytest.mark.parametrize("bad", ["red", "#12345g", "1,2", "1,2,256", [1, 2], [1.0, 2, 3], [True, 1, 2], None, 7])
def test_bad_colours(bad: object) -> None:
    with pytest.raises(UserError, match="key x"):
        parse_colour(bad, "key x")


def test_canonical_names() -> None:
    assert canonical("Traffic_Light") == canonical("traffic light") == canonical("light")
    assert canonical("Pedestrian") == canonical("person")
    assert canonical("rider") != canonical("bicycle")


def test_cityscapes_subsets() -> None:
    assert len(CITYSCAPES_19) == 19
    assert {CITYSCAPES_19[i] for i in set(range(19)) - set(SIXTEEN)} == {"terrain", "truck", "train"}
    assert {CITYSCAPES_19[i] for i in set(SIXTEEN) - set(THIRTEEN)} == {"wall", "fence", "pole"}
    nineteen = make_classes(CITYSCAPES_19)
    assert cityscapes_indices(nineteen, SIXTEEN) == SIXTEEN
    sixteen = make_classes([CITYSCAPES_19[i] for i in SIXTEEN])
    assert cityscapes_indices(sixteen, SIXTEEN) == tuple(range(16))
    assert cityscapes_indices(sixteen, THIRTEEN) == tuple(SIXTEEN.index(i) for i in THIRTEEN)
    assert cityscapes_indices(make_classes(["road", "sky"]), THIRTEEN) is None
    assert cityscapes_indices(make_classes([*CITYSCAPES_19, "dragon"]), SIXTEEN) is None
