"""Recipes of papers that learn from their own labels, from weak labels, or by ProDA: the protocols, restated."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segshift import api, recipes
from segshift.config import NetSettings, RunSettings, StageNetSettings, StageSettings, validated
from segshift.data.classes import read_classes
from segshift.engine.labelling import LabelSettings
from segshift.errors import UserError
from segshift.nets.weights_layouts import LAYOUTS
from segshift.networks import with_nets
from segshift.run import Run
from segshift.setup import method_settings, produce_settings, stage_before, stage_chain
from workbench import Pair, make_pair

CRST = {"cbst": "cbst", **{f"crst_{name}": "crst" for name in ("mrkld", "mrent", "mrl2", "lrent")}}
"""Recipes with the rounds of CRST's release → the method that trains."""
FAMILY = [
    *CRST, "cbst_vgg16", "tpld", "tpld_vgg16", "self_training", "weak_pseudo", "weak_tags", "weak_points", "proda",
    "proda_ablation",
]  # fmt: skip
GROUPS = ("gta5_cityscapes", "synthia_cityscapes")
NAMES = [f"{group}/{name}" for group in GROUPS for name in FAMILY] + ["gta5_cityscapes/cbst_sp_vgg16"]

# Images (methods.md 0.1 and 5; CBST's lists): of the target's list of confident images, of each release's source.
TARGET = 505
SOURCES = {"crst": {"gta5_cityscapes": 19_984, "synthia_cityscapes": 9_400}}
SOURCES["cbst"] = {"gta5_cityscapes": 24_966, "synthia_cityscapes": 9_400}
SHARE = {"gta5_cityscapes": 0.03, "synthia_cityscapes": 0.02}
SIZES = {"gta5_cityscapes": (1914, 1052), "synthia_cityscapes": (1280, 760)}


@functools.cache
def settings_of(name: str) -> RunSettings:
    return validated(RunSettings, recipes.read(name), name)


def by_name(settings: RunSettings) -> dict[str, StageSettings]:
    return {stage.name: stage for stage in settings.stages}


def way_to(settings: RunSettings, name: str) -> list[str]:
    """Training stages that led to one, itself last."""
    names = [name]
    while (before := stage_before(settings, names[0])) is not None:
        names.insert(0, before)
    return names


def rounds(settings: RunSettings) -> list[tuple[StageSettings, StageSettings]]:
    """Pairs of a stage that labels and the one that trains on its labels, in order."""
    stages = by_name(settings)
    return [(stages[stage.labels], stage) for stage in settings.stages if stage.labels is not None]


def labels_of(stage: StageSettings) -> LabelSettings:
    own = produce_settings(stage)
    assert isinstance(own, LabelSettings)
    return own


def images_a_round(name: str, release: str, count: int) -> list[int]:
    """Images of each round: the target's, and a share of the source's that grows by 0.0025."""
    group = name.partition("/")[0]
    thousandths = [round(10_000 * SHARE[group]) + 25 * number for number in range(count)]
    return [TARGET + SOURCES[release][group] * part // 10_000 for part in thousandths]


# ---- all of them


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_and_the_sizes_are_the_benchmarks(name: str) -> None:
    settings, group = settings_of(name), name.partition("/")[0]
    assert settings.classes is not None
    assert len(read_classes(settings.classes)) == {"gta5_cityscapes": 19, "synthia_cityscapes": 16}[group]
    half = name.partition("/")[2].startswith(("self_training", "weak"))
    assert settings.size == ((1024, 512) if half else (2048, 1024))
    plain = {"gta5_cityscapes": (1280, 720), "synthia_cityscapes": (1280, 760)}
    assert settings.source_size == (plain if half else SIZES)[group]
    assert settings.precision == "fp32", "the releases know no other"


@pytest.mark.parametrize("name", NAMES)
def test_the_control_is_of_the_source_alone_and_trains_as_long(name: str) -> None:
    settings = settings_of(name)
    stages, chain = by_name(settings), stage_chain(settings)
    assert settings.control is not None
    way = way_to(settings, settings.control)
    assert {stages[stage].method for stage in way} == {"source_only"}
    assert sum(stages[stage].steps for stage in way) == sum(stages[stage].steps for stage in chain)
    assert settings.stages[-1].name == chain[-1]
    assert "source_only" not in {stages[stage].method for stage in chain[1:]}, "the adaptation is no control"


@pytest.mark.parametrize("name", NAMES)
def test_the_control_learns_as_the_first_adaptation_does(name: str) -> None:
    settings = settings_of(name)
    stages, chain = by_name(settings), stage_chain(settings)
    first = next(stage for stage in chain if stages[stage].method != "source_only")
    assert settings.control is not None
    control = stages[settings.control]
    rates = [dict(stage.settings["optimizer"]) for stage in (control, stages[first])]
    for own in rates:
        own.pop("horizon", None)  # one long stage decays over itself, several shorter ones over their own
    assert rates[0] == rates[1]
    assert control.batch_size == stages[first].batch_size, "the same number of source images in a step"
    assert control.source_augment == stages[first].source_augment


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_of_the_network_that_the_round_goes_on_from(name: str) -> None:
    for labels, training in rounds(settings_of(name)):
        if training.init is not None and training.method != "distill":
            assert labels.init == training.init
        elif training.method == "distill":
            assert labels.init == training.teacher
    if name.endswith("/self_training"):
        ((labels, training),) = rounds(settings_of(name))
        assert (labels.init, training.init) == ("source_only", None), "BDL begins again with ImageNet's weights"


@pytest.mark.parametrize("name", NAMES)
def test_weights_meet_the_normalisation_that_they_were_trained_with(name: str) -> None:
    settings = with_nets(settings_of(name))
    nets: list[NetSettings | StageNetSettings] = [settings.net]
    nets += [stage.net for stage in settings.stages if stage.net is not None]
    for net in nets:
        if net.checkpoint is not None:
            assert net.layout is not None
            assert net.options["normalisation"] in LAYOUTS[net.layout].normalisations
            assert net.checkpoint.parent == Path("weights"), "one folder for all"


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_vgg16")])
def test_vgg16_has_no_head_that_learns_faster(name: str) -> None:
    """It names none, so a factor would say something that does not happen."""
    for stage in settings_of(name).stages:
        assert "head_factor" not in stage.settings.get("optimizer", {})


# ---- the rounds of CBST, CRST and TPLD


@pytest.mark.parametrize("name", [f"{group}/{name}" for group in GROUPS for name in CRST])
def test_three_rounds_as_crst_releases_them(name: str) -> None:
    settings = settings_of(name)
    made = rounds(settings)
    assert [labels_of(labels).portion for labels, _ in made] == [0.20, 0.25, 0.30]
    # Two epochs of batches of two: as many steps as images.
    assert [training.steps for _, training in made] == images_a_round(name, "crst", 3)
    for labels, training in made:
        assert training.method == CRST[name.partition("/")[2]]
        assert labels_of(labels).rule == "class_balanced"
        assert (labels_of(labels).evaluation.scales, labels_of(labels).evaluation.flip) == ((0.9,), True)
        rate = training.settings["optimizer"]
        assert (rate["lr"], rate["power"], rate["head_factor"]) == (5e-5, 0, 10)
        assert (training.batch_size or settings.batch_size) == 1, "one of each domain: two in all"
    assert settings.evaluation.scales == (0.9, 1.0, 1.2)
    assert settings.evaluation.flip
    assert settings.net.options["batch_norm"] == "frozen"


@pytest.mark.parametrize("group", GROUPS)
def test_the_recipes_of_crst_differ_in_the_regulariser_alone(group: str) -> None:
    def bare(name: str) -> list[dict[str, Any]]:
        stages = [stage.model_dump(mode="json") for stage in settings_of(f"{group}/{name}").stages]
        for stage in stages:
            kept = {"optimizer"} if stage["method"] else {"portion", "evaluation"}
            stage["settings"] = {key: value for key, value in stage["settings"].items() if key in kept}
        return stages

    kinds = ("mrkld", "mrent", "mrl2", "lrent")
    assert bare("crst_mrkld") == bare("crst_mrent") == bare("crst_mrl2") == bare("crst_lrent")
    for kind in kinds:
        for labels, training in rounds(settings_of(f"{group}/crst_{kind}")):
            assert training.settings["regulariser"] == kind
            assert labels_of(labels).soft_alpha == (0.25 if kind == "lrent" else None)


VGG = [f"{group}/cbst_vgg16" for group in GROUPS] + ["gta5_cityscapes/cbst_sp_vgg16"]


@pytest.mark.parametrize("name", VGG)
def test_six_rounds_as_the_readme_of_cbst_says(name: str) -> None:
    settings = settings_of(name)
    made = rounds(settings)
    first = {"gta5_cityscapes": 0.15, "synthia_cityscapes": 0.20}[name.partition("/")[0]]
    assert [labels_of(labels).portion for labels, _ in made] == pytest.approx([first + 0.05 * i for i in range(6)])
    assert [training.steps for _, training in made] == images_a_round(name, "cbst", 6)
    found = [training.settings["optimizer"]["lr"] for _, training in made]
    assert found == pytest.approx([1e-4 / math.sqrt(2) ** i for i in range(6)], rel=1e-3)
    assert settings.net.name == "deeplab_v2_vgg16"
    assert settings.evaluation.scales[0] * 2048 == pytest.approx(1850, abs=0.5)
    prior = {labels_of(labels).spatial_prior is not None for labels, _ in made}
    assert prior == {name.endswith("cbst_sp_vgg16")}
    assert "FCN8s" in settings.about, "the paper's network is another one"


@pytest.mark.parametrize("name", [f"{group}/{name}" for group in GROUPS for name in ("tpld", "tpld_vgg16")])
def test_tpld_densifies_in_both_phases_and_splits_in_the_second(name: str) -> None:
    made = rounds(settings_of(name))
    assert [training.settings["phase"] for _, training in made] == [1, 1, 1, 2, 2, 2]
    assert [training.steps for _, training in made] == images_a_round(name, "crst", 6)
    for labels, training in made:
        own = labels_of(labels)
        assert own.voting is not None
        assert own.decision == "argmax"
        assert (own.split is not None) == (training.settings["phase"] == 2)
        assert training.settings["regulariser_weight"] == pytest.approx(0.1**2), "on CRST as released"
    portions = [labels_of(labels).portion for labels, _ in made]
    assert portions == sorted(portions)
    assert max(portions) <= 0.5, "CRST's largest"


# ---- ProDA

STEPS = 84 * (2975 // 4)
"""Of every stage: 84 epochs of Cityscapes by four, what is left over is left out."""


@pytest.mark.parametrize("name", [f"{group}/{name}" for group in GROUPS for name in ("proda", "proda_ablation")])
def test_proda_has_all_stages_and_their_lengths(name: str) -> None:
    settings = settings_of(name)
    stages = by_name(settings)
    assert stage_chain(settings) == ["warm_up", "denoise", "distill_2", "distill_3"]
    assert {stages[stage].steps for stage in stage_chain(settings)} == {STEPS}
    assert stages["warm_up"].init is None, "from ImageNet's weights"
    for stage in ("soft", "means"):
        assert stages[stage].init == "warm_up"
    student, last = stages["distill_2"], stages["distill_3"]
    assert (student.init, student.teacher, last.init, last.teacher) == (None, "denoise", "distill_2", "distill_2")
    assert student.net is not None
    assert student.net.layout == "simclr_v2_resnet101"
    lrs = [stages[stage].settings["optimizer"]["lr"] for stage in stage_chain(settings)]
    assert lrs == [2.5e-4, 1e-4, 6e-4, 6e-4]
    for labels, _ in rounds(settings):
        assert (labels_of(labels).rule, labels_of(labels).value, labels_of(labels).evaluation.flip) == (
            "fixed", 0.95, True
        )  # fmt: skip
    regular = stages["denoise"].settings.get("regulariser_weight", 0)
    assert regular == (0.1 if name.startswith("gta5") else 0), "README: of GTA5's command alone"


@pytest.mark.parametrize("group", GROUPS)
def test_the_views_of_proda_are_of_its_lengths(group: str) -> None:
    """Long sides of 1100 to 3300 pixels, whatever the images' own, then a crop of 896x512."""
    settings = settings_of(f"{group}/proda")
    assert settings.source_size is not None
    assert settings.size != "auto"
    for size, view in ((settings.source_size, settings.source_augment), (settings.size, settings.target_augment)):
        assert [side * size[0] for side in view.scale] == pytest.approx([1100, 3300], abs=1.0)
        assert view.crop == (896, 512)
        assert view.flip


@pytest.mark.parametrize("group", GROUPS)
def test_the_ablation_shares_every_stage_of_proda_and_adds_branches(group: str) -> None:
    whole, ablation = settings_of(f"{group}/proda"), settings_of(f"{group}/proda_ablation")
    ours, theirs = by_name(whole), by_name(ablation)
    assert {name: theirs.get(name) for name in ours} == ours
    assert set(theirs) - set(ours) == {"offline", "symmetric", "weighed"}
    shared = ("net", "size", "source_size", "source_augment", "target_augment", "batch_size", "seed", "precision")
    for field in shared:
        assert getattr(whole, field) == getattr(ablation, field)
    base = method_settings(theirs["denoise"]).model_dump()
    for name, wanted in {
        "offline": {"denoise": False, "structure_weight": 0, "alpha": 1, "beta": 0},
        "symmetric": {"denoise": False, "structure_weight": 0},
        "weighed": {"structure_weight": 0},
    }.items():
        assert method_settings(theirs[name]).model_dump() == {**base, **wanted}
        assert theirs[name].net == theirs["denoise"].net


# ---- a batch size of a stage's own

TWO = [
    {"name": "start", "method": "source_only", "steps": 1},
    {"name": "more", "method": "source_only", "steps": 1, "init": "start"},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("data"))


def run_of(pair: Pair, own: int | None, batch_size: int = 2) -> Run:
    stages = [{**TWO[0]} | ({"batch_size": own} if own else {}), TWO[1]]
    content = {"size": [64, 48], "precision": "fp32", "batch_size": batch_size, "workers": 0, "stages": stages}
    content["net"] = {"name": "deeplab_lite", "options": {"width": 16, "weights": "none"}}
    path = pair.root / "settings.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    chosen = api.compose(path, source=pair.source, target=pair.target, classes=pair.classes)
    return Run(chosen, pair.run, torch.device("cpu"), lambda line: None)


def fingerprints(run: Run) -> list[dict[str, Any]]:
    return [run._stage(stage).settings for stage in run.settings.stages]


def test_a_stage_has_the_runs_batch_size_or_its_own(pair: Pair) -> None:
    plain, own = run_of(pair, None), run_of(pair, 3)
    for run, sizes in ((plain, (2, 2)), (own, (3, 2))):
        assert tuple(found["batch_size"] for found in fingerprints(run)) == sizes
        for stage, size in zip(run.settings.stages, sizes, strict=True):
            with run._batches(stage, True, 0, 0) as stream:
                assert len(next(stream).image) == size
    assert fingerprints(own)[1] == fingerprints(plain)[1], "the other stage is what it was"


def test_the_batch_size_of_a_stage_is_in_its_fingerprint_as_the_runs_is(pair: Pair) -> None:
    assert fingerprints(run_of(pair, 3))[0] == fingerprints(run_of(pair, None, batch_size=3))[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"produce": "pseudo_labels", "method": None, "steps": 0}, "takes no batch_size"),
    ],
)
def test_a_batch_size_that_says_nothing_is_refused(change: dict[str, Any], told: str) -> None:
    stages = [TWO[0], {**TWO[1], "batch_size": 2, **change}, {**TWO[1], "name": "last"}]
    with pytest.raises(UserError, match=told):
        validated(RunSettings, {"stages": stages}, str(Path("run.yaml")))
