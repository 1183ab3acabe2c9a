"""The commands of a backfill's user, as the coordinator offers them."""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.maintenance.repair.job import repair
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import read_status
from airflow_slurm_provider.coordinator.submission import control
from slurm_worker.errors import ErrorClass, ServiceError
from tests.simulator.checks.rows import Violation
from tests.simulator.world import JOB

#: Garbage is so old, while the job runs.
GC_AGE_S = 600.0


def retry(services: Services) -> Any:
    """Retry all classes."""
    classes = [error_class.value for error_class in ErrorClass]
    return api.retry(services, JOB, classes, log=quiet)


def aggregate(services: Services) -> Any:
    """Merge what is committed."""
    return api.aggregate(services, JOB, log=quiet)


def collect(services: Services) -> Any:
    """Delete garbage."""
    return gc.collect(services, JOB, older_than_s=GC_AGE_S, log=quiet)


def repair_job(services: Services) -> Any:
    """Repair a job whose rows are all there, perhaps beside its workers."""
    result = repair(services, JOB, log=quiet)
    broken = [line for line in result.unrepaired if "is done, but" in line]
    if broken:
        raise Violation(f"repair calls a task broken that is not: {broken[0]}")
    return result


def repair_whole(services: Services) -> Any:
    """Repair again where a list was behind."""
    result = repair_job(services)
    if result.unrepaired:
        raise ServiceError("; ".join(result.unrepaired))
    return result


def resume(services: Services) -> Any:
    """Reset a pause and the breaker."""
    return control.resume(services, JOB, log=quiet)


def resubmit(services: Services) -> Any:
    """New workers, where all have left."""
    status = read_status(services, JOB)
    if status.workers_gone:
        return api.resubmit(services, JOB, max_resubmits=100, log=quiet)
    return None


def add_workers(services: Services) -> Any:
    """One more worker."""
    return control.add_workers(services, JOB, 1, log=quiet)


def quiet(_line: str) -> None:
    """Print nothing."""
