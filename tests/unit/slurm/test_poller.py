"""However many tasks wait, the cluster is queried once per interval."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.poller import ArrayPoller
from slurm_worker.errors import ServiceError
from tests.unit.slurm.fake_slurm import Time


class Cluster:
    def __init__(self) -> None:
        self.queries: list[set[str]] = []
        self.down = False
        self._lock = threading.Lock()

    def arrays(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        with self._lock:
            self.queries.append({key.slurm_job_id for key in arrays})
        if self.down:
            raise ServiceError("cluster: squeue failed")
        return {key: ArrayState(key.slurm_job_id, alive=1) for key in arrays}


def key(slurm_job_id: str) -> ArrayKey:
    return ArrayKey(slurm_job_id, f"job.{slurm_job_id}")


def poller_of(cluster: Cluster, time: Time) -> ArrayPoller:
    return ArrayPoller(cluster.arrays, time.clock, random.Random(1))


def test_three_hundred_waits_cost_as_many_queries_as_one() -> None:
    cluster, time = Cluster(), Time()
    poller = poller_of(cluster, time)
    for _ in range(6):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: poller.array(key(str(n % 7)), 10.0), range(300)))
        time.sleep(11.0)
    assert len(cluster.queries) == 6
    assert cluster.queries[-1] == set("0123456")


def test_an_array_is_unknown_until_a_query_has_included_it() -> None:
    cluster, time = Cluster(), Time()
    poller = poller_of(cluster, time)
    assert poller.array(key("1"), 10.0).alive == 1
    assert poller.array(key("2"), 10.0).unknown
    time.sleep(11.0)
    assert poller.array(key("2"), 10.0).alive == 1
    assert poller.array(key("1"), 10.0).alive == 1
    assert len(cluster.queries) == 2


def test_the_shortest_interval_decides_how_often_slurm_is_queried() -> None:
    cluster, time = Cluster(), Time()
    poller = poller_of(cluster, time)
    for _ in range(10):
        poller.array(key("1"), 100.0)
        poller.array(key("2"), 1.0)
        time.sleep(1.2)
    assert len(cluster.queries) == 10


def test_a_failed_query_is_reported_to_all_waits_and_not_repeated_at_once() -> None:
    cluster, time = Cluster(), Time()
    poller = poller_of(cluster, time)
    cluster.down = True
    for _ in range(5):
        with pytest.raises(ServiceError, match="squeue failed"):
            poller.array(key("1"), 10.0)
    assert len(cluster.queries) == 1
    cluster.down = False
    time.sleep(11.0)
    assert poller.array(key("1"), 10.0).alive == 1


def test_an_array_that_was_not_requested_for_an_hour_is_no_longer_queried() -> None:
    cluster, time = Cluster(), Time()
    poller = poller_of(cluster, time)
    poller.array(key("1"), 10.0)
    time.sleep(3601.0)
    poller.array(key("2"), 10.0)
    assert cluster.queries == [{"1"}, {"2"}]
