"""Pictures of attention: that it is the attention of category-wise pooling, where it is laid, and what is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import Colour, Tiny, write_domain
from test_evaluate import opened

from segshift.engine.attention_panels import (
    WIDTH,
    Look,
    attention,
    choose_classes,
    half_share,
    overlay,
    write_attention_panels,
)
from segshift.engine.producing import Answers
from segshift.engine.tag_quality import Rule
from segshift.errors import UserError
from segshift.ops import category_pool

CPU = torch.device("cpu")
SIZE = (96, 48)
RULE = Rule(0.2, 1.0)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


# ---- attention


def test_it_is_the_attention_that_pools_features() -> None:
    answers = Answers(Tiny(), CPU, "fp32")
    said = answers(pixels())
    found = attention(answers, pixels())
    assert found.shape == said.logits.shape[1:]
    assert torch.allclose(found.sum(dim=(1, 2)), torch.ones(3))
    pooled = torch.einsum("khw,dhw->kd", found, said.features[0])
    assert torch.allclose(pooled, category_pool(said.features, said.logits)[0], atol=1e-6)


def test_half_of_the_attention() -> None:
    even, one = torch.full((4, 5), 0.05), torch.zeros(4, 5)
    one[2, 3] = 1
    assert half_share(even) == 0.5
    assert half_share(one) == 1 / 20
    # 0.4 is less than half, 0.4 + 0.3 is not: two of four cells.
    assert half_share(torch.tensor([[0.1, 0.4], [0.2, 0.3]])) == 0.5
    assert half_share(torch.tensor([[0.125, 0.5], [0.25, 0.125]])) == 0.25, "just half is half"


# ---- pictures


def test_the_peak_is_bright_and_the_rest_is_grey() -> None:
    weights = torch.zeros(5, 9)
    weights[1, 6] = 0.3
    image = np.zeros((48, 96, 3), np.uint8) + np.array([200, 40, 0], np.uint8)
    found = np.asarray(overlay(image, weights), np.int64)
    # The outer cells lie on the corner pixels: cell (1, 6) is at 47/4 rows and 6 * 95/8 columns.
    brightest = np.unravel_index(found.sum(axis=2).argmax(), found.shape[:2])
    assert (abs(brightest[0] - 47 / 4), abs(brightest[1] - 6 * 95 / 8)) <= (1, 1)
    far = found[40:, :30]
    assert (far == far[..., :1]).all(), "grey where nobody looks"
    assert far.std() == 0
    assert 30 < far.mean() < 120, "the image is still seen"
    assert found[brightest][0] > 200 > found[brightest][2] + 20, "yellow, not grey"


def test_each_map_is_at_its_own_scale() -> None:
    weights = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    assert overlay(pixels(), weights).tobytes() == overlay(pixels(), weights / 1000).tobytes()
    overlay(pixels(), torch.zeros(5, 9))  # no division by zero


def written(folder: Path, domain: Any, looks: list[Look], mark: str = "f") -> list[dict[str, Any]]:
    networks = {"before": Answers(Colour(wrong=True), CPU, "fp32"), "after": Answers(Colour(), CPU, "fp32")}
    write_attention_panels(folder, networks, RULE, domain, looks, SIZE, mark)
    index = json.loads((folder / "index.json").read_text())
    assert index["fingerprint"] == mark
    panels: list[dict[str, Any]] = index["panels"]
    return panels


def test_panels(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path / "in", 3, labelled=False, size=(960, 480)), labelled=False)
    folder = tmp_path / "out"
    looks = [Look(0, 1, "why", [(100.0, 50.0)]), Look(2, 2, "")]
    first, second = written(folder, domain, looks)
    assert (first["class"], first["name"], first["caption"], first["points"]) == ("red", domain.items[1].name, "why", 1)
    assert (second["class"], second["points"]) == ("blue", 0)
    assert [each["network"] for each in first["maps"]] == ["before", "after"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.json", *(f"00{n}-{kind}.jpg" for n in (0, 1) for kind in ("image", "map0", "map1"))}
    for name in names - {"index.json"}:
        with Image.open(folder / name) as picture:
            assert picture.size == (WIDTH, WIDTH // 2)
    assert first["maps"][1]["probability"] > 0.99


@pytest.mark.parametrize("train_id", [0, 2])
def test_maps_are_of_the_class_and_the_network(tmp_path: Path, train_id: int) -> None:
    """Stripes: the right network looks for a colour where it is, the wrong one elsewhere."""
    domain = opened(write_domain(tmp_path / "in", 1, labelled=False), labelled=False)
    folder = tmp_path / "out"
    (panel,) = written(folder, domain, [Look(train_id, 0, "")])
    # Each colour is a third of the pixels, all alike; a network that is sure of it looks there alone.
    assert [each["half"] for each in panel["maps"]] == pytest.approx([1 / 6, 1 / 6])
    with Image.open(domain.items[0].image) as picture:
        own = np.asarray(picture)[0, :, train_id] > 128
    inner = np.array([column for column in range(96) if all(own[max(0, column - 3) : column + 4] == own[column])])
    for name, right in (("map1", True), ("map0", False)):
        with Image.open(folder / f"000-{name}.jpg") as picture:
            bright = np.asarray(picture.convert("RGB"), np.int64).sum(axis=2)[24]
        there, elsewhere = bright[inner[own[inner]]], bright[inner[~own[inner]]]
        assert (there.min() > elsewhere.max()) == right, name


def test_rings_are_around_the_points(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path / "in", 1, labelled=False, size=(960, 480)), labelled=False)
    x, y = 600.0, 300.0
    written(tmp_path / "a", domain, [Look(0, 0, "", [(x, y)])])
    written(tmp_path / "b", domain, [Look(0, 0, "")])
    for kind in ("image", "map0", "map1"):
        pictures = []
        for run in "ab":
            with Image.open(tmp_path / run / f"000-{kind}.jpg") as picture:
                pictures.append(np.asarray(picture.convert("RGB"), np.int64))
        rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).sum(axis=2) > 150)
        middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
        wanted = (x + 0.5) * WIDTH / 960 - 0.5, (y + 0.5) * WIDTH / 960 - 0.5
        assert middle == pytest.approx(wanted, abs=1.5)
        assert np.ptp(columns) < 60, "a ring, not a blot"


def test_a_later_call_replaces_the_pictures(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path / "in", 3, labelled=False), labelled=False)
    folder = tmp_path / "out"
    written(folder, domain, [Look(k, k, "") for k in range(3)])
    first = (folder / "000-map1.jpg").read_bytes()
    assert len(written(folder, domain, [Look(0, 0, "")], "g")) == 1
    assert not list(folder.glob("002-*"))
    assert (folder / "000-map1.jpg").read_bytes() == first, "the same every time"


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    domain = opened(write_domain(tmp_path / "in", 2, labelled=False), labelled=False)
    domain.items[1].image.write_bytes(b"no image")
    with pytest.raises(UserError):
        written(tmp_path / "out", domain, [Look(0, 0, ""), Look(0, 1, "")])
    assert not (tmp_path / "out" / "index.json").exists()


# ---- which classes


@pytest.mark.parametrize(
    ("gains", "images", "count", "wanted"),
    [
        ([0.1, -0.2, 0.3, 0.0, -0.1, 0.2], [9] * 6, 4, [2, 5, 4, 1]),
        ([0.1, -0.2, 0.3, 0.0, -0.1, 0.2], [9, 0, 0, 9, 9, 9], 4, [5, 0, 3, 4]),
        ([0.1, -0.2, 0.3], [9] * 3, 4, [2, 0, 1]),
        ([0.1, -0.2, 0.3, 0.0], [9] * 4, 3, [2, 0, 1]),
        ([0.1, -0.2, 0.3, 0.0], [9] * 4, 1, [2]),
        ([None, None, None, None], [5, 0, 2, 5], 2, [2, 0]),
        ([None, 0.1, None, -0.1], [5, 9, 2, 5], 3, [1, 2, 3]),
        ([0.0, 0.0, 0.0], [1, 1, 1], 2, [0, 2]),
        ([], [], 4, []),
    ],
)
def test_classes_with_most_gain_and_most_loss(
    gains: list[float | None], images: list[int], count: int, wanted: list[int]
) -> None:
    assert choose_classes(gains, images, count) == wanted
