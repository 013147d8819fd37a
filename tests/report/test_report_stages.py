"""The mIoU of each stage on the way: which follows which, who gained, and that nothing damaged makes a ring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_labels import IOU, write_rounds_run
from fake_run import SOURCE, mean
from page_reader import Reader, change, content, part, read, rounds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_run(tmp_path_factory.mktemp("whole") / "rounds", panels=1)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "rounds")


def test_miou_per_stage(run: Path) -> None:
    html, _ = read(run)
    text = part(html, "stages")
    reached = {name: 100 * factor * mean(SOURCE) for name, factor in IOU.items()}
    gain = {"tpld_1": reached["tpld_1"] - reached["source_only"], "tpld_2": reached["tpld_2"] - reached["tpld_1"]}
    second = f"−{abs(gain['tpld_2']):.1f}"
    for said in (
        f"1 source_only 200 {reached['source_only']:.1f} –",
        f"2 source_control control from source_only 400 {reached['source_control']:.1f}",
        f"4 tpld_1 best from source_only · trains on labels_1 300 {reached['tpld_1']:.1f} {gain['tpld_1']:+.1f}",
        f"6 tpld_2 result from tpld_1 · trains on labels_2 400 {reached['tpld_2']:.1f} {second}",
        "source_only → tpld_1 → tpld_2",
        "source_only → source_control",
    ):
        assert said in text
    assert "Also measured" not in Reader(html).text


def test_where_the_chain_is_not_known(run: Path) -> None:
    (run / "run.yaml").unlink()
    for name in ("03-labels_1", "05-labels_2"):
        change(run / name / "stage.json", init="")
    html, _ = read(run)
    text = part(html, "stages")
    assert "from source_only" not in text
    assert f"6 tpld_2 result trains on labels_2 – {100 * IOU['tpld_2'] * mean(SOURCE):.1f} –" in text
    assert "in the order of the stages" in text
    assert "Made with" not in rounds(html)[0]
    change(run / "04-tpld_1/stage.json", init="source_only")
    assert "from source_only · trains on labels_1" in part(read(run)[0], "stages")


def test_stages_that_name_each_other(run: Path) -> None:
    change(run / "01-source_only/stage.json", init="tpld_2")
    text = part(read(run)[0], "stages")
    assert "from tpld_2" not in text
    assert "from tpld_1" in text
    shutil.copytree(run / "06-tpld_2", run / "07-tpld_2")
    change(run / "07-tpld_2/stage.json", init="tpld_2")
    assert part(read(run)[0], "stages").count("from tpld_1") == 1


def test_models_that_are_no_stages_stay_apart(run: Path) -> None:
    scores = content(run, "metrics.json")
    scores["models"]["tpld_1+tpld_2"] = {**scores["models"]["tpld_1"], "miou": 0.4567}
    (run / "metrics.json").write_text(json.dumps(scores))
    html, page = read(run)
    assert "Also measured" in page.text
    assert "tpld_1+tpld_2" not in part(html, "stages")
    assert "best" in part(html, "stages")


def test_control_and_adapted_alone_are_no_chain(run: Path) -> None:
    scores = content(run, "metrics.json")
    scores["models"] = {name: scores["models"][name] for name in ("source_control", "tpld_2")}
    (run / "metrics.json").write_text(json.dumps(scores))
    assert 'id="stages"' not in read(run)[0]
