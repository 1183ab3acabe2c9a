"""A worker whose leases come to nothing waits, ends, and says so; what it cost is counted."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.backends.request_counter import RequestKind
from slurm_worker.node.exit_codes import WorkerExit
from slurm_worker.node.no_progress import MOST_IN_A_ROW, Fruitless, NoProgress
from slurm_worker.node.slurm_job import Drain
from slurm_worker.node.threads import PooledThreads
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.rate_limits.limiter import Stopped
from tests.unit.world import World

#: Times with which no lease is trusted, not even for a moment.
NEVER = LeaseConfig(ttl_s=10.0, heartbeat_s=2.0, margin_s=15.0)


def numbered(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"k{n}", {"n": n}) for n in range(count)]


def test_a_worker_waits_longer_after_each_lease_that_came_to_nothing_and_then_ends() -> None:
    waits: list[float] = []
    fruitless = Fruitless(random.Random(1), waits.append)
    for _ in range(MOST_IN_A_ROW - 1):
        fruitless.ended(progressed=False)
    with pytest.raises(NoProgress, match="none of 5 leases"):
        fruitless.ended(progressed=False)
    assert waits == sorted(waits)
    assert 10 < sum(waits) < 20


def test_one_item_that_ends_is_progress() -> None:
    waits: list[float] = []
    fruitless = Fruitless(random.Random(1), waits.append)
    for _ in range(3 * MOST_IN_A_ROW):
        fruitless.ended(progressed=False)
        fruitless.ended(progressed=True)
    assert max(waits) < 2


def fruitless_worker(world: World) -> Any:
    worker: Any = world.worker()
    worker._fruitless = Fruitless(random.Random(1), world.clock.advance)
    return worker


def test_a_worker_without_progress_ends_with_a_code_of_its_own_and_says_why(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, lease=NEVER)
    world.plan(numbered(20))
    assert fruitless_worker(world).run() == WorkerExit.NO_PROGRESS
    (line,) = (each for each in world.logger.lines if each["event"].startswith("no progress"))
    assert "none of 5 leases" in line["error"]
    (event,) = (each for each in world.jobs.events() if each.action == "no_progress")
    assert event.detail["leases"] == MOST_IN_A_ROW
    assert sum(row.attempt for row in world.task_rows()) <= MOST_IN_A_ROW + 1


def test_requests_for_leases_that_are_given_back_are_told_by_the_marker_to_come(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, lease=NEVER)
    world.plan(numbered(5))
    world.requests.count(RequestKind.S3_GET)
    assert fruitless_worker(world).run() == WorkerExit.NO_PROGRESS
    (row,) = world.task_rows()
    assert row.requests == {"s3_get": 1}

    world.lease = LeaseConfig()
    world.requests.count(RequestKind.S3_GET)
    assert world.worker().run() == WorkerExit.OK
    (row,) = world.task_rows()
    (marker,) = world.markers()
    assert row.requests == marker.requests == {"s3_get": 2}


@pytest.mark.parametrize(("ends", "requeued"), [(0, False), (1, True)])
def test_a_worker_is_started_again_by_slurm_only_if_an_item_of_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: int, requeued: bool
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("slurm_worker.node.worker.requeue", lambda slurm: asked.append(slurm) or "")
    drain = Drain(PooledThreads().signal())

    def handle(item: dict[str, Any], _context: Any) -> dict[str, Any]:
        if item["n"] < ends:
            return item
        # The time limit is near, and this item is left.
        drain.before_time_limit = True
        drain.stop_requested.set()
        raise Stopped

    world = World(tmp_path, handle=handle)
    world.plan(numbered(5))
    worker = world.worker(drain)
    worker.identity = replace(worker.identity, slurm={**worker.identity.slurm, "array": "7"})
    assert worker.run() == WorkerExit.OK
    assert bool(asked) is requeued
