"""`slurmctl status` and `slurmctl wait`: the progress of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.formatting import (
    dataset_text,
    manifest_address,
    progress_fields,
    read_manifest,
    worker_failure_fields,
    workers_document,
    workers_text,
)
from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import emit
from airflow_slurm_provider.cli.wait_loop import report_wait, wait_limits, wait_until_finished
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure


@click.command(epilog="\b\nExample:\n  slurmctl status flights-2013")
@job_argument
@common_options
def status(common: Common, job: str) -> int:
    """Show the progress of JOB: tasks, items, failures by class, workers, dataset.

    If the cluster can't be reached, everything else is printed, then the error.
    """
    name = check_job_id(job, "JOB")
    # Not through `api`, which would import planning and retrying as well.
    from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status

    with common.services() as services:
        away: ServiceError | None = None
        try:
            found = read_status(services, name)
            progress, problem = found.progress, found.problem
            workers, array = workers_text(found), workers_document(found.array)
        except ServiceError as error:
            progress, problem, away = read_progress(services, name), "", error
            workers, array = "unknown: the cluster can't be reached", None
        lost = _worker_failures(services, name)
        manifest = read_manifest(services, name)
        where = manifest_address(services, name)
    document = {
        **progress.to_dict(),
        "problem": problem,
        "workers": array,
        "lost_workers": None if lost is None else [failure.to_dict() for failure in lost],
        "dataset": None if manifest is None else {"manifest": where, **manifest},
    }
    fields = [
        *progress_fields(progress, problem),
        ("workers", workers),
        *worker_failure_fields(lost),
    ]
    emit(common.as_json, document, [*fields, ("dataset", dataset_text(manifest, where))])
    if away is not None:
        raise away
    return 0


def _worker_failures(services: Services, job: JobId) -> list[WorkerFailure] | None:
    """Workers that died; None where Slurm can't be reached."""
    from airflow_slurm_provider.coordinator.status.dead_workers import find_worker_failures

    try:
        return find_worker_failures(services, job)
    except ServiceError:
        return None


@click.command(epilog="\b\nExample:\n  slurmctl wait flights-2013 --timeout 3600")
@job_argument
@wait_limits
@common_options
def wait(
    common: Common, job: str, interval: float, timeout: float | None, max_failed_items: int | None
) -> int:
    """Wait until every task of JOB has ended.

    Failed items don't fail the job: they are counted by class, and slurmctl retry runs them
    again. Exits with 1 if tasks gave up, or if no worker is left while tasks remain.
    """
    name = check_job_id(job, "JOB")
    with common.services() as services:
        found = wait_until_finished(services, name, interval=interval, timeout=timeout)
    return report_wait(common, found, max_failed_items)
