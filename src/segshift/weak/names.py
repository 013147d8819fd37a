"""Finding the image that another program's path means, among the images of a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

_UPLOAD_PREFIX = re.compile(r"^(?:\d+-)?[0-9a-f]{8}-(?=.)")
"""Label Studio puts eight hexadecimal digits (and in one release the project's number) before an uploaded name."""

_UPLOAD_SUFFIX = re.compile(r"_[A-Za-z0-9]{7}(?=\.[A-Za-z0-9]+$)")
"""Storage that finds the name taken puts seven letters or digits behind it."""


class Images:
    """The images of a folder, to be found by path.

    Args:
        paths: of the images, below the folder, "/" between folders.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        self._tails: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            for tail in tails(path):
                self._tails.setdefault(tail, []).append(path)

    @cached_property
    def _stored(self) -> dict[str, list[str]]:
        """Images by their file's name as web storage keeps it."""
        by_name: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            by_name.setdefault(stored(path.rpartition("/")[2]), []).append(path)
        return by_name

    def find(self, path: str) -> list[str]:
        """The images that a path may mean: one where it is clear, several where not, none where there is none.

        The very path goes first. Else either path may be the longer one: it must end with the whole of the other
        ("/srv/project/drive/1.jpg" is drive/1.jpg, and "1.jpg" is drive/1.jpg where no other folder has a 1.jpg).
        """
        path = path.strip("/").removeprefix("./")
        if path in self.paths:
            return [path]
        longest = next((tail for tail in tails(path) if tail in self.paths), None)
        return [longest] if longest is not None else list(self._tails.get(path, []))

    def find_uploaded(self, name: str, *, only_marked: bool = False) -> list[str]:
        """The images that a file name may mean to which an upload has added digits, or changed characters.

        Args:
            name: without folders.
            only_marked: only if the name begins with an upload's digits.
        """
        bare = _UPLOAD_PREFIX.sub("", name)
        if bare == name and only_marked:
            return []
        for candidate in dict.fromkeys((name, bare, _UPLOAD_SUFFIX.sub("", name))):
            found = self.find(candidate)
            if found:
                return found
        return list(self._stored.get(stored(bare), []))


def tails(path: str) -> list[str]:
    """The path and its ends, the longest first: "a/b/c", "b/c", "c"."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def stored(name: str) -> str:
    """A file name as web storage keeps it: spaces are underscores, and all but letters, digits, "-_." is left out."""
    return re.sub(r"[^\w.-]", "", name.strip().replace(" ", "_"))
