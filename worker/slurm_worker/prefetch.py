"""Computing results ahead of their reader: several at a time, in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

READERS = 16
_A = TypeVar("_A")
_B = TypeVar("_B")


def prefetch(
    function: Callable[[_A], _B],
    inputs: Iterable[_A],
    window: int = 2 * READERS,
    threads: int = READERS,
) -> Generator[tuple[_A, _B], None, None]:
    """(input, function(input)) in order, with at most `window` of them computed ahead."""
    with ThreadPoolExecutor(threads) as pool:
        computed = ((value, pool.submit(function, value)) for value in inputs)
        try:
            waiting = deque(islice(computed, window))
            while waiting:
                value, result = waiting.popleft()
                yield value, result.result()
                waiting.extend(islice(computed, 1))
        finally:
            # After an error, or if the reader stops early, the rest is not waited for.
            pool.shutdown(wait=True, cancel_futures=True)
