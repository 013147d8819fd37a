"""The images to label: the files below one folder, by their paths; nothing outside of it is ever opened."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from segshift.data.domains import Item, open_images
from segshift.errors import UserError
from segshift.weak.label import check_image
from segshift.weak.matching import listed

log = logging.getLogger("segshift")


class NoSuchImage(UserError):
    """An image was asked for that is not among those of the folder."""


@dataclass(frozen=True)
class Folder:
    """Images below a folder, listed but not opened.

    Attributes:
        home: the folder that may be read, with all links resolved.
        items: of the images by their path below the image folder ("/" between folders, with suffix), as a domain lists
            them.
    """

    home: Path
    items: dict[str, Item]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Paths of the images, sorted."""
        return tuple(sorted(self.items))

    def file(self, name: str) -> Path:
        """The file of an image, if it is still below the folder: links may have been changed since it was listed.

        Raises:
            NoSuchImage: it was not listed.
            UserError: it leads out of the folder by now.
        """
        item = self.items.get(name)
        if item is None:
            raise NoSuchImage(
                "no such image", "one of those that were there when the server started", "reload the page"
            )
        file = item.image.resolve()
        if not file.is_relative_to(self.home):
            raise UserError(f"{name} is a link that leads out of {self.home}", "a file below it")
        return file


def open_folder(root: Path) -> Folder:
    """List the images of a folder (see `segshift.data.domains.open_images`).

    Links that lead out of `root`, and names that a label cannot hold, are left out with a warning.

    Raises:
        UserError: there is no such folder, it cannot be read, or no image is in it.
    """
    root = root.expanduser()
    items = open_images(root)
    home = root.resolve()
    outside = sorted(name for name, item in items.items() if not item.image.resolve().is_relative_to(home))
    nameless = sorted(name for name in items if not _can_be_labelled(name))
    out, odd = "are links that lead out of the folder", "have names that are no text, or hold a backslash or a drive"
    for names, why in ((outside, out), (nameless, odd)):
        if names:
            shown = [name.encode("ascii", "backslashreplace").decode() for name in names]
            log.warning("left out %d images that %s: %s", len(names), why, listed(shown))
    kept = {name: item for name, item in items.items() if name not in {*outside, *nameless}}
    if not kept:
        real = items[(outside or nameless)[0]].image.resolve().parent
        raise UserError(
            f"--images {root}: all {len(items)} images are links that lead out of the folder, or have unusable names",
            "image files below the folder itself",
            f"name the folder where they lie: --images {real}",
        )
    return Folder(home, kept)


def _can_be_labelled(name: str) -> bool:
    """Whether a name can be written in JSON and in a link (names of files may hold bytes that are no text), and a label
    may have it."""
    try:
        name.encode()
        check_image(name, "")
    except (UnicodeEncodeError, UserError):
        return False
    return True
