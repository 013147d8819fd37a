"""`segshift labels`: help, counts, and how it is called."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperOption
from weak_files import CLASSES, Place, label, make_place, save

from segshift import labels_cli
from segshift.annotate.folder import open_folder
from segshift.data.domains import DomainSettings, open_domain
from segshift.weak.label import WeakLabel
from segshift.weak.matching import match
from segshift.weak.stats import stats
from workbench import environment, segshift

VERBS = vars(typer.main.get_command(labels_cli.app))["commands"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def test_the_verbs() -> None:
    assert set(VERBS) == {"import", "export", "stats"}
    shown = segshift("labels", "--help")
    assert shown.code == 0
    for verb, command in VERBS.items():
        assert f"\n  {verb} " in shown.out
        assert command.help
        assert segshift("labels", verb, "--help").code == 0
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{verb}: {parameter.name} has no help"
        assert sum(isinstance(p, TyperOption) and p.name != "help" for p in command.params) <= 12


def test_help_brings_nothing_heavy() -> None:
    code = (
        "import sys, contextlib\nfrom segshift.cli import main\nsys.argv = ['segshift', 'labels', 'import', '--help']\n"
    )
    code += "with contextlib.suppress(SystemExit):\n    main()\nprint(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"torch", "numpy", "PIL", "yaml"} & set(done.stdout.splitlines()[-1].split())


def test_images_are_those_that_annotate_and_the_domain_list(place: Place, tmp_path: Path) -> None:
    """With a whole dataset's folder as --images, paths begin below its images, and label files are none of them."""
    save(place.root / "labels" / "drive" / "0001.png")
    file = place.put("tags.csv", "image,classes\na.jpg,road\n0001.png,road\n")
    arguments: list[str | Path] = ["--images", place.root, "--classes", place.classes, "--out", place.out]
    done = segshift("labels", "import", file, *arguments)
    assert done.code == 0, done
    assert set(place.store.read()) == {"a.jpg", "drive/0001.png"} <= set(open_folder(place.root).names)
    domain = open_domain(DomainSettings(root=place.root), CLASSES, labelled=False, name="target")
    assert match(place.store.read(), domain, CLASSES).keys() == {"a", "drive/0001"}


def saved(image: str, seconds: int, who: str | None, *tags: str) -> WeakLabel:
    when = f"2025-06-01T12:{seconds // 60:02d}:{seconds % 60:02d}Z"
    return replace(label(image, tags, (1, 1, tags[0])), who=who, when=when)


def test_counts() -> None:
    lines = [
        saved("a.jpg", 0, "me", "road"),
        saved("a.jpg", 4, "me", "road", "sky"),
        saved("b.jpg", 10, "me", "sky"),
        saved("c.jpg", 40, "me", "sky"),
        saved("b.jpg", 50, "you", "car"),
        replace(label("d.jpg", ("road",)), complete=False),
        label("e.jpg", None, (1, 1, "road"), (2, 2, "road")),
        WeakLabel("d.jpg"),
        WeakLabel("f.jpg", (), complete=False, who="me"),
    ]
    counted = stats(lines, ("sky", "person"))
    assert (counted.lines, counted.images, counted.tagged, counted.pointed) == (9, 4, 3, 4)
    assert (counted.taken_back, counted.positive_only, counted.points) == (2, 0, 5)
    assert counted.classes == {"sky": (2, 1, 1), "person": (0, 0, 0), "road": (1, 3, 2), "car": (1, 1, 1)}
    me, nobody, you = counted.annotators
    assert (me.name, me.saves, me.images, me.between_saves, me.an_image) == ("me", 5, 2, 6.0, 18.0)
    assert (nobody.name, nobody.saves, nobody.images, nobody.between_saves) == (None, 3, 1, None)
    assert (you.name, you.saves, you.images, you.an_image) == ("you", 1, 1, None)


def test_stats_verb(place: Place) -> None:
    place.store.extend([saved("a.jpg", 0, "me", "0"), saved("b.jpg", 30, "me", "sky")])
    done = segshift("labels", "stats", place.out, "--classes", place.classes)
    assert done.code == 0, done
    lines = [line.split() for line in done.out.splitlines()]
    assert ["road", "1", "1", "1"] in lines
    assert ["person", "0", "0", "0"] in lines
    assert ["me", "2", "2", "30.0", "30.0"] in lines
    assert "2 images with labels: 2 with tags (0 positive-only), 2 with points (2)" in done.out
    assert ["0", "1", "1", "1"] in [line.split() for line in segshift("labels", "stats", place.out).out.splitlines()]
