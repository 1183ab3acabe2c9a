"""Leases in a row of which not one item came: the worker waits longer each time, then ends.

Whatever the cause (lease times that leave no time, a clock that jumps, a node that freezes), a
worker that leases and gives back for ever costs requests and does nothing. Makes no requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable

#: So many in a row, and the worker ends; before that it waits 1, 2, 4 … seconds.
MOST_IN_A_ROW = 5


class NoProgress(Exception):
    """The worker's leases come to nothing."""

    def __init__(self, leases: int) -> None:
        super().__init__(f"none of {leases} leases in a row brought one item to its end")
        self.leases = leases


class Fruitless:
    """Counts leases in a row that came to nothing.

    Args:
        rng: jitter.
        sleep: waits so many seconds, or less where the worker is asked to stop.
    """

    def __init__(self, rng: random.Random, sleep: Callable[[float], object]) -> None:
        self._rng = rng
        self._sleep = sleep
        self.in_a_row = 0

    def ended(self, *, progressed: bool) -> None:
        """A lease is over; wait where it came to nothing.

        Raises:
            NoProgress: where too many in a row have.
        """
        if progressed:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise NoProgress(self.in_a_row)
        self._sleep(2.0 ** (self.in_a_row - 1) * self._rng.uniform(0.8, 1.2))
