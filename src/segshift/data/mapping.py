"""Class maps: from what a dataset's files say (names, ids, colours) to the classes of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from segshift.data.classes import canonical, is_colour, parse_colour
from segshift.data.labels import Decoder, Value
from segshift.data.tables import STANDS_FOR, LabelTable
from segshift.errors import UserError, nearest
from segshift.types import IGNORE, ClassSet

Colour = tuple[int, int, int]


def _train_id(value: str, key: object, classes: ClassSet, domain: str) -> int:
    """Train id of a class map's value."""
    if value.strip().lower() == "ignore":
        return IGNORE
    wanted = canonical(value)
    for i, name in enumerate(classes.names):
        if canonical(name) == wanted:
            return i
    raise UserError(
        f"class_map of domain {domain!r}: `{key}: {value}` names an unknown class",
        'a class of the class list, or "ignore"',
        nearest(value, classes.names),
    )


class _Builder:
    """Collects the entries of a decoder; later entries win."""

    def __init__(self, classes: ClassSet, table: LabelTable | None, domain: str) -> None:
        self.classes, self.table, self.domain = classes, table, domain
        self.ids: dict[int, int] = {}
        self.colours: dict[Colour, int] = {}
        self.rest: int | None = None
        self.notes: list[str] = []

    def put_name(self, name: str, train: int) -> None:
        """Map every id and colour of the table that has this name."""
        if self.table is None:
            return
        plain = canonical(name)
        self.ids.update({i: train for i, n in self.table.ids.items() if canonical(n) == plain})
        self.colours.update({c: train for c, n in self.table.colours.items() if canonical(n) == plain})

    def by_names(self, table: LabelTable, *, explicit: frozenset[str], lenient: bool) -> None:
        """Map the table onto the classes by name; what has no class is ignored, or left unmapped unless `lenient`.

        Args:
            explicit: canonical names that the user's map mentions, which are left to it.
            lenient: also ignore the dataset's proper classes that the task does not have.
        """
        own = {canonical(name): i for i, name in enumerate(self.classes.names)}
        void = {canonical(name) for name in table.void}
        taken, dropped = [], []
        for name in table.names():
            plain = canonical(name)
            if plain in explicit:
                continue
            stand_in = next((other for other in STANDS_FOR.get(plain, ()) if canonical(other) in own), None)
            if plain in own:
                self.put_name(name, own[plain])
            elif stand_in is not None:
                self.put_name(name, own[canonical(stand_in)])
                taken.append(f"{name} → {self.classes.names[own[canonical(stand_in)]]}")
            elif plain in void or lenient:
                self.put_name(name, IGNORE)
                if plain not in void:
                    dropped.append(name)
        if taken:
            self.notes.append(f"{table.title}: taken as the nearest class: {', '.join(taken)}")
        if dropped:
            self.notes.append(f"{table.title}: ignored, no class of that name: {', '.join(dropped)}")

    def put_entry(self, key: str | int, value: str) -> None:
        """Apply one entry of the user's class map."""
        where = f"class_map of domain {self.domain!r}, key"
        train = _train_id(value, key, self.classes, self.domain)
        text = str(key).strip()
        if text == "*":
            self.rest = train
        elif is_colour(text):
            self.colours[parse_colour(text, f"{where} {key!r}")] = train
        elif text.lstrip("-").isdigit():
            if not 0 <= int(text) <= 65535:
                raise UserError(f"{where} {key!r} is no possible id", "an id from 0 to 65535", "correct the key")
            self.ids[int(text)] = train
        elif self.table is None:
            raise UserError(
                f"{where} {key!r} is a name, but plain folders hold ids or colours, not names",
                'an id such as 7, a colour such as "128,64,128", or "*"',
                "write the id, or set the domain's `layout` to a known dataset",
            )
        else:
            names = self.table.names()
            if canonical(text) not in {canonical(n) for n in names}:
                raise UserError(
                    f"{where} {key!r} is not a name of {self.table.title}",
                    'one of the dataset\'s names, an id, a colour or "*"',
                    nearest(text, names),
                )
            self.put_name(text, train)


def build_decoder(
    classes: ClassSet,
    table: LabelTable | None,
    class_map: Mapping[str | int, str] | None,
    *,
    channel: Literal["auto", "first"] = "auto",
    domain: str,
) -> Decoder:
    """The decoder of a domain's label files.

    With a table (a known dataset) its names are mapped onto the classes by name; entries of the class map go before
    that. A proper class of the dataset that the task does not have is ignored (and noted) where there is no class map,
    and is an error when met where there is one, unless it has `"*"`.

    Without a table the files hold train ids. A class map that maps a value to a class replaces that; one that only
    ignores values leaves the other train ids as they are. 255 is ignored unless mapped. Colour files need a map by
    colour, or have the colours of the class list's palette.

    Args:
        classes: of the task.
        table: of the dataset, None for plain folders.
        class_map: the user's, or None.
        channel: see `Decoder`.
        domain: name, for messages.

    Raises:
        UserError: naming the key: an unknown class (with the nearest one), an unknown name, no id or colour.
    """
    builder = _Builder(classes, table, domain)
    entries = dict(class_map or {})
    keys = frozenset(canonical(str(key)) for key in entries)
    if table is not None:
        builder.by_names(table, explicit=keys, lenient=not entries)
    elif all(value.strip().lower() == "ignore" for value in entries.values()):
        builder.ids.update({i: i for i in range(len(classes))})
        builder.colours.update({colour: i for i, colour in enumerate(classes.palette)})
    builder.ids.setdefault(IGNORE, IGNORE)
    for key, value in entries.items():
        builder.put_entry(key, value)
    reached = {*builder.ids.values(), *builder.colours.values(), builder.rest} - {IGNORE, None}
    if not reached:
        raise UserError(
            f"domain {domain!r}: no label value leads to any of the classes {', '.join(classes.names)}",
            "at least one class with labels",
            "give the domain a class_map such as {7: road}",
        )
    absent = [name for i, name in enumerate(classes.names) if i not in reached]
    if absent:
        builder.notes.append(f"classes that no label value leads to: {', '.join(absent)}")
    hint = (
        ""
        if table is not None or entries
        else (" (ids of Cityscapes or GTA5 need `layout: cityscapes` or `layout: gta5` instead)")
    )
    titles: dict[Value, str] = {}
    if table is not None:
        titles.update(table.ids.items())
        titles.update(table.colours.items())
    return Decoder(builder.ids, builder.colours, builder.rest, channel, domain, tuple(builder.notes), hint, titles)
