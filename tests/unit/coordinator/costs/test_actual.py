"""What a job has cost is what its workers told, and what is estimated is said to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.costs.actual import (
    cost_so_far,
    profile_of,
    read_cost,
    work_cost,
)
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from airflow_slurm_provider.slurm.accounting import JobRecord
from slurm_worker.backends.request_counter import RequestKind
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_totals import PER_DOUBLING, JobTotals, TimeBucket
from slurm_worker.protocol.tasks import Claimed
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of
from tests.unit.slurm.records import completed

ITEMS, BUNDLE = 50, 5
USED = completed("100", elapsed_s=100, cpus=2, cpu_s=150.0, mem=1 << 30, max_rss=800 << 20)


class Accounting(FakeSlurm):
    """A cluster whose accounting is away."""

    def records(self, arrays: Any) -> list[JobRecord]:
        raise ServiceError("cluster: sacct failed")


def run(edges: Services, config: Config, scratch: Path, writes: int = 3) -> None:
    """Submit the job and run it; so many writes are counted for each item."""
    api.submit(edges, config, log=lambda _: None)
    world = world_of(edges, config, scratch, None)

    def handle(item: dict[str, Any], _context: Any) -> dict[str, Any]:
        for _ in range(writes):
            world.requests.count(RequestKind.DYNAMO_WRITE)
        return item

    world.handle = handle
    world.worker().run()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path / "job", ITEMS, bundle=BUNDLE)


def test_requests_in_markers_are_counted_and_the_rest_is_estimated(
    tmp_path: Path, config: Config
) -> None:
    edges = services()
    run(edges, config, tmp_path / "node")
    snapshot = read_snapshot(edges, config.spec.id)
    spent = cost_so_far(snapshot)
    assert spent.counted.requests == {"dynamo_write": 3 * ITEMS}
    assert spent.estimated.requests["dynamo_write"] >= ITEMS // BUNDLE, "a row for each task"
    assert spent.dollars == spent.counted.dollars + spent.estimated.dollars > 0


def test_a_job_with_more_requests_than_usual_costs_more_than_expected(
    tmp_path: Path,
) -> None:
    found = {}
    for name, writes in (("thrifty", 0), ("wasteful", 2_000)):
        edges, config = services(), make_config(tmp_path / name, ITEMS, bundle=BUNDLE)
        run(edges, config, tmp_path / f"{name}-node", writes)
        found[name] = read_cost(edges, config.spec.id)
    assert found["thrifty"].spent.dollars < found["thrifty"].expected
    assert found["wasteful"].spent.dollars > 2 * found["wasteful"].expected
    assert found["thrifty"].expected == pytest.approx(found["wasteful"].expected)


def test_work_cost_grows_with_the_items_and_is_never_too_much_below_cents(
    tmp_path: Path, config: Config
) -> None:
    edges = services()
    api.submit(edges, config, log=lambda _: None)
    spent, expected = work_cost(read_snapshot(edges, config.spec.id), config.spec)
    assert (spent, expected) == (0.0, 0.05), "planning is not work"
    run(edges, config, tmp_path / "node", writes=2_000)
    spent, expected = work_cost(read_snapshot(edges, config.spec.id), config.spec)
    assert spent == pytest.approx(ITEMS * 2_000 * 0.625e-6)
    assert expected == 0.05


def test_cpu_and_memory_come_from_the_accounting(tmp_path: Path, config: Config) -> None:
    edges = services(FakeSlurm(ended=[USED]))
    run(edges, config, tmp_path / "node")
    document = read_cost(edges, config.spec.id).to_dict()
    assert document["cluster"] == {
        "starts": 1,
        "running": 0,
        "cpu_hours_allocated": pytest.approx(200 / 3600, abs=1e-6),
        "cpu_hours_used": pytest.approx(150 / 3600, abs=1e-6),
        "cpu_efficiency": 0.75,
        "memory_bytes_given": 1 << 30,
        "memory_bytes_used": 800 << 20,
        "memory_efficiency": 0.7812,
    }
    assert document["problem"] == ""


def test_without_accounting_the_rest_of_the_report_is_there(tmp_path: Path, config: Config) -> None:
    edges = services(Accounting())
    run(edges, config, tmp_path / "node")
    found = read_cost(edges, config.spec.id)
    assert found.spent.dollars > 0
    assert (found.efficiency, found.problem) == (None, "cluster: sacct failed")


def test_pauses_between_rounds_do_not_count_as_work(config: Config) -> None:
    history = JobTotals()
    ten = [(round_no * 36_000 + tick) for round_no in range(3) for tick in range(10)]
    for second in ten:
        history.timeline[int(second / history.width_s)] = TimeBucket(tasks=1, ok=BUNDLE)
    assert profile_of(history, config.spec, None).span_s <= 3 * (10 + 2 * history.width_s)


def test_a_task_longer_than_a_bucket_is_not_a_pause(config: Config) -> None:
    history = JobTotals()
    for tick in range(0, 10_000, 1000):
        history.timeline[int(tick / history.width_s)] = TimeBucket(tasks=1, ok=BUNDLE)
        history.durations[round(PER_DOUBLING * math.log2(1_000_000))] += 1
    assert profile_of(history, config.spec, None).span_s >= 9_000


def test_requests_for_tasks_that_are_only_given_back_are_counted(
    tmp_path: Path, config: Config
) -> None:
    edges = services()
    api.submit(edges, config, log=lambda _: None)
    table = edges.tasks(edges.jobs(config.spec.id).get())
    claimed = table.claim(table.page(0, "", 1)[0], "w")
    assert isinstance(claimed, Claimed)
    table.release(claimed.lease, requests={"dynamo_write": 1000})
    assert read_cost(edges, config.spec.id).spent.counted.requests == {"dynamo_write": 1000}
    assert work_cost(read_snapshot(edges, config.spec.id), config.spec)[0] > 0
