"""The benchmark's page: figures that are counted from its data and not written into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segshift.weak.store import Point, WeakLabel, WeakStore


def test_the_curve_ends_at_the_number_of_images_with_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    import real_pair

    store = WeakStore(real_pair.weak_file(str(tmp_path)))
    store.extend(WeakLabel(f"{i}.png", None, points=(Point(1, 2, "road"),)) for i in range(7))
    store.append(WeakLabel("tagged.png", ("road",)))
    for name, miou in (("weak_pseudo", 0.25), ("weak_points_10", 0.5), ("weak_points", 0.75)):
        path = tmp_path / "runs" / f"{name}-0" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"miou": miou}))
    assert real_pair.curve_points(tmp_path / "runs", 0, str(tmp_path)) == {0: 25, 7: 75, 10: 50}
    other = real_pair.curve_points(tmp_path / "runs", 0, str(tmp_path / "none"))
    assert other == {0: 25, 10: 50}, "without the labels it is not known where the curve ends"
