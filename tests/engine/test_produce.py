"""Passes that are interrupted and labels that are damaged: the same bytes in the end, whatever happened."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_makers import NAMES, ODD, SIZE, contents, domain_at, labeller, read, write_images

from segshift.artefacts import pseudo_labels
from segshift.artefacts.store import SEAL, damaged, sha256
from segshift.data.domains import Domain
from segshift.data.images import load_resized
from segshift.engine import labelling, produce
from segshift.engine.labelling import Labeller, clear_damaged, make_pseudo_labels
from segshift.errors import Interrupted, UserError

COUNT = len(NAMES)
SETTINGS: dict[str, Any] = {
    "portion": 0.3, "soft_alpha": 0.25, "split": {"value": 0.5}, "voting": {"window": 5, "alpha": 0.5, "passes": 2}
}  # fmt: skip


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return domain_at(write_images(tmp_path_factory.mktemp("target")))


@pytest.fixture(autouse=True)
def save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "SAVE_EVERY", 2)


# ---- a pass


class Sums:
    """A task that remembers the sum of each image's pixels, and which images it saw in this go."""

    def __init__(self, count: int = COUNT) -> None:
        self.total = np.zeros(1, np.int64)
        self.each = np.zeros(count, np.int64)
        self.saw: list[int] = []

    def go(
        self, domain: Domain, state: Path, stop: Callable[[int], None] = lambda index: None, **how: Any
    ) -> list[int]:
        """Images gone through."""

        def task(index: int, pixels: np.ndarray) -> None:
            stop(index)
            self.saw.append(index)
            self.total += int(pixels.sum())
            self.each[index] = int(pixels.sum())

        self.saw.clear()
        memory = {"total": self.total, "each": self.each}
        produce.produce(domain, SIZE, task, memory, state, title="sums", **{"workers": 0, **how})
        return list(self.saw)


class Stop(Exception):
    """The process dies here."""


def stop_at(place: int) -> Callable[[int], None]:
    def stop(index: int) -> None:
        if index == place:
            raise Stop

    return stop


def wanted_sums(domain: Domain) -> list[int]:
    return [int(load_resized(item.image, SIZE)[0].sum()) for item in domain.items]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_image_once_and_in_order(tmp_path: Path, domain: Domain, workers: int) -> None:
    sums = Sums()
    assert sums.go(domain, tmp_path / "x.npz", workers=workers) == list(range(COUNT))
    assert sums.each.tolist() == wanted_sums(domain)
    assert sums.total.tolist() == [sum(wanted_sums(domain))]


@pytest.mark.parametrize("place", range(COUNT))
def test_after_a_death_at_any_image_it_goes_on_from_what_was_saved(tmp_path: Path, domain: Domain, place: int) -> None:
    with pytest.raises(Stop):
        Sums().go(domain, tmp_path / "x.npz", stop_at(place))
    later = Sums()
    assert later.go(domain, tmp_path / "x.npz") == list(range(place - place % 2, COUNT)), (
        "saved after every other image"
    )
    assert later.each.tolist() == wanted_sums(domain)
    assert later.total.tolist() == [sum(wanted_sums(domain))], "an image that is gone through twice counts once"
    assert Sums().go(domain, tmp_path / "x.npz") == []


def test_a_signal_ends_it_after_the_image_and_nothing_is_done_twice(tmp_path: Path, domain: Domain) -> None:
    done: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        sums, before = Sums(), len(done)

        def stop(index: int, kind: signal.Signals = kind, before: int = before) -> None:
            if index == before:
                os.kill(os.getpid(), kind)

        with pytest.raises(Interrupted, match=f"image {before + 1} of {COUNT}; run the same command to go on"):
            sums.go(domain, tmp_path / "x.npz", stop, workers=1)
        done += sums.saw
    sums = Sums()
    done += sums.go(domain, tmp_path / "x.npz")
    assert done == list(range(COUNT))
    assert sums.total.tolist() == [sum(wanted_sums(domain))]


def test_shards_share_the_images(tmp_path: Path, domain: Domain) -> None:
    parts = [Sums(), Sums()]
    assert parts[0].go(domain, tmp_path / "0.npz", shard=(0, 2)) == [0, 2, 4]
    with pytest.raises(Stop):
        parts[1].go(domain, tmp_path / "1.npz", stop_at(5), shard=(1, 2))
    parts[1] = Sums()
    assert parts[1].go(domain, tmp_path / "1.npz", shard=(1, 2)) == [5]
    assert (parts[0].each + parts[1].each).tolist() == wanted_sums(domain)


@pytest.mark.parametrize("damage", ["cut", "zeros", "text", "nothing", "other names", "other sizes", "other types"])
def test_a_state_that_does_not_fit_is_as_good_as_none(tmp_path: Path, domain: Domain, damage: str) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(Stop):
        Sums(COUNT + (damage == "other sizes")).go(domain, path, stop_at(3))
    whole = path.read_bytes()
    content = {"cut": whole[:-30], "zeros": whole[:99].ljust(len(whole), b"\0"), "text": b"hello", "nothing": b""}
    path.write_bytes(content.get(damage, whole))
    if damage == "other names":
        np.savez(path, done=np.array(3), sums=np.zeros(3))
    if damage == "other types":
        np.savez(path, done=np.array(3), total=np.zeros(1, np.int32), each=np.zeros(COUNT, np.int64))
    sums = Sums()
    assert sums.go(domain, path) == list(range(COUNT))
    assert sums.each.tolist() == wanted_sums(domain)


def test_an_image_that_breaks_is_named_and_what_was_done_is_kept(tmp_path: Path) -> None:
    own = domain_at(write_images(tmp_path / "data"))
    path = own.items[3].image
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"c\.png"):
        Sums().go(own, tmp_path / "x.npz", workers=2)
    path.write_bytes(whole)
    assert Sums().go(own, tmp_path / "x.npz") == [2, 3, 4, 5]


# ---- labels


def make(folder: Path, domain: Domain, **changes: Any) -> Path:
    make_pseudo_labels(labeller(**{**SETTINGS, **changes}), domain, folder, workers=0)
    return folder


@pytest.fixture(scope="module")
def finished(domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that nothing disturbed."""
    return make(tmp_path_factory.mktemp("whole") / "labels", domain)


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, bytes]:
    """Their files."""
    return contents(finished)


def test_what_a_finished_artefact_holds(whole: dict[str, bytes], domain: Domain, tmp_path: Path) -> None:
    parts = {"labels": "png", "passes": "png", "full": "png", "soft": "npz"}
    names = {f"{part}/{name}.{end}" for part, end in parts.items() for name in NAMES}
    assert set(whole) == names | {"thresholds.json", "statistics.json", SEAL}
    folder = make(tmp_path / "again", domain)
    sums = read(folder / SEAL)
    assert sums["kind"] == "pseudo_labels"
    assert sums["files"] == {name: sha256(folder / name) for name in sorted(set(whole) - {SEAL})}
    assert f"labels/{ODD}.png" in sums["files"]
    assert contents(folder) == whole
    assert damaged(folder) == []


def mortal(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Labellers die at their calls-th look at an image, counted from 0."""
    original, seen = Labeller.probabilities, 0

    def probabilities(self: Labeller, pixels: np.ndarray) -> Any:
        nonlocal seen
        seen += 1
        if seen > calls:
            raise Stop
        return original(self, pixels)

    monkeypatch.setattr(Labeller, "probabilities", probabilities)


@pytest.mark.parametrize("place", range(2 * COUNT))
def test_interrupted_at_any_image_and_resumed(
    tmp_path: Path, domain: Domain, whole: dict[str, bytes], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        mortal(patch, place)
        with pytest.raises(Stop):
            make(tmp_path / "x", domain)
    left = contents(tmp_path / "x")
    assert SEAL not in left
    assert all(data == whole[name] for name, data in left.items() if not name.endswith(".state.npz")), "files are whole"
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "write_ids", written := Recorder(pseudo_labels.write_ids))
        make(tmp_path / "x", domain)
    assert contents(tmp_path / "x") == whole
    done = max(0, place - COUNT)
    assert len(written.calls) == 2 * (COUNT - done + done % 2), "labels and full labels of those not saved yet"


class Recorder:
    """A function, and the first arguments that it was called with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, list[Path]()

    def __call__(self, path: Path, *args: Any) -> Any:
        self.calls.append(path)
        return self.function(path, *args)


def test_the_seal_is_written_last_and_then_the_states_go(
    tmp_path: Path, domain: Domain, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, renamed = os.replace, list[str]()

    def replace(source: Path, target: Path) -> None:
        renamed.append(str(Path(target).relative_to(tmp_path / "x")))
        if renamed[-1] == SEAL:
            everything = set(contents(tmp_path / "x")) - {str(Path(source).relative_to(tmp_path / "x"))}
            assert everything == set(whole) - {SEAL} | set(labelling.STATES)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    make(tmp_path / "x", domain)
    assert renamed[-1] == SEAL
    assert renamed.index("thresholds.json") < renamed.index("labels/a/000.png") < renamed.index("statistics.json")
    assert contents(tmp_path / "x") == whole
    renamed.clear()
    make(tmp_path / "x", domain)
    assert renamed == [], "a finished artefact is left as it is"


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (f"labels/{ODD}.png", "deleted"), (f"labels/{ODD}.png", "flipped"), ("labels/dim.png", "emptied"),
        ("passes/c.png", "flipped"), ("full/c.png", "deleted"), ("soft/dim.npz", "flipped"),
        ("thresholds.json", "flipped"), ("statistics.json", "emptied"), (SEAL, "deleted"), (SEAL, "flipped"),
    ],
)  # fmt: skip
def test_damage_to_a_finished_artefact_makes_it_anew(
    tmp_path: Path, domain: Domain, finished: Path, whole: dict[str, bytes], name: str, harm: str
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "x"))
    (folder / "quality.json").write_text("{}")
    if harm == "deleted":
        (folder / name).unlink()
    else:
        data = bytearray(whole[name])
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data if harm == "flipped" else b"")
    files = damaged(folder)
    assert files == [name] or (name == SEAL and len(files) == 1)
    make(folder, domain)
    left = contents(folder)
    if (name, harm) != (SEAL, "deleted"):
        assert "quality.json" not in left, "figures of other labels are gone"
    assert {key: data for key, data in left.items() if key != "quality.json"} == whole
    assert damaged(folder) == []


def test_killed_while_it_removes_a_damaged_artefact(
    tmp_path: Path, domain: Domain, finished: Path, whole: dict[str, bytes]
) -> None:
    """A wrong threshold must not survive in an artefact that is no longer known to be damaged."""
    moment, steps, over = 0, 0, False

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps > moment:
            raise Stop

    while not over:
        folder = Path(shutil.copytree(finished, tmp_path / str(moment)))
        (folder / labelling.STATES[1]).write_text("left behind")
        text = (folder / "thresholds.json").read_text()
        (folder / "thresholds.json").write_text(text.replace("0.", "0.0"))
        steps = 0
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((Path, "unlink"), (shutil, "rmtree")):
                patch.setattr(owner, name, counting(getattr(owner, name), count))
            try:
                clear_damaged(folder)
                over = True
            except Stop:
                moment += 1
        # Either it is known to be damaged or nothing is left of it.
        assert damaged(folder) != [] if not over else contents(folder) == {}
        assert (folder / SEAL).exists() != over
    assert moment > 6
    make(folder, domain)
    assert contents(folder) == whole


def counting(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        count()
        return function(*args, **options)

    return counted


def test_killed_between_the_seal_and_the_end_and_damaged_then(
    tmp_path: Path, domain: Domain, whole: dict[str, bytes]
) -> None:
    """States that say that all is done must not outlive the files that they speak of."""
    folder, original = tmp_path / "x", Path.unlink
    with pytest.MonkeyPatch.context() as patch:

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.name.endswith(".state.npz"):
                raise Stop
            original(path, missing_ok)

        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Stop):
            make(folder, domain)
    assert damaged(folder) == []
    assert (folder / labelling.STATES[1]).exists()
    shutil.copytree(folder, tmp_path / "y")
    make(folder, domain)
    assert contents(folder) == whole
    (tmp_path / "y" / "labels" / "c.png").unlink()
    make(tmp_path / "y", domain)
    assert contents(tmp_path / "y") == whole


@pytest.mark.parametrize("name", ["labels/a/000.png", "soft/a/001.npz", "full"])
def test_a_file_removed_from_an_unfinished_artefact_is_written_again(
    tmp_path: Path, domain: Domain, whole: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        mortal(patch, 2 * COUNT - 1)
        with pytest.raises(Stop):
            make(tmp_path / "x", domain)
    path = tmp_path / "x" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(tmp_path / "x", domain)
    assert contents(tmp_path / "x") == whole


def test_what_else_lies_in_the_folder_is_not_sealed(tmp_path: Path, domain: Domain, whole: dict[str, bytes]) -> None:
    left = tmp_path / "x" / "labels" / ".000.1.tmp.png"
    left.parent.mkdir(parents=True)
    left.write_text("half a label, of a process that was killed")
    make(tmp_path / "x", domain)
    assert contents(tmp_path / "x")[SEAL] == whole[SEAL]


def test_an_image_that_cannot_be_read_stops_the_stage_until_it_is_mended(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    own = domain_at(write_images(tmp_path / "data"))
    path = own.items[4].image
    data = path.read_bytes()
    path.write_bytes(data[:40])
    with pytest.raises(UserError, match=r"d/e/5\.png"):
        make(tmp_path / "x", own)
    assert not (tmp_path / "x" / SEAL).exists()
    path.write_bytes(data)
    make(tmp_path / "x", own)
    assert contents(tmp_path / "x") == whole
