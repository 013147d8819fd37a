"""The recipes of papers: complete, as long as their controls, with published figures that hang together; their list."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from segshift import api, recipes
from segshift.config import RunSettings, validated
from segshift.data.classes import BUILT_IN, CITYSCAPES_19, SIXTEEN, THIRTEEN
from segshift.nets.weights import LAYOUTS
from segshift.recipes import facts
from segshift.recipes_cli import FILES, MARKS, WIDTH
from segshift.setup import stage_before
from workbench import Pair, assert_told, environment, make_pair, read_json, segshift

GROUPS = {"gta5_cityscapes": 19, "synthia_cityscapes": 16}
PAPERS = [name for name in recipes.names() if name.partition("/")[0] in GROUPS]
ADAPTING = [name for name in PAPERS if recipes.read(name).get("control")]

every_paper = pytest.mark.parametrize("name", PAPERS)


def settings_of(name: str) -> RunSettings:
    return validated(RunSettings, recipes.read(name), name)


def classes_of(name: str) -> int:
    return GROUPS[name.partition("/")[0]]


# ---- the recipes


def test_the_rows_of_the_papers_are_there() -> None:
    both = "source_only adaptsegnet adaptsegnet_multi adaptsegnet_vgg16 minent minent_vgg16 advent advent_vgg16"
    only = {
        "gta5_cityscapes": "adaptsegnet_lsgan minent_er advent_minent_vgg16",
        "synthia_cityscapes": "minent_cp_vgg16",
    }
    for group, more in only.items():
        wanted = {f"{group}/{name}" for name in f"{both} {more} source_only_vgg16 advent_minent".split()}
        assert wanted <= set(PAPERS)
        others = {f"{group}/{name}" for names in only.values() for name in names.split()} - wanted
        assert not others & set(PAPERS), "no row of these is published"


@every_paper
def test_a_recipe_of_a_paper_says_all_that_decides(name: str) -> None:
    settings = settings_of(name)
    group = name.partition("/")[0]
    assert settings.about.isascii()
    assert {"gta5_cityscapes": "GTA5", "synthia_cityscapes": "SYNTHIA"}[group] in settings.about
    assert f"({classes_of(name)} classes)" in settings.about
    assert ("VGG-16" in settings.about) == (settings.net.name == "deeplab_v2_vgg16") == name.endswith("_vgg16")
    assert len(BUILT_IN[str(settings.classes)]) == classes_of(name)
    assert settings.size != "auto"
    assert settings.precision != "auto", "a machine shall not decide it"
    assert settings.net.layout in LAYOUTS
    assert settings.net.checkpoint is not None
    assert settings.net.checkpoint.parent == Path("weights")
    written = recipes.read(name)
    for key in ("source_size", "batch_size", "seed"):
        assert key in written, f"{key} is not left to a default"


@pytest.mark.parametrize("name", ADAPTING)
def test_the_control_trains_as_long_and_at_the_same_rate(name: str) -> None:
    settings = settings_of(name)
    stages = {stage.name: stage for stage in settings.stages}

    def way(stage: str) -> list[str]:
        before = stage_before(settings, stage)
        return [*(way(before) if before else []), stage]

    assert settings.control is not None
    control, adapted = way(settings.control), way(settings.stages[-1].name)
    assert {stages[stage].method for stage in control} == {"source_only"}
    assert sum(stages[s].steps for s in control) == sum(stages[s].steps for s in adapted)
    for stage in settings.average:
        assert sum(stages[s].steps for s in way(stage)) == sum(stages[s].steps for s in adapted)


ADVERSARIAL = ("source_only", "adaptsegnet", "minent", "advent")


@pytest.mark.parametrize("name", [n for n in PAPERS if n.partition("/")[2].startswith(ADVERSARIAL)])
def test_the_protocol_of_adaptsegnet_and_advent(name: str) -> None:
    """Sizes, rates, schedule and start of the releases; all losses from step 1, from the weights of ImageNet."""
    settings = settings_of(name)
    is_gta, is_advent = classes_of(name) == 19, name.partition("/")[2].startswith(("minent", "advent"))
    assert settings.size == (1024, 512)
    assert settings.source_size == ((1280, 720) if is_gta else (1280, 760))
    assert (settings.batch_size, settings.evaluation.scales, settings.evaluation.flip) == (1, (1.0,), False)
    assert settings.source_augment == settings.target_augment == type(settings.source_augment)()
    horizon, steps = (250_000, 120_000 if is_gta else 90_000) if is_advent else (250_000, 150_000)
    horizon = 90_000 if is_advent and not is_gta else horizon
    for stage in settings.stages:
        assert (stage.init, stage.steps) == (None, steps)
        rates = stage.settings["optimizer"]
        assert (rates["kind"], rates["lr"], rates["momentum"]) == ("sgd", 2.5e-4, 0.9)
        assert (rates["weight_decay"], rates["power"], rates["horizon"]) == (5e-4, 0.9, horizon)
        assert rates.get("head_factor") == (None if name.endswith("vgg16") else 10)
        if stage.method in ("adaptsegnet", "advent"):
            wanted = {"lr": 1e-4, "betas": [0.9, 0.99], "power": 0.9, "horizon": horizon}
            assert stage.settings["discriminator"] == wanted


@pytest.mark.parametrize("group", GROUPS)
def test_one_source_only_training_serves_several_recipes(group: str) -> None:
    """Runs beside each other take it over, where everything that decides it is the same."""
    several = [settings_of(f"{group}/{name}") for name in ("advent", "minent", "advent_minent")]
    decisive = ("size", "source_size", "source_augment", "net", "batch_size", "seed", "precision", "clip", "classes")
    for settings in several:
        assert settings.stages[0] == several[0].stages[0]
        assert all(getattr(settings, key) == getattr(several[0], key) for key in decisive)


def test_what_makes_the_variants() -> None:
    def last(name: str) -> dict[str, object]:
        return dict(settings_of(name).stages[-1].settings)

    assert last("gta5_cityscapes/adaptsegnet_lsgan")["gan"] == "least_squares"
    assert last("gta5_cityscapes/minent_er")["entropy_range"] == [0.7, 1.0]
    for name in ("minent_cp_vgg16", "advent_vgg16"):
        assert last(f"synthia_cityscapes/{name}")["prior"] == {"weight": 1, "mu": 0.5}
    assert "prior" not in last("gta5_cityscapes/advent_vgg16")
    assert settings_of("gta5_cityscapes/advent_minent").average == ("advent", "minent_er")
    two_levels = {name for name in PAPERS if settings_of(name).net.options.get("aux")}
    assert two_levels == {
        f"{group}/{name}"
        for group in GROUPS
        for name in ("adaptsegnet_multi", "minent", "minent_er", "advent", "advent_minent")
        if f"{group}/{name}" in PAPERS
    }


# ---- published figures


def test_every_recipe_of_a_paper_has_its_published_figures() -> None:
    assert facts.published_names() == sorted(PAPERS)
    assert facts.published("cpu/advent") is None


@every_paper
def test_published_figures_hang_together(name: str) -> None:
    known = facts.published(name)
    assert known is not None
    assert known.status in facts.STATUSES
    assert known.source
    figures = [known.miou19, known.miou16, known.miou13]
    assert (known.status == "none") == (not any(figures))
    assert not known.iou or known.status != "none"
    assert (known.miou19 is None) if classes_of(name) == 16 else (known.miou16 is known.miou13 is None)
    for value in (*known.iou, *(value for value in figures if value is not None)):
        assert 0 <= value <= 100
    if known.miou16 and known.miou13:
        assert known.miou13 > known.miou16, "the three that are left out are among the worst"
    if known.iou:
        sixteen = [CITYSCAPES_19[place] for place in SIXTEEN]
        ids = {19: CITYSCAPES_19, 16: sixteen, 13: [CITYSCAPES_19[place] for place in THIRTEEN]}[len(known.iou)]
        row = dict(zip(ids, known.iou, strict=True))
        whole = {19: known.miou19, 16: known.miou16, 13: known.miou13}[len(known.iou)]
        assert whole == pytest.approx(sum(row.values()) / len(row), abs=0.06)
        if known.miou13 and len(row) == 16:
            thirteen = [row[CITYSCAPES_19[place]] for place in THIRTEEN]
            assert known.miou13 == pytest.approx(sum(thirteen) / 13, abs=0.1)


def test_some_figures_by_hand() -> None:
    """As they stand in table 1 of ProDA's paper and in its README."""
    wanted = {"source_only": 36.6, "adaptsegnet": 41.4, "advent_minent": 45.5, "cbst": 45.9, "proda": 57.5}
    for name, value in wanted.items():
        known = facts.published(f"gta5_cityscapes/{name}")
        assert known is not None
        assert (known.miou19, known.status) == (value, "verified")
    proda = facts.published("synthia_cityscapes/proda")
    assert proda is not None
    assert (proda.miou16, proda.miou13, proda.status) == (55.5, 62.0, "verified")


# ---- steps, memory, needs


def test_steps_are_those_of_all_stages() -> None:
    assert facts.steps(recipes.read("gta5_cityscapes/source_only")) == 150_000
    assert facts.steps(recipes.read("gta5_cityscapes/advent")) == 2 * 120_000
    assert facts.steps(recipes.read("synthia_cityscapes/advent_minent")) == 3 * 90_000
    for name in recipes.names():
        assert facts.steps(recipes.read(name)) == sum(stage.steps for stage in settings_of(name).stages)


def test_memory_of_a_recipe_is_that_of_its_most_demanding_stage() -> None:
    advent, level = (facts.memory(recipes.read(f"gta5_cityscapes/{name}")) for name in ("advent", "adaptsegnet"))
    assert advent is not None
    assert level is not None
    assert advent.gib > level.gib > 1, "a second head and discriminator cost something"
    doubled = recipes.read("gta5_cityscapes/advent") | {"batch_size": 2}
    twice = facts.memory(doubled)
    assert twice is not None
    assert twice.derived
    assert advent.gib < twice.gib < 2 * advent.gib, "networks and optimiser are there once"
    stages = doubled["stages"]
    assert facts.memory(doubled | {"stages": [stage | {"batch_size": 1} for stage in stages]}) == advent
    assert facts.memory(doubled | {"size": [2048, 1024]}) is None, "never measured"
    assert facts.memory(doubled | {"stages": [*stages, {"method": "tpld", "name": "x", "steps": 1}]}) is None


def test_every_recipe_has_a_memory() -> None:
    for name in recipes.names():
        found = facts.memory(recipes.read(name))
        assert found is not None, f"measure the case of {name} with bench/memory.py, see recipes/memory.yaml"
        assert 0.1 < found.gib < 40, name


@every_paper
def test_needs_are_known(name: str) -> None:
    recipe = recipes.read(name)
    files = facts.weights(recipe)
    assert files
    assert set(files) <= FILES.keys()
    assert facts.weak_labels(recipe) == {"weak_tags": "tags", "weak_points": "points"}.get(name.partition("/")[2])


def test_caffes_vgg16_is_read() -> None:
    """Its classifier's places are 1, 4 and 6, torchvision's 0, 3 and 6; none of them is DeepLab's."""
    rename = LAYOUTS["torchvision_vgg16"].rename
    assert [rename(f"classifier.{place}.weight") for place in (0, 1, 3, 4, 6)] == [None] * 5
    assert rename("classifier.2.weight") == "classifier.2.weight", "unknown, and told so"


# ---- the list


def test_the_list() -> None:
    listed = segshift("recipes")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert listed.out.isascii()
    assert "never measured here" in listed.out
    for name in recipes.names():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1, name
    for name in PAPERS:
        line = next(line for line in lines if line.startswith(f"{name} "))
        known = facts.published(name)
        assert known is not None
        told = re.findall(r"\b(\d\d\.\d)([?~]?) ", line[: line.rindex("k ")])
        figures = [value for value in (known.miou19, known.miou16, known.miou13) if value is not None]
        assert [(float(value), mark) for value, mark in told] == [(value, MARKS[known.status]) for value in figures]


def test_a_group_is_listed_alone() -> None:
    listed = segshift("recipes", "synthia_cityscapes").out
    assert "synthia_cityscapes/advent" in listed
    assert "gta5" not in listed
    assert "cpu" not in listed


@pytest.mark.parametrize("name", ["cpu/advent", "synthia_cityscapes/minent_cp_vgg16"])
def test_a_recipe_is_shown_as_it_is_written(name: str) -> None:
    assert segshift("recipes", "show", name).out == segshift("recipes", name).out == recipes.text(name)


def test_unknown_names_are_told() -> None:
    assert_told(segshift("recipes", "show", "advent"), "'advent'", "'gta5_cityscapes/advent'", "'cpu/advent'")
    assert_told(segshift("recipes", "gta5_cityscapes/minen"), "did you mean 'gta5_cityscapes/minent'?")
    assert_told(segshift("recipes", "show", "cpu"), "unknown recipe 'cpu'", "`segshift recipes cpu` lists it")
    assert_told(segshift("recipes", "cpu/"), "`segshift recipes cpu` lists it")
    assert_told(segshift("recipes", "xyzzy"), "groups", "synthia_cityscapes")
    assert_told(segshift("recipes", "show"), "one name", "recipes show NAME")
    assert_told(segshift("recipes", "cpu/advent", "cpu/minent"), "one name")


def test_the_list_needs_no_torch() -> None:
    code = "import contextlib, sys\nfrom segshift.cli import main\nsys.argv = ['segshift', 'recipes']\n"
    code += "with contextlib.suppress(SystemExit):\n    main()\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"torch", "numpy", "PIL", "matplotlib", "kornia", "safetensors"}


# ---- the average of stages


AVERAGE = ("average=[advent,source_control]", "panels=0")


def test_an_average_of_stages_is_measured_beside_them(trained: Pair, tmp_path: Path) -> None:
    """The same figures as `evaluate --with`, which the papers' ensembles are."""
    run = tmp_path / "runs" / "y"
    done = segshift(*trained.adapt(*AVERAGE, val=True), "--out", run)
    assert done.code == 0, done
    models = read_json(run / "metrics.json")["models"]
    assert set(models) == {"source_only", "source_control", "advent", "advent + source_control"}
    out = tmp_path / "figures"
    stages = (run / "03-advent", run / "02-source_control")
    assert segshift("evaluate", stages[0], "--with", stages[1], "--domain", trained.val, "--out", out).code == 0
    assert read_json(out / "metrics.json")["confusion"] == models["advent + source_control"]["confusion"]
    assert "| advent + source_control |" in (run / "metrics.md").read_text()
    assert "advent + source_control" in (run / "report.html").read_text()
    again = segshift(*trained.adapt(*AVERAGE, val=True), "--out", run)
    assert again.err.count("finished before, skipped") == 3
    assert read_json(run / "metrics.json")["models"] == models
    # A run that has no average is measured as it was before there was the setting.
    assert segshift(*trained.adapt("panels=0", val=True), "--out", run).code == 0
    assert read_json(run / "evaluation.json") == read_json(trained.run / "evaluation.json")


def test_a_stage_of_an_average_is_trained_though_it_is_the_control() -> None:
    settings = api.compose(method="advent", set=["average=[advent,source_control]"], control=False)
    assert [stage.name for stage in settings.stages] == ["source_only", "source_control", "advent"]


def test_an_average_of_what_is_no_training_stage_is_told(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    assert_told(segshift(*pair.adapt("average=[advent,minent]")), "average", "'minent'", "no training stage")
