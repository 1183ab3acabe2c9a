"""Token leases: a shared rate limit by GCRA on one row.

The row holds the theoretical arrival time `tat` (microseconds, AWS time). A worker
reserves `n` tokens with one update that moves `tat` on by n/rate and so gets a private
slice of the schedule: token j has the slot v = tat' - n/rate + j/rate and may be sent only
within [v, v + (burst-1)/R + L], checked right before sending. After an idle time the schedule
begins (burst-1)/R before now, so that `burst` tokens may be sent at once. A slot is never given
back, so crashes, pauses and lost replies only waste slots. For any window T and any number of
workers  N(T) <= R*(T + L + burst/R + 2*eps) + n  (docs/architecture.md, "Rate limits").

The same row counts a quota per day: `quota.py`. Slots that were reserved more than 2 s ago are
used only after a read of the row shows that the rate was not cut since.

Source: ITU-T I.371 (generic cell rate algorithm); here slots are reserved in slices.
Requests: about one write per `n` tokens; half a read unit per slice held for over 2 s. If a
quota is held at the worker's end, a read and a write give it back.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.job_table import RecordEvent, ignore_event
from slurm_worker.protocol.ports import Applied, Clock, Refused, Row, Rows, Statement, int_of
from slurm_worker.rate_limits import statements
from slurm_worker.rate_limits.quota import NO_QUOTA, Allotment, closes, day_of, opens, share_of
from slurm_worker.rate_limits.slices import (
    MOST_TOKENS,
    MOST_WRITES_PER_S,
    SliceSize,
    reservation_of,
    slice_of,
)

_CUT = 0.7
_CUT_WINDOW_S = 10.0
_RAISE = 1.05
_RAISE_AFTER_S = 10.0
#: The longest ``Retry-After`` of a server that is respected.
MOST_RETRY_AFTER_S = 600.0
_SHORTEST_HORIZON_S = 5.0
_SLEEP_SLICE_S = 0.5
_FRESH_S = 2.0
_REFUSED_AT_ONCE = 4  #: refusals in a row after which the next try comes at once
_RETURN_TRIES = 4  #: to give back what is held of a day's quota


class Stopped(Exception):
    """The worker was stopped while it waited for a token."""


@dataclass(slots=True)
class LimiterCounts:
    """What a limiter has done."""

    granted: int = 0  #: calls that were granted, and charged to the day's quota where there is one
    returned: int = 0  #: granted calls that were given back at the end
    slots: int = 0  #: places in the schedule that were reserved; no fewer than calls
    late: int = 0  #: slots that were dropped because their time had passed
    stale: int = 0  #: slots that were dropped because the rate was cut after they were reserved
    reservations: int = 0  #: writes that reserved tokens
    #: Writes that reserved none: the schedule was full, or our copy of the row old.
    refusals: int = 0
    penalties: int = 0  #: answers with status 429


@dataclass(frozen=True, slots=True)
class Token:
    """One call that may be made."""

    at: float  #: not before this, in seconds since the epoch (AWS time)
    until: float  #: no later than this
    day: int  #: the day whose quota it is charged to


class RateLimiter:
    """One shared limit, as one of `workers` processes uses it; safe to share between threads.

    `record` is called for each cut of the rate that this process makes.
    """

    def __init__(
        self,
        rows: Rows,
        config: LimitConfig,
        workers: int,
        clock: Clock,
        rng: random.Random,
        record: RecordEvent = ignore_event,
    ) -> None:
        self.config = config
        self.counts = LimiterCounts()
        #: How long the first slot of the last slice was ahead when it was reserved.
        self.queue_s = 0.0
        self._rows = rows
        self._clock = clock
        self._rng = rng
        self._record = record
        self._lock = threading.Lock()
        self._request_lock = threading.Lock()
        self._slots: deque[float] = deque()
        self._allotment = Allotment()
        #: Slots of the last slice that were used, and that passed unused.
        self._used = self._late = 0
        self._checked = 0.0
        self._epoch = 0
        self._crowded = False
        self._refused_in_a_row = 0
        self._row: Row = {}
        self._key = keys.limit_pk(config.scope, config.name), keys.LIMIT_SK
        self._quota = config.quota_per_day or NO_QUOTA
        least = slice_of(config.rate, MOST_WRITES_PER_S)
        self._share = share_of(config.quota_per_day, workers, least)
        #: Tokens of one reservation; more only where a burst is due.
        self.tokens = reservation_of(config.rate, workers, config.quota_per_day)
        self._size = SliceSize(self.tokens, least)
        self._workers = workers
        self._burst_s = (config.burst - 1) / config.rate
        #: All workers take their turn within this time; with a shorter horizon they would poll.
        self._turn_s = workers * self.tokens / config.rate
        self._horizon_s = max(_SHORTEST_HORIZON_S, 1.2 * self._turn_s)

    def token(self, stopping: Callable[[], bool]) -> Token:
        """The next token; reserves more when there is none here.

        Raises:
            Stopped: if `stopping` turns true meanwhile.
            ServiceError: if the table can't be reached.
        """
        while (token := self.poll()) is None:
            wait_s = self.reserve()
            wait_until(self._clock.now() + wait_s, self._clock, stopping)
        return token

    def poll(self) -> Token | None:
        """A token that is held and still valid, without a request; None if there is none."""
        with self._lock:
            if self._clock.boot_time() - self._checked > _FRESH_S:
                return None
            now = self._clock.now()
            while self._slots and self._allotment.held:
                token = self._token(self._slots.popleft())
                if token.until >= max(now, token.at):
                    self._allotment.held -= 1
                    self._used += 1
                    return token
                self._late += 1
                self.counts.late += 1
            self._slots.clear()
            return None

    def usable(self, token: Token) -> bool:
        """Whether a token may still be used; call this right before sending."""
        return self._clock.now() <= token.until

    def discard(self, token: Token) -> None:
        """Drop a token that no call is made for: its slot is lost, its call is not."""
        with self._lock:
            self._allotment.put_back(token.day)
            self._used -= 1
            self._late += 1
            self.counts.late += 1

    def close(self) -> None:
        """Give back what is held of the day's quota: a read and a write, if anything is.

        A write is not repeated if it may have been applied: some of the quota is then lost for
        the day, as in a crash.

        Raises:
            ServiceError: if the table can't be reached.
        """
        with self._lock:
            self._slots.clear()
            day, held = self._allotment.empty()
        if self.config.quota_per_day is None or not held:
            return
        request = f"{self._rng.getrandbits(64):016x}"
        for _ in range(_RETURN_TRIES):
            row = self._read()
            if int_of(row, "window") != day:
                return
            returns = int_of(row, "returns")
            result = self._update(statements.return_quota(held, day, returns, request))
            row = result.row or {}
            if isinstance(result, Applied) or row.get("returned_by") == request:
                self.counts.returned += held
                return
            if int_of(row, "returns") != returns + 1:
                return
            # Another worker has given back meanwhile, so ours was refused each time.

    def reserve(self) -> float:
        """Get slots for `poll` by one or two requests; seconds to wait before the next try.

        Raises:
            ServiceError: if the table can't be reached.
        """
        with self._request_lock:
            if self._slots and self._revalidate():
                return 0.0
            return self._reserve()

    def penalize(self, retry_after_s: float | None) -> None:
        """After a 429: cut the shared rate once per window, and respect ``Retry-After``."""
        now = self._clock.now()
        self.counts.penalties += 1
        with self._request_lock:
            with self._lock:
                self._slots.clear()
            row = self._read()
            if retry_after_s:
                pause = min(retry_after_s, MOST_RETRY_AFTER_S)
                # Refused means that the schedule is already later than that.
                self._update(statements.push_schedule(_us(now + pause)))
            now = self._clock.now()
            rate = _thousandths(self._own_rate(row) * _CUT)
            statement = statements.cut_rate(
                rate, int_of(row, "epoch"), _us(now), _us(now - _CUT_WINDOW_S)
            )
            cut = self._change_rate(statement, row, now)
        if cut:
            rates = {"from": f"{self._own_rate(row):g}/s", "to": f"{_rate(self._row):g}/s"}
            which = {"limit": self.config.name, "scope": self.config.scope}
            retry = round(retry_after_s or 0)
            self._record("rate_cut", {**which, **rates, "retry_after_s": retry})

    def _revalidate(self) -> bool:
        """Whether slots that were reserved a while ago are still valid: half a read unit."""
        if self._clock.boot_time() - self._checked <= _FRESH_S:
            return True
        row = self._rows.get(*self._key, consistent=False) or {}
        with self._lock:
            self._checked = self._clock.boot_time()
            if int_of(row, "epoch") <= self._epoch:
                return True
            self.counts.stale += len(self._slots)
            self._slots.clear()
            self._row = row
            return False

    def _reserve(self) -> float:
        """Reserve a slice. A lost reply wastes it: the client's repeat reserves another."""
        row = self._row or self._read()
        self._restore_rate(row)
        rate, now = self._own_rate(self._row), self._clock.now()
        floor = _us(now) - math.ceil(self._burst_s * 1e6)
        if wait_s := self._wait_for_day(now, floor):
            return wait_s
        row = self._row
        day, behind_us = int_of(row, "window"), _us(now) - max(int_of(row, "tat"), floor)
        tokens = self._wanted(0 if self._crowded else behind_us * rate / 1e6)
        charge = self._allotment.lacks(tokens, day)
        cost = math.ceil(tokens * 1e6 / rate)
        ceiling = _us(now) + _us(self._horizon_s)
        slots = {"cost": cost, "charge": charge, "floor": floor}
        seen = {"epoch": int_of(row, "epoch"), "window": day, "most": self._quota - charge}
        if int_of(row, "tat") < floor and not self._crowded:
            statement = statements.reserve_now(**slots, **seen)
        else:
            statement = statements.reserve_next(**slots, **seen, ceiling=ceiling)
        result = self._update(statement)
        self._row = result.row or {}
        # Far ahead of what we reserved: other workers reserve too, also before our next request.
        # So our copy of the row does not show whether the schedule is behind.
        self._crowded = int_of(self._row, "tat") - _us(now) > 1.5 * cost
        if isinstance(result, Applied):
            self._refused_in_a_row = 0
            self._take(int_of(self._row, "tat") - cost, tokens, 1e6 / rate, charge)
            return 0.0
        return self._refused((int_of(self._row, "tat") - ceiling) / 1e6)

    def _refused(self, ahead_s: float) -> float:
        """Seconds to wait after a refusal; the schedule is `ahead_s` beyond the horizon."""
        self.counts.refusals += 1
        if ahead_s > 0:
            return ahead_s + self._rng.uniform(0, self._turn_s)
        # Our copy of the row was old; the refusal brought the current one. If that happens again
        # and again, we must not send requests without a pause.
        self._refused_in_a_row += 1
        over = self._refused_in_a_row - _REFUSED_AT_ONCE
        return self._rng.uniform(0, min(1.0, 0.01 * 2.0**over)) if over > 0 else 0.0

    def _wanted(self, due: float) -> int:
        """How many slots to take: our part of those that are `due`, as after an idle time."""
        tokens = self._size.now
        if self._size.is_whole:
            tokens = max(tokens, min(math.ceil(due / self._workers), MOST_TOKENS, self._share))
        row = self._row
        left = self._quota - int_of(row, "used")
        lacks = self._allotment.lacks(tokens, int_of(row, "window"))
        return tokens - max(0, lacks - left)

    def _wait_for_day(self, now: float, floor: int) -> float:
        """Seconds until the quota per day allows a call, or 0; begins the day if it is due."""
        if self.config.quota_per_day is None:
            return 0.0
        if day_of(now) > int_of(self._row, "window"):
            # Refused means that another worker has begun it.
            self._row = self._update(statements.begin_day(day_of(now))).row or {}
        day = int_of(self._row, "window")
        if now < opens(day):
            return opens(day) - now
        slot = max(int_of(self._row, "tat"), floor) / 1e6
        if max(now, slot) < closes(day) and self._wanted(0) > 0:
            return 0.0
        # Workers start a day at different times within a turn, so that calls spread out.
        return opens(day + 1) - now + self._rng.uniform(0, self._turn_s)

    def _take(self, first: int, tokens: int, step: float, charge: int) -> None:
        with self._lock:
            self._size.record(self._used, self._late)
            self._used = self._late = 0
            self._allotment.charged(int_of(self._row, "window"), charge)
            self.queue_s = max(0.0, first / 1e6 - self._clock.now())
            self._slots.extend((first + j * step) / 1e6 for j in range(tokens))
            self._checked = self._clock.boot_time()
            self._epoch = int_of(self._row, "epoch")
            self.counts.reservations += 1
            self.counts.slots += tokens
            self.counts.granted += charge

    def _token(self, slot: float) -> Token:
        day, until = self._allotment.day, slot + self._burst_s + self.config.send_window_s
        if self.config.quota_per_day is None:
            return Token(slot, until, day)
        return Token(max(slot, opens(day)), min(until, closes(day)), day)

    def _own_rate(self, row: Row) -> float:
        """Tokens per second: the row's rate, but at most our job's."""
        return min(_rate(row), self.config.rate)

    def _restore_rate(self, row: Row) -> None:
        """Raise a rate that was cut, a little at a time while no 429 comes.

        A rate that was not cut is that of another job's configuration: ours applies at once.
        """
        cap = _thousandths(self.config.rate)
        if int_of(row, "rate") >= cap:
            return
        if int_of(row, "rate") == int_of(row, "full"):
            rate, window_s = self.config.rate, 0.0
        elif self._clock.now() - int_of(row, "changed") / 1e6 > _RAISE_AFTER_S:
            rate, window_s = min(self.config.rate, _rate(row) * _RAISE), _RAISE_AFTER_S
        else:
            return
        now, epoch = self._clock.now(), int_of(row, "epoch")
        limits = {"cap": cap, "full": max(int_of(row, "full"), cap)}
        statement = statements.raise_rate(
            _thousandths(rate), epoch, _us(now), _us(now - window_s), **limits
        )
        self._change_rate(statement, row, now)

    def _change_rate(self, statement: Statement, row: Row, now: float) -> bool:
        """Change the rate unless another worker has; whether this worker did.

        After a lost reply, `changed` shows that the change is ours.
        """
        result = self._update(statement)
        self._row = result.row or {}
        changed = int_of(self._row, "changed"), int_of(self._row, "epoch")
        return isinstance(result, Applied) or changed == (_us(now), int_of(row, "epoch") + 1)

    def _update(self, statement: Statement) -> Applied | Refused:
        return self._rows.update(*self._key, statement)

    def _read(self) -> Row:
        row = self._rows.get(*self._key)
        if row is None:
            (pk, sk), rate = self._key, _thousandths(self.config.rate)
            counters = dict.fromkeys(("tat", "epoch", "changed", "used", "window"), 0)
            fresh: Row = {"pk": pk, "sk": sk, "rate": rate, "full": rate, **counters}
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


def _thousandths(rate: float) -> int:
    """As the row holds a rate: rounded, as 500 a minute has no exact value; never 0."""
    return max(1, round(rate * 1000))


def _rate(row: Row) -> float:
    """Tokens per second; the row holds thousandths."""
    return max(1, int_of(row, "rate")) / 1000
