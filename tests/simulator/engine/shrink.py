"""The smallest run that breaks the same promise, and what happens in it.

A failing seed has dozens of events: lost requests, dead nodes, commands that were cut off. Most do
not matter. The search repeats the run without some of them, and with fewer items, workers and
retries, as long as the same promise is broken. Events are removed in groups, each half as large as
the one before (delta debugging: Zeller and Hildebrandt, IEEE TSE 28(2), 2002).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from tests.simulator.checks.rows import Violation
from tests.simulator.engine.reduction import WHOLE, Reduction
from tests.simulator.engine.seen import Seen


class Run(Protocol):
    """A simulation."""

    seen: Seen

    def run(self) -> object:
        """Run it and check every promise."""


Make = Callable[[Reduction], Run]
_ITEMS = (1, 2, 3, 4, 6, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that breaks a promise.

    Args:
        reduced: how the run is smaller than its seed says.
        message: which promise, and how.
        promise: the same for every run that breaks this promise.
        events: what went wrong, in order.
    """

    reduced: Reduction
    message: str
    promise: str
    events: tuple[str, ...]


def failure_of(make: Make, reduced: Reduction = WHOLE) -> Failure | None:
    """Do the run; how it fails, if it does."""
    run = make(reduced)
    try:
        run.run()
    except Violation as violation:
        place = traceback.extract_tb(violation.__traceback__)[-1]
        words = re.findall(r"\b[a-z]+\b", str(violation))
        promise = f"{place.filename}:{place.lineno} {' '.join(words[:5])}"
        return Failure(reduced, str(violation), promise, tuple(run.seen.events))
    return None


def shrink(make: Make, failure: Failure, most_runs: int = 400) -> Failure:
    """The smallest run found that fails as this one does.

    Args:
        make: makes the run.
        failure: the run to reduce.
        most_runs: the search ends after so many runs.
    """
    best, left = replace(failure, reduced=_only(failure)), most_runs
    tried: set[Reduction] = set()
    improved = True
    while improved:
        improved = False
        for smaller in _smaller(best):
            if smaller in tried or left == 0:
                continue
            tried.add(smaller)
            left -= 1
            found = failure_of(make, smaller)
            if found is not None and found.promise == best.promise:
                best, improved = replace(found, reduced=_only(found)), True
                break
    return best


def time_line(make: Make, failure: Failure) -> list[str]:
    """What happens in the run: commands, events and writes."""
    run = make(failure.reduced)
    run.seen.follow = True
    with suppress(Violation):
        run.run()
    return run.seen.lines


def _only(failure: Failure) -> Reduction:
    """With the events that happened, and no others."""
    return replace(failure.reduced, keep=frozenset(failure.events))


def _smaller(failure: Failure) -> Iterator[Reduction]:
    """Runs to try next, those that leave most out first."""
    reduced, events = failure.reduced, failure.events
    size = len(events)
    while size:
        # What happened last matters least often.
        for start in range((len(events) - 1) // size * size, -1, -size):
            yield replace(reduced, keep=frozenset(events[:start] + events[start + size :]))
        size //= 2
    yield from (replace(reduced, retries=n) for n in (0, 1) if n < reduced.retries)
    yield from (replace(reduced, workers=n) for n in (1, 2, 3) if n < reduced.workers)
    yield from (replace(reduced, items=n) for n in _ITEMS if n < reduced.items)
