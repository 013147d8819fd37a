"""Tiny runs with labels stages, for tests of the command line: their settings, and what they leave."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from small_net import small_net
from workbench import HEIGHT, WIDTH, Outcome, Pair

BASE: dict[str, Any] = {
    "size": [WIDTH, HEIGHT], "batch_size": 1, "workers": 0, "panels": 2, "log_every": 1, "precision": "fp32",
    "net": {"name": "small"},
}  # fmt: skip

VOTING = {"window": 9, "passes": 2}
KINDS: dict[str, list[dict[str, Any]]] = {
    # settings of labels_1, of the first training on them, of labels_2, of the last training
    "cbst": [{"portion": 0.3}, {}, {"portion": 0.4}, {}],
    "crst": [{"soft_alpha": 0.25}, {"regulariser": "lrent"}] * 2,
    "tpld": [
        {"decision": "argmax", "voting": VOTING}, {"phase": 1},
        {"decision": "argmax", "voting": VOTING, "split": {"value": 0.6}}, {"phase": 2, "regulariser": "mrkld"},
    ],
}  # fmt: skip
STAGES = {kind: ["source_only", "labels_1", f"{kind}_1", "labels_2", kind] for kind in KINDS}


__all__ = ["KINDS", "STAGES", "add_truth", "bytes_of", "command", "did", "settings_of", "small_net"]


def settings_of(kind: str) -> dict[str, Any]:
    """Two rounds of a method."""
    names, own = STAGES[kind], KINDS[kind]
    stages: list[dict[str, Any]] = [{"name": names[0], "method": "source_only", "steps": 2}]
    for number, name in enumerate(names[1:]):
        before = names[0] if number < 2 else names[2]
        stage = {"name": name, "init": before, "settings": own[number]}
        if number % 2 == 0:
            stages.append({**stage, "produce": "pseudo_labels"})
        else:
            stages.append({**stage, "method": kind, "steps": 2, "labels": names[number]})
    return {**BASE, "stages": stages}


def command(
    pair: Pair,
    kind: str | Mapping[str, Any],
    *sets: str,
    out: Path | None = None,
    val: bool = True,
    truth: bool = False,
) -> list[str | Path]:
    """`segshift adapt` of a run of two rounds, or of other settings, into `out`."""
    content = settings_of(kind) if isinstance(kind, str) else dict(kind)
    if truth:
        content["truth"] = {"root": str(pair.root / "truth")}
    path = pair.root / f"{kind if isinstance(kind, str) else 'own'}{'-truth' if truth else ''}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    given = [argument for assignment in sets for argument in ("--set", assignment)]
    return ["adapt", path, *pair.data(val), "--out", out or pair.run, "--device", "cpu", *given]


def add_truth(pair: Pair) -> Path:
    """Labels of the target's own images, as a domain of its own; the folder."""
    from workbench import label, save

    root = pair.root / "truth"
    shutil.copytree(pair.target / "images", root / "images")
    for number, image in enumerate(sorted((root / "images").rglob("*.png"))):
        ids = label(100 + number)
        ids[:5] = 255
        save(root / "labels" / image.relative_to(root / "images"), ids)
    return root


def did(outcome: Outcome) -> dict[str, str]:
    """What became of each stage: made, anew (noticed as damaged), skipped or reused."""
    assert outcome.code == 0, outcome
    words = {"finished before": "skipped", "reused from": "reused"}
    found: dict[str, str] = {}
    for name, said in re.findall(r"^\[\d/\d\] (\w+): (.+)$", outcome.err, re.MULTILINE):
        plain = next((word for start, word in words.items() if said.startswith(start)), "made")
        if said.endswith("so this artefact is made anew"):
            plain = "anew"
        if found.get(name) != "anew":
            found[name] = plain
    return found


def bytes_of(folder: Path, *, panels: bool = False) -> dict[str, bytes]:
    """The files of an artefact; not those that say when it was made or what is known of it."""
    left = {"stage.json", "quality.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in left and (panels or "panels" not in path.parts)
    }
