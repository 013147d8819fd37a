"""Progress with an ETA: a live bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 15.0


@runtime_checkable
class Bar(Protocol):
    """Told of work as it gets done."""

    def advance(self, count: int = 1, note: str = "") -> None: ...


class _Live:
    def __init__(self, progress: Progress, title: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        self._progress.advance(self._task, count)
        if note:
            self._progress.update(self._task, note=note)


class _Plain:
    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._first, self._done = done, done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL_S and self._done < self._total:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        time_text = f"{_clock(elapsed)} elapsed, {_clock(left)} left" if left >= 1 else f"{_clock(elapsed)} elapsed"
        self._console.print(f"{self._title}: {self._done}/{self._total} · {time_text} {self._note}".rstrip())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def console() -> Console:
    """Where progress and messages for people go: standard error, so that standard output stays for results."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar over `total` pieces of work, `done` of which were finished in an earlier run."""
    out = console()
    if not out.is_terminal:
        yield _Plain(out, title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress:
        yield _Live(progress, title, total, done)
