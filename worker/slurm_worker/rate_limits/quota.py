"""A limit's quota per day: the part of it that one worker process holds.

The write that reserves slots of the schedule charges the quota, and only for calls that the
worker does not hold yet. If a slot passes unused, the worker keeps its call for a later slot. So
a call is charged once, and a crash loses no more than the worker held. All workers together hold
at most a fiftieth of the quota. Makes no requests.

No call is made within `GUARD_S` of midnight (UTC), so that a call falls into the day that was
charged for it although clocks differ.
"""

from __future__ import annotations

DAY_S = 86_400
#: More than clocks differ by (eps in `slices.bound`).
GUARD_S = 1.0
#: All workers together hold at most one of this many parts.
_PARTS = 50
#: Where there is no quota: more than any job uses.
NO_QUOTA = 2**53


def share_of(quota: int | None, workers: int, least: int) -> int:
    """The most calls of a quota per day (None for no limit) that one of `workers` processes holds.

    A write has to reserve the `least`, so that the row can serve all workers.
    """
    if quota is None:
        return NO_QUOTA
    return min(quota, max(1, least, quota // (_PARTS * max(1, workers))))


def day_of(now: float) -> int:
    """The day whose quota may be charged at this time; it begins late, for clocks that differ."""
    return int((now - GUARD_S) // DAY_S)


def opens(day: int) -> float:
    """When calls of a day may begin, in seconds since the epoch."""
    return day * DAY_S + GUARD_S


def closes(day: int) -> float:
    """When calls of a day must end, in seconds since the epoch."""
    return (day + 1) * DAY_S - GUARD_S


class Allotment:
    """Calls that are charged to a day's quota and not made yet; the caller holds the lock."""

    def __init__(self) -> None:
        self.day = self.held = 0

    def put_back(self, day: int) -> None:
        """Put a call back that was taken and not made."""
        if day == self.day:
            self.held += 1

    def lacks(self, calls: int, day: int) -> int:
        """How many calls to charge, to hold this many of a day."""
        return max(0, calls - (self.held if day == self.day else 0))

    def charged(self, day: int, calls: int) -> None:
        """Add calls that were charged; the rest of another day is void."""
        self.held = calls + (self.held if day == self.day else 0)
        self.day = day

    def empty(self) -> tuple[int, int]:
        """Give up what is held: the day and the number of calls."""
        held, self.held = self.held, 0
        return self.day, held
