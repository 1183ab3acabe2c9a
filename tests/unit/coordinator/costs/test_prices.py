"""Requests become dollars by the list's prices, and a job's shape becomes requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.costs.prices import (
    PRICES,
    bill_of,
    merging_bill,
    planning_bill,
    reservations_of,
    working_bill,
)
from slurm_worker.backends.request_counter import RequestKind
from tests.unit.coordinator.fakes import make_config, services

MILLION = 1_000_000
#: The kinds of the verbs of `ports.Rows` and `ports.ObjectStore`; other row verbs are writes.
KINDS = {
    "get": "dynamo_get",
    "query": "dynamo_query",
    "verify": "s3_get",
    "list": "s3_list",
    "put": "s3_put",
    "upload": "s3_put",
    "put_new": "s3_put",
}


class Counting:
    """An object store that counts the calls of each verb."""

    def __init__(self, objects: Any) -> None:
        self.calls: Counter[str] = Counter()
        self._objects = objects

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        self.calls[verb] += 1
        call: Callable[..., Any] = getattr(self._objects, verb)
        return call


def test_every_kind_has_a_price() -> None:
    assert {*PRICES} == {*RequestKind}


def test_a_million_requests_of_each_kind_cost_the_list_price() -> None:
    bill = bill_of({kind.value: MILLION for kind in RequestKind})
    assert bill.by_kind == {
        "dynamo_write": 0.625,
        "dynamo_get": 0.125,
        "dynamo_query": 0.375,
        "s3_put": 5.0,
        "s3_list": 5.0,
        "s3_get": 0.4,
        "s3_delete": 0.0,
    }
    assert bill.dollars == pytest.approx(11.525)


def test_an_unknown_kind_of_request_costs_nothing() -> None:
    assert bill_of({"moon_rocket": 5}).dollars == 0


def test_bills_add_up() -> None:
    both = bill_of({"s3_put": 1, "s3_get": 2}) + bill_of({"s3_put": 3})
    assert both.requests == {"s3_put": 4, "s3_get": 2}


def test_planning_writes_a_row_for_each_task_and_an_object_for_each_segment() -> None:
    small, large = planning_bill(10, 1_000), planning_bill(10_010, 5_001_000)
    writes = large.requests["dynamo_write"] - small.requests["dynamo_write"]
    assert writes == 10_000 + 5, "and a cursor each 2,000"
    assert large.requests["s3_put"] - small.requests["s3_put"] == 100


def test_the_first_submit_of_a_job_makes_exactly_the_estimated_requests(tmp_path: Path) -> None:
    edges = services()
    objects = Counting(edges.objects)
    api.submit(
        replace(edges, objects=objects),  # type: ignore[arg-type]  # it passes all calls on
        make_config(tmp_path, 50),
        log=lambda _: None,
    )
    made: Counter[str] = Counter()
    for verb, count in edges.rows.requests.items():  # type: ignore[attr-defined]  # in memory
        made["dynamo_write" if verb == "put_new" else KINDS.get(verb, "dynamo_write")] += count
    for verb, count in objects.calls.items():
        made[KINDS[verb]] += count
    assert made == planning_bill(10, 50).requests
    assert sum(made[kind] for kind in made if kind.startswith("dynamo")) == 23, "10 are task rows"


def test_each_heartbeat_and_each_slice_of_a_limit_is_a_write() -> None:
    plain = working_bill(100, 4)
    beating = working_bill(100, 4, busy_s=3600, heartbeat_s=30, reservations=50)
    assert beating.requests["dynamo_write"] - plain.requests["dynamo_write"] == 120 + 50


def test_five_million_items_in_tasks_of_500_cost_cents() -> None:
    tasks, items = 10_000, 5_000_000
    bill = planning_bill(tasks, items) + working_bill(tasks, 100) + merging_bill(tasks)
    assert 0.05 < bill.dollars < 0.25


@pytest.mark.parametrize(
    ("rate", "workers", "writes"), [(10, 1, 100), (10, 50, 1000), (1e6, 1, 10)]
)
def test_a_reservation_is_a_second_of_a_workers_share(
    rate: float, workers: int, writes: int
) -> None:
    assert reservations_of(rate, 1000, workers) == writes
