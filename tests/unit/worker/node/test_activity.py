"""A worker waits as long as there may be something to do, and no longer."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_worker.node.activity import (
    Activity,
    Durations,
    Idle,
    fruitless_wait_s,
    service_wait_s,
)
from slurm_worker.node.task_finder import Waiting
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.testing import ManualClock
from tests.unit.world import World

LEASE = LeaseConfig()


class Sleep:
    """Nobody asks to stop; waiting moves the clock on."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sleep(clock: ManualClock) -> Sleep:
    return Sleep(clock)


@pytest.fixture
def idle(clock: ManualClock, sleep: Sleep) -> Idle:
    """One of a thousand workers."""
    return Idle(LEASE, 1000, clock, random.Random(1), sleep)


def test_another_task_fits_where_no_time_limit_or_duration_is_known(clock: ManualClock) -> None:
    assert Durations(clock, None).another_fits()
    assert Durations(clock, 5).another_fits(), "none has been timed"


def test_another_task_fits_when_a_task_as_slow_as_nine_in_ten_would_end_in_time(
    clock: ManualClock,
) -> None:
    durations = Durations(clock, 100)
    for took_s in (10, 10, 10, 60, 10, 10, 10, 10, 10, 10):
        durations.add(took_s)
    clock.advance(89)
    assert durations.another_fits(), "one slow task in ten is not expected"
    clock.advance(1)
    assert not durations.another_fits()


def test_a_task_is_nearly_done_by_its_own_speed_or_that_of_the_last_tasks(
    clock: ManualClock,
) -> None:
    durations = Durations(clock, None)
    assert not durations.nearly_done(0, 100, clock.boot_time())
    durations.add(1.0)
    assert durations.nearly_done(0, 100, clock.boot_time())
    began = clock.boot_time()
    clock.advance(50)
    assert not durations.nearly_done(50, 100, began)
    assert durations.nearly_done(95, 100, began)


def test_an_idle_worker_stays_until_every_lease_would_have_run_out(
    idle: Idle, sleep: Sleep, clock: ManualClock
) -> None:
    since = clock.boot_time()
    while idle.wait():
        pass
    assert clock.boot_time() - since > LEASE.ttl_s + LEASE.margin_s
    assert sleep.waits[0] < sleep.waits[-1] <= 6
    idle.reset()
    assert idle.wait()


def test_few_of_many_idle_workers_stay_for_a_few_leases(clock: ManualClock) -> None:
    stay = 0
    for seed in range(1000):
        idle = Idle(LEASE, 1000, clock, random.Random(seed), Sleep(clock))
        idle.record(Waiting(leased=100, later=0))
        stay += idle.wait()
    assert 2 <= stay <= 30, "one for each ten leases, and the same again at least"


def test_a_search_decides_once_whether_a_worker_should_exit(idle: Idle) -> None:
    idle.record(Waiting(leased=0, later=0))
    assert idle.should_exit()
    assert not idle.should_exit()


def test_a_wait_after_a_failure_grows_to_a_minute() -> None:
    longest = [max(service_wait_s(n, random.Random(seed)) for seed in range(100)) for n in (1, 9)]
    assert 1 < longest[0] <= 2
    assert 60 < longest[1] <= 64


def test_a_wait_after_a_lease_without_progress_doubles() -> None:
    waits = [fruitless_wait_s(n, random.Random(1)) for n in range(1, 5)]
    assert waits == sorted(waits)
    assert 10 < sum(waits) < 20


@pytest.mark.parametrize(("size", "stay"), [(4, 100), (10_000, 0), (None, 0)])
def test_the_workers_of_a_small_array_of_a_large_job_stay_for_the_last_leases(
    tmp_path: Path, size: int | None, stay: int
) -> None:
    world = World(tmp_path)
    context = world.context(world.patient(), array_size=size)
    config = replace(context.config, max_workers=10_000)
    stays = 0
    for seed in range(100):
        idle = Activity(replace(context, config=config, rng=random.Random(seed))).idle
        idle.record(Waiting(leased=4, later=0))
        stays += idle.wait()
    assert abs(stays - stay) <= 2
