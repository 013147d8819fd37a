"""The command line: help that answers at once, few options a verb, and the whole job through it, end to end."""

from __future__ import annotations

import importlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image
from typer.core import TyperGroup, TyperOption

from segshift import cli, demo_data, recipes
from segshift.config import RunSettings, StageSettings, validated
from segshift.data.classes import read_classes
from segshift.setup import open_domains, stage_settings
from workbench import COLOURS, NAMES, Pair, assert_told, assert_whole, environment, label, make_pair, save, segshift

VERBS = (
    "demo", "check", "adapt", "evaluate", "predict", "report", "compare", "recipes", "labels", "annotate", "features",
    "select",
)  # fmt: skip
OPTIONAL = ("playwright", "torchmetrics", "pytest", "hypothesis", "beartype", "cv2", "torchvision", "timm", "onnx")
"""Packages that no user needs to have."""


def _commands() -> dict[str, Any]:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


def _modules_after(statement: str) -> set[str]:
    """Top-level packages that are loaded in a fresh process after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment()
    )
    return set(done.stdout.splitlines()[-1].split())


def _processor_seconds(*words: str) -> float:
    """That Python takes with these arguments, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=True, timeout=120, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_the_verbs() -> None:
    assert set(_commands()) == set(VERBS)
    shown = segshift("--help")
    assert shown.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str) -> None:
    shown = segshift(verb, "--help")
    assert shown.code == 0
    assert f"Usage: segshift {verb}" in shown.out
    command = _commands()[verb]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{verb}: {parameter.name} has no help"


@pytest.mark.parametrize("verb", VERBS)
def test_at_most_twelve_options_a_verb(verb: str) -> None:
    """Besides the rehearsal of `adapt`, which says nothing of what is done."""
    known = ("help", "dry_run")
    options = [p for p in _commands()[verb].params if isinstance(p, TyperOption) and p.name not in known]
    assert len(options) <= 12, [p.name for p in options]


def test_help_imports_no_torch_and_is_quick() -> None:
    code = "import contextlib\nfrom segshift.cli import main\nsys.argv = ['segshift', '--help']\n"
    code += "with contextlib.suppress(SystemExit):\n    main()"
    loaded = _modules_after(code)
    assert not loaded & {"torch", "numpy", "PIL", "matplotlib", "kornia", "pydantic", "yaml"}, loaded
    # A slow machine takes longer for both, and what else runs there costs neither of them processor time.
    wanted, allowed = (
        min(_processor_seconds(*words) for _ in range(4))
        for words in (("-m", "segshift", "--help"), ("-c", "import typer, rich.console"))
    )
    assert wanted < 3 * allowed, (wanted, allowed)


def test_import_touches_no_optional_package() -> None:
    assert not _modules_after("import segshift") & {*OPTIONAL, "torch", "numpy", "matplotlib", "kornia"}
    everything = ("api", "cli", "report", "demo_data", "nets", "methods")
    assert not _modules_after("import " + ", ".join(f"segshift.{part}" for part in everything)) & set(OPTIONAL)


def test_public_names() -> None:
    module = importlib.import_module("segshift")
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'adpat'"):
        module.adpat  # noqa: B018


def test_recipes_are_listed_and_printed() -> None:
    listed = segshift("recipes")
    assert listed.code == 0
    for name in recipes.names():
        assert any(line.startswith(name) and len(line) > len(name) + 12 for line in listed.out.splitlines()), name
        assert segshift("recipes", name).out == recipes.text(name)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid(name: str) -> None:
    settings = validated(RunSettings, recipes.read(name), name)
    assert settings.about
    assert settings.stages
    for stage in settings.stages:
        assert isinstance(stage, StageSettings)
        stage_settings(stage)


def test_the_demo_has_its_data() -> None:
    data = demo_data.declaration()
    domains = {name: {"root": data[name]} for name in ("source", "target", "val")}
    settings = validated(RunSettings, recipes.read("demo/demo") | {"classes": data["classes"]} | domains, "demo")
    opened = open_domains(settings)
    assert opened.val is not None
    assert min(len(opened.source), len(opened.target), len(opened.val)) > 10
    assert not (Path(data["target"]) / "labels").exists()
    assert len(read_classes(Path(data["classes"]))) == len(opened.classes)
    assert segshift("demo", "--set", "bach_size=2").code == 2


def test_the_whole_job(trained: Pair, tmp_path: Path) -> None:
    pair, run = trained, trained.run
    assert_whole(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert sorted(path.name for path in run.glob("[0-9]*")) == ["01-source_only", "02-source_control", "03-advent"]
    assert len(list(run.glob("*/checkpoint.pt"))) == 3
    assert (metrics["control"], metrics["adapted"]) == ("source_control", "advent")
    assert set(metrics["models"]) == {"source_only", "source_control", "advent"}
    assert "points" in metrics["verdict"]["text"]

    again = segshift(*pair.adapt(val=True))
    assert again.code == 0
    assert again.err.count("finished before, skipped") == 3
    assert metrics["verdict"]["text"] in again.out
    assert str(run / "report.html") in again.out

    before = (run / "report.html").stat().st_mtime_ns
    assert segshift("report", run).code == 0
    assert (run / "report.html").stat().st_mtime_ns > before

    out = tmp_path / "predictions"
    first = segshift("predict", run, pair.target / "images", "--out", out)
    assert first.code == 0
    assert "3 images segmented, 0 were finished before" in first.out
    assert (
        "0 images segmented, 3 were finished before"
        in segshift("predict", run, pair.target / "images", "--out", out).out
    )
    for kind in ("ids", "overlay", "confidence"):
        assert len(list((out / kind).iterdir())) == 3
    with Image.open(out / "ids" / "000.png") as ids:
        assert ids.mode == "P"
        assert set(np.unique(np.asarray(ids)).tolist()) <= set(range(len(NAMES)))
        assert (ids.getpalette() or [])[:3] == list(COLOURS[0])
    assert_whole(out)

    page = tmp_path / "compare.html"
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoint.pt"))
    compared = segshift("compare", run, other, "--out", page)
    assert compared.code == 0, compared
    assert_whole(tmp_path)


def test_evaluate_and_its_options(trained: Pair, tmp_path: Path) -> None:
    plain = segshift("evaluate", trained.run, "--out", tmp_path / "plain")
    assert plain.code == 0, plain
    assert plain.out.count("\n") >= 3
    assert plain.out.splitlines()[0].startswith("|")
    reported = json.loads((trained.run / "metrics.json").read_text())["models"]["advent"]
    figures = json.loads((tmp_path / "plain" / "metrics.json").read_text())
    assert figures["confusion"] == reported["confusion"]
    assert (tmp_path / "plain" / "metrics.csv").exists()
    assert (tmp_path / "plain" / "metrics.md").read_text() == plain.out

    more = ["--flip", "--scales", "0.75,1,1.25", "--window", "48x48", "--with", str(trained.run / "01-source_only")]
    varied = segshift("evaluate", trained.run, *more, "--domain", trained.val, "--out", tmp_path / "varied")
    assert varied.code == 0, varied
    other = json.loads((tmp_path / "varied" / "metrics.json").read_text())
    assert np.sum(other["confusion"]) == np.sum(figures["confusion"])
    assert other["confusion"] != figures["confusion"]
    stage = segshift("evaluate", trained.run / "01-source_only", "--classes", trained.classes)
    assert stage.code == 0
    assert_whole(tmp_path)


def test_figures_never_replace_a_runs_own_and_their_folder_is_looked_at_first(trained: Pair, tmp_path: Path) -> None:
    before = (trained.run / "metrics.json").read_bytes()
    assert_told(segshift("evaluate", trained.run, "--out", trained.run), "is a run's folder", "metrics.json")
    assert (trained.run / "metrics.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    told = segshift("evaluate", trained.run, "--out", tmp_path / "file")
    assert_told(told, "is a file")
    assert "evaluate: " not in told.err, "an hour of measuring would be lost"


def test_evaluate_a_declared_domain(trained: Pair, tmp_path: Path) -> None:
    path = tmp_path / "val.yaml"
    path.write_text(f"root: '{trained.val}'\nclass_map: {{3: ignore}}\n")
    assert segshift("evaluate", trained.run, "--domain", path).code == 0


def test_a_run_again_from_its_run_yaml(trained: Pair, tmp_path: Path) -> None:
    done = segshift("adapt", trained.run / "run.yaml", "--out", trained.run, "--device", "cpu")
    assert done.code == 0, done
    assert done.err.count("finished before, skipped") == 3


def test_a_finished_start_and_control_are_reused(trained: Pair) -> None:
    minent = trained.root / "runs" / "minent"
    done = segshift(*trained.adapt(method="minent"), "--out", minent)
    assert done.code == 0, done
    assert "source_only: reused from" in done.err
    assert "source_control: reused from" in done.err
    without = segshift(*trained.adapt(method="minent"), "--no-control", "--out", minent)
    assert without.code == 0, without
    assert "source_control:" not in without.err, "neither trained nor reused"
    assert "minent: reused from" in without.err
    shutil.rmtree(minent)


def test_ensemble_of_two_predictions(trained: Pair, tmp_path: Path) -> None:
    made = segshift(
        "predict", trained.run, trained.target / "images", "--with", trained.run / "01-source_only", "--out", tmp_path
    )
    assert made.code == 0, made
    assert len(list((tmp_path / "ids").iterdir())) == 3


def _in_colours(pair: Pair) -> None:
    for domain, count in (("source", 3), ("val", 2)):
        for index in range(count):
            save(pair.label(domain, index), np.array(COLOURS, np.uint8)[label(index)])


def test_colour_labels_need_only_a_palette(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    _in_colours(pair)
    done = segshift(*pair.adapt(val=True, method="source_only"))
    assert done.code == 0, done
    assert json.loads((pair.run / "metrics.json").read_text())["models"]["source_only"]["images"] == 2


def test_colour_labels_without_the_palette_say_what_to_add(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    _in_colours(pair)
    content = {"classes": list(NAMES), "palette": [[1, 1, 200], [2, 2, 200], [3, 3, 200], [4, 4, 200]]}
    pair.classes.write_text(json.dumps(content))
    assert_told(segshift(*pair.adapt()), "source/labels/000.png", '"0,0,142": ignore', "class_map", "palette")
