"""The loop ends by itself where a worker can't progress, and gives back what it can't run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm_worker.backends.request_counter import RequestKind
from slurm_worker.errors import ServiceError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.execution.handler import Handler
from slurm_worker.node.activity import FRUITLESS_LEASES_ALLOWED, Activity
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.node.task_finder import Finished
from slurm_worker.node.task_loop import TaskLoop
from slurm_worker.protocol.job_config import LeaseConfig, WorkerConfig
from slurm_worker.protocol.slices import TaskItems, pack_slice
from slurm_worker.rate_limits.limiter import Stopped
from slurm_worker.results.journal import Journal
from tests.unit.world import World, numbered

#: Times with which no lease is trusted, not even for a moment.
NEVER = LeaseConfig(ttl_s=10.0, heartbeat_s=2.0, margin_s=15.0)


def test_a_worker_without_progress_exits_with_code_76_and_the_reason(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, lease=NEVER)
    world.plan(numbered(20))
    assert world.worker(world.patient()).run() == WorkerExit.NO_PROGRESS
    (line,) = (line for line in world.logger.lines if line["event"].startswith("no progress"))
    assert line["error"] == "5 leases in a row finished no item"
    (event,) = (event for event in world.jobs.events() if event.action == "no_progress")
    assert event.detail["leases"] == FRUITLESS_LEASES_ALLOWED + 1
    assert sum(row.attempt for row in world.task_rows()) <= FRUITLESS_LEASES_ALLOWED + 2


def test_requests_for_leases_that_were_given_back_are_in_the_next_marker(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, lease=NEVER)
    world.plan(numbered(5))
    world.requests.count(RequestKind.S3_GET)
    assert world.worker(world.patient()).run() == WorkerExit.NO_PROGRESS
    (row,) = world.task_rows()
    assert row.requests == {"s3_get": 1}

    world.lease = LeaseConfig()
    world.requests.count(RequestKind.S3_GET)
    assert world.worker().run() == WorkerExit.OK
    (row,) = world.task_rows()
    (marker,) = world.markers()
    assert row.requests == marker.requests == {"s3_get": 2}


@pytest.mark.parametrize(("ends", "requeued"), [(0, False), (1, True)])
def test_a_worker_is_requeued_only_if_one_of_its_items_ended(
    tmp_path: Path, ends: int, requeued: bool
) -> None:
    requeues: list[object] = []

    def handle(item: dict[str, Any], _context: Any) -> dict[str, Any]:
        if item["n"] < ends:
            return item
        # The time limit is near, and this item is left.
        drain.before_time_limit = True
        drain.stop_requested.set()
        raise Stopped

    world = World(tmp_path, handle=handle)
    drain = world.patient()
    world.plan(numbered(5))
    identity = world.context().identity
    worker = world.worker(
        drain,
        identity=replace(identity, slurm={**identity.slurm, "array": "7"}),
        requeue=lambda slurm: requeues.append(slurm) or "",  # type: ignore[func-returns-value]
    )
    assert worker.run() == WorkerExit.OK
    assert bool(requeues) is requeued


def test_a_task_is_given_back_when_the_commit_that_used_its_journal_failed(tmp_path: Path) -> None:
    def commit(*_: object) -> None:
        raise ServiceError("the store is away")

    items = TaskItems(pack_slice([]), 0, 0)

    def attempt(*, lost: bool = False) -> Any:
        """An attempt at a task without items."""
        held = SimpleNamespace(lost=lost, start=lambda *_: None, stop=lambda: None)
        lease = SimpleNamespace(task="t", attempt=1, row=SimpleNamespace(crashes=()))
        return SimpleNamespace(held=held, lease=lease, items=items, restored=[], checkpoints=None)

    # The first is committed from the one journal, the second is lost, the third needs the one.
    committed, lost, third = attempt(), attempt(lost=True), attempt()
    found = iter([committed, lost, third, Finished()])
    source: Any = SimpleNamespace(
        next=lambda: next(found), start_ahead=lambda *_: None, return_ahead=lambda: None
    )
    given_back: list[object] = []
    attempts: Any = SimpleNamespace(
        commit=commit,
        discard=lambda _attempt: None,
        give_up=lambda held, error: given_back.append((held, type(error))),
    )
    world = World(tmp_path)
    context = world.context(world.patient())
    calls: Any = SimpleNamespace(
        handler=Handler(lambda *_: None),
        resources=None,
        config=WorkerConfig(),
        throttle=SimpleNamespace(unlimited=True),
        recorder=Recorder(),
        clock=context.clock,
        to_lines=None,
    )
    journals = [Journal(tmp_path / name) for name in "ab"]
    loop = TaskLoop(context, Activity(context), calls, journals, attempts, source)
    assert loop.run() == WorkerExit.OK
    assert given_back == [(committed.held, ServiceError), (third.held, ServiceError)]
