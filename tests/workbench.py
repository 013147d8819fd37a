"""The command line called from tests, tiny data to call it on, and what a run's folder must look like afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from segshift import cli

NAMES = ("road", "sky", "car", "person")
COLOURS = ((128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60))
WIDTH, HEIGHT = 64, 48
TINY = (
    "source_only.steps=2", "source_control.steps=2", "advent.steps=2", "size=[64,48]", "batch_size=1", "workers=0",
    "panels=2", "validate_every=0", "log_every=1", "precision=fp32", "net.options.width=16",
    "net.options.weights=none",
)  # fmt: skip
"""Settings under which a run of three stages takes about a second."""

SCREEN = (24, 110)
"""Lines and columns of the screen that an error has to fit on."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error alone, without the progress before it."""
        return self.err[self.err.index("segshift: ") :] if "segshift: " in self.err else self.err


def segshift(*args: str | Path) -> Outcome:
    """Call the entry point in this process, as the installed script would: whatever it raises goes through."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["segshift", *map(str, args)]
    code: object = 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """For processes started by tests: one thread, no terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "100"}


def spawn(*args: str | Path, cwd: Path | None = None, timeout: float = 240) -> Outcome:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "segshift", *map(str, args)],
        capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment(), check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    """Write an array as an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A smooth random RGB image, (height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def label(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Ids of all four classes in blocks, (height, width)."""
    blocks = np.random.default_rng(seed).permutation(np.arange(12) % len(NAMES)).reshape(3, 4).astype(np.uint8)
    return np.kron(blocks, np.ones((-(-height // 3), -(-width // 4)), np.uint8))[:height, :width]


@dataclass(frozen=True)
class Pair:
    """Folders of a tiny pair of domains, with its class list."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def target(self) -> Path:
        return self.root / "target"

    @property
    def val(self) -> Path:
        return self.root / "val"

    @property
    def classes(self) -> Path:
        return self.root / "classes.json"

    @property
    def run(self) -> Path:
        return self.root / "runs" / "x"

    def image(self, domain: str, index: int = 0) -> Path:
        """Path of an image."""
        return self.root / domain / "images" / f"{index:03d}.png"

    def label(self, domain: str, index: int = 0) -> Path:
        """Path of a label."""
        return self.root / domain / "labels" / f"{index:03d}.png"

    def data(self, val: bool = False) -> list[str | Path]:
        """Arguments that say where the data lies."""
        part: list[str | Path] = ["--val", self.val] if val else []
        return ["--source", self.source, "--target", self.target, "--classes", self.classes, *part]

    def adapt(self, *sets: str, val: bool = False, method: str = "advent") -> list[str | Path]:
        """A whole `adapt` command of a tiny run into `run`."""
        # Training on the source alone has no stage for a control.
        known = [a for a in TINY if method != "source_only" or not a.startswith("source_control.")]
        given = [argument for assignment in (*known, *sets) for argument in ("--set", assignment)]
        if method != "advent":
            given = [argument.replace("advent.", f"{method}.") for argument in given]
        return ["adapt", *self.data(val), "--method", method, "--out", self.run, "--device", "cpu", *given]


def write_classes(path: Path, names: Sequence[str] = NAMES) -> Path:
    """A class list with a palette."""
    content = {"classes": list(names), "palette": [list(colour) for colour in COLOURS[: len(names)]]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_pair(root: Path) -> Pair:
    """Write three labelled source images, three target images without labels and two labelled ones."""
    pair = Pair(root)
    root.mkdir(parents=True, exist_ok=True)
    write_classes(pair.classes)
    for domain, count, labelled in (("source", 3, True), ("target", 3, False), ("val", 2, True)):
        for index in range(count):
            seed = index + 10 * len(domain)
            save(pair.image(domain, index), picture(seed))
            if labelled:
                save(pair.label(domain, index), label(seed))
    return pair


def cut_short(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def screen_lines(text: str) -> int:
    """Lines that a text takes on a screen."""
    return sum(max(1, len(textwrap.wrap(line, SCREEN[1]))) for line in text.rstrip("\n").splitlines())


def assert_told(outcome: Outcome, *words: str, code: int = 2) -> None:
    """The command failed as a person wants it: one screen that names the matter and a remedy, no traceback."""
    everything = outcome.out + outcome.err
    assert outcome.code == code, everything
    assert "Traceback" not in everything, everything
    told = outcome.message if code == 2 else outcome.out[outcome.out.index("problem: ") :]
    for word in words:
        assert word in told, f"{word!r} is not in:\n{told}"
    assert screen_lines(told) <= SCREEN[0], told
    if told.startswith("segshift: "):
        assert len(told) > 40, told


def assert_whole(folder: Path) -> None:
    """No temporary file is left, and every file under a final name can be read."""
    if not folder.is_dir():
        return
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert ".tmp" not in path.name, f"left behind: {path}"
        _read_whole(path)


def _read_whole(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)
    elif path.suffix in (".yaml", ".yml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".safetensors":
        safetensors.torch.load_file(path)
    elif path.suffix == ".pt":
        torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path


def weights(run: Path, stage: str = "03-advent") -> dict[str, torch.Tensor]:
    """The exported weights of a stage."""
    return safetensors.torch.load_file(run / stage / "model" / "model.safetensors")


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def copy_run(pair: Pair, folder: Path) -> Path:
    """A copy of a finished run's result, to be damaged: all but the checkpoints."""
    shutil.copytree(pair.run, folder, ignore=shutil.ignore_patterns("checkpoint.pt", ".lock"))
    return folder


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory, or change the options of one that is mounted; skips where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("NOT TESTED HERE: full and read-only disks; there is no `mount`")
    if done.returncode:
        pytest.skip(f"NOT TESTED HERE: full and read-only disks; this process may not mount: {done.stderr.strip()}")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of `size` bytes, mounted on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, f"size={size}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
