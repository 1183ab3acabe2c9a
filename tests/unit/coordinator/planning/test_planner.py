"""A plan can be interrupted anywhere and started again, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import RoundState, TaskState
from slurm_worker.protocol.slices import Slice, pack_slice, unpack_segment
from slurm_worker.protocol.task_table import RowConflict
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.world import World, numbered


class Killed(Exception):
    """The process dies here."""


class DyingRows(MemoryRows):
    """Dies before the n-th request, counting from the last `arm`."""

    left: float = float("inf")

    def _count(self, verb: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        super()._count(verb)


class DyingObjects(MemoryObjects):
    left: float = float("inf")

    def put_new(self, key: str, body: bytes) -> bool:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().put_new(key, body)


def items_of(world: World) -> list[str]:
    found = []
    for row in world.task_rows():
        found += world.store.read_slice(row.round_no, row.where).keys
    return found


def test_each_item_is_in_exactly_one_task_in_order(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=7)
    planned = world.plan(numbered(100))
    assert (planned.tasks, planned.items) == (15, 100)
    assert items_of(world) == [f"k{n}" for n in range(100)]
    assert {row.state for row in world.task_rows()} == {TaskState.READY}


def test_segments_hold_many_tasks_and_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_slurm_provider.coordinator.planning.planner.SEGMENT_ITEMS", 20)
    world = World(tmp_path, bundle=10)
    world.plan(numbered(95))
    segments = list(world.objects.list(world.paths.segments(0)))
    assert len(segments) == 5
    keys = [k for s in segments for k, _ in unpack_segment(world.objects.get(s) or b"")]
    assert keys == [f"k{n}" for n in range(95)]
    assert items_of(world) == keys


@pytest.mark.parametrize("deaths", range(0, 40, 3))
def test_a_planner_killed_at_any_request_continues_when_started_again(
    tmp_path: Path, deaths: int
) -> None:
    rows, objects = DyingRows(), DyingObjects()
    world = World(tmp_path, bundle=5, rows=rows, objects=objects)
    rows.left = deaths
    with contextlib.suppress(Killed):
        world.plan(numbered(100))
    rows.left = float("inf")
    world.plan(numbered(100))
    assert items_of(world) == [f"k{n}" for n in range(100)]
    (round_row,) = world.jobs.rounds()
    assert (round_row.state, round_row.tasks, round_row.items) == (RoundState.OPEN, 20, 100)


def test_a_planner_killed_between_segments_continues_when_started_again(
    tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("airflow_slurm_provider.coordinator.planning.planner.SEGMENT_ITEMS", 20)
    objects = DyingObjects()
    world = World(tmp_path, bundle=10, objects=objects)
    objects.left = 2
    with pytest.raises(Killed):
        world.plan(numbered(95))
    assert world.task_rows() == [], "no task row before the whole input was read"
    objects.left = float("inf")
    world.plan(numbered(95))
    assert items_of(world) == [f"k{n}" for n in range(95)]


def test_a_restart_never_resets_a_task_that_a_worker_holds(tmp_path: Path) -> None:
    rows = DyingRows()
    world = World(tmp_path, bundle=5, rows=rows)
    rows.left = 12
    with pytest.raises(Killed):
        world.plan(numbered(100))
    rows.left = float("inf")
    world.table.claim(world.task_rows()[0], "w1")
    world.plan(numbered(100))
    assert world.task_rows()[0].state is TaskState.LEASED


@pytest.mark.parametrize(("requests", "adopted"), [(3, False), (4, True)])
def test_the_draft_of_a_killed_planner_is_the_plan_only_if_it_was_adopted(
    tmp_path: Path, requests: int, adopted: bool
) -> None:
    rows = DyingRows()
    world = World(tmp_path, rows=rows)
    rows.left = requests
    with pytest.raises(Killed):
        world.plan(numbered(100))
    rows.left = float("inf")
    planned = world.plan([(f"other{n}", {}) for n in range(70)])
    expected = [f"k{n}" for n in range(100)] if adopted else [f"other{n}" for n in range(70)]
    assert (planned.tasks, planned.items) == (len(expected) // 10, len(expected))
    assert items_of(world) == expected


def test_a_plan_whose_segments_are_gone_is_not_opened(tmp_path: Path) -> None:
    rows = DyingRows()
    world = World(tmp_path, rows=rows)
    rows.left = 4
    with pytest.raises(Killed):
        world.plan(numbered(100))
    rows.left = float("inf")
    for key in list(world.objects.list(world.paths.segments(0))):
        world.objects.delete(key)
    with pytest.raises(UserError, match="missing below lab/jobs/job-1/input/000/"):
        world.plan(numbered(100))
    assert world.jobs.rounds()[0].state is RoundState.PLANNING


def test_a_row_of_another_plan_is_never_taken_for_one_of_this(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.table.create(0, 3, Slice(0, 0, 10, 10, "0" * 64))
    with pytest.raises(RowConflict, match="task 000-00000003 of 'job-1'"):
        world.plan(numbered(100))
    assert world.jobs.rounds()[0].state is RoundState.PLANNING


def plan_as_before_drafts(world: World, items: list[Any], rows: int) -> None:
    """What a release without drafts leaves if it is interrupted after so many task rows."""
    world.jobs.create("identity", "config", world.shards)
    world.jobs.create_round(0, "test")
    body, offset = b"", 0
    for sequence in range(0, len(items), world.bundle):
        data = pack_slice(items[sequence : sequence + world.bundle])
        where = Slice(0, offset, len(data), world.bundle, hashlib.sha256(data).hexdigest())
        if sequence // world.bundle < rows:
            world.table.create(0, sequence // world.bundle, where)
        body, offset = body + data, offset + len(data)
    world.objects.put(world.paths.segment(0, 0), body)


def test_a_plan_that_a_release_without_drafts_has_started_is_finished(tmp_path: Path) -> None:
    world = World(tmp_path)
    plan_as_before_drafts(world, numbered(100), rows=4)
    assert world.plan([("other", {})]).items == 100
    assert items_of(world) == [f"k{n}" for n in range(100)]
    assert world.jobs.rounds()[0].draft == 0


def test_segments_of_a_release_without_drafts_and_without_rows_are_ignored(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    plan_as_before_drafts(world, numbered(100), rows=0)
    assert world.plan(numbered(30)).items == 30
    assert items_of(world) == [f"k{n}" for n in range(30)]


def test_a_refused_input_leaves_no_task_row(tmp_path: Path) -> None:
    def refuse() -> dict[str, int]:
        raise UserError("duplicate")

    world = World(tmp_path)
    world.jobs.create("i", "c", 8)
    round_row = world.jobs.create_round(0, "test")
    with pytest.raises(UserError, match="duplicate"):
        world.planner().plan(round_row, numbered(50), world.bundle, refuse)
    assert world.task_rows() == []
    assert list(world.objects.list("")) == []


def test_planning_reads_the_input_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a segment of items is alive at a time."""
    monkeypatch.setattr("airflow_slurm_provider.coordinator.planning.planner.SEGMENT_ITEMS", 100)
    alive = itertools.count()
    put = []

    class Watching(MemoryObjects):
        def put_new(self, key: str, body: bytes) -> bool:
            put.append(next(alive))
            return super().put_new(key, body)

    read = 0

    def stream():  # type: ignore[no-untyped-def]
        nonlocal read
        for key, item in numbered(1000):
            read += 1
            # Each hundred items, the segments before must be on their way.
            assert len(put) >= (read - 1) // 100 - 1
            yield key, item

    World(tmp_path, bundle=10, objects=Watching()).plan(stream())
    assert len(put) == 10
