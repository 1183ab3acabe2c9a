"""A worker runs every item once, commits each task once, and gives back what it can't end."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm_worker.aggregate.job.parquet_part import read_rows
from slurm_worker.errors import (
    ErrorClass,
    FatalError,
    InvalidRequest,
    ItemError,
    ServiceError,
    Throttled,
)
from slurm_worker.execution.context import Context
from slurm_worker.node.attempts import Attempts
from slurm_worker.node.heartbeat import Heartbeat
from slurm_worker.node.slurm_job import Drain, WorkerExit
from slurm_worker.node.threads import PooledThreads
from slurm_worker.protocol.job_config import LeaseConfig, WorkerConfig
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement
from slurm_worker.protocol.task_history import TaskEvent
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.world import World, numbered


def test_every_item_has_exactly_one_row_in_the_committed_parts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.plan(numbered(95))
    assert world.worker().run() == WorkerExit.OK
    assert sorted(row["n"] for row in world.lines("rows")) == list(range(95))
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}
    assert sum(row.items_ok for row in world.task_rows()) == 95


def test_a_failed_item_is_recorded_with_its_class_and_never_fails_its_task(tmp_path: Path) -> None:
    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        if item["n"] % 10 == 3:
            raise ItemError("bad_input", f"no {item['n']}")
        return {"square": item["n"] ** 2}

    world = World(tmp_path, handle)
    world.plan(numbered(40))
    world.worker().run()
    errors = world.lines("errors")
    assert [(e["_key"], e["class"], e["item"]) for e in errors] == [
        (f"k{n}", "bad_input", {"n": n}) for n in (3, 13, 23, 33)
    ]
    assert sum(marker.ok for marker in world.markers()) == 36
    assert all(
        marker.items == marker.ok + sum(marker.failed.values()) for marker in world.markers()
    )


def test_a_transient_error_is_tried_again_in_the_worker(tmp_path: Path) -> None:
    calls: dict[int, int] = {}

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        calls[item["n"]] = calls.get(item["n"], 0) + 1
        if calls[item["n"]] < 3 and item["n"] == 5:
            raise ConnectionResetError("dropped")
        return {}

    world = World(tmp_path, handle, worker_config=WorkerConfig(tries=3))
    world.plan(numbered(10))
    world.worker().run()
    assert calls[5] == 3
    assert world.markers()[0].ok == 10


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", "the handler returned str"),
        ([1], "the handler returned int"),
        ({"x": {1, 2}}, "not JSON"),
        ({"x": float("nan")}, "not JSON"),
        ({"x": "\ud800"}, "not JSON"),
        ({"_key": "mine"}, "has a field '_key'"),
    ],
)
def test_a_result_that_is_not_a_row_is_the_handlers_bug(
    tmp_path: Path, result: object, message: str
) -> None:
    world = World(tmp_path, lambda _item, _context: result)
    world.plan(numbered(1))
    world.worker().run()
    (error,) = world.lines("errors")
    assert error["class"] == ErrorClass.HANDLER_BUG.value
    assert message in error["message"]


def test_sys_exit_in_a_handler_is_a_bug_and_does_not_end_the_worker(tmp_path: Path) -> None:
    def handle(_item: dict[str, Any], _context: Context) -> None:
        raise SystemExit(3)

    world = World(tmp_path, handle)
    world.plan(numbered(2))
    assert world.worker().run() == WorkerExit.OK
    assert world.markers()[0].failed == {"handler_bug": 2}


def test_threads_give_the_same_parts_as_one_after_the_other(tmp_path: Path) -> None:
    one = World(tmp_path / "one")
    many = World(tmp_path / "many", worker_config=WorkerConfig(concurrency=8))
    for world in (one, many):
        world.plan(numbered(50))
        world.worker().run()
    assert one.lines("rows") == many.lines("rows")
    assert [m.parts[0].sha256 for m in one.markers()] == [m.parts[0].sha256 for m in many.markers()]


def test_a_stopping_worker_gives_its_lease_back_without_counting_a_try(tmp_path: Path) -> None:
    drain = Drain(PooledThreads().signal())

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        world.clock.advance(1)
        if item["n"] == 4:
            drain.stop_requested.set()
        return {}

    world = World(tmp_path, handle)
    world.plan(numbered(10))
    assert world.worker(drain).run() == WorkerExit.OK
    (row,) = world.task_rows()
    assert (row.state, row.tries, row.lost) == (TaskState.READY, 0, 0)
    assert world.markers() == []


def test_a_worker_exits_in_time_although_an_item_still_runs(tmp_path: Path) -> None:
    drain = Drain(PooledThreads().signal())
    left = threading.Event()

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        world.clock.advance(1)
        if item["n"] == 4:
            drain.stop_requested.set()
            assert left.wait(20), "the worker leaves while this item runs"
        return {}

    world = World(tmp_path, handle)
    world.plan(numbered(10))
    world.worker(drain, leave=left.set, drain_s=0.2).run()
    (row,) = world.task_rows()
    assert (row.state, row.tries, row.lost) == (TaskState.READY, 0, 0)
    assert row.checkpoint, "the finished items are kept"
    world.handle = lambda item, _context: item
    assert world.worker().run() == WorkerExit.OK
    assert [line["_key"] for line in world.lines("rows")] == [f"k{n}" for n in range(10)]
    assert [line for line in world.lines("rows") if "n" in line] == [
        {"_key": f"k{n}", "n": n} for n in range(4, 10)
    ]


def test_a_row_that_does_not_fit_the_declared_schema_is_its_items_failure(tmp_path: Path) -> None:
    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        return {"n": "seven" if item["n"] == 7 else item["n"]}

    world = World(tmp_path, handle, part_format="parquet", columns={"n": "int64"})
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    (marker,) = world.markers()
    assert (marker.ok, marker.failed) == (9, {"handler_bug": 1})
    rows, errors = marker.parts
    assert rows.key.endswith(".parquet")
    assert errors.key.endswith(".errors.jsonl.gz")
    assert [row["n"] for row in read_rows(world.store.read_part(rows))] == [
        n for n in range(10) if n != 7
    ]
    (error,) = world.lines("errors")
    assert error["message"].startswith("column 'n': the handler returned \"seven\"")


def test_a_node_without_pyarrow_writes_lines_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "slurm_worker.aggregate.job.parquet_part", None)
    world = World(tmp_path, part_format="parquet", columns={"n": "int64"})
    world.plan(numbered(3))
    assert world.worker().run() == WorkerExit.OK
    assert world.markers()[0].parts[0].key.endswith(".jsonl.gz")


def test_a_fatal_error_stops_the_job_for_every_worker(tmp_path: Path) -> None:
    def handle(_item: dict[str, Any], _context: Context) -> None:
        raise FatalError("the API key is wrong")

    world = World(tmp_path, handle)
    world.plan(numbered(30))
    assert world.worker().run() == WorkerExit.CONFIG
    assert "the API key is wrong" in world.jobs.get().stop
    calls: list[int] = []
    world.handle = lambda item, _context: calls.append(item["n"])
    world.worker().run()
    assert calls == []


def test_a_task_is_given_back_if_the_table_is_away_when_its_handler_stops_the_job(
    tmp_path: Path,
) -> None:
    """Its lease must not be renewed, with checkpoints of what the worker runs next."""

    class Away(MemoryRows):
        left = 1

        def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
            if statement.name == "job stop" and self.left:
                self.left -= 1
                raise ServiceError("away")
            return super().update(pk, sk, statement)

    calls: Counter[int] = Counter()

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        calls[item["n"]] += 1
        if item["n"] == 3 and calls[3] == 1:
            raise FatalError("the API key is wrong")
        return item

    world = World(tmp_path, handle, rows=Away())
    world.plan(numbered(30))
    assert world.worker(world.patient()).run() == WorkerExit.OK
    rows = world.task_rows()
    assert {(row.state, row.lost) for row in rows} == {(TaskState.DONE, 0)}
    assert {entry.event for row in rows for entry in row.history} == {TaskEvent.SERVICE_FAILED}
    assert sorted(line["n"] for line in world.lines("rows")) == list(range(30))


@pytest.mark.parametrize(
    ("error", "code", "done"),
    [
        (Throttled("slow down"), WorkerExit.OK, 95),
        (ServiceError("away"), WorkerExit.INFRASTRUCTURE, 0),
    ],
)
def test_a_worker_tolerates_throttling_and_exits_when_a_service_is_away(
    tmp_path: Path, error: ServiceError, code: int, done: int
) -> None:
    class Refusing(MemoryRows):
        refusals = 9

        def query(self, *args: Any, **options: Any) -> Iterator[Row]:
            if self.refusals:
                self.refusals -= 1
                raise error
            return super().query(*args, **options)

    rows = MemoryRows()
    world = World(tmp_path, rows=rows)
    world.plan(numbered(95))
    rows.__class__ = Refusing
    assert world.worker(world.patient()).run() == code
    rows.__class__ = MemoryRows
    assert sum(row.items_ok for row in world.task_rows()) == done


class ReadOnly(MemoryObjects):
    """A store that serves what it has, and takes nothing."""

    away = False

    def put(self, key: str, body: bytes) -> None:
        if self.away:
            raise ServiceError("the store is away")
        super().put(key, body)


def test_a_worker_that_can_commit_no_task_exits_and_no_task_is_to_blame(
    tmp_path: Path,
) -> None:
    objects = ReadOnly()
    world = World(tmp_path, objects=objects)
    world.plan(numbered(200))
    objects.away = True
    assert world.worker().run() == WorkerExit.INFRASTRUCTURE
    rows = world.task_rows()
    assert {(row.state, row.lost, row.tries) for row in rows} == {(TaskState.READY, 0, 0)}
    objects.away = False
    assert world.worker().run() == WorkerExit.OK
    assert sum(row.items_ok for row in world.task_rows()) == 200


def test_a_task_is_not_to_blame_for_a_slice_that_the_store_does_not_serve(tmp_path: Path) -> None:
    class Away(MemoryObjects):
        away = False

        def get(self, key: str, **where: Any) -> bytes | None:
            if self.away and "/input/" in key:
                raise ServiceError("the store is away")
            return super().get(key, **where)

    objects = Away()
    world = World(tmp_path, objects=objects)
    world.plan(numbered(50))
    objects.away = True
    assert world.worker().run() == WorkerExit.INFRASTRUCTURE
    assert {(row.state, row.lost) for row in world.task_rows()} == {(TaskState.READY, 0)}


def test_a_part_that_the_store_never_accepts_counts_against_its_task(tmp_path: Path) -> None:
    class Small(MemoryObjects):
        def put(self, key: str, body: bytes) -> None:
            if "/parts/000-00000000/" in key:
                raise InvalidRequest("EntityTooLarge")
            super().put(key, body)

    lease = LeaseConfig(max_lost=1)
    world = World(tmp_path, objects=Small(), lease=lease)
    world.plan(numbered(20))
    world.worker(world.patient()).run()
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}
    assert world.markers()[0].split, "its halves' parts are smaller"


def test_a_claim_without_an_answer_is_undone(tmp_path: Path) -> None:
    class Mute(MemoryRows):
        mute = 1

        def update(self, pk, sk, statement):  # type: ignore[no-untyped-def]
            result = super().update(pk, sk, statement)
            if statement.name == "claim" and self.mute:
                self.mute -= 1
                raise ServiceError("no answer")
            return result

    world = World(tmp_path, rows=Mute())
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    (row,) = world.task_rows()
    assert (row.state, row.attempt, row.lost) == (TaskState.DONE, 2, 0)


def test_a_stopping_worker_frees_its_task_although_its_checkpoint_can_not_be_saved(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.plan(numbered(10))
    context = world.context()
    claimed = world.table.claim(world.task_rows()[0], context.identity.worker)
    assert isinstance(claimed, Claimed)

    def fails() -> None:
        raise ServiceError("the store is away")

    heartbeat = Heartbeat(context)
    held: Any = heartbeat.hold(claimed.lease)
    held.journal, held.save = SimpleNamespace(ok=0, failed=0), fails
    attempt: Any = SimpleNamespace(
        held=held, checkpoints=SimpleNamespace(due=lambda _worked_s, released: released)
    )
    Attempts(context, heartbeat).release(attempt, 100.0)
    heartbeat.close()
    assert world.task_rows()[0].state is TaskState.READY


def test_a_task_that_was_committed_and_not_completed_is_repaired_not_run(tmp_path: Path) -> None:
    calls: list[int] = []

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        calls.append(item["n"])
        return {}

    class ForgetsToComplete(MemoryRows):
        def update(self, pk, sk, statement):  # type: ignore[no-untyped-def]
            if statement.name == "complete" and not calls_done:
                calls_done.append(True)
                raise SystemExit("killed between marker and row")
            return super().update(pk, sk, statement)

    calls_done: list[bool] = []
    world = World(tmp_path, handle, rows=ForgetsToComplete())
    world.plan(numbered(5))
    with pytest.raises(SystemExit):
        world.worker().run()
    assert world.task_rows()[0].state is TaskState.LEASED
    world.clock.advance(world.lease.ttl_s + world.lease.margin_s + 1)
    assert world.worker(world.patient()).run() == WorkerExit.OK
    assert world.task_rows()[0].state is TaskState.DONE
    assert len(calls) == 5


def test_of_two_attempts_that_both_end_one_is_committed(tmp_path: Path) -> None:
    world = World(tmp_path, lease=LeaseConfig(ttl_s=100, heartbeat_s=10, margin_s=5))
    world.plan(numbered(5))
    world.worker().run()
    first = world.markers()[0]
    zombie = world.store.commit(
        type(first)(**{**{n: getattr(first, n) for n in first.__slots__}, "attempt": 9})
    )
    world.table.complete(zombie)
    assert zombie == first
    assert world.task_rows()[0].winner == first.attempt


def test_a_tampered_slice_fails_the_task_and_runs_nothing(tmp_path: Path) -> None:
    calls: list[int] = []
    world = World(
        tmp_path,
        lambda item, _context: calls.append(item["n"]),
        lease=LeaseConfig(max_tries=1),
    )
    world.plan(numbered(5))
    (key,) = world.objects.list(world.paths.segments(0))
    world.objects.put(key, bytes(len(world.objects.get(key) or b"")))
    assert world.worker().run() == WorkerExit.OK
    (row,) = world.task_rows()
    assert (row.state, row.error_class) == (TaskState.FAILED, "bad_input")
    assert "not those that were planned" in row.error
    assert calls == []


def test_setup_runs_once_and_its_result_is_the_state(tmp_path: Path) -> None:
    made: list[int] = []

    def setup(context: Context) -> dict[str, Any]:
        made.append(1)
        return {"p": context.params["p"]}

    def handle(_item: dict[str, Any], context: Context) -> dict[str, Any]:
        return {"p": context.state["p"], "idem": context.idempotency_key}

    world = World(tmp_path, handle, setup)
    world.plan(numbered(20))
    world.worker().run()
    assert made == [1]
    assert world.lines("rows")[0] == {"_key": "k0", "p": 1, "idem": "job-1/k0"}


def test_requests_per_task_stay_within_the_budget(tmp_path: Path) -> None:
    rows = MemoryRows()
    world = World(tmp_path, rows=rows)
    world.plan(numbered(1000))
    tasks = 100
    rows.requests.clear()
    world.worker().run()
    assert rows.requests["claim"] == tasks
    assert rows.requests["complete"] == tasks
    # One page and one read of the job's row per claim. Each time a shard has no more tasks, the
    # worker reads others, at most all of them.
    assert rows.requests["query"] <= tasks + world.shards**2
    # And at the mark of each shard.
    assert rows.requests["get"] <= tasks + world.shards + 5
