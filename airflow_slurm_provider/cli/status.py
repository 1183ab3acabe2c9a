"""`slurmctl status` and `slurmctl wait`: how far a job is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.formatting import (
    dataset_text,
    loss_fields,
    manifest_address,
    progress_fields,
    read_manifest,
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
    """Print the state of JOB: tasks, items, failures by class, workers, dataset.

    Where the cluster can't be asked, the rest is printed, and the error follows.
    """
    name = check_job_id(job, "JOB")
    # Not through `job`, whose planning and retrying would be imported as well.
    from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status

    with common.services() as services:
        away: ServiceError | None = None
        try:
            poll = read_status(services, name)
            progress, problem = poll.progress, poll.problem
            workers, array = workers_text(poll), workers_document(poll.array)
        except ServiceError as error:
            progress, problem, away = read_progress(services, name), "", error
            workers, array = "unknown: the cluster can't be asked", None
        lost = _losses(services, name)
        manifest = read_manifest(services, name)
        where = manifest_address(services, name)
    document = {
        **progress.to_dict(),
        "problem": problem,
        "workers": array,
        "lost_workers": None if lost is None else [each.to_dict() for each in lost],
        "dataset": None if manifest is None else {"manifest": where, **manifest},
    }
    fields = [*progress_fields(progress, problem), ("workers", workers), *loss_fields(lost)]
    emit(common.as_json, document, [*fields, ("dataset", dataset_text(manifest, where))])
    if away is not None:
        raise away
    return 0


def _losses(services: Services, job: JobId) -> list[WorkerFailure] | None:
    """Workers that died; None where Slurm can't be asked, which alone is no failure."""
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

    Failed items don't fail the job: they are counted by class, and `slurmctl retry` runs them
    again. Ends with 1 where tasks gave up, or no worker is left while tasks remain.
    """
    name = check_job_id(job, "JOB")
    with common.services() as services:
        poll = wait_until_finished(services, name, interval=interval, timeout=timeout)
    return report_wait(common, poll, max_failed_items)
