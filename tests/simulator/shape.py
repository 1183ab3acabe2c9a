"""The size of a whole backfill, and what its handler is like."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LONG_STALL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a run."""

    items: int
    bundle: int | None
    workers: int
    item_s: float  #: mean seconds of a call
    retries: int
    limited: bool  #: the handler's calls share a rate limit
    batches: bool  #: the handler takes several items
    timeout_s: float  #: of an item; 0 for none
    stall_s: float  #: without any progress

    @classmethod
    def drawn(cls, rng: random.Random) -> Shape:
        """A random shape."""
        many = rng.random() < 0.15
        return cls(
            items=rng.randint(100, 250) if many else rng.randint(6, 40),
            bundle=1 if many else rng.choice((None, 2, 3, 5, 8)),
            workers=200 if many and rng.random() < 0.3 else rng.randint(1, 4),
            item_s=0.05 if many else rng.choice((0.3, 1.5)),
            retries=rng.choice((0, 1, 1, 2)),
            limited=rng.random() < 0.2,
            batches=rng.random() < 0.15,
            timeout_s=rng.choice((0.0, 0.0, 25.0)),
            stall_s=rng.choice((_LONG_STALL_S, 60.0)),
        )

    @property
    def bounded(self) -> bool:
        """Whether a call that does not return is ended."""
        return self.stall_s < _LONG_STALL_S or (self.timeout_s > 0 and not self.batches)
