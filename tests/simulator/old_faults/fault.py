"""A fault that a release had, how it is put back, and the search for a seed that finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.simulator.backfill import Backfill
from tests.simulator.checks.rows import Violation

#: Within so many seeds each fault must be found.
MOST_SEEDS = 1_000
#: One seed of a whole backfill, or of what a fault is in.
Run = Callable[[int], object]


def backfill(seed: int) -> object:
    """One seed of a whole backfill."""
    return Backfill(seed).run()


@contextmanager
def as_it_is() -> Iterator[None]:
    """Put nothing back: the fault is in the run's own arguments."""
    yield


@dataclass(frozen=True, slots=True)
class OldFault:
    """A fault of an earlier release.

    Args:
        name: what the code did.
        broke: what its users lost.
        promise: what the violation that finds it says, as a regular expression.
        seed: a seed that finds it, at which the search of the tests begins.
        put_back: replaces what repairs the fault, for the time of a run.
        run: one seed with the fault.
        sound: one seed without it.
    """

    name: str
    broke: str
    promise: str
    seed: int
    put_back: Callable[[], AbstractContextManager[object]] = as_it_is
    run: Run = backfill
    sound: Run = backfill

    def violation(self, seed: int) -> str:
        """What a seed finds with the fault; empty where it finds nothing."""
        with self.put_back():
            return _violation(self.run, seed)

    def violation_without(self, seed: int) -> str:
        """What a seed finds in today's code."""
        return _violation(self.sound, seed)


def _violation(run: Run, seed: int) -> str:
    try:
        run(seed)
    except Violation as found:
        return str(found)
    return ""
