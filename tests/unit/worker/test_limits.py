"""Rate limits: never over the bound, whatever the number of workers."""

from __future__ import annotations

import random

import pytest

from slurm_worker.config import LimitConfig
from slurm_worker.limits import RateLimiter, Stopped
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
