"""Chance, time and concurrency of the standard library, decided by a seed.

The product draws tokens, and uses thread pools for requests. In a simulation both must depend on
the seed alone: tokens come from one generator, and a pool runs what it is given at once. The stores
in memory write the time beside each object: here that is the simulated time.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def seeded(seed: int, now: Callable[[], float]) -> Iterator[None]:
    """Draw from a generator with this seed, take the time from `now`, and run no real thread."""
    rng = random.Random(seed)

    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=rng.getrandbits(128), version=4)

    with (
        mock.patch.object(uuid, "uuid4", uuid4),
        mock.patch.object(time, "time", now),
        mock.patch.object(secrets, "randbelow", rng.randrange),
        mock.patch.object(ThreadPoolExecutor, "submit", run_now),
    ):
        yield


def run_now(
    _pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    """In place of `ThreadPoolExecutor.submit`: call the function at once."""
    ended: Future[Any] = Future()
    try:
        ended.set_result(function(*args, **kwargs))
    except Exception as error:
        ended.set_exception(error)
    return ended
