"""Prediction on a folder of images: class ids, a coloured overlay and the confidence of each, whole or not there."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segshift import __version__
from segshift.artefacts.store import atomic_path, make_folder, write_json
from segshift.data.images import IMAGE_SUFFIXES, load_resized
from segshift.data.layouts import LABEL_FOLDERS
from segshift.data.listing import walk
from segshift.engine.ahead import ahead
from segshift.engine.inference import Options, as_input, autocast, check_predictors, decide, logits_at
from segshift.engine.progress import Bar, track
from segshift.errors import UserError
from segshift.nets.base import SegmentationNet
from segshift.types import ClassSet

_KINDS = {"ids": ".png", "overlay": ".jpg", "confidence": ".png"}
_MARK = "segshift"
"""Key of the PNG text that says which weights and which file an id map was made from."""


@dataclass(frozen=True)
class Predicted:
    """What `predict_folder` did: images written now, and images found finished."""

    written: int
    skipped: int


@dataclass(frozen=True)
class _Task:
    path: Path
    name: str
    mark: str


@dataclass(frozen=True)
class _Result:
    picture: Image.Image
    ids: UInt8[np.ndarray, "H W"]
    confidence: Float32[np.ndarray, "H W"]


def class_picture(ids: UInt8[np.ndarray, "H W"], classes: ClassSet) -> Image.Image:
    """A palette image whose values are the ids (H, W) and whose colours are the classes'; ignored pixels are black."""
    picture = Image.fromarray(ids)
    picture.putpalette([level for colour in classes.palette for level in colour] + [0] * 3 * (256 - len(classes)))
    return picture


def overlay(picture: Image.Image, ids: UInt8[np.ndarray, "H W"], classes: ClassSet) -> Image.Image:
    """The image with its classes' colours laid over it, half and half."""
    return Image.blend(picture, class_picture(ids, classes).convert("RGB"), 0.5)


def fingerprint(
    predictors: Sequence[SegmentationNet], classes: ClassSet, size: tuple[int, int], options: Options, precision: str
) -> str:
    """Hex digest of everything but the image that a prediction depends on, weights included."""
    digest = hashlib.sha256(repr((classes, tuple(size), options.model_dump(), precision)).encode())
    for net in predictors:
        digest.update(type(net).__qualname__.encode())
        for key, value in net.state_dict().items():
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def predict_folder(
    predictors: Sequence[SegmentationNet],
    images: Path,
    out: Path,
    *,
    classes: ClassSet,
    size: tuple[int, int],
    options: Options | None = None,
    device: torch.device | None = None,
    precision: str = "fp32",
    workers: int = 1,
    progress: bool = True,
) -> Predicted:
    """Segment every image of a folder, at the image's own size; sub-folders are kept.

    Writes out/ids/NAME.png (8 bit with the palette: values are train ids, viewers show colours), out/overlay/NAME.jpg
    and out/confidence/NAME.png (8 bit, 255 = probability 1). Images finished by the same weights and options are
    skipped, so a run that was stopped goes on with the same call.

    Args:
        predictors: networks whose logits are averaged; they are moved to `device`.
        images: a folder, searched with its sub-folders, or one image.
        size: (w, h) that images are resized to before they enter the network.
        workers: threads that read ahead and write behind; 0 does everything in turn. Changes no result.
        progress: show a bar.

    Raises:
        UserError: before the first image: no image, two of one name, a network of another number of classes. After
            the last one: images that cannot be read, by name; all others are done. At once: the disk is full.
    """
    net = _Ensemble(predictors, classes, size, options or Options(), device or torch.device("cpu"), precision)
    check_predictors(predictors, classes)
    autocast(net.device, precision)
    digest = fingerprint(predictors, classes, size, net.options, precision)
    tasks = [_task(path, name, digest) for name, path in find_images(images, out).items()]
    pending = [task for task in tasks if not _finished(out, task)]
    make_folder(out)
    write_json(out / "predict.json", {"fingerprint": digest, "images": str(images), **net.describe()})
    finished = len(tasks) - len(pending)
    with track("predict", len(tasks), finished) if progress and pending else nullcontext() as bar:
        unreadable = _predict(net, pending, out, workers, bar)
    done = Predicted(len(pending) - len(unreadable), finished)
    if unreadable:
        raise _unreadable(unreadable, done, len(tasks))
    return done


@dataclass(frozen=True)
class _Ensemble:
    predictors: Sequence[SegmentationNet]
    classes: ClassSet
    size: tuple[int, int]
    options: Options
    device: torch.device
    precision: str

    def describe(self) -> dict[str, Any]:
        """What people want to know of the results, for predict.json."""
        classes = {"names": list(self.classes.names), "palette": [list(colour) for colour in self.classes.palette]}
        options = self.options.model_dump(mode="json")
        return {"version": __version__, "size": list(self.size), "options": options, "classes": classes}

    def __call__(self, picture: Image.Image, pixels: UInt8[np.ndarray, "h w 3"]) -> _Result:
        size = (picture.height, picture.width)
        with autocast(self.device, self.precision):
            logits = logits_at(self.predictors, as_input(pixels, self.device), size, self.options)
        ids, confidence = decide(logits)
        return _Result(picture, ids[0].cpu().numpy(), confidence[0].cpu().numpy())


def _predict(net: _Ensemble, tasks: Sequence[_Task], out: Path, workers: int, bar: Bar | None) -> list[UserError]:
    """Do the tasks; the errors of images that cannot be read."""
    unreadable: list[UserError] = []
    for predictor in net.predictors:
        predictor.to(net.device)
    with _Writer(out, net.classes, workers) as writer:
        for task, read in ahead(partial(_open, net.size), tasks, workers):
            try:
                picture, pixels = read()
            except UserError as error:
                unreadable.append(error)
            else:
                writer.add(task, net(picture, pixels))
            if bar is not None:
                bar.advance()
    return unreadable


def find_images(images: Path, out: Path) -> dict[str, Path]:
    """Names (paths without suffix, relative to the folder) → image files, sorted; results of `predict` are no images.

    Raises:
        UserError: no such folder, no image in it, or two images of one name.
    """
    if images.is_file():
        return {images.stem: images}
    if not images.is_dir():
        raise UserError(f"{images} does not exist", "a folder of images, or one image", "check the path")
    # As in a domain, folders of labels beside those of images are not even looked into.
    files = sorted(walk(images, IMAGE_SUFFIXES, LABEL_FOLDERS).values())
    manifests = (path for path in walk(images, {".json"}, LABEL_FOLDERS).values() if path.name == "predict.json")
    results = [out, *(manifest.parent for manifest in manifests)]
    own = [(folder / kind).resolve() for folder in results for kind in _KINDS]
    found: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            continue
        if any(path.resolve().is_relative_to(folder) for folder in own):
            continue
        name = path.relative_to(images).with_suffix("").as_posix()
        if name in found:
            raise UserError(
                f"{found[name]} and {path} would both be written as {name}.png",
                "names that differ in more than the file type",
                "rename one of them",
            )
        found[name] = path
    if not found:
        raise UserError(
            f"{images} holds no image",
            "files of type " + ", ".join(sorted(IMAGE_SUFFIXES)),
            "check the path; sub-folders are searched too",
        )
    return found


def _task(path: Path, name: str, digest: str) -> _Task:
    stat = path.stat()
    return _Task(path, name, f"{digest} {stat.st_size} {stat.st_mtime_ns}")


def _files(out: Path, name: str) -> dict[str, Path]:
    return {kind: out / kind / f"{name}{suffix}" for kind, suffix in _KINDS.items()}


def _finished(out: Path, task: _Task) -> bool:
    """Whether all three files are there, made by the same weights from the same file (the id map is written last)."""
    files = _files(out, task.name)
    if not all(path.is_file() for path in files.values()):
        return False
    try:
        with Image.open(files["ids"]) as picture:
            return picture.info.get(_MARK) == task.mark
    except (OSError, SyntaxError, ValueError):
        return False


def _open(size: tuple[int, int], task: _Task) -> tuple[Image.Image, UInt8[np.ndarray, "h w 3"]]:
    """The whole picture, and the pixels that the network sees: exactly those that `evaluate` feeds."""
    picture = Image.fromarray(load_resized(task.path, None)[0])
    if all(side >= 4 * wanted for side, wanted in zip(picture.size, size, strict=True)):
        # So much larger a JPEG is reduced by the decoder, which rounds differently.
        return picture, load_resized(task.path, size)[0]
    resized = picture if picture.size == tuple(size) else picture.resize(size, Image.Resampling.BICUBIC)
    return picture, np.array(resized)


def _write(out: Path, classes: ClassSet, task: _Task, result: _Result) -> None:
    files = _files(out, task.name)
    for path in files.values():
        make_folder(path.parent)
    with atomic_path(files["overlay"]) as path:
        overlay(result.picture, result.ids, classes).save(path, quality=90)
    with atomic_path(files["confidence"]) as path:
        Image.fromarray(np.rint(255 * result.confidence).astype(np.uint8)).save(path)
    text = PngInfo()
    text.add_text(_MARK, task.mark)
    with atomic_path(files["ids"]) as path:
        class_picture(result.ids, classes).save(path, pnginfo=text)


class _Writer:
    """Writes results in threads while the network runs; at most 2 * workers results wait."""

    def __init__(self, out: Path, classes: ClassSet, workers: int) -> None:
        self._write = partial(_write, out, classes)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="segshift-write") if workers else None
        self._limit = 2 * workers
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def add(self, task: _Task, result: _Result) -> None:
        """Raises the error of an earlier write, where there was one."""
        if self._pool is None:
            self._write(task, result)
            return
        self._waiting.append(self._pool.submit(self._write, task, result))
        while len(self._waiting) > self._limit or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


def _unreadable(errors: Sequence[UserError], done: Predicted, total: int) -> UserError:
    shown = "\n".join(f"  {error.found}" for error in errors[:8])
    more = f"\n  and {len(errors) - 8} more" if len(errors) > 8 else ""
    return UserError(
        f"{len(errors)} of {total} images could not be read:\n{shown}{more}",
        "whole image files",
        f"the other {done.written + done.skipped} are done; mend or remove these and run the same command again",
    )
