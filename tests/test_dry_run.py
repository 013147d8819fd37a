"""`adapt --dry-run`: every recipe passes, by the code of a real run, and what goes wrong is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segshift import recipes
from segshift.config import RunSettings, read_yaml, validated
from segshift.data.classes import BUILT_IN
from segshift.dry_run import LEAST, SIDE, SIDES, STEPS
from segshift.setup import UNEVEN, stage_folder
from segshift.supervision import TOO_FEW
from segshift.weak.label import Point, WeakLabel
from segshift.weak.store import WeakStore
from workbench import NAMES, Outcome, Pair, assert_told, environment, make_pair, read_json, segshift, spawn


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """A folder for --out that does not outlive the test: some recipes leave gigabytes."""
    yield tmp_path / "kept"
    shutil.rmtree(tmp_path / "kept", ignore_errors=True)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, empty and with a path short enough for sockets, and one to work in without any
    weights."""
    temporary = Path(tempfile.mkdtemp(prefix="dry-"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.chdir(tmp_path)
    yield temporary
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def quick_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights from a table. A dry run builds ResNet-101 up to forty times, mostly to fill it from a file."""
    table = 0.02 * torch.randn(65_537, generator=torch.Generator().manual_seed(0))

    def fill(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        flat = tensor.detach().view(-1)
        whole = len(flat) // len(table) * len(table)
        flat[:whole].view(-1, len(table)).copy_(table)
        flat[whole:].copy_(table[: len(flat) - whole])
        return tensor

    for name in ("kaiming_uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, fill)


def assert_passed(done: Outcome, names: list[str]) -> None:
    """A line a stage with its seconds, and the last one."""
    assert done.code == 0, done
    lines = done.out.splitlines()
    for name in names:
        assert any(re.fullmatch(rf"{name} +\d+\.\d s", line) for line in lines), done.out
    assert lines[-1] == f"dry run passed: {len(names)} stages"


def left(folder: Path) -> list[str]:
    """What is in the folder of temporary files but torch's own."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(line) for line in log.read_text(encoding="utf-8").splitlines()]


# ---- bar 1 of issue 6


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_passes(name: str, kept: Path, nowhere: Path, quick_weights: None) -> None:
    recipe = validated(RunSettings, recipes.read(name), name)
    # Pictures are a quarter of the time, and those of SYNTHIA's recipes are their GTA5 siblings'.
    fewer = ["--set", "panels=0"] if name.startswith("synthia") else []
    done = segshift("adapt", "--recipe", name, "--dry-run", *fewer, "--out", kept, "--device", "cpu")
    assert_passed(done, [stage.name for stage in recipe.stages])
    assert UNEVEN not in done.err, "steps are those of the dry run: it says nothing of the recipe"
    run = kept / "run"
    settings = validated(RunSettings, read_yaml(run / "run.yaml"), "run.yaml")
    for stage, asked in zip(settings.stages, recipe.stages, strict=True):
        folder = stage_folder(run, settings, stage.name)
        assert read_json(folder / "stage.json")["done"]
        if stage.method is None:
            continue
        steps = [line["step"] for line in lines_of(folder / "log.jsonl") if "loss" in line]
        assert steps == list(range(1, min(STEPS, asked.steps) + 1))
        # The network is the recipe's own, for its own classes.
        config = read_json(folder / "model" / "config.json")
        net = asked.net if asked.net is not None and asked.net.name else recipe.net
        assert config["net"]["name"] == net.name
        if recipe.classes is not None:
            assert config["classes"]["names"] == list(BUILT_IN[str(recipe.classes)])
    assert settings.size != "auto"
    assert min(settings.size) == SIDES.get(recipe.net.name, SIDE)
    metrics = read_json(run / "metrics.json")
    assert set(metrics["models"]) >= {recipe.stages[-1].name}
    assert (run / "report.html").stat().st_size > 10_000
    assert not left(nowhere)


# ---- through the command line, as a user would


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["gta5_cityscapes/minent_vgg16", "synthia_cityscapes/minent_vgg16"])
def test_on_the_command_line_nothing_is_left(name: str, nowhere: Path, tmp_path: Path) -> None:
    done = spawn("adapt", "--recipe", name, "--dry-run", "--device", "cpu", cwd=tmp_path, timeout=500)
    assert_passed(done, ["source_only", "minent"])
    assert {"gta5": "GTA5, Cityscapes", "synthia": "SYNTHIA"}[name.partition("_")[0]] in done.out
    assert "target 1024x512 → 64x32" in done.out
    assert re.search(r"weights/\S+ is not there", done.out)
    assert "mIoU" not in done.out, "a figure of a dry run means nothing"
    assert not list(tmp_path.iterdir())
    assert not left(nowhere)


QUICK = ("--method", "source_only", "--set", "net.options.width=16", "--set", "net.options.weights=none")


def test_without_data_and_recipe_for_benchmarks(nowhere: Path, tmp_path: Path) -> None:
    done = segshift("adapt", *QUICK, "--dry-run", "--device", "cpu")
    assert_passed(done, ["source_only"])
    assert "plain folders" in done.out
    assert "scale 0.5" in done.out
    assert not left(nowhere)
    assert not (tmp_path / "runs").exists()


def test_a_class_list_of_ones_own_has_plain_folders_of_it(nowhere: Path, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("lawn\ngravel\nhedge\n", encoding="utf-8")
    done = segshift("adapt", *QUICK, "--classes", "classes.txt", "--dry-run", "--out", kept, "--device", "cpu")
    assert_passed(done, ["source_only"])
    assert set(read_json(kept / "run" / "metrics.json")["models"]["source_only"]["classes"]) == {
        "lawn",
        "gravel",
        "hedge",
    }


def test_a_killed_dry_run_leaves_nothing(nowhere: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segshift", "adapt", "--method", "advent", "--dry-run", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    assert "plain folders" in process.stdout.readline()  # the folder is there; nothing is trained yet
    assert left(nowhere)
    process.terminate()
    _, told = process.communicate(timeout=120)
    assert process.returncode in (143, 130), told
    assert "Traceback" not in told
    assert not left(nowhere)


# ---- on data of one's own


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "own")


def test_own_data_is_used_where_it_is_given(pair: Pair, nowhere: Path, kept: Path) -> None:
    done = segshift("adapt", *pair.data(val=True), *QUICK, "--dry-run", "--out", kept, "--device", "cpu")
    assert_passed(done, ["source_only"])
    assert "of source, target, val" in done.out
    settings = validated(RunSettings, read_yaml(kept / "run" / "run.yaml"), "run.yaml")
    assert settings.source is not None
    assert settings.source.root == pair.source.resolve()
    listed = (kept / "data" / "source.txt").read_text(encoding="utf-8").split()
    assert listed == ["./000.png", "./001.png", "./002.png"]
    assert not (kept / "data" / "gta5").exists()


def test_few_of_many_images_from_all_over_and_labelled_ones(nowhere: Path, kept: Path, tmp_path: Path) -> None:
    own = make_pair(tmp_path / "own")
    for domain in ("source", "target"):
        for index in range(3, 20):
            shutil.copy(own.image(domain), own.image(domain, index))
            if domain == "source":
                shutil.copy(own.label(domain), own.label(domain, index))
    labels = [WeakLabel(f"{i:03d}.png", NAMES[:2], points=(Point(3, 4, NAMES[0]),)) for i in (7, 11)]
    WeakStore(tmp_path / "weak.jsonl").extend(labels)
    sets = [argument.replace("source_only", "weak_labels") for argument in QUICK]
    done = segshift(
        "adapt", *own.data(), *sets, "--weak", tmp_path / "weak.jsonl", "--dry-run", "--out", kept, "--device", "cpu"
    )
    assert_passed(done, [stage["name"] for stage in recipes.read("cpu/weak_labels")["stages"]])
    source = (kept / "data" / "source.txt").read_text(encoding="utf-8").split()
    assert len(source) == 6
    assert source[0] < "./004.png"
    assert source[-1] > "./015.png"
    assert (kept / "data" / "target.txt").read_text(encoding="utf-8").split() == ["./007.png", "./011.png"]
    assert "learns from points of 2 images" in done.err
    assert TOO_FEW not in done.err


def test_names_that_no_list_can_hold_are_left_out(nowhere: Path, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    for folder in (pair.source / "images", pair.source / "labels", pair.target / "images"):
        first, second, *_ = sorted(folder.iterdir())
        first.rename(folder / "two\nlines.png")
        second.rename(Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")))
    command = ("adapt", "--recipe", "cpu/source_only", "--dry-run", *pair.data())
    done = segshift(*command)
    assert done.code == 0, done.err
    for path in [*pair.target.glob("images/0*.png")]:
        path.rename(path.with_name(f"{path.stem}\n.png"))
    assert_told(segshift(*command), "target: every name", "rename")


def test_sizes_and_crops_have_one_scale(nowhere: Path, kept: Path, pair: Pair) -> None:
    sets = ["size=[512,256]", "source_size=[640,320]", "source_augment.crop=[256,160]", "target_augment.crop=[64,64]"]
    sets += ["evaluation.window=[384,256]", "evaluation.scales=[0.5,1,1.5]", "batch_size=8", "source_only.steps=2"]
    given = [argument for each in sets for argument in ("--set", each)]
    done = segshift("adapt", *pair.data(), *QUICK, *given, "--dry-run", "--out", kept, "--device", "cpu")
    assert_passed(done, ["source_only"])
    small = validated(RunSettings, read_yaml(kept / "settings.yaml"), "settings.yaml")
    assert (small.size, small.source_size) == ((128, 64), (160, 80))
    assert (small.source_augment.crop, small.target_augment.crop) == ((64, 40), (LEAST, LEAST))
    assert (small.evaluation.window, small.evaluation.scales) == ((96, 64), (1, 1.5))
    assert (small.batch_size, small.stages[0].steps) == (2, 2)
    assert "target 512x256 → 128x64, source 640x320 → 160x80 (scale 0.25" in done.out


def test_a_published_file_that_is_there_is_read(nowhere: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    net = ["--set", "net.checkpoint=weights.pth", "--set", "net.layout=efficientnet_lite0"]
    failed = segshift("adapt", *QUICK, *net, "--dry-run", "--device", "cpu")
    assert_told(failed, "weights.pth", "cannot be read")
    done = segshift(
        "adapt", *QUICK, *(a.replace("weights.pth", "gone.pth") for a in net), "--dry-run", "--device", "cpu"
    )
    assert_passed(done, ["source_only"])
    assert "gone.pth is not there" in done.out


# ---- what goes wrong is told


def test_a_folder_with_something_in_it_is_refused(nowhere: Path, pair: Pair) -> None:
    done = segshift("adapt", *QUICK, "--dry-run", "--out", pair.root)
    assert_told(done, "is not empty", "choose another --out", "if an earlier dry run left it")
    assert_told(segshift("adapt", *QUICK, "--dry-run", "--out", pair.classes), "is a file", "choose another --out")
    assert not (pair.root / "run").exists()


def test_half_of_the_data_is_refused(nowhere: Path, pair: Pair) -> None:
    told = segshift("adapt", *QUICK, "--source", pair.source, "--val", pair.val, "--dry-run")
    assert_told(told, "source, val", "all of your data, or none", "leave out --source and --val")
    assert not left(nowhere)


def test_nothing_is_written_among_the_images(nowhere: Path, pair: Pair) -> None:
    out = pair.source / "images" / "dry"
    assert_told(segshift("adapt", *pair.data(), *QUICK, "--dry-run", "--out", out), "lies among the images")
    assert not out.exists()


def test_what_stops_a_run_stops_a_dry_run(nowhere: Path, pair: Pair) -> None:
    assert_told(segshift("adapt", "--recipe", "cpu/advnt", "--dry-run"), "unknown recipe")
    assert_told(segshift("adapt", *QUICK, "--set", "source_only.stps=3", "--dry-run"), "unknown setting")
    pair.label("source", 1).unlink()
    assert_told(segshift("adapt", *pair.data(), *QUICK, "--dry-run"), "1 image has no label")
    assert not left(nowhere)


def test_an_evaluation_that_fails_is_no_pass(nowhere: Path, pair: Pair) -> None:
    """A real run only tells of it: its training needs no labels of the target."""
    pair.label("val", 1).write_bytes(b"no picture")
    done = segshift("adapt", *pair.data(val=True), *QUICK, "--dry-run", "--device", "cpu")
    assert_told(done, "not the evaluation", "segshift check")
    assert "dry run passed" not in done.out
    assert not left(nowhere)
