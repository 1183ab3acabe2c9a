"""What one attempt leaves, the next one uses: checkpoints, notes of deaths, decisions."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.errors import ErrorClass
from slurm_worker.execution.context import Context
from slurm_worker.node.slurm_job import Drain, WorkerExit, seconds_left
from slurm_worker.node.threads import PooledThreads
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LeaseConfig, WorkerConfig
from slurm_worker.protocol.job_store import ForeignMarker, Marker
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.task_history import Crash
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.results.journal import Journal
from slurm_worker.testing import MemoryObjects
from tests.unit.world import World, numbered


class Stops:
    """A handler that asks for a drain at one item, and counts its calls."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls: list[int] = []
        self.drain = Drain(PooledThreads().signal())

    def __call__(self, item: dict[str, Any], _context: Context) -> dict[str, Any]:
        self.world.clock.advance(5)
        self.calls.append(item["n"])
        if item["n"] == self.at:
            self.drain.stop_requested.set()
        return {"n": item["n"]}

    def run_until_stopped(self, world: World) -> None:
        self.world = world
        world.handle = self
        assert world.worker(self.drain).run() == WorkerExit.OK


def test_items_that_a_preempted_worker_finished_are_not_run_again(tmp_path: Path) -> None:
    stops = Stops(at=6)
    world = World(tmp_path)
    world.plan(numbered(10))
    stops.run_until_stopped(world)
    (row,) = world.task_rows()
    assert (row.state, row.tries) == (TaskState.READY, 0)
    assert row.checkpoint.startswith("a1-0 ")
    assert world.worker().run() == WorkerExit.OK
    assert stops.calls == list(range(10))
    assert [row["n"] for row in world.lines("rows")] == list(range(10))


@pytest.mark.parametrize("damage", ["missing", "damaged", "other code"])
def test_an_attempt_starts_over_where_the_checkpoint_can_not_be_used(
    tmp_path: Path, damage: str
) -> None:
    stops = Stops(at=6)
    world = World(tmp_path)
    world.plan(numbered(10))
    stops.run_until_stopped(world)
    (key,) = world.objects.list(world.paths.checkpoints(world.task_rows()[0].task))
    if damage == "missing":
        world.objects.delete(key)
    elif damage == "damaged":
        world.objects.put(key, (world.objects.get(key) or b"")[:-1])
    else:
        world.module = "another_handler"
    assert world.worker().run() == WorkerExit.OK
    assert [row["n"] for row in world.lines("rows")] == list(range(10))
    assert stops.calls == [*range(7), *range(10)]


def test_no_checkpoint_is_made_where_doing_the_work_again_is_cheaper(tmp_path: Path) -> None:
    stops = Stops(at=6)
    world = World(tmp_path, worker_config=WorkerConfig(checkpoint_s=0))
    world.plan(numbered(10))
    stops.run_until_stopped(world)
    assert world.task_rows()[0].checkpoint == ""
    assert list(world.objects.list(world.paths.root + "checkpoints/")) == []


def test_an_item_on_which_two_processes_died_is_not_run_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        calls.append(item["n"])
        return {}

    world = World(tmp_path, handle)
    world.plan(numbered(10))
    for owner in ("w-a", "w-b"):
        claimed = world.table.claim(world.task_rows()[0], owner)
        assert isinstance(claimed, Claimed)
        crash = Crash(ErrorClass.WORKER_CRASH, 4)
        assert world.table.record_crash(claimed.lease.task, claimed.lease.attempt, owner, crash)
    world.worker().run()
    (error,) = world.lines("errors")
    assert (error["_key"], error["class"], error["item"]) == ("k4", "worker_crash", {"n": 4})
    assert sorted(calls) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def lose(world: World, times: int) -> None:
    """Lose the lease of the job's first task that often, as dying nodes do."""
    claimed = world.table.claim(world.task_rows()[0], "dead-0")
    assert isinstance(claimed, Claimed)
    for n in range(times):
        world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)
        world.table.steal(world.task_rows()[0], f"dead-{n + 1}")
    world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)


def test_a_task_that_kills_its_nodes_is_bisected_and_every_item_still_counts_once(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, lease=LeaseConfig(max_lost=3))
    world.plan(numbered(7))
    lose(world, times=2)
    assert world.worker(world.patient()).run() == WorkerExit.OK
    parent, *halves = world.task_rows()
    assert [row.state for row in (parent, *halves)] == [TaskState.DONE] * 3
    assert [row.where.count for row in halves] == [3, 4]
    assert world.markers()[0].split == tuple(row.task for row in halves)
    assert sorted(row["n"] for row in world.lines("rows")) == list(range(7))


class NoConditions(MemoryObjects):
    """A store that ignores ``If-None-Match``."""

    def put_new(self, key: str, body: bytes) -> bool:
        self.put(key, body)
        return True


def test_the_table_decides_the_winner_if_the_store_can_not(tmp_path: Path) -> None:
    world = World(tmp_path, objects=NoConditions(), conditional_put=False)
    world.plan(numbered(30))
    assert world.worker().run() == WorkerExit.OK
    assert sorted(row["n"] for row in world.lines("rows")) == list(range(30))
    for marker, row in zip(world.markers(), world.task_rows(), strict=True):
        assert marker.attempt == row.winner
        late = world.table.decide(type(marker)(marker.job, marker.task, 9, "late", 0, 0, 0))
        assert late == marker.attempt


def test_a_scratch_that_is_full_gives_the_lease_back_and_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_journal: Journal) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    world = World(tmp_path)
    world.plan(numbered(10))
    monkeypatch.setattr(Journal, "flush", full)
    assert world.worker().run() == WorkerExit.INFRASTRUCTURE
    (row,) = world.task_rows()
    assert (row.state, row.tries, row.error_class) == (TaskState.READY, 1, "node_failure")
    assert "disk is full" in row.error


def test_no_task_is_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    def handle(_item: dict[str, Any], _context: Context) -> dict[str, Any]:
        world.clock.advance(10)
        return {}

    world = World(tmp_path, handle, seconds_left=350.0)
    world.plan(numbered(50))
    assert world.worker().run() == WorkerExit.OK
    states = [row.state for row in world.task_rows()]
    assert states.count(TaskState.DONE) == 3, "100 s each, 350 s in all"
    assert states.count(TaskState.READY) == 2
    assert {row.tries for row in world.task_rows()} == {0}


def test_the_seconds_left_are_read_from_slurms_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert seconds_left({"SLURM_JOB_END_TIME": "1600"}) == 600.0
    assert seconds_left({}) is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert seconds_left({"SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize("key", ["", "x" * 10_000, "two\nlines", "tab\tand\x00nul", "žluťoučký 🐎"])
def test_any_key_is_kept_exactly(tmp_path: Path, key: str) -> None:
    def handle(item: dict[str, Any], context: Context) -> dict[str, Any]:
        if item["fail"]:
            raise ValueError(context.key)
        return {}

    world = World(tmp_path, handle)
    world.plan([(key, {"fail": False}), (key + "!", {"fail": True})])
    assert world.worker().run() == WorkerExit.OK
    assert [row["_key"] for row in world.lines("rows")] == [key]
    assert [row["_key"] for row in world.lines("errors")] == [key + "!"]


def foreign(world: World, attempt: int, **changes: Any) -> Marker:
    """A marker under the name of the world's first task that an earlier job has left."""
    task = world.task_rows()[0].task
    return Marker(world.job, task, attempt, "w", 10, 10, 10, input_sha256="0" * 64, **changes)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("attempts", [1, 2])
def test_results_of_other_items_are_never_taken_for_those_of_a_task(
    tmp_path: Path, attempts: int, split: bool
) -> None:
    world = World(tmp_path, lease=LeaseConfig(max_tries=1))
    world.plan(numbered(10))
    row = world.task_rows()[0]
    if attempts > 1:
        claimed = world.table.claim(row, "first")
        assert isinstance(claimed, Claimed)
        world.table.release(claimed.lease)
    halves = (keys.halves(row.task) or ()) if split else ()
    world.store.commit(foreign(world, 9, split=halves))
    world.clock.advance(1)
    assert world.worker().run() == WorkerExit.OK
    (after,) = world.task_rows()
    assert (after.state, after.error_class) == (TaskState.FAILED, "bad_input")
    assert "made from other items" in after.error


def test_a_proposal_for_other_items_is_not_published(tmp_path: Path) -> None:
    world = World(tmp_path, conditional_put=False, lease=LeaseConfig(max_tries=1))
    world.plan(numbered(10))
    claimed = world.table.claim(world.task_rows()[0], "first")
    assert isinstance(claimed, Claimed)
    theirs = foreign(world, 1)
    world.store.propose(theirs)
    assert world.table.decide(theirs) == 1
    world.table.release(claimed.lease)
    assert world.worker().run() == WorkerExit.OK
    assert world.markers() == []
    assert world.task_rows()[0].error_class == "bad_input"


def test_a_marker_of_half_a_task_is_not_accepted_for_the_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.plan(numbered(10))
    row = world.task_rows()[0]
    half = Marker(world.job, row.task, 1, "w", 5, 5, 5, input_sha256=row.where.sha256)
    with pytest.raises(ForeignMarker, match="holds 5 items of 10"):
        half.check(row.where)
