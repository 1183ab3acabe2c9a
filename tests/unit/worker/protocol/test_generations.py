"""Whatever brings a row back, however late and however often, workers find it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_worker.errors import ErrorClass
from slurm_worker.node.attempts import Attempts
from slurm_worker.node.heartbeat import Heartbeat
from slurm_worker.node.task_finder import Found, TaskFinder
from slurm_worker.protocol import keys
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.shard_progress import ShardCursors
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import MemoryRows
from tests.unit.world import JOB, World, numbered

TASKS = 60


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A job of one shard whose first task has failed; all else is done, and marked so."""
    made = World(tmp_path, bundle=1, shards=1, rows=MemoryRows())
    made.plan(numbered(TASKS))
    fail_first(made)
    work_off(made)
    return made


def fail_first(world: World) -> None:
    claimed = world.table.claim(world.task_rows()[0], "node")
    world.table.fail(claimed.lease, ErrorClass.OUT_OF_MEMORY, "killed", 0.0, final=True)  # type: ignore[union-attr]


def work_off(world: World) -> None:
    world.worker().run()
    generation = world.jobs.get().generation
    ShardCursors(world.rows, JOB, 1).advance(0, generation, world.task_rows()[-1].sk)


def ended(world: World) -> Callable[[], list[TaskRow]]:
    return lambda: [row for row in world.task_rows() if row.state is TaskState.FAILED]


def is_found(world: World) -> bool:
    """Whether a worker that starts now finds the first task."""
    finder = TaskFinder(world.table, "late", world.clock, random.Random(1))
    finder.new_generation(world.jobs.get().generation)
    found = finder.next()
    return isinstance(found, Found) and found.lease.row.sequence == 0


def test_a_round_puts_its_tasks_back_before_it_opens(world: World) -> None:
    assert open_round(world.jobs, world.table, 1, ended(world)) == 1
    assert world.jobs.get().rounds == 2
    assert is_found(world)


def test_an_open_round_puts_no_tasks_back(world: World) -> None:
    open_round(world.jobs, world.table, 1, ended(world))
    fail_first(world)
    work_off(world)
    assert open_round(world.jobs, world.table, 1, ended(world)) == 0
    assert world.task_rows()[0].state is TaskState.FAILED
    assert open_round(world.jobs, world.table, 2, ended(world)) == 1, "the next round may"
    assert is_found(world)


def test_a_task_that_a_call_puts_back_after_its_round_was_opened_is_found(world: World) -> None:
    def asleep_while_another_opens() -> list[TaskRow]:
        rows = ended(world)()
        open_round(world.jobs, world.table, 1, list)
        work_off(world)
        return rows

    assert open_round(world.jobs, world.table, 1, asleep_while_another_opens) == 1
    assert is_found(world)


def test_the_next_call_completes_a_call_that_died_after_its_late_write(world: World) -> None:
    rows = ended(world)()
    open_round(world.jobs, world.table, 1, list)
    work_off(world)
    world.table.reopen(rows[0], 1)
    assert not is_found(world), "else this shows nothing"
    open_round(world.jobs, world.table, 1, ended(world))
    assert is_found(world)


def test_a_task_is_put_back_once_in_a_round_however_late_a_second_call_read_it(
    world: World,
) -> None:
    (before,) = ended(world)()
    assert world.table.reopen(before, 1)
    fail_first(world)
    assert not world.table.reopen(before, 1)
    assert not world.table.reopen(ended(world)()[0], 1)
    assert world.table.reopen(ended(world)()[0], 2)


def test_a_row_that_an_older_release_has_put_back_can_be_put_back_again(world: World) -> None:
    (row,) = ended(world)()
    assert world.table.reopen(row, 1)
    fail_first(world)
    (stored,) = world.rows.query(keys.task_pk(JOB, 0), limit=1)
    world.rows.delete(str(stored["pk"]), str(stored["sk"]))
    world.rows.put_new({name: each for name, each in stored.items() if name != "reopened_in"})
    assert world.table.reopen(ended(world)()[0], 2)


def test_generations_rise_whatever_the_clocks_say(world: World) -> None:
    seen = [world.jobs.get().generation]
    for back_s in (0, 3600, 86_400):
        world.clock.advance(-back_s)
        world.jobs.begin_generation()
        seen.append(world.jobs.get().generation)
    assert seen == sorted(set(seen))


def test_a_finder_ignores_an_older_generation(world: World) -> None:
    finder = TaskFinder(world.table, "w", world.clock, random.Random(1))
    assert finder.new_generation(5)
    assert not finder.new_generation(4)
    assert not finder.new_generation(5)


class Stale(MemoryRows):
    """Reads of the job's row that need not be consistent show it as it was long ago."""

    old: Row | None = None

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        if sk == keys.META and not consistent and self.old is not None:
            return self.old
        return super().get(pk, sk, consistent=consistent)


def test_a_worker_with_an_old_view_of_the_job_searches_again_before_it_exits(
    tmp_path: Path,
) -> None:
    rows = Stale()
    world = World(tmp_path, bundle=1, shards=1, rows=rows)
    world.plan(numbered(TASKS))
    fail_first(world)
    work_off(world)
    rows.old = rows.get(keys.job_pk(JOB), keys.META)
    open_round(world.jobs, world.table, 1, ended(world))
    world.worker().run()
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}


def test_halves_that_a_late_holder_makes_of_a_quarantined_task_are_found(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, bundle=2, shards=1)
    world.plan(numbered(2 * TASKS))
    table = world.table
    claimed = table.claim(world.task_rows()[0], "late")
    lease = claimed.lease  # type: ignore[union-attr]
    world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)
    stolen = table.steal(world.task_rows()[0], "thief")
    table.fail(stolen.lease, ErrorClass.NODE_FAILURE, "disk", 0.0, final=True)  # type: ignore[union-attr]
    work_off(world)
    context = world.context()
    never_whole = replace(context.config, lease=replace(world.lease, max_lost=0))
    heartbeat = Heartbeat(context)
    assert Attempts(replace(context, config=never_whole), heartbeat).open(lease) is None
    heartbeat.close()
    finder = TaskFinder(table, "next", world.clock, random.Random(1))
    finder.new_generation(world.jobs.get().generation)
    found = [finder.next() for _ in range(2)]
    tasks = {each.lease.task for each in found if isinstance(each, Found)}
    assert tasks == set(keys.halves(lease.task) or ())
