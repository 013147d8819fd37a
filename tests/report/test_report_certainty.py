"""How sure the networks are, errors, and the intervals of the classes' gains: what the report says and shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import CLASSES, write_run
from matplotlib import colormaps, colors
from page_reader import change, part, problems_of, read
from PIL import Image

from segshift.report.certainty import SCALE
from segshift.report.pictures import ERROR, RIGHT, UNKNOWN, Request, _encode, _picture, wrong_share


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "city-camvid", panels=2, certainty=True)


def index(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "panels" / "index.json").read_text())
    return found


def certainty_section(html: str) -> str:
    found: list[str] = re.findall(r'<section id="certainty".*?</section>', html, re.DOTALL)
    return found[0]


def test_the_section(run: Path) -> None:
    html, page = read(run)
    said = part(html, "certainty")
    assert "advent is surer than source." in said
    assert "Over the 2 images shown: mean entropy 0.20 against 0.30, mean confidence 0.85 against 0.70." in said
    kinds = re.findall(r'data-kind="([^"]+)"', certainty_section(html))
    each = ["errors before", "errors after", "entropy before", "entropy after", "confidence before", "confidence after"]
    assert kinds == 2 * each
    assert said.count("source · mean 0.30") == 2
    assert said.count("advent · mean 0.85") == 2
    assert "Missing or damaged" not in page.text
    assert 'alt="Entropy of seq0/frame_0000, source · mean 0.30"' in html
    assert html.index('id="panels"') < html.index('id="certainty"') < html.index('id="curves"')
    assert 'data-kind="entropy"' not in html, "the panels need no entropy of their own then"


@pytest.mark.parametrize(("after", "word"), [(0.4, "less sure than"), (0.302, "about as sure as")])
def test_words_follow_the_figures(run: Path, after: float, word: str) -> None:
    entries = index(run)
    for entry in entries:
        entry["certainty"][1]["mean_entropy"] = after
    (run / "panels" / "index.json").write_text(json.dumps(entries))
    assert f"advent is {word} source." in part(read(run)[0], "certainty")


def test_runs_of_older_versions(tmp_path: Path) -> None:
    html, page = read(write_run(tmp_path / "old", panels=2))
    assert 'id="certainty"' not in html
    assert html.count('data-kind="entropy"') == 2
    assert "Missing or damaged" not in page.text


def test_without_labels_and_without_a_model_before(run: Path) -> None:
    (run / "metrics.json").unlink()
    entries = index(run)
    for entry in entries:
        entry |= {"truth": None, "certainty": entry["certainty"][1:]}
    (run / "panels" / "index.json").write_text(json.dumps(entries))
    html, _ = read(run)
    assert re.findall(r'data-kind="([^"]+)"', certainty_section(html)) == 2 * ["entropy after", "confidence after"]
    said = part(html, "certainty")
    assert "Over the 2 images shown: mean entropy 0.20, mean confidence 0.85 (advent)." in said
    assert "no truth" not in said


@pytest.mark.parametrize("value", [None, 3, "x", [3], [{}], [{"model": 3, "entropy": "../run.yaml"}], [None, None]])
def test_a_damaged_entry_costs_its_part(run: Path, value: Any) -> None:
    entries = index(run)
    for entry in entries:
        entry["certainty"] = value
    (run / "panels" / "index.json").write_text(json.dumps(entries))
    html, _ = read(run)
    assert 'id="certainty"' not in html
    assert html.rstrip().endswith("</html>")


def test_a_missing_map_is_named(run: Path) -> None:
    (run / "panels" / "000-entropy-after.png").unlink()
    html, _ = read(run)
    assert "panels/000-entropy-after.png is missing" in problems_of(html)
    assert certainty_section(html).count("<img") == 2 * 6 - 1


def test_the_scale_is_that_of_the_maps() -> None:
    assert list(SCALE) == [colors.to_hex(colormaps["magma"](round(255 * eighth / 8))) for eighth in range(9)]


# ---- errors


def palette_picture(path: Path, ids: list[list[int]], colours: list[tuple[int, int, int]]) -> Path:
    picture = Image.fromarray(np.array(ids, np.uint8))
    picture.putpalette([level for colour in colours for level in colour])
    picture.save(path)
    return path


def test_errors_go_by_ids_and_not_by_colours(tmp_path: Path) -> None:
    """Two classes of one colour, and one as black as what is ignored."""
    colours = [(9, 9, 9), (9, 9, 9), (0, 0, 0)] + [(0, 0, 0)] * 253
    said = palette_picture(tmp_path / "a.png", [[0, 1, 2, 2]], colours)
    true = palette_picture(tmp_path / "b.png", [[0, 0, 2, 255]], colours)
    assert wrong_share(said, true) == pytest.approx(1 / 3)
    drawn = np.asarray(_picture(Request(said, True, truth=true)))
    assert drawn[0].tolist() == [RIGHT.tolist(), ERROR.tolist(), RIGHT.tolist(), UNKNOWN.tolist()]


def test_errors_of_pictures_without_a_palette(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 2, 3], [1, 2, 3], [1, 2, 3]]], np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[[1, 2, 3], [9, 2, 3], [0, 0, 0]]], np.uint8)).save(tmp_path / "b.png")
    assert wrong_share(tmp_path / "a.png", tmp_path / "b.png") == pytest.approx(1 / 2)


def test_no_share_of_errors_without_a_truth(tmp_path: Path) -> None:
    colours = [(9, 9, 9)] * 256
    said = palette_picture(tmp_path / "a.png", [[0, 1]], colours)
    assert wrong_share(said, palette_picture(tmp_path / "b.png", [[255, 255]], colours)) is None
    assert wrong_share(said, palette_picture(tmp_path / "c.png", [[1, 1, 1]], colours)) is None
    (tmp_path / "d.png").write_bytes(b"x")
    assert wrong_share(said, tmp_path / "d.png") is None


def test_flat_pictures_keep_their_colours_in_fewer_bytes() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (7, 3), dtype=np.uint8)[random.integers(0, 7, (60, 80))]
    data, kind, size = _encode(Image.fromarray(pixels), True, 480)
    assert (kind, size) == ("png", (80, 60))
    import io

    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)


# ---- gains by class


def test_intervals_of_gains(run: Path) -> None:
    bounds: list[list[float] | None] = [[0.101, 0.172], [-0.021, 0.191], *[None] * (len(CLASSES) - 2)]
    change(run / "metrics.json", gain_intervals=bounds)
    html, _ = read(run)
    rows = re.findall(r"<tr.*?</tr>", re.findall(r'<section id="classes".*?</section>', html, re.DOTALL)[0], re.DOTALL)
    road, sidewalk, building = rows[1:4]
    assert "+10.1 to +17.2" in road
    assert "unclear" not in road
    assert "−2.1 to +19.1" in sidewalk
    assert "unclear" in sidewalk
    assert " to " not in building
    assert "95 % interval over the choice of images" in part(html, "classes")
    # All bars and lines lie within their column.
    for left, width in re.findall(r"left:([-\d.]+)%;width:([\d.]+)%", html):
        assert float(left) >= -0.1
        assert float(left) + float(width) <= 100.1


@pytest.mark.parametrize("value", [None, 3, [], [[0, 1]], [["x", 1]] * len(CLASSES), [[0.1]] * len(CLASSES)])
def test_damaged_intervals_are_none(run: Path, value: Any) -> None:
    change(run / "metrics.json", gain_intervals=value)
    html, page = read(run)
    assert "unclear" not in html.split("</style>")[1]
    assert "Missing or damaged" not in page.text
