"""Whatever a handler does to what it gets, or raises: each call gets the item that was planned.

And what is recorded of a failure is the planned item, whatever the handler left in its copy.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm_worker import batch
from slurm_worker.errors import FatalError, ItemError, RateLimited
from slurm_worker.execution.context import Context
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.protocol.job_config import WorkerConfig
from slurm_worker.rate_limits.limiter import Stopped
from slurm_worker.testing import ManualClock
from tests.unit.world import World, numbered

Item = dict[str, Any]
Handle = Callable[[Item], Any]
WAYS = ["serial", "timed", "threads", "coroutines", "batch"]


def called(way: str, handle: Handle) -> Any:
    """The function of one item as a handler of one of the four kinds."""
    if way == "coroutines":

        async def coroutine(item: Item, _context: Context) -> Any:
            return handle(item)

        return coroutine
    if way == "batch":

        @batch(size=4)
        def whole_batch(items: list[Item], _context: Context) -> list[Any]:
            return [handle(item) for item in items]

        return whole_batch
    return lambda item, _context: handle(item)


def world_of(way: str, handle: Handle, folder: Path, tries: int = 3) -> World:
    options = WorkerConfig(
        tries=tries,
        backoff_s=0.001,
        concurrency=4 if way in ("threads", "coroutines") else 1,
        item_timeout_s=30.0 if way == "timed" else 0.0,
    )
    return World(folder, called(way, handle), worker_config=options, clock=Patient())


class Patient(ManualClock):
    """Time passes by itself, a little."""

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def nested(count: int) -> list[tuple[str, Item]]:
    return [(f"k{n}", {"n": n, "inner": {"list": [n, {"é": "ü"}]}}) for n in range(count)]


@pytest.mark.parametrize("way", WAYS)
def test_another_try_gets_the_planned_item(way: str, tmp_path: Path) -> None:
    calls: Counter[int] = Counter()

    def scale(item: Item) -> Item:
        n = item.pop("n")
        item["inner"]["list"][0] *= 10
        calls[n] += 1
        if calls[n] < 3 and n % 2:
            raise ItemError("network", "down")
        return {"n": n, "scaled": item["inner"]["list"][0]}

    world = world_of(way, scale, tmp_path)
    world.plan(nested(8))
    assert world.worker().run() == WorkerExit.OK
    assert world.lines("errors") == []
    found = [(row["_key"], row["n"], row["scaled"]) for row in world.lines("rows")]
    assert found == [(f"k{n}", n, 10 * n) for n in range(8)]


def leave_a_date(item: Item) -> None:
    item["at"] = dt.datetime(2026, 1, 1)


def leave_nan(item: Item) -> None:
    item["inner"]["list"].append(float("nan"))


def leave_a_surrogate(item: Item) -> None:
    item["\ud800"] = "\udcff"


def leave_itself(item: Item) -> None:
    item["inner"]["self"] = item


def leave_nothing(item: Item) -> None:
    item.clear()


def leave_it_deep(item: Item) -> None:
    for _ in range(5000):
        item["inner"] = {"inner": item["inner"]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "leave",
    [leave_a_date, leave_nan, leave_a_surrogate, leave_itself, leave_nothing, leave_it_deep],
)
def test_a_failed_item_is_recorded_as_it_was_planned(
    way: str, leave: Callable[[Item], None], tmp_path: Path
) -> None:
    def handle(item: Item) -> Item:
        n = item["n"]
        leave(item)
        if n == 2:
            raise ItemError("bad_input", "two is bad")
        return {"n": n}

    world = world_of(way, handle, tmp_path)
    planned = nested(8)
    world.plan(planned)
    assert world.worker().run() == WorkerExit.OK
    (error,) = world.lines("errors")
    assert (error["_key"], error["class"], error["item"]) == ("k2", "bad_input", planned[2][1])
    assert [row["n"] for row in world.lines("rows")] == [0, 1, 3, 4, 5, 6, 7]


def test_an_item_that_an_abandoned_thread_still_changes_is_recorded_as_planned(
    tmp_path: Path,
) -> None:
    over = threading.Event()

    def handle(item: Item, _context: Context) -> Item:
        def change() -> None:
            while not over.is_set():
                item[f"x{len(item) % 1000}"] = object()

        threading.Thread(target=change, daemon=True).start()
        raise ValueError("gone wrong")

    world = World(tmp_path, handle, worker_config=WorkerConfig(concurrency=2))
    world.plan(numbered(4))
    try:
        assert world.worker().run() == WorkerExit.OK
    finally:
        over.set()
    assert [line["item"] for line in world.lines("errors")] == [{"n": n} for n in range(4)]


def test_a_row_that_coroutines_share_is_written_before_another_fills_it(tmp_path: Path) -> None:
    row: Item = {}

    async def handle(item: Item, _context: Context) -> Item:
        await asyncio.sleep(0.001 * (item["n"] % 3))
        row["n"] = item["n"]
        return row

    world = World(tmp_path, handle, bundle=40, worker_config=WorkerConfig(concurrency=40))
    world.plan(numbered(40))
    assert world.worker().run() == WorkerExit.OK
    assert [(row["_key"], row["n"]) for row in world.lines("rows")] == [
        (f"k{n}", n) for n in range(40)
    ]


def test_params_that_a_handler_changes_are_unchanged_for_the_next_item(
    tmp_path: Path,
) -> None:
    def handle(_item: Item, context: Context) -> Item:
        context.params["p"] *= 10
        return {"p": context.params["p"]}

    world = World(tmp_path, handle)
    world.plan(numbered(3))
    assert world.worker().run() == WorkerExit.OK
    assert [row["p"] for row in world.lines("rows")] == [10, 10, 10]


# --- batches ----------------------------------------------------------------


def test_a_half_of_a_batch_gets_its_items_as_planned(tmp_path: Path) -> None:
    @batch(size=8)
    def handle(items: list[Item], _context: Context) -> list[Item]:
        for item in items:
            item["n"] *= 10
        if any(item["n"] == 50 for item in items):
            raise ItemError("bad_input", "five is bad")
        return items

    world = World(tmp_path, handle)
    world.plan(numbered(8))
    assert world.worker().run() == WorkerExit.OK
    assert [row["n"] for row in world.lines("rows")] == [0, 10, 20, 30, 40, 60, 70]
    (error,) = world.lines("errors")
    assert (error["_key"], error["item"]) == ("k5", {"n": 5})


def drain_the_list(items: list[Item]) -> list[Item]:
    found = []
    while items:
        found.append({"n": items.pop(0)["n"]})
    return found


def replace_each(items: list[Item]) -> list[Item]:
    for place, item in enumerate(items):
        items[place] = {"n": item["n"]}
    return items


def clear_the_list(items: list[Item]) -> list[Item]:
    found = [dict(item) for item in items]
    items.clear()
    return found


@pytest.mark.parametrize("use_up", [drain_the_list, replace_each, clear_the_list])
def test_a_batch_handler_may_use_up_its_list(
    use_up: Callable[[list[Item]], list[Item]], tmp_path: Path
) -> None:
    @batch(size=5)
    def handle(items: list[Item], _context: Context) -> list[Item]:
        return use_up(items)

    world = World(tmp_path, handle)
    world.plan(numbered(10))
    assert world.worker().run() == WorkerExit.OK
    assert [(row["_key"], row["n"]) for row in world.lines("rows")] == [
        (f"k{n}", n) for n in range(10)
    ]


def test_results_of_a_batch_that_was_sorted_are_never_paired_with_other_items(
    tmp_path: Path,
) -> None:
    @batch(size=5)
    def handle(items: list[Item], _context: Context) -> list[Item]:
        items.sort(key=lambda item: -item["n"])
        return [{"n": item["n"]} for item in items]

    world = World(tmp_path, handle)
    world.plan(numbered(5))
    assert world.worker().run() == WorkerExit.OK
    # Single items have but one order.
    assert [(row["_key"], row["n"]) for row in world.lines("rows")] == [
        (f"k{n}", n) for n in range(5)
    ]


def test_an_exception_in_place_of_a_result_fails_only_that_item(tmp_path: Path) -> None:
    @batch(size=4)
    def handle(items: list[Item], _context: Context) -> list[Any]:
        return [asyncio.CancelledError() if item["n"] == 1 else {} for item in items]

    world = World(tmp_path, handle)
    world.plan(numbered(4))
    assert world.worker().run() == WorkerExit.OK
    assert [(line["_key"], line["class"]) for line in world.lines("errors")] == [
        ("k1", "handler_bug")
    ]


def test_a_stop_in_place_of_a_result_fails_no_item(tmp_path: Path) -> None:
    stops = [True]

    @batch(size=4)
    def handle(items: list[Item], _context: Context) -> list[Any]:
        return [Stopped() if stops and item["n"] == 1 else {} for item in items]

    world = World(tmp_path, handle)
    world.plan(numbered(4))
    worker = world.worker()
    # Its task is given back, and so found again: by then nothing stops.
    give_back = world.logger.info

    def log_info(event: str, **fields: Any) -> None:
        if event == "lease released":
            stops.clear()
        give_back(event, **fields)

    world.logger.info = log_info  # type: ignore[method-assign]
    assert worker.run() == WorkerExit.OK
    assert world.lines("errors") == []
    assert len(world.lines("rows")) == 4


# --- what a handler raises --------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Closed(Exception):
    @property
    def response(self) -> object:
        raise RuntimeError("the connection was closed")


class Half(ItemError):
    def __init__(self) -> None:
        pass


def renamed() -> ItemError:
    error = ItemError("network", "down")
    error.error_class = "weird"  # type: ignore[assignment]
    return error


def with_headers(headers: object) -> Exception:
    error = Exception("answered")
    error.headers = headers  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error",
    [
        Unprintable(),
        Closed("x"),
        Half(),
        renamed(),
        with_headers([("Retry-After", "1")]),
        with_headers({"Retry-After": "²"}),
        OSError([1], "x"),
        RateLimited("soon"),  # type: ignore[arg-type]
        RateLimited(float("nan")),
        ValueError("cut in the middle: \ud83d"),
        ItemError("bad_input", "\udcff"),
        SystemExit("\udcff"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_of_a_handler_is_recorded(
    way: str, error: BaseException, tmp_path: Path
) -> None:
    def handle(item: Item) -> Item:
        if item["n"] == 1:
            raise error
        return item

    world = world_of(way, handle, tmp_path, tries=2)
    world.plan(numbered(4))
    assert world.worker().run() == WorkerExit.OK
    (recorded,) = world.lines("errors")
    assert recorded["_key"] == "k1"
    assert recorded["message"]
    json.dumps(recorded, ensure_ascii=False).encode()  # no lone surrogate is left in it
    assert len(world.lines("rows")) == 3


def test_a_fatal_error_whose_text_no_encoding_holds_stops_the_job(tmp_path: Path) -> None:
    def handle(_item: Item, _context: Context) -> Item:
        raise FatalError("the key \udcff is wrong")

    world = World(tmp_path, handle)
    world.plan(numbered(1))
    world.worker().run()
    assert r"the key \udcff is wrong" in world.jobs.get().stop


@pytest.mark.parametrize("way", WAYS)
def test_an_error_is_classified_without_what_an_earlier_try_raised(
    tmp_path: Path, way: str
) -> None:
    calls = Counter[int]()

    def handle(item: Item) -> Item:
        calls[item["n"]] += 1
        if item["n"] != 0:
            return {}
        if calls[0] == 1:
            raise ItemError("network", "down")
        raise ValueError("a bug")

    # A batch is halved when it has no tries left.
    world = world_of(way, handle, tmp_path, tries=1 if way == "batch" else 3)
    world.plan(numbered(2))
    assert world.worker().run() == WorkerExit.OK
    assert [(e["_key"], e["class"]) for e in world.lines("errors")] == [("k0", "handler_bug")]
