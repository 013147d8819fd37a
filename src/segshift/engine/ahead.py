"""Reading ahead in threads: files are decoded while the network runs. Decoders release the interpreter's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


def ahead(
    call: Callable[[Work], Result], work: Iterable[Work], workers: int
) -> Iterator[tuple[Work, Callable[[], Result]]]:
    """Each piece of work in order, with a function that waits for its result or raises its error.

    At most 2 * workers pieces are under way at once, so memory is bounded. Closing the iterator cancels the rest.

    Args:
        workers: threads; with 0 the call happens when its result is asked for.
    """
    if workers == 0:
        for item in work:
            yield item, partial(call, item)
        return
    remaining = iter(work)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="segshift-read")
    try:
        queue: deque[tuple[Work, Future[Result]]] = deque(
            (item, pool.submit(call, item)) for item in islice(remaining, 2 * workers)
        )
        while queue:
            item, future = queue.popleft()
            queue.extend((item, pool.submit(call, item)) for item in islice(remaining, 1))
            yield item, future.result
    finally:
        pool.shutdown(cancel_futures=True)
