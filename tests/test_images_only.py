"""A target needs images only: with all its labels unreadable all but `evaluate` works, and nothing reads one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workbench import Pair, assert_told, assert_whole, make_pair, read_json, segshift


class _Watch:
    """Sees every file that Python opens and every folder that it lists (an audit hook, which cannot be taken off)."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.touched: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if self.folder is None or event not in ("open", "os.listdir", "os.scandir") or not args:
            return
        path = args[0]
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if os.path.abspath(text).startswith(self.folder):
            self.touched.append(f"{event} {text}")
            raise PermissionError(13, "a label of the target was touched", text)

    @contextmanager
    def guard(self, folder: Path) -> Iterator[None]:
        """Whatever is opened or listed in `folder` raises, and is remembered."""
        self.folder, self.touched = str(folder.absolute()), []
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="session")
def watch() -> _Watch:
    return _Watch()


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x00garbage\xff")


def _pipe(path: Path) -> None:
    os.mkfifo(path)  # opening it would wait for ever


def _dead_link(path: Path) -> None:
    path.symlink_to("nowhere")


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "garbage": _garbage,
    "folders": lambda path: path.mkdir(),
    "pipes": _pipe,
    "dead links": _dead_link,
}


def _unreadable(pair: Pair, domain: str, kind: str) -> Path:
    """Put something unreadable in the place of every label of a domain; the labels' folder."""
    folder = pair.root / domain / "labels"
    folder.mkdir(exist_ok=True)
    for image in sorted((pair.root / domain / "images").iterdir()):
        (folder / image.name).unlink(missing_ok=True)
        UNREADABLE[kind](folder / image.name)
    return folder


def test_the_watch_sees(tmp_path: Path, watch: _Watch) -> None:
    pair = make_pair(tmp_path)
    with watch.guard(pair.val / "labels"):
        assert segshift("check", *pair.data(), "--out", pair.root / "check").code == 0
        assert not watch.touched
        with pytest.raises(PermissionError):
            os.listdir(pair.val / "labels")
        with pytest.raises(PermissionError):
            pair.label("val").read_bytes()
    assert len(watch.touched) == 2


@pytest.mark.parametrize("kind", UNREADABLE)
def test_all_but_evaluate_works(tmp_path: Path, watch: _Watch, kind: str) -> None:
    pair = make_pair(tmp_path)
    labels = _unreadable(pair, "target", kind)
    with watch.guard(labels):
        checked = segshift("check", *pair.data(), "--out", pair.root / "check")
        assert checked.code == 0, checked
        assert "no labels looked at" in checked.out
        adapted = segshift(*pair.adapt())
        assert adapted.code == 0, adapted
        assert "No verdict" in adapted.out
        # Also where the folder of labels lies inside the one to predict on.
        for number, folder in enumerate((pair.target / "images", pair.target)):
            out = pair.root / f"predictions-{number}"
            predicted = segshift("predict", pair.run, folder, "--out", out)
            assert predicted.code == 0, predicted
            assert len(list((out / "ids").rglob("*.png"))) == 3
        assert segshift("report", pair.run).code == 0
    assert not watch.touched
    assert_whole(pair.run)
    assert_told(segshift("evaluate", pair.run, "--domain", pair.target), "target", "to do")


def test_a_choice_of_a_model_touches_no_label_of_the_target(tmp_path: Path, watch: _Watch) -> None:
    pair = make_pair(tmp_path)
    assert segshift(*pair.adapt(val=True)).code == 0
    for number, folder in enumerate((_unreadable(pair, "target", "garbage"), pair.val)):
        out = pair.root / f"chosen-{number}"
        with watch.guard(folder):
            done = segshift("select", pair.run, "--stages", "all", "--out", out, "--device", "cpu")
        assert done.code == 0, done
        assert not watch.touched
        figures = read_json(out / "select.json")["candidates"][-1]["figures"]
        assert figures["shift_source"] is not None, "labels of the source are counted"


def test_no_process_that_reads_ahead_touches_a_label(tmp_path: Path, watch: _Watch) -> None:
    pair = make_pair(tmp_path)
    with watch.guard(_unreadable(pair, "target", "garbage")):
        # The hook goes along into forked workers and would end the run there.
        done = segshift(*pair.adapt("workers=1", "cache=true"))
        assert done.code == 0, done
    assert not watch.touched


def test_a_label_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    (pair.target / "labels").symlink_to("labels")  # a link to itself
    assert segshift("check", *pair.data(), "--out", pair.root / "check").code == 0
    assert segshift(*pair.adapt()).code == 0
    assert segshift("predict", pair.run, pair.target / "images", "--out", pair.root / "out").code == 0


@pytest.mark.parametrize("kind", ["garbage", "pipes"])
def test_val_with_unreadable_labels_costs_the_evaluation_only(tmp_path: Path, kind: str) -> None:
    pair = make_pair(tmp_path)
    _unreadable(pair, "val", kind)
    checked = segshift("check", *pair.data(val=True), "--out", pair.root / "check")
    assert checked.code == 0, checked
    assert "evaluation will fail" in checked.out
    assert "val/labels/000.png" in checked.out
    done = segshift(*pair.adapt("validate_every=1", val=True))
    assert done.code == 0, done
    assert "not evaluated" in done.err
    assert "val/labels/000.png" in done.err
    assert "no point for the mIoU curve" in done.err
    assert "No verdict" in done.out
    assert not (pair.run / "metrics.json").exists()
    assert (pair.run / "report.html").exists()
    assert_whole(pair.run)
    assert_told(segshift("evaluate", pair.run), "val/labels/000.png", "to do")


def test_val_mended_later_is_evaluated_without_training_again(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    whole = {path: path.read_bytes() for path in (pair.val / "labels").iterdir()}
    _unreadable(pair, "val", "garbage")
    assert segshift(*pair.adapt(val=True)).code == 0
    for path, data in whole.items():
        path.write_bytes(data)
    done = segshift(*pair.adapt(val=True))
    assert done.code == 0, done
    assert done.err.count("finished before, skipped") == 3
    assert read_json(pair.run / "metrics.json")["images"] == 2
