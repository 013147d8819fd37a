"""The feature picture of whole runs: made once, kept while it holds, drawn as asked, and told of where it cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rounds_runs import BASE, small_net
from segshift import api, feature_pictures
from segshift.config import RunSettings, validated
from segshift.engine.features import at_cells, compactness
from segshift.feature_pictures import default_stages, fitted
from workbench import NAMES, Outcome, Pair, assert_whole, make_pair, read_json, segshift

assert small_net
STAGES: list[dict[str, Any]] = [
    {"name": "source_only", "method": "source_only", "steps": 2},
    {"name": "source_control", "method": "source_only", "init": "source_only", "steps": 2},
    {"name": "minent", "method": "minent", "init": "source_only", "steps": 2},
]


def command(pair: Pair, *sets: str, val: bool = True) -> list[str | Path]:
    """`segshift adapt` of three tiny stages."""
    path = pair.root / "settings.json"
    path.write_text(json.dumps({**BASE, "stages": STAGES, "control": "source_control"}), encoding="utf-8")
    given = [argument for assignment in sets for argument in ("--set", assignment)]
    return ["adapt", path, *pair.data(val), "--out", pair.run, "--device", "cpu", *given]


def did(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome
    return outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A finished run that tests copy."""
    pair = make_pair(tmp_path_factory.mktemp("finished"))
    did(segshift(*command(pair)))
    return pair


@pytest.fixture
def pair(finished: Pair, tmp_path: Path) -> Pair:
    """A copy of the data and of the run, which the same command takes for finished."""
    return Pair(Path(shutil.copytree(finished.root, tmp_path / "pair")))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network may be asked for features."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(feature_pictures, "features_at", fail)


def content(pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = read_json(pair.run / "features.json")
    return found


# ---- what a run leaves


def test_a_run_has_its_picture(finished: Pair) -> None:
    known = content(finished)
    assert [stage["name"] for stage in known["stages"]] == ["source_only", "source_control", "minent"]
    assert known["embed"] == "pca"
    assert known["domains"][0] == {"name": "val", "root": str(finished.val), "images": 2, "classes_by": "truth"}
    assert [domain["name"] for domain in known["domains"]] == ["val", "source"]
    assert min(np.bincount(known["domain"])) >= 4 * 10
    for stage in known["stages"]:
        assert stage["class"] == known["stages"][0]["class"], "the same points in every map"
        assert np.bincount(stage["class"]).min() >= 10
        assert all(0 <= value <= 1000 for axis in "xy" for value in stage[axis])
        assert stage["compactness"] == pytest.approx(np.mean(stage["by_class"]))
        assert 0 < stage["explained"] <= 1
        assert stage["gap"] > 0
        assert stage["same_axes"]
    assert_whole(finished.run)
    html = (finished.run / "report.html").read_text()
    assert html.count('<figure class="map">') == 3
    assert "Missing or damaged" not in html


def test_figures_are_those_of_all_cells(finished: Pair) -> None:
    """The budget is larger than the grid here, so that every class has its cells; features by the model alone."""
    known, model = content(finished), api.load(finished.run, "cpu")
    features, labels = [], []
    for index in range(2):
        with Image.open(finished.image("val", index)) as image, Image.open(finished.label("val", index)) as label:
            pixels, ids = np.array(image.convert("RGB")), np.array(label)
        tensor = model.net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
        features.append(tensor.features[0].flatten(1).T.detach().numpy())
        labels.append(at_cells(ids, tuple(tensor.features.shape[-2:])).reshape(-1))
    wanted = compactness(np.concatenate(features), np.concatenate(labels).astype(np.int64), len(NAMES))
    last = known["stages"][-1]
    assert known["domain"].count(0) == len(np.concatenate(labels))
    assert last["compactness"] == pytest.approx(wanted.value, rel=1e-5)
    assert last["nearest"] == pytest.approx(wanted.nearest)
    assert last["by_class"] == pytest.approx(wanted.by_class, rel=1e-5)


def test_the_same_picture_every_time(finished: Pair, pair: Pair) -> None:
    before = (finished.run / "features.json").read_bytes()
    (pair.run / "features.json").unlink()
    did(segshift(*command(pair)))
    after = (pair.run / "features.json").read_bytes()
    assert after.replace(str(pair.root).encode(), b"") == before.replace(str(finished.root).encode(), b"")


def test_without_labels_the_target_by_prediction(finished: Pair, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    shutil.rmtree(pair.val)
    (pair.target / "labels").write_text("labels of the target may not be opened")
    did(segshift(*command(pair, val=False)))
    known = content(pair)
    assert known["domains"][0] == {
        "name": "target", "root": str(pair.target), "images": 3, "classes_by": "prediction",
    }  # fmt: skip
    assert [domain["name"] for domain in known["domains"]] == ["target", "source"]
    assert all(stage["compactness"] is not None for stage in known["stages"]), "else the test says nothing"
    assert "own predictions the classes are" in (pair.run / "report.html").read_text()
    assert "the network itself predicts" in (pair.run / "report.html").read_text()


# ---- kept while it holds


@pytest.mark.usefixtures("never")
def test_the_same_command_draws_nothing_again(pair: Pair) -> None:
    before = (pair.run / "features.json").stat()
    did(segshift(*command(pair)))
    did(segshift("features", pair.run, "--device", "cpu"))
    did(segshift("report", pair.run))
    after = (pair.run / "features.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert '<figure class="map">' in (pair.run / "report.html").read_text()


def changed_label(pair: Pair) -> tuple[str, ...]:
    """A label of another size in bytes."""
    with Image.open(pair.label("val")) as label:
        ids = np.array(label)
    ids[:7] = 255
    Image.fromarray(ids).save(pair.label("val"))
    return ()


def damaged_file(pair: Pair) -> tuple[str, ...]:
    (pair.run / "features.json").write_text('{"fingerprint": ')
    return ()


@pytest.mark.parametrize(
    "change", [lambda _: ("minent.steps=3", "source_control.steps=3"), changed_label, damaged_file],
    ids=["networks", "labels", "damage"],
)  # fmt: skip
def test_drawn_anew_when_it_does_not_hold(pair: Pair, change: Any) -> None:
    before = (pair.run / "features.json").read_bytes()
    sets = change(pair)
    said = did(segshift(*command(pair, *sets)))
    assert "features: " in said.err
    assert len(content(pair)["stages"]) == 3
    if change is not damaged_file:
        assert (pair.run / "features.json").read_bytes() != before


@pytest.mark.usefixtures("never")
def test_no_pictures_no_picture(pair: Pair) -> None:
    """`panels: 0` draws none; one that still holds stays, and one of other networks does not."""
    did(segshift(*command(pair, "panels=0")))
    assert (pair.run / "features.json").exists()
    did(segshift(*command(pair, "panels=0", "minent.steps=3", "source_control.steps=3")))
    assert not (pair.run / "features.json").exists()
    assert '<figure class="map">' not in (pair.run / "report.html").read_text()


def test_what_was_asked_for_stays_asked_for(pair: Pair) -> None:
    did(segshift("features", pair.run, "--stages", "minent, source_only", "--domain", "source", "--device", "cpu"))
    known = content(pair)
    assert [stage["name"] for stage in known["stages"]] == ["source_only", "minent"]
    assert [domain["name"] for domain in known["domains"]] == ["source"]
    did(segshift(*command(pair, "minent.steps=3", "source_control.steps=3")))
    assert [stage["name"] for stage in content(pair)["stages"]] == ["source_only", "minent"]
    assert [domain["name"] for domain in content(pair)["domains"]] == ["source"]
    assert content(pair)["fingerprint"] != known["fingerprint"]


def test_a_stage_that_is_gone_is_not_asked_for(pair: Pair) -> None:
    did(segshift("features", pair.run, "--stages", "source_control,minent", "--device", "cpu"))
    did(segshift(*command(pair), "--no-control"))
    assert [stage["name"] for stage in content(pair)["stages"]] == ["source_only", "minent"]


# ---- the verb


def test_the_verb_says_the_figures(pair: Pair) -> None:
    done = did(segshift("features", pair.run, "--device", "cpu"))
    for stage in content(pair)["stages"]:
        assert f"{stage['name']:<14}  {stage['compactness']:.3f}\n" in done.out
    assert "lower is more compact" in done.out
    assert done.out.endswith(f"report: {pair.run / 'report.html'}\n")


def test_a_source_that_is_gone_is_left_out(finished: Pair, pair: Pair) -> None:
    settings = (pair.run / "run.yaml").read_text()
    assert str(finished.source) in settings
    (pair.run / "run.yaml").write_text(settings.replace(str(finished.source), str(pair.root / "gone")))
    did(segshift("features", pair.run, "--device", "cpu"))
    assert [domain["name"] for domain in content(pair)["domains"]] == ["val"]
    html = (pair.run / "report.html").read_text()
    assert "Rings are cells" not in html
    assert "Missing or damaged" not in html


def test_two_domains_in_one_map(pair: Pair) -> None:
    did(segshift("features", pair.run, "--domain", "val", "--device", "cpu"))
    alone = content(pair)
    assert all(stage["gap"] is None for stage in alone["stages"])
    done = did(segshift("features", pair.run, "--domain", "val,source", "--device", "cpu"))
    assert "minent" in done.out
    known = content(pair)
    assert [(domain["name"], domain["classes_by"]) for domain in known["domains"]] == [
        ("val", "truth"),
        ("source", "truth"),
    ]
    assert set(known["domain"]) == {0, 1}
    assert sorted(known["domain"]) == known["domain"]
    assert all(stage["gap"] > 0 for stage in known["stages"])
    for both, one in zip(known["stages"], alone["stages"], strict=True):
        assert both["compactness"] == one["compactness"], "the first domain is measured"
    assert "domain gap" in (pair.run / "report.html").read_text()


def test_tsne_where_it_is_installed(pair: Pair) -> None:
    pytest.importorskip("openTSNE", reason="THE MAP tsne WAS NOT TRIED: pip install openTSNE")
    did(segshift("features", pair.run, "--stages", "minent", "--device", "cpu"))
    pca = content(pair)
    did(segshift("features", pair.run, "--stages", "minent", "--embed", "tsne", "--device", "cpu"))
    known = content(pair)
    assert known["embed"] == "tsne"
    assert known["stages"][0]["explained"] is None
    assert known["stages"][0]["compactness"] == pca["stages"][-1]["compactness"], (
        "measured in the features, not the map"
    )
    assert known["stages"][0]["x"] != pca["stages"][-1]["x"]
    assert "t-SNE of what" in (pair.run / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "minnet"), "'minnet' is no training stage of this run; did you mean 'minent'?"),
        (("--embed", "tnse"), "did you mean 'tsne'?"),
        (("--domain", "vall"), "no domain 'vall'; did you mean 'val'?"),
        (("--device", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_what_is_not_there_is_named(pair: Pair, arguments: tuple[str, str], message: str) -> None:
    before = (pair.run / "features.json").read_bytes()
    failed = segshift("features", pair.run, *arguments)
    assert failed.code == 2
    assert message in failed.err
    assert (pair.run / "features.json").read_bytes() == before


def test_a_missing_package(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    failed = segshift("features", pair.run, "--embed", "tsne")
    assert failed.code == 2
    assert 'pip install "openTSNE>=1.0" -c constraints.txt' in failed.message
    assert len(failed.message.splitlines()) <= 4


def test_what_is_no_finished_run(pair: Pair, tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "nothing", "has no run.yaml"), (pair.source, "has no run.yaml")):
        failed = segshift("features", folder)
        assert (failed.code, message in failed.err) == (2, True), failed
    shutil.rmtree(pair.run / "03-minent" / "model")
    failed = segshift("features", pair.run)
    assert failed.code == 2
    assert "stage minent" in failed.err
    assert "is not finished" in failed.err


@pytest.mark.parametrize("problem", ["image", "label", "classes"])
def test_what_cannot_be_read_costs_the_picture_and_not_the_run(pair: Pair, problem: str) -> None:
    if problem == "image":
        pair.image("val").write_bytes(b"no picture")
    elif problem == "label":
        pair.label("val").write_bytes(b"no picture")
    else:
        for index in range(2):
            with Image.open(pair.label("val", index)) as label:
                ids = np.full_like(np.array(label), 255)
            Image.fromarray(ids).save(pair.label("val", index))
    done = did(segshift(*command(pair)))
    assert "no feature pictures in the report: " in done.err
    assert not (pair.run / "features.json").exists()
    assert (pair.run / "report.html").read_text().rstrip().endswith("</html>")
    if problem == "classes":
        assert "no class has 10 points on the network's grid in 2 images" in done.err


def test_from_python(pair: Pair) -> None:
    import segshift as package

    drawn = package.features(pair.run, stages=["minent"], domains=["val"], device="cpu")
    assert drawn == content(pair)


# ---- which stages


def stages_of(*stages: dict[str, Any], control: str | None = None) -> tuple[str, ...]:
    return default_stages(validated(RunSettings, {"stages": list(stages), "control": control}, "test"))


def train(name: str, init: str | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "method": "source_only", "steps": 1, "init": init, **more}


def test_the_way_to_the_result_with_its_control() -> None:
    way = [train("a", None), train("b", "a"), train("side", "a"), train("c", "b")]
    assert stages_of(*way) == ("a", "b", "c")
    assert stages_of(*way, control="side") == ("a", "b", "side", "c")
    assert stages_of(*way, control="b") == ("a", "b", "c")


def test_a_long_way_is_shortened() -> None:
    way = [train("a", None), *(train(b, a) for a, b in zip("abcdef", "bcdefg", strict=True))]
    assert stages_of(*way) == ("a", "b", "c", "g")
    assert stages_of(train("a", None), train("x", "a"), *way[1:], control="x") == ("x", "b", "c", "g")


def test_a_stage_that_starts_afresh_comes_after_its_teacher() -> None:
    assert stages_of(train("a", None), train("b", "a"), train("c", None, teacher="b")) == ("a", "b", "c")


def test_the_stages_of_proda() -> None:
    from segshift import recipes

    settings = validated(RunSettings, recipes.read("cpu/proda"), "proda")
    assert default_stages(settings) == ("source_control", "warm_up", "denoise", "distill_2")
    alone = settings.model_copy(update={"control": None})
    assert default_stages(alone) == ("source_only", "warm_up", "denoise", "distill_2")


# ---- places


def test_places_fill_the_square_at_one_scale() -> None:
    random = np.random.default_rng(0)
    places = random.normal(size=(500, 2)) * [30, 3] + [1000, -7]
    found = fitted(places)
    assert found.min() >= 0
    assert found.max() <= 1000
    assert np.ptp(found[:, 0]) > 900
    ratio = np.std(found[:, 1]) / np.std(found[:, 0])
    assert ratio == pytest.approx(np.std(places[:, 1]) / np.std(places[:, 0]), rel=0.05)
    assert fitted(np.zeros((3, 2))).tolist() == [[500, 500]] * 3


def test_one_far_point_does_not_shrink_the_others() -> None:
    places = np.random.default_rng(0).normal(size=(1000, 2))
    places[7] = [1e6, 0]
    found = fitted(places)
    assert found[7].tolist()[0] == 1000
    assert np.ptp(np.delete(found, 7, axis=0)[:, 0]) > 800
