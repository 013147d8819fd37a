"""What whole runs say of their weak labels: on which images, measured when, told of where it cannot be."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rounds_runs import BASE, add_truth, command, small_net
from segshift import tagging
from segshift.data.images import load_resized
from segshift.engine.model import load_model
from workbench import HEIGHT, NAMES, WIDTH, Outcome, Pair, assert_whole, cut_short, make_pair, read_json, segshift

assert small_net

OWN = {"align_outputs": False, "category_width": 8, "threshold": 0.5}
STAGES: list[dict[str, Any]] = [
    {"name": "start", "method": "source_only", "steps": 2},
    {"name": "weakly", "method": "weak_labels", "init": "start", "steps": 2, "settings": OWN},
]
LAST = "02-weakly"
LINES: list[dict[str, Any]] = [
    {"image": "000.png", "tags": ["road", "sky"], "points": [[3, 4, "road"], [9, 4, "road"]]},
    {"image": "001.png", "tags": ["road"], "complete": False},
    {"image": "002.png", "tags": ["person"]},
]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


def adapt(
    pair: Pair, mode: str, lines: Sequence[dict[str, Any]] = (), *sets: str, val: bool = False, truth: bool = False
) -> Outcome:
    content = {**BASE, "stages": copy.deepcopy(STAGES)}
    content["stages"][1]["settings"]["mode"] = mode
    weak: list[str | Path] = []
    if lines:
        path = pair.root / "weak.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        weak = ["--weak", path]
    done = segshift(*command(pair, content, *sets, val=val, truth=truth), *weak)
    assert done.code == 0, done
    assert_whole(pair.run)
    assert (pair.run / "report.html").exists()
    return done


def tags(pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = read_json(pair.run / LAST / "tags.json")
    return found


def asked(pair: Pair) -> list[tuple[str, str, int, bool]]:
    return [(part["by"], Path(part["domain"]).name, part["images"], part["learned"]) for part in tags(pair)["parts"]]


def guessed(pair: Pair, stage: str, image: Path) -> list[str]:
    """The classes that a stage's network takes for present, by the definition."""
    net = load_model(pair.run / stage, torch.device("cpu")).net.eval()
    pixels = torch.from_numpy(load_resized(image, (WIDTH, HEIGHT))[0]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        cells = net(pixels).logits[0].double().flatten(1)
    chances = cells.exp().mean(dim=1).log().sigmoid()
    return [name for name, chance in zip(NAMES, chances.tolist(), strict=True) if chance > OWN["threshold"]]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network may be asked again."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(tagging, "tag_quality", fail)
    monkeypatch.setattr(tagging, "write_attention_panels", fail)


# ---- on which images


@pytest.mark.parametrize(
    ("mode", "lines", "sets", "val", "truth", "wanted"),
    [
        ("pseudo", (), (), False, False, []),
        ("pseudo", (), (), True, False, [("labels", "val", 2, False)]),
        ("pseudo", (), (), True, True, [("labels", "truth", 3, False)]),
        ("pseudo", LINES, (), True, True, [("tags", "target", 2, False)]),
        ("tags", LINES, (), False, False, [("tags", "target", 2, True)]),
        ("points", LINES, (), True, True, [("tags", "target", 2, True), ("labels", "val", 2, False)]),
        ("tags", LINES, (), False, True, [("tags", "target", 2, True), ("labels", "truth", 3, False)]),
        ("points", LINES, ("weakly.weak_images=1",), True, False, [("tags", "target", 1, False)]),
        ("tags", LINES[1:2], (), True, False, [("labels", "val", 2, False)]),
    ],
)
def test_tags_are_compared_with_what_is_known(
    pair: Pair, mode: str, lines: Any, sets: tuple[str, ...], val: bool, truth: bool, wanted: Any
) -> None:
    if truth:
        add_truth(pair)
    adapt(pair, mode, lines, *sets, val=val, truth=truth)
    assert asked(pair) == wanted
    assert tags(pair)["mode"] == mode


def test_the_figures_restated(pair: Pair) -> None:
    adapt(pair, "pseudo", LINES)
    (part,) = tags(pair)["parts"]
    shown = {"000": ["road", "sky"], "002": ["person"]}
    assert part["present"] == [sum(name in classes for classes in shown.values()) for name in NAMES]
    assert [network["name"] for network in part["networks"]] == ["start", "weakly"]
    for network, folder in zip(part["networks"], ("01-start", LAST), strict=True):
        said = {name: guessed(pair, folder, pair.target / "images" / f"{name}.png") for name in shown}
        counts = [sum(name in classes for classes in said.values()) for name in NAMES]
        assert [each["guessed"] for each in network["classes"]] == counts
        right = sum(name in shown[image] for image, classes in said.items() for name in classes)
        assert network["recall"] == pytest.approx(right / 3)
        assert network["precision"] == (pytest.approx(right / sum(counts)) if sum(counts) else None)


def test_points_are_tags_where_they_name_every_class(pair: Pair) -> None:
    lines = [{"image": "001.png", "points": [[3, 4, "car"], [9, 9, "road"]]}]
    adapt(pair, "points", lines)
    assert tags(pair)["parts"] == []
    adapt(pair, "points", lines, "weakly.points_complete=true")
    assert tags(pair)["parts"][0]["present"] == [1, 0, 1, 0]


def test_how_often_each_class_is_named(pair: Pair) -> None:
    adapt(pair, "points", LINES)
    assert tags(pair)["named"] == {"labelled": 3, "images": [2, 1, 0, 1], "points": [2, 0, 0, 0]}
    adapt(pair, "tags", LINES)
    assert tags(pair)["named"] == {"labelled": 3, "images": [2, 1, 0, 1], "points": [0, 0, 0, 0]}
    adapt(pair, "pseudo", LINES)
    assert tags(pair)["named"] is None, "it learned from nobody's"


def test_a_stage_without_a_start_has_no_before(pair: Pair) -> None:
    content = {**BASE, "stages": [{**STAGES[1], "init": None, "settings": {**OWN, "mode": "pseudo"}}]}
    assert segshift(*command(pair, content)).code == 0
    known = read_json(pair.run / "01-weakly" / "tags.json")
    assert [network["name"] for network in known["parts"][0]["networks"]] == ["weakly"]


def test_other_methods_have_none(pair: Pair) -> None:
    adapt(pair, "pseudo")
    assert not (pair.run / "01-start" / "tags.json").exists()
    assert not (pair.run / "01-start" / "attention").exists()


# ---- attention


def test_pictures_of_classes_in_images_that_show_them(pair: Pair) -> None:
    adapt(pair, "points", LINES, "panels=8", val=True)
    shown = {"road": {"000", "001"}, "sky": {"000"}, "person": {"002"}}
    panels = read_json(pair.run / LAST / "attention" / "index.json")["panels"]
    assert {panel["class"] for panel in panels} == set(shown), "nobody saw a car"
    assert {(panel["class"], panel["name"]) for panel in panels} == {
        (c, i) for c, images in shown.items() for i in images
    }
    points = {(panel["class"], panel["name"]): panel["points"] for panel in panels}
    assert points[("road", "000")] == 2
    assert sum(points.values()) == 2, "only points of the class, in this image"
    assert all([each["network"] for each in panel["maps"]] == ["start", "weakly"] for panel in panels)
    models = read_json(pair.run / "metrics.json")["models"]
    gains = [100 * (models["weakly"]["iou"][NAMES.index(p["class"])] - models["start"]["iou"][NAMES.index(p["class"])])
             for p in panels]  # fmt: skip
    assert gains == sorted(gains, reverse=True), "from the most gained to the most lost"
    for panel, gain in zip(panels, gains, strict=True):
        assert panel["caption"].endswith("IoU points over start")
        assert float(panel["caption"].split()[0]) == pytest.approx(gain, abs=0.051)
    assert "-0.0" not in json.dumps(panels)


def test_gains_are_over_the_control_where_there_is_one(pair: Pair) -> None:
    content = {**BASE, "control": "source_more", "stages": [STAGES[0], {**STAGES[0], "name": "source_more"}, STAGES[1]]}
    content["stages"][2] = {**STAGES[1], "settings": {**OWN, "mode": "pseudo"}}
    assert segshift(*command(pair, content, "weakly.threshold=0")).code == 0
    panels = read_json(pair.run / "03-weakly" / "attention" / "index.json")["panels"]
    assert panels
    assert all(panel["caption"].endswith("IoU points over source_more") for panel in panels)
    assert all([each["network"] for each in panel["maps"]] == ["start", "weakly"] for panel in panels)


def test_a_point_says_that_its_class_is_there(pair: Pair) -> None:
    adapt(pair, "points", [{"image": "001.png", "points": [[3, 4, "car"]]}])
    panels = read_json(pair.run / LAST / "attention" / "index.json")["panels"]
    assert [(panel["class"], panel["name"], panel["points"]) for panel in panels] == [("car", "001", 1)]


def test_without_labels_classes_are_those_that_the_network_sees(pair: Pair) -> None:
    adapt(pair, "pseudo", (), "panels=8")
    panels = read_json(pair.run / LAST / "attention" / "index.json")["panels"]
    assert panels
    for panel in panels:
        assert panel["class"] in guessed(pair, LAST, pair.target / "images" / f"{panel['name']}.png")
        assert (panel["caption"], panel["points"]) == ("", 0)


@pytest.mark.parametrize(("count", "classes"), [(0, 0), (1, 1), (2, 2)])
def test_no_more_pictures_than_the_run_wants(pair: Pair, count: int, classes: int) -> None:
    adapt(pair, "tags", LINES, f"panels={count}")
    index = pair.run / LAST / "attention" / "index.json"
    assert len(read_json(index)["panels"] if index.exists() else []) == classes
    assert index.exists() == bool(count)


# ---- measured when


def test_nothing_is_asked_again_while_it_holds(pair: Pair, request: pytest.FixtureRequest) -> None:
    adapt(pair, "pseudo", LINES, val=True)
    before = {path: path.read_bytes() for path in (pair.run / LAST).rglob("*.j*") if path.is_file()}
    assert len(before) > 3
    request.getfixturevalue("never")
    adapt(pair, "pseudo", LINES, val=True)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_other_labels_are_another_measurement(pair: Pair) -> None:
    """The mode pseudo learns from no label, so the network stays while the figures change."""
    adapt(pair, "pseudo", LINES)
    first = tags(pair)
    done = adapt(pair, "pseudo", [*LINES, {"image": "002.png", "tags": ["car"]}])
    assert "skipped" in done.err
    assert tags(pair)["fingerprint"] != first["fingerprint"]
    assert tags(pair)["parts"][0]["present"] == [1, 1, 1, 0]
    adapt(pair, "pseudo", (), val=True)
    assert asked(pair) == [("labels", "val", 2, False)]
    label = pair.label("val")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(label)
    adapt(pair, "pseudo", (), val=True)
    assert tags(pair)["parts"][0]["present"][0] == 2
    assert tags(pair)["parts"][0]["present"][1:] == [1, 1, 1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": 3}', "null"])
def test_a_damaged_file_is_measured_again(pair: Pair, content: str) -> None:
    adapt(pair, "pseudo", LINES)
    first, panels = tags(pair), read_json(pair.run / LAST / "attention" / "index.json")
    for name in ("tags.json", "attention/index.json"):
        (pair.run / LAST / name).write_text(content)
    adapt(pair, "pseudo", LINES)
    assert tags(pair) == first
    assert read_json(pair.run / LAST / "attention" / "index.json") == panels


# ---- where it cannot be


def test_bad_labels_cost_their_part_alone(pair: Pair) -> None:
    good = pair.label("val", 1).read_bytes()
    adapt(pair, "tags", LINES, val=True)
    cut_short(pair.label("val", 1))
    done = adapt(pair, "tags", LINES, val=True)
    assert "weakly: not everything about its weak labels can be shown" in done.err
    assert asked(pair) == [("tags", "target", 2, True)]
    assert tags(pair)["fingerprint"] is None, "measured again next time"
    pair.label("val", 1).write_bytes(good)
    adapt(pair, "tags", LINES, val=True)
    assert len(asked(pair)) == 2
    assert tags(pair)["fingerprint"]
