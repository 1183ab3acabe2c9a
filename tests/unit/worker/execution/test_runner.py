"""Each way of calling a handler gives the same outcomes, and each failure is the item's own."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_worker import batch
from slurm_worker.errors import FatalError, ItemError, RateLimited, ServiceError
from slurm_worker.execution.context import Context
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.protocol.job_config import LeaseConfig, LimitConfig, WorkerConfig
from slurm_worker.protocol.keys import TaskState
from slurm_worker.testing import MemoryRows
from tests.unit.world import World, numbered


def plain(item: dict[str, Any], _context: Context) -> dict[str, Any]:
    if item["n"] % 10 == 3:
        raise ItemError("bad_input", f"no {item['n']}")
    return {"square": item["n"] ** 2}


async def coroutine(item: dict[str, Any], context: Context) -> dict[str, Any]:
    await asyncio.sleep(0.001 * (item["n"] % 3))
    return plain(item, context)


@batch(size=7)
def whole_batch_or_nothing(items: list[dict[str, Any]], context: Context) -> list[Any]:
    return [plain(item, context) for item in items]


@batch(size=7)
def one_by_one(items: list[dict[str, Any]], context: Context) -> list[Any]:
    def attempt(item: dict[str, Any]) -> Any:
        try:
            return plain(item, context)
        except ItemError as error:
            return error

    return [attempt(item) for item in items]


@pytest.mark.parametrize(
    ("handle", "options"),
    [
        (plain, WorkerConfig()),
        (plain, WorkerConfig(concurrency=8)),
        (plain, WorkerConfig(item_timeout_s=5)),
        (coroutine, WorkerConfig(concurrency=8)),
        (coroutine, WorkerConfig(concurrency=8, item_timeout_s=5)),
        (whole_batch_or_nothing, WorkerConfig()),
        (one_by_one, WorkerConfig()),
    ],
    ids=[
        "serial",
        "threads",
        "timed",
        "coroutines",
        "timed coroutines",
        "batch",
        "batch of errors",
    ],
)
def test_every_way_of_calling_gives_the_same_results(
    tmp_path: Path, handle: Any, options: WorkerConfig
) -> None:
    world = World(tmp_path, handle, worker_config=options, bundle=20)
    world.plan(numbered(40))
    assert world.worker().run() == WorkerExit.OK
    rows = {row["_key"]: row["square"] for row in world.lines("rows")}
    assert rows == {f"k{n}": n**2 for n in range(40) if n % 10 != 3}
    errors = [(line["_key"], line["class"]) for line in world.lines("errors")]
    assert errors == [(f"k{n}", "bad_input") for n in (3, 13, 23, 33)]


@pytest.mark.parametrize("options", [WorkerConfig(), WorkerConfig(concurrency=4)])
def test_only_the_item_that_takes_too_long_is_given_up(
    tmp_path: Path, options: WorkerConfig
) -> None:
    over = threading.Event()

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        if item["n"] == 5:
            over.wait(20)
        return {}

    config = WorkerConfig(concurrency=options.concurrency, item_timeout_s=0.2, tries=1)
    world = World(tmp_path, handle, worker_config=config)
    world.clock = RealClock()  # type: ignore[assignment]  # what is late is late by the wall
    world.plan(numbered(10))
    try:
        assert world.worker().run() == WorkerExit.OK
    finally:
        over.set()
    assert [(e["_key"], e["class"]) for e in world.lines("errors")] == [("k5", "timeout")]
    assert world.markers()[0].ok == 9


class RealClock:
    def now(self) -> float:
        return time.time()

    def boot_time(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def test_a_wait_for_a_token_does_not_count_against_the_items_timeout(tmp_path: Path) -> None:
    options = WorkerConfig(concurrency=12, item_timeout_s=0.4, tries=1)
    limits = (LimitConfig("api", 10.0, burst=1),)
    world = World(tmp_path, worker_config=options, limits=limits, bundle=20)
    world.clock = RealClock()  # type: ignore[assignment]  # what is late is late by the wall
    world.plan(numbered(12))
    assert world.worker().run() == WorkerExit.OK
    assert world.lines("errors") == []
    assert world.markers()[0].ok == 12


def test_a_coroutine_that_the_handlers_own_code_cancels_fails_its_item_alone(
    tmp_path: Path,
) -> None:
    async def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        if item["n"] == 5:
            raise asyncio.CancelledError
        return {}

    world = World(tmp_path, handle, worker_config=WorkerConfig(concurrency=4))
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    assert [(e["_key"], e["class"]) for e in world.lines("errors")] == [("k5", "handler_bug")]
    assert world.markers()[0].ok == 9


@pytest.mark.parametrize("handle", [plain, coroutine, whole_batch_or_nothing])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_wait_before_another_try_is_recorded_and_at_most_ten_minutes(
    tmp_path: Path, handle: Any, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    tried: set[int] = set()
    monkeypatch.setattr(Recorder, "waits", lambda _self, now: waited.append(now))
    monkeypatch.setattr("slurm_worker.execution.async_runner.asyncio", Hasty())

    def first_time(item: dict[str, Any]) -> None:
        if item["n"] == 5 and 5 not in tried:
            tried.add(5)
            raise RateLimited(retry_after=86_400)

    world = World(
        tmp_path,
        failing(handle, first_time),
        worker_config=WorkerConfig(concurrency=concurrency),
        lease=LeaseConfig(ttl_s=3600.0),
    )
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    assert len(waited) == 1200, "600 s, recorded every half second"
    assert [(e["_key"], e["class"]) for e in world.lines("errors")] == [("k3", "bad_input")]


class Hasty:
    """asyncio, whose sleeps take no time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


def failing(handle: Any, check: Any) -> Any:
    """A handler of the same kind, before each of whose items `check` is called."""
    if handle is coroutine:

        async def checked(item: dict[str, Any], context: Context) -> Any:
            check(item)
            return await coroutine(item, context)

        return checked
    if handle is plain:
        return lambda item, context: (check(item), plain(item, context))[1]

    @batch(size=7)
    def all_checked(items: list[dict[str, Any]], context: Context) -> Any:
        for item in items:
            check(item)
        return whole_batch_or_nothing(items, context)

    return all_checked


def test_a_coroutine_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        await asyncio.sleep(30 if item["n"] == 5 else 0)
        return {}

    options = WorkerConfig(concurrency=4, item_timeout_s=0.2, tries=1)
    world = World(tmp_path, handle, worker_config=options)
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    assert [(e["_key"], e["class"]) for e in world.lines("errors")] == [("k5", "timeout")]


@pytest.mark.parametrize("result", [None, [1, 2], {"a": 1}])
def test_a_batch_of_the_wrong_shape_is_the_handlers_bug(tmp_path: Path, result: object) -> None:
    @batch(size=5)
    def handle(_items: list[dict[str, Any]], _context: Context) -> Any:
        return result

    world = World(tmp_path, handle)
    world.plan(numbered(5))
    world.worker().run()
    assert {line["class"] for line in world.lines("errors")} == {"handler_bug"}
    assert {line["_key"] for line in world.lines("errors")} == {f"k{n}" for n in range(5)}


def test_the_log_names_the_items_of_a_batch_that_failed_and_no_others(tmp_path: Path) -> None:
    @batch(size=8)
    def handle(items: list[dict[str, Any]], _context: Context) -> list[dict[str, Any]]:
        if any(item["n"] == 5 for item in items):
            raise ItemError("bad_input", "five is not allowed")
        return items

    world = World(tmp_path, handle)
    world.plan(numbered(8))
    world.worker().run()
    failed = [line["item"] for line in world.logger.lines if line["event"] == "item failed"]
    assert failed == ["k5"]
    assert [line["_key"] for line in world.lines("errors")] == ["k5"]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_fatal_error_stops_the_job_whatever_the_way_of_calling(
    tmp_path: Path, concurrency: int, asynchronous: bool
) -> None:
    def handle(_item: dict[str, Any], _context: Context) -> None:
        raise FatalError("wrong API key")

    async def handle_async(item: dict[str, Any], context: Context) -> None:
        handle(item, context)

    options = WorkerConfig(concurrency=concurrency)
    world = World(tmp_path, handle_async if asynchronous else handle, worker_config=options)
    world.plan(numbered(30))
    assert world.worker().run() == WorkerExit.CONFIG
    assert "wrong API key" in world.jobs.get().stop


def test_teardown_is_called_once_and_its_failure_loses_nothing(tmp_path: Path) -> None:
    ended: list[int] = []

    def teardown(context: Context) -> None:
        ended.append(1)
        raise RuntimeError("the connection was closed already")

    world = World(tmp_path, teardown=teardown)
    world.plan(numbered(20))
    assert world.worker().run() == WorkerExit.OK
    assert ended == [1]
    assert any(line["event"] == "teardown failed" for line in world.logger.lines)
    assert sum(marker.ok for marker in world.markers()) == 20


def test_an_outage_of_our_services_is_no_failure_of_an_item(tmp_path: Path) -> None:
    class Away(MemoryRows):
        def get(self, pk, sk, *, consistent=True):  # type: ignore[no-untyped-def]
            if pk.startswith("LIMIT#") and world.workers == 1:
                raise ServiceError("the table is away")
            return super().get(pk, sk, consistent=consistent)

    world = World(tmp_path, rows=Away(), limits=(LimitConfig("api", 1000.0),))
    world.plan(numbered(10))
    assert world.worker(world.patient()).run() == WorkerExit.INFRASTRUCTURE
    assert world.markers() == []
    assert [(row.state, row.lost, row.tries) for row in world.task_rows()] == [
        (TaskState.READY, 0, 0)
    ]
    assert world.worker().run() == WorkerExit.OK
    assert world.lines("errors") == []
    assert sum(marker.ok for marker in world.markers()) == 10
