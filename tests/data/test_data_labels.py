"""Label files of every kind and class maps of every form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from data_makers import CLASSES, label, palette_png, png16, save
from hypothesis import given, settings
from hypothesis import strategies as st

from segshift.data.classes import CITYSCAPES_19, SIXTEEN, make_classes
from segshift.data.labels import Decoder, decode_file, read_label, read_values
from segshift.data.mapping import build_decoder
from segshift.data.tables import (
    CAMVID_11,
    CAMVID_32,
    CAMVID_COLOURS,
    CARLA,
    CARLA_OLD,
    CITYSCAPES_COLOUR,
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    SYNTHIA,
    LabelTable,
)
from segshift.errors import UserError

NINETEEN = make_classes(CITYSCAPES_19)
ADVENT = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
          28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
DADA = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12, 19: 13, 12: 14, 11: 15}


def plain(class_map: Mapping[str | int, str] | None = None, table: LabelTable | None = None) -> Decoder:
    return build_decoder(CLASSES, table, class_map, domain="source")


def test_train_ids_of_every_bit_depth(tmp_path: Path) -> None:
    ids = label(0)
    ids[0, 0] = 255
    files = [
        save(tmp_path / "8.png", ids),
        save(tmp_path / "16.png", ids.astype(np.uint16)),
        save(tmp_path / "32.tif", ids.astype(np.int32)),
        palette_png(tmp_path / "p.png", ids, {0: (9, 9, 9), 1: (1, 2, 3)}),
        save(tmp_path / "rgb.png", np.stack([ids] * 3, -1)),
        save(tmp_path / "rgba.png", np.dstack([ids, ids, ids, np.full_like(ids, 255)])),
        save(tmp_path / "la.png", np.dstack([ids, np.full_like(ids, 255)])),
        png16(tmp_path / "deep.png", np.stack([ids.astype(np.uint16)] * 3, -1)),
    ]
    for path in files:
        assert np.array_equal(read_label(path, plain()), ids), path
    bits = save(tmp_path / "1.png", ids[:8, :8] == 1)
    assert np.array_equal(read_label(bits, plain()), (ids[:8, :8] == 1).astype(np.uint8))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 7), st.sampled_from([3, 4]), st.data())
def test_16_bit_colour_png(
    tmp_path_factory: pytest.TempPathFactory, seed: int, w: int, h: int, c: int, data: st.DataObject
) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << 16, (h, w, c), dtype=np.uint16)
    filters = data.draw(st.lists(st.integers(0, 4), min_size=h, max_size=h))
    path = png16(tmp_path_factory.mktemp("png") / "a.png", values, filters)
    assert np.array_equal(read_values(path), values[..., :3])


def test_16_bit_colour_png_that_cannot_be_read(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 3), np.uint16)
    with pytest.raises(UserError, match="interlac"):
        read_values(png16(tmp_path / "i.png", values, interlaced=True))
    path = png16(tmp_path / "t.png", values)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"t\.png"):
        read_values(path)
    values[..., 1] = 7
    with pytest.raises(UserError, match="layout: synthia"):
        read_label(png16(tmp_path / "s.png", values), plain())


def test_colour_labels(tmp_path: Path) -> None:
    ids = label(1)
    colours = np.asarray(CLASSES.palette, np.uint8)[ids]
    path = save(tmp_path / "c.png", colours)
    by_map = plain({"{},{},{}".format(*c): n for c, n in zip(CLASSES.palette, CLASSES.names, strict=True)})
    assert np.array_equal(read_label(path, by_map), ids)
    assert np.array_equal(read_label(path, plain()), ids), "the palette of the class list is the default"
    hexes = plain({"#{:02x}{:02x}{:02x}".format(*c): n for c, n in zip(CLASSES.palette, CLASSES.names, strict=True)})
    indexed = palette_png(tmp_path / "p.png", ids + 3, {i + 3: c for i, c in enumerate(CLASSES.palette)})
    assert np.array_equal(read_label(indexed, hexes), ids), "a map of colours reads a palette image's colours"
    grey = save(tmp_path / "grey.png", np.full((4, 4, 3), 7, np.uint8))
    assert (read_label(grey, plain({"7,7,7": "sky"})) == 1).all(), "a grey colour is a colour"


def test_colours_that_no_class_has(tmp_path: Path) -> None:
    path = save(tmp_path / "c.png", np.full((4, 4, 3), (1, 2, 3), np.uint8))
    with pytest.raises(UserError, match='`"1,2,3": ignore`') as caught:
        read_label(path, plain({"9,9,9": "road"}))
    assert "c.png" in caught.value.found
    assert (read_label(path, plain({"9,9,9": "road", "*": "ignore"})) == 255).all()
    with pytest.raises(UserError, match="colour image"):
        read_label(path, plain({3: "road"}))


def test_unmapped_ids_say_what_to_do(tmp_path: Path) -> None:
    ids = label(0)
    ids[:2] = 17
    path = save(tmp_path / "a.png", ids)
    with pytest.raises(UserError, match=r"17 \(64 px\)") as caught:
        read_label(path, plain())
    assert str(path) in caught.value.found
    assert "`17: ignore`" in caught.value.remedy
    assert '"*": ignore' in caught.value.remedy
    assert "layout: gta5" in caught.value.remedy
    labels, unmapped = decode_file(path, plain())
    assert unmapped == {17: 64}
    assert (labels[:2] == 255).all()
    fixes: list[dict[str | int, str]] = [{17: "ignore"}, {"17": "ignore"}, {"*": "ignore"}]
    for fix in fixes:
        fixed = read_label(path, plain(fix))
        assert (fixed[:2] == 255).all()
        assert np.array_equal(fixed[2:], ids[2:]), "a map that only ignores keeps the train ids"


def test_class_map_by_id_and_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[10, 20, 30, 255]], np.uint8))
    decoder = plain({10: "road", "20": "car", "*": "ignore"})
    assert read_label(path, decoder).tolist() == [[0, 2, 255, 255]]
    assert read_label(path, plain({10: "Road", "*": "SKY"})).tolist() == [[0, 1, 1, 255]]
    gta = plain({"truck": "car", "bus": "car", "rider": "person", "*": "ignore"}, CITYSCAPES_IDS)
    path = save(tmp_path / "b.png", np.array([[7, 23, 26, 27, 28, 24, 25, 11, 0]], np.uint8))
    assert read_label(path, gta).tolist() == [[0, 1, 2, 2, 2, 3, 3, 255, 255]]
    strict = plain({"truck": "car"}, CITYSCAPES_IDS)
    with pytest.raises(UserError, match="11 'building'"):
        read_label(path, strict)


@pytest.mark.parametrize(
    ("class_map", "table", "says"),
    [
        ({3: "raod"}, None, "did you mean 'road'"),
        ({"road": "road"}, None, "plain folders hold ids or colours"),
        ({"trukc": "car"}, CITYSCAPES_IDS, "did you mean 'truck'"),
        ({"#12345": "car"}, None, "not a colour"),
        ({"1,2,300": "car"}, None, "not a colour"),
        ({"-1": "car"}, None, "no possible id"),
        ({70000: "car"}, None, "no possible id"),
        ({"road": "ignore", "sky": "ignore", "car": "ignore", "person": "ignore", "truck": "ignore", "bus": "ignore"},
         LabelTable("two", {0: "road", 1: "sky", 2: "car", 3: "person", 4: "truck", 5: "bus"}),
         "no label value leads to any"),
    ],
)  # fmt: skip
def test_class_map_errors(class_map: dict[str | int, str], table: LabelTable | None, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        plain(class_map, table)
    assert "source" in caught.value.found
    assert caught.value.remedy


def test_label_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", label(0))
    with pytest.raises(UserError, match=r"32x24 but its image is 64x48") as caught:
        read_label(path, plain(), image=(48, 64))
    assert "resize_labels: true" in caught.value.remedy
    assert read_label(path, plain(), image=(48, 64), resize=True).shape == (48, 64)


def test_jpeg_float_and_huge_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", label(0)).rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a JPEG"):
        read_label(tmp_path / "a.png", plain())
    with pytest.raises(UserError, match="fractions"):
        read_label(save(tmp_path / "f.tif", label(0).astype(np.float32)), plain())
    with pytest.raises(UserError, match="outside 0-65535"):
        read_label(save(tmp_path / "h.tif", label(0).astype(np.int32) + 70000), plain())
    with pytest.raises(UserError, match="does not exist"):
        read_label(tmp_path / "none.png", plain())


def test_cityscapes_and_gta5_ids_are_those_of_advent() -> None:
    decoder = build_decoder(NINETEEN, CITYSCAPES_IDS, None, domain="d")
    assert {i: t for i, t in decoder.ids.items() if t != 255} == ADVENT
    assert decoder.ids[34] == 255
    assert decoder.rest is None
    trains = build_decoder(NINETEEN, CITYSCAPES_TRAIN_IDS, None, domain="d")
    assert {i: t for i, t in trains.ids.items() if t != 255} == {i: i for i in range(19)}


def test_synthia_ids_are_those_of_dada(tmp_path: Path) -> None:
    sixteen = make_classes([CITYSCAPES_19[i] for i in SIXTEEN])
    decoder = build_decoder(sixteen, SYNTHIA, None, channel="first", domain="d")
    assert {i: t for i, t in decoder.ids.items() if t != 255} == DADA
    values = np.random.default_rng(0).integers(0, 1 << 16, (5, 23, 3), dtype=np.uint16)
    values[..., 0] = np.arange(23)
    path = png16(tmp_path / "s.png", values, [0, 1, 2, 3, 4])
    assert read_label(path, decoder)[0].tolist() == [DADA.get(i, 255) for i in range(23)]


def test_carla_red_channel(tmp_path: Path) -> None:
    values = np.zeros((1, 29, 4), np.uint8)
    values[0, :, 0], values[..., 3] = np.arange(29), 255
    path = save(tmp_path / "c.png", values)
    decoder = build_decoder(NINETEEN, CARLA, None, channel="first", domain="d")
    decoded = read_label(path, decoder)[0].tolist()
    assert decoded[1:20] == list(range(19)), "tags 1-19 are Cityscapes' train ids in order (CARLA 0.9.14)"
    assert decoded[24] == 0, "road lines are road"
    assert {decoded[i] for i in (0, 20, 21, 22, 23, 25, 26, 27, 28)} == {255}
    old = build_decoder(NINETEEN, CARLA_OLD, None, channel="first", domain="d")
    names = [
        "ignore" if i == 255 else CITYSCAPES_19[i] for i in read_label(save(tmp_path / "o.png", values[:, :23]), old)[0]
    ]
    assert names[:14] == ["ignore", "building", "fence", "ignore", "person", "pole", "road", "road", "sidewalk",
                          "vegetation", "car", "wall", "traffic sign", "sky"]  # fmt: skip


def test_camvid_colours_and_ids(tmp_path: Path) -> None:
    classes = make_classes(["road", "sidewalk", "building", "fence", "pole", "sign", "vegetation", "sky", "person",
                            "vehicle", "bicyclist"])  # fmt: skip
    expected = {"Road": 0, "LaneMkgsDriv": 0, "Sidewalk": 1, "Building": 2, "Fence": 3, "Column_Pole": 4,
                "SignSymbol": 5, "Tree": 6, "VegetationMisc": 6, "Sky": 7, "Pedestrian": 8, "Child": 8, "Car": 9,
                "SUVPickupTruck": 9, "Truck_Bus": 9, "Bicyclist": 10, "Void": 255}  # fmt: skip
    colours = build_decoder(classes, CAMVID_COLOURS, None, domain="d")
    row = np.array([[CAMVID_32[name] for name in expected]], np.uint8)
    assert read_label(save(tmp_path / "c.png", row), colours)[0].tolist() == list(expected.values())
    assert any("Car → vehicle" in note for note in colours.notes)
    assert any("Animal" in note for note in colours.notes)
    ids = build_decoder(classes, CAMVID_11, None, domain="d")
    row = np.arange(12, dtype=np.uint8)[None]
    assert read_label(save(tmp_path / "i.png", row), ids)[0].tolist() == [7, 2, 4, 0, 1, 6, 5, 3, 9, 8, 10, 255]


def test_notes_tell_what_the_mapping_leaves_out() -> None:
    decoder = build_decoder(make_classes(["road", "sky", "elf"]), CITYSCAPES_IDS, None, domain="d")
    notes = " ".join(decoder.notes)
    assert "building" in notes
    assert "elf" in notes
    assert "ego vehicle" not in notes


def test_cityscapes_colours_without_a_class_are_ignored() -> None:
    decoder = build_decoder(make_classes(["road", "car"]), CITYSCAPES_COLOUR, None, domain="val")
    assert decoder.colours[(128, 64, 128)] == 0
    void = [(111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (0, 0, 90), (0, 0, 110)]
    assert {decoder.colours[colour] for colour in void} == {255}
