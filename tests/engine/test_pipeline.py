"""Stages in order: skipped, resumed, set aside, adopted from a run beside this one; the lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segshift.artefacts.store import sweep
from segshift.engine.pipeline import Stage, fingerprint, run_stages
from segshift.errors import UserError
from segshift.setup import locked


class Work:
    """Stages that count how often they ran and write one file each."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.said: list[str] = []
        self.failing: dict[str, Exception] = {}

    def stage(self, name: str, after: tuple[str, ...] | None = None, **settings: Any) -> Stage:
        def run(folder: Path) -> None:
            self.ran.append(name)
            (folder / "started").touch()
            if name in self.failing:
                raise self.failing[name]
            (folder / "result").write_text(f"{name} {settings} {len(self.ran)}")

        return Stage(name, settings, f"{name} is for the test", run, {"kind": "test"}, after)

    def run(self, root: Path, *stages: Stage) -> list[str]:
        """Names of the stages that did work."""
        self.ran.clear()
        self.said.clear()
        run_stages(root, list(stages), self.said.append)
        return list(self.ran)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def record(folder: Path) -> dict[str, Any]:
    loaded = json.loads((folder / "stage.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_stages_run_in_order_and_are_recorded(work: Work, root: Path) -> None:
    a, b = work.stage("a", lr=1), work.stage("b", lr=2)
    assert work.run(root, a, b) == ["a", "b"]
    assert folders(root) == ["01-a", "02-b"]
    assert record(root / "01-a") == {
        "name": "a",
        "fingerprint": fingerprint({"name": "a", "lr": 1}, ""),
        "purpose": "a is for the test",
        "kind": "test",
        "done": True,
        "seconds": pytest.approx(0, abs=5),
    }
    first = record(root / "01-a")["fingerprint"]
    assert record(root / "02-b")["fingerprint"] == fingerprint({"name": "b", "lr": 2}, first)
    assert work.said[0].startswith("[1/2] a: a is for the test")


def test_finished_stages_are_skipped(work: Work, root: Path) -> None:
    stages = work.stage("a"), work.stage("b")
    work.run(root, *stages)
    before = [(root / name / "result").read_text() for name in folders(root)]
    assert work.run(root, *stages) == []
    assert before == [(root / name / "result").read_text() for name in folders(root)]
    assert all("skipped" in line for line in work.said)


@pytest.mark.parametrize("error", [UserError("full disk"), KeyboardInterrupt(), RuntimeError("bug")])
def test_an_unfinished_stage_goes_on_in_its_folder(work: Work, root: Path, error: Exception) -> None:
    stages = work.stage("a"), work.stage("b"), work.stage("c")
    work.failing = {"b": error}
    with pytest.raises(type(error)):
        work.run(root, *stages)
    assert work.ran == ["a", "b"]
    assert not record(root / "02-b")["done"]
    assert record(root / "02-b")["seconds"] >= 0
    (root / "02-b" / "checkpoint.pt").write_text("half-way")
    work.failing = {}
    assert work.run(root, *stages) == ["b", "c"]
    assert (root / "02-b" / "checkpoint.pt").read_text() == "half-way"
    assert any("going on" in line for line in work.said)
    assert folders(root) == ["01-a", "02-b", "03-c"]


@pytest.mark.parametrize("there", [True, False])
def test_what_only_going_on_needs_goes_with_the_end_of_a_stage(work: Work, root: Path, there: bool) -> None:
    stage = replace(work.stage("a"), unfinished=("checkpoint.pt",))
    work.failing = {"a": UserError("full disk")}
    with pytest.raises(UserError):
        work.run(root, stage)
    if there:
        (root / "01-a" / "checkpoint.pt").write_text("half-way")
    work.failing = {}
    assert work.run(root, stage) == ["a"]
    assert sorted(os.listdir(root / "01-a")) == ["result", "stage.json", "started"]
    assert record(root / "01-a")["done"]


def test_changed_settings_set_the_stage_and_all_after_it_aside(work: Work, root: Path) -> None:
    work.run(root, work.stage("a"), work.stage("b", lr=1), work.stage("c"))
    first = {name: (root / name / "result").read_text() for name in folders(root)}
    assert work.run(root, work.stage("a"), work.stage("b", lr=2), work.stage("c")) == ["b", "c"]
    assert folders(root) == ["01-a", "02-b", "02-b.1.aside", "03-c", "03-c.1.aside"]
    assert (root / "01-a" / "result").read_text() == first["01-a"]
    assert (root / "02-b.1.aside" / "result").read_text() == first["02-b"]
    assert any("02-b.1.aside" in line and "changed" in line for line in work.said)
    assert work.run(root, work.stage("a"), work.stage("b", lr=3), work.stage("c")) == ["b", "c"]
    assert "02-b.2.aside" in folders(root)


def test_a_stage_depends_only_on_those_it_comes_after(work: Work, root: Path) -> None:
    base = work.stage("base", after=(), lr=1)
    result = work.stage("result", after=("base",))
    work.run(root, base, work.stage("control", after=("base",), lr=1), result)
    first = (root / "03-result" / "result").read_text()
    assert work.run(root, base, work.stage("control", after=("base",), lr=2), result) == ["control"]
    assert folders(root) == ["01-base", "02-control", "02-control.1.aside", "03-result"]
    assert (root / "03-result" / "result").read_text() == first
    changed = work.stage("base", after=(), lr=2)
    assert work.run(root, changed, work.stage("control", after=("base",), lr=2), result) == [
        "base", "control", "result",
    ]  # fmt: skip


def test_a_stage_that_comes_after_none_depends_on_none(work: Work, root: Path) -> None:
    free = work.stage("free", after=())
    work.run(root, work.stage("base", lr=1), free)
    assert record(root / "02-free")["fingerprint"] == fingerprint({"name": "free"}, "")
    assert work.run(root, work.stage("base", lr=2), free) == ["base"]


def test_a_stage_may_come_after_several(work: Work, root: Path) -> None:
    def stages(a: int, b: int) -> list[Stage]:
        return [work.stage("a", (), lr=a), work.stage("b", (), lr=b), work.stage("both", ("a", "b"))]

    work.run(root, *stages(1, 1))
    digests = [record(root / folder)["fingerprint"] for folder in ("01-a", "02-b")]
    assert record(root / "03-both")["fingerprint"] == fingerprint({"name": "both"}, "/".join(digests))
    assert work.run(root, *stages(2, 1)) == ["a", "both"]
    assert work.run(root, *stages(2, 2)) == ["b", "both"]


def test_dropping_a_stage_that_none_builds_on_runs_nothing(work: Work, root: Path) -> None:
    base, result = work.stage("base", ()), work.stage("result", ("base",))
    control = work.stage("control", ("base",))
    work.run(root, base, control, result)
    texts = {name: (root / name / "result").read_text() for name in folders(root)}
    assert work.run(root, base, result) == []
    assert folders(root) == ["01-base", "02-control.1.aside", "02-result", "03-result.1.aside"]
    assert (root / "02-result" / "result").read_text() == texts["03-result"]
    assert work.run(root, base, control, result) == []
    assert {name: (root / name / "result").read_text() for name in texts} == texts


def test_purpose_and_info_are_no_part_of_the_fingerprint(work: Work, root: Path) -> None:
    stage = work.stage("a")
    work.run(root, stage)
    assert work.run(root, Stage("a", stage.settings, "said otherwise", stage.run, {"kind": "other"})) == []


def test_stages_of_other_names_or_places_are_set_aside(work: Work, root: Path) -> None:
    work.run(root, work.stage("a"), work.stage("b"))
    assert work.run(root, work.stage("a"), work.stage("x"), work.stage("b")) == ["x", "b"]
    assert folders(root) == ["01-a", "02-b.1.aside", "02-x", "03-b"]
    assert any("no stage of this run any more" in line for line in work.said)


def test_a_folder_that_is_no_stage_stays_where_it_is(work: Work, root: Path) -> None:
    (root / "01-january").mkdir(parents=True)
    assert work.run(root, work.stage("a")) == ["a"]
    assert folders(root) == ["01-a", "01-january"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": 3}'])
def test_a_damaged_record_sets_the_stage_aside(work: Work, root: Path, damage: str) -> None:
    work.run(root, work.stage("a"))
    (root / "01-a" / "stage.json").write_text(damage)
    assert work.run(root, work.stage("a")) == ["a"]
    assert folders(root) == ["01-a", "01-a.1.aside"]


def test_a_folder_without_a_record_is_used(work: Work, root: Path) -> None:
    """Killed between making the folder and writing the record."""
    (root / "01-a").mkdir(parents=True)
    assert work.run(root, work.stage("a")) == ["a"]
    assert folders(root) == ["01-a"]


# ---- a finished twin in a run beside this one


def test_a_finished_twin_is_reused(work: Work, root: Path) -> None:
    other = root.with_name("two")
    work.run(root, work.stage("control", lr=1), work.stage("x"))
    assert work.run(other, work.stage("control", lr=1), work.stage("y")) == ["y"]
    assert (other / "01-control" / "result").read_text() == (root / "01-control" / "result").read_text()
    assert record(other / "01-control")["done"]
    assert any(f"reused from {root / '01-control'}" in line for line in work.said)
    assert work.run(other, work.stage("control", lr=1), work.stage("y")) == []


def test_a_twin_of_other_settings_or_unfinished_is_not_reused(work: Work, root: Path) -> None:
    other = root.with_name("two")
    work.run(root, work.stage("a", lr=1))
    assert work.run(other, work.stage("a", lr=2)) == ["a"]
    work.failing = {"b": UserError("stop")}
    with pytest.raises(UserError):
        work.run(root, work.stage("a", lr=1), work.stage("b"))
    work.failing = {}
    assert work.run(root.with_name("three"), work.stage("a", lr=1), work.stage("b")) == ["b"]


def test_what_was_set_aside_is_taken_back(work: Work, root: Path) -> None:
    work.run(root, work.stage("a", lr=1), work.stage("b"))
    first = {name: (root / name / "result").read_text() for name in folders(root)}
    assert work.run(root, work.stage("a", lr=2), work.stage("b")) == ["a", "b"]
    assert work.run(root, work.stage("a", lr=1), work.stage("b")) == []
    assert {name: (root / name / "result").read_text() for name in first} == first
    assert all(record(root / name)["done"] for name in first)
    assert any(f"reused from {root / '01-a.1.aside'}" in line for line in work.said)
    assert work.run(root, work.stage("a", lr=1), work.stage("b")) == []
    assert all("skipped" in line for line in work.said)


def test_what_was_set_aside_unfinished_or_damaged_is_not_taken_back(work: Work, root: Path) -> None:
    work.failing = {"a": UserError("stop")}
    with pytest.raises(UserError):
        work.run(root, work.stage("a", lr=1))
    work.failing = {}
    work.run(root, work.stage("a", lr=2))
    assert work.run(root, work.stage("a", lr=1)) == ["a"], "it was not finished"
    assert work.run(root, work.stage("a", lr=2)) == []
    for aside in root.glob("*.aside"):
        (aside / "stage.json").write_text("{")
    assert work.run(root, work.stage("a", lr=1)) == ["a"], "its record is damaged"


def test_what_another_run_set_aside_is_no_twin(work: Work, root: Path) -> None:
    work.run(root, work.stage("a", lr=1))
    work.run(root, work.stage("a", lr=2))
    assert work.run(root.with_name("two"), work.stage("a", lr=1)) == ["a"]


def test_an_own_unfinished_stage_goes_before_a_twin(work: Work, root: Path) -> None:
    other = root.with_name("two")
    work.failing = {"a": UserError("stop")}
    with pytest.raises(UserError):
        work.run(other, work.stage("a"))
    work.failing = {}
    work.run(root, work.stage("a"))
    assert work.run(other, work.stage("a")) == ["a"]


def test_setting_a_reused_stage_aside_leaves_the_twin_whole(work: Work, root: Path) -> None:
    other = root.with_name("two")
    work.run(root, work.stage("a"))
    before = (root / "01-a" / "result").read_text(), record(root / "01-a")
    work.run(other, work.stage("a"))
    work.run(other, work.stage("a", lr=1))
    assert before == ((root / "01-a" / "result").read_text(), record(root / "01-a"))


def test_reuse_where_a_killed_process_left_a_folder_without_a_record(work: Work, root: Path) -> None:
    other = root.with_name("two")
    work.run(root, work.stage("a"))
    (other / "01-a").mkdir(parents=True)
    (other / "01-a" / "something").touch()
    assert work.run(other, work.stage("a")) == []
    assert (other / "01-a" / "result").exists()
    assert (other / "01-a.1.aside" / "something").exists()


def test_reuse_without_hard_links(work: Work, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(1, "Operation not permitted")

    work.run(root, work.stage("a"))
    monkeypatch.setattr(os, "link", refuse)
    other = root.with_name("two")
    assert work.run(other, work.stage("a")) == []
    assert (other / "01-a" / "result").stat().st_nlink == 1


# ---- what killed processes leave


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_swept(work: Work, root: Path) -> None:
    pid = dead_pid()
    left = [root / "01-a" / f".checkpoint.{pid}.tmp.pt", root / f".run.{pid}.tmp.yaml", root / f".x.{pid}.tmp"]
    kept = [root / ".lock", root / f".mine.{os.getppid()}.tmp.json", root / ".a.tmp", root / "01-a" / "x.1.tmp"]
    (root / "01-a").mkdir(parents=True)
    for path in (*left, *kept):
        path.touch()
    (root / f".01-a.{pid}.tmp" / "model").mkdir(parents=True)
    (root / f".01-a.{pid}.tmp" / "model" / f".model.{pid}.tmp.safetensors").touch()
    work.run(root, work.stage("a"))
    assert not any(path.exists() for path in left)
    assert not (root / f".01-a.{pid}.tmp").exists()
    assert all(path.exists() for path in kept)


def test_sweep_of_a_missing_folder(tmp_path: Path) -> None:
    sweep(tmp_path / "nothing")


# ---- errors and the lock


def test_a_run_that_is_a_file_is_an_error(work: Work, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file"):
        work.run(tmp_path / "run", work.stage("a"))


def test_fingerprints_differ_with_anything(root: Path) -> None:
    seen = {
        fingerprint(settings, before)
        for settings in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {})
        for before in ("", "x")
    }
    assert len(seen) == 14
    assert fingerprint({"a": 1, "b": 2}, "") == fingerprint({"b": 2, "a": 1}, "")


def test_the_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match="another segshift works on") as caught, locked(tmp_path):
            pass
        assert "--out" in caught.value.remedy
    with locked(tmp_path):
        pass


def test_the_lock_dies_with_its_process_though_a_worker_lives_on(tmp_path: Path) -> None:
    """A killed run's reading process outlives it by seconds; the same command must go on at once."""
    program = (
        "import os, sys, time, pathlib; from segshift.setup import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: time.sleep(60)\n"
        "    print(pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
        try:
            os.kill(worker, 0)  # it lives
            with locked(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)
