"""How well label-free figures choose between the trained stages of `bench/real_pair.py`: the evidence for `select`.

    python bench/selection.py                    # runs/real → runs/select; the same command again is quick
    python bench/real_pair.py --write-only       # then puts its tables into docs/results.md

(Not `select.py`: a module of that name beside a script hides Python's own.) Candidates are all finished training stages
of all runs but the oracle's, and those set aside, each weights once. Their mIoU is that of the runs' metrics.json; of
stages set aside it is measured on the runs' `val`, once. The target's labels have no other part in this.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = "evidence.json"
LABELLED = ("weak_tags", "weak_points")
"""Runs whose training saw labels that people gave to target images."""

CHOSEN_ON = 0
"""The seed whose candidates the rule was chosen on."""

DRAWS, PART, POINTS = 200, 0.5, 1600
"""Random parts of the candidates that the rule is tried on, their size, and points of an image looked at for it."""


@dataclass(frozen=True)
class Evidence:
    """Candidates with their figures and their mIoU in percent; `family` is the method that a candidate is of."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    figures: tuple[Mapping[str, float | None], ...]
    collapsed: tuple[bool, ...]
    miou: tuple[float, ...]

    def part(self, keep: Sequence[int]) -> Evidence:
        """Some of the candidates."""
        return Evidence(
            tuple(self.names[i] for i in keep),
            tuple(self.families[i] for i in keep),
            tuple(self.figures[i] for i in keep),
            tuple(self.collapsed[i] for i in keep),
            tuple(self.miou[i] for i in keep),
        )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation: Pearson's of the ranks, equal values sharing theirs; None where one side is constant."""
    from segshift.engine.selection import ranks

    a, b = (np.array(ranks(list(values), higher=False), np.float64) for values in (first, second))
    if len(a) < 3 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def runs_of(root: Path) -> list[Path]:
    """Finished and unfinished runs of a folder, without the oracle's, in the order of the page."""
    from real_pair import ROWS

    order = {row.name: place for place, row in enumerate(ROWS)}
    found = [file.parent for file in root.glob("*/run.yaml") if not file.parent.name.startswith("oracle")]
    known = [path for path in found if path.name.rpartition("-")[0] in order]
    return sorted(known, key=lambda path: (order[path.name.rpartition("-")[0]], path.name))


def asides_of(runs: Sequence[Path]) -> list[Path]:
    """Stages that were set aside and hold a model."""
    return [file.parents[1] for run in runs for file in sorted(run.glob("[0-9][0-9]-*.aside/model/config.json"))]


def measured(runs: Sequence[Path]) -> dict[str, float]:
    """mIoU in percent by the sha256 of the weights, as the runs' own evaluation found it."""
    found = {}
    for run in runs:
        path = run / "metrics.json"
        models = json.loads(path.read_text()).get("models", {}) if path.exists() else {}
        for stage, metrics in models.items():
            for config in run.glob(f"[0-9][0-9]-{stage}/model/config.json"):
                found[json.loads(config.read_text())["sha256"]] = 100 * float(metrics["miou"])
    return found


def miou_of(folder: Path, weights: str, out: Path) -> float:
    """mIoU in percent of a stage that no run has measured, on its run's `val`; kept in `out`."""
    from segshift import api

    path = out / "miou" / f"{weights[:32]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(100 * api.evaluate(folder.parent, device="cpu").miou))
    return float(json.loads(path.read_text()))


def gather(root: Path, out: Path, images: int) -> tuple[Evidence, dict[str, Any]]:
    """Choose between all stages, and put each one's mIoU beside its figures."""
    from segshift.selecting import Asked, select

    runs = runs_of(root)
    content = select([*runs, *asides_of(runs)], out, Asked("all", images), device="cpu")
    known = measured(runs)
    rows = content["candidates"]
    miou = [
        known[row["weights"]] if row["weights"] in known else miou_of(Path(row["folder"]), row["weights"], out)
        for row in rows
    ]
    evidence = Evidence(
        tuple(row["name"] for row in rows),
        tuple(_family(row["name"]) for row in rows),
        tuple(row["figures"] for row in rows),
        tuple(bool(row["collapsed"]) for row in rows),
        tuple(miou),
    )
    return evidence, content


def _family(name: str) -> str:
    """The method of a candidate: its run's, but controls are source_only and ProDA's ablation is ProDA."""
    run, _, stage = name.partition("/")
    if "source" in stage:
        return "source_only"
    return run.rpartition("-")[0].removesuffix("_ablation")


def _seed(name: str) -> int:
    """The seed of a candidate's run, whose folder ends with it."""
    return int(name.partition("/")[0].rpartition("-")[2])


def chosen_by(evidence: Evidence, figure: str) -> int:
    """The candidate with the best value of a figure, of those that have one and have not collapsed."""
    from segshift.selecting import FIGURES

    sign = 1 if FIGURES[figure][1] else -1
    values = [
        -np.inf if fallen or (x := figures.get(figure)) is None else sign * x
        for figures, fallen in zip(evidence.figures, evidence.collapsed, strict=True)
    ]
    return int(np.argmax(values))


def chosen_by_rule(evidence: Evidence) -> int:
    """The candidate that `segshift select` would recommend."""
    from segshift.selecting import best, recommend

    place = best(evidence.figures, recommend(evidence.figures, evidence.collapsed))
    assert place is not None
    return place


def regret(evidence: Evidence, choose: Callable[[Evidence], int]) -> float:
    """Best mIoU minus that of the chosen candidate, in points."""
    return max(evidence.miou) - evidence.miou[choose(evidence)]


class Votes:
    """Agreement with the others for any part of the candidates, on every few points of the kept answers."""

    def __init__(self, answers: Sequence[np.ndarray]) -> None:
        from segshift.engine.selection import agreement

        self.agreement = agreement
        points = answers[0].shape[2] * answers[0].shape[3]
        places = np.linspace(0, points - 1, min(POINTS, points)).astype(int)
        flat = [a.reshape(*a.shape[:2], points)[:, :, places].astype(np.float32) for a in answers]
        self.p = np.stack([np.exp(a).transpose(0, 2, 1).reshape(-1, a.shape[1]) for a in flat])
        self.ids = self.p.argmax(axis=2)

    def within(self, evidence: Evidence, keep: Sequence[int]) -> Evidence:
        """A part of the candidates, whose agreement with the others is that within the part."""
        part, classes = evidence.part(keep), self.p.shape[2]
        voters = [i for i in keep if not evidence.collapsed[i]]
        whole = self.p[voters].sum(axis=0)
        figures = []
        for place, i in enumerate(keep):
            others = (whole - self.p[i] if i in voters else whole).argmax(axis=1)
            counts = np.bincount(others * classes + self.ids[i], minlength=classes * classes)
            found = self.agreement(counts.reshape(classes, classes))
            figures.append({**part.figures[place], "consensus_pixels": found.pixels, "consensus_miou": found.miou})
        return Evidence(part.names, part.families, tuple(figures), part.collapsed, part.miou)


def checks(evidence: Evidence, votes: Votes) -> dict[str, Any]:
    """The rule on other sets of candidates: without each method in turn, and on random parts."""
    everything = range(len(evidence.names))
    families = sorted(set(evidence.families))
    parts = {f: [i for i in everything if evidence.families[i] != f] for f in families}
    without = {f: regret(votes.within(evidence, keep), chosen_by_rule) for f, keep in parts.items() if len(keep) > 1}
    random = np.random.default_rng(0)
    size = max(2, round(PART * len(evidence.names)))
    drawn = [
        votes.within(evidence, sorted(random.choice(len(evidence.names), size, replace=False).tolist()))
        for _ in range(DRAWS)
    ]
    found = [regret(part, chosen_by_rule) for part in drawn]
    blind = [max(part.miou) - statistics.mean(part.miou) for part in drawn]
    return {
        "without": without,
        "size": size,
        "draws": DRAWS,
        "mean": statistics.mean(found),
        "upper": float(np.quantile(found, 0.95)),
        "blind": statistics.mean(blind),
    }


def study(evidence: Evidence, votes: Votes) -> dict[str, Any]:
    """Everything that the page says of one set of candidates, as plain values."""
    from segshift.selecting import FIGURES

    rows = []
    for figure, (head, higher) in FIGURES.items():
        both = zip(evidence.figures, evidence.miou, strict=True)
        pairs = [(x, miou) for figures, miou in both if (x := figures[figure]) is not None]
        rho = spearman([x for x, _ in pairs], [miou for _, miou in pairs]) if pairs else None
        place = chosen_by(evidence, figure)
        rows.append(
            {
                "figure": head,
                "higher": higher,
                "candidates": len(pairs),
                "rho": rho,
                "chosen": evidence.names[place],
                "regret": max(evidence.miou) - evidence.miou[place],
            }
        )
    place = chosen_by_rule(evidence)
    return {
        "candidates": len(evidence.names),
        "best": evidence.names[int(np.argmax(evidence.miou))],
        "best_miou": max(evidence.miou),
        "blind": max(evidence.miou) - statistics.mean(evidence.miou),
        "figures": rows,
        "rule": {"chosen": evidence.names[place], "regret": regret(evidence, chosen_by_rule)},
        "checks": checks(evidence, votes),
    }


def studied(evidence: Evidence, content: Mapping[str, Any], answers: Sequence[np.ndarray]) -> dict[str, Any]:
    """Both sets, all candidates of the runs as they stand and those whose training saw no label of the target; then
    both of each seed alone, and both with stages of older settings, which were set aside."""
    votes = Votes(answers)
    free = [i for i, family in enumerate(evidence.families) if not family.startswith(LABELLED)]
    aged = {"all": list(range(len(evidence.names))), "unlabelled": free}
    parts = {name: [i for i in keep if ".aside" not in evidence.names[i]] for name, keep in aged.items()}
    for seed in sorted({_seed(name) for name in evidence.names}):
        for name in aged:
            parts[f"{name}, seed {seed}"] = [i for i in parts[name] if _seed(evidence.names[i]) == seed]
    parts |= {f"{name}, aged": keep for name, keep in aged.items() if len(keep) > len(parts[name])}
    found: dict[str, Any] = {"images": len(content["images"]), "rule": content["rule"]}
    for name, keep in parts.items():
        if not keep:
            continue
        within = votes.within(evidence, keep) if len(keep) < len(evidence.names) else evidence
        found[name] = study(within, _only(votes, keep))
    order = sorted(range(len(evidence.names)), key=lambda i: -evidence.miou[i])
    found["table"] = [
        {"name": evidence.names[i], "miou": evidence.miou[i], "figures": dict(evidence.figures[i])} for i in order
    ]
    return found


def _only(votes: Votes, keep: Sequence[int]) -> Votes:
    part = Votes.__new__(Votes)
    part.agreement, part.p, part.ids = votes.agreement, votes.p[keep], votes.ids[keep]
    return part


def section(out: Path) -> list[str]:
    """Heading and tables for docs/results.md, from what was studied last; nothing where nothing was."""
    path = out / FILE
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    every, free = found["all"], found["unlabelled"]
    lines = [
        "### Choosing without labels",
        "",
        f"`segshift select` on {every['candidates']} trained stages (all but the oracle's; each weights once),"
        f" {found['images']} target images without labels; mIoU as in the table above. *rho*: Spearman's"
        " rank correlation of a figure with mIoU; the sign that was hoped for is in brackets. *regret*: points between"
        " the best mIoU of the candidates and that of the one with the best value. *no labels*: the"
        f" {free['candidates']} stages whose training saw no label of a target image. `python bench/selection.py`.",
        "",
        "| figure | rho | regret | chosen | no labels: rho | regret | chosen |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for row, other in zip(every["figures"], free["figures"], strict=True):
        sign = "+" if row["higher"] else "-"
        cells = [f"{row['figure']} ({sign})", *_cells(row), *_cells(other)]
        lines.append("| " + " | ".join(cells) + " |")
    bold = [f"**{one['rule']['regret']:.1f}**" for one in (every, free)]
    names = [f"{one['rule']['chosen']}" for one in (every, free)]
    lines += [
        f"| **rule of `select`** | | {bold[0]} | {names[0]} | | {bold[1]} | {names[1]} |",
        f"| any candidate, on average | | {every['blind']:.1f} | | | {free['blind']:.1f} | |",
        "",
        "Best: " + "; no labels: ".join(f"{one['best']}, {one['best_miou']:.1f}" for one in (every, free)) + "."
        " The rule, " + _rule(found["rule"]) + f", was chosen on the candidates of seed {CHOSEN_ON}, of this one pair."
        " How it holds on other sets of candidates (agreement with the others counted anew within each):",
        "",
        "| candidates | regret of the rule | of any candidate, on average |",
        "|---|---:|---:|",
        *_place_lines(found),
        *[line for name, one in (("all", every), ("no labels", free)) for line in _check_lines(name, one["checks"])],
        "",
        "<details><summary>All candidates and figures</summary>",
        "",
        *_all_figures(found["table"]),
        "",
        "</details>",
        "",
    ]
    return lines


def _cells(row: Mapping[str, Any]) -> list[str]:
    rho = "" if row["rho"] is None else f"{row['rho']:+.2f}"
    return [rho, f"{row['regret']:.1f}", row["chosen"]]


def _rule(names: Sequence[str]) -> str:
    from segshift.selecting import FIGURES

    return "the lowest sum of the ranks by " + " and by ".join(FIGURES[name][0] for name in names)


def _place_lines(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for key, one in found.items():
        name, _, part = key.partition(", ")
        name = "no labels" if name == "unlabelled" else name
        if part == "aged":
            parts.append((f"{name}, and stages of older settings of the same runs", one))
        elif part:
            seed = int(part.removeprefix("seed "))
            unseen = "" if seed == CHOSEN_ON else ", none of which was seen when the rule was chosen"
            parts.append((f"{name}, of seed {seed} alone{unseen}", one))
    return [
        f"| {name} ({one['candidates']}): chosen {one['rule']['chosen']}"
        f" | {one['rule']['regret']:.1f} | {one['blind']:.1f} |"
        for name, one in parts
    ]


def _check_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    worst = max(found["without"], key=found["without"].get)
    mean = statistics.mean(found["without"].values())
    drawn = f"{name}, {found['draws']} random sets of {found['size']}"
    return [
        f"| {name}, without one method in turn: mean | {mean:.1f} | |",
        f"| {name}, without one method in turn: worst (without {worst}) | {found['without'][worst]:.1f} | |",
        f"| {drawn}: mean | {found['mean']:.1f} | {found['blind']:.1f} |",
        f"| {drawn}: 95th percentile | {found['upper']:.1f} | |",
    ]


def _all_figures(table: Sequence[Mapping[str, Any]]) -> list[str]:
    from segshift.selecting import FIGURES

    lines = [
        "| candidate | mIoU | " + " | ".join(head for head, _ in FIGURES.values()) + " |",
        "|---|" + "---:|" * (1 + len(FIGURES)),
    ]
    for row in table:
        cells = ["" if row["figures"][key] is None else f"{row['figures'][key]:.3f}" for key in FIGURES]
        lines.append(f"| {row['name']} | {row['miou']:.1f} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    parser.add_argument("--out", type=Path, default=Path("runs/select"))
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    evidence, content = gather(options.runs, options.out, options.images)
    answers = [np.load(options.out / "answers" / row["answers"], mmap_mode="r") for row in content["candidates"]]
    found = studied(evidence, content, answers)
    (options.out / FILE).write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(section(options.out)))


if __name__ == "__main__":
    main()
