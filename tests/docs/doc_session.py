"""A page as a session: its blocks are run in their order in one folder, as a reader would who types all of them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from doc_declared import declaration
from doc_pages import SHELL, Block, commands_of
from doc_world import NAMES, SHELF, ids_of, make_domain, painted, save

from segshift.config import RunSettings, read_yaml
from segshift.data.classes import read_classes
from segshift.data.domains import DomainSettings
from segshift.weak.store import WeakStore
from workbench import environment, segshift

ILLUSTRATIONS = ("", "text")
"""Languages of blocks that show folders, formulas or output, unless they have a file's name."""

LOOKS_TYPED = re.compile(r"^\s*(\$ |(\.venv/bin/)?(segshift|pip|python3?|make|git) )", re.MULTILINE)
READERS = ("evaluate", "predict", "features", "report", "compare", "select")
"""Verbs that take runs which a page may speak of without making them."""

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks no proxy of the environment, which would not reach this computer's own servers."""

MakeRun = Callable[[str, Path], None]
"""Puts a finished run of a recipe (`cpu/NAME`, or `real` for one of the true default network) at a path."""


class Session:
    """Runs blocks in `home`, the current folder.

    Args:
        home: see `doc_world.make_world`.
        make_run: called for runs that a page takes as given.
    """

    def __init__(self, home: Path, make_run: MakeRun) -> None:
        self.home = home
        self._make_run = make_run
        self._on_shelf = dict(SHELF)
        self._imported: list[str] = []

    def run(self, block: Block) -> None:
        """Run a block, or have what reads such a file read it.

        Raises:
            AssertionError: it failed, or nothing is known that could be done with it.
        """
        self._provide(block.text)
        if block.file:
            (self.home / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.home / block.file).write_text(block.text, encoding="utf-8")
        known: dict[str, Callable[[Block], None]] = dict.fromkeys(SHELL, self._shell)
        known |= {"python": self._python, "yaml": self._yaml, "yml": self._yaml, "xml": self._xml}
        known |= {"json": self._json, "jsonl": self._json}
        if block.language in known:
            known[block.language](block)
        elif block.language in ILLUSTRATIONS and block.file:
            assert read_classes(self.home / block.file).names, f"{block.place}: {block.file} is no class list"
        else:
            assert block.language in ILLUSTRATIONS, f"{block.place}: nothing runs or reads {block.language!r}"
            assert not LOOKS_TYPED.search(block.text), f"{block.place}: commands in a block that is not run: mark it sh"

    def _provide(self, text: str) -> None:
        for words in [words for words in self._on_shelf if words in text]:
            self._on_shelf.pop(words)(self.home)

    # ---- commands

    def _shell(self, block: Block) -> None:
        for command in commands_of(block):
            where = f"{block.place}: {command}"
            if entry := declaration(command):
                entry.check(command)
                continue
            words = shlex.split(command)
            if words[0].rsplit("/", 1)[-1] != "segshift":
                raise AssertionError(f"{where}\nis neither run nor declared in tests/docs/doc_declared.py")
            self._given(words[1:])
            if words[1] == "annotate":
                self._annotate(words[1:], where)
                continue
            done = segshift(*words[1:])
            assert done.code == 0, f"{where}\nended with {done.code}\n{done.out}\n{done.err}"

    def _given(self, words: list[str]) -> None:
        """Runs that a command reads and no block has made."""
        if words[0] in READERS:
            outputs = {after for word, after in itertools.pairwise(words) if word == "--out"}
            for word in words[1:]:
                if word.startswith("runs/") and word not in outputs:
                    self._give(Path(*Path(word).parts[:2]))

    def _give(self, run: Path) -> None:
        if not (self.home / run).exists():
            kinds = [kind for kind in ("proda", "weak", "cbst") if kind in run.name]
            self._make_run({"weak": "weak_labels"}.get(kind := (kinds or ["advent"])[0], kind), self.home / run)

    def _annotate(self, words: list[str], where: str) -> None:
        """Start the page's server, ask for the page once, and stop it."""
        if "--suggest" in words:
            # Its predictions come from a process of their own, which does not know the stand-in for the network.
            run = self.home / words[words.index("--suggest") + 1]
            shutil.rmtree(run, ignore_errors=True)
            self._make_run("real", run)
        command = [sys.executable, "-m", "segshift", *words, "--no-open", "--port", "0"]
        said = ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        ) as server:
            try:
                for line in server.stdout or ():
                    said += line
                    if found := re.search(r"open (http://\S+)", line):
                        with DIRECTLY.open(found[1], timeout=90) as page:
                            assert page.status == 200, where
                            assert b"<html" in page.read(), where
                        break
                else:
                    raise AssertionError(f"{where}\nserved nothing:\n{said}")
                server.send_signal(signal.SIGINT)
                rest, _ = server.communicate(timeout=120)
            finally:
                server.kill()
        assert server.returncode == 0, f"{where}\nended with {server.returncode}\n{said}{rest}"

    # ---- Python

    def _python(self, block: Block) -> None:
        made = set(re.findall(r'segshift\.adapt\(\s*"(runs/\w+)"', block.text))
        for run in set(re.findall(r'"(runs/\w+)', block.text)) - made:
            self._give(Path(run))
        if block.file and not Path(block.file).name.startswith("test_"):
            self._module(self.home / block.file)
            return
        code = compile("\n" * block.line + block.text, block.page, "exec")
        names: dict[str, Any] = {"__name__": "__main__"}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
            tests = [value for name, value in names.items() if name.startswith("test_")]
            assert bool(tests) == bool(block.file), f"{block.place}: a file of tests without tests"
            for test in tests:
                test()

    def _module(self, path: Path) -> None:
        """Import a file below `src` as what it is there, such as segshift.methods.mirror."""
        name = ".".join(path.relative_to(self.home / "src").with_suffix("").parts)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        self._imported.append(name)
        spec.loader.exec_module(sys.modules[name])

    def close(self) -> None:
        """Forget the modules that a page has written."""
        for name in self._imported:
            del sys.modules[name]

    # ---- files

    def _yaml(self, block: Block) -> None:
        path = Path(block.file or f"block_{block.line}.yaml")
        path.write_text(block.text, encoding="utf-8")
        content = read_yaml(path)
        if isinstance(content.get("classes"), list):
            assert read_classes(path).names, block.place
        elif set(content) <= set(DomainSettings.model_fields):
            self._adapt_or_check(block, ["check", "--source", "synthetic", "--target", "camera"], {"val": content})
        elif set(content) <= {"classes", "source", "target", "val"}:
            self._fit(content)
            self._adapt_or_check(block, ["check"], content)
            if not block.file:  # Later blocks build on a named one.
                make_domain(self.home / "synthetic", labelled=True)
        else:
            assert set(content) <= set(RunSettings.model_fields), f"{block.place}: nothing reads {set(content)}"
            method = [] if content.get("stages") else ["--method", "advent"]
            self._adapt_or_check(block, ["adapt", str(path), *method], content)

    def _adapt_or_check(self, block: Block, words: list[str], content: dict[str, Any]) -> None:
        """Call `adapt` or `check` with what a block says, and with the world's folders for what it does not say."""
        folders = {"source": "synthetic", "target": "camera", "val": "camera_val", "classes": "classes.txt"}
        for part, folder in folders.items():
            if part not in content and f"--{part}" not in words:
                words += [f"--{part}", folder]
        if words[0] == "check":
            data = self.home / f"data_{block.line}.yaml"
            data.write_text(json.dumps(content), encoding="utf-8")
            words += ["--data", str(data)]
        done = segshift(*words, "--out", f"{words[0]}_{block.line}")
        assert done.code == 0, f"{block.place}: {shlex.join(words)}\n{done.out}\n{done.err}"

    def _fit(self, content: dict[str, Any]) -> None:
        """Write labels with the values that a class map of a plain folder lists."""
        source = content.get("source", {})
        values = [value for value in source.get("class_map", {}) if value != "*"]
        if not values or source.get("layout"):
            return
        for seed, label in enumerate(sorted((self.home / source["root"] / "labels").iterdir())):
            if all(isinstance(value, int) for value in values):
                save(label, ids_of(seed, tuple(values)).astype(np.uint8))
            else:
                colours = {place: _colour(value) for place, value in enumerate(values)}
                save(label, painted(ids_of(seed, tuple(colours)), colours))

    def _json(self, block: Block) -> None:
        content = [json.loads(line) for line in block.text.splitlines() if line.strip()]
        path = self.home / (block.file or f"block_{block.line}.json")
        path.write_text(block.text, encoding="utf-8")
        if "classes" in content[0]:
            assert read_classes(path).names, block.place
        elif "image" in content[0]:
            assert len(WeakStore(path).read()) == len(content), block.place
        elif "step" in content[0]:
            self._make_run("advent", run := self.home / f"run_{block.line}")
            shutil.copy(path, run / "03-advent" / "log.jsonl")
            done = segshift("report", run)
            assert done.code == 0, f"{block.place}\n{done.err}"
        else:
            raise AssertionError(f"{block.place}: nothing reads {sorted(content[0])}")

    def _xml(self, block: Block) -> None:
        """An interface of Label Studio, which is not at hand: its parts belong to its image and name our classes."""
        view = ElementTree.fromstring(block.text)
        image = view.find("Image")
        assert view.tag == "View", block.place
        assert image is not None, block.place
        for part in [*view.findall("Choices"), *view.findall("KeyPointLabels")]:
            assert part.get("toName") == image.get("name"), block.place
            assert part, block.place
            assert {choice.get("value") for choice in part} <= set(NAMES), block.place


def _colour(value: str) -> tuple[int, int, int]:
    """ "r,g,b" or "#rrggbb" as numbers."""
    if value.startswith("#"):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    red, green, blue = map(int, value.split(","))
    return red, green, blue
