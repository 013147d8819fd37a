"""A run of two rounds of self-training, drawn rather than trained: one with voting, truth and a split, one plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_run import ADAPTED, CLASSES, PALETTE, SOURCE, log, mean, metrics, model, scene, write_run
from PIL import Image

Ids = np.ndarray[Any, np.dtype[np.uint8]]

PASS_COLOURS = ((90, 90, 90), (68, 119, 170), (204, 187, 68), (238, 102, 119), (170, 51, 119))
WIDTH, HEIGHT, IMAGES, SHOWN, PASSES = 320, 240, 12, 4, 3
IOU = {"source_only": 0.90, "source_control": 1.0, "tpld_1": 1.62, "tpld_2": 1.55}
"""What each stage reached, in multiples of SOURCE."""

SETTINGS = """\
control: source_control
stages:
- {name: source_only, method: source_only, steps: 200}
- {name: source_control, method: source_only, init: source_only, steps: 200}
- {name: labels_1, produce: pseudo_labels, init: source_only}
- {name: tpld_1, method: tpld, init: source_only, labels: labels_1, steps: 100}
- {name: labels_2, produce: pseudo_labels, init: tpld_1}
- {name: tpld_2, method: tpld, init: tpld_1, labels: labels_2, steps: 100}
"""


def smooth(rng: np.random.Generator, coarse: int) -> Any:
    """Noise in [0, 1] with patches of about `coarse` pixels."""
    small = (rng.random((HEIGHT // coarse + 2, WIDTH // coarse + 2)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / 255


def drawn(seed: int, portion: float) -> tuple[Ids, Ids, Ids, Any]:
    """Truth, prediction, labels by the thresholds, and the pass (0-3, 255 = none) in which each pixel got its label."""
    rng = np.random.default_rng(1000 + seed)
    truth = scene(seed, WIDTH, HEIGHT)
    confidence = smooth(rng, 24) * 0.8 + smooth(rng, 6) * 0.2 + 0.05 * (seed % 3)
    wrong = (smooth(rng, 18) > 0.62) & (confidence < 0.75)
    predicted = np.where(wrong, scene(seed + 1, WIDTH, HEIGHT), truth).astype(np.uint8)
    edges = 1 - np.array([portion, portion + 0.09, portion + 0.14, portion + 0.16])
    which = np.full(truth.shape, 255, np.uint8)
    for number in reversed(range(PASSES + 1)):
        which[confidence > np.quantile(confidence, edges[number]) - 0.06 * (seed % 2)] = number
    return truth, predicted, np.where(which == 0, predicted, 255).astype(np.uint8), which


def coloured(values: Ids, palette: tuple[tuple[int, int, int], ...], path: Path) -> None:
    """A palette picture; values without a colour are black."""
    picture = Image.fromarray(values)
    picture.putpalette([level for colour in palette for level in colour] + [0] * 3 * (256 - len(palette)))
    picture.save(path)


def counted(ids: Ids) -> Any:
    return np.bincount(ids.ravel(), minlength=256)[: len(CLASSES)]


def share(part: Any, of: Any) -> float | None:
    return float(part) / float(of) if of else None


def quality_row(name: str, truth: Ids, labels: Ids, added: Ids | None) -> dict[str, Any]:
    """A row of quality.json over all images at once, arrays (N, H, W)."""
    there, right = labels != 255, labels == truth
    new = None if added is None else added == 1
    classes: list[dict[str, float | None] | None] = []
    for k in range(len(CLASSES)):
        seen, said = truth == k, labels == k
        covered, precise = share((seen & there).sum(), seen.sum()), share((said & right).sum(), said.sum())
        classes.append(None if covered is None else {"coverage": covered, "precision": precise})
    return {
        "name": name,
        "coverage": there.mean(),
        "precision": share((there & right).sum(), there.sum()),
        "added": None if new is None else {"coverage": new.mean(), "precision": share((new & right).sum(), new.sum())},
        "classes": classes,
    }


def labels_stage(run: Path, folder: str, init: str, *, rich: bool, panels: int = SHOWN) -> Path:
    """Write a finished labels stage; `rich`: with voting, truth and a split into easy and hard images."""
    path = run / folder
    (path / "panels").mkdir(parents=True)
    described = {"name": folder[3:], "kind": "labels", "init": init, "fingerprint": "77aa", "seconds": 41.5,
                 "purpose": "label the target's training images where the network is sure", "done": True}  # fmt: skip
    write(path / "stage.json", described)
    portion = 0.3 if rich else 0.2
    parts = [np.stack(arrays) for arrays in zip(*(drawn(seed, portion) for seed in range(IMAGES)), strict=True)]
    _, predicted, _, which = parts
    after = [np.where(which <= number, predicted, 255).astype(np.uint8) for number in range(PASSES + 1 if rich else 1)]
    thresholds = [0.99993, 0.62, 0.9312, 0.41, 0.55, 0.7, 0.88, 0.9991, 0.47, 0.83, 1.000001]
    chosen = {"rule": "class_balanced", "portion": portion, "quantile": 0.5, "cap": 0.9, "value": 0.95}
    write(path / "thresholds.json", {"classes": CLASSES, "palette": PALETTE, **chosen, "thresholds": thresholds})
    images, cutoff = per_image(after[-1], rich)
    statistics = {
        "images": IMAGES, "pixels": int(predicted.size), "predicted": counted(predicted).tolist(),
        "labelled": [counted(ids).tolist() for ids in after], "per_image": images, "easy_cutoff": cutoff,
    }  # fmt: skip
    write(path / "statistics.json", statistics)
    if rich:
        rows = quality_rows(parts, after, np.array([entry["easy"] for entry in images]))
        write(
            path / "quality.json", {"domain": "data/camvid/train", "images": IMAGES, "rows": rows, "fingerprint": "5c"}
        )
    index = [
        {
            "name": entry["name"],
            "caption": f"image {n + 1} of {IMAGES}, chosen by even spacing",
            "files": label_pictures(path / "panels", n, parts, after[-1], rich=rich, easy=entry["easy"] is True),
            "coverage": entry["labelled"],
            "score": entry["score"],
            "easy": entry["easy"],
            "discriminator": 0.31 + 0.04 * n if entry["easy"] is False else None,
        }
        for n, entry in enumerate(images[:panels])
    ]
    write(path / "panels" / "index.json", index)
    write(path / "manifest.json", {"kind": "pseudo-labels", "files": {}})
    return path


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def per_image(final: Ids, split: bool) -> tuple[list[dict[str, Any]], float | None]:
    """Entries of statistics.json, and the score from which images are easy: a third of them."""
    covered = (final != 255).mean(axis=(1, 2))
    scores = [float(1.3 * share + 0.1) for share in covered]
    cutoff = sorted(scores)[-4]
    entries = [
        {"name": f"seq{n // 2}/frame_{n:04d}", "labelled": float(covered[n]), "score": scores[n] if split else None,
         "easy": scores[n] >= cutoff if split else None}
        for n in range(IMAGES)
    ]  # fmt: skip
    return entries, cutoff if split else None


def quality_rows(parts: list[Any], after: list[Ids], easy: Any) -> list[dict[str, Any]]:
    truth, predicted, sparse, which = parts
    rows = [quality_row("thresholds", truth, sparse, None)]
    for number in range(1, PASSES + 1):
        added = (which == number).astype(np.uint8)
        rows.append(quality_row(f"voting pass {number}", truth, after[number], added))
    full = np.where(easy[:, None, None], predicted, 255).astype(np.uint8)
    return [*rows, quality_row("full labels of easy images", truth, full, None)]


def label_pictures(
    folder: Path, number: int, parts: list[Any], final: Any, *, rich: bool, easy: bool
) -> dict[str, str | None]:
    """Write the pictures of a panel; the names of those that there are."""
    truth, predicted, sparse, which = (part[number] for part in parts)
    names = {"image": f"{number:03d}-image.jpg", "sparse": f"{number:03d}-sparse.png"}
    rng = np.random.default_rng(number)
    grey = np.array(PALETTE, np.float32)[truth] * 0.35 + 110 + rng.normal(0, 6, (*truth.shape, 3))
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / names["image"], quality=88)
    coloured(sparse, PALETTE, folder / names["sparse"])
    if rich:
        ids = {"densified": final[number], "truth": truth} | ({"full": predicted} if easy else {})
        for kind, values in ids.items():
            names[kind] = f"{number:03d}-{kind}.png"
            coloured(values, PALETTE, folder / names[kind])
        names["added"] = f"{number:03d}-added.png"
        coloured(which, PASS_COLOURS, folder / names["added"])
    return {kind: names.get(kind) for kind in ("image", "sparse", "densified", "added", "full", "truth")}


def train_stage(run: Path, folder: str, method: str, steps: int, **facts: str) -> None:
    """Write a finished stage of training."""
    path = run / folder
    (path / "model").mkdir(parents=True)
    described = {"name": folder[3:], "kind": "train", "method": method, "steps": steps, "seconds": 61.0,
                 "purpose": "trains", "done": True, **facts}  # fmt: skip
    (path / "stage.json").write_text(json.dumps(described), encoding="utf-8")
    log(path, {"segmentation": (1.4, 0.4), "pseudo": (0.9, 0.3)}, steps, (mean(SOURCE), mean(ADAPTED)), steps)


def write_rounds_run(run: Path, *, panels: int = 2) -> Path:
    """Write a whole finished run of two rounds; its second round undoes a part of the first."""
    write_run(run, method="tpld", panels=panels)
    for folder in ("01-source", "02-adapt"):
        for path in sorted((run / folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (run / folder).rmdir()
    train_stage(run, "01-source_only", "source_only", 200)
    train_stage(run, "02-source_control", "source_only", 200)
    labels_stage(run, "03-labels_1", "source_only", rich=False)
    train_stage(run, "04-tpld_1", "tpld", 100, labels="labels_1")
    labels_stage(run, "05-labels_2", "tpld_1", rich=True)
    train_stage(run, "06-tpld_2", "tpld", 100, labels="labels_2")
    (run / "run.yaml").write_text(SETTINGS, encoding="utf-8")
    scores = metrics() | {"control": "source_control", "adapted": "tpld_2"}
    reached = {name: tuple(None if iou is None else factor * iou for iou in SOURCE) for name, factor in IOU.items()}
    scores["models"] = {name: model(iou) for name, iou in reached.items()}
    (run / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    return run
