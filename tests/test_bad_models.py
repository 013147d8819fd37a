"""Models, images and labels that `predict`, `evaluate`, `report` and `compare` cannot use; nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from workbench import (
    Pair,
    assert_told,
    assert_whole,
    copy_run,
    cut_short,
    label,
    picture,
    read_json,
    save,
    segshift,
    write_classes,
)

Command = Callable[[Pair, Path], Sequence[str | Path]]
MODEL = Path("03-advent") / "model"


def _config(run: Path, **changes: object) -> None:
    path = run / MODEL / "config.json"
    path.write_text(json.dumps(read_json(path) | changes))


def _spoiled(spoil: Callable[[Path], object]) -> Command:
    """`predict` with a copy of the run to which `spoil` was done."""

    def command(pair: Pair, scratch: Path) -> Sequence[str | Path]:
        run = copy_run(pair, scratch / "run")
        spoil(run)
        return ["predict", run, pair.target / "images", "--out", scratch / "out"]

    return command


def _weights_of_three(run: Path) -> None:
    classes = read_json(run / MODEL / "config.json")["classes"]
    _config(run, classes={key: value[:3] for key, value in classes.items()})


def _evaluate(*args: str | Path, then: Callable[[Path], object] | None = None) -> Command:
    def command(pair: Pair, scratch: Path) -> Sequence[str | Path]:
        val = shutil.copytree(pair.val, scratch / "val")
        if then is not None:
            then(val)
        return ["evaluate", pair.run, "--domain", val, *args, "--out", scratch / "out"]

    return command


def _other_classes(pair: Pair, scratch: Path) -> Path:
    return write_classes(scratch / "other.json", ["road", "sky", "bus", "person"])


def _of_other_classes(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    run = copy_run(pair, scratch / "run")
    classes = read_json(run / MODEL / "config.json")["classes"]
    _config(run, classes=classes | {"names": ["road", "sky", "bus", "person"]})
    return ["evaluate", pair.run, "--with", run, "--out", scratch / "out"]


def _without_val(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    run = copy_run(pair, scratch / "run")
    (run / "run.yaml").write_text((run / "run.yaml").read_text().split("\nval:")[0] + "\n")
    return ["evaluate", run]


def _domain_yaml(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    path = scratch / "val.yaml"
    path.write_text(f"root: '{pair.val}'\nlayuot: folders\n")
    return ["evaluate", pair.run, "--domain", path]


def _one_bad_image(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    images = shutil.copytree(pair.target / "images", scratch / "images")
    cut_short(images / "001.png")
    return ["predict", pair.run, images, "--out", scratch / "out"]


def _no_image(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    (scratch / "images").mkdir()
    (scratch / "images" / "readme.txt").write_text("hello")
    return ["predict", pair.run, scratch / "images", "--out", scratch / "out"]


def _twins(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    images = shutil.copytree(pair.target / "images", scratch / "images")
    save(images / "001.jpg", picture(1))
    return ["predict", pair.run, images, "--out", scratch / "out"]


def _out_is_a_file(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    (scratch / "out").write_text("x")
    return ["predict", pair.run, pair.target / "images", "--out", scratch / "out"]


def _evaluate_into_a_file(pair: Pair, scratch: Path) -> Sequence[str | Path]:
    (scratch / "out").write_text("x")
    return ["evaluate", pair.run, "--out", scratch / "out"]


def _gone(path: Path) -> Path:
    """Remove a file or a folder; its path."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return path


def _weights_file(run: Path) -> Path:
    return run / MODEL / "model.safetensors"


# What cannot be used: (the command, words that the message must hold).
MODELS: dict[str, tuple[Command, tuple[str, ...]]] = {
    "no run": (lambda p, s: ["predict", s / "nowhere", p.target], ("nowhere", "does not exist", "model.safetensors")),
    "no model in the folder": (lambda p, s: ["predict", p.target, p.target], ("target", "no trained model", "to do")),
    "run that is a file": (lambda p, s: ["predict", p.classes, p.target], ("classes.json", "no trained model")),
    "run that did not finish": (
        _spoiled(lambda r: [_gone(model) for model in r.glob("*/model")]),
        ("no trained model", "run its command"),
    ),
    "weights truncated": (_spoiled(lambda r: cut_short(_weights_file(r))), ("03-advent/model", "to do")),
    "weights of zero bytes": (_spoiled(lambda r: _weights_file(r).write_bytes(b"")), ("03-advent/model", "to do")),
    "weights missing": (_spoiled(lambda r: _weights_file(r).unlink()), ("model.safetensors", "does not exist")),
    "weights that are a folder": (
        _spoiled(lambda r: _gone(_weights_file(r)).mkdir()), ("03-advent/model", "to do"),
    ),
    "weights of another class list": (_spoiled(_weights_of_three), ("03-advent/model", "size mismatch", "to do")),
    "weights of another network": (
        _spoiled(lambda r: _config(r, net={"name": "deeplab_v2_vgg16", "options": {}})), ("03-advent/model", "to do"),
    ),
    "network unknown": (
        _spoiled(lambda r: _config(r, net={"name": "deeplab_liet", "options": {}})),
        ("'deeplab_liet'", "'deeplab_lite'"),
    ),
    "options that are a list": (
        _spoiled(lambda r: _config(r, net={"name": "deeplab_lite", "options": []})), ("03-advent/model", "to do"),
    ),
    "config truncated": (_spoiled(lambda r: cut_short(r / MODEL / "config.json")), ("config.json", "to do")),
    "config that is a list": (
        _spoiled(lambda r: (r / MODEL / "config.json").write_text("[1]")), ("03-advent/model", "to do"),
    ),
    "config without size": (_spoiled(lambda r: _config(r, size=[])), ("03-advent/model", "to do")),
    "config of a later version": (_spoiled(lambda r: _config(r, format=99)), ("format 99", "update segshift")),
    "image among good ones truncated": (_one_bad_image, ("1 of 3 images", "001.png", "same command again")),
    "no image to predict": (_no_image, ("images", "no image", "check the path")),
    "folder to predict missing": (
        lambda p, s: ["predict", p.run, s / "nowhere", "--out", s / "out"], ("nowhere", "does not exist", "to do"),
    ),
    "two images of one stem": (_twins, ("001.jpg", "001.png", "rename")),
    "output that is a file": (_out_is_a_file, ("out", "is a file", "to do")),
    "figures into a file": (_evaluate_into_a_file, ("out", "is a file", "to do")),
    "evaluate with another class list": (
        lambda p, s: ["evaluate", p.run, "--classes", _other_classes(p, s)], ("other.json", "bus", "car", "to do"),
    ),
    "evaluate with a model of other classes": (_of_other_classes, ("bus", "car", "same class list")),
    "evaluate without labels": (
        lambda p, s: ["evaluate", p.run, "--domain", p.target], ("no folder of labels", "target", "to do"),
    ),
    "evaluate a folder that is missing": (
        lambda p, s: ["evaluate", p.run, "--domain", p.root / "vla"], ("vla", "does not exist", "'val'"),
    ),
    "evaluate a run without val": (_without_val, ("no labelled part", "--domain")),
    "evaluate a domain with an unknown key": (_domain_yaml, ("'layuot'", "'layout'")),
    "evaluate a damaged label": (
        _evaluate(then=lambda val: cut_short(val / "labels" / "000.png")), ("labels/000.png", "cannot be decoded"),
    ),
    "evaluate a label of another size": (
        _evaluate(then=lambda val: save(val / "labels" / "000.png", label(1, 32, 24))), ("32x24", "resize_labels"),
    ),
    "evaluate labels that are all ignored": (
        _evaluate(then=lambda val: [save(path, label(1) * 0 + 255) for path in (val / "labels").iterdir()]),
        ("not one pixel", "class_map"),
    ),
    "scales in words": (_evaluate("--scales", "large"), ("--scales large", "0.75,1,1.25")),
    "scale of zero": (_evaluate("--scales", "0"), ("scales", "above 0")),
    "window with one side": (_evaluate("--window", "5"), ("window", "to do")),
    "window in words": (_evaluate("--window", "5xb"), ("--window 5xb", "512x512")),
    "window of nothing": (_evaluate("--window", "0x0"), ("window", "at least 1")),
    "report of no run": (lambda p, s: ["report", s / "nowhere"], ("nowhere", "to do")),
    "report of another folder": (lambda p, s: ["report", p.target], ("target", "to do")),
    "report of a file": (lambda p, s: ["report", p.classes], ("classes.json", "to do")),
    "compare with no run": (
        lambda p, s: ["compare", p.run, s / "nowhere", "--out", s / "c.html"], ("nowhere", "to do"),
    ),
    "compare into what is below a file": (
        lambda p, s: ["compare", p.run, p.run, "--out", p.classes / "c.html"], ("classes.json", "to do"),
    ),
    "recipe unknown": (lambda p, s: ["recipes", "cpu/avent"], ("'cpu/avent'", "'cpu/advent'")),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_what_cannot_be_used(trained: Pair, tmp_path: Path, case: str) -> None:
    command, words = MODELS[case]
    args = command(trained, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert_told(segshift(*args), *words)
    written = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    if "truncated" in case and "image" in case:
        assert len(list((tmp_path / "out" / "ids").iterdir())) == 2
        assert_whole(tmp_path / "out")
    else:
        assert not [path for path in written if path.is_file()]


def test_published_files_of_other_names_are_told(tmp_path: Path) -> None:
    command = ("evaluate", "--layout", "advent", "--domain", tmp_path, "--published")
    torch.save({"module.conv1.weight": torch.zeros(2)}, tmp_path / "parallel.pth")
    assert_told(segshift(*command, tmp_path / "parallel.pth"), "of a DataParallel", "removeprefix")
    torch.save({1: torch.zeros(2)}, tmp_path / "numbered.pth")
    assert_told(segshift(*command, tmp_path / "numbered.pth"), "its 1 tensors begin with 1")


def test_published_files_that_are_no_tensors_are_not_advised_to_be_run(tmp_path: Path) -> None:
    """torch's own words are to load them with weights_only=False, which lets a file run code."""
    command = ("evaluate", "--layout", "proda", "--domain", tmp_path, "--published")
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    assert_told(segshift(*command, tmp_path / "page.pth"), "no PyTorch checkpoint", "download it again")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    told = segshift(*command, tmp_path / "whole.pth")
    assert_told(told, "Python objects (torch.nn.modules.linear.Linear), which could run code", "state_dict()")
