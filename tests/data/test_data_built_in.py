"""Class lists by name: which there are, that a file wins, and what an unknown name is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segshift import api
from segshift.config import RunSettings
from segshift.data.classes import CITYSCAPES_19, SIXTEEN, THIRTEEN, cityscapes_indices, read_classes
from segshift.errors import UserError
from segshift.setup import dump_yaml

ORDER = "road sidewalk building wall fence pole light sign vegetation terrain sky person rider car truck bus train"
"""methods.md section 0.1, and then motorcycle and bicycle."""


def test_the_lists() -> None:
    nineteen, sixteen = read_classes(Path("cityscapes_19")), read_classes(Path("cityscapes_16"))
    assert nineteen.names == CITYSCAPES_19
    assert [name.rpartition(" ")[2] for name in nineteen.names] == [*ORDER.split(), "motorcycle", "bicycle"]
    assert sixteen.names == tuple(n for n in CITYSCAPES_19 if n not in ("terrain", "truck", "train"))
    for name, colour in zip(sixteen.names, sixteen.palette, strict=True):
        assert colour == nineteen.palette[nineteen.names.index(name)]


def test_the_means_of_papers_are_taken_with_them() -> None:
    assert cityscapes_indices(read_classes(Path("cityscapes_19")), SIXTEEN) == SIXTEEN
    sixteen = read_classes(Path("cityscapes_16"))
    assert cityscapes_indices(sixteen, SIXTEEN) == tuple(range(16))
    starred = cityscapes_indices(sixteen, THIRTEEN)
    assert starred is not None
    assert {sixteen.names[i] for i in range(16)} - {sixteen.names[i] for i in starred} == {"wall", "fence", "pole"}


def test_a_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cityscapes_16").mkdir()
    assert len(read_classes(Path("cityscapes_16"))) == 16, "a folder is no file"
    Path("cityscapes_19").write_text("[road, sky]", encoding="utf-8")
    assert read_classes(Path("cityscapes_19")).names == ("road", "sky")
    assert len(read_classes(tmp_path / "cityscapes_19")) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cityscape_19", "did you mean 'cityscapes_19'"),
        ("cityscapes_13", "did you mean 'cityscapes_1"),
        ("cityscapes", "did you mean 'cityscapes_1"),
        ("classes.txt", "known: cityscapes_16, cityscapes_19"),
    ],
)
def test_an_unknown_name_is_a_missing_file(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_classes(Path(name))
    assert f"class file {name} does not exist" in caught.value.found
    assert says in caught.value.remedy


def test_settings_take_and_keep_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.yaml of a run has the name, not a path to a file that is not there."""
    monkeypatch.chdir(tmp_path)
    settings = api.compose(method="advent", classes="cityscapes_16", source="a", target="b")
    assert isinstance(settings, RunSettings)
    assert yaml.safe_load(dump_yaml(settings))["classes"] == "cityscapes_16"
    Path("cityscapes_16").write_text("[road, sky]", encoding="utf-8")
    assert yaml.safe_load(dump_yaml(settings))["classes"] == str((tmp_path / "cityscapes_16").resolve())
