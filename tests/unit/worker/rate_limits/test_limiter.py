"""Rate limits: never over the bound, whatever the number of workers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_worker.execution.flight_recorder import HangDetector, Recorder
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.ports import Applied, Clock, Refused, Rows, Statement, Value
from slurm_worker.rate_limits.limiter import RateLimiter, Stopped
from slurm_worker.rate_limits.slices import bound, safe_rate, slice_of
from slurm_worker.testing import ManualClock, MemoryRows
from tests.simulator.engine.schedule import Host, Schedule, SimClock
from tests.simulator.limits import LimitSimulation, Shape


def never() -> bool:
    return False


def take(limit: RateLimiter, clock: Clock, stopping: Callable[[], bool] = never) -> None:
    """Take a token, as a handler's call does."""
    TokenThrottle([limit], clock, stopping).acquire(None)


def limiter(
    rows: MemoryRows, clock: ManualClock, rate: float = 10.0, workers: int = 1, seed: int = 1
) -> RateLimiter:
    config = LimitConfig("api", rate=rate, burst=1, send_window_s=1.0)
    return RateLimiter(rows, config, workers, clock, random.Random(seed))


def test_one_worker_sends_at_the_rate() -> None:
    clock = ManualClock()
    limit = limiter(MemoryRows(), clock)
    start = clock.now()
    for _ in range(100):
        take(limit, clock)
    assert 9.0 <= clock.now() - start <= 11.5


@pytest.mark.parametrize("rate", [100.0, 2_000.0, 30_000.0])
@pytest.mark.parametrize("workers", [1, 300, 1_000, 10_000])
def test_however_many_workers_share_a_limit_its_row_can_serve_them(
    rate: float, workers: int
) -> None:
    asked_per_s = rate / slice_of(rate, workers)
    assert asked_per_s <= 400


def test_no_window_holds_more_tokens_than_the_bound() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limits = [limiter(rows, clock, workers=4, seed=n) for n in range(4)]
    sent = []
    rng = random.Random(3)
    for _ in range(400):
        take(rng.choice(limits), clock)
        sent.append(clock.now())
        if rng.random() < 0.05:
            clock.advance(rng.uniform(0, 20))
    rate, window, burst = 10.0, 1.0, 1
    for length in (1.0, 5.0, 20.0):
        bound = rate * (length + window + burst / rate) + limits[0].tokens
        most = max(sum(1 for t in sent if start <= t < start + length) for start in sent)
        assert most <= bound


def test_tokens_that_expire_during_a_pause_are_discarded() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock)
    take(limit, clock)
    clock.advance(60)
    before = clock.now()
    for _ in range(10):
        take(limit, clock)
    assert clock.now() - before >= 0.7, "ten tokens of a rate of 10/s can't be sent at once"


def test_a_429_cuts_the_shared_rate_once_per_window_and_it_climbs_back() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, workers=2, seed=1), limiter(rows, clock, 10, 2, 2)
    take(first, clock)
    take(second, clock)
    first.penalize(None)
    second.penalize(None)
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    assert (row["rate"], row["epoch"]) == (7000, 1)
    for _ in range(3000):
        take(first, clock)
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    assert row["rate"] == 10000


def seconds_for(count: int, limit: RateLimiter, clock: ManualClock) -> float:
    start = clock.now()
    for _ in range(count):
        take(limit, clock)
    return clock.now() - start


def test_a_rate_that_the_configuration_changes_applies_at_once() -> None:
    rows, clock = MemoryRows(), ManualClock()
    assert 9.0 <= seconds_for(100, limiter(rows, clock, rate=10.0), clock) <= 12
    assert 4.0 <= seconds_for(500, limiter(rows, clock, rate=100.0), clock) <= 7
    assert 9.0 <= seconds_for(100, limiter(rows, clock, rate=10.0), clock) <= 12


def test_a_rate_that_was_cut_rises_slowly_for_a_job_with_a_higher_rate_too() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first = limiter(rows, clock, rate=10.0)
    take(first, clock)
    clock.advance(20)
    first.penalize(None)
    assert seconds_for(100, limiter(rows, clock, rate=100.0), clock) > 8


def test_retry_after_delays_every_worker() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, workers=2, seed=1), limiter(rows, clock, 10, 2, 2)
    take(first, clock)
    first.penalize(30)
    start = clock.now()
    take(second, clock)
    assert clock.now() - start >= 28


def test_waiting_for_a_token_ends_when_the_worker_stops() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock, rate=0.001)
    take(limit, clock)
    with pytest.raises(Stopped):
        take(limit, clock, lambda: clock.boot_time() > 5)


def quota_limiter(rows: MemoryRows, clock: ManualClock, quota: int) -> RateLimiter:
    config = LimitConfig("api", rate=10.0, quota_per_day=quota)
    return RateLimiter(rows, config, 1, clock, random.Random(1))


def test_a_daily_quota_is_never_exceeded_and_calls_continue_on_the_next_day() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = quota_limiter(rows, clock, 50)
    days: dict[int, int] = {}
    for _ in range(120):
        take(limit, clock)
        day = int(clock.now() // 86_400)
        days[day] = days.get(day, 0) + 1
    assert len(days) >= 3
    assert max(days.values()) <= 50


def test_slots_reserved_before_a_cut_are_not_used_after_it() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, 100.0, 1, 1), limiter(rows, clock, 100.0, 1, 2)
    take(first, clock)
    held = first.tokens - 1
    second.penalize(None)
    clock.advance(0.5)
    assert first.poll() is not None, "fresh slots may be used"
    clock.advance(2.0)
    assert first.poll() is None
    first.reserve()
    assert first.counts.stale + first.counts.late >= held - 60


def test_a_held_slot_costs_no_request() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock, 100.0)
    take(limit, clock)
    before = dict(rows.requests)
    for _ in range(limit.tokens - 1):
        take(limit, clock)
    assert rows.requests == before


@pytest.mark.parametrize("quota", [10, 600, 5000])
def test_the_safe_rate_makes_the_bound_the_quota(quota: int) -> None:
    rate = safe_rate(quota, 60, 2, 1.0, 0.1, 5)
    assert rate == 0 or bound(rate, 2, 1.0, 0.1, 5, 60) == pytest.approx(quota)


def test_a_call_under_two_limits_uses_no_expired_token() -> None:
    rows, clock = MemoryRows(), ManualClock()
    fast = RateLimiter(
        rows, LimitConfig("fast", 50.0, send_window_s=0.2), 1, clock, random.Random(1)
    )
    slow = RateLimiter(
        rows, LimitConfig("slow", 0.5, send_window_s=0.2), 1, clock, random.Random(2)
    )
    pace = TokenThrottle([fast, slow], clock, never)
    for _ in range(5):
        pace.acquire(None)
    assert fast.counts.reservations >= 4, "a token of the fast limit is over before the slow one's"
    assert slow.counts.late <= 1


@pytest.mark.parametrize("quota_per_day", [None, 3])
def test_an_item_that_waits_for_a_token_does_not_count_as_hanging(
    quota_per_day: int | None,
) -> None:
    clock, watch, recorder = ManualClock(), HangDetector(), Recorder()
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    config = LimitConfig("api", rate=0.01, burst=1, quota_per_day=quota_per_day)

    def looked_at() -> bool:
        assert not watch.hangs(recorder.read(), clock.boot_time())
        return False

    limit = RateLimiter(MemoryRows(), config, 1, clock, random.Random(1))
    pace = TokenThrottle([limit], clock, looked_at, recorder)
    start = clock.now()
    for position in range(4):
        recorder.items(position, 1, clock.boot_time())
        pace.acquire(None)
    assert clock.now() - start > 250


def test_a_quota_smaller_than_one_reservation_is_used_completely() -> None:
    clock = ManualClock()
    config = LimitConfig("api", rate=100.0, quota_per_day=7)
    limit = RateLimiter(MemoryRows(), config, 1, clock, random.Random(1))
    start = clock.now()
    for _ in range(7):
        take(limit, clock)
    assert clock.now() - start < 60


def test_a_coroutine_that_waits_for_a_token_blocks_no_other() -> None:
    class LoopClock(ManualClock):
        def now(self) -> float:
            return time.time()

        def boot_time(self) -> float:
            return time.monotonic()

    async def main() -> list[str]:
        pace = TokenThrottle([limiter(MemoryRows(), LoopClock(), 20.0)], LoopClock(), never)  # type: ignore[arg-type]
        order: list[str] = []

        async def paced() -> None:
            for _ in range(3):
                await pace.acquire_async(None)
            order.append("paced")

        async def free() -> None:
            await asyncio.sleep(0)
            order.append("free")

        await asyncio.gather(paced(), free())
        return order

    assert asyncio.run(main()) == ["free", "paced"]


@pytest.mark.parametrize(
    ("rate", "burst"), [(1.0, 10), (10.0, 20), (10 / 60, 5), (100.0, 100), (0.5, 250), (1000.0, 1)]
)
@pytest.mark.parametrize("workers", [1, 4])
def test_after_an_idle_time_a_burst_may_be_sent_at_once(
    rate: float, burst: int, workers: int
) -> None:
    rows, clock = MemoryRows(), ManualClock()
    config = LimitConfig("api", rate=rate, burst=burst)
    limits = [RateLimiter(rows, config, workers, clock, random.Random(n)) for n in range(workers)]
    take(limits[0], clock)
    clock.advance(3600)
    start, sent = clock.now(), 0
    for limit in limits * (burst + 2):
        # Each calls as long as it needs not wait.
        while (token := limit.poll()) is not None and token.at <= start:
            sent += 1
        if token is None:
            limit.reserve()
    assert sent == burst


def calls_in(
    limit: RateLimiter, clock: ManualClock, call_s: float, hours: float, most: int = 10**6
) -> int:
    """Make calls of `call_s` seconds, one after the other; how many."""
    end, made = clock.now() + hours * 3600, 0
    with suppress(Stopped):
        while made < most:
            take(limit, clock, lambda: clock.now() >= end)
            made += 1
            clock.sleep(call_s)
    return made


#: A midnight (UTC).
MIDNIGHT = 19_700.0 * 86_400


@pytest.mark.parametrize(
    ("rate", "quota", "workers", "call_s"),
    [
        (200.0, 10_000, 3, 0.5),
        (10.0, 1_000, 2, 2.0),
        (1.0, 500, 1, 3.0),
        (600.0, 300, 20, 200.0),
        (0.1, 1_000, 100, 5.0),
        (1000.0, 7, 1, 0.0),
    ],
)
def test_a_quota_is_used_up_and_never_exceeded_however_long_calls_take(
    rate: float, quota: int, workers: int, call_s: float
) -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT)
    config = LimitConfig("api", rate=rate, quota_per_day=quota)
    limit = RateLimiter(rows, config, workers, clock, random.Random(1))
    assert calls_in(limit, clock, call_s, hours=23) == quota
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    assert row["used"] == quota == limit.counts.granted


def test_slots_that_pass_unused_cost_a_slow_worker_few_writes() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = RateLimiter(rows, LimitConfig("api", rate=200.0), 3, clock, random.Random(1))
    assert calls_in(limit, clock, 0.5, hours=10, most=1000) == 1000
    assert limit.counts.late < 250
    assert limit.counts.reservations + limit.counts.refusals < 600


def test_a_rate_that_a_row_cannot_hold_exactly_costs_no_further_writes() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = RateLimiter(rows, LimitConfig("api", rate=500 / 60), 1, clock, random.Random(1))
    assert calls_in(limit, clock, 0.0, hours=1, most=200) == 200
    assert "raise rate" not in rows.requests


def day_limiter(rows: Rows, clock: ManualClock, quota: int, seed: int = 1) -> RateLimiter:
    config = LimitConfig("api", rate=1000.0, burst=100, quota_per_day=quota)
    return RateLimiter(rows, config, 1, clock, random.Random(seed))


def used(rows: MemoryRows) -> Value:
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    return row["used"]


def test_a_worker_that_ends_gives_unused_quota_back() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 100)
    limit = day_limiter(rows, clock, 1000)
    for _ in range(3):
        take(limit, clock)
    assert used(rows) == 20
    limit.close()
    assert used(rows) == 3
    limit.close()
    assert used(rows) == 3, "nothing is held any more"
    take(limit, clock)
    assert used(rows) == 23, "a call after the end is charged"


class Repeats(MemoryRows):
    """Applies a write, loses the reply, and has the write repeated, as the SDK does."""

    def __init__(self, before_repeat: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.before_repeat = before_repeat

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        first = super().update(pk, sk, statement)
        if statement.name != "return quota":
            return first
        self.before_repeat()
        return super().update(pk, sk, statement)


def test_a_quota_is_given_back_once_if_the_reply_is_lost() -> None:
    rows, clock = Repeats(), ManualClock(MIDNIGHT + 100)
    limit = day_limiter(rows, clock, 1000)
    take(limit, clock)
    limit.close()
    assert used(rows) == 1


def test_a_quota_is_given_back_once_if_other_workers_use_it_before_the_repeat() -> None:
    rows, clock = Repeats(), ManualClock(MIDNIGHT + 100)
    limit, other = day_limiter(rows, clock, 1000), day_limiter(rows, clock, 1000, seed=2)
    take(limit, clock)

    def others_call() -> None:
        for _ in range(20):
            take(other, clock)

    rows.before_repeat = others_call
    limit.close()
    assert used(rows) == 21, "one call here, twenty there"


def test_quota_of_yesterday_is_not_given_back_today() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 100)
    limit, other = day_limiter(rows, clock, 1000), day_limiter(rows, clock, 1000, seed=2)
    take(limit, clock)
    clock.advance(86_400)
    take(other, clock)
    limit.close()
    assert used(rows) == 20, "what the other was charged today"


def test_a_token_of_one_day_is_not_used_on_the_next() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 86_400 - 1.5)
    config = LimitConfig("api", rate=10.0, send_window_s=60.0, quota_per_day=1000)
    limit = RateLimiter(rows, config, 1, clock, random.Random(1))
    token = limit.token(never)
    clock.advance(1.0)
    assert not limit.usable(token), "less than a second is left, and clocks differ"
    limit.discard(token)
    take(limit, clock)
    assert clock.now() >= MIDNIGHT + 86_400 + 1
    assert used(rows) == 10, "charged again"


def test_the_last_calls_of_a_quota_are_used_if_fewer_than_one_reservation() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 100)
    first, second = day_limiter(rows, clock, 1010), day_limiter(rows, clock, 1010, seed=2)
    assert calls_in(first, clock, 0.0, hours=1, most=1000) == 1000
    assert calls_in(second, clock, 0.0, hours=1) == 10


def test_rows_of_an_earlier_release_are_read() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 100)
    rows.put_new(
        {
            "pk": "LIMIT#shared#api",
            "sk": "SLOT#0",
            "rate": 1_000_000,
            "full": 1_000_000,
            "tat": 0,
            "epoch": 0,
            "changed": 0,
            "used": 990,
            "window": 19_700,
        }
    )
    limit = day_limiter(rows, clock, 1000)
    assert calls_in(limit, clock, 0.0, hours=1) == 10


def test_workers_that_wait_for_two_busy_limits_get_tokens() -> None:
    hub = Schedule(20_000)
    rows, sends = MemoryRows(), []
    limits = [LimitConfig(name, rate=5.0, send_window_s=0.2) for name in ("one", "other")]

    def work(host: Host, rng: random.Random) -> None:
        clock = SimClock(hub, host)
        limiters = [RateLimiter(rows, each, 20, clock, rng) for each in limits]
        pace = TokenThrottle(limiters, clock, lambda: hub.now > 100)
        with suppress(Stopped):
            while True:
                pace.acquire(None)
                sends.append(hub.now)
                hub.sleep(0.1)

    def main() -> None:
        for number in range(20):
            host, rng = Host(f"w{number}"), random.Random(number)
            hub.spawn(host, lambda host=host, rng=rng: work(host, rng))

    hub.run(Host("main"), main)
    assert len(sends) > 0.9 * 5.0 * 100


def test_a_cancelled_wait_charges_nothing() -> None:
    rows, clock = MemoryRows(), ManualClock(MIDNIGHT + 100)
    day = day_limiter(rows, clock, 1000)
    slow = RateLimiter(rows, LimitConfig("slow", 0.001), 1, clock, random.Random(2))
    pace = TokenThrottle([day, slow], clock, lambda: clock.boot_time() > 20)
    pace.acquire(None)
    with pytest.raises(Stopped):
        pace.acquire(None)
    pace.close()
    assert used(rows) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    shape=st.builds(
        Shape,
        rate=st.floats(0.2, 300.0),
        burst=st.integers(1, 150),
        send_window_s=st.floats(0.1, 10.0),
        hosts=st.integers(1, 6),
        skew_s=st.floats(0.0, 0.9),
        call_s=st.one_of(st.floats(0.0, 1.0), st.floats(1.0, 180.0)),
        calm=st.booleans(),
        spent=st.one_of(st.none(), st.floats(0.02, 0.5)),
    ),
)
def test_every_limit_keeps_its_bound_quota_and_burst(seed: int, shape: Shape) -> None:
    LimitSimulation(seed, shape=shape).run()


def test_writes_that_are_always_refused_are_repeated_only_after_pauses() -> None:
    class Refuses(MemoryRows):
        def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
            self.requests["refused"] = self.requests.get("refused", 0) + 1
            return Refused(self.get(pk, sk))

    rows, clock = Refuses(), ManualClock()
    with pytest.raises(Stopped):
        take(limiter(rows, clock), clock, lambda: clock.boot_time() > 60)
    assert rows.requests["refused"] < 500
