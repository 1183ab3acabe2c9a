"""`slurmctl status`, `wait` and `watch`: the progress of a job, once, at the end, or live."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.options import Common, command, job_argument
from airflow_slurm_provider.cli.rendering.fields import (
    progress_fields,
    worker_failure_fields,
    workers_document,
    workers_text,
)
from airflow_slurm_provider.cli.rendering.output import emit, say
from airflow_slurm_provider.cli.wait_loop import WaitLimits, report_wait, wait_for, wait_limits
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure
    from airflow_slurm_provider.coordinator.status.progress import JobStatus

_EVENTS_KEPT = 5


@command("slurmctl status flights-2013")
@job_argument
def status(common: Common, job: JobId) -> int:
    """Show the progress of JOB: tasks, items, failures by class, workers, dataset.

    If the cluster can't be reached, everything else is printed, then the error.
    """
    # Not through `api`, which would import planning and retrying as well.
    from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status

    with common.services() as services:
        away: ServiceError | None = None
        try:
            found = read_status(services, job)
            progress, problem = found.progress, found.problem
            workers, array = workers_text(found), workers_document(found.array)
        except ServiceError as error:
            progress, problem, away = read_progress(services, job), "", error
            workers, array = "unknown: the cluster can't be reached", None
        lost = _worker_failures(services, job)
        key = services.paths(job).manifest
        data = services.objects.get(key)
    manifest = None if data is None else json.loads(data)
    where, dataset = f"s3://{services.site.bucket}/{key}", "not published"
    if manifest is not None:
        rows = format_count(manifest["rows"], "row")
        files = format_count(len(manifest["files"]), "file")
        dataset = f"{rows} in {files}, {where}"
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
    emit(common.as_json, document, [*fields, ("dataset", dataset)])
    if away is not None:
        raise away
    return 0


@command("slurmctl wait flights-2013 --timeout 3600")
@job_argument
@wait_limits
def wait(common: Common, job: JobId, limits: WaitLimits) -> int:
    """Wait until every task of JOB has ended.

    A task is a group of items. Failed items don't fail the job: they are counted by class, and
    slurmctl retry runs them again. Exits with 1 if whole tasks failed, or if no worker is left
    while tasks remain.
    """
    with common.services() as services:
        found = wait_for(services, job, limits)
    return report_wait(common, found, limits)


@command("slurmctl watch flights-2013 --interval 5")
@job_argument
@wait_limits
def watch(common: Common, job: JobId, limits: WaitLimits) -> int:
    """Show JOB live: progress, workers, failures, nodes, slow tasks, limits, events.

    Ctrl-C leaves the display, with exit code 130; the job continues. When the job ends, watch
    exits like slurmctl wait. Without a terminal it prints a line at every change.
    """
    with common.services() as services:
        try:
            live = sys.stdout.isatty() and not common.as_json
            with _screen(services, job) if live else nullcontext() as shown:
                status = wait_for(services, job, limits, shown)
        except KeyboardInterrupt:
            say(f"{job} continues; to watch it again: slurmctl watch {job}")
            return ExitCode.INTERRUPTED
    return report_wait(common, status, limits)


def _worker_failures(services: Services, job: JobId) -> list[WorkerFailure] | None:
    """Workers that died; None where Slurm can't be reached."""
    from airflow_slurm_provider.coordinator.status.dead_workers import find_worker_failures

    try:
        return find_worker_failures(services, job)
    except ServiceError:
        return None


@contextmanager
def _screen(services: Services, job: JobId) -> Iterator[Callable[[JobStatus], None]]:
    """The terminal's alternate screen, redrawn at each status query.

    Limits and events that can't be read now stay as they were.
    """
    from rich.console import Console
    from rich.live import Live

    from airflow_slurm_provider.cli.rendering.watch_screen import View, render
    from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader
    from airflow_slurm_provider.coordinator.status.rate_limits import read_limits

    reader = AuditLogReader(services, job)
    last: View | None = None

    def show(status: JobStatus) -> None:
        nonlocal last
        last = replace(last, status=status, note="") if last else View(status)
        try:
            events = (*last.events, *reader.read())[-_EVENTS_KEPT:]
            last = View(status, read_limits(services, job), events)
        except ServiceError as error:
            last = replace(last, note=str(error))
        live.update(render(last), refresh=True)

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        yield show
