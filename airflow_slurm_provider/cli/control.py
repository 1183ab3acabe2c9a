"""`slurmctl submit`, `pause`, `resume`, `workers` and `cancel`: start and control a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, command, job_argument
from airflow_slurm_provider.cli.rendering.output import Fields, emit, say
from airflow_slurm_provider.cli.wait_loop import WaitLimits, report_wait, wait_for, wait_limits
from airflow_slurm_provider.slurm.array_state import named
from airflow_slurm_provider.units import format_count
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.submission.control import ControlResult


@command("slurmctl submit example_dags/backfill_flights/config.yaml --job-id flights-2013 --wait")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--job-id", metavar="ID", help="Job id, in place of the file's job_id.")
@click.option("--wait", is_flag=True, help="Wait until every task has ended.")
@wait_limits
def submit(common: Common, config: Path, job_id: str | None, wait: bool, limits: WaitLimits) -> int:
    """Plan the job that CONFIG describes and start its workers.

    It is safe to run again at any point, also after it was killed: it continues where it
    stopped, and never starts the workers twice. A job keeps the items of its first submit; new
    items need another job id.
    """
    from airflow_slurm_provider.coordinator import api
    from airflow_slurm_provider.coordinator.spec.job_spec import load_config

    loaded = load_config(config, job_id=job_id)
    with common.services() as services:
        submitted = api.submit(services, loaded, log=say, actor=common.actor)
        reused = submitted.reattached and submitted.slurm_job_ids
        left = f"to see how many are left: slurmctl status {submitted.job_id}"
        earlier = f", from an earlier submit; {left}" if reused else ""
        fields = [
            ("job", submitted.job_id),
            ("items in", format_count(submitted.items)),
            ("planned tasks", format_count(submitted.tasks)),
            ("workers", f"{submitted.workers:,}{earlier}"),
            ("slurm job", f"{', '.join(submitted.slurm_job_ids)} {submitted.slurm_job_name}"),
        ]
        if not wait:
            return emit(common.as_json, submitted.to_dict(), fields)
        status = wait_for(services, JobId(submitted.job_id), limits)
    return report_wait(common, status, limits, submitted.to_dict(), fields)


@command("slurmctl pause flights-2013")
@job_argument
def pause(common: Common, job: JobId) -> int:
    """Stop the workers of JOB after their current tasks, and free the nodes.

    Commands and Airflow tasks that wait for the job keep waiting. slurmctl resume continues the
    job with new workers.
    """
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        paused = control.pause(services, job, actor=common.actor)
    state = f"by {paused.paused}" + ("" if paused.changed else ", already before this call")
    return emit(common.as_json, paused.to_dict(), [("job", job), ("paused", state)])


@command("slurmctl resume flights-2013")
@job_argument
def resume(common: Common, job: JobId) -> int:
    """Continue JOB after a pause, or after its handler has stopped it.

    Workers that have ended are replaced by new ones. It is safe to run again.
    """
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        resumed = control.resume(services, job, log=say, actor=common.actor)
    state = "yes" if resumed.changed else "no: the job was neither paused nor stopped"
    if resumed.workers and not resumed.changed:
        state = "new workers only: the job was neither paused nor stopped; its workers had ended"
    fields = [("job", job), ("resumed", state), *_workers(resumed)]
    return emit(common.as_json, resumed.to_dict(), fields)


@command("slurmctl workers flights-2013 --add 10")
@job_argument
@click.option(
    "--add", metavar="N", type=click.IntRange(1), required=True, help="Number of workers to add."
)
def workers(common: Common, job: JobId, add: int) -> int:
    """Add workers to JOB.

    Adds fewer if there are fewer unfinished tasks, or if the rate limits can't keep more workers
    busy. If a call was interrupted, the next call finishes it and adds no workers of its own.
    """
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        added = control.add_workers(services, job, add, log=say, actor=common.actor)
    return emit(common.as_json, added.to_dict(), [("job", job), *_workers(added)])


@command("slurmctl cancel flights-2013")
@job_argument
def cancel(common: Common, job: JobId) -> int:
    """Cancel the Slurm arrays of JOB at once.

    Committed results stay, and leases expire by themselves. Commands and Airflow tasks that wait
    for the job end with the message that no worker is left; they submit no new workers. To
    continue the job, use slurmctl submit or resume.
    """
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        cancelled = control.cancel(services, job, actor=common.actor)
    arrays = ", ".join(cancelled) or "nothing: no array waits or runs"
    document = {"job_id": job, "cancelled": cancelled}
    return emit(common.as_json, document, [("job", job), ("cancelled", arrays)])


def _workers(result: ControlResult) -> Fields:
    arrays = f" in {named(result.slurm_job_ids)}" if result.slurm_job_ids else ""
    return [("new workers", f"{result.workers:,}{arrays}")]
