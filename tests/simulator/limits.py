"""One seed of a shared rate limit: its workers, its quota and its midnight, and the promises.

The worker's own limiter runs with a table that loses, repeats and delays requests. Workers crash,
pause, end and are replaced, and their clocks differ. The checks are the bound in every window, the
quota of each day, that charged tokens are used, and that a burst is available after an idle time.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from slurm_worker.errors import ServiceError
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.keys import LIMIT_SK, limit_pk
from slurm_worker.protocol.ports import Rows, int_of
from slurm_worker.rate_limits.limiter import RateLimiter, Stopped
from slurm_worker.rate_limits.slices import bound as bound_of
from slurm_worker.rate_limits.slices import slice_of
from tests.simulator.checks.rows import Violation, check_rules
from tests.simulator.coverage import Coverage
from tests.simulator.engine.reduction import WHOLE, Reduction
from tests.simulator.engine.schedule import Host, Overrun, Schedule, SimClock
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.network import Network
from tests.simulator.stores.outages import FaultRates
from tests.simulator.stores.rows import SimRows, WatchedRows, remember

_DAY_S = 86_400
#: A midnight (UTC).
_MIDNIGHT = 19_700.0 * _DAY_S
_CALLS = 1_500
_UNTIL_S = 20_000.0
_IDLE_S = 400.0
_WINDOWS_S = (0.01, 0.2, 1.0, 5.0, 60.0)
#: All workers together may hold a fiftieth of a quota, and one call each.
_PARTS = 50
#: What must be used of a quota that can be, where nothing goes wrong.
_LEAST_USED = 0.95

#: Makes the limiter of one worker.
Make = Callable[[Rows, LimitConfig, int, SimClock, random.Random], RateLimiter]


@dataclass(frozen=True, slots=True)
class LimitReport:
    """The result of one seed.

    Args:
        calls: how many were made.
        requests: by name.
        faults: by name, with crashes and pauses.
    """

    seed: int
    calls: int
    requests: Counter[str]
    faults: Counter[str]
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Shape:
    """A limit and those who share it.

    Args:
        hosts: worker processes.
        skew_s: the most that a clock is wrong.
        call_s: mean seconds of a call.
        calm: nothing goes wrong.
        spent: part of what workers can do before midnight that is the day's quota; None for none.
    """

    rate: float
    burst: int
    send_window_s: float
    hosts: int
    skew_s: float
    call_s: float
    calm: bool
    spent: float | None

    @classmethod
    def drawn(cls, rng: random.Random) -> Shape:
        """A random shape."""
        return cls(
            rate=10 ** rng.uniform(-0.7, 2.3),
            burst=rng.choice((1, 1, 2, 10, 100)),
            send_window_s=rng.choice((0.1, 0.2, 1.0, 5.0)),
            hosts=rng.choice((1, 2, 3, 5, 8)),
            skew_s=rng.choice((0.0, 0.02, 0.1, 0.4)),
            call_s=rng.choice((0.0, 0.002, 0.1, 0.5, 3.0, 30.0, 120.0)),
            calm=rng.random() < 0.3,
            spent=rng.uniform(0.05, 0.4) if rng.random() < 0.7 else None,
        )

    @property
    def before_s(self) -> float:
        """Seconds before midnight at which the workers begin."""
        return min(900.0, max(30.0, 5 * self.call_s, _CALLS / self._per_s))

    @property
    def config(self) -> LimitConfig:
        """The limit, with a quota that the workers can use up before midnight."""
        quota = self.spent and max(1, int(self._per_s * self.before_s * self.spent))
        return LimitConfig(
            "api",
            self.rate,
            self.burst,
            send_window_s=self.send_window_s,
            quota_per_day=quota or None,
        )

    @property
    def _per_s(self) -> float:
        return min(self.rate, self.hosts / (self.call_s + 0.05))


@dataclass(eq=False)
class _Worker:
    host: Host
    stops: bool = False


@dataclass
class LimitSimulation:
    """One run.

    Args:
        seed: decides everything.
        make: makes a limiter; a broken one, for checking that the simulator would notice.
        shape: of the limit and its workers; drawn from the seed where it is not given.
        reduced: how the run is smaller than the seed says.
    """

    seed: int
    make: Make = RateLimiter
    shape: Shape | None = None
    reduced: Reduction = WHOLE
    sends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.schedule, self.rows = Schedule(_UNTIL_S), WatchedRows()
        self.seen = Seen(self.seed, self.reduced.keep, lambda: self.schedule.now)
        self.rows.say = self.seen.say
        self._moments = 0
        self.rows.on_broken = lambda rule: self.schedule.fail(Violation(rule))
        shape = self.shape or Shape.drawn(rng)
        shape = replace(shape, hosts=min(shape.hosts, self.reduced.workers))
        self.hosts, self.skew_s, self.call_s = shape.hosts, shape.skew_s, shape.call_s
        self.calm, self.before_s, self.config = shape.calm, shape.before_s, shape.config
        worst = 0.0 if self.calm else rng.choice((0.01, 0.04, 0.1))
        lost, replies, throttles, slow, late = (rng.uniform(0, worst) for _ in range(5))
        stale_s = 0.0 if self.calm else rng.choice((0.0, 1.0))
        self.rates = FaultRates(
            lost, replies, throttles, slow, late, _UNTIL_S, stale_read_s=stale_s
        )
        remember(self.rows, self.seen, self.schedule)
        self.live: list[_Worker] = []
        self.used = 0
        self.burst_from = 0.0

    def run(self) -> LimitReport:
        """Run it and check every promise.

        Raises:
            Violation: naming the promise.
        """
        try:
            self.schedule.run(Host("main"), self._main)
        except Overrun as error:
            raise Violation(f"workers wait forever: {error}") from error
        check_rules(self.rows)
        self._check_bound()
        if self.config.quota_per_day is not None:
            self._check_quota(self.config.quota_per_day)
        elif self.calm:
            self._check_burst()
        return LimitReport(
            self.seed,
            len(self.sends),
            self.seen.requests,
            self.seen.faults,
            Coverage.of(self.rows, self.seen),
        )

    @property
    def _burst_s(self) -> float:
        """The time of a burst: a clock that is behind shows a token later than one ahead."""
        return 1.0 + 2 * self.skew_s

    # --- what happens -----------------------------------------------------------

    def _main(self) -> None:
        for number in range(self.hosts):
            self._start(f"w{number}", self.call_s)
        number = self.hosts
        while self.schedule.now < self.before_s - 0.5:
            left_s = self.before_s - 0.5 - self.schedule.now
            self._moments += 1
            rng = self.seen.rng_of(f"moment {self._moments}")
            wait_s = rng.expovariate(10 / self.before_s)
            self.schedule.sleep(left_s if self.calm else min(left_s, wait_s))
            if not self.calm and self.schedule.now < self.before_s - 1:
                number += 1
                self._trouble(f"w{number}", rng)
        rng = self.seen.rng_of("midnight")
        if not self.calm and rng.random() < 0.5 and self.seen.happens("midnight", "end"):
            # What it gives back may arrive on the next day.
            worker = rng.choice(self.live)
            self.live.remove(worker)
            worker.stops = True
            self._start(f"w{number + 1}", self.call_s)
        # Right before midnight: what the day's calls have been charged.
        row = self.rows.get(limit_pk(self.config.scope, self.config.name), LIMIT_SK) or {}
        self.used = int_of(row, "used")
        self.schedule.sleep(self.before_s / 4)
        for each in self.live:
            each.stops = True
        if self.config.quota_per_day is None:
            self.schedule.sleep(_IDLE_S + 2 * self.call_s + self.config.burst / self.config.rate)
            self.burst_from = self.schedule.now
            fresh = [self._start(f"b{each}", 0.0) for each in range(self.hosts)]
            self.schedule.sleep(self._burst_s + 1.0)
            for each in fresh:
                each.stops = True

    def _trouble(self, name: str, rng: random.Random) -> None:
        worker = rng.choice(self.live)
        kind = rng.choice(("kill", "pause", "end", "freeze", "freeze"))
        if not self.seen.happens(f"moment {self._moments}", kind):
            return
        if kind in ("pause", "freeze"):
            # All of them at once, as when a node or a cluster is suspended; or one.
            seconds = rng.uniform(0, self.before_s / 20)
            for each in self.live if kind == "freeze" else [worker]:
                self.schedule.pause(each.host, seconds)
            return
        self.live.remove(worker)
        worker.stops = True
        if kind == "kill":
            self.schedule.kill(worker.host)
        self._start(name, self.call_s)

    def _start(self, name: str, call_s: float) -> _Worker:
        rng = self.seen.rng_of(name)
        worker = _Worker(Host(name, rng.uniform(-1, 1) * self.skew_s))
        self.live.append(worker)
        self.schedule.spawn(worker.host, lambda: self._work(worker, call_s, rng))
        return worker

    def _work(self, worker: _Worker, call_s: float, rng: random.Random) -> None:
        epoch = _MIDNIGHT - self.before_s
        clock = SimClock(self.schedule, worker.host, epoch)
        rows = SimRows(self.rows, Network(self.schedule, rng, self.rates, self.seen), self.seen)
        pace = TokenThrottle(
            [self.make(rows, self.config, self.hosts, clock, rng)], clock, lambda: worker.stops
        )
        while not worker.stops:
            try:
                pace.acquire(None)
            except Stopped:
                break
            except ServiceError:
                self.seen.faults["gave up"] += 1
                continue
            self.sends.append(self.schedule.now)
            self.schedule.sleep(rng.uniform(0.5, 1.5) * call_s)
        pace.close()

    # --- what must hold -----------------------------------------------------------

    def _check_bound(self) -> None:
        sends = sorted(self.sends)
        limit = self.config
        tokens = slice_of(limit.rate, self.hosts)
        for window in _WINDOWS_S:
            most = bound_of(
                limit.rate, limit.burst, limit.send_window_s, self.skew_s, tokens, window
            )
            for first, when in enumerate(sends):
                count = bisect_right(sends, when + window) - first
                if count > most + 1e-6:
                    raise Violation(
                        f"{count} calls within {window:g} s of {when:.1f}, {most:.1f} allowed"
                    )

    def _check_quota(self, quota: int) -> None:
        today = sum(when < self.before_s for when in self.sends)
        for calls, day in ((today, "day"), (len(self.sends) - today, "day after")):
            if calls > quota:
                raise Violation(f"{calls} calls in a {day} with a quota of {quota}")
        if self.used < today:
            raise Violation(f"{today} calls were made, {self.used} are counted")
        if self.calm and today < _LEAST_USED * quota:
            raise Violation(f"{today} calls in a day with a quota of {quota}")
        # Charges that no worker can have reported: crashes, lost replies, requests given up.
        faults = self.seen.faults
        lost = sum(faults[name] for name in ("kill", "end", "lost_reply", "late", "gave up"))
        most = (self.hosts + lost) * (1 + slice_of(self.config.rate, 300) + quota / _PARTS)
        if self.used - today > most:
            raise Violation(
                f"{today} calls were made, {self.used} charged, at most {most:.0f} more"
            )

    def _check_burst(self) -> None:
        end = self.burst_from + self._burst_s
        given = sum(self.burst_from <= when <= end for when in self.sends)
        if given < self.config.burst:
            raise Violation(f"{given} calls at once after an idle time, of {self.config.burst}")
