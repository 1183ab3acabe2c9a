"""The last answer to a question that many ask at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Answer(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: T | None = None
    given: float = float("-inf")


class Recent(Generic[T]):
    """Answers by key, each asked for once however many threads want it.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[str, _Answer[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, max_age_s: float, ask: Callable[[], T]) -> T:
        """The last answer if it is not older than `max_age_s`, else a new one.

        Whatever `ask` raises is raised to its caller alone.
        """
        with self._lock:
            answer = self._answers.setdefault(key, _Answer())
        with answer.lock:
            if answer.value is None or self._clock() - answer.given > max_age_s:
                asked = self._clock()
                answer.value = ask()
                answer.given = asked
            return answer.value

    def forget(self, key: str) -> None:
        """Ask anew next time."""
        with self._lock:
            self._answers.pop(key, None)
