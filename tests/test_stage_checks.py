"""Settings that would change nothing, or not what they seem to: told before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rounds_runs import command, did, settings_of, small_net
from test_proda_runs import settings as proda_settings
from workbench import Pair, assert_told, make_pair, segshift

assert small_net
Stages = dict[str, dict[str, Any]]
MINE = {"crop": [40, 40], "mine": 0.8}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


def of(kind: str) -> dict[str, Any]:
    return proda_settings() if kind == "proda" else copy.deepcopy(settings_of(kind))


def changed(name: str, **changes: Any) -> Callable[[Stages], object]:
    return lambda stages: stages[name].update(changes)


VAIN: dict[str, tuple[str, Callable[[Stages], object], tuple[str, ...]]] = {
    # kind, what is wrong, words of the message
    "labels on training on the source alone": (
        "cbst", changed("cbst", method="source_only"), ("cbst", "'labels_2'", "source_only", "no pseudo-labels")
    ),
    "labels on an adversarial method": (
        "cbst", changed("cbst_1", method="advent"), ("cbst_1", "'labels_1'", "advent", "leave out cbst_1.labels")
    ),
    "soft labels on distillation": (
        "proda", changed("student", soft_labels="soft"), ("student", "'soft'", "distill", "no soft labels")
    ),
    "prototypes on distillation": (
        "proda", changed("student", prototypes="means"), ("student", "'means'", "distill", "no prototypes")
    ),
    "a teacher for stage 1, which has its own": (
        "proda", changed("denoise", teacher="start"), ("denoise", "'start'", "proda", "no other network")
    ),
    "augmentation where labels are made": (
        "cbst", changed("labels_1", target_augment={"flip": True}), ("'labels_1'", "takes no target_augment")
    ),
    "augmentation of the source where prototypes are made": (
        "proda", changed("means", source_augment={"flip": True}), ("'means'", "takes no source_augment")
    ),
    "mining without a crop": (
        "cbst", changed("cbst", target_augment={"mine": 0.8}),
        ("stage cbst", "no crop is smaller", "64x48", "target_augment.crop=[32,32]"),
    ),
    "mining with a crop of the images' size": (
        "cbst", changed("cbst", target_augment={"mine": 0.8, "crop": [64, 60], "scale": [0.5, 1.0]}),
        ("stage cbst", "64x60, is not smaller", "64x48"),
    ),
    "mining where there are no pseudo-labels": (
        "proda", changed("denoise", target_augment=MINE), ("denoise", "target_augment.mine", "no pseudo-labels")
    ),
    "mining in the source": (
        "cbst", changed("cbst", source_augment=MINE), ("cbst", "source_augment.mine", "target_augment.mine")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VAIN)
def test_what_would_be_in_vain_is_refused(pair: Pair, case: str) -> None:
    kind, change, words = VAIN[case]
    content = of(kind)
    change({stage["name"]: stage for stage in content["stages"]})
    assert_told(segshift(*command(pair, content)), *words, "to do")
    assert not pair.run.exists(), "written before the settings were looked at"


def test_mining_for_the_whole_run_without_a_crop_is_refused(pair: Pair) -> None:
    told = segshift(*command(pair, of("cbst") | {"target_augment": {"mine": 0.5}}))
    assert_told(told, "stage cbst_1", "no crop is smaller", "to do")


@pytest.mark.parametrize("augment", [MINE, {"mine": 0.8, "scale": [0.8, 1.2]}, {"mine": 0.8, "crop": [64, 32]}])
def test_mining_with_room_to_move_is_fine(pair: Pair, augment: dict[str, Any]) -> None:
    """A smaller crop, a larger image, or room along one side."""
    done = segshift(*command(pair, of("cbst") | {"target_augment": augment}))
    assert set(did(done).values()) == {"made"}
    assert "note" not in done.err


def test_what_settings_switch_off_is_told_and_stays(pair: Pair) -> None:
    """As in an ablation: the stage names its prototypes, and one setting decides whether it uses them."""
    content = of("proda")
    stages = {stage["name"]: stage for stage in content["stages"]}
    stages["denoise"]["settings"] = {"denoise": False, "structure_weight": 0}
    stages["student"]["settings"] = {"kd_weight": 0}
    done = segshift(*command(pair, content | {"target_augment": MINE}, "student.target_augment={}"))
    assert set(did(done).values()) == {"made"}
    notes = done.err.replace("\n", " ").split("note: ")[1:]
    assert notes[0].startswith("denoise with these settings of proda does not use its prototypes, means")
    assert notes[1].startswith("student with these settings of distill does not use its teacher, denoise")


def test_mining_in_a_run_without_pseudo_labels_is_told(pair: Pair) -> None:
    content = of("cbst")
    content["stages"] = content["stages"][:1]
    done = segshift(*command(pair, content | {"target_augment": MINE}))
    assert did(done) == {"source_only": "made"}
    assert "note: target_augment.mine changes nothing" in done.err
