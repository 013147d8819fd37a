"""Finding the files of a domain: folders by layout and split, names without endings, lists of names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from segshift.data.classes import CITYSCAPES_COLOURS
from segshift.data.images import IMAGE_SUFFIXES, naming_file
from segshift.data.labels import LABEL_SUFFIXES
from segshift.data.layouts import IMAGE_ENDS, LABEL_ENDS, LABEL_FOLDERS, Layout, LayoutName
from segshift.data.tables import CITYSCAPES_IDS, LabelTable
from segshift.errors import UserError, nearest


def check_root(root: Path, domain: str) -> frozenset[str]:
    """The names in the root folder.

    Raises:
        UserError: it is missing, a file, or not readable.
    """
    try:
        return frozenset(os.listdir(root))
    except FileNotFoundError as error:
        parent = root.absolute().parent
        near = f"create {parent}, or correct `root`"
        if parent.is_dir():
            near = nearest(root.name, (p.name for p in parent.iterdir() if p.is_dir()))
        raise UserError(f"domain {domain!r}: folder {root} does not exist", "the domain's folder", near) from error
    except NotADirectoryError as error:
        raise UserError(f"domain {domain!r}: {root} is a file", "a folder with images", "correct `root`") from error
    except OSError as error:
        raise UserError(f"domain {domain!r}: cannot list {root}: {error.strerror}", "a readable folder") from error


def recognise(entries: Collection[str], split: str | None, *, labelled: bool, root: Path, domain: str) -> LayoutName:
    """The layout that the root's entries show; plain folders where nothing else does.

    Raises:
        UserError: labels of CARLA are wanted, whose ids changed with version 0.9.14.
    """
    if "leftImg8bit" in entries:
        return "cityscapes"
    if "rgb_anon" in entries:
        return "acdc"
    if "701_StillsRaw_full" in entries or "codes.txt" in entries or (split and f"{split}annot" in entries):
        return "camvid"
    if "RGB" in entries and "rgb" not in entries:
        return "synthia"
    if "CameraRGB" in entries:
        if labelled:
            raise UserError(
                f"domain {domain!r}: {root} looks like CARLA, whose class ids changed with version 0.9.14",
                "the version of the labels",
                "set `layout: carla` (0.9.14 and later) or `layout: carla_0_9_13` (before)",
            )
        return "carla"
    return "folders"


def has_cityscapes_palette(path: Path | None) -> bool:
    """Whether a label is a palette image with Cityscapes' colours at Cityscapes' label ids, as GTA5's are."""
    if path is None or path.suffix.lower() != ".png":
        return False
    palette: list[int] | None = None
    # A damaged file says nothing of the others; reading it as a label will name it.
    with contextlib.suppress(UserError), naming_file(path, "label"), Image.open(path) as image:
        palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is None:
        return False
    probes = [(i, CITYSCAPES_COLOURS[n]) for i, n in CITYSCAPES_IDS.ids.items() if n in ("road", "building", "sky")]
    return all(tuple(palette[3 * i : 3 * i + 3]) == colour for i, colour in probes)


def walk(folder: Path, suffixes: Collection[str], skip: Collection[str] = ()) -> dict[str, Path]:
    """Files of some types below a folder, by their path below it ("/" between folders), hidden ones left out.

    Args:
        folder: to search, with all folders below it; links are followed once.
        suffixes: wanted, in lower case.
        skip: names of folders directly below, in lower case, that are not entered.

    Raises:
        UserError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}", "a readable folder", "check its permissions")

    found: dict[str, Path] = {}
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        top = here == str(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (top and f.lower() in skip))
        below = "" if top else os.path.relpath(here, folder).replace(os.sep, "/") + "/"
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes:
                found[below + file] = Path(here, file)
    return found


def _stem(relative: str) -> str:
    return os.path.splitext(relative)[0]


def _without(stem: str, endings: Iterable[str]) -> str:
    for ending in endings:
        if stem.endswith(ending) and not stem.endswith("/" + ending) and stem != ending:
            return stem[: -len(ending)]
    return stem


def _keyed(files: Iterable[tuple[str, Path]], what: str, domain: str) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for key, path in files:
        if key in keyed:
            raise UserError(
                f"domain {domain!r}: {keyed[key]} and {path} are both {what} {key!r}",
                "one file a name",
                "remove or rename one of them",
            )
        keyed[key] = path
    return keyed


@dataclass(frozen=True)
class Where:
    """A place to look for a domain's files: root folder, split and layout."""

    root: Path
    split: str | None
    domain: str
    layout: Layout

    def _candidates(self, folders: Iterable[str]) -> list[Path]:
        if self.split is None or self.layout.split_depth is not None:
            return [self.root / folder for folder in folders]
        found = []
        for folder in folders:
            found += [self.root / folder / self.split] + ([self.root / self.split / folder] if folder else [])
        return found

    def _first(self, candidates: list[Path], what: str, key: str) -> Path:
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        tried = ", ".join(str(c.relative_to(self.root) if c.is_relative_to(self.root) else c) for c in candidates)
        raise UserError(
            f"domain {self.domain!r}: no folder of {what} in {self.root}",
            f"one of {tried}",
            f"name the folder, from {self.root} on, as the domain's `{key}`: {self._how(key)}"
            + ("" if self.split is None else f"; or correct `split: {self.split}`"),
        )

    def _how(self, key: str) -> str:
        # `evaluate` has no --set.
        if self.domain == "evaluation":
            return f"write `root:` and `{key}:` into a YAML file, and give that to --domain"
        return f"--set {self.domain}.{key}=FOLDER"

    def image_folder(self, override: str | None) -> Path:
        """The folder of the images.

        Raises:
            UserError: there is none, or several splits lie there and none was chosen.
        """
        folders = self.layout.images if override is None else (override,)
        folder = self._first(self._candidates(folders), "images", "images")
        if self.split is None:
            if self.layout.must_split and override is None:
                level = "*/" * (self.layout.split_depth or 0) + "*"
                self._refuse_splits([d.name for d in folder.glob(level) if d.is_dir()])
            elif folder == self.root:
                # Folders of labels are not even looked at.
                parts = [d for d in folder.iterdir() if d.name.lower() not in LABEL_FOLDERS]
                self._refuse_splits([d.name for d in parts if (d / "images").is_dir()])
        return folder

    def _refuse_splits(self, splits: Collection[str]) -> None:
        known = sorted(set(splits) - {""})
        if len(known) > 1:
            raise UserError(
                f"domain {self.domain!r}: {self.root} holds {', '.join(known)}",
                "the part to use",
                f"set the domain's `split`, for example `split: {'train' if 'train' in known else known[0]}`",
            )

    def label_folder(self, override: str | None) -> Path:
        """The folder of the labels.

        Raises:
            UserError: there is none.
        """
        folders = self.layout.labels if override is None else (override,)
        candidates = self._candidates(folders)
        if self.split is not None and override is None:
            candidates.append(self.root / f"{self.split}annot")
        return self._first(candidates, "labels", "labels")

    def _in_split(self, relative: str) -> bool:
        """Whether a file is of the split; with a depth of 1, "train" and "fog/train" both hold fog/train/x.png."""
        depth = self.layout.split_depth
        if depth is None or self.split is None:
            return True
        wanted = self.split.strip("/")
        return relative.split("/")[depth : depth + 1] == [wanted] or relative.startswith(wanted + "/")

    def images(self, folder: Path) -> dict[str, Path]:
        """Images by name.

        Raises:
            UserError: none, or two of one name.
        """
        files = {r: p for r, p in walk(folder, IMAGE_SUFFIXES, LABEL_FOLDERS).items() if self._in_split(r)}
        ends = self.layout.image_ends
        if ends:
            files = {r: p for r, p in files.items() if _stem(r).endswith(ends)}
        if not files:
            raise UserError(
                f"domain {self.domain!r}: no image in {folder}",
                f"files {'*' + ends[0] if ends else '*'} of type {', '.join(sorted(IMAGE_SUFFIXES))}",
                "check the domain's `root`, `images` and `split`",
            )
        pairs = ((_without(_stem(r), ends or IMAGE_ENDS), p) for r, p in sorted(files.items()))
        return _keyed(pairs, "image", self.domain)

    def labels(self, folder: Path, names: Collection[str]) -> tuple[dict[str, Path], LabelTable | None]:
        """Labels by the name of their image, and the table that their ending means, where it means one.

        Raises:
            UserError: none, or two of one name.
        """
        everything = walk(folder, LABEL_SUFFIXES | {".jpg", ".jpeg"})
        files = {r: p for r, p in everything.items() if p.suffix.lower() in LABEL_SUFFIXES and self._in_split(r)}
        if not files:
            found = f"only JPEG files in {folder}, which cannot hold ids" if everything else f"no label in {folder}"
            raise UserError(
                f"domain {self.domain!r}: {found}",
                f"files of type {', '.join(sorted(LABEL_SUFFIXES))}",
                "export the labels as PNG" if everything else "check the domain's `root`, `labels` and `split`",
            )
        for ending, table in self.layout.label_ends.items():
            chosen = {r: p for r, p in files.items() if _stem(r).endswith(ending)}
            if chosen:
                pairs = ((_without(_stem(r), [ending]), p) for r, p in sorted(chosen.items()))
                return _keyed(pairs, "the label of", self.domain), table
        keys = {r: _without(_stem(r), IMAGE_ENDS) for r in sorted(files)}
        keys = {r: key if key in names else _without(key, LABEL_ENDS) for r, key in keys.items()}
        return _keyed(((key, files[r]) for r, key in keys.items()), "the label of", self.domain), None


def chosen(images: Mapping[str, Path], file: Path, root: Path, domain: str) -> dict[str, Path]:
    """The images that a list file names, one a line: a name, a file name or a longer path that ends so.

    A second word in a line (some lists give the label too) is not read.

    Raises:
        UserError: the file is missing or empty, or names images that are not there, or ambiguously.
    """
    path = file.expanduser()
    path = path if path.is_absolute() or path.is_file() else root / path
    with naming_file(path, "list file"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    tails: dict[str, set[str]] = {}
    for name in images:
        parts = name.split("/")
        for i in range(len(parts)):
            tails.setdefault("/".join(parts[i:]), set()).add(name)

    def find(line: str) -> set[str]:
        for text in dict.fromkeys((line, line.split()[0])):
            bare = text.strip("/").removeprefix("./")
            stem = _stem(bare) if os.path.splitext(bare)[1].lower() in IMAGE_SUFFIXES else bare
            parts = _without(stem, IMAGE_ENDS).split("/")
            for i in range(len(parts)):
                key = "/".join(parts[i:])
                if key in images:
                    return {key}
                if key in tails:
                    return tails[key]
        return set()

    picked: dict[str, Path] = {}
    unknown: list[str] = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        hits = find(line)
        if len(hits) > 1:
            raise UserError(
                f"{path}: {line!r} may be {', '.join(sorted(hits)[:3])}", "one image a line", "write the longer path"
            )
        if hits:
            picked.update((name, images[name]) for name in hits)
        else:
            unknown.append(line)
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} images that domain {domain!r} does not have: {', '.join(unknown[:4])}",
            "names of images below its folder",
            "correct the list, or the domain's `root` and `split`",
        )
    if not picked:
        raise UserError(f"{path} names no image", "one name a line", "fill the list or remove the key `list`")
    return picked
