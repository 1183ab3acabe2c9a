"""`slurmctl events`: a job's audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import emit, say, show
from airflow_slurm_provider.cli.wait_loop import TOLERATED_FAILURES
from slurm_worker.errors import ServiceError
from slurm_worker.printable import printable
from slurm_worker.protocol.keys import check_job_id

if TYPE_CHECKING:
    from slurm_worker.protocol.job_rows import AuditEvent


@click.command(epilog="\b\nExample:\n  slurmctl events flights-2013 --follow")
@job_argument
@click.option(
    "--after", metavar="MARK", default="", help="Only events after the `mark` of an earlier call."
)
@click.option("--follow", is_flag=True, help="Keep printing new events until interrupted.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Time between two queries with --follow.",
)
@common_options
def events(common: Common, job: str, after: str, follow: bool, interval: float) -> int:
    """Print the audit log of JOB: who did what, and when. Times are UTC.

    With --json, the document has a `mark`. Give it to --after to print only later events. With
    --json and --follow, each new group of events is one document on one line.
    """
    name = check_job_id(job, "JOB")
    from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader

    with common.services() as services:
        reader = AuditLogReader(services, name, after)
        found = reader.read()
        _show(common, name, found, after)
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
                _show(common, name, found, after)
    return 0


def event_line(event: AuditEvent) -> str:
    """An event in a line: time, who, what, details."""
    from airflow_slurm_provider.coordinator.status.audit_log import as_utc

    detail = ", ".join(f"{name}={value}" for name, value in event.detail.items() if value != "")
    line = f"{as_utc(event.at_ms)} {event.actor}: {event.action}{f' ({detail})' if detail else ''}"
    return printable(line)


def _show(common: Common, job: str, found: Sequence[AuditEvent], after: str) -> None:
    from airflow_slurm_provider.coordinator.status.audit_log import event_document

    if not common.as_json:
        for event in found:
            show(event_line(event))
        return
    mark = max((event.sk for event in found), default=after)
    documents = [event_document(event) for event in found]
    emit(True, {"job_id": job, "events": documents, "mark": mark}, [])
