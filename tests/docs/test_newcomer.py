"""A newcomer with the README alone: the demo, own folders with labels in colours, predictions. Few commands."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_pages import ROOT, Block, blocks_of, commands_of
from doc_world import HEIGHT, WIDTH, ids_of, painted, photograph, save, small_runs
from PIL import Image

from workbench import Outcome, assert_told, read_json, segshift

MOST_COMMANDS = 6
ACTIVATE = ". .venv/bin/activate"
COLOURS = {"lane": (10, 200, 30), "heaven": (200, 255, 255), "lorry": (17, 0, 96), "walker": (255, 120, 0)}
"""Neither the names nor the colours of any data set."""

NAMES = ("Frame 001 (cam.1)", "night drive/Frame 002", "Straße-3.final")


def readme() -> list[Block]:
    return blocks_of(ROOT / "README.md")


def own_commands() -> list[str]:
    """What the README says to type for own data."""
    (found,) = [block for block in readme() if block.language == "sh" and "segshift check" in block.text]
    return list(commands_of(found))


def run(command: str) -> Outcome:
    words = shlex.split(command)
    assert words[0] == "segshift", command
    return segshift(*words[1:])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders as a person has them: odd names, photographs as JPEG, labels painted in colours of their own."""
    monkeypatch.chdir(tmp_path)
    colours = dict(enumerate(COLOURS.values()))
    for domain, seed, labelled in (("synthetic", 0, True), ("camera", 20, False), ("camera_val", 40, True)):
        for number, name in enumerate(NAMES):
            ids = ids_of(seed + number)
            save(tmp_path / domain / "images" / f"{name}.jpg", photograph(ids, seed + number))
            if labelled:
                save(tmp_path / domain / "labels" / f"{name}_mask.png", painted(ids, colours))
    (listed,) = [block for block in readme() if block.file == "classes.yaml"]
    content = yaml.safe_load(listed.text)
    assert len(content["classes"]) == len(COLOURS)
    for entry, (name, colour) in zip(content["classes"], COLOURS.items(), strict=True):
        entry |= {"name": name, "color": list(colour)}
    (tmp_path / listed.file).write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


def test_the_path_is_short() -> None:
    assert ACTIVATE in (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(block for block in readme() if block.language == "sh")
    typed = [next(commands_of(first)), ACTIVATE, *own_commands()]
    assert typed[0] == "make demo"
    assert typed[-1].startswith("segshift predict")
    assert len(typed) <= MOST_COMMANDS


def test_make_demo_is_the_demo() -> None:
    told = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == ".venv/bin/segshift demo"


def test_from_coloured_labels_to_predictions(home: Path) -> None:
    check, adapt, predict = own_commands()
    with small_runs(true_net=True):
        checked = run(check)
        assert checked.code == 0, checked
        assert "the data is in order" in checked.out
        for name in COLOURS:
            assert f"in {len(NAMES)} images" in next(line for line in checked.out.splitlines() if f" {name} " in line)
        assert (home / "check" / "contact-sheet.png").is_file()

        adapted = run(adapt)
        assert adapted.code == 0, adapted
        assert "source_control" in adapted.out
        assert str(home / "runs" / "camera" / "report.html") in adapted.out
        assert set(read_json(home / "runs" / "camera" / "metrics.json")["models"]["advent"]["classes"]) == set(COLOURS)

        predicted = run(predict)
        assert predicted.code == 0, predicted
    for name in NAMES:
        with Image.open(home / "masks" / "ids" / f"{name}.png") as mask:
            assert mask.size == (WIDTH, HEIGHT)
            assert np.array(mask).max() < len(COLOURS)
            palette = mask.getpalette() or []
        assert tuple(palette[:3]) == COLOURS["lane"], "seen in the colours of the class list"
        assert (home / "masks" / "overlay" / f"{name}.jpg").is_file()
        assert (home / "masks" / "confidence" / f"{name}.png").is_file()


def test_names_without_colours_are_told(home: Path) -> None:
    (home / "classes.yaml").write_text(yaml.safe_dump({"classes": list(COLOURS)}), encoding="utf-8")
    told = run(own_commands()[0])
    assert_told(told, "colours that no class has", '"10,200,30"', "class_map", "palette", "--data", code=1)


def test_labels_elsewhere_are_told_and_can_be_named(home: Path) -> None:
    (home / "synthetic" / "labels").rename(home / "painted")
    command = own_commands()[0]
    assert_told(run(command), "no folder of labels", "--set source.labels=FOLDER", code=1)
    mended = run(f"{command} --set source.labels=../painted")
    assert mended.code == 0, mended
