"""Threads as the worker uses them, so that a simulator can decide who runs when.

The worker's own concurrency is small and fixed: one thread runs items, one leases ahead,
one commits, one sends heartbeats. All of it goes through `Threads`; the simulator's twin
(`tests/simulator/schedule.py`) runs the same code one step at a time in an order of its choice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A function that runs in a thread."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> T_co:
        """Wait for its end; return its value or raise what it raised."""


class Signal(Protocol):
    """An event that is set once."""

    def set(self) -> None:
        """Set it."""

    def is_set(self) -> bool:
        """Whether it is set."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for `timeout` seconds; whether it is set."""


class Threads(Protocol):
    """Starts threads and makes signals."""

    def start(self, function: Callable[[], T]) -> Pending[T]:
        """Run `function` in another thread."""

    def signal(self) -> Signal:
        """A new signal, not set."""


class PooledThreads:
    """`Threads` of this process, from a pool: starting one costs microseconds."""

    def __init__(self, most: int = 8) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="worker")

    def start(self, function: Callable[[], T]) -> Future[T]:
        """See `Threads.start`."""
        return self._pool.submit(function)

    def signal(self) -> Signal:
        """See `Threads.signal`."""
        return threading.Event()
