"""Labels stages: every rule against the formulas, statistics against the files, densified, split and soft labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_makers import (
    CLASSES,
    NAMES,
    SIZE,
    Channels,
    contents,
    counts,
    domain_at,
    labeller,
    maps,
    probabilities_of,
    read,
    restated_stages,
    write_images,
)
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from segshift.artefacts.pseudo_labels import open_pseudo_labels, read_ids, read_soft
from segshift.artefacts.store import damaged
from segshift.artefacts.thresholds import OUT_OF_REACH, ConfidenceHistogram
from segshift.data.domains import Domain
from segshift.engine.labelling import (
    PASS_COLOURS,
    LabelSettings,
    Tally,
    count_confidences,
    make_pseudo_labels,
    read_thresholds,
    statistics,
    write_labels,
)
from segshift.engine.priors import read_prior, smoothed, write_prior
from segshift.ops import window_vote
from segshift.types import IGNORE

NEVER = 3
PIXELS = SIZE[0] * SIZE[1]
VOTING: dict[str, Any] = {"window": 5, "alpha": 0.5, "passes": 3}
EVERYTHING: dict[str, Any] = {"voting": VOTING, "split": {"value": 0.5}, "soft_alpha": 0.25}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def domain(root: Path) -> Domain:
    return domain_at(root)


def made(folder: Path, domain: Domain, prior: Tensor | None = None, workers: int = 0, **settings: Any) -> Path:
    make_pseudo_labels(labeller(prior, **settings), domain, folder, workers=workers)
    return folder


def predicted_of(domain: Domain) -> tuple[Tensor, Tensor]:
    """(N, h, w) classes and confidences of all images."""
    both = [probabilities_of(domain, index).max(dim=0) for index in range(len(domain))]
    return torch.stack([found.indices for found in both]), torch.stack([found.values for found in both])


# ---- thresholds and rules

RULES: dict[str, tuple[dict[str, Any], Callable[[list[float], list[float]], float]]] = {
    # settings → a class's threshold from its own confidences and those of all pixels, both descending
    "class_balanced": ({"portion": 0.3}, lambda own, every: own[int(0.3 * len(own)) - 1]),
    "global": ({"portion": 0.3}, lambda own, every: every[int(0.3 * len(every)) - 1]),
    "quantile": ({"quantile": 0.2, "cap": 0.45}, lambda own, every: min(0.45, own[::-1][round(len(own) * 0.2)])),
    "fixed": ({"value": 0.7}, lambda own, every: 0.7),
    "argmax": ({}, lambda own, every: 0),
}


@pytest.mark.parametrize("decision", ["auto", "quotient", "argmax"])
@pytest.mark.parametrize("rule", RULES)
def test_thresholds_and_labels_are_what_the_formulas_say(
    tmp_path: Path, domain: Domain, rule: str, decision: str
) -> None:
    values, threshold_of = RULES[rule]
    folder = made(tmp_path, domain, rule=rule, decision=decision, **values)
    known = read(folder / "thresholds.json")
    assert (known["classes"], known["rule"]) == (list(CLASSES.names), rule)
    assert known["palette"] == [list(colour) for colour in CLASSES.palette]
    ids, confidence = predicted_of(domain)
    every = sorted(confidence.flatten().tolist(), reverse=True)
    for k in range(NEVER):
        own = sorted(confidence[ids == k].tolist(), reverse=True)
        wanted = threshold_of(own, every)
        assert wanted - 1e-3 <= known["thresholds"][k] <= wanted + 1e-6, CLASSES.names[k]
    if rule in ("class_balanced", "quantile"):
        assert known["thresholds"][NEVER] == OUT_OF_REACH
    t = torch.tensor(known["thresholds"], dtype=torch.float32)
    quotient = decision == "quotient" or (decision == "auto" and rule == "class_balanced")
    labels = maps(folder, "labels", domain)
    assert set(np.unique(labels)) <= {0, 1, 2, IGNORE}, "never predicted, never given"
    for index in range(len(domain)):
        p = probabilities_of(domain, index)
        best = (p / t[:, None, None] if quotient else p).argmax(dim=0)
        chosen = p.gather(0, best[None])[0] / t[best] >= 1
        np.testing.assert_array_equal(labels[index], best.where(chosen, torch.tensor(IGNORE)).numpy())


def test_no_pixel_of_an_image_is_confident(tmp_path: Path, domain: Domain) -> None:
    folder = made(tmp_path, domain, rule="global", portion=0.2, split={"value": 1.0}, voting=VOTING, soft_alpha=0.25)
    rows = {row["name"]: row for row in read(folder / "statistics.json")["per_image"]}
    assert rows["dim"] == {"name": "dim", "labelled": 0.0, "score": 0.0, "easy": True}
    label = maps(folder, "labels", domain)[NAMES.index("dim")]
    assert (label == IGNORE).all()
    assert not read_soft(folder / "soft" / "dim.npz").any()
    assert rows["c"]["labelled"] > 0


@pytest.mark.parametrize("rule", ["class_balanced", "global"])
def test_portions_zero_and_one(tmp_path: Path, domain: Domain, rule: str) -> None:
    none = made(tmp_path / "none", domain, rule=rule, portion=0, **EVERYTHING)
    assert read(none / "thresholds.json")["thresholds"] == [OUT_OF_REACH] * 4
    known = read(none / "statistics.json")
    assert not np.any(known["labelled"])
    assert {row["score"] for row in known["per_image"]} == {0.0}
    assert damaged(none) == []
    every = made(tmp_path / "all", domain, rule=rule, portion=1.0, decision="argmax")
    known = read(every / "statistics.json")
    assert known["labelled"] == [known["predicted"]]
    np.testing.assert_array_equal(maps(every, "labels", domain), predicted_of(domain)[0].numpy())


def test_a_network_that_is_sure_of_everything(tmp_path: Path, domain: Domain) -> None:
    """Softmax gives exactly 1 then, and so are the thresholds: what is wanted of each class passes all the same."""
    sure = replace(labeller(portion=0.2, soft_alpha=0.25, split={"value": 0.5}), net=Channels(1e5).eval())
    make_pseudo_labels(sure, domain, tmp_path, workers=0)
    assert read_thresholds(tmp_path).tolist() == [1, 1, 1, pytest.approx(OUT_OF_REACH)]
    labels, full = maps(tmp_path, "labels", domain), maps(tmp_path, "full", domain)
    assert (labels != IGNORE).mean() > 0.9
    assert (labels == full)[labels != IGNORE].all()
    known = read(tmp_path / "statistics.json")
    assert known["labelled"] == [counts(labels)]
    assert all(row["score"] > 0.7 for row in known["per_image"])
    opened = open_pseudo_labels(tmp_path)
    soft = np.stack([read_soft(tmp_path / "soft" / f"{name}.npz") for name in NAMES])
    assert (soft.max(axis=3) == 1)[labels != IGNORE].all()
    assert opened.easy is not None
    assert sum(opened.easy.values()) == len(NAMES) // 2


WRONG = [
    ({"portion": 1.01}, "portion"), ({"portion": -0.1}, "portion"), ({"quantile": 2}, "quantile"), ({"cap": 0}, "cap"),
    ({"value": 0}, "value"), ({"soft_alpha": 0}, "soft_alpha"), ({"spatial_prior": -1}, "spatial_prior"),
    ({"voting": {"window": 4}}, "window"), ({"voting": {"alpha": 1.1}}, "alpha"), ({"voting": {"passes": 0}}, "passes"),
    ({"split": {"value": 30}}, "split"), ({"split": {"value": -1}}, "value"), ({"rule": "median"}, "rule"),
    ({"decision": "best"}, "decision"), ({"porton": 0.2}, "porton"), ({"evaluation": {"scales": []}}, "scales"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "key"), WRONG, ids=[key for _, key in WRONG])
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LabelSettings(**settings)
    (problem,) = caught.value.errors()
    assert key in problem["loc"]
    assert LabelSettings(split={"mode": "threshold", "value": 30}).split, "a score has no upper bound"


# ---- statistics


@pytest.mark.parametrize("split", [{"value": 0.5}, {"value": 0.0}, {"mode": "threshold", "value": 0.2}])
def test_statistics_are_what_the_files_say(tmp_path: Path, domain: Domain, split: dict[str, Any]) -> None:
    folder = made(tmp_path, domain, voting=VOTING, split=split)
    known = read(folder / "statistics.json")
    labels, full = maps(folder, "labels", domain), maps(folder, "full", domain)
    assert (known["images"], known["pixels"]) == (len(NAMES), len(NAMES) * PIXELS)
    assert known["predicted"] == counts(full)
    assert known["labelled"] == [counts(stage) for stage in restated_stages(folder, domain)]
    ids, confidence = predicted_of(domain)
    np.testing.assert_array_equal(full, ids.numpy())
    t = read_thresholds(folder)
    above = confidence >= t[ids]
    scores = []
    for index, row in enumerate(known["per_image"]):
        assert row["name"] == NAMES[index]
        assert row["labelled"] == pytest.approx((labels[index] != IGNORE).mean())
        there = [k for k in range(4) if (ids[index] == k).any()]
        shares = [float(above[index][ids[index] == k].float().mean() / t[k]) for k in there]
        assert row["score"] == pytest.approx(sum(shares) / len(shares), rel=1e-5)
        scores.append(row["score"])
    easy = [row["easy"] for row in known["per_image"]]
    if split.get("mode") == "threshold":
        assert easy == [score >= split["value"] for score in scores]
        assert 0 < sum(easy) < len(easy), "the test shall see both kinds"
    else:
        best = sorted(scores, reverse=True)[: round(split["value"] * len(scores))]
        assert easy == [score in best for score in scores]
    assert known["easy_cutoff"] == (min(s for s, e in zip(scores, easy, strict=True) if e) if any(easy) else None)
    opened = open_pseudo_labels(folder)
    assert opened.easy == dict(zip(NAMES, easy, strict=True))
    for index, name in enumerate(NAMES):
        np.testing.assert_array_equal(opened.read(name).hard, (full if easy[index] else labels)[index])


def test_without_a_split_no_image_is_easy_or_hard(tmp_path: Path, domain: Domain) -> None:
    known = read(made(tmp_path, domain) / "statistics.json")
    assert known["easy_cutoff"] is None
    assert {row["easy"] for row in known["per_image"]} == {None}
    assert not (tmp_path / "full").exists()
    assert not (tmp_path / "passes").exists()
    assert not (tmp_path / "soft").exists()
    assert open_pseudo_labels(tmp_path).easy is None


# ---- voting, soft labels


@pytest.mark.parametrize("soft", [None, 0.25])
def test_voting_densifies_the_labels_of_the_thresholds(tmp_path: Path, domain: Domain, soft: float | None) -> None:
    plain = made(tmp_path / "plain", domain, portion=0.1, decision="argmax", soft_alpha=soft)
    voted = made(tmp_path / "voted", domain, portion=0.1, decision="argmax", soft_alpha=soft, voting=VOTING)
    t = read_thresholds(voted)
    stages = restated_stages(voted, domain)
    np.testing.assert_array_equal(stages[0], maps(plain, "labels", domain))
    for index in range(len(domain)):
        base = torch.from_numpy(stages[0][index]).long()
        after = window_vote(probabilities_of(domain, index), base, t, 5, 0.5, 3)
        np.testing.assert_array_equal(stages[1:, index], after.numpy())
    totals = [sum(counts(stage)) for stage in stages]
    assert all(a <= b for a, b in pairwise(totals))
    assert totals[0] < totals[1], "the test shall see voting at work"
    with Image.open(voted / "passes" / "c.png") as picture:
        colours = np.asarray(picture.convert("RGB"))
        passes = np.asarray(picture)
    for number in (0, 1):
        assert {tuple(c) for c in colours[passes == number].tolist()} <= {PASS_COLOURS[number]}
    assert (passes == IGNORE).sum() == (maps(voted, "labels", domain)[NAMES.index("c")] == IGNORE).sum()


def test_a_cap_lets_votes_pass_but_not_for_classes_out_of_reach(tmp_path: Path, domain: Domain) -> None:
    predicted = predicted_of(domain)[0].flatten().bincount(minlength=4)
    portion = 1.01 / int(predicted.max())  # one pixel of the largest class, none of any other
    how: dict[str, Any] = {"portion": portion, "decision": "argmax"}
    plain = made(tmp_path / "plain", domain, voting=VOTING, **how)
    capped = made(tmp_path / "capped", domain, voting={**VOTING, "cap": 0.1}, **how)
    t = read_thresholds(capped)
    assert (t > 1).tolist() == [k != int(predicted.argmax()) for k in range(4)]
    stages = restated_stages(capped, domain)
    np.testing.assert_array_equal(stages[0], restated_stages(plain, domain)[0])
    needed = torch.where(t > 1, t, 0.1)
    for index in range(len(domain)):
        base = torch.from_numpy(stages[0][index]).long()
        after = window_vote(probabilities_of(domain, index), base, needed, 5, 0.5, 3)
        np.testing.assert_array_equal(stages[1:, index], after.numpy())
    assert (stages[3] != IGNORE).sum() > (maps(plain, "labels", domain) != IGNORE).sum()
    assert set(np.unique(stages[3])) == {int(predicted.argmax()), IGNORE}


def test_soft_labels_are_where_hard_ones_are_and_say_the_same(tmp_path: Path, domain: Domain) -> None:
    folder = made(tmp_path, domain, soft_alpha=0.25)
    hard = made(tmp_path / "hard", domain)
    t = read_thresholds(folder).double().numpy()
    np.testing.assert_array_equal(t, read_thresholds(hard).double().numpy())
    opened = open_pseudo_labels(folder)
    chosen_by_cbst = maps(hard, "labels", domain) != IGNORE
    for index, name in enumerate(NAMES):
        label = opened.read(name)
        assert label.soft is not None
        weight = (probabilities_of(domain, index).double().numpy() / t[:, None, None]) ** 4
        chosen = weight.sum(axis=0) >= 1
        np.testing.assert_array_equal(label.hard != IGNORE, chosen)
        assert chosen[chosen_by_cbst[index]].all()
        soft = np.moveaxis(label.soft, 2, 0)
        np.testing.assert_allclose(soft[:, chosen], (weight / weight.sum(axis=0))[:, chosen], atol=2 / 255)
        assert not soft[:, ~chosen].any()
        np.testing.assert_allclose(soft.sum(axis=0)[chosen], 1, atol=1e-5)
        np.testing.assert_array_equal(weight.argmax(axis=0)[chosen], label.hard[chosen])


# ---- CBST-SP


def test_a_spatial_prior_is_multiplied_in_before_everything_else(tmp_path: Path, domain: Domain) -> None:
    chance = torch.Generator().manual_seed(0)
    prior = torch.rand(4, SIZE[1], SIZE[0], generator=chance).softmax(dim=0)
    prior[:, 0, 0] = 0  # where nothing was ever seen
    folder = made(tmp_path, domain, prior, portion=0.3, split={"value": 0.5})
    weighted = torch.stack([probabilities_of(domain, index) * prior for index in range(len(domain))])
    weighted /= weighted.sum(dim=1, keepdim=True).clamp(min=1e-30)
    confidence, ids = weighted.max(dim=1)
    t = read_thresholds(folder)
    for k in range(4):
        own = confidence[ids == k].sort(descending=True).values
        wanted = own[int(0.3 * len(own)) - 1].item() if int(0.3 * len(own)) else OUT_OF_REACH
        assert wanted - 1e-3 <= t[k].item() <= wanted + 1e-6
    quotient, best = (weighted / t[:, None, None]).max(dim=1)
    np.testing.assert_array_equal(maps(folder, "labels", domain), best.masked_fill(quotient < 1, IGNORE).numpy())
    assert (maps(folder, "labels", domain)[:, 0, 0] == IGNORE).all()


@pytest.mark.parametrize("sigma", [0.001, 0.7, 3.0, 50.0])
def test_smoothing_keeps_the_sum_over_the_classes(tmp_path: Path, root: Path, sigma: float) -> None:
    source = domain_at(root, labelled=True)
    write_prior(tmp_path / "prior.npz", source, SIZE, sigma)
    prior = read_prior(tmp_path / "prior.npz")
    assert prior.shape == (4, SIZE[1], SIZE[0])
    assert (prior >= 0).all()
    torch.testing.assert_close(prior.sum(dim=0), torch.ones(SIZE[1], SIZE[0]), atol=4e-3, rtol=0)
    if sigma < 0.1:
        labels = np.stack([read_ids(root / "labels" / f"{name}.png")[1::2, 1::2] for name in NAMES])
        known = (labels != IGNORE).sum(axis=0)
        counted = (labels[None] == np.arange(4)[:, None, None, None]).sum(axis=1)
        shares = np.where(known > 0, counted / known.clip(min=1), 0.25)
        np.testing.assert_allclose(prior.numpy(), shares, atol=1e-3)
    else:
        flat, maps_of_ones = prior.flatten(1).std(dim=1), torch.full((2, *prior.shape[1:]), 0.5)
        torch.testing.assert_close(smoothed(maps_of_ones, sigma), maps_of_ones)
        assert sigma < 50 or flat.max() < 0.05, "a wide kernel leaves hardly more than the frequencies"


# ---- shards


def test_two_shards_make_up_the_whole(tmp_path: Path, domain: Domain) -> None:
    settings = {"portion": 0.3, **EVERYTHING}
    whole = contents(made(tmp_path / "whole", domain, **settings))
    parts, folder = [labeller(**settings) for _ in range(2)], tmp_path / "shards"
    histogram = ConfidenceHistogram(4)
    for rank, part in enumerate(parts):
        histogram += count_confidences(part, domain, tmp_path / f"count{rank}.npz", shard=(rank, 2))
    thresholds = parts[0].settings.thresholds(histogram).float()
    assert thresholds.tolist() == read_thresholds(tmp_path / "whole").tolist()
    tallies = [
        write_labels(part, thresholds, domain, folder, tmp_path / f"labels{rank}.npz", shard=(rank, 2))
        for rank, part in enumerate(parts)
    ]
    both = Tally(*(sum(arrays) for arrays in zip(*(vars(tally).values() for tally in tallies), strict=True)))
    assert contents(folder) == {name: data for name, data in whole.items() if "/" in name}
    found = statistics(both, thresholds, parts[0].settings, domain, SIZE)
    assert found == read(tmp_path / "whole" / "statistics.json")


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path: Path, domain: Domain, workers: int) -> None:
    alone = contents(made(tmp_path / "alone", domain, **EVERYTHING))
    assert contents(made(tmp_path / "more", domain, workers=workers, **EVERYTHING)) == alone
