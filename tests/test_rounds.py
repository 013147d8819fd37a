"""Rounds of labels and training from the command line: what is made, skipped, made anew, measured and shown."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rounds_runs import KINDS, STAGES, add_truth, bytes_of, command, did, settings_of, small_net
from segshift.artefacts.pseudo_labels import read_ids
from segshift.artefacts.store import damaged
from segshift.engine.labelling import Labeller
from segshift.engine.pipeline import Stage, run_stages
from segshift.types import IGNORE
from workbench import HEIGHT, NAMES, WIDTH, Outcome, Pair, assert_whole, make_pair, read_json, segshift, weights

assert small_net
LABELS = ("02-labels_1", "04-labels_2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A tiny pair with a truth, and a finished run of each kind on it, that tests read and copy but do not change."""
    made = {}
    for kind in KINDS:
        pair = made[kind] = make_pair(tmp_path_factory.mktemp(kind))
        add_truth(pair)
        done = segshift(*command(pair, kind, truth=True))
        assert done.code == 0, done
        assert set(did(done).values()) == {"made"}
    return made


@pytest.fixture
def cbst(runs: dict[str, Pair], tmp_path: Path) -> Path:
    """A copy of the finished run of CBST, with no other run beside it."""
    return Path(shutil.copytree(runs["cbst"].run, tmp_path / "runs" / "y"))


def again(runs: dict[str, Pair], run: Path, *sets: str, **how: Any) -> Outcome:
    """The run's command on a copy of it, without what only the report needs."""
    return segshift(*command(runs["cbst"], "cbst", "panels=0", *sets, out=run, **{"truth": True, "val": False, **how}))


# ---- what a run leaves


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_leaves(runs: dict[str, Pair], kind: str) -> None:
    run = runs[kind].run
    folders = [f"{number:02d}-{name}" for number, name in enumerate(STAGES[kind], 1)]
    assert sorted(path.name for path in run.glob("[0-9][0-9]-*")) == folders
    assert_whole(run)
    records = [read_json(run / folder / "stage.json") for folder in folders]
    assert all(record["done"] for record in records)
    assert [record["kind"] for record in records] == ["train", "labels", "train", "labels", "train"]
    assert records[1]["purpose"] == "label the target's images with the network of source_only"
    for number, folder in ((0, LABELS[0]), (2, LABELS[1])):
        assert damaged(run / folder) == []
        assert not list((run / folder).glob("*state*"))
        parts = {"labels", "passes", "full", "soft"} & {path.name for path in (run / folder).iterdir()}
        own = KINDS[kind][number]
        names = {"voting": "passes", "split": "full", "soft_alpha": "soft"}
        assert parts == {"labels"} | {part for key, part in names.items() if key in own}
        for index in read_json(run / folder / "panels" / "index.json"):
            files = (run / folder / "panels" / name for name in index["files"].values())
            assert all(path.is_file() for path in files)
    measured = read_json(run / "metrics.json")["models"]
    assert set(measured) == {"source_only", f"{kind}_1", kind}
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_what_the_discriminator_says_of_hard_images(runs: dict[str, Pair]) -> None:
    kept = [path.parent.name for pair in runs.values() for path in pair.run.glob("*/checkpoint.pt")]
    assert kept == [f"05-{STAGES['tpld'][-1]}"], "the others were for going on"
    first, second = (read_json(runs["tpld"].run / folder / "panels" / "index.json") for folder in LABELS)
    assert all((entry["easy"], entry["discriminator"]) == (None, None) for entry in first)
    kinds = [entry["easy"] for entry in second]
    assert set(kinds) == {True, False}
    for entry in second:
        assert entry["discriminator"] is None if entry["easy"] else 0 < entry["discriminator"] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_quality_is_what_files_and_truth_say(runs: dict[str, Pair], kind: str) -> None:
    """The truth is of the target's own images here, so the figures follow from the PNGs."""
    pair, rounds = runs[kind], zip(LABELS, KINDS[kind][::2], strict=True)
    names = [path.stem for path in sorted((pair.target / "images").iterdir())]
    truth = np.stack([read_ids(pair.root / "truth" / "labels" / f"{name}.png") for name in names])
    for folder, own in ((pair.run / name, own) for name, own in rounds):
        quality = read_json(folder / "quality.json")
        assert (quality["domain"], quality["images"]) == (str(pair.root / "truth"), len(names))
        labels, passes, full = (
            np.stack([read_ids(folder / part / f"{name}.png") for name in names]) if (folder / part).exists() else None
            for part in ("labels", "passes", "full")
        )
        assert labels is not None
        stages = [labels] if passes is None else [np.where(passes <= n, labels, IGNORE) for n in range(3)]
        easy = np.array([row["easy"] is True for row in read_json(folder / "statistics.json")["per_image"]])
        wanted = [*stages, full[easy]] if full is not None and "split" in own else stages
        assert len(quality["rows"]) == len(wanted)
        truths = [truth] * len(stages) + [truth[easy]]
        for row, given, true in zip(quality["rows"], wanted, truths, strict=False):
            there, known = given != IGNORE, (given != IGNORE) & (true != IGNORE)
            assert row["coverage"] == pytest.approx(there.sum() / truth.size)
            assert row["precision"] == (pytest.approx((given == true)[known].mean()) if known.any() else None)
            for k, figures in enumerate(row["classes"]):
                said = known & (given == k)
                if figures is None:
                    assert not said.any()
                    assert not (true == k).any()
                else:
                    assert figures["coverage"] == (
                        pytest.approx(there[true == k].mean()) if (true == k).any() else None
                    )
                    right = (given == true)[said]
                    assert figures["precision"] == (pytest.approx(right.mean()) if said.any() else None)


def test_statistics_are_what_the_files_say(runs: dict[str, Pair]) -> None:
    for kind in KINDS:
        for folder in (runs[kind].run / name for name in LABELS):
            known = read_json(folder / "statistics.json")
            labels = np.stack([read_ids(folder / "labels" / f"{row['name']}.png") for row in known["per_image"]])
            assert labels.shape == (3, HEIGHT, WIDTH)
            assert known["labelled"][-1] == [int((labels == k).sum()) for k in range(len(NAMES))]
            assert sum(known["predicted"]) == known["pixels"] == labels.size


# ---- again


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_call_does_nothing(runs: dict[str, Pair], kind: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[kind].run, tmp_path / "runs" / "y"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = segshift(*command(runs[kind], kind, "panels=0", out=run, truth=True))
    assert did(done) == dict.fromkeys(STAGES[kind], "skipped")
    for path, time in before.items():
        if path.relative_to(run).parts[0][:2].isdigit() and "panels" not in path.parts:
            assert path.stat().st_mtime_ns == time, f"{path} was written again"
    assert "quality of" not in done.err, "measured before"


MINE = "cbst.target_augment={crop: [40, 40], mine: 0.8}"
SCALED = "cbst.target_augment={crop: [40, 40]}"
CHANGES = {
    # what is set first, what then → what becomes of the five stages
    ("", "labels_2.portion=0.5"): "skipped skipped skipped made made",
    ("", "labels_2.rule=global"): "skipped skipped skipped made made",
    ("", "labels_2.evaluation.flip=true"): "skipped skipped skipped made made",
    ("", "labels_2.soft_alpha=0.25"): "skipped skipped skipped made made",
    ("", "labels_2.init=source_only"): "skipped skipped skipped made made",
    ("", "labels_1.portion=0.1"): "skipped made made made made",
    ("", "labels_1.voting={}"): "skipped made made made made",
    ("", "cbst_1.target_weight=0.5"): "skipped skipped made made made",
    ("", "cbst_1.target_augment.flip=true"): "skipped skipped made made made",
    ("", "cbst.steps=3"): "skipped skipped skipped skipped made",
    ("", "cbst.labels=labels_1"): "skipped skipped skipped skipped made",
    ("", "cbst.source_augment.flip=true"): "skipped skipped skipped skipped made",
    ("", "labels_1.purpose=guess"): "skipped skipped skipped skipped skipped",
    ("", "panels=1"): "skipped skipped skipped skipped skipped",
    ("", "source_only.steps=3"): "made made made made made",
    (SCALED, MINE): "skipped skipped skipped skipped made",
    (MINE, "cbst.target_augment.mine_below=0.5"): "skipped skipped skipped skipped made",
    (MINE, "cbst.target_augment.mine_rarest=1"): "skipped skipped skipped skipped made",
    (SCALED, "cbst.target_augment.mine_below=0.5"): "skipped skipped skipped skipped skipped",
}


@pytest.mark.parametrize(("first", "then"), CHANGES)
def test_a_change_remakes_what_follows_from_it_and_nothing_else(
    runs: dict[str, Pair], tmp_path: Path, first: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pipeline's own plan: the stages do nothing here."""

    def plan(root: Path, stages: list[Stage], say: Callable[[str], None]) -> None:
        run_stages(root, [replace(s, run=lambda folder: None, damage=lambda folder: []) for s in stages], say)

    monkeypatch.setattr("segshift.run.run_stages", plan)
    monkeypatch.setattr("segshift.api.finish", lambda run: None)
    run, sets = tmp_path / "runs" / "y", [first] if first else []
    assert set(did(again(runs, run, *sets)).values()) == {"made"}
    done = again(runs, run, *sets, then)
    assert list(did(done)) == STAGES["cbst"]
    assert " ".join(did(done).values()) == CHANGES[first, then]


def test_other_labels_are_other_training(runs: dict[str, Pair], cbst: Path) -> None:
    ours, before = weights(cbst, "05-cbst"), bytes_of(cbst / LABELS[0])
    done = again(runs, cbst, "labels_2.rule=argmax")
    assert " ".join(did(done).values()) == "skipped skipped skipped made made"
    theirs = weights(cbst, "05-cbst")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert bytes_of(cbst / LABELS[0]) == before
    assert {path.name for path in cbst.glob("*.aside")} == {"04-labels_2.1.aside", "05-cbst.1.aside"}
    assert_whole(cbst)


def test_interrupted_while_it_labels(runs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = tmp_path / "runs" / "y", 0
    original = Labeller.probabilities

    def probabilities(self: Labeller, pixels: np.ndarray) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen in (2, 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, pixels)

    monkeypatch.setattr(Labeller, "probabilities", probabilities)
    for image in (2, 1):
        stopped = again(runs, run)
        assert stopped.code == 130, stopped
        assert f"stopped after image {image} of 3; run the same command to go on" in stopped.err
        assert_whole(run)
    done = again(runs, run)
    assert did(done) == {"source_only": "skipped"} | dict.fromkeys(STAGES["cbst"][1:], "made")
    assert "(going on where it was)" in done.err
    assert seen == 3 * 2 * 2 + 3 * 2, "two passes of two stages and the quality of both: no image twice"
    for folder in (*LABELS, "05-cbst/model"):
        assert bytes_of(run / folder) == bytes_of(runs["cbst"].run / folder)


def test_labels_in_bf16(runs: dict[str, Pair], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "y"
    assert again(runs, run, "precision=bf16", "labels_1.soft_alpha=0.25", truth=False).code == 0
    assert damaged(run / LABELS[0]) == []
    assert any(read_json(run / LABELS[0] / "statistics.json")["labelled"][0])


# ---- damage


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("02-labels_1/labels/001.png", "deleted"), ("02-labels_1/labels/001.png", "flipped"),
        ("04-labels_2/thresholds.json", "flipped"), ("02-labels_1/manifest.json", "deleted"),
    ],
)  # fmt: skip
def test_damage_is_noticed_and_the_stage_made_anew_and_nothing_trained(
    runs: dict[str, Pair], cbst: Path, name: str, harm: str
) -> None:
    before = {folder: bytes_of(cbst / folder) for folder in LABELS}
    trained = bytes_of(cbst / "05-cbst")
    data = bytearray((cbst / name).read_bytes())
    data[len(data) // 2] ^= 1
    (cbst / name).write_bytes(data) if harm == "flipped" else (cbst / name).unlink()
    done = again(runs, cbst)
    folder, stage = name.partition("/")[0], name[3:11]
    assert did(done) == dict.fromkeys(STAGES["cbst"], "skipped") | {stage: "anew"}
    assert f"{name} is missing or not what was written" in " ".join(done.err.split())
    assert {folder: bytes_of(cbst / folder) for folder in LABELS} == before
    assert bytes_of(cbst / "05-cbst") == trained
    assert (cbst / folder / "quality.json").exists()
    assert not list(cbst.glob("*.aside"))


def test_several_damaged_files_are_counted(runs: dict[str, Pair], cbst: Path) -> None:
    shutil.rmtree(cbst / "04-labels_2" / "labels")
    done = again(runs, cbst)
    assert "04-labels_2/labels/000.png (and 2 more) is missing" in " ".join(done.err.split())


def test_a_reused_stage_that_is_damaged_is_made_anew_and_its_twin_left_alone(runs: dict[str, Pair], cbst: Path) -> None:
    """Runs beside each other share finished stages by hard links."""
    other = cbst.with_name("z")
    assert did(again(runs, other)) == dict.fromkeys(STAGES["cbst"], "reused")
    before = bytes_of(cbst / LABELS[0])
    (other / LABELS[0] / "labels" / "000.png").unlink()
    (other / LABELS[1]).rename(other.with_name("gone"))
    (cbst / LABELS[1] / "labels" / "000.png").unlink()
    assert did(again(runs, other)) == dict.fromkeys(STAGES["cbst"], "skipped") | {
        "labels_1": "anew",
        "labels_2": "anew",
    }
    assert bytes_of(cbst / LABELS[0]) == bytes_of(other / LABELS[0]) == before
    assert damaged(other / LABELS[1]) == []


# ---- the spatial prior


def test_labels_with_a_spatial_prior(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    content = settings_of("cbst")
    content |= {"panels": 0, "stages": content["stages"][:3]}
    content["stages"][1]["settings"] = {"spatial_prior": 2.0}
    told = segshift(*command(pair, content, val=False))
    assert did(told) == dict.fromkeys(STAGES["cbst"][:3], "made")
    assert told.err.count("counting where the classes") == 1
    before, prior = bytes_of(pair.run / LABELS[0]), pair.run / LABELS[0] / "spatial_prior.npz"
    assert "spatial_prior.npz" in read_json(pair.run / LABELS[0] / "manifest.json")["files"]
    for harm in ("deleted", "flipped"):
        data = bytearray(prior.read_bytes())
        data[len(data) // 2] ^= 1
        prior.write_bytes(data) if harm == "flipped" else prior.unlink()
        done = segshift(*command(pair, content, val=False))
        assert did(done) == dict.fromkeys(STAGES["cbst"][:3], "skipped") | {"labels_1": "anew"}
        assert "02-labels_1/spatial_prior.npz is missing" in " ".join(done.err.split())
        assert bytes_of(pair.run / LABELS[0]) == before


# ---- names


def test_names_with_folders_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    odd = pair.target / "images" / "city.1" / os.fsdecode(b"caf\xe9.png")
    odd.parent.mkdir()
    pair.image("target", 2).rename(odd)
    add_truth(pair)
    done = segshift(*command(pair, "tpld", truth=True))
    assert did(done) == dict.fromkeys(STAGES["tpld"], "made")
    assert "not everything" not in done.err, done
    name = str(odd.relative_to(pair.target / "images").with_suffix(""))
    for folder in LABELS:
        assert (pair.run / folder / "labels" / f"{name}.png").is_file()
        assert f"labels/{name}.png" in read_json(pair.run / folder / "manifest.json")["files"]
        assert name in {row["name"] for row in read_json(pair.run / folder / "statistics.json")["per_image"]}
    before = bytes_of(pair.run / LABELS[1])
    (pair.run / LABELS[1] / "full" / f"{name}.png").unlink()
    assert did(segshift(*command(pair, "tpld", "panels=0", val=False)))["labels_2"] == "anew"
    assert bytes_of(pair.run / LABELS[1]) == before
