"""Labels while they are made: operations, what is read back, other programs that write to the same file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from annotate_site import CLASSES, lines, make_site, name_of
from hypothesis import given
from hypothesis import strategies as st

from segshift.annotate.beside import Beside
from segshift.annotate.folder import Folder, open_folder
from segshift.annotate.operations import Action, Operation, SetComplete, SetPoint, SetSuggestion, SetTag, State, apply
from segshift.annotate.operations import state_of as state_of_label
from segshift.annotate.work import NotSaved, Stale, Work
from segshift.data.classes import make_classes
from segshift.data.domains import Item
from segshift.errors import UserError
from segshift.weak.label import decode, encode
from segshift.weak.store import Point, WeakLabel, WeakStore

NAMES = ("road", "sky", "car")
SIZE = (8, 6)

names = st.sampled_from(NAMES)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(SetTag, kind=st.just("tag"), name=names, present=st.booleans()),
    st.builds(SetComplete, kind=st.just("complete"), value=st.booleans()),
    st.builds(SetSuggestion, kind=st.just("suggestion"), name=names, dismissed=st.booleans()),
    # One class a column: two at one pixel are refused.
    st.builds(
        lambda name, y, present: SetPoint(kind="point", name=name, x=float(NAMES.index(name)), y=y, present=present),
        names, st.integers(0, SIZE[1] - 1).map(float), st.booleans(),
    ),
)  # fmt: skip


@given(st.lists(operations, max_size=12), operations)
def test_operations_can_be_sent_twice(ops: Sequence[Operation], last: Operation) -> None:
    once = apply(State(), [*ops, last], NAMES, SIZE)
    assert apply(once, [last], NAMES, SIZE) == once
    assert {point.name for point in once.points} <= set(once.tags)
    assert list(once.tags) == [name for name in NAMES if name in once.tags]
    assert not set(once.tags) & set(once.dismissed) or isinstance(last, SetSuggestion) or ops


@given(st.lists(operations, max_size=12))
def test_what_is_saved_is_read_back(ops: Sequence[Operation]) -> None:
    """Also its revision, by which a page that was open over a new start of the server goes on."""
    state = apply(State(), ops, NAMES, SIZE)
    label = decode(encode(state.label("a.png", SIZE)), "here")
    again = state_of_label(label, state.dismissed, NAMES)
    assert again == state
    assert again.revision == state.revision
    assert state.label("a.png", SIZE).empty == (state.progress == 0)


@given(st.lists(operations, max_size=6), operations)
def test_another_state_has_another_revision(ops: Sequence[Operation], last: Operation) -> None:
    before = apply(State(), ops, NAMES, SIZE)
    after = apply(before, [last], NAMES, SIZE)
    assert (after == before) == (after.revision == before.revision)


def test_points_only_are_no_complete_tags() -> None:
    """What a CSV of points says; the tags that follow from them are not all that may be there."""
    state = state_of_label(WeakLabel("a.png", None, True, (Point(1, 2, "sky"),)), (), NAMES)
    assert (state.tags, state.complete, state.progress) == (("sky",), False, 1)


# ---- with files


def opened(root: Path, who: str | None = None) -> tuple[Work, Beside]:
    beside = Beside(root / "weak.jsonl")
    folder = open_folder(root / "images")
    return Work(folder, make_classes(CLASSES), WeakStore(root / "weak.jsonl"), beside, who), beside


def act(work: Work, image: str, *ops: Operation, base: str | None = None) -> State:
    return work.act(Action(image=image, base=base or work.state(image).revision, ops=list(ops)))


def tag(name: str, present: bool = True) -> SetTag:
    return SetTag(kind="tag", name=name, present=present)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_site(tmp_path, 3).root


def write(root: Path, *labels: WeakLabel) -> None:
    store = WeakStore(root / "weak.jsonl")
    for label in labels:
        store.append(label)


def test_it_goes_on_where_it_was(root: Path) -> None:
    work, beside = opened(root, who="Ann")
    after = act(work, "00.png", tag("sky"), SetSuggestion(kind="suggestion", name="road", dismissed=True))
    stamp = work.progress().stamp
    beside.close()
    again, beside = opened(root)
    assert again.state("00.png") == after
    assert again.done() == {"00.png": 1}
    assert again.progress().stamp != stamp
    beside.close()
    assert [line.get("who") for line in lines(root / "weak.jsonl")] == ["Ann"]


def test_a_file_by_hand_is_read(root: Path) -> None:
    """The format of the example data: no `complete`, no size; and a class spelt otherwise."""
    line = {"image": "00.png", "tags": ["Sky", "road"], "points": [[20, 30, "road"]]}
    (root / "weak.jsonl").write_text(json.dumps(line) + "\n")
    work, beside = opened(root)
    state = work.state("00.png")
    assert (state.tags, state.complete, state.points) == (("road", "sky"), True, (Point(20, 30, "road"),))
    assert work.done() == {"00.png": 2}
    beside.close()


def test_another_program_adds_labels_meanwhile(root: Path) -> None:
    work, beside = opened(root)
    base = act(work, "00.png", tag("sky")).revision
    stamp = work.progress().stamp
    write(root, WeakLabel("00.png", ("sky", "road"), False), WeakLabel("01.jpg", ("pole",)))
    assert work.progress().stamp != stamp
    assert work.done() == {"00.png": 1, "01.jpg": 2}
    with pytest.raises(Stale):
        act(work, "00.png", tag("sign"), base=base)
    assert act(work, "00.png", tag("sign")).tags == ("road", "sign", "sky")
    assert WeakStore(root / "weak.jsonl").read()["00.png"].tags == ("road", "sign", "sky")
    beside.close()


def test_a_label_keeps_the_path_that_the_file_has_for_its_image(root: Path) -> None:
    """Under a second path the image would be labelled twice, which training refuses."""
    write(root, WeakLabel("images/00.png", ("sky",)), WeakLabel("01", ("road",)))
    work, beside = opened(root)
    act(work, "00.png", tag("pole"))
    act(work, "01.jpg", tag("pole"))
    assert set(WeakStore(root / "weak.jsonl").read()) == {"images/00.png", "01"}
    beside.close()


def test_labels_of_a_resized_copy_are_shown_where_they_belong(root: Path) -> None:
    write(root, WeakLabel("00.png", None, True, (Point(10, 10, "sky"),), (160, 120)))
    work, beside = opened(root)
    assert work.state("00.png").points == (Point(20.5, 20.5, "sky"),)
    act(work, "00.png", tag("road"))
    saved = WeakStore(root / "weak.jsonl").read()["00.png"]
    assert (saved.size, saved.points) == ((320, 240), (Point(20.5, 20.5, "sky"),))
    beside.close()


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (WeakLabel("00.png", None, True, (Point(10, 10, "sky"),), (100, 300)), "was labelled at 100x300"),
        (WeakLabel("00.png", None, True, (Point(400, 10, "sky"),)), "outside of the image"),
    ],
)
def test_points_of_another_image_are_not_shown(root: Path, label: WeakLabel, why: str) -> None:
    write(root, label)
    work, beside = opened(root)
    with pytest.raises(UserError, match=why):
        work.state("00.png")
    assert act(work, "01.jpg", tag("sky")).tags == ("sky",)
    beside.close()


def test_a_file_that_is_spoilt_meanwhile_stops_saving(root: Path) -> None:
    work, beside = opened(root)
    base = act(work, "00.png", tag("sky")).revision
    good = (root / "weak.jsonl").read_bytes()
    (root / "weak.jsonl").write_bytes(good + b"rubbish\n")
    with pytest.raises(NotSaved, match="line 2"):
        act(work, "00.png", tag("road"), base=base)
    (root / "weak.jsonl").write_bytes(good)
    assert act(work, "00.png", tag("road"), base=base).tags == ("road", "sky")
    beside.close()


def test_a_full_disk_stops_saving(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, beside = opened(root)
    base = act(work, "00.png", tag("sky")).revision
    before = (root / "weak.jsonl").read_bytes()

    def full(label: WeakLabel) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(work._store, "append", full)
    with pytest.raises(NotSaved, match="disk is full"):
        act(work, "00.png", tag("road"), base=base)
    monkeypatch.undo()
    assert (root / "weak.jsonl").read_bytes() == before
    assert work.state("00.png").tags == ("sky",)
    assert act(work, "00.png", tag("road"), base=base).tags == ("road", "sky")
    beside.close()


def test_a_label_that_is_refused_is_no_trouble_with_the_disk(root: Path) -> None:
    """The page would try it again without end."""
    file = root / "images" / "00.png"
    beside = Beside(root / "weak.jsonl")
    folder = Folder(root / "images", {"1:c.png": Item("1:c", file)})
    work = Work(folder, make_classes(CLASSES), WeakStore(root / "weak.jsonl"), beside, None)
    with pytest.raises(UserError, match=r"1:c\.png") as told:
        act(work, "1:c.png", tag("sky"))
    assert not isinstance(told.value, NotSaved)
    assert not (root / "weak.jsonl").exists()
    beside.close()


def test_an_action_is_one_change(root: Path) -> None:
    work, beside = opened(root)
    act(work, "00.png", SetSuggestion(kind="suggestion", name="road", dismissed=True))
    stamp = work.progress().stamp
    act(work, "00.png", tag("sky"), tag("road"))  # what is present is dismissed no more
    boot, _, count = stamp.partition("-")
    assert work.state("00.png").dismissed == ()
    assert work.progress().stamp == f"{boot}-{int(count) + 1}"
    act(work, "00.png", SetSuggestion(kind="suggestion", name="pole", dismissed=True))
    assert work.progress().stamp == f"{boot}-{int(count) + 2}"
    beside.close()


def test_time_is_added_over_visits_and_kept(root: Path) -> None:
    beside = Beside(root / "weak.jsonl")
    for visit, seconds in (("a", 3.0), ("a", 5.0), ("a", 4.0), ("b", 2.0)):
        beside.spend("00.png", visit, seconds)
    beside.spend("01.jpg", "c", 1.0)
    beside.spend("gone.png", "d", 99.0)
    with open(beside.folder / "times.jsonl", "a") as file:
        file.write('{"image": "00.p')  # a crash
    beside.close()
    again = Beside(root / "weak.jsonl")
    assert again.median(["00.png", "01.jpg", "02.png"]) == 4.0
    assert again.median(["02.png"]) is None
    again.close()


def test_an_image_that_goes_away_can_be_passed_over(root: Path) -> None:
    work, beside = opened(root)
    (root / "images" / name_of(1)).unlink()
    with pytest.raises(UserError, match="is gone"):
        act(work, name_of(1), tag("sky"))
    assert act(work, name_of(2), tag("sky")).tags == ("sky",)
    beside.close()
