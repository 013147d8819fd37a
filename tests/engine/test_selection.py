"""Label-free figures against plain restatements, at their ends, and what counts as a collapse."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segshift.data.domains import Domain, DomainSettings, Item
from segshift.engine.answers import LEAST, Place, grid_of, read_answers, sample, write_answers
from segshift.engine.inference import Options, logits_at
from segshift.engine.model import Model
from segshift.engine.selection import (
    Agreement,
    agreement,
    collapse,
    effective_classes,
    infomax,
    mean_entropy,
    neighbourhood_density,
    ranks,
    shift,
)
from segshift.engine.tallies import against_the_others, confusion, look
from segshift.errors import UserError
from segshift.types import ClassSet
from small_net import SmallNet
from workbench import picture, save

NAMES = ("road", "sky", "car", "person")


def softmaxes(points: int, classes: int = 4, scale: float = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(points, classes, generator=generator)).softmax(dim=1)


def kept(images: int = 3, classes: int = 4, seed: int = 0, scale: float = 3) -> np.ndarray:
    """Answers as they lie on the disk."""
    p = softmaxes(images * 6 * 8, classes, scale, seed).reshape(images, 6, 8, classes)
    return p.log().permute(0, 3, 1, 2).numpy().astype(np.float16)


# ---- one prediction


def test_the_entropy_is_that_of_its_definition() -> None:
    p = softmaxes(50).double()
    wanted = sum(-sum(float(q) * math.log(float(q)) for q in row) for row in p) / 50 / math.log(4)
    assert mean_entropy(p.log()) == pytest.approx(wanted, rel=1e-6)
    assert mean_entropy(torch.eye(4).log()) == 0
    assert mean_entropy(torch.full((3, 4), 0.25).log()) == pytest.approx(1)


def test_infomax_is_the_mutual_information_of_point_and_class() -> None:
    p = softmaxes(200).double().numpy()
    mean = p.mean(axis=0)
    wanted = float((p * np.log(p / mean)).sum(axis=1).mean()) / math.log(4)
    entropy = mean_entropy(torch.from_numpy(p).log())
    assert infomax(mean, entropy) == pytest.approx(wanted, rel=1e-6)
    assert infomax(mean, entropy, np.full(4, 0.25)) == pytest.approx(wanted - 1, rel=1e-6)


def test_infomax_is_best_where_each_point_is_sure_and_all_classes_occur() -> None:
    even, one = np.full(4, 0.25), np.array([1.0, 0, 0, 0])
    assert infomax(even, 0.0) == pytest.approx(1)
    assert infomax(even, 1.0) == pytest.approx(0)
    assert infomax(one, 0.0) == 0, "sure of one class everywhere: collapsed"


def test_a_prior_moves_the_best_to_its_own_shares() -> None:
    prior = np.array([0.7, 0.1, 0.1, 0.1])
    there, even = infomax(prior, 0.1, prior), infomax(np.full(4, 0.25), 0.1, prior)
    assert there == pytest.approx(-0.1)
    assert even < there
    unseen = infomax(np.array([0.5, 0.5, 0, 0]), 0.0, np.array([1.0, 0, 0, 0]))
    assert math.isfinite(unseen), "a class that the source lacks costs much, but not everything"
    assert unseen < -2


def density_by_loops(p: torch.Tensor, temperature: float) -> float:
    rows = [[float(v) for v in row] for row in p.double()]
    norms = [math.sqrt(sum(v * v for v in row)) for row in rows]
    total = 0.0
    for i, row in enumerate(rows):
        cosines = [
            sum(a * b for a, b in zip(row, other, strict=True)) / norms[i] / norms[j]
            for j, other in enumerate(rows)
            if j != i
        ]
        weights = [math.exp(c / temperature) for c in cosines]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    return total / len(rows)


@pytest.mark.parametrize("block", [1, 7, 40, 512])
def test_the_density_is_that_of_its_definition_in_blocks_of_any_size(block: int) -> None:
    p = softmaxes(40)
    assert neighbourhood_density(p, block=block) == pytest.approx(density_by_loops(p, 0.05), rel=1e-4)
    assert neighbourhood_density(p, 0.5, block) == pytest.approx(density_by_loops(p, 0.5), rel=1e-4)


def test_clusters_of_many_points_have_a_high_density_and_one_cluster_the_highest() -> None:
    assert neighbourhood_density(torch.eye(4).repeat(25, 1)) == pytest.approx(math.log(24), rel=1e-3)
    assert neighbourhood_density(torch.eye(20).repeat(5, 1)) == pytest.approx(math.log(4), rel=1e-3)
    assert neighbourhood_density(torch.eye(4)[:1].repeat(100, 1)) == pytest.approx(math.log(99), rel=1e-4)
    with pytest.raises(ValueError, match="1 point"):
        neighbourhood_density(torch.eye(4)[:1])


# ---- histograms and pairs of predictions


def test_the_shift_is_the_share_of_points_that_would_have_to_change() -> None:
    first, second = np.array([0.5, 0.5, 0, 0]), np.array([0.2, 0.5, 0.3, 0])
    assert shift(first, second) == pytest.approx(0.3) == shift(second, first)
    assert shift(first, first) == 0
    assert shift(np.eye(4)[0], np.eye(4)[1]) == 1


def test_agreement_is_the_same_both_ways_and_leaves_out_what_neither_predicts() -> None:
    first, second = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (first, second), 1)
    found = agreement(counts)
    assert found == agreement(counts.T)
    assert found.pixels == 0.8
    assert found.miou == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert agreement(np.zeros((4, 4), np.int64)) == Agreement(0, 0)


def test_equal_values_share_their_ranks_and_unknown_ones_have_none() -> None:
    values = [3.0, 1.0, 3.0, 2.0, 3.0]
    assert ranks(values, higher=False) == [4, 1, 4, 2, 4]
    assert ranks(values, higher=True) == [2, 5, 2, 4, 2]
    assert ranks([None, 5.0, None, 4.0], higher=True) == [None, 1, None, 2]


# ---- collapse

SOURCE = np.array([0.5, 0.3, 0.15, 0.05])


def test_what_predicts_as_the_reference_does_has_not_collapsed() -> None:
    assert collapse(SOURCE, SOURCE, NAMES) == collapse(np.full(4, 0.25), SOURCE, NAMES)
    assert collapse(SOURCE, SOURCE, NAMES).reasons == ()
    assert effective_classes(np.full(4, 0.25)) == pytest.approx(4)


@pytest.mark.parametrize(
    ("histogram", "words", "lost"),
    [
        ([0.97, 0.02, 0.005, 0.005], "road is predicted on 97.0 %", (1, 2)),
        ([1.0, 0, 0, 0], "few classes are predicted: effectively 1.0, by the source model 3.1", (1, 2, 3)),
        ([0.5, 0.5, 0, 0], "2 of 4 classes that the source model finds are lost", (2, 3)),
    ],
)
def test_signs_of_collapse(histogram: list[float], words: str, lost: tuple[int, ...]) -> None:
    found = collapse(np.array(histogram), SOURCE, NAMES)
    assert any(words in reason for reason in found.reasons)
    assert set(found.lost) >= set(lost) - {1}


def test_a_single_lost_class_is_told_and_is_no_collapse() -> None:
    found = collapse(np.array([0.53, 0.3, 0.17, 0]), SOURCE, NAMES)
    assert found.reasons == ()
    assert found.lost == (3,)


def test_predictions_that_have_nothing_to_do_with_the_source_models_are_astray() -> None:
    assert "10 % of the points only" in collapse(SOURCE, SOURCE, NAMES, same=0.1).reasons[0]
    assert collapse(SOURCE, SOURCE, NAMES, same=0.8).reasons == ()


def test_a_target_that_is_one_class_is_no_collapse_where_the_reference_says_so_too() -> None:
    sea = np.array([0.95, 0.05, 0, 0])
    assert collapse(sea, sea, NAMES).reasons == ()
    assert collapse(sea, None, NAMES).reasons, "without a reference the first rule alone holds"
    assert collapse(np.array([0.6, 0.4, 0, 0]), None, NAMES).reasons == ()


def test_one_class_alone_is_a_collapse_even_if_the_source_model_has_collapsed_too() -> None:
    fallen = np.array([0.96, 0.04, 0, 0])
    alone = np.array([0.9999, 0.0001, 0, 0])
    assert "road is predicted on 100.0 %" in collapse(alone, fallen, NAMES).reasons[0]
    assert collapse(alone, alone, NAMES).reasons


# ---- kept answers


def test_counts_over_images_are_those_over_all_points_at_once() -> None:
    answers = kept()
    p = torch.from_numpy(answers.astype(np.float32)).permute(0, 2, 3, 1).reshape(-1, 4).double().softmax(dim=1)
    found = look(answers, seed=0)
    assert np.allclose(found.histogram, np.bincount(p.argmax(dim=1), minlength=4) / len(p))
    assert np.allclose(found.mean, p.mean(dim=0), atol=1e-6)
    assert found.entropy == pytest.approx(mean_entropy(p.log()), rel=1e-5)
    assert found.density == pytest.approx(neighbourhood_density(p.float()), rel=1e-4), "few points: all are looked at"


def test_the_others_are_all_members_but_oneself() -> None:
    answers = [kept(seed=seed) for seed in range(4)]
    p = [np.exp(a.astype(np.float64)) for a in answers]
    found = against_the_others(answers, [True, True, True, False])
    for place in range(4):
        others = np.sum([p[i] for i in range(3) if i != place], axis=0).argmax(axis=1).ravel()
        wanted = np.zeros((4, 4), np.int64)
        np.add.at(wanted, (others, answers[place].argmax(axis=1).ravel()), 1)
        counts = found[place]
        assert counts is not None
        assert np.array_equal(counts, wanted)
    assert against_the_others(answers[:2], [True, False])[0] is None, "nobody else has a vote"
    assert np.trace(confusion(answers[0], answers[0])) == confusion(answers[0], answers[1]).sum() == 3 * 48


def test_the_sample_is_spread_seeded_and_has_no_image_twice() -> None:
    found = sample(367, 64, 0)
    assert found == sample(367, 64, 0) != sample(367, 64, 1)
    assert len(set(found)) == len(found) >= 60
    assert list(found) == sorted(found)
    assert max(b - a for a, b in itertools.pairwise(found)) <= 2 * math.ceil(367 / 64)
    assert sample(5, 64, 0) == (0, 1, 2, 3, 4)
    assert grid_of(360, 480) == (60, 80)


def domain(folder: Path, count: int) -> Domain:
    items = tuple(Item(str(i), save(folder / f"{i}.png", picture(i))) for i in range(count))
    return Domain("target", ClassSet(NAMES, ()), items, None, DomainSettings(root=folder))


def test_kept_answers_are_the_networks_softmax_at_the_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SmallNet(4).eval()
    place = Place(domain(tmp_path, 4), (0, 2, 3), (6, 8), torch.device("cpu"))
    model = Model(net, place.domain.classes, (64, 48), {})
    write_answers(tmp_path / "a.npy", model, place, Options(), "fp32")
    found = read_answers(tmp_path / "a.npy", (3, 4, 6, 8))
    assert found is not None
    for row, index in enumerate(place.images):
        image = torch.from_numpy(picture(index)).permute(2, 0, 1)[None] / 255
        wanted = logits_at([net], image, (6, 8)).log_softmax(dim=1)[0]
        assert np.allclose(found[row], wanted, rtol=2e-3, atol=1e-3)
    assert read_answers(tmp_path / "a.npy", (3, 4, 6, 9)) is None
    assert read_answers(tmp_path / "none.npy", (3, 4, 6, 8)) is None
    (tmp_path / "half.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    assert read_answers(tmp_path / "half.npy", (3, 4, 6, 8)) is None


class Sizes:
    """A bar that notes, at every image, how long the file is that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, list[int]()

    def advance(self, count: int = 1) -> None:
        self.found.append(max(path.stat().st_size for path in self.folder.glob(".*.tmp.npy")))


def test_answers_are_written_as_they_come_and_not_into_a_mapping(tmp_path: Path) -> None:
    """A mapping of a file that does not fit on the disk kills the process (SIGBUS) instead of raising."""
    place = Place(domain(tmp_path, 3), (0, 1, 2), (64, 64), torch.device("cpu"))
    model, sizes = Model(SmallNet(4).eval(), place.domain.classes, (64, 48), {}), Sizes(tmp_path)
    write_answers(tmp_path / "a.npy", model, place, Options(), "fp32", sizes)  # type: ignore[arg-type]
    assert sizes.found[0] < sizes.found[2] <= (tmp_path / "a.npy").stat().st_size


def test_answers_of_a_diverged_network_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    net = SmallNet(4).eval()
    torch.nn.init.constant_(net.head.weight, math.nan)
    place = Place(domain(tmp_path, 1), (0,), (6, 8), torch.device("cpu"))
    with pytest.raises(UserError, match="not finite"):
        write_answers(tmp_path / "a.npy", Model(net, place.domain.classes, (64, 48), {}), place, Options(), "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]
    assert np.isfinite(np.float16(LEAST))
