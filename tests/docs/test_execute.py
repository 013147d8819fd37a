"""Every command and code block of README, docs and CONTRIBUTING is run on a miniature, in the order of its page."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from unittest import mock

import doc_pages
import pytest
from doc_declared import DECLARED, declaration
from doc_pages import PAGES, SHELL, Block, blocks_of, commands_of, name_of
from doc_session import MakeRun, Session
from doc_world import make_world, shrunk, small_runs

from segshift import api
from segshift.methods import METHODS
from workbench import segshift

WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Makes a run of each kind once and copies it; their data lies where it was made."""
    folder = tmp_path_factory.mktemp("given")
    home = make_world(folder)
    data: list[str | Path] = ["--source", home / "synthetic", "--target", home / "camera", "--val", home / "camera_val"]

    def make(kind: str, place: Path) -> None:
        made = home / f"runs of {kind}" / kind  # a folder each: runs beside each other share stages
        if not made.exists():
            weak: list[str | Path] = ["--weak", home / "weak.jsonl"] if kind == "weak_labels" else []
            method = "source_only" if kind == "real" else kind
            command: list[str | Path] = ["adapt", *data, *weak, "--classes", home / "classes.txt", "--method", method]
            with small_runs(true_net=kind == "real"):
                done = segshift(*command, "--out", made)
            assert done.code == 0, done
        shutil.copytree(made, place, ignore=shutil.ignore_patterns(".lock"))

    return make


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_run(page: Path, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_world(tmp_path)
    monkeypatch.chdir(home)
    session = Session(home, make_run)
    with small_runs(), mock.patch.dict(METHODS), contextlib.closing(session):
        for block in blocks_of(page):
            session.run(block)


def all_commands() -> list[str]:
    return [command for page in PAGES for block in blocks_of(page) if block.language in SHELL
            for command in commands_of(block)]  # fmt: skip


def test_every_declaration_is_needed() -> None:
    commands = all_commands()
    for entry in DECLARED:
        assert any(declaration(command) is entry for command in commands), f"no page has {entry.pattern}"
        assert len(entry.reason) > 20, entry.pattern


# ---- the tests above would notice


def block(language: str, text: str, file: str = "") -> Block:
    return Block("page.md", 1, language, file, text)


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("sh", "rm -rf runs", "neither run nor declared"),
        ("sh", "make nothing", "neither run nor declared"),
        ("sh", "segshift check --source nowhere --target camera --classes classes.txt", "nowhere"),
        ("sh", "segshift adapt --source synthetic --target camera --classes classes.txt --set advent.stepz=3", "stepz"),
        ("sh", "pip install segshift[nothing]", "neither this package nor one of its extras"),
        ("sh", "python bench/step.py --netz deeplab_lite", "--netz"),
        ("", "segshift demo", "mark it sh"),
        ("rust", "fn main() {}", "nothing runs or reads"),
        ("yaml", "nets: {name: deeplab_lite}", "nothing reads"),
        ("yaml", "net: {name: deeplab_heavy}", "deeplab_heavy"),
        ("json", '{"gain": 3}', "nothing reads"),
    ],
)
def test_a_wrong_block_fails(
    language: str, text: str, told: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_world(tmp_path)
    monkeypatch.chdir(home)
    with small_runs(), pytest.raises(AssertionError, match=re.escape(told)):
        Session(home, make_run).run(block(language, text))


def test_python_that_fails_fails(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="adapted"):
        Session(make_world(tmp_path), make_run).run(block("python", "import segshift\nsegshift.adapted()"))


def test_indented_blocks_and_continued_lines_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "- step\n\n  ```sh\n  # first\n  segshift check \\\n    --out x  # there\n  cd a && make demo\n  ```\n"
    )
    monkeypatch.setattr(doc_pages, "ROOT", tmp_path)
    (found,) = blocks_of(page)
    assert [" ".join(command.split()) for command in commands_of(found)] == [
        "segshift check --out x", "cd a", "make demo",
    ]  # fmt: skip


def test_runs_are_made_small_and_nothing_else() -> None:
    given = api.compose(method="proda", source="a", target="b", classes="c", set=["target_augment.crop=[256,192]"])
    small = shrunk(given)
    assert [stage.name for stage in small.stages] == [stage.name for stage in given.stages]
    assert {stage.steps for stage in small.stages} == {0, 2}
    assert [stage.settings for stage in small.stages] == [stage.settings for stage in given.stages]
    assert (small.size, small.batch_size, small.target_augment.crop) == ((64, 48), 1, (48, 32))
    assert small.target_augment.flip == given.target_augment.flip
