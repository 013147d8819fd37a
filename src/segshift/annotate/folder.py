"""The images to label: the files below one folder, by their paths; nothing outside of it is ever opened."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from segshift.data.domains import Item
from segshift.data.images import IMAGE_SUFFIXES
from segshift.data.layouts import LABEL_FOLDERS, LAYOUTS
from segshift.data.listing import Where, walk
from segshift.errors import UserError, nearest
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
    """List the images below a folder, or below its `images` (also `imgs`, `image`, `rgb`) as a domain would.

    Links that lead out of `root`, and names that are no text, are left out with a warning.

    Raises:
        UserError: there is no such folder, it cannot be read, or no image is in it.
    """
    root = root.expanduser()
    if not root.is_dir():
        if root.exists():
            raise UserError(f"--images {root} is a file", "a folder of images", f"--images {root.parent}")
        near = (path.name for path in root.absolute().parent.glob("*") if path.is_dir())
        raise UserError(f"--images {root} does not exist", "a folder of images", nearest(root.name, near))
    layout = LAYOUTS["folders"]
    below = next(folder for name in layout.images if (folder := root / name).is_dir())
    if not walk(below, IMAGE_SUFFIXES, LABEL_FOLDERS):
        raise UserError(
            f"--images {root}: no image in {below}",
            f"files of type {', '.join(sorted(IMAGE_SUFFIXES))}",
            "name the folder that holds the images; its sub-folders are searched too",
        )
    found = Where(root, None, "images", layout).images(below)
    home = root.resolve()
    items = {path.relative_to(below).as_posix(): Item(key, path) for key, path in found.items()}
    outside = sorted(name for name, item in items.items() if not item.image.resolve().is_relative_to(home))
    nameless = sorted(name for name in items if not _is_text(name))
    for names, why in ((outside, "are links that lead out of the folder"), (nameless, "have names that are no text")):
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


def _is_text(name: str) -> bool:
    """Whether a name can be written in JSON and in a link; names of files may hold bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
