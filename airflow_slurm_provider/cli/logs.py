"""`slurmctl logs`: the log lines of a job's workers."""

from __future__ import annotations

import json

import click

from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import emit, show
from slurm_worker.protocol.keys import check_job_id


@click.command(epilog="\b\nExample:\n  slurmctl logs flights-2013 --errors")
@job_argument
@click.option("--task", metavar="ID", default="", help="Only lines of this task.")
@click.option(
    "--worker",
    metavar="ID",
    default="",
    help="Only lines of this worker or array element, such as 1234_7.",
)
@click.option("--errors", is_flag=True, help="Only failures, warnings and errors.")
@click.option(
    "--output", is_flag=True, help="Print Slurm's output file of the --worker, from the cluster."
)
@common_options
def logs(common: Common, job: str, task: str, worker: str, errors: bool, output: bool) -> int:
    """Print the log lines of JOB's workers, worker by worker; with --json, as they were written.

    A worker that was killed has not uploaded its last lines. Use --output to see them.
    """
    name = check_job_id(job, "JOB")
    if output and not worker:
        raise click.UsageError("--output: needs --worker with the array element, such as 1234_7")
    from airflow_slurm_provider.coordinator.status import logs as reading

    with common.services() as services:
        services.jobs(name).get()  # fails where there is no such job
        if output:
            element = worker.partition("-")[0]
            text = reading.read_output(services, name, element)
            if common.as_json:
                emit(True, {"job_id": name, "worker": element, "output": text}, [])
            else:
                show(text.removesuffix("\n"))
            return 0
        lines = reading.read_logs(services, name, reading.Selection(task, worker, errors))
        for line in lines if common.as_json else reading.without_repeats(lines):
            show(json.dumps(line) if common.as_json else reading.as_text(line))
    return 0
