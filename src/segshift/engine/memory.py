"""How the process's memory allocator treats the large tensors of training on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of giving it back to the system at once.

    Every tensor above some megabytes is otherwise mapped, filled with zeros by the kernel page by page, and unmapped in
    each step: a step of deeplab_lite at 128x256 took 1.1 to 1.3 times as long (bench/step.py). No result changes; the
    process keeps the memory of its largest step. Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 64 << 20)
