"""Rate limits: never over the bound, whatever the number of workers."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from slurm_worker.config import LimitConfig
from slurm_worker.limits import RateLimiter, Stopped, bound, safe_rate, slice_of
from slurm_worker.pace import Pace
from slurm_worker.recorder import Recorder, Watch
from slurm_worker.testing import ManualClock, MemoryRows


def never() -> bool:
    return False


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
        limit.acquire(never)
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
        rng.choice(limits).acquire(never)
        sent.append(clock.now())
        if rng.random() < 0.05:
            clock.advance(rng.uniform(0, 20))
    rate, window, burst = 10.0, 1.0, 1
    for length in (1.0, 5.0, 20.0):
        bound = rate * (length + window + burst / rate) + limits[0].tokens
        most = max(sum(1 for t in sent if start <= t < start + length) for start in sent)
        assert most <= bound


def test_tokens_that_a_pause_made_stale_are_thrown_away() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock)
    limit.acquire(never)
    clock.advance(60)
    before = clock.now()
    for _ in range(10):
        limit.acquire(never)
    assert clock.now() - before >= 0.7, "ten tokens of a rate of 10/s can't be sent at once"


def test_a_429_cuts_the_shared_rate_once_per_window_and_it_climbs_back() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, workers=2, seed=1), limiter(rows, clock, 10, 2, 2)
    first.acquire(never)
    second.acquire(never)
    first.penalize(None)
    second.penalize(None)
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    assert (row["rate"], row["epoch"]) == (7000, 1)
    for _ in range(3000):
        first.acquire(never)
    row = rows.get("LIMIT#shared#api", "SLOT#0")
    assert row is not None
    assert row["rate"] == 10000


def seconds_for(count: int, limit: RateLimiter, clock: ManualClock) -> float:
    start = clock.now()
    for _ in range(count):
        limit.acquire(never)
    return clock.now() - start


def test_a_rate_that_is_configured_anew_holds_at_once() -> None:
    rows, clock = MemoryRows(), ManualClock()
    assert 9.0 <= seconds_for(100, limiter(rows, clock, rate=10.0), clock) <= 12
    assert 4.0 <= seconds_for(500, limiter(rows, clock, rate=100.0), clock) <= 7
    assert 9.0 <= seconds_for(100, limiter(rows, clock, rate=10.0), clock) <= 12


def test_a_rate_that_was_cut_climbs_slowly_also_for_a_job_that_says_more() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first = limiter(rows, clock, rate=10.0)
    first.acquire(never)
    clock.advance(20)
    first.penalize(None)
    assert seconds_for(100, limiter(rows, clock, rate=100.0), clock) > 8


def test_retry_after_holds_everybody_back() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, workers=2, seed=1), limiter(rows, clock, 10, 2, 2)
    first.acquire(never)
    first.penalize(30)
    start = clock.now()
    second.acquire(never)
    assert clock.now() - start >= 28


def test_waiting_for_a_token_ends_when_the_worker_stops() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock, rate=0.001)
    limit.acquire(never)
    with pytest.raises(Stopped):
        limit.acquire(lambda: clock.boot_time() > 5)


def quota_limiter(rows: MemoryRows, clock: ManualClock, quota: int) -> RateLimiter:
    config = LimitConfig("api", rate=10.0, quota_per_day=quota)
    return RateLimiter(rows, config, 1, clock, random.Random(1))


def test_a_days_quota_is_never_overstepped_and_the_next_day_goes_on() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = quota_limiter(rows, clock, 50)
    days: dict[int, int] = {}
    for _ in range(120):
        limit.acquire(never)
        day = int(clock.now() // 86_400)
        days[day] = days.get(day, 0) + 1
    assert len(days) >= 3
    assert max(days.values()) <= 50


def test_slots_of_before_a_cut_are_not_used_after_it() -> None:
    rows, clock = MemoryRows(), ManualClock()
    first, second = limiter(rows, clock, 100.0, 1, 1), limiter(rows, clock, 100.0, 1, 2)
    first.acquire(never)
    held = first.tokens - 1
    second.penalize(None)
    clock.advance(0.5)
    assert first.poll() is not None, "fresh slots may be used"
    clock.advance(2.0)
    assert first.poll() is None
    first.reserve()
    assert first.numbers.stale + first.numbers.late >= held - 60


def test_a_held_slot_costs_no_request() -> None:
    rows, clock = MemoryRows(), ManualClock()
    limit = limiter(rows, clock, 100.0)
    limit.acquire(never)
    before = dict(rows.requests)
    for _ in range(limit.tokens - 1):
        limit.acquire(never)
    assert rows.requests == before


@pytest.mark.parametrize("quota", [10, 600, 5000])
def test_the_safe_rate_makes_the_bound_the_quota(quota: int) -> None:
    rate = safe_rate(quota, 60, 2, 1.0, 0.1, 5)
    assert rate == 0 or bound(rate, 2, 1.0, 0.1, 5, 60) == pytest.approx(quota)


def test_of_two_limits_no_token_is_used_after_its_time() -> None:
    rows, clock = MemoryRows(), ManualClock()
    fast = RateLimiter(
        rows, LimitConfig("fast", 50.0, send_window_s=0.2), 1, clock, random.Random(1)
    )
    slow = RateLimiter(
        rows, LimitConfig("slow", 0.5, send_window_s=0.2), 1, clock, random.Random(2)
    )
    pace = Pace([fast, slow], clock, never)
    for _ in range(5):
        pace.acquire(None)
    assert fast.numbers.reservations >= 4, "a token of the fast limit is over before the slow one's"
    assert slow.numbers.late <= 1


@pytest.mark.parametrize("quota_per_day", [None, 3])
def test_an_item_that_waits_for_its_token_is_not_taken_to_hang(quota_per_day: int | None) -> None:
    clock, watch, recorder = ManualClock(), Watch(), Recorder()
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    config = LimitConfig("api", rate=0.01, burst=1, quota_per_day=quota_per_day)

    def looked_at() -> bool:
        assert not watch.hangs(recorder.read(), clock.boot_time())
        return False

    limit = RateLimiter(MemoryRows(), config, 1, clock, random.Random(1))
    pace = Pace([limit], clock, looked_at, recorder)
    start = clock.now()
    for position in range(4):
        recorder.item(position, clock.boot_time())
        pace.acquire(None)
    assert clock.now() - start > 250


def test_a_quota_smaller_than_what_is_reserved_at_once_is_used_all_the_same() -> None:
    clock = ManualClock()
    config = LimitConfig("api", rate=100.0, quota_per_day=7)
    limit = RateLimiter(MemoryRows(), config, 1, clock, random.Random(1))
    start = clock.now()
    for _ in range(7):
        limit.acquire(never)
    assert clock.now() - start < 60


def test_a_coroutine_waits_for_its_token_without_holding_others_up() -> None:
    class LoopClock(ManualClock):
        def now(self) -> float:
            return time.time()

        def boot_time(self) -> float:
            return time.monotonic()

    async def main() -> list[str]:
        pace = Pace([limiter(MemoryRows(), LoopClock(), 20.0)], LoopClock(), never)  # type: ignore[arg-type]
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
