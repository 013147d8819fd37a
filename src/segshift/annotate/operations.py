"""What a person does to an image's label, as operations that can be applied to whatever its label is by then.

All of them are idempotent: an operation whose answer was lost on the way can be sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from segshift.errors import UserError
from segshift.weak.label import Point, WeakLabel


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SetTag(_Strict):
    """Say that a class is in the image or, taking away its points too, that it is not."""

    kind: Literal["tag"]
    name: str
    present: bool


class SetPoint(_Strict):
    """Add a point (and the tag that it implies), or take one away (the tag stays)."""

    kind: Literal["point"]
    name: str
    x: Annotated[float, Field(allow_inf_nan=False)]
    y: Annotated[float, Field(allow_inf_nan=False)]
    present: bool


class SetComplete(_Strict):
    """Say whether the tags name every class that is in the image."""

    kind: Literal["complete"]
    value: bool


class SetSuggestion(_Strict):
    """Dismiss a suggested tag, or bring the suggestion back."""

    kind: Literal["suggestion"]
    name: str
    dismissed: bool


Operation = Annotated[SetTag | SetPoint | SetComplete | SetSuggestion, Field(discriminator="kind")]

LONGEST = 1000
"""Operations in one action; undoing the removal of a tag brings all its points back at once."""


class Action(_Strict):
    """Operations on one image that are applied and saved together.

    Attributes:
        image: its path below the folder.
        base: revision of the state that the person saw.
        ops: what to do.
        file: version of the image's file that the person saw (`Work.version`); empty: not said.
        visit: names the time for which the page has been showing this image.
        seconds: how long the person has worked on the image during that time.
    """

    image: str
    base: str
    ops: Annotated[list[Operation], Field(max_length=LONGEST)]
    file: Annotated[str, Field(max_length=40)] = ""
    visit: Annotated[str, Field(max_length=40)] = ""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0


@dataclass(frozen=True)
class State:
    """The label of an image as the page shows it.

    Attributes:
        tags: classes present, those of the points included, in the order of the class list.
        points: in the order in which they were placed.
        complete: the tags name every class present.
        dismissed: suggested classes that the person does not want, in the order of the class list.
    """

    tags: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    complete: bool = False
    dismissed: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """A name for the content: equal for equal states, also after the server was started anew."""
        points = [(float(x), float(y), name) for x, y, name in self.points]
        return hashlib.sha256(repr((self.tags, points, self.complete, self.dismissed)).encode()).hexdigest()[:16]

    @property
    def progress(self) -> int:
        """0: not labelled; 1: something is said; 2: its tags are complete."""
        return 2 if self.complete else int(bool(self.tags or self.points))

    def label(self, image: str, size: tuple[int, int]) -> WeakLabel:
        """The line to save. A state that says nothing takes back what was said before."""
        if not self.progress:
            return WeakLabel(image, size=size)
        return WeakLabel(image, self.tags, self.complete, self.points, size)


def state_of(label: WeakLabel | None, dismissed: Sequence[str], names: Sequence[str]) -> State:
    """The state that a saved label means; its classes are spelt as in `names`, the class list."""
    away = tuple(name for name in names if name in dismissed)
    if label is None:
        return State(dismissed=away)
    tags = tuple(name for name in names if name in label.present)
    return State(tags, label.points, label.says_absent, away)


def apply(state: State, ops: Sequence[Operation], names: Sequence[str], size: tuple[int, int]) -> State:
    """The state after some operations.

    Args:
        state: before.
        ops: applied one after the other, all or none.
        names: of the classes.
        size: (w, h) of the image in pixels.

    Raises:
        UserError: an unknown class, a point outside of the image, or one where another class has its point.
    """
    for op in ops:
        if not isinstance(op, SetComplete) and op.name not in names:
            raise UserError(f"no class is called {op.name!r}", f"one of {', '.join(names)}", "reload the page")
        state = _applied(state, op, names, size)
    return state


def _applied(state: State, op: Operation, names: Sequence[str], size: tuple[int, int]) -> State:
    if isinstance(op, SetComplete):
        return replace(state, complete=op.value)
    if isinstance(op, SetSuggestion):
        return replace(state, dismissed=_with(state.dismissed, op.name, op.dismissed, names))
    if isinstance(op, SetPoint):
        point = Point(op.x, op.y, op.name)
        if not op.present:
            return replace(state, points=tuple(p for p in state.points if p != point))
        if point in state.points:
            return state
        _check(point, state.points, size)
        state = replace(state, points=(*state.points, point))
    elif not op.present:
        left = tuple(point for point in state.points if point.name != op.name)
        return replace(state, points=left, tags=_with(state.tags, op.name, False, names))
    return replace(
        state,
        tags=_with(state.tags, op.name, True, names),
        dismissed=_with(state.dismissed, op.name, False, names),
    )


def _check(point: Point, others: Sequence[Point], size: tuple[int, int]) -> None:
    if not point.inside(size):
        raise UserError(
            f"({point.x:g}, {point.y:g}) is outside of the image", f"a point within {size[0]}x{size[1]} pixels"
        )
    for other in others:
        if (other.column, other.row) == (point.column, point.row):
            raise UserError(
                f"there is a point of {other.name} at this pixel already",
                "one class a pixel",
                "delete it first, or zoom in and click beside it",
            )


def _with(chosen: Sequence[str], name: str, present: bool, names: Sequence[str]) -> tuple[str, ...]:
    wanted = {*chosen, name} if present else set(chosen) - {name}
    return tuple(each for each in names if each in wanted)
