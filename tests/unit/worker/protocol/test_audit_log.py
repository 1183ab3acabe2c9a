"""Problems among workers are recorded in the audit log once, and stop no work."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_config import LeaseConfig, LimitConfig
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import event_pk
from slurm_worker.protocol.ports import Applied, Refused, Row
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.rate_limits.limiter import RateLimiter
from slurm_worker.testing import ManualClock, MemoryRows
from tests.unit.world import JOB, World, numbered

LEASE = LeaseConfig(ttl_s=100, heartbeat_s=10, margin_s=5, max_lost=2)


def abandon(world: World, owner: str = "dead", times: int = 1) -> None:
    """Somebody leases the one task and is never seen again, so many times."""
    for _ in range(times):
        (row,) = (each for each in world.task_rows() if not each.state.terminal)
        taken = world.table.claim(row, owner) if not row.attempt else world.table.steal(row, owner)
        assert isinstance(taken, Claimed)
        world.clock.advance(200)


def work(world: World) -> None:
    """A worker that waits for the abandoned lease, and takes over."""
    world.worker(world.patient()).run()


def trail(world: World) -> list[tuple[str, str, dict[str, object]]]:
    return [(each.actor, each.action, dict(each.detail)) for each in world.jobs.events()]


def test_a_stolen_lease_is_recorded_with_its_former_holder(tmp_path: Path) -> None:
    world = World(tmp_path, lease=LEASE)
    world.plan(numbered(5))
    abandon(world)
    work(world)
    detail = {"task": "000-00000000", "attempt": 1, "lost": 1, "from": "dead"}
    assert trail(world) == [("w1", "lease_stolen", detail)]


def test_a_bisected_task_names_its_halves(tmp_path: Path) -> None:
    world = World(tmp_path, lease=LEASE)
    world.plan(numbered(4))
    abandon(world, times=2)
    work(world)
    details = {action: detail for _, action, detail in trail(world)}
    assert sorted(details) == ["bisected", "lease_stolen"]
    assert details["bisected"]["halves"] == ["000-20000000", "000-40000000"]


def test_a_quarantined_task_is_recorded(tmp_path: Path) -> None:
    world = World(tmp_path, lease=replace(LEASE, max_lost=1))
    world.plan(numbered(1))
    abandon(world)
    work(world)
    detail = {"task": "000-00000000", "attempt": 1, "lost": 1, "from": "dead"}
    assert trail(world) == [("w1", "quarantined", detail)]


def test_a_job_without_problems_writes_no_audit_events(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.plan(numbered(50))
    world.worker().run()
    assert trail(world) == []


def limiters(rows: MemoryRows, clock: ManualClock, count: int) -> list[RateLimiter]:
    jobs = JobTable(rows, JOB, clock)
    config = LimitConfig("api", rate=10.0)
    return [
        RateLimiter(rows, config, count, clock, random.Random(n), partial(jobs.audit, f"w{n}"))
        for n in range(count)
    ]


def events(rows: MemoryRows, clock: ManualClock) -> list[AuditEvent]:
    return list(JobTable(rows, JOB, clock).events())


def test_a_cut_is_recorded_once_by_the_worker_that_made_it() -> None:
    rows, clock = MemoryRows(), ManualClock()
    for limiter in limiters(rows, clock, 3):
        limiter.penalize(2.0)
    (event,) = events(rows, clock)
    assert (event.actor, event.action) == ("w0", "rate_cut")
    assert event.detail == {
        "limit": "api",
        "scope": "shared",
        "from": "10/s",
        "to": "7/s",
        "retry_after_s": 2,
    }


class LosesReplies(MemoryRows):
    """Applies each update, loses the reply, and repeats it, as the SDK does."""

    def update(self, *arguments: object) -> Applied | Refused:  # type: ignore[override]
        super().update(*arguments)  # type: ignore[arg-type]
        return super().update(*arguments)  # type: ignore[arg-type]


def test_a_cut_whose_reply_was_lost_is_recorded_once() -> None:
    rows, clock = LosesReplies(), ManualClock()
    for limiter in limiters(rows, clock, 2):
        limiter.penalize(None)
    assert [each.actor for each in events(rows, clock)] == ["w0"]


class RefusesEvents(MemoryRows):
    """A table that takes no events."""

    def put_new(self, row: Row) -> Applied | Refused:
        if row["pk"] == event_pk(JOB):
            raise ServiceError("throttled")
        return super().put_new(row)


def test_work_continues_if_an_audit_event_cannot_be_recorded(tmp_path: Path) -> None:
    world = World(tmp_path, lease=LEASE, rows=RefusesEvents())
    world.plan(numbered(5))
    abandon(world)
    work(world)
    assert [row.state.value for row in world.task_rows()] == ["done"]
    assert "not in the audit log" in [line["event"] for line in world.logger.lines]
