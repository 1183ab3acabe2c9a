"""Slurm's accounting says why workers died, and gives that class to the tasks that they held."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure, attribute_failures
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.keys import JobId, TaskId, TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Claimed, TaskRow
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services


class Holders:
    """A job, and workers that lose the lease of its first task one after the other."""

    def __init__(self, folder: Path) -> None:
        self.slurm = FakeSlurm()
        self.edges: Services = services(self.slurm)
        config = make_config(folder / "job", items=5, bundle=1)
        api.submit(self.edges, config, log=lambda _: None)
        self.job_id: JobId = config.spec.id

    def row(self) -> TaskRow:
        row = self._table(1).find(self._first)
        assert row is not None
        return row

    def lose(self, *workers: str) -> None:
        """Let these workers hold the task in turn; after the last one it is quarantined."""
        table = self._table(max_lost=len(workers))
        assert isinstance(table.claim(self.row(), workers[0]), Claimed)
        for worker in (*workers[1:], "100_0-r0-last"):
            self.edges.clock.sleep(1000)
            table.steal(self.row(), worker)
        assert self.row().state is TaskState.QUARANTINED

    def put_back(self, round_no: int) -> None:
        assert self._table(1).reopen(self.row(), round_no)

    @property
    def _first(self) -> TaskId:
        return TaskId("000-00000000")

    def _table(self, max_lost: int) -> TaskTable:
        shards = self.edges.jobs(self.job_id).get().shards
        lease = LeaseConfig(max_lost=max_lost)
        return TaskTable(self.edges.rows, self.job_id, shards, lease, self.edges.clock)


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    return Holders(tmp_path)


def died(array: str, element: int, state: ElementState) -> JobRecord:
    return JobRecord(array, element, 0, state, "0:0", "n7", 65, 0)


def test_the_last_worker_that_died_gives_the_task_its_class(holders: Holders) -> None:
    holders.lose("100_5-r0-a", "100_2-r0-b")
    holders.slurm.ended = [
        died("100", 2, ElementState.OUT_OF_MEMORY),
        died("100", 5, ElementState.NODE_FAIL),
    ]
    assert attribute_failures(holders.edges, holders.job_id) == 1
    assert holders.row().error_class == "out_of_memory"


@pytest.mark.parametrize(("elapsed_s", "ended"), [(65, "0:0, after 65 s)"), (0, "0:0)")])
def test_a_run_time_that_is_not_known_is_left_out(elapsed_s: int, ended: str) -> None:
    failure = WorkerFailure(
        "9_1", 0, ErrorClass.CANCELLED, "CANCELLED", "0:0", "n7", elapsed_s, 0, ()
    )
    assert failure.line() == f"worker 9_1 (start 1) on n7: cancelled (CANCELLED, exit {ended}"


def test_a_death_before_the_task_was_put_back_does_not_explain_its_second_quarantine(
    holders: Holders,
) -> None:
    holders.lose("100_2-r0-a")
    holders.slurm.ended = [died("100", 2, ElementState.OUT_OF_MEMORY)]
    assert attribute_failures(holders.edges, holders.job_id) == 1
    holders.put_back(1)
    holders.lose("100_3-r0-b")
    assert attribute_failures(holders.edges, holders.job_id) == 0
    assert holders.row().error_class == "worker_crash"
