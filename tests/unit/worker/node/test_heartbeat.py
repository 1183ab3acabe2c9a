"""A lease is let go when its items stand still, and not while they wait on purpose."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm_worker.errors import ServiceError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node.heartbeat import Heartbeat, HeldLease
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.results.journal import Journal
from slurm_worker.testing import MemoryRows
from tests.unit.world import World, numbered


class NoThreads:
    """Starts nothing: the test beats."""

    def start(self, _function: Any) -> Any:
        return SimpleNamespace(result=lambda: None)

    def signal(self) -> Any:
        return SimpleNamespace(set=lambda: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.plan(numbered(10))
    return made


def hold_of(world: World, recorder: Recorder | None = None) -> tuple[Heartbeat, HeldLease]:
    heartbeat = Heartbeat(world.context(threads=NoThreads(), recorder=recorder or Recorder()))
    claimed = world.table.claim(world.task_rows()[0], "w1")
    assert isinstance(claimed, Claimed)
    return heartbeat, heartbeat.hold(claimed.lease)


def lose(world: World) -> None:
    """Another takes the lease over."""
    world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)
    assert isinstance(world.table.steal(world.task_rows()[0], "w2"), Claimed)


class Away(MemoryRows):
    """A table that answers no update while it is away."""

    away = False

    def update(self, *args: Any) -> Any:
        if self.away:
            raise ServiceError("away")
        return super().update(*args)


def test_a_lease_that_was_lost_while_the_table_was_away_does_not_count(tmp_path: Path) -> None:
    rows = Away()
    world = World(tmp_path, rows=rows)
    world.plan(numbered(10))
    heartbeat, held = hold_of(world)
    rows.away = True
    heartbeat.renew(held)
    rows.away = False
    lose(world)
    assert world.task_rows()[0].lost == 1
    heartbeat.renew(held)
    assert held.lost
    assert world.task_rows()[0].lost == 0


def test_a_lease_that_was_lost_because_no_heartbeat_was_sent_counts(
    world: World,
) -> None:
    heartbeat, held = hold_of(world)
    lose(world)
    heartbeat.renew(held)
    assert held.lost
    assert world.task_rows()[0].lost == 1


def test_a_lease_that_was_lost_because_its_items_stalled_counts(world: World) -> None:
    heartbeat, held = hold_of(world)
    held.lost = held.stalled = True
    lose(world)
    heartbeat.give_back(held)
    assert world.task_rows()[0].lost == 1


def test_a_write_that_the_table_did_not_answer_is_made_later(tmp_path: Path) -> None:
    rows = Away()
    world = World(tmp_path, rows=rows)
    world.plan(numbered(10))
    heartbeat, held = hold_of(world)
    rows.away = True
    assert not heartbeat.give_back(held)
    heartbeat.write_deferred()
    rows.away = False
    assert world.task_rows()[0].state is TaskState.LEASED
    heartbeat.close()
    row = world.task_rows()[0]
    assert (row.state, row.lost) == (TaskState.READY, 0)


def beat_until_stalled(world: World, recorder: Recorder, *, waiting: bool) -> HeldLease:
    """A held whose items finish nothing for longer than the stall limit."""
    heartbeat, held = hold_of(world, recorder)
    checkpoints: Any = SimpleNamespace(due=lambda _since: False)
    held.start(Journal(world.scratch / "journal.sqlite"), checkpoints)
    for _ in range(3):
        world.clock.advance(world.lease.stall_s / 2 + 1)
        if waiting:
            recorder.waits(world.clock.boot_time())
        heartbeat.renew(held)
    return held


def test_items_that_stall_lose_their_lease(world: World) -> None:
    assert beat_until_stalled(world, Recorder(), waiting=False).lost


def test_items_that_wait_for_a_token_until_tomorrow_keep_their_lease(world: World) -> None:
    assert not beat_until_stalled(world, Recorder(), waiting=True).lost
