"""Counts and rates of a run, from its results and its logs; pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the items of a run.

    Args:
        missing: items without a result.
        doubled: items that are in the results more than once.
        redone: items whose handler ran more than once.
    """

    missing: int
    doubled: int
    redone: int


def counts(expected: Iterable[str], results: Iterable[str], executed: Iterable[str]) -> Counts:
    """Count by the items' keys.

    Raises:
        ValueError: if a result belongs to no item; the counts would be meaningless.
    """
    wanted, found, ran = set(expected), Counter(results), Counter(executed)
    if strange := sorted(found.keys() - wanted):
        raise ValueError(f"{len(strange)} results belong to no item, for example {strange[0]!r}")
    return Counts(
        missing=len(wanted - found.keys()),
        doubled=sum(times > 1 for times in found.values()),
        redone=sum(times > 1 for times in ran.values()),
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run was.

    Args:
        start_up_s: from the command to the first bundle's result.
        steady: items a second from the first to the last bundle's result.
        total: items a second from the command until everything was durable.
    """

    start_up_s: float
    steady: float
    total: float


def pace(began: float, ended: float, bundles: Sequence[tuple[float, int]]) -> Pace:
    """Rates, from the times at which the results were complete.

    Args:
        began: when the command was started.
        ended: when it was done.
        bundles: (when, items) of each result; all in seconds since the same moment.
    """
    ordered = sorted(bundles)
    if not ordered:
        return Pace(float("nan"), float("nan"), 0.0)
    (first, items_of_first), last = ordered[0], ordered[-1][0]
    items = sum(count for _, count in ordered)
    after = items - items_of_first
    return Pace(
        start_up_s=first - began,
        steady=after / (last - first) if last > first else float("nan"),
        total=items / (ended - began),
    )
