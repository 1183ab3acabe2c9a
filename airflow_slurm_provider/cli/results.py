"""`slurmctl retry` and `slurmctl aggregate`: what becomes of a job's results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options, error_classes
from airflow_slurm_provider.cli.output import by_class, emit, number, say
from airflow_slurm_provider.cli.report import manifest_address, manifest_fields
from airflow_slurm_provider.cli.waiting import report_wait, wait_options, wait_until_finished
from slurm_worker.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.job import Retried
    from airflow_slurm_provider.coordinator.services import Services


@click.command(
    epilog="\b\nExample:\n  slurmctl retry --job-id planes-1 --errors=network,timeout --wait"
)
@click.option("--job-id", metavar="JOB", required=True, help="The job.")
@click.option(
    "--errors",
    metavar="CLASSES",
    help="Error classes, separated by commas; without it, the job's retry policy decides.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run again, and do nothing.")
@wait_options
@common_options
def retry(
    common: Common,
    job_id: str,
    errors: str | None,
    dry_run: bool,
    wait: bool,
    interval: float,
    timeout: float | None,
) -> int:
    """Run the failed items and tasks of a job again, as a new round, by error class.

    Safe to run again: a round that was begun is finished before another one starts.
    """
    name, classes = check_job_id(job_id, "--job-id"), error_classes(errors)
    from airflow_slurm_provider.coordinator import job

    with common.services() as services:
        if dry_run:
            retried = _preview(services, name, classes)
        else:
            retried = job.retry(services, name, classes, log=say)
        document = {**retried.to_dict(), "dry_run": dry_run}
        fields = _retried_fields(retried, dry_run)
        if dry_run or not wait or retried.round is None:
            emit(common.as_json, document, fields)
            return 0
        poll = wait_until_finished(services, name, interval=interval, timeout=timeout)
    return report_wait(common, poll, document, fields)


@click.command(epilog="\b\nExample:\n  slurmctl aggregate flights-2013")
@click.argument("job")
@common_options
def aggregate(common: Common, job: str) -> int:
    """Publish the results of JOB as one Parquet dataset with a manifest.

    Refuses while tasks are missing. Running it again with the same results changes nothing.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator import job as verbs

    with common.services() as services:
        manifest = verbs.aggregate(services, name, log=say)
        where = manifest_address(services, name)
    fields = [("job", name), *manifest_fields(manifest), ("dataset", where)]
    emit(common.as_json, {**manifest, "manifest": where}, fields)
    return 0


def _preview(services: Services, job_id: JobId, classes: list[str] | None) -> Retried:
    """What a retry would find now; reads the committed parts' errors and writes nothing."""
    from airflow_slurm_provider.coordinator import job, retry

    row = services.jobs(job_id).get()
    next_round = len(services.jobs(job_id).rounds())
    selector = retry.Selector(job.read_spec(services, row), job.check_classes(classes))
    items = retry.FailedItems(services.store(job_id), selector, next_round)
    count = sum(1 for _ in items)
    tasks = len(retry.failed_tasks(services, row, selector))
    return job.Retried(
        job_id,
        next_round if count or tasks else None,
        items=dict(items.retried),
        tasks=tasks,
        given_up=dict(items.given_up),
    )


def _retried_fields(retried: Retried, dry_run: bool) -> list[tuple[str, str]]:
    number_of = "nothing to run again" if retried.round is None else str(retried.round)
    fields = [
        ("job", retried.job_id),
        ("round", f"{number_of} (dry run: nothing was done)" if dry_run else number_of),
        ("items to run again", by_class(retried.items)),
        ("tasks put back", number(retried.tasks)),
        ("given up", by_class(retried.given_up)),
    ]
    if retried.slurm_job_ids:
        fields.append(("slurm job", ", ".join(retried.slurm_job_ids)))
    return fields
