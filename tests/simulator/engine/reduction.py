"""How a run is smaller than its seed says."""

from __future__ import annotations

from dataclasses import dataclass

_UNLIMITED = 1_000_000


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a run has at most.

    Args:
        keep: the events that may happen; all if there is no such list. See `seen.Seen`.
    """

    items: int = _UNLIMITED
    workers: int = _UNLIMITED
    retries: int = _UNLIMITED
    keep: frozenset[str] | None = None

    def sizes(self) -> str:
        """The limits, for a person."""
        sizes = {"items": self.items, "workers": self.workers, "retries": self.retries}
        limits = [f"at most {size} {name}" for name, size in sizes.items() if size < _UNLIMITED]
        return ", ".join(limits) or "of the seed's size"


#: Nothing is left out.
WHOLE = Reduction()
