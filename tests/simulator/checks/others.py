"""Jobs of others are never shown as ours, whatever numbers they have."""

from __future__ import annotations

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import (
    WorkerFailure,
    find_worker_failures,
)
from airflow_slurm_provider.coordinator.status.progress import JobStatus, read_status
from tests.simulator.checks.rows import Violation
from tests.simulator.slurm.cluster import FOREIGN_END, FOREIGN_STATE
from tests.simulator.world import JOB

_OF_OTHERS = {FOREIGN_STATE.value, FOREIGN_END.value}


def checked_status(services: Services) -> JobStatus:
    """``slurmctl status``.

    Raises:
        Violation: if it counts elements of others.
    """
    status = read_status(services, JOB)
    counts = status.array.counts() if status.array else {}
    if _OF_OTHERS & set(counts):
        raise Violation(f"the status counts elements of others: {counts}")
    return status


def checked_failures(services: Services) -> list[WorkerFailure]:
    """``slurmctl losses``.

    Raises:
        Violation: if it has deaths of others.
    """
    failures = find_worker_failures(services, JOB)
    for failure in failures:
        if failure.state in _OF_OTHERS:
            raise Violation(f"the death of another job is shown as ours: {failure.line()}")
    return failures
