"""The last answer to a question that many ask at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: An answer that nobody has asked for during so many seconds is dropped.
_KEPT_S = 3600.0


@dataclass
class _Answer(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: T | None = None
    given: float = float("-inf")
    wanted: float = 0.0


class Recent(Generic[T]):
    """Answers by key, each asked for once however many threads want it.

    Those that nobody wants any more are dropped after an hour.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: The one that was wanted last is the last.
        self._answers: dict[str, _Answer[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, max_age_s: float, ask: Callable[[], T]) -> T:
        """The last answer if it is not older than `max_age_s`, else a new one.

        Whatever `ask` raises is raised to its caller alone.
        """
        answer = self._wanted(key)
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

    def _wanted(self, key: str) -> _Answer[T]:
        with self._lock:
            answer = self._answers.pop(key) if key in self._answers else _Answer()
            answer.wanted = self._clock()
            self._answers[key] = answer
            while True:
                oldest, last = next(iter(self._answers.items()))
                if answer.wanted - last.wanted <= _KEPT_S:
                    return answer
                del self._answers[oldest]
