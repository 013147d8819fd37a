"""Whatever is damaged in a run folder, there is a page of the rest."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_labels import write_rounds_run
from fake_run import write_run
from page_reader import read


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "city-camvid", panels=2)


def junk(rng: random.Random, depth: int = 0) -> Any:
    leaves: list[Any] = [None, True, -1, 1e308, 10**400, math.nan, "", "x<y", "\ud800", [], {}, 0.5, 3]
    if depth > 3 or rng.random() < 0.5:
        return rng.choice(leaves)
    if rng.random() < 0.5:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = [
        "models",
        "classes",
        "iou",
        "miou",
        "confusion",
        "loss",
        "val",
        "step",
        "name",
        "image",
        "palette",
        "verdict",
        "thresholds",
        "labelled",
        "predicted",
        "rows",
        "files",
        "init",
        "kind",
    ]
    return {rng.choice(keys): junk(rng, depth + 1) for _ in range(rng.randrange(5))}


def damaged(rng: random.Random, value: Any) -> Any:
    """The same structure with some of its parts replaced by junk."""
    if rng.random() < 0.08:
        return junk(rng)
    if isinstance(value, dict):
        return {key: damaged(rng, item) for key, item in value.items()}
    return [damaged(rng, item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def whole_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_run(tmp_path_factory.mktemp("whole") / "rounds", panels=1)


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_gives_a_page(run: Path, seed: int) -> None:
    break_and_read(run, random.Random(seed))


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_to_rounds_gives_a_page(whole_rounds: Path, tmp_path: Path, seed: int) -> None:
    break_and_read(shutil.copytree(whole_rounds, tmp_path / "rounds"), random.Random(1000 + seed))


def test_models_without_any_figure_leave_a_page(run: Path) -> None:
    """Their names fit those of the stages, so there would be a chain of them."""
    metrics = json.loads((run / "metrics.json").read_text())
    name = min(path.name for path in run.glob("[0-9]*")).partition("-")[2]
    metrics["models"] = {name: {}, **{key: {} for key in metrics["models"]}}
    metrics["control"] = metrics["adapted"] = None
    (run / "metrics.json").write_text(json.dumps(metrics))
    _, page = read(run)
    assert "What was run" in page.text


def break_and_read(run: Path, rng: random.Random) -> None:
    for path in sorted([*run.rglob("*.json"), *run.rglob("*.jsonl"), run / "run.yaml"]):
        fate = rng.random()
        if fate < 0.15:
            path.unlink()
        elif fate < 0.3:
            content = path.read_bytes()
            path.write_bytes(content[: rng.randrange(len(content))] + rng.choice([b"", b"\xff\xfe\0"]))
        elif fate < 0.6 and path.suffix == ".json":
            path.write_text(json.dumps(damaged(rng, json.loads(path.read_text()))))
        elif fate < 0.7:
            path.write_text(json.dumps(junk(rng)))
    html, page = read(run)
    assert "<h1>" in html
    assert "What was run" in page.text
