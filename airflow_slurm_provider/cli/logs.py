"""`slurmctl logs` and `events`: what a job's workers have logged, and its audit log."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from airflow_slurm_provider.cli.options import Common, command, job_argument, seconds
from airflow_slurm_provider.cli.rendering.fields import event_line
from airflow_slurm_provider.cli.rendering.output import emit, say, show
from airflow_slurm_provider.cli.wait_loop import TOLERATED_FAILURES
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.logs import Selection
    from slurm_worker.protocol.job_rows import AuditEvent


@command("slurmctl logs flights-2013 --errors")
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
def logs(common: Common, job: JobId, task: str, worker: str, errors: bool, output: bool) -> int:
    """Print the log lines of JOB's workers, worker by worker; with --json, as raw JSON lines.

    A worker that was killed has not uploaded its last lines. Use --output to see them. With
    --errors, workers whose AWS credentials or clock were wrong are named too, by their exit codes.
    """
    if output and not worker:
        raise click.UsageError("--output: needs --worker with the array element, such as 1234_7")
    from airflow_slurm_provider.coordinator.status import logs as reading

    with common.services() as services:
        services.jobs(job).get()  # fails where there is no such job
        if output:
            element = worker.partition("-")[0]
            text = reading.read_output(services, job, element)
            document = {"job_id": job, "worker": element, "output": text}
            return emit(common.as_json, document, text.removesuffix("\n"))
        selection = reading.Selection(task, worker, errors)
        lines = reading.read_logs(services, job, selection)
        if errors and not task:
            lines = itertools.chain(lines, _ends(services, job, selection))
        shown = 0
        for line in lines if common.as_json else reading.without_repeats(lines):
            show(json.dumps(line) if common.as_json else reading.as_text(line))
            shown += 1
    if not shown:
        say(_no_lines(job, task, worker))
    return 0


@command("slurmctl events flights-2013 --follow")
@job_argument
@click.option(
    "--after", metavar="MARK", default="", help="Only events after the `mark` of an earlier call."
)
@click.option("--follow", is_flag=True, help="Keep printing new events until interrupted.")
@seconds("--interval", "Time between two queries with --follow.", 5.0, least=0.1)
def events(common: Common, job: JobId, after: str, follow: bool, interval: float) -> int:
    """Print the audit log of JOB: who did what, and when. Times are UTC.

    With --json, the document has a `mark`. Give it to --after to print only later events. With
    --json and --follow, each new group of events is one document on one line.
    """
    from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader

    with common.services() as services:
        reader = AuditLogReader(services, job, after)
        found = reader.read()
        _show(common, job, found, after)
        failures = 0
        while follow:
            services.clock.sleep(interval)
            try:
                found, failures = reader.read(), 0
            except ServiceError as error:
                failures += 1
                if failures > TOLERATED_FAILURES:
                    raise
                say(f"{error}; next try in {interval:g} s")
                continue
            if found:
                _show(common, job, found, after)
    return 0


def _ends(services: Services, job: JobId, selection: Selection) -> Iterator[dict[str, Any]]:
    """The workers whose exit code says why they ended; none if Slurm can't be reached."""
    from airflow_slurm_provider.coordinator.status.logs import read_ends

    try:
        yield from read_ends(services, job, selection)
    except ServiceError as error:
        say(f"{error}; how the workers ended is not known")


def _no_lines(job: JobId, task: str, worker: str) -> str:
    """Why nothing is printed, as far as it may be a mistake in an id."""
    if worker:
        return (
            f"no such lines of worker {worker!r}; ids look like 1234_7, see slurmctl status {job}"
        )
    if task:
        return f"no such lines of task {task!r}; ids look like 000-00000005"
    return (
        "no such lines; for Slurm's output of a worker that was killed, use --worker and --output"
    )


def _show(common: Common, job: str, found: Sequence[AuditEvent], after: str) -> None:
    from airflow_slurm_provider.coordinator.status.audit_log import event_document

    if not common.as_json:
        for event in found:
            show(event_line(event))
        return
    mark = max((event.sk for event in found), default=after)
    documents = [event_document(event) for event in found]
    emit(True, {"job_id": job, "events": documents, "mark": mark}, [])
