"""Suggestions by a trained model: what the other process computes, keeps, refuses, and when it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from annotate_site import Client, Site, until

from segshift.annotate import predicting
from segshift.annotate.folder import Folder, open_folder
from segshift.annotate.suggestions import Suggestions
from segshift.data.classes import make_classes
from segshift.engine.model import load_model
from segshift.errors import UserError
from workbench import NAMES, Pair, environment


def everything(suggestions: Suggestions, folder: Folder) -> None:
    until(lambda: suggestions.ranked() is not None or suggestions.standing()["failure"], 120)
    assert suggestions.standing()["computed"] == len(folder.names)


def test_what_a_model_sees(trained: Pair, tmp_path: Path) -> None:
    # The class list has another order, one that the model does not know, and not all that it knows.
    shutil.copytree(trained.target / "images", tmp_path / "images")
    folder, classes = open_folder(tmp_path / "images"), make_classes(["person", "water", "road", "sky"])
    suggestions = Suggestions(trained.run, folder, classes, tmp_path, set(folder.names), "cpu")
    try:
        everything(suggestions, folder)
        model = load_model(trained.run)
        entropies = {}
        for name in folder.names:
            answer = model.predict(folder.file(name))
            shares = {name: (answer.ids == i).mean() for i, name in enumerate(NAMES)}
            wanted = {name for name in classes.names if shares.get(name, 0) >= predicting.LEAST}
            assert suggestions.of(name) == tuple(name for name in classes.names if name in wanted)
            seen, entropies[name] = predicting.look(model, folder.file(name))
            assert {NAMES[i] for i in seen} - {"car"} == wanted
        assert suggestions.ranked() == tuple(sorted(folder.names, key=lambda name: -round(entropies[name], 6)))
        assert suggestions.standing()["failure"] == ""
    finally:
        suggestions.stop()
    # The next start has them from the file, at once where all are there; a changed image is looked at anew.
    kept = next(tmp_path.glob("suggestions-*.jsonl"))
    lines = kept.read_text().splitlines()
    os.utime(folder.file(folder.names[0]), (1, 1))
    again = Suggestions(trained.run, folder, classes, tmp_path, set(), "cpu")
    try:
        assert again.of(folder.names[1]) == suggestions.of(folder.names[1])
        everything(again, folder)
        assert again.ranked() == suggestions.ranked()
    finally:
        again.stop()
    after = kept.read_text().splitlines()
    assert after[:-1] == lines
    assert json.loads(after[-1])["image"] == folder.names[0]


def test_an_image_that_is_deleted_while_the_model_loads(trained: Pair, tmp_path: Path) -> None:
    shutil.copytree(trained.target / "images", tmp_path / "images")
    folder = open_folder(tmp_path / "images")
    folder.file(folder.names[0]).unlink()
    suggestions = Suggestions(trained.run, folder, make_classes(NAMES), tmp_path, set(), "cpu")
    try:
        everything(suggestions, folder)
        assert suggestions.standing()["unreadable"] == 1
        assert (suggestions.ranked() or ())[-1] == folder.names[0]
    finally:
        suggestions.stop()


def test_entropy_is_zero_where_it_is_sure_and_one_where_it_knows_nothing(
    monkeypatch: pytest.MonkeyPatch, trained: Pair
) -> None:
    model, file = load_model(trained.run), next(iter(open_folder(trained.target).items.values())).image
    width, height = model.size
    sure = torch.zeros(1, 4, height, width)
    sure[:, 1] = 100.0
    sure[:, :, :, : width // 2] = 0.0
    monkeypatch.setattr(predicting, "logits_at", lambda *args: sure)
    seen, entropy = predicting.look(model, file)
    assert entropy == pytest.approx(0.5, abs=1e-5)
    assert seen == [0, 1]  # the first of equal ones
    sure[:] = 0
    sure[0, 3, 0, 0] = 1.0  # one pixel of 3072
    assert predicting.look(model, file)[0] == [0, 3]


def test_models_of_other_classes(trained: Pair, tmp_path: Path) -> None:
    folder = open_folder(trained.target)
    with pytest.raises(UserError, match="the model knows road, sky, car, person"):
        Suggestions(trained.run, folder, make_classes(["tree", "water"]), tmp_path, set(), "cpu")


def test_classes_that_are_spelt_otherwise(trained: Pair, tmp_path: Path) -> None:
    """As everywhere: capitals, spaces and underscores do not matter. Of the model's it has the sky alone."""
    folder = open_folder(trained.target)
    suggestions = Suggestions(trained.run, folder, make_classes(["tree", "_Sky"]), tmp_path, set(), "cpu")
    try:
        assert suggestions._usable(list(NAMES)) == [None, "_Sky", None, None]
        assert suggestions._usable(["0", "SKY"]) == [None, "_Sky"]
    finally:
        suggestions.stop()


def test_the_command_with_suggestions(trained: Pair, tmp_path: Path) -> None:
    """Served while they are computed; an image that cannot be read does not stop it; kill -9 leaves nobody behind."""
    site = Site(tmp_path)
    site.images.mkdir()
    for name, item in open_folder(trained.target).items.items():
        (site.images / Path(name).name).write_bytes(item.image.read_bytes())
    (site.images / "broken.png").write_bytes(b"no image")
    site.classes.write_text("\n".join(NAMES))
    link = site.start("--suggest", str(trained.run), "--device", "cpu")
    assert site.process is not None
    helpers = Path(f"/proc/{site.process.pid}/task/{site.process.pid}/children").read_text().split()
    assert len(helpers) == 1
    client = Client(site.port, link.rstrip("/").rpartition("/")[2])
    until(lambda: client.get("api/session").json["ranked"], 120)
    session = client.get("api/session").json
    assert session["suggest"] | {"run": ""} == {
        "run": "", "computed": session["total"], "unreadable": 1, "failure": "",
    }  # fmt: skip
    assert session["images"][-1] == "broken.png"
    assert client.label(session["images"][0])["suggested"]
    assert not site.out.exists()
    site.kill()
    until(lambda: not Path(f"/proc/{helpers[0]}").exists() or _is_dead(helpers[0]))


def _is_dead(process: str) -> bool:
    """Whether it has ended and only waits for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_ends_with_its_input(trained: Pair) -> None:
    command = [sys.executable, "-m", "segshift.annotate.predicting", str(trained.run), "cpu"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert '"model"' in process.stdout.readline()
    file = str(next(iter(open_folder(trained.target).items.values())).image)
    process.stdin.write(
        f'{{"names": ["road", "sky", "car", "person"], "files": {[["a", file]] * 5000}}}\n'.replace("'", '"')
    )
    process.stdin.flush()
    assert '"entropy"' in process.stdout.readline()
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert said.count("entropy") < 4999
