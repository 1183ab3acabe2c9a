"""A limit's quota per day, as far as one worker process holds a part of it.

The quota is charged by the write that reserves slots of the schedule, and only for calls that the
worker does not hold yet. A slot that passes unused leaves its call with the worker, for a later
slot. So a call is charged once, and a crash loses no more than the worker held. All workers
together hold at most a fiftieth of the quota. Makes no requests.

Calls keep `GUARD_S` away from midnight (UTC) on both sides, so that a call falls into the day that
was charged for it although clocks differ.
"""

from __future__ import annotations

DAY_S = 86_400
#: More than clocks differ by (eps in `slices.bound`).
GUARD_S = 1.0
#: All workers together hold at most one part in so many.
_PARTS = 50
#: Where there is no quota: more than anybody uses.
NO_QUOTA = 2**53


def share_of(quota: int | None, workers: int, least: int) -> int:
    """The most calls that one of `workers` processes holds.

    Args:
        quota: calls per day; None for no limit.
        workers: worker processes that share it.
        least: what a write has to reserve, for the row to serve all workers.
    """
    if quota is None:
        return NO_QUOTA
    return min(quota, max(1, least, quota // (_PARTS * max(1, workers))))


def day_of(now: float) -> int:
    """The day whose quota may be charged at this time; it begins late, for clocks that differ."""
    return int((now - GUARD_S) // DAY_S)


def opens(day: int) -> float:
    """From when on calls of a day may be made, in seconds since the epoch."""
    return day * DAY_S + GUARD_S


def closes(day: int) -> float:
    """Until when calls of a day may be made."""
    return (day + 1) * DAY_S - GUARD_S


class Allotment:
    """Calls that are charged to a day's quota and not made; the caller has the lock."""

    def __init__(self) -> None:
        self.day = 0
        self.held = 0

    def take(self) -> bool:
        """Take one for a call; False if there is none."""
        if self.held <= 0:
            return False
        self.held -= 1
        return True

    def put_back(self, day: int) -> None:
        """A call that was taken is surely not made."""
        if day == self.day:
            self.held += 1

    def lacks(self, calls: int, day: int) -> int:
        """How many to charge, to hold so many of this day."""
        return max(0, calls - (self.held if day == self.day else 0))

    def charged(self, day: int, calls: int) -> None:
        """So many more were charged; what is left of another day is void."""
        self.held = calls + (self.held if day == self.day else 0)
        self.day = day

    def empty(self) -> tuple[int, int]:
        """The day and what was held of it; nothing is, from here on."""
        held, self.held = self.held, 0
        return self.day, held
