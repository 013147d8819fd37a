"""Errors meant for people: what was found, what was wanted, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the command line prints it on one screen and exits with code 2.

    Args:
        found: what was found, naming the file or the setting.
        wanted: what was wanted instead (may be empty where `found` says it).
        remedy: what to do about it.
    """

    def __init__(self, found: str, wanted: str = "", remedy: str = "") -> None:
        self.found, self.wanted, self.remedy = found, wanted, remedy
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        # Errors raised in a loader's worker process travel by pickle.
        return type(self), (self.found, self.wanted, self.remedy)

    def __str__(self) -> str:
        lines = [self.found]
        if self.wanted:
            lines.append(f"wanted: {self.wanted}")
        if self.remedy:
            lines.append(f"to do:  {self.remedy}")
        return "\n".join(lines)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name`, as a clause to put behind an error, or the list of all."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names) if names else "none is known"


def gist(error: Exception, limit: int = 240) -> str:
    """The first two lines of an error's text as one short line; torch's can be hundreds of lines long."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:2])
    if not any(letter.isalpha() for letter in text):
        # Of a KeyError the text is the bare key.
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Interrupted(Exception):
    """Work was stopped by Ctrl-C or SIGTERM after its state was saved; the same command goes on."""
