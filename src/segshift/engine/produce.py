"""A pass over a domain's images that remembers how far it came: for artefacts that are made, not trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segshift.artefacts.arrays import read_arrays, write_arrays
from segshift.data.domains import Domain
from segshift.data.images import load_resized
from segshift.engine.ahead import ahead
from segshift.engine.progress import track
from segshift.engine.trainer import stop_signals
from segshift.errors import Interrupted, UserError

SAVE_EVERY = 32
"""Images between two savings of what a pass remembers: so much work at most is done twice after a power cut."""


def produce(
    domain: Domain,
    size: tuple[int, int],
    task: Callable[[int, UInt8[np.ndarray, "h w 3"]], None],
    memory: Mapping[str, np.ndarray],
    state: Path,
    *,
    title: str,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Call `task` with every image of a domain, in order; after an interruption, go on where it was.

    The task keeps all that it remembers in `memory`, which is written to `state` from time to time, and brings to disk
    whole files only, so that an image that is gone through twice leaves what it left the first time.

    Args:
        domain: whose images.
        size: (w, h) to which they are resized.
        task: gets an image's index in the domain, and its pixels.
        memory: arrays that the task changes in place; their content is replaced by what an earlier go remembered.
        state: the file for it; the caller removes it when the artefact is sealed.
        title: for the progress bar.
        workers: threads that decode ahead; changes no result.
        shard: (rank, world): every world-th image, from the rank-th on.

    Raises:
        UserError: an image cannot be read, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM came; what was done is kept.
    """
    items = list(enumerate(domain.items))[shard[0] :: shard[1]]
    done = _recall(state, memory)
    with stop_signals() as stopped, track(title, len(items), done) as bar:
        pictures = ahead(lambda pair: load_resized(pair[1].image, size)[0], items[done:], workers)
        for (index, _), read in pictures:
            task(index, read())
            done += 1
            bar.advance()
            if done % SAVE_EVERY == 0 or done == len(items) or stopped.is_set():
                _remember(state, memory, done)
            if stopped.is_set():
                raise Interrupted(f"stopped after image {done} of {len(items)}; run the same command to go on")


def _recall(state: Path, memory: Mapping[str, np.ndarray]) -> int:
    """Images done in an earlier go, whose memory is put into place; 0 where there is none or its file is damaged."""
    try:
        known = read_arrays(state, [*memory, "done"])
    except UserError:
        return 0
    if any(known[name].shape != array.shape or known[name].dtype != array.dtype for name, array in memory.items()):
        return 0
    for name, array in memory.items():
        array[...] = known[name]
    return int(known["done"])


def _remember(state: Path, memory: Mapping[str, np.ndarray], done: int) -> None:
    write_arrays(state, {"done": np.array(done), **memory}, compressed=False)
