"""What looks at a large job read: of tasks that are done, nothing that was read before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import (
    attribute_failures,
    find_worker_failures,
)
from airflow_slurm_provider.coordinator.status.failures import explain
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol import keys
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.testing import MemoryRows
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of

TASKS = 2_000


class ReadRows(MemoryRows):
    """A table that counts the task rows it hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        found = super().query(
            pk, after=after, limit=limit, consistent=consistent, backwards=backwards
        )
        for row in found:
            self.read += "#TASK#" in pk
            yield row

    def since(self) -> int:
        read, self.read = self.read, 0
        return read


@pytest.fixture
def ended(tmp_path: Path) -> tuple[Services, keys.JobId, ReadRows, FakeSlurm]:
    """A job that is done, except two tasks that were given up; its rows were read once."""
    slurm = FakeSlurm()
    rows = ReadRows()
    edges = replace(services(slurm), rows=rows)
    config = make_config(tmp_path, items=TASKS, bundle=1, workers=1)
    job_id = config.spec.id
    api.submit(edges, config, log=lambda _: None)
    world = world_of(edges, config, tmp_path / "w", lambda item, _context: item)
    for row in world.task_rows()[:2]:
        claimed = world.table.claim(row, "100_0-r0-aaaa")
        assert isinstance(claimed, Claimed)
        world.table.fail(claimed.lease, ErrorClass.NODE_FAILURE, "disk full", 0.0, final=True)
    world.worker().run()
    assert read_progress(edges, job_id).complete
    rows.since()
    return edges, job_id, rows, slurm


Ended = tuple[Services, keys.JobId, ReadRows, FakeSlurm]
FEW = 60


def test_explaining_failures_reads_only_the_rows_of_tasks_that_did_not_end_well(
    ended: Ended,
) -> None:
    edges, job_id, rows, _ = ended
    (group,) = explain(edges, job_id)
    assert (group.of, group.count, [name for name, _ in group.examples]) == (
        "task",
        2,
        ["000-00000000", "000-00000001"],
    )
    assert rows.since() < FEW


def test_planning_a_retry_reads_only_the_rows_of_tasks_that_did_not_end_well(
    ended: Ended,
) -> None:
    edges, job_id, rows, slurm = ended
    slurm.ended = [JobRecord("100", 0, 0, ElementState.NODE_FAIL, "0:0", "n7", 65, 0)]
    plan = api.plan_retry(edges, job_id, ["node_failure"])
    assert plan.tasks == {"node_failure": 2}
    assert rows.since() < FEW


def test_planning_a_retry_queries_the_accounting_once(ended: Ended) -> None:
    edges, job_id, _, slurm = ended
    slurm.ended = [
        JobRecord("100", 0, 0, ElementState.NODE_FAIL, "0:0", "n7", 65, 0),
        JobRecord("100", 1, 0, ElementState.COMPLETED, "0:0", "n8", 65, 0),
    ]
    plan = api.plan_retry(edges, job_id, ["node_failure"])
    assert plan.resources.slurm == {"exclude": "n7"}
    assert slurm.accounted == [["100"]]


def test_finding_dead_workers_reads_no_done_row_if_no_lease_was_lost(ended: Ended) -> None:
    edges, job_id, rows, slurm = ended
    slurm.ended = [JobRecord("100", 0, 0, ElementState.OUT_OF_MEMORY, "0:125", "n7", 65, 0)]
    assert attribute_failures(edges, job_id) == 0
    (loss,) = find_worker_failures(edges, job_id)
    assert loss.tasks == ()
    assert rows.since() < FEW
