"""Stages in order: a finished one is skipped, an unfinished one goes on, one with other settings is set aside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segshift.artefacts.store import make_folder, read_json, sweep, write_error, write_json
from segshift.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: unique in the run; its folder is `NN-name`.
        settings: everything that its result depends on besides the stages before it, as JSON.
        purpose: one sentence for people: what the stage is for.
        run: does the work in the stage's folder; called again after an interruption, it goes on.
        info: further facts for the report, not part of the fingerprint.
        after: names of the stages that it builds on; None: all before it.
        damage: names the files of the finished stage that are missing or not what was written.
        unfinished: names of files that only going on needs: they go when the stage is finished.
    """

    name: str
    settings: dict[str, Any]
    purpose: str
    run: Callable[[Path], None]
    info: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] | None = None
    damage: Callable[[Path], list[str]] = field(default=lambda folder: [])
    unfinished: tuple[str, ...] = ()


def fingerprint(settings: dict[str, Any], before: str) -> str:
    """Hex digest of a stage's settings and of the stages that it builds on, whose digests are `before`."""
    text = json.dumps([before, settings], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_name(index: int, stage: Stage) -> str:
    return f"{index:02d}-{stage.name}"


def run_stages(root: Path, stages: list[Stage], say: Callable[[str], None]) -> None:
    """Bring every stage of a run to its end. Running the same stages again resumes them.

    Args:
        root: the run's folder.
        say: prints a line for people.

    Raises:
        UserError: a stage failed in a way that the user can mend; what was computed so far is kept.
    """
    sweep(make_folder(root))
    expected = {folder_name(i, stage) for i, stage in enumerate(stages, 1)}
    # Only stages: a folder that is somebody's own may lie here too.
    for stale in sorted(record.parent for record in root.glob("[0-9][0-9]-*/stage.json")):
        if stale.name not in expected and stale.suffix != ".aside":
            _set_aside(stale, say, "no stage of this run any more")
    digests = _fingerprints(stages)
    for index, stage in enumerate(stages, 1):
        record = {"name": stage.name, "fingerprint": digests[stage.name], "purpose": stage.purpose, **stage.info}
        _run_stage(root / folder_name(index, stage), stage, record, f"[{index}/{len(stages)}] {stage.name}", say)


def _fingerprints(stages: list[Stage]) -> dict[str, str]:
    """Of every stage, by its name."""
    digests: dict[str, str] = {}
    for stage in stages:
        basis = list(digests) if stage.after is None else stage.after
        before = "/".join(digests[name] for name in basis)
        digests[stage.name] = fingerprint({"name": stage.name, **stage.settings}, before)
    return digests


def unfinished(root: Path, stages: list[Stage]) -> dict[str, int]:
    """The stages that `run_stages` would have to work on, in order, and the bytes that each has in its folder already.

    A finished artefact that was damaged since is not among them: it is made anew where it lies.
    """
    left: dict[str, int] = {}
    digests = _fingerprints(stages)
    for index, stage in enumerate(stages, 1):
        folder, digest = root / folder_name(index, stage), digests[stage.name]
        known = _read_record(folder) or {}
        if known.get("fingerprint") == digest:
            if not known.get("done"):
                left[stage.name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        elif _finished_twin(folder, digest) is None:
            left[stage.name] = 0
    return left


def _run_stage(folder: Path, stage: Stage, record: dict[str, Any], title: str, say: Callable[[str], None]) -> None:
    known, reused = _read_record(folder), False
    if known is not None and known.get("fingerprint") != record["fingerprint"]:
        _set_aside(folder, say, "its settings, its data or a stage before it changed")
        known = None
    if known is None and (twin := _finished_twin(folder, record["fingerprint"])):
        if folder.exists():
            _set_aside(folder, say, "it holds no stage of this run")
        _adopt(twin, folder)
        known = _read_record(folder)
        say(f"{title}: reused from {twin} (same settings, same data)")
        reused = True
    files = stage.damage(folder) if known is not None and known.get("done") else []
    if files:
        others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        say(f"{title}: {folder / files[0]}{others} is missing or not what was written, so this artefact is made anew")
    elif known is not None and known.get("done"):
        if not reused:
            say(f"{title}: finished before, skipped")
        if {**known, **record} != known:  # its purpose may be said otherwise now, or in this run
            write_json(folder / "stage.json", {**known, **record})
        return
    say(f"{title}: {stage.purpose}" + (" (going on where it was)" if known and not files else ""))
    make_folder(folder)
    spent = float((known or {}).get("seconds", 0.0))
    start = time.monotonic()
    write_json(folder / "stage.json", {**record, "done": False, "seconds": spent})
    done = False
    try:
        stage.run(folder)
        done = True
    finally:
        seconds = round(spent + time.monotonic() - start, 1)
        try:
            write_json(folder / "stage.json", {**record, "done": done, "seconds": seconds})
        except UserError:
            # A full disk: the error that stopped the stage says so already.
            if done:
                raise
    for name in stage.unfinished:
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / "stage.json"
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError:
        return {}
    return record if isinstance(record, dict) else {}


def _set_aside(folder: Path, say: Callable[[str], None], why: str) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}.aside")).exists():
        number += 1
    try:
        os.replace(folder, aside)
    except OSError as error:
        raise write_error(folder, error) from error
    say(f"{folder.name} is set aside as {aside.name}: {why}")


def _finished_twin(folder: Path, wanted: str) -> Path | None:
    """A finished stage of the same fingerprint: one that was set aside in this run, or one in a run beside it."""
    for record in sorted(folder.parent.resolve().parent.glob("*/[0-9][0-9]-*/stage.json")):
        aside_elsewhere = record.parent.suffix == ".aside" and record.parent.parent != folder.parent.resolve()
        if record.parent == folder.resolve() or aside_elsewhere:
            continue
        known = _read_record(record.parent)
        if known and known.get("done") and known.get("fingerprint") == wanted:
            return record.parent
    return None


def _adopt(twin: Path, folder: Path) -> None:
    """Take over a finished stage: by hard links where the disk allows it, since finished files are never changed."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(twin, temporary, copy_function=link)
        os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise write_error(folder, error) from error
