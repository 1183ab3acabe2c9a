"""How many tokens a worker reserves at a time, and what that means for a vendor's limit."""

from __future__ import annotations

from slurm_worker.rate_limits.quota import share_of

MOST_TOKENS = 100
#: To the row of a limit: a third of what a partition takes, as refused writes count too.
MOST_WRITES_PER_S = 300
#: After this many fully used slices, the next slices are larger.
_CLEAN_SLICES = 40


def bound(rate: float, burst: int, send_window_s: float, skew_s: float, n: int, t: float) -> float:
    """The most requests in any window of `t` seconds.

    Args:
        rate: tokens per second.
        burst: tokens at once after an idle time.
        send_window_s: how late a token may be sent (L).
        skew_s: how wrong a worker's clock may be (eps).
        n: tokens of one reservation.
        t: the window's length in seconds.
    """
    return rate * (t + send_window_s + burst / rate + 2 * skew_s) + n


def safe_rate(
    quota: float, t: float, burst: int, send_window_s: float, skew_s: float, n: int
) -> float:
    """The rate that keeps `bound` within a vendor's `quota` per `t` seconds; 0 if none does."""
    return max(0.0, (quota - n - burst) / (t + send_window_s + 2 * skew_s))


def slice_of(rate: float, workers: int) -> int:
    """Tokens of one reservation.

    About a second's worth of a worker's share, so few writes and little waste; more where
    that would be many workers' writes to one row, of which DynamoDB takes 1,000 a second. The
    rate is in tokens per second, and `workers` processes share it.
    """
    writes_per_s = min(max(1, workers), MOST_WRITES_PER_S)
    return max(1, min(MOST_TOKENS, round(rate / writes_per_s)))


def reservation_of(rate: float, workers: int, quota: int | None) -> int:
    """Tokens of one reservation: `slice_of`, or the worker's part of a quota where that is less.

    The quota is in calls per day; None for no limit.
    """
    share = share_of(quota, workers, slice_of(rate, MOST_WRITES_PER_S))
    return min(slice_of(rate, workers), share)


class SliceSize:
    """How many slots a worker reserves at a time: as many as it uses before they expire.

    After two slices in a row with unused slots (one may be a pause) it falls to what was used.
    It rises slowly, by a quarter, so that trying wastes little of the schedule. It stays between
    `least`, with which the limit's row can serve all workers, and `most`.
    """

    def __init__(self, most: int, least: int) -> None:
        self.now = self._most = most
        self._least = min(most, least)
        self._wasteful = self._clean = 0
        self._used = 0

    @property
    def is_whole(self) -> bool:
        """Whether the worker uses all slots that it may reserve."""
        return self.now == self._most

    def record(self, used: int, late: int) -> None:
        """Record a slice that is over: its used slots, and those that passed unused."""
        if not late:
            self._wasteful = 0
            self._clean += 1
            if self._clean >= _CLEAN_SLICES:
                self.now = min(self._most, self.now + max(1, self.now // 4))
                self._clean = 0
            return
        self._clean = 0
        self._wasteful += 1
        if self._wasteful > 1:
            self.now = min(self.now, max(self._least, used, self._used))
        self._used = used
