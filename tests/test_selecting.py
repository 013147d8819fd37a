"""`segshift select` on runs made by hand: which models it finds, what it warns of, what it keeps, and its page."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segshift import cli
from segshift.config import RunSettings, validated
from segshift.data.classes import read_classes
from segshift.engine.model import save_model
from segshift.errors import UserError
from segshift.report import build_selection
from segshift.selecting import FIGURES, RULE, Asked, best, recommend, select
from segshift.setup import dump_yaml
from small_net import SmallNet, small_net
from workbench import HEIGHT, NAMES, WIDTH, Outcome, Pair, assert_told, make_pair, read_json, segshift

assert small_net

STAGES: list[dict[str, Any]] = [
    {"name": "source_only", "method": "source_only", "steps": 2},
    {"name": "labels_1", "produce": "pseudo_labels", "init": "source_only"},
    {"name": "cbst", "method": "cbst", "steps": 2, "init": "source_only", "labels": "labels_1"},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


def net(seed: int, only: int | None = None, noise: float = 0.4) -> SmallNet:
    """The same random weights, moved a little by the seed; `only`: a class that is predicted everywhere."""
    torch.manual_seed(0)
    made = SmallNet(len(NAMES))
    torch.manual_seed(seed)
    made.head.weight = torch.nn.Parameter(made.head.weight + noise * seed**0.5 * torch.randn_like(made.head.weight))
    if only is not None:
        torch.nn.init.zeros_(made.head.weight)
        made.head.bias = torch.nn.Parameter(9.0 * torch.nn.functional.one_hot(torch.tensor(only), len(NAMES)))
    return made


def stage(root: Path, name: str, made: SmallNet, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    save_model(root / name / "model", made, "small", {}, read_classes(root / "classes.json"), size)
    (root / name / "stage.json").write_text(json.dumps({"name": name, "done": True}))
    return root / name


def run(pair: Pair, root: Path, last: SmallNet | None, first: int = 0, **settings: Any) -> Path:
    """A run's folder as far as `select` reads it: source model of seed `first`, and the model that it ended with."""
    content = {
        "classes": str(pair.classes), "source": {"root": str(pair.source)}, "target": {"root": str(pair.target)},
        "size": [WIDTH, HEIGHT], "precision": "fp32", "net": {"name": "small"}, "stages": STAGES,
    }  # fmt: skip
    root.mkdir(parents=True)
    (root / "run.yaml").write_text(dump_yaml(validated(RunSettings, content | settings, "test")))
    (root / "classes.json").write_bytes(pair.classes.read_bytes())
    stage(root, "01-source_only", net(first))
    if last is not None:
        stage(root, "03-cbst", last)
    return root


def chosen(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(out / "select.json")
    return content


def call(tmp_path: Path, *arguments: str | Path) -> Outcome:
    return segshift("select", *arguments, "--out", tmp_path / "out", "--device", "cpu")


def by_name(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in content["candidates"]}


def test_the_last_stages_of_runs_are_ranked_and_one_is_recommended(pair: Pair, tmp_path: Path) -> None:
    runs = [run(pair, tmp_path / name, net(seed)) for seed, name in enumerate("abc", 1)]
    done = call(tmp_path, *runs)
    assert done.code == 0, done.err
    content = chosen(tmp_path / "out")
    rows = by_name(content)
    assert set(rows) == {"a/cbst", "b/cbst", "c/cbst"}
    assert content["rule"] == list(RULE)
    assert set(rows["a/cbst"]["figures"]) == set(FIGURES)
    assert all(value is not None for value in rows["a/cbst"]["figures"].values()), "its teacher is the source model"
    assert min(rows.values(), key=lambda row: row["score"])["score"] == rows[content["recommended"]]["score"]
    assert done.out.splitlines()[1].split()[0] == content["recommended"], "best first"
    assert f"recommended: {content['recommended']}" in done.out
    page = (tmp_path / "out" / "select.html").read_text()
    assert "recommended</span>" in page
    assert all(name in page for name in rows)


def test_the_same_command_asks_no_network_again_and_says_the_same(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run(pair, tmp_path / name, net(seed)) for seed, name in enumerate("ab", 1)]
    first = call(tmp_path, *runs)
    before = (tmp_path / "out" / "select.json").read_bytes()
    monkeypatch.setattr(SmallNet, "forward", None)
    again = call(tmp_path, *runs)
    assert (again.code, again.out) == (0, first.out), again.err
    assert (tmp_path / "out" / "select.json").read_bytes() == before
    damaged = next((tmp_path / "out" / "answers").glob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    monkeypatch.undo()
    assert call(tmp_path, *runs).out == first.out, "what is damaged is made anew"
    assert damaged.stat().st_size > 100


@pytest.mark.parametrize(
    "ruin",
    [lambda: net(1, only=0), lambda: net(1, only=3)],
    ids=["one class of all", "one class that is rare"],
)
def test_what_has_collapsed_is_told_and_never_recommended(
    pair: Pair, tmp_path: Path, ruin: Callable[[], SmallNet]
) -> None:
    runs = [run(pair, tmp_path / "fallen", ruin()), run(pair, tmp_path / "standing", net(2))]
    done = call(tmp_path, *runs)
    content = chosen(tmp_path / "out")
    assert content["recommended"] == "standing/cbst"
    fallen = by_name(content)["fallen/cbst"]
    assert fallen["figures"]["entropy"] < 0.01, "by its entropy it would be the best"
    assert fallen["score"] is None
    assert fallen["lost"]
    assert "collapsed: fallen/cbst: " in done.out
    assert "has collapsed" in (tmp_path / "out" / "select.html").read_text()


def test_a_network_that_says_anything_is_not_recommended(pair: Pair, tmp_path: Path) -> None:
    runs = [run(pair, tmp_path / "any", shuffled(net(0))), run(pair, tmp_path / "standing", net(1))]
    done = call(tmp_path, *runs)
    rows = by_name(chosen(tmp_path / "out"))
    assert rows["any/cbst"]["figures"]["effective"] > 2, "by its histogram it has not collapsed"
    assert "says what the source model says on" in done.out
    assert chosen(tmp_path / "out")["recommended"] == "standing/cbst"


def shuffled(made: SmallNet) -> SmallNet:
    """A network that says of each point the class after its own."""
    made.head.weight = torch.nn.Parameter(made.head.weight.roll(1, dims=0))
    return made


def test_a_network_that_diverged_counts_as_collapsed(pair: Pair, tmp_path: Path) -> None:
    broken = net(1)
    torch.nn.init.constant_(broken.head.weight, math.nan)
    done = call(tmp_path, run(pair, tmp_path / "nan", broken), run(pair, tmp_path / "fine", net(2)))
    assert done.code == 0, done.err
    assert chosen(tmp_path / "out")["recommended"] == "fine/cbst"
    assert "not finite" in done.out


def test_where_all_have_collapsed_none_is_recommended(pair: Pair, tmp_path: Path) -> None:
    done = call(tmp_path, *(run(pair, tmp_path / name, net(1, only=k)) for k, name in enumerate("ab")))
    assert chosen(tmp_path / "out")["recommended"] is None
    assert "recommended: none" in done.out
    assert "None is recommended" in (tmp_path / "out" / "select.html").read_text()


def test_all_stages_count_each_weights_once(pair: Pair, tmp_path: Path) -> None:
    runs = [run(pair, tmp_path / "a", net(1)), run(pair, tmp_path / "b", net(2)), run(pair, tmp_path / "c", None)]
    stage(runs[0], "03-cbst.1.aside", net(1))
    done = call(tmp_path, *runs, runs[0] / "03-cbst.1.aside", "--stages", "all")
    assert done.code == 0, done.err
    rows = by_name(chosen(tmp_path / "out"))
    assert set(rows) == {"a/source_only", "a/cbst", "b/cbst"}
    assert rows["a/source_only"]["also"] == ["b/source_only", "c/source_only"]
    assert rows["a/cbst"]["also"] == ["a/03-cbst.1.aside"]
    assert rows["a/source_only"]["figures"]["shift_model"] is None, "there is nothing before it"
    assert "note: c/cbst is not finished and was left out" in done.out
    call(tmp_path, *runs, "--stages", "cbst")
    assert set(by_name(chosen(tmp_path / "out"))) == {"a/cbst", "b/cbst"}


def test_models_of_other_sizes_are_asked_at_theirs_and_compared_point_by_point(pair: Pair, tmp_path: Path) -> None:
    small, large = run(pair, tmp_path / "small", net(1)), run(pair, tmp_path / "large", None)
    stage(large, "03-cbst", net(1), (2 * WIDTH, 2 * HEIGHT))
    assert call(tmp_path, small, large).code == 0
    rows = by_name(chosen(tmp_path / "out"))
    assert len(rows) == 2, "the same weights asked at another size are another candidate"
    assert rows["small/cbst"]["histogram"] != rows["large/cbst"]["histogram"]
    assert rows["small/cbst"]["figures"]["consensus_pixels"] == rows["large/cbst"]["figures"]["consensus_pixels"]


def test_runs_of_one_name_are_told_apart(pair: Pair, tmp_path: Path) -> None:
    call(tmp_path, *(run(pair, tmp_path / place / "x", net(seed)) for seed, place in enumerate("ab", 1)))
    assert set(by_name(chosen(tmp_path / "out"))) == {"a/x/cbst", "b/x/cbst"}


def test_runs_of_one_name_in_folders_of_one_name_are_told_apart(pair: Pair, tmp_path: Path) -> None:
    call(tmp_path, *(run(pair, tmp_path / place / "same" / "x", net(seed)) for seed, place in enumerate("ab", 1)))
    assert set(by_name(chosen(tmp_path / "out"))) == {"a/same/x/cbst", "b/same/x/cbst"}
    assert (tmp_path / "out" / "select.html").read_text().count("recommended</span>") == 1


def test_models_of_one_name_are_called_by_their_own_folders(pair: Pair, tmp_path: Path) -> None:
    models = []
    for seed, place in enumerate("ab", 1):
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True)
        (folder / "classes.json").write_bytes(pair.classes.read_bytes())
        models.append((stage(folder, "x", net(seed)) / "model").rename(folder / "best"))
    call(tmp_path, *models, "--target", pair.target)
    assert set(by_name(chosen(tmp_path / "out"))) == {"a/mine/best", "b/mine/best"}


def test_a_run_that_is_named_twice_keeps_its_name(pair: Pair, tmp_path: Path) -> None:
    made = run(pair, tmp_path / "a", net(1))
    call(tmp_path, made, made / "03-cbst")
    assert set(by_name(chosen(tmp_path / "out"))) == {"a/cbst"}


@pytest.mark.parametrize("part", ["net", "palette", "names", "size"])
def test_a_damaged_config_is_told(pair: Pair, tmp_path: Path, part: str) -> None:
    config = run(pair, tmp_path / "a", net(1)) / "03-cbst" / "model" / "config.json"
    content = json.loads(config.read_text())
    (content if part in content else content["classes"])[part] = [1]
    if part == "net":
        del content["net"]
    config.write_text(json.dumps(content))
    assert_told(call(tmp_path, tmp_path / "a"), "config.json", "restore it")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_gone_are_not_recommended_from_what_they_said(pair: Pair, tmp_path: Path) -> None:
    made = run(pair, tmp_path / "a", net(1))
    assert call(tmp_path, made).code == 0
    (made / "03-cbst" / "model" / "model.safetensors").unlink()
    assert_told(call(tmp_path, made), "model.safetensors does not exist", "restore it")


def test_a_run_whose_path_is_no_text_is_chosen_and_told_on_any_terminal(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(pair, tmp_path / os.fsdecode(b"caf\xe9"), net(1))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "argv", ["segshift", "select", str(made), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    terminal.flush()
    assert not ended.value.code
    assert b"recommended: caf\\udce9/cbst" in terminal.buffer.getvalue()


def test_a_model_on_its_own_needs_a_target(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "classes.json").write_bytes(pair.classes.read_bytes())
    model = stage(folder, "x", net(1)) / "model"
    assert_told(call(tmp_path, model), "no run names a target", "--target")
    assert call(tmp_path, model, "--target", pair.target).code == 0
    row = by_name(chosen(tmp_path / "out"))["mine/x"]
    assert row["figures"]["shift_source"] is row["figures"]["consensus_miou"] is None
    assert chosen(tmp_path / "out")["recommended"] == "mine/x"


def test_no_label_of_the_target_is_looked_at(pair: Pair, tmp_path: Path) -> None:
    made = run(pair, tmp_path / "a", net(1), val={"root": str(tmp_path / "there is no such folder")})
    assert not (pair.target / "labels").exists()
    assert call(tmp_path, made).code == 0


def test_errors_say_what_to_do(pair: Pair, tmp_path: Path) -> None:
    good = run(pair, tmp_path / "a", net(1))
    assert_told(call(tmp_path, tmp_path / "none"), "does not exist", "a run")
    assert_told(call(tmp_path, run(pair, tmp_path / "half", None)), "is not finished", "finished run")
    assert_told(call(tmp_path, good, "--stages", "cbts"), "no run has a stage cbts", "cbst")
    assert_told(call(tmp_path, good, "--stages", "cbst,sorce_only"), "no run has a stage sorce_only", "source_only")
    assert_told(call(tmp_path, good, "--images", "0"), "--images 0", "1 at least")
    assert_told(call(tmp_path, good, "--seed", "-1"), "--seed -1", "0 or more")
    elsewhere = run(pair, tmp_path / "b", net(2), target={"root": str(pair.source)})
    assert_told(call(tmp_path, good, elsewhere), "was adapted to", "--target")
    other = run(pair, tmp_path / "c", net(2))
    config = other / "03-cbst" / "model" / "config.json"
    changed = json.loads(config.read_text())
    changed["classes"]["names"][0] = "street"
    config.write_text(json.dumps(changed))
    assert_told(call(tmp_path, good, other), "street", "same class list")
    config.write_text("{}")
    assert_told(call(tmp_path, other), "config.json", "restore it")


def test_source_labels_that_are_gone_cost_their_figures_alone(pair: Pair, tmp_path: Path) -> None:
    gone = run(pair, tmp_path / "a", net(1), source={"root": str(tmp_path / "gone")})
    done = call(tmp_path, gone)
    assert done.code == 0, done.err
    assert "note: the source's labels cannot be counted" in done.out
    row = by_name(chosen(tmp_path / "out"))["a/cbst"]
    assert row["figures"]["infomax_prior"] is None
    assert row["figures"]["infomax"] is not None


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '["a"]'])
def test_damaged_class_shares_of_the_source_are_counted_again(pair: Pair, tmp_path: Path, content: str) -> None:
    made = run(pair, tmp_path / "a", net(1))
    assert call(tmp_path, made).code == 0
    before = (tmp_path / "out" / "select.json").read_bytes()
    (kept,) = (tmp_path / "out" / "answers").glob("source-*.json")
    kept.write_text(content)
    assert call(tmp_path, made).code == 0
    assert (tmp_path / "out" / "select.json").read_bytes() == before


def test_class_shares_are_those_of_the_class_list(pair: Pair, tmp_path: Path) -> None:
    """Labels that are declared by class names: the same files hold other train ids with another list."""
    spelled = {"root": str(pair.source), "class_map": dict(enumerate(NAMES))}
    call(tmp_path, run(pair, tmp_path / "a", net(1), source=spelled))
    other = run(pair, tmp_path / "b", net(1), source=spelled)
    for config in other.glob("*/model/config.json"):
        changed = json.loads(config.read_text())
        changed["classes"]["names"].reverse()
        changed["classes"]["palette"].reverse()
        config.write_text(json.dumps(changed))
    call(tmp_path, other)
    assert len(list((tmp_path / "out" / "answers").glob("source-*.json"))) == 2


def test_histograms_are_those_of_what_the_models_predict(pair: Pair, tmp_path: Path) -> None:
    select([run(pair, tmp_path / "a", net(1, only=2))], tmp_path / "out", Asked(), device="cpu")
    content = chosen(tmp_path / "out")
    assert content["candidates"][0]["histogram"] == [0, 0, 1, 0]
    assert content["images"] == ["000", "001", "002"]
    assert yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())["target"]["root"] == content["target"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"figures": [], "candidates": []}'])
def test_a_damaged_select_json_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "select.json").write_text(content)
    with pytest.raises(UserError, match=r"select\.json"):
        build_selection(tmp_path)
    assert not (tmp_path / "select.html").exists()


# ---- the rule


def figures(**values: float | None) -> dict[str, float | None]:
    return dict.fromkeys(FIGURES) | values


def test_the_rule_adds_up_ranks_and_leaves_out_what_has_collapsed() -> None:
    rows = [
        figures(effective=9, shift_source=0.3),
        figures(effective=8, shift_source=0.1),
        figures(effective=5, shift_source=0.2),
        figures(effective=10, shift_source=0.0),
    ]
    sums = recommend(rows, [False, False, False, True])
    assert sums == [1 + 3, 2 + 1, 3 + 2, None]
    assert best(rows, sums) == 1
    assert best(rows, recommend(rows, [True] * 4)) is None
    assert best(rows, [4, 4, 4, None]) == 0, "of equal sums the best by the first figure"


def test_a_candidate_without_a_figure_is_behind_those_that_have_it() -> None:
    rows = [figures(effective=9), figures(effective=8, shift_source=0.3), figures(effective=1, shift_source=0.2)]
    assert recommend(rows, [False] * 3) == [1 + 3, 2 + 2, 3 + 1]
    assert recommend([figures(effective=9), figures(effective=8)], [False] * 2) == [1, 2], "nobody has it"
