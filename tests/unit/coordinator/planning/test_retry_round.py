"""A retry that is cut off at any request, before it or after it, is finished by the next call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.errors import ErrorClass, ItemError, ServiceError
from slurm_worker.node import task_finder
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.shard_progress import ShardCursors
from slurm_worker.protocol.tasks import Claimed
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of

VERBS = {"get", "put", "put_new", "update", "query", "delete", "list", "submit", "put_file"}


class Cut(BaseException):
    """The process ends here."""


class Countdown:
    """Ends the process at the n-th request, before or after it is applied."""

    def __init__(self, left: int, *, after: bool, end: type[BaseException] = Cut) -> None:
        self.left = left
        self.after = after
        self.end = end

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.end
        result = function(*args, **kwargs)
        if self.left == 0:
            raise self.end
        return result


class Edge:
    """An edge whose requests are counted."""

    def __init__(self, inner: Any, countdown: Countdown) -> None:
        self._inner = inner
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in VERBS:
            return found
        return lambda *args, **kwargs: self._countdown.call(found, *args, **kwargs)


def cut_at(edges: Services, left: int, *, after: bool, end: type[BaseException] = Cut) -> Services:
    """These services, that end the process at the n-th request."""
    countdown = Countdown(left, after=after, end=end)
    return replace(
        edges,
        rows=Edge(edges.rows, countdown),
        objects=Edge(edges.objects, countdown),
        slurm=Edge(edges.slurm, countdown),
    )


def kill_first(edges: Services, config: Any, folder: Path) -> None:
    """What a node does on which the first task runs out of memory, as often as it may."""
    world = world_of(edges, config, folder, lambda item, _: item)
    first = world.task_rows()[0].task
    for _ in range(LeaseConfig().max_tries):
        world.clock.advance(100)
        (row,) = [row for row in world.task_rows() if row.task == first]
        claimed = world.table.claim(row, "node")
        if isinstance(claimed, Claimed):
            world.table.fail(claimed.lease, ErrorClass.OUT_OF_MEMORY, "killed", 0)


def failed_job(folder: Path) -> tuple[Services, FakeSlurm, Any]:
    """A job with three failed items and one task that was given up."""
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(folder, items=20, slurm={"mem": "1G"})
    api.submit(edges, config, log=lambda _: None)

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] in (7, 8, 12):
            raise ItemError("network" if item["n"] < 10 else "bad_input", "as asked")
        return item

    world = world_of(edges, config, folder / "w", handle)
    kill_first(edges, config, folder / "killed")
    world.worker().run()
    return edges, slurm, config


def check(edges: Services, slurm: FakeSlurm, config: Any, folder: Path) -> None:
    assert api.retry(edges, config.spec.id, log=lambda _: None).round == 1
    jobs = edges.jobs(config.spec.id)
    _, round_row = jobs.rounds()
    assert (round_row.retried, round_row.tasks_back) == ({"network": 2}, {"out_of_memory": 1})
    assert round_row.slurm == {"mem": "2048M"}
    assert len(slurm.arrays) == 2, "one array for each round"
    ran: list[int] = []

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        ran.append(item["n"])
        return item

    world = world_of(edges, config, folder / "again", handle)
    world.worker().run()
    assert sorted(ran) == [0, 1, 2, 3, 4, 7, 8], "only what had failed"
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}
    assert read_progress(edges, config.spec.id).failed == {"bad_input": 1}


@pytest.mark.parametrize("after", [False, True])
def test_a_retry_killed_at_any_request_is_finished_by_the_next(tmp_path: Path, after: bool) -> None:
    points = 0
    while True:
        points += 1
        folder = tmp_path / str(points)
        edges, slurm, config = failed_job(folder)
        try:
            api.retry(
                cut_at(edges, points, after=after),
                config.spec.id,
                ["network", "out_of_memory"],
                log=lambda _: None,
            )
        except Cut:
            check(edges, slurm, config, folder)
        else:
            break
    assert points > 30


def test_retries_at_the_same_time_make_one_round(tmp_path: Path) -> None:
    edges, slurm, config = failed_job(tmp_path)
    start = threading.Barrier(4)
    found: list[int | None] = []

    def retry() -> None:
        start.wait()
        found.append(api.retry(edges, config.spec.id, log=lambda _: None).round)

    threads = [threading.Thread(target=retry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1, 1]
    check(edges, slurm, config, tmp_path)


@pytest.mark.parametrize("after", [False, True])
def test_a_retry_that_is_repeated_after_its_workers_ran_leaves_no_task_unseen(
    tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers of this small job share how far its shards are finished, as those of a large do.
    monkeypatch.setattr(task_finder, "ROWS_PER_CURSOR", 1)
    classes = ["network", "out_of_memory"]
    points, reopened = 0, False
    while True:
        points += 1
        folder = tmp_path / str(points)
        edges, slurm, config = failed_job(folder)
        jobs = edges.jobs(config.spec.id)
        try:
            api.retry(
                cut_at(edges, points, after=after), config.spec.id, classes, log=lambda _: None
            )
        except Cut:
            if jobs.get().rounds < 2:
                continue  # nobody works on the round yet
            reopened = True
            kill_first(edges, config, folder / "killed again")
            work(edges, config, folder / "first")
            slurm.state = FakeArray(alive=0)
            api.retry(edges, config.spec.id, classes, log=lambda _: None)
            work(edges, config, folder / "second")
            assert read_progress(edges, config.spec.id).complete, f"cut at {points}"
        else:
            break
    assert reopened, "no cut was behind the opening of the round"


def work(edges: Services, config: Any, folder: Path) -> None:
    """Workers that come, do what they find, and leave."""
    world = world_of(edges, config, folder, lambda item, _: item)
    world.worker().run()
    world.worker().run()


def test_new_workers_read_every_row_if_others_have_left_tasks(tmp_path: Path) -> None:
    edges, slurm, config = failed_job(tmp_path)
    jobs = edges.jobs(config.spec.id)
    (row,) = [row for row in edges.tasks(jobs.get()).all_rows(0) if row.error_class]
    generation = jobs.get().generation
    cursors = ShardCursors(edges.rows, config.spec.id, jobs.get().shards)
    cursors.advance(0, generation, "999#")
    assert edges.tasks(jobs.get()).reopen(row, 1), "by a call that dies behind its late write"
    slurm.state = FakeArray(alive=0)
    api.submit(edges, config, log=lambda _: None)
    work(edges, config, tmp_path / "again")
    assert read_progress(edges, config.spec.id).complete


class Late:
    """A store that does not list the newest objects below a folder yet."""

    def __init__(self, inner: Any, folder: str) -> None:
        self._inner = inner
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list(self, prefix: str) -> Iterator[str]:
        hidden = prefix.startswith(self._folder)
        return iter([]) if hidden else self._inner.list(prefix)


def failing(edges: Services, folder: Path, failures: int) -> Any:
    """A job whose first items fail; its workers have ended."""
    config = make_config(folder)
    api.submit(edges, config, log=lambda _line: None)
    work_off(edges, config, folder / "w0", failures)
    return config


def work_off(edges: Services, config: Any, folder: Path, failures: int) -> None:
    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] < failures:
            raise ItemError("not_found", "no")
        return item

    world_of(edges, config, folder, handle).worker().run()


def test_a_retry_waits_for_a_store_that_does_not_list_failures_yet(tmp_path: Path) -> None:
    """Otherwise it would leave them out and report success."""
    edges = services(FakeSlurm())
    config = failing(edges, tmp_path, 3)
    job = config.spec.id
    late: Any = Late(edges.objects, edges.paths(job).done_folder)
    with pytest.raises(ServiceError, match="not list the markers of 3 failed items; try again"):
        api.retry(replace(edges, objects=late), job, ["not_found"], log=lambda _line: None)
    found = api.retry(edges, job, ["not_found"], log=lambda _line: None)
    assert found.items == {"not_found": 3}


def test_a_retry_waits_for_a_store_that_does_not_list_what_was_retried(tmp_path: Path) -> None:
    """Otherwise it would run items again that have succeeded since."""
    edges = services(FakeSlurm())
    config = failing(edges, tmp_path, 3)
    job = config.spec.id
    api.retry(edges, job, ["not_found"], log=lambda _line: None)
    work_off(edges, config, tmp_path / "w1", 1)
    late: Any = Late(edges.objects, edges.paths(job).segments(1))
    with pytest.raises(ServiceError, match="lists 0 of the 3 items of round 1; try again"):
        api.retry(replace(edges, objects=late), job, ["not_found"], log=lambda _line: None)
    again = api.retry(edges, job, ["not_found"], log=lambda _line: None)
    assert again.items == {"not_found": 1}
