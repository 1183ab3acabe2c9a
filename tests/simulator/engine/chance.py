"""Chance, time, signals and concurrency of the standard library, decided by a seed.

The product draws tokens, and uses thread pools for requests. In a simulation both must depend on
the seed alone: tokens come from one generator, and a pool runs what it is given at once. The stores
in memory write the time beside each object: here that is the simulated time.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.simulator.engine.schedule import Schedule


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


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for all files of a run; in memory, a run takes half the time."""
    memory = "/dev/shm"
    base = memory if os.access(memory, os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="simulate-", dir=base)
    try:
        with mock.patch.object(tempfile, "tempdir", folder):
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


@contextmanager
def alarms(schedule: Schedule) -> Iterator[None]:
    """Let `signal.setitimer` interrupt a simulated thread, in simulated time."""
    handlers: dict[int, Callable[[int, None], None]] = {}

    def install(number: int, handler: Any) -> Any:
        before, handlers[number] = handlers.get(number), handler
        return before

    def setitimer(_which: int, seconds: float, _interval: float = 0.0) -> None:
        handler = handlers[signal.SIGALRM]
        ring = (schedule.now + seconds, lambda: handler(signal.SIGALRM, None))
        schedule.current.alarm = ring if seconds else None

    with (
        mock.patch.object(signal, "signal", install),
        mock.patch.object(signal, "setitimer", setitimer),
    ):
        yield
