"""How often pseudo-labels are right, restated from the files and the truth; and the pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_makers import (
    CLASSES,
    NAMES,
    ODD,
    SIZE,
    domain_at,
    labeller,
    maps,
    read,
    restated_stages,
    write_images,
)
from PIL import Image

from segshift.artefacts.pseudo_labels import read_ids
from segshift.data.domains import Domain
from segshift.data.images import resize_nearest
from segshift.engine.label_panels import choose_images, write_label_panels
from segshift.engine.label_quality import label_quality
from segshift.engine.labelling import PASS_COLOURS, make_pseudo_labels, read_thresholds
from segshift.errors import UserError
from segshift.types import IGNORE

PIXELS = SIZE[0] * SIZE[1]
SETTINGS: dict[str, Any] = {
    "portion": 0.1, "voting": {"window": 5, "alpha": 0.5, "passes": 2}, "split": {"value": 0.5}
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def domain(root: Path) -> Domain:
    return domain_at(root)


@pytest.fixture(scope="module")
def folder(domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_pseudo_labels(labeller(**SETTINGS), domain, folder, workers=0)
    return folder


# ---- quality


def share(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if chosen.size else None


def row_of(name: str, labels: np.ndarray, truth: np.ndarray, total: int, gained: np.ndarray | None = None) -> Any:
    """A row of quality.json, by masks over all pixels."""
    given, known, right = labels != IGNORE, truth != IGNORE, labels == truth
    by_class = []
    for k in range(len(CLASSES)):
        there, said = truth == k, known & (labels == k)
        values = {"coverage": share(given[there]), "precision": share(right[said])}
        by_class.append(values if there.any() or said.any() else None)
    new = None if gained is None else {"coverage": gained.sum() / total, "precision": share(right[gained & known])}
    figures = {"coverage": given.sum() / total, "precision": share(right[given & known])}
    return {"name": name, **figures, "added": new, "classes": by_class}


def truths(root: Path, names: tuple[str, ...] = NAMES) -> np.ndarray:
    return np.stack([resize_nearest(read_ids(root / "labels" / f"{name}.png"), SIZE) for name in names])


@pytest.mark.parametrize("workers", [0, 2])
def test_quality_is_what_files_and_truth_say(root: Path, domain: Domain, folder: Path, workers: int) -> None:
    known, told = read(folder / "statistics.json"), list[int]()

    class Bar:
        def advance(self, count: int = 1, note: str = "") -> None:
            told.append(count)

    found = label_quality(
        labeller(**SETTINGS), read_thresholds(folder), known["easy_cutoff"], domain_at(root, labelled=True),
        workers=workers, progress=Bar(),
    )  # fmt: skip
    assert told == [1] * len(NAMES)
    assert (found["domain"], found["images"]) == (str(root), len(NAMES))
    truth, total = truths(root), len(NAMES) * PIXELS
    stages, passes = restated_stages(folder, domain), maps(folder, "passes", domain)
    names = ["thresholds", "voting pass 1", "voting pass 2"]
    wanted = [
        row_of(name, stage, truth, total, passes == number if number else None)
        for number, (name, stage) in enumerate(zip(names, stages, strict=True))
    ]
    easy = np.array([row["easy"] for row in known["per_image"]])
    assert 0 < easy.sum() < len(easy)
    wanted.append(row_of("full labels of easy images", maps(folder, "full", domain)[easy], truth[easy], total))
    assert [row["name"] for row in found["rows"]] == [row["name"] for row in wanted]
    for row, own in zip(found["rows"], wanted, strict=True):
        for key in ("coverage", "precision", "added"):
            assert row[key] == pytest.approx(own[key]), f"{row['name']}: {key}"
        assert [one is None for one in row["classes"]] == [one is None for one in own["classes"]]
        for one, other in zip(row["classes"], own["classes"], strict=True):
            assert one == (pytest.approx(other) if other else None), row["name"]
    assert found["rows"][1]["added"]["coverage"] > 0
    assert found["rows"][0]["classes"][3] is None, "a class that is neither there nor given"


def test_without_a_split_and_voting_there_is_one_row(root: Path, folder: Path) -> None:
    found = label_quality(labeller(), read_thresholds(folder), None, domain_at(root, labelled=True), workers=0)
    assert [row["name"] for row in found["rows"]] == ["thresholds"]
    assert found["rows"][0]["added"] is None


def test_other_images_than_those_that_were_labelled(tmp_path: Path, folder: Path) -> None:
    """Easy is what reaches the cutoff of the split; which images of the domain did plays no part."""
    names = ("x", "y", "z")
    root, cutoff = write_images(tmp_path, names), read(folder / "statistics.json")["easy_cutoff"]
    own = labeller(**SETTINGS)
    thresholds = read_thresholds(folder)
    truth = domain_at(root, labelled=True)
    for easy_from, share_of_easy in ((0.0, 1.0), (cutoff, None), (1e9, 0.0)):
        last = label_quality(own, thresholds, easy_from, truth, workers=0)["rows"][-1]
        assert last["name"] == "full labels of easy images"
        if share_of_easy is not None:
            assert last["coverage"] == share_of_easy
        assert (last["precision"] is None) == (last["coverage"] == 0)
    make_pseudo_labels(own, domain_at(root), tmp_path / "own", workers=0)
    everything = label_quality(own, thresholds, 0.0, truth, workers=0)["rows"][-1]
    full = maps(tmp_path / "own", "full", truth)
    assert everything["precision"] == pytest.approx(share((full == truths(root, names))[truths(root, names) != IGNORE]))


def test_nothing_labelled_and_nothing_true_are_no_nan(tmp_path: Path, root: Path, domain: Domain) -> None:
    make_pseudo_labels(labeller(portion=0), domain, tmp_path / "none", workers=0)
    nothing = read_thresholds(tmp_path / "none")
    (row,) = label_quality(labeller(portion=0), nothing, None, domain_at(root, labelled=True), workers=0)["rows"]
    assert (row["coverage"], row["precision"]) == (0, None)
    assert row["classes"] == [{"coverage": 0, "precision": None}] * 3 + [None]
    unknown = write_images(tmp_path / "unknown")
    for path in (unknown / "labels").rglob("*.png"):
        Image.fromarray(np.full((2 * SIZE[1], 2 * SIZE[0]), IGNORE, np.uint8)).save(path)
    thresholds = read_thresholds(tmp_path / "none") * 0 + 0.5
    (row,) = label_quality(labeller(), thresholds, None, domain_at(unknown, labelled=True), workers=0)["rows"]
    assert row["coverage"] > 0
    assert (row["precision"], row["classes"]) == (None, [None] * 4)


def test_a_truth_that_cannot_be_read_is_named(tmp_path: Path, folder: Path) -> None:
    root = write_images(tmp_path)
    (root / "labels" / "c.png").write_bytes(b"\x00garbage")
    with pytest.raises(UserError, match=r"labels/c\.png"):
        label_quality(labeller(**SETTINGS), read_thresholds(folder), None, domain_at(root, labelled=True), workers=1)


# ---- pictures


def test_the_best_and_the_worst_image_are_shown_and_some_between() -> None:
    def rows(values: list[float], easy: bool | None = None) -> list[dict[str, Any]]:
        other = [1 - value for value in values]
        scores, shares = (values, other) if easy is not None else (other, values)
        return [{"score": s, "labelled": c, "easy": easy} for s, c in zip(scores, shares, strict=True)]

    values = [0.2, 0.9, 0.1, 0.5, 0.6, 0.4]
    for easy, words in ((None, "coverage"), (False, "score")):
        chosen = choose_images(rows(values, easy), 4)
        assert chosen[:2] == [(1, f"highest {words} of 6 images"), (2, f"lowest {words}")]
        assert len({place for place, _ in chosen}) == len(chosen) == 4
    assert len(choose_images(rows(values), 99)) == 6
    assert len(choose_images(rows(values), 1)) == 1
    assert choose_images(rows(values), 0) == []
    assert choose_images(rows([0.5]), 4) == [(0, "chosen by even spacing")]
    assert [place for place, _ in choose_images(rows([0.5, 0.5]), 2)] == [0, 1]


def test_pictures_show_what_the_files_hold(tmp_path: Path, root: Path, domain: Domain, folder: Path) -> None:
    rows, asked = read(folder / "statistics.json")["per_image"], list[np.ndarray]()

    def discriminator(pixels: np.ndarray) -> float:
        asked.append(pixels)
        return 0.25

    truth = domain_at(root, labelled=True)
    write_label_panels(
        tmp_path / "panels", folder, domain, rows, SIZE, 99, truth=truth, discriminator=discriminator
    )  # fmt: skip
    index = read(tmp_path / "panels" / "index.json")
    assert sorted(entry["name"] for entry in index) == sorted(NAMES)
    assert ODD in NAMES
    by_name = {row["name"]: row for row in rows}
    for entry in index:
        row, files = by_name[entry["name"]], {kind: tmp_path / "panels" / name for kind, name in entry["files"].items()}
        keys = ("coverage", "score", "easy", "discriminator")
        assert [entry[key] for key in keys] == [
            row["labelled"],
            row["score"],
            row["easy"],
            None if row["easy"] else 0.25,
        ]
        assert set(files) == {"image", "sparse", "densified", "added", "truth"} | ({"full"} if row["easy"] else set())
        with Image.open(files["image"]) as picture:
            assert picture.size == SIZE
        labels, passes = (read_ids(folder / part / f"{entry['name']}.png") for part in ("labels", "passes"))
        np.testing.assert_array_equal(read_ids(files["densified"]), labels)
        np.testing.assert_array_equal(read_ids(files["sparse"]), np.where(passes == 0, labels, IGNORE))
        np.testing.assert_array_equal(read_ids(files["added"]), passes)
        np.testing.assert_array_equal(read_ids(files["truth"]), truths(root, (entry["name"],))[0])
        if row["easy"]:
            np.testing.assert_array_equal(read_ids(files["full"]), read_ids(folder / "full" / f"{entry['name']}.png"))
        with Image.open(files["added"]) as picture:
            assert picture.getpalette()[:3] == list(PASS_COLOURS[0])  # type: ignore[index]
    assert len(asked) == sum(not row["easy"] for row in rows)
    assert {pixels.shape for pixels in asked} == {(SIZE[1], SIZE[0], 3)}
    assert not list((tmp_path / "panels").glob(".*"))


def test_pictures_of_plain_labels(tmp_path: Path, domain: Domain) -> None:
    make_pseudo_labels(labeller(), domain, tmp_path / "labels", workers=0)
    rows = read(tmp_path / "labels" / "statistics.json")["per_image"]
    write_label_panels(tmp_path / "panels", tmp_path / "labels", domain, rows, SIZE, 2, discriminator=lambda _: 0.5)
    index = read(tmp_path / "panels" / "index.json")
    assert [set(entry["files"]) for entry in index] == [{"image", "sparse"}] * 2
    assert [(entry["easy"], entry["score"], entry["discriminator"]) for entry in index] == [(None, None, None)] * 2
    for entry in index:
        shown = read_ids(tmp_path / "panels" / entry["files"]["sparse"])
        np.testing.assert_array_equal(shown, read_ids(tmp_path / "labels" / "labels" / f"{entry['name']}.png"))
        assert entry["coverage"] == pytest.approx((shown != IGNORE).mean())
