"""What changed a moment ago, so that a read or a list can show the past."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
#: How long a change is remembered.
_KEPT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Change(Generic[V]):
    at: float
    key: str
    before: V | None  #: None if there was nothing


class Recent(Generic[V]):
    """The latest changes of some keys."""

    def __init__(self) -> None:
        self._changes: deque[_Change[V]] = deque()

    def note(self, now: float, key: str, before: V | None) -> None:
        """A key changes now; it had this value, None for none."""
        while self._changes and self._changes[0].at < now - _KEPT_S:
            self._changes.popleft()
        self._changes.append(_Change(now, key, before))

    def since(self, when: float, prefix: str = "") -> dict[str, V | None]:
        """The keys that have changed since then, and what they had."""
        found: dict[str, V | None] = {}
        for change in self._changes:
            if change.at > when and change.key.startswith(prefix):
                found.setdefault(change.key, change.before)
        return found
