"""A cache of answers in which threads that want the same one share one query."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import cachetools

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: T | None = None
    read_at: float = float("-inf")


class TTLCache(Generic[T]):
    """Answers by key. Each is queried once, however many threads want it at the same time.

    An answer that nobody has wanted for `keep_s` seconds is dropped. Of more than `most` answers,
    those that were wanted longest ago are dropped first.
    """

    def __init__(
        self,
        keep_s: float = 3600.0,
        *,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._entries = cachetools.TTLCache[Hashable, _Entry[T]](most, keep_s, clock)
        self._lock = threading.Lock()

    def get(self, key: Hashable, max_age_s: float, query: Callable[[], T]) -> T:
        """The last answer if it is at most `max_age_s` old, else a new one.

        What `query` raises reaches its own caller only; the next one queries again.
        """
        with self._lock:
            entry = self._entries.get(key) or _Entry()
            # Stored again, it is kept for another `keep_s`.
            self._entries[key] = entry
        with entry.lock:
            if entry.value is None or self._clock() - entry.read_at > max_age_s:
                began = self._clock()
                entry.value = query()
                entry.read_at = began
            return entry.value

    def clear(self) -> None:
        """Query everything again."""
        with self._lock:
            self._entries.clear()

    def forget(self, key: Hashable) -> None:
        """Query again the next time."""
        with self._lock:
            self._entries.pop(key, None)
