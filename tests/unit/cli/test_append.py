"""A job takes the items that are new in its input; those it has are not run again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.errors import ItemError
from slurm_worker.protocol.keys import JobId, job_pk, round_sk
from tests.unit.cli.conftest import Cli, write_config

JOB = JobId("job-1")


class Counting:
    """Counts how often each item was tried; fails those of `broken`."""

    def __init__(self) -> None:
        self.tried: Counter[int] = Counter()
        self.broken: set[int] = set()

    def __call__(self, item: dict[str, Any], context: Any) -> dict[str, Any]:
        self.tried[item["n"]] += 1
        if item["n"] in self.broken:
            raise ItemError("network", "connection reset")
        return {"double": 2 * item["n"]}


@pytest.fixture
def handler() -> Counting:
    return Counting()


@pytest.fixture
def growing(cli: Cli, tmp_path: Path) -> Cli:
    """A job that appends, with its first 25 items done and published."""
    write_config(tmp_path, input={"path": "items.jsonl", "key": "id", "append": True})
    assert cli.submit().code == 0
    cli.work()
    assert cli("aggregate", JOB).code == 0
    return cli


def add(folder: Path, *numbers: int, **more: Any) -> None:
    with (folder / "items.jsonl").open("a") as file:
        file.writelines(json.dumps({"id": f"k{n}", "n": n, **more}) + "\n" for n in numbers)


def counts(cli: Cli) -> tuple[int, int, dict[str, int]]:
    found = read_progress(cli.services, JOB)
    return found.items, found.ok, found.failed


def test_new_items_run_and_are_published_and_known_ones_are_not_run_again(
    growing: Cli, handler: Counting, tmp_path: Path
) -> None:
    add(tmp_path, 100, 101, 102)
    ended = growing.submit()
    assert ended.code == 0, ended.err
    assert "planned 3 items as 1 task" in ended.err
    assert counts(growing) == (28, 25, {})
    growing.work()
    assert counts(growing) == (28, 28, {})
    assert growing("aggregate", JOB, "--json").json["rows"] == 28
    assert set(handler.tried.values()) == {1}


def test_without_new_items_nothing_is_planned(growing: Cli, tmp_path: Path) -> None:
    before = growing.services.jobs(JOB).rounds()
    assert growing.submit().code == 0
    path = tmp_path / "items.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert "there are no new items" in growing.submit().err
    assert growing.services.jobs(JOB).rounds() == before


def test_changed_items_are_told(growing: Cli, handler: Counting, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(path.read_text().replace('"n": 7}', '"n": 777}'))
    add(tmp_path, 100)
    assert "1 item changed since this job was planned" in growing.submit().err
    growing.work()
    assert (handler.tried[777], handler.tried[100]) == (0, 1)


def test_a_new_item_that_fails_is_retried_as_often_as_one_of_the_first_round(
    growing: Cli, handler: Counting, tmp_path: Path
) -> None:
    for number in range(100, 105):
        add(tmp_path, number)
        assert growing.submit().code == 0
        if number == 104:
            handler.broken = {104}
        growing.work()
    assert counts(growing) == (30, 29, {"network": 1})
    handler.broken = set()
    ended = growing("retry", JOB)
    assert ended.code == 0, ended.err
    growing.work()
    assert counts(growing) == (30, 30, {})
    assert growing("aggregate", JOB, "--json").json["items"] == 30
    add(tmp_path, 105)
    assert growing.submit().code == 0
    growing.work()
    assert growing("aggregate", JOB, "--json").json["rows"] == 31


def test_a_lost_row_of_such_a_round_is_repaired(growing: Cli, tmp_path: Path) -> None:
    add(tmp_path, 100, 101)
    growing.submit()
    growing.work()
    lost = growing.services.jobs(JOB).rounds()[1]
    growing.services.rows.delete(job_pk(JOB), round_sk(1))
    ended = growing("doctor", "--repair", "--job", JOB)
    assert ended.code == 0, ended.err
    found = growing.services.jobs(JOB).rounds()[1]
    assert (found.appended, found.items, found.version) == (True, 2, lost.version)
    assert growing("aggregate", JOB, "--json").json["rows"] == 27


def test_a_round_that_was_interrupted_is_finished(growing: Cli, tmp_path: Path) -> None:
    add(tmp_path, 100, 101)
    jobs = growing.services.jobs(JOB)
    jobs.create_round(1, "items.jsonl", version="of another time", appended=True)
    assert "submit the job again" in growing("retry", JOB).err
    assert growing.submit().code == 0
    growing.work()
    assert counts(growing) == (27, 27, {})


def test_new_items_wait_for_a_retry_that_is_being_planned(growing: Cli, tmp_path: Path) -> None:
    add(tmp_path, 100)
    growing.services.jobs(JOB).create_round(1, "retry", {"network": 3})
    ended = growing.submit()
    assert ended.code != 0
    assert "a retry of 'job-1' is being planned" in ended.err


def test_a_job_that_does_not_append_keeps_its_items(cli: Cli, tmp_path: Path) -> None:
    cli.submit()
    cli.work()
    add(tmp_path, 100)
    assert "set input.append: true" in cli.submit().err
    write_config(tmp_path, input={"path": "items.jsonl", "key": "id", "append": True})
    add(tmp_path, 100)
    assert cli.submit().code == 0
    cli.work()
    assert counts(cli) == (26, 26, {})
