"""Workers share how far a shard is processed, and no task is missed because of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from slurm_worker.errors import ErrorClass
from slurm_worker.node.task_finder import Finished, Found, TaskFinder, Waiting
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.shard_progress import ROWS_PER_CURSOR, ShardCursors
from slurm_worker.testing import MemoryRows
from tests.unit.world import JOB, World, numbered

TASKS = 1_000


def finder(world: World, name: str) -> TaskFinder:
    made = TaskFinder(world.table, name, world.clock, random.Random(name))
    made.new_generation(world.jobs.get().generation)
    return made


def work(world: World, name: str, tasks: int) -> None:
    """Process this many tasks as one worker."""
    mine = finder(world, name)
    for _ in range(tasks):
        found = mine.next()
        assert isinstance(found, Found)
        world.table.complete(Marker(JOB, found.lease.task, found.lease.attempt, name, 1, 1, 1))


def one_shard(tmp_path: Path, rows: MemoryRows) -> World:
    world = World(tmp_path, bundle=1, shards=1, rows=rows)
    world.plan(numbered(TASKS))
    return world


def test_a_late_worker_does_not_read_tasks_that_are_done(tmp_path: Path) -> None:
    rows = MemoryRows()
    world = one_shard(tmp_path, rows)
    work(world, "w1", TASKS - 100)
    rows.requests.clear()
    assert isinstance(finder(world, "w2").next(), Found)
    assert rows.requests["query"] <= 2
    assert rows.requests["get"] <= 3


def test_a_cursor_is_before_every_task_that_has_not_ended(tmp_path: Path) -> None:
    world = one_shard(tmp_path, MemoryRows())
    held = finder(world, "slow").next()
    assert isinstance(held, Found)
    work(world, "w1", TASKS // 2)
    cursor = ShardCursors(world.rows, JOB, 1).read(0, 1)
    assert cursor < held.lease.row.sk
    world.table.complete(Marker(JOB, held.lease.task, 1, "slow", 1, 1, 1))
    work(world, "w1", TASKS // 4)
    cursor = ShardCursors(world.rows, JOB, 1).read(0, 1)
    first = next(row for row in world.task_rows() if not row.state.terminal)
    assert held.lease.row.sk < cursor < first.sk


def test_cursors_cost_few_writes(tmp_path: Path) -> None:
    rows = MemoryRows()
    world = one_shard(tmp_path, rows)
    rows.requests.clear()
    work(world, "w1", TASKS)
    assert 1 <= rows.requests["cursor"] <= TASKS // ROWS_PER_CURSOR


def test_a_cursor_never_moves_back(tmp_path: Path) -> None:
    cursors = ShardCursors(World(tmp_path).rows, JOB, 1)
    cursors.advance(0, 1, "000#00000500")
    cursors.advance(0, 1, "000#00000100")
    assert cursors.read(0, 1) == "000#00000500"


def test_a_cursor_of_an_older_generation_is_ignored(tmp_path: Path) -> None:
    cursors = ShardCursors(World(tmp_path).rows, JOB, 1)
    cursors.advance(0, 1, "000#00000500")
    assert cursors.read(0, 2) == ""
    cursors.advance(0, 2, "000#00000100")
    assert cursors.read(0, 2) == "000#00000100"
    cursors.advance(0, 1, "000#00000900")
    assert cursors.read(0, 2) == "000#00000100", "a worker that has not heard of the new one"


def test_a_retry_finds_the_tasks_before_a_cursor(tmp_path: Path) -> None:
    world = one_shard(tmp_path, MemoryRows())
    first = finder(world, "w1").next()
    assert isinstance(first, Found)
    world.table.fail(first.lease, ErrorClass.NODE_FAILURE, "disk full", 0.0, final=True)
    work(world, "w1", TASKS - 1)
    assert isinstance(finder(world, "w2").next(), Finished)
    row = world.table.find(first.lease.task)
    assert row is not None
    world.table.reopen(row, 1)
    world.jobs.open(2)
    found = finder(world, "w3").next()
    assert isinstance(found, Found)
    assert found.lease.task == first.lease.task


def test_after_a_repair_workers_read_every_row_again(tmp_path: Path) -> None:
    world = one_shard(tmp_path, MemoryRows())
    work(world, "w1", TASKS)
    running = finder(world, "w2")
    assert isinstance(running.next(), Finished)
    row = world.task_rows()[0]
    world.rows.delete(keys.task_pk(JOB, 0), row.sk)
    world.table.create(0, 0, row.where, attempt=1)
    world.jobs.begin_generation()
    generation = world.jobs.get().generation
    running.new_generation(generation)
    found = running.next()
    assert isinstance(found, Found)
    assert found.lease.task == row.task


def test_an_expired_lease_is_stolen_while_other_tasks_are_ready(tmp_path: Path) -> None:
    world = one_shard(tmp_path, MemoryRows())
    dead = finder(world, "dead").next()
    assert isinstance(dead, Found)
    mine = finder(world, "w1")
    for _ in range(TASKS // 2):
        found = mine.next()
        assert isinstance(found, Found)
        if found.lease.task == dead.lease.task:
            return
        world.clock.advance(10)
        world.table.complete(Marker(JOB, found.lease.task, found.lease.attempt, "w1", 1, 1, 1))
    raise AssertionError("half of the job was done, and nobody has taken the lease over")


def many_shards(tmp_path: Path, rows: MemoryRows | None = None) -> World:
    world = World(tmp_path, bundle=1, shards=64, rows=rows or MemoryRows())
    world.plan(numbered(TASKS))
    return world


def test_a_worker_that_finds_nothing_searches_shards_with_unfinished_tasks(tmp_path: Path) -> None:
    rows = MemoryRows()
    world = many_shards(tmp_path, rows)
    early = finder(world, "w1")
    for _ in range(TASKS - 3):
        assert isinstance(early.next(), Found)
    for name in ("w2", "w3", "w4"):
        late = finder(world, name)
        rows.requests.clear()
        assert isinstance(late.next(), Found)
        assert rows.requests["query"] <= 8, "its own shard, all cursors, and few others"


def test_a_finished_job_costs_each_worker_few_reads(tmp_path: Path) -> None:
    rows = MemoryRows()
    world = many_shards(tmp_path, rows)
    work(world, "w1", TASKS)
    first = finder(world, "w2")
    assert isinstance(first.next(), Finished)
    rows.requests.clear()
    assert isinstance(finder(world, "w3").next(), Finished)
    assert sum(rows.requests.values()) <= 4


def test_a_released_task_is_found_in_a_shard_without_ready_tasks(tmp_path: Path) -> None:
    world = many_shards(tmp_path)
    early = finder(world, "w1")
    leases = [found.lease for _ in range(TASKS) if isinstance(found := early.next(), Found)]
    assert isinstance(early.next(), Waiting)
    others = [finder(world, f"idle{n}") for n in range(5)]
    assert all(isinstance(each.next(), Waiting) for each in others)
    world.table.release(leases[TASKS // 2])
    for _ in range(100):
        world.clock.advance(2)
        for each in others:
            found = each.next()
            if isinstance(found, Found):
                assert found.lease.task == leases[TASKS // 2].task
                return
    raise AssertionError("nobody has looked where the task was given back")


def test_expired_leases_are_stolen_in_shards_without_ready_tasks(
    tmp_path: Path,
) -> None:
    world = many_shards(tmp_path)
    dead = finder(world, "dead")
    while isinstance(dead.next(), Found):
        pass
    world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)
    idle, taken = finder(world, "idle"), 0
    for _ in range(20 * TASKS):
        found = idle.next()
        if isinstance(found, Found):
            taken += 1
            marker = Marker(JOB, found.lease.task, found.lease.attempt, "idle", 1, 1, 1)
            world.table.complete(marker)
        elif isinstance(found, Finished):
            break
        else:
            world.clock.advance(5)
    assert taken == TASKS


def test_a_shard_with_a_leased_task_is_not_recorded_as_ended(tmp_path: Path) -> None:
    world = many_shards(tmp_path)
    held = finder(world, "slow").next()
    assert isinstance(held, Found)
    work(world, "w1", TASKS - 1)
    idle = finder(world, "w2")
    found = idle.next()
    assert found == Waiting(leased=1, later=0)
    world.table.complete(Marker(JOB, held.lease.task, 1, "slow", 1, 1, 1))
    world.clock.advance(10)
    assert isinstance(idle.next(), Finished)


@pytest.mark.parametrize("shards", [4, 32])
def test_each_task_is_done_once_however_many_workers_start_and_end(
    tmp_path: Path, shards: int
) -> None:
    world = World(tmp_path, bundle=1, shards=shards)
    world.plan(numbered(TASKS))
    rng = random.Random(3)
    done: set[str] = set()
    finders = [finder(world, f"w{n}") for n in range(6)]
    names = [f"w{n}" for n in range(6)]
    for turn in range(20 * TASKS):
        number = rng.randrange(6)
        if rng.random() < 0.01:
            names[number] = f"w{number}-{turn}"
            finders[number] = finder(world, names[number])
        found = finders[number].next()
        if isinstance(found, Finished):
            break
        if isinstance(found, Waiting):
            world.clock.advance(20)
            continue
        world.clock.advance(1)
        if rng.random() < 0.05:
            continue  # it dies with its lease
        assert found.lease.task not in done
        done.add(found.lease.task)
        marker = Marker(JOB, found.lease.task, found.lease.attempt, names[number], 1, 1, 1)
        world.table.complete(marker)
    assert len(done) == TASKS
