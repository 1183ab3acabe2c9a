"""What changed a moment ago, so that a read or a list can show the past."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Change(Generic[V]):
    at: float
    key: str
    before: V | None  #: None if there was nothing


class Recent(Generic[V]):
    """The latest changes of some keys.

    Args:
        kept_s: how long a change is remembered.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._changes: deque[_Change[V]] = deque()

    def note(self, now: float, key: str, before: V | None) -> None:
        """A key changes now; it had this value."""
        while self._changes and self._changes[0].at < now - self._kept_s:
            self._changes.popleft()
        self._changes.append(_Change(now, key, before))

    def since(self, when: float) -> dict[str, V | None]:
        """The keys that have changed since then, and what they had."""
        found: dict[str, V | None] = {}
        for change in self._changes:
            if change.at > when:
                found.setdefault(change.key, change.before)
        return found

    def past(self, when: float, current: Iterable[tuple[str, V]], prefix: str = "") -> dict[str, V]:
        """What there was then, in the order of the keys, of what is `current` now."""
        changed = {key: old for key, old in self.since(when).items() if key.startswith(prefix)}
        seen = dict(current)
        for key, old in changed.items():
            if old is None:
                seen.pop(key, None)
            else:
                seen[key] = old
        return dict(sorted(seen.items())) if changed else seen
