"""weak.jsonl: what is written is read back; torn and malformed lines; writers side by side, and killed ones."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weak_files import label

from segshift.errors import UserError
from segshift.weak.label import decode, encode, now
from segshift.weak.store import Point, WeakLabel, WeakStore
from workbench import environment

LINE = '{"image": "a.jpg", "tags": ["road", 1], "points": [[209, 341, "road"], [3.5, 0, 2]]}\n'

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda s: s.strip() == s)
parts = names.filter(lambda s: s not in (".", "..") and not set(s) & set("/\\:"))
coordinates = st.floats(-0.5, 5000, allow_nan=False) | st.integers(0, 5000)
labels = st.builds(
    WeakLabel,
    image=st.lists(parts, min_size=1, max_size=3).map("/".join),
    tags=st.none() | st.lists(names, unique=True).map(tuple),
    complete=st.just(True),
    points=st.lists(st.builds(Point, coordinates, coordinates, names), unique=True).map(tuple),
    size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    who=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    when=st.none() | st.just("2025-06-01T12:00:00.000Z"),
)


@given(labels)
def test_a_line_says_the_label(made: WeakLabel) -> None:
    assert "\n" not in encode(made)
    assert decode(encode(made), "") == made
    if made.tags is not None:
        assert decode(encode(replace(made, complete=False)), "").complete is False


def test_reads_the_documented_form(tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    path.write_text("\ufeff" + LINE + "\n \r\n")
    (read,) = WeakStore(path).read().values()
    assert read == WeakLabel("a.jpg", ("road", "1"), True, (Point(209, 341, "road"), Point(3.5, 0, "2")))
    assert read.present == ("road", "1", "2")
    assert read.says_absent


def test_whole_coordinates_are_pixel_centres() -> None:
    assert (Point(0, 0, "x").column, Point(0.49, 0, "x").column, Point(0.5, 0, "x").column) == (0, 0, 1)
    assert [Point(x, 0, "x").inside((4, 1)) for x in (-0.51, -0.5, 3.49, 3.5)] == [False, True, True, False]


def test_last_line_of_an_image_holds(tmp_path: Path) -> None:
    store = WeakStore(tmp_path / "deep" / "weak.jsonl")
    for made in (label("a.jpg"), label("b.jpg"), label("a.jpg", None, (1, 2, "sky")), WeakLabel("b.jpg")):
        store.append(made)
    assert len(store.lines()) == 4
    assert store.read() == {"a.jpg": label("a.jpg", None, (1, 2, "sky")), "b.jpg": WeakLabel("b.jpg")}
    assert store.read()["b.jpg"].empty
    assert not store.read()["a.jpg"].says_absent


def test_stamp() -> None:
    stamped = label().stamped("me")
    assert stamped.who == "me"
    assert stamped.when is not None
    assert stamped.when <= now()
    assert decode(encode(stamped), "") == stamped


# ---- torn and malformed


@pytest.mark.parametrize("cut", [1, 5, 30, len(LINE) - 2])
def test_a_torn_last_line_is_dropped_and_not_grown_onto(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(label("first.jpg"))
    with open(store.path, "a") as file:
        file.write(LINE[:cut])
    with caplog.at_level(logging.WARNING, "segshift"):
        assert list(store.read()) == ["first.jpg"]
        assert "cut off" in caplog.text
        store.append(label("last.jpg"))
    assert list(store.read()) == ["first.jpg", "last.jpg"]
    assert store.path.read_bytes().endswith(b"\n")
    caplog.clear()
    store.read()
    assert not caplog.text


@pytest.mark.parametrize("tail", [b"\0" * 40, '{"image": "é'.encode()[:-1], b'{"image": "a.jpg", "tags": [1'])
def test_what_a_crash_may_leave_is_torn(tmp_path: Path, tail: bytes) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(label("first.jpg"))
    with open(store.path, "ab") as file:
        file.write(tail)
    assert list(store.read()) == ["first.jpg"]
    store.extend([label("last.jpg")])
    assert list(store.read()) == ["first.jpg", "last.jpg"]


def test_a_whole_last_line_without_newline_is_used(tmp_path: Path) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.path.write_text(LINE.rstrip("\n"))
    assert list(store.read()) == ["a.jpg"]
    store.append(label("b.jpg"))
    assert list(store.read()) == ["a.jpg", "b.jpg"]


MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("road", "is not JSON"),
    "a list": ("[1, 2]", "holds a list"),
    "unknown key": ('{"image": "a.jpg", "tgas": []}', "did you mean 'tags'?"),
    "a key twice": ('{"image": "a.jpg", "image": "b.jpg"}', "twice"),
    "no image": ('{"tags": []}', "no image"),
    "image a number": ('{"image": 3}', "a number"),
    "empty image": ('{"image": ""}', "a path below"),
    "absolute image": ('{"image": "/etc/passwd"}', "a path below"),
    "image out of the folder": ('{"image": "../a.jpg"}', "a path below"),
    "a drive": ('{"image": "C:/a.jpg"}', "a path below"),
    "backslashes": ('{"image": "drive\\\\a.jpg"}', "a path below"),
    "tags a text": ('{"image": "a", "tags": "road"}', "tags is a text"),
    "a tag is null": ('{"image": "a", "tags": [null]}', "class of a tag"),
    "a tag is true": ('{"image": "a", "tags": [true]}', "class of a tag"),
    "a tag is empty": ('{"image": "a", "tags": [" "]}', "class of a tag"),
    "a tag is 255": ('{"image": "a", "tags": [255]}', "0 to 254"),
    "complete a text": ('{"image": "a", "tags": [], "complete": "no"}', "complete"),
    "points an object": ('{"image": "a", "points": {}}', "points is an object"),
    "a point of two": ('{"image": "a", "points": [[1, 2]]}', "[x, y, class]"),
    "a point of texts": ('{"image": "a", "points": [["1", "2", "road"]]}', "pixels"),
    "a point at NaN": ('{"image": "a", "points": [[NaN, 2, "road"]]}', "NaN"),
    "a point at infinity": ('{"image": "a", "points": [[1e999, 2, "road"]]}', "pixels"),
    "a point far away": ('{"image": "a", "points": [[1' + "0" * 400 + ', 2, "road"]]}', "pixels"),
    "a point before the image": ('{"image": "a", "points": [[-1, 2, "road"]]}', "pixels"),
    "size of one": ('{"image": "a", "size": [3]}', "[width, height]"),
    "size of nothing": ('{"image": "a", "size": [0, 3]}', "[width, height]"),
    "who a number": ('{"image": "a", "who": 3}', "who is a number"),
    "when no date": ('{"image": "a", "when": "yesterday"}', "ISO 8601"),
    "deep nesting": ("[" * 100_000, "is not JSON"),
    "not UTF-8": (b'{"image": "\xff"}', "UTF-8"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_lines_are_refused(tmp_path: Path, case: str) -> None:
    text, said = MALFORMED[case]
    path = tmp_path / "weak.jsonl"
    path.write_bytes(LINE.encode() + (text if isinstance(text, bytes) else text.encode()) + b"\n" + LINE.encode())
    with pytest.raises(UserError) as told:
        WeakStore(path).read()
    assert f"{path}, line 2" in told.value.found
    assert said in str(told.value)
    assert told.value.remedy


def test_a_malformed_last_line_is_no_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    path.write_text(LINE + '{"image": "a.jpg", "tgas": []}')
    with pytest.raises(UserError, match="line 2"):
        WeakStore(path).read()


@pytest.mark.parametrize("content", ["1.2.3", '"road"', "[1]", '{"classes": ["road"]}', LINE + "road"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    """Without a newline at its end it must not pass for what a crash left."""
    store = WeakStore(tmp_path / "version.txt")
    store.path.write_text(content)
    for use in (store.read, lambda: store.append(label()), lambda: store.extend([label()])):
        with pytest.raises(UserError, match=f"line {content.count(chr(10)) + 1}"):
            use()
        assert store.path.read_text() == content


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(label())
    before = store.path.read_bytes()
    for wrong in (label("../a.jpg"), label("a.jpg", None, (float("nan"), 1, "road")), WeakLabel("a", when="never")):
        with pytest.raises(UserError):
            store.append(wrong)
        with pytest.raises(UserError):
            store.extend([label("b.jpg"), wrong])
    assert store.path.read_bytes() == before


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not exist"):
        WeakStore(tmp_path / "none.jsonl").read()
    with pytest.raises(UserError, match="no file"):
        WeakStore(tmp_path).read()
    with pytest.raises(UserError, match="cannot write"):
        WeakStore(tmp_path).append(label())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        WeakStore(tmp_path / "file" / "weak.jsonl").append(label())


@pytest.mark.parametrize("how", ["fails", "short"])
def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(label("a.jpg"))
    before, write = store.path.read_bytes(), os.write

    def full(file: int, data: bytes) -> int:
        if how == "fails":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="disk is full"):
        store.append(label("b.jpg"))
    assert store.path.read_bytes() == before


# ---- several processes

APPEND = """
import sys
from segshift.weak.store import *
store, name = WeakStore(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for i in range(int(sys.argv[3])):
    one = WeakLabel(f"{name}/{i}.jpg", ("road",) * 1, points=tuple(Point(j, i, "x" * 60) for j in range(20)))
    store.extend([one]) if name == "c" and i % 20 == 0 else store.append(one)
    print(i, flush=True)
"""


def appender(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", APPEND, str(path), name, str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    """Two append; a third also replaces the file under their hands, as an import does."""
    path = tmp_path / "weak.jsonl"
    writers = [appender(path, name, 200) for name in "abc"]
    for writer in writers:
        started(writer)
    for writer in writers:
        assert len(writer.communicate()[0].splitlines()) == 200
        assert writer.returncode == 0
    lines = [decode(line, "") for line in path.read_text().splitlines()]
    for name in "abc":
        own = [line.image for line in lines if line.image.startswith(name + "/")]
        assert own == [f"{name}/{i}.jpg" for i in range(200)]
    assert len(lines) == 600
    assert [entry.name for entry in tmp_path.iterdir()] == ["weak.jsonl"]


def test_killed_writers_lose_nothing_that_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    accepted: list[str] = []
    for round_, wait in enumerate((0.0, 0.003, 0.01, 0.02, 0.05)):
        writer = appender(path, f"r{round_}", 100_000)
        started(writer)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        done = [first.strip(), *(writer.communicate()[0] or "").splitlines()]
        accepted += [f"r{round_}/{i}.jpg" for i in done if i]
    read = WeakStore(path).read()
    assert len(accepted) >= 5
    assert set(accepted) <= set(read)
    # At most one more in each round: written, but not yet told.
    assert len(read) <= len(accepted) + 5
    for line in path.read_text().splitlines():
        assert json.loads(line)["image"] in read


def test_the_store_brings_nothing_heavy() -> None:
    code = "import sys, segshift.weak.store; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"torch", "numpy", "PIL", "pydantic", "yaml"} & set(done.stdout.split())


def test_extend_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WeakStore(tmp_path / "weak.jsonl")
    store.append(label("a.jpg"))
    before = store.path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="cannot write"):
            store.extend([label("b.jpg"), label("c.jpg")])
    assert store.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weak.jsonl"]
    store.path.chmod(0o600)
    (tmp_path / "link.jsonl").symlink_to(store.path)
    WeakStore(tmp_path / "link.jsonl").extend([label("b.jpg"), label("c.jpg")])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert list(store.read()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert store.path.stat().st_mode & 0o777 == 0o600
    store.extend([])
    assert len(store.lines()) == 3
