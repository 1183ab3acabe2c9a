"""`slurmctl pause`, `resume`, `workers` and `cancel`: steer a job that is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import Fields, emit, say
from slurm_worker.protocol.keys import check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.submission.control import ControlResult


@click.command(epilog="\b\nExample:\n  slurmctl pause flights-2013")
@job_argument
@common_options
def pause(common: Common, job: str) -> int:
    """Have the workers of JOB finish the task they hold, and leave the nodes to others.

    Who waits for the job goes on waiting. `slurmctl resume` goes on with new workers.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        paused = control.pause(services, name, actor=common.actor)
    state = f"by {paused.paused}" + ("" if paused.changed else ", before this call")
    emit(common.as_json, paused.to_dict(), [("job", name), ("paused", state)])
    return 0


@click.command(epilog="\b\nExample:\n  slurmctl resume flights-2013")
@job_argument
@common_options
def resume(common: Common, job: str) -> int:
    """Go on with JOB after a pause, or after its handler has stopped it.

    Workers that have left are replaced by new ones. Safe to run again.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        resumed = control.resume(services, name, log=say, actor=common.actor)
    state = "yes" if resumed.changed else "nothing: the job was neither paused nor stopped"
    fields = [("job", name), ("resumed", state), *_workers(resumed)]
    emit(common.as_json, resumed.to_dict(), fields)
    return 0


@click.command(epilog="\b\nExample:\n  slurmctl workers flights-2013 --add 10")
@job_argument
@click.option(
    "--add", "count", type=click.IntRange(min=1), required=True, help="How many more workers."
)
@common_options
def workers(common: Common, job: str, count: int) -> int:
    """Submit more workers for JOB, beside those at work.

    No more than there are tasks to do, or than the rate limits can feed. A call that was cut
    short is finished by the next one, which adds none of its own then.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        added = control.add_workers(services, name, count, log=say, actor=common.actor)
    emit(common.as_json, added.to_dict(), [("job", name), *_workers(added)])
    return 0


@click.command(epilog="\b\nExample:\n  slurmctl cancel flights-2013")
@job_argument
@common_options
def cancel(common: Common, job: str) -> int:
    """Cancel the Slurm arrays of JOB at once.

    What is committed stays; leases run out by themselves. Who waits for the job is told that no
    worker is left, and submits no others; submit or resume goes on.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator.submission import control

    with common.services() as services:
        cancelled = control.cancel(services, name, actor=common.actor)
    emit(
        common.as_json,
        {"job_id": name, "cancelled": cancelled},
        [("job", name), ("cancelled", ", ".join(cancelled) or "nothing: no array is alive")],
    )
    return 0


def _workers(steered: ControlResult) -> Fields:
    arrays = ", ".join(steered.slurm_job_ids)
    return [("new workers", f"{steered.workers:,}{f' in {arrays}' if arrays else ''}")]
