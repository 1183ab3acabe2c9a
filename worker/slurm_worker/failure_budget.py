"""How many failures in a row are tolerated before giving up; imports nothing."""

from __future__ import annotations


class FailureBudget:
    """Counts failures in a row; the one after the `allowed` number is too many."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._counted = 0
        #: Failures in a row, also those that do not count: the more, the longer to wait.
        self.failures = 0

    def allow(self, *, counts: bool = True) -> bool:
        """Record a failure; return whether to try again.

        With `counts` false it is not counted, as for a request that was throttled.
        """
        self.failures += 1
        self._counted += counts
        return self._counted <= self._allowed

    def reset(self) -> None:
        """Record a success."""
        self.failures = self._counted = 0
