"""Token leases: a shared rate limit by GCRA on one row.

The row holds the theoretical arrival time `tat` (microseconds, AWS time). A worker
reserves `n` tokens with one update that moves `tat` on by n/rate and so gets a private
slice of the schedule: token j may be sent only within [v, v + L] of its slot
v = tat' - n/rate + j/rate, checked right before sending. A token is never given back, so
crashes, pauses and lost replies only waste tokens. For any window T and any number of
workers  N(T) <= R*(T + L + burst/R + 2*eps) + n  (docs/architecture.md, "Rate limits").

After: ITU-T I.371 (generic cell rate algorithm), with the slots handed out in slices.
Requests: about one write per `n` tokens.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from slurm_worker import expressions, keys
from slurm_worker.config import LimitConfig
from slurm_worker.ports import Applied, Clock, Row, Rows, Statement, int_of

_CUT = 0.7
_CUT_WINDOW_S = 10.0
_RAISE = 1.05
_RAISE_AFTER_S = 10.0
_MOST_RETRY_AFTER_S = 600.0
_MOST_TOKENS = 100
_SHORTEST_HORIZON_S = 5.0
_SLEEP_SLICE_S = 0.5


class Stopped(Exception):
    """The worker is asked to stop while it waits for a token."""


@dataclass(frozen=True, slots=True)
class _Full:
    """The schedule is reserved up to the horizon: ask again after `wait_s`."""

    wait_s: float


class RateLimiter:
    """One shared limit, as one worker process uses it; safe to share between threads.

    Args:
        rows: the table.
        config: the limit.
        workers: workers that share it, for the size of a slice and the horizon.
        clock: AWS time.
        rng: jitter.
    """

    def __init__(
        self, rows: Rows, config: LimitConfig, workers: int, clock: Clock, rng: random.Random
    ) -> None:
        self.config = config
        self._rows = rows
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._slots: deque[float] = deque()
        self._row: Row = {}
        self._pk = keys.limit_pk(config.scope, config.name)
        self._sk = keys.limit_sk()
        share = config.rate / max(1, workers)
        #: About a second's worth of this worker's share, so few writes and little waste.
        self.tokens = max(1, min(_MOST_TOKENS, round(share)))
        self._turn_s = workers * self.tokens / config.rate
        self._horizon_s = max(_SHORTEST_HORIZON_S, 1.2 * self._turn_s)

    def acquire(self, stopping: Callable[[], bool]) -> None:
        """Wait for a token whose time is now.

        Raises:
            Stopped: if `stopping` turns true meanwhile.
        """
        while True:
            slot = self._next_slot(stopping)
            self._wait_until(slot, stopping)
            if self._clock.now() <= slot + self.config.send_window_s:
                return

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429: cut the shared rate once per window, heed ``Retry-After``."""
        now = self._clock.now()
        with self._lock:
            self._slots.clear()
            row = self._read()
            if retry_after_s:
                pause = min(retry_after_s, _MOST_RETRY_AFTER_S)
                # Refused means that the schedule is already later than that.
                self._rows.update(
                    self._pk, self._sk, expressions.PUSH_TAT, {"tat": _us(now + pause)}
                )
            self._change_rate(row, expressions.CUT_RATE, _rate(row) * _CUT, _CUT_WINDOW_S)

    def _next_slot(self, stopping: Callable[[], bool]) -> float:
        while True:
            with self._lock:
                if self._slots:
                    return self._slots.popleft()
                result = self._reserve()
            if isinstance(result, _Full):
                self._wait_until(self._clock.now() + result.wait_s, stopping)

    def _reserve(self) -> _Full | None:
        """Reserve a slice. A lost reply wastes it: the client's repeat reserves another."""
        row = self._row or self._read()
        self._climb(row)
        row = self._row
        cost = math.ceil(self.tokens * 1e6 / _rate(row))
        now = _us(self._clock.now())
        floor = now - math.ceil(self.config.burst * 1e6 / _rate(row))
        ceiling = now + _us(self._horizon_s)
        behind = int_of(row, "tat") < floor
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
            },
        )
        self._row = result.row or {}
        if isinstance(result, Applied):
            first = int_of(self._row, "tat") - cost
            step = 1e6 / _rate(row)
            self._slots.extend((first + j * step) / 1e6 for j in range(self.tokens))
            return None
        ahead = (int_of(self._row, "tat") - ceiling) / 1e6
        if ahead > 0:
            return _Full(ahead + self._rng.uniform(0, self._turn_s))
        # Our picture of the row was old; the refusal brought the true one.
        return None

    def _climb(self, row: Row) -> None:
        """Raise a rate that was cut, a little at a time while no 429 comes."""
        since = self._clock.now() - int_of(row, "changed") / 1e6
        if _rate(row) < self.config.rate and since > _RAISE_AFTER_S:
            rate = min(self.config.rate, _rate(row) * _RAISE)
            self._change_rate(row, expressions.RAISE_RATE, rate, _RAISE_AFTER_S)

    def _change_rate(self, row: Row, statement: Statement, rate: float, window_s: float) -> None:
        now = self._clock.now()
        result = self._rows.update(
            self._pk,
            self._sk,
            statement,
            {
                "rate": max(1, round(rate * 1000)),
                "cap": round(self.config.rate * 1000),
                "epoch": int_of(row, "epoch"),
                "before": _us(now - window_s),
                "now": _us(now),
                "one": 1,
            },
        )
        self._row = result.row or {}

    def _read(self) -> Row:
        row = self._rows.get(self._pk, self._sk)
        if row is None:
            fresh: Row = {
                "pk": self._pk,
                "sk": self._sk,
                "rate": round(self.config.rate * 1000),
                "tat": 0,
                "epoch": 0,
                "changed": 0,
                "used": 0,
            }
            row = self._rows.put_new(fresh).row or fresh
        self._row = row
        return row

    def _wait_until(self, when: float, stopping: Callable[[], bool]) -> None:
        while True:
            if stopping():
                raise Stopped
            left = when - self._clock.now()
            if left <= 0:
                return
            self._clock.sleep(min(left, _SLEEP_SLICE_S))


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


def _rate(row: Row) -> float:
    """Tokens per second; the row holds thousandths."""
    return max(1, int_of(row, "rate")) / 1000
