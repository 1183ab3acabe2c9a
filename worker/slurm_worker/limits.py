"""Token leases: a shared rate limit by GCRA on one row.

The row holds the theoretical arrival time `tat` (microseconds, AWS time). A worker
reserves `n` tokens with one update that moves `tat` on by n/rate and so gets a private
slice of the schedule: token j may be sent only within [v, v + L] of its slot
v = tat' - n/rate + j/rate, checked right before sending. A token is never given back, so
crashes, pauses and lost replies only waste tokens. For any window T and any number of
workers  N(T) <= R*(T + L + burst/R + 2*eps) + n  (docs/architecture.md, "Rate limits").

A quota per day is counted in the same row and charged when tokens are reserved. After a
cut of the rate, slots that were granted under the old one are looked up before use.

After: ITU-T I.371 (generic cell rate algorithm), with the slots handed out in slices.
Requests: about one write per `n` tokens; half a read unit per slice held for over 2 s.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from slurm_worker import expressions, keys
from slurm_worker.config import LimitConfig
from slurm_worker.ports import Applied, Clock, Row, Rows, Statement, int_of
from slurm_worker.trail import Note, no_note

_CUT = 0.7
_CUT_WINDOW_S = 10.0
_RAISE = 1.05
_RAISE_AFTER_S = 10.0
#: The longest that a server's ``Retry-After`` is heeded.
MOST_RETRY_AFTER_S = 600.0
_MOST_TOKENS = 100
#: Of the row of a limit: a third of what a partition takes, for writes are refused, too.
_MOST_WRITES_PER_S = 300
_SHORTEST_HORIZON_S = 5.0
_SLEEP_SLICE_S = 0.5
_FRESH_S = 2.0
_DAY_S = 86_400
#: A new day is begun this much late, for clocks that differ.
_LATE_S = 1.0
#: Where there is no quota: more than anybody uses.
_NO_QUOTA = 2**53


class Stopped(Exception):
    """The worker is asked to stop while it waits for a token."""


@dataclass(slots=True)
class Numbers:
    """What a limiter was used for.

    Args:
        granted: tokens reserved.
        late: tokens thrown away, because their time had passed.
        stale: tokens thrown away, because the rate was cut after they were reserved.
        reservations: writes that reserved tokens.
        refusals: writes that didn't: the schedule was full, or our picture of it old.
        penalties: times that the server said 429.
    """

    granted: int = 0
    late: int = 0
    stale: int = 0
    reservations: int = 0
    refusals: int = 0
    penalties: int = 0

    def to_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


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
    that would be many workers' writes to one row, of which DynamoDB takes 1,000 a second.

    Args:
        rate: tokens per second.
        workers: worker processes that share the limit.
    """
    writes_per_s = min(max(1, workers), _MOST_WRITES_PER_S)
    return max(1, min(_MOST_TOKENS, round(rate / writes_per_s)))


class RateLimiter:
    """One shared limit, as one worker process uses it; safe to share between threads.

    Args:
        rows: the table.
        config: the limit.
        workers: workers that share it, for the size of a slice and the horizon.
        clock: AWS time.
        rng: jitter.
        note: told of the cuts of the rate that are this worker's doing.
    """

    def __init__(
        self,
        rows: Rows,
        config: LimitConfig,
        workers: int,
        clock: Clock,
        rng: random.Random,
        note: Note = no_note,
    ) -> None:
        self.config = config
        self.numbers = Numbers()
        self._rows = rows
        self._clock = clock
        self._rng = rng
        self._note = note
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._slots: deque[float] = deque()
        self._checked = 0.0
        self._epoch = 0
        self._crowded = False
        self._row: Row = {}
        self._pk = keys.limit_pk(config.scope, config.name)
        self._sk = keys.limit_sk()
        self.tokens = min(slice_of(config.rate, workers), config.quota_per_day or _MOST_TOKENS)
        #: All workers take their turn within this; a shorter horizon would have them poll.
        self._turn_s = workers * self.tokens / config.rate
        self._horizon_s = max(_SHORTEST_HORIZON_S, 1.2 * self._turn_s)

    def acquire(self, stopping: Callable[[], bool]) -> None:
        """Wait for a token whose time is now.

        Raises:
            Stopped: if `stopping` turns true meanwhile.
            ServiceError: if the table can't be reached.
        """
        while True:
            slot = self.slot(stopping)
            wait_until(slot, self._clock, stopping)
            if self.usable(slot):
                return

    def slot(self, stopping: Callable[[], bool]) -> float:
        """The next slot (AWS time); asks for more when there is none here.

        Raises:
            Stopped, ServiceError: as `acquire`.
        """
        while (slot := self.poll()) is None:
            wait_s = self.reserve()
            wait_until(self._clock.now() + wait_s, self._clock, stopping)
        return slot

    def poll(self) -> float | None:
        """A slot (AWS time) that is here and not over, without any request; None if none is."""
        with self._lock:
            if self._clock.boot_time() - self._checked > _FRESH_S:
                return None
            while self._slots:
                slot = self._slots.popleft()
                if self.usable(slot):
                    return slot
                self.numbers.late += 1
            return None

    def usable(self, slot: float) -> bool:
        """Whether a token may still be sent; to be asked right before sending."""
        return self._clock.now() <= slot + self.config.send_window_s

    def reserve(self) -> float:
        """Have slots to `poll`, with one request or two; seconds to wait before the next try.

        Raises:
            ServiceError: if the table can't be reached.
        """
        with self._asking:
            if self._slots and self._revalidate():
                return 0.0
            return self._reserve()

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429: cut the shared rate once per window, heed ``Retry-After``."""
        now = self._clock.now()
        self.numbers.penalties += 1
        with self._asking:
            with self._lock:
                self._slots.clear()
            row = self._read()
            if retry_after_s:
                pause = min(retry_after_s, MOST_RETRY_AFTER_S)
                # Refused means that the schedule is already later than that.
                self._rows.update(
                    self._pk, self._sk, expressions.PUSH_TAT, {"tat": _us(now + pause)}
                )
            cut = self._change_rate(
                row, expressions.CUT_RATE, self._own_rate(row) * _CUT, _CUT_WINDOW_S
            )
        if cut:
            self._note(
                "rate_cut",
                {
                    "limit": self.config.name,
                    "scope": self.config.scope,
                    "from": f"{self._own_rate(row):g}/s",
                    "to": f"{_rate(self._row):g}/s",
                    "retry_after_s": round(retry_after_s or 0),
                },
            )

    def _revalidate(self) -> bool:
        """Whether slots that were granted a while ago still stand: half a read unit."""
        if self._clock.boot_time() - self._checked <= _FRESH_S:
            return True
        row = self._rows.get(self._pk, self._sk, consistent=False) or {}
        with self._lock:
            self._checked = self._clock.boot_time()
            if int_of(row, "epoch") <= self._epoch:
                return True
            self.numbers.stale += len(self._slots)
            self._slots.clear()
            self._row = row
            return False

    def _reserve(self) -> float:
        """Reserve a slice. A lost reply wastes it: the client's repeat reserves another."""
        row = self._row or self._read()
        self._climb(row)
        row, rate = self._row, self._own_rate(self._row)
        cost = math.ceil(self.tokens * 1e6 / rate)
        now = _us(self._clock.now())
        floor = now - math.ceil(self.config.burst * 1e6 / rate)
        ceiling = now + _us(self._horizon_s)
        day = self._day(row)
        if day > int_of(row, "window"):
            row = self._begin_day(day)
        quota = self.config.quota_per_day or _NO_QUOTA
        behind = int_of(row, "tat") < floor and not self._crowded
        result = self._rows.update(
            self._pk,
            self._sk,
            expressions.RESERVE_NOW if behind else expressions.RESERVE_NEXT,
            {
                "cost": cost,
                "tokens": self.tokens,
                "floor": floor,
                "floor_plus_cost": floor + cost,
                "ceiling": ceiling,
                "epoch": int_of(row, "epoch"),
                "window": int_of(row, "window"),
                "most": quota - self.tokens,
            },
        )
        self._row = result.row or {}
        # Far ahead of what we took: others reserve too, and will have when we ask again, so
        # that our picture of the row is no guide to whether the schedule is behind.
        self._crowded = int_of(self._row, "tat") - now > 1.5 * cost
        if isinstance(result, Applied):
            self._take(self._row, cost, 1e6 / rate)
            return 0.0
        self.numbers.refusals += 1
        if int_of(self._row, "used") > quota - self.tokens and self._day(self._row) == day:
            return self._rng.uniform(1, 1 + self._turn_s) + (day + 1) * _DAY_S - now / 1e6
        ahead_s = (int_of(self._row, "tat") - ceiling) / 1e6
        # Else our picture of the row was old; the refusal brought the true one.
        return ahead_s + self._rng.uniform(0, self._turn_s) if ahead_s > 0 else 0.0

    def _take(self, row: Row, cost: int, step: float) -> None:
        first = int_of(row, "tat") - cost
        with self._lock:
            self._slots.extend((first + j * step) / 1e6 for j in range(self.tokens))
            self._checked = self._clock.boot_time()
            self._epoch = int_of(row, "epoch")
            self.numbers.reservations += 1
            self.numbers.granted += self.tokens

    def _day(self, row: Row) -> int:
        """The day whose quota is charged; days never go back, whatever the clocks say."""
        if self.config.quota_per_day is None:
            return int_of(row, "window")
        return max(int_of(row, "window"), int((self._clock.now() - _LATE_S) // _DAY_S))

    def _begin_day(self, day: int) -> Row:
        """Refused means that somebody else has begun it."""
        result = self._rows.update(
            self._pk, self._sk, expressions.NEW_WINDOW, {"window": day, "zero": 0}
        )
        self._row = result.row or {}
        return self._row

    def _own_rate(self, row: Row) -> float:
        """Tokens a second: no more than our job says, whatever others that share the limit say."""
        return min(_rate(row), self.config.rate)

    def _climb(self, row: Row) -> None:
        """Raise a rate that was cut, a little at a time while no 429 comes.

        One that was not is another configuration's, and ours is higher: it holds at once.
        """
        if _rate(row) >= self.config.rate:
            return
        if int_of(row, "rate") == int_of(row, "full"):
            self._change_rate(row, expressions.RAISE_RATE, self.config.rate, 0.0)
        elif self._clock.now() - int_of(row, "changed") / 1e6 > _RAISE_AFTER_S:
            rate = min(self.config.rate, _rate(row) * _RAISE)
            self._change_rate(row, expressions.RAISE_RATE, rate, _RAISE_AFTER_S)

    def _change_rate(self, row: Row, statement: Statement, rate: float, window_s: float) -> bool:
        """Change it unless another has; whether it was us. `changed` tells a lost reply of ours."""
        now = self._clock.now()
        epoch = int_of(row, "epoch")
        result = self._rows.update(
            self._pk,
            self._sk,
            statement,
            {
                "rate": max(1, round(rate * 1000)),
                "cap": round(self.config.rate * 1000),
                "full": max(int_of(row, "full"), round(self.config.rate * 1000)),
                "epoch": epoch,
                "before": _us(now - window_s),
                "now": _us(now),
                "one": 1,
            },
        )
        self._row = result.row or {}
        ours = (int_of(self._row, "changed"), int_of(self._row, "epoch")) == (_us(now), epoch + 1)
        return isinstance(result, Applied) or ours

    def _read(self) -> Row:
        row = self._rows.get(self._pk, self._sk)
        if row is None:
            fresh: Row = {
                "pk": self._pk,
                "sk": self._sk,
                "rate": round(self.config.rate * 1000),
                "full": round(self.config.rate * 1000),
                "tat": 0,
                "epoch": 0,
                "changed": 0,
                "used": 0,
                "window": 0,
            }
            row = self._rows.put_new(fresh).row or fresh
        self._row = row
        return row


def wait_until(when: float, clock: Clock, stopping: Callable[[], bool]) -> None:
    """Wait for a time of day.

    Raises:
        Stopped: if `stopping` turns true meanwhile.
    """
    while True:
        if stopping():
            raise Stopped
        left = when - clock.now()
        if left <= 0:
            return
        clock.sleep(min(left, _SLEEP_SLICE_S))


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


def _rate(row: Row) -> float:
    """Tokens per second; the row holds thousandths."""
    return max(1, int_of(row, "rate")) / 1000
