"""`slurmctl watch`: a job's progress, live, in the full terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import say
from airflow_slurm_provider.cli.wait_loop import report_wait, wait_limits, wait_until_finished
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.cli.watch_view import View
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.progress import JobStatus

_EVENTS_KEPT = 5


@click.command(epilog="\b\nExample:\n  slurmctl watch flights-2013 --interval 5")
@job_argument
@wait_limits
@common_options
def watch(
    common: Common, job: str, interval: float, timeout: float | None, max_failed_items: int | None
) -> int:
    """Show JOB live: progress, workers, failures, nodes, slow tasks, limits, events.

    Ctrl-C leaves the display, with exit code 130; the job continues. When the job ends, watch
    exits like slurmctl wait. Without a terminal it prints a line at every change.
    """
    name = check_job_id(job, "JOB")
    with common.services() as services:
        try:
            live = sys.stdout.isatty() and not common.as_json
            with _screen(services, name) if live else _nothing() as shown:
                status = wait_until_finished(
                    services, name, interval=interval, timeout=timeout, show=shown
                )
        except KeyboardInterrupt:
            say(f"{name} continues; to watch it again: slurmctl watch {name}")
            return ExitCode.INTERRUPTED
    return report_wait(common, status, max_failed_items)


@contextmanager
def _nothing() -> Iterator[None]:
    """No screen: the wait itself prints lines."""
    yield None


@contextmanager
def _screen(services: Services, job: JobId) -> Iterator[Callable[[JobStatus], None]]:
    """The terminal's alternate screen, redrawn at each status query."""
    from rich.console import Console
    from rich.live import Live

    from airflow_slurm_provider.cli.watch_view import render

    watched = _Watched(services, job)
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        yield lambda status: live.update(render(watched.view(status)), refresh=True)


class _Watched:
    """Reads what the screen shows beside tasks and workers: limits and events."""

    def __init__(self, services: Services, job: JobId) -> None:
        from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader

        self._services = services
        self._job = job
        self._reader = AuditLogReader(services, job)
        self._last: View | None = None

    def view(self, status: JobStatus) -> View:
        """The view of a status; parts that can't be read now stay as they were."""
        from airflow_slurm_provider.cli.watch_view import View
        from airflow_slurm_provider.coordinator.status.rate_limits import read_limits

        last = self._last or View(status)
        try:
            events = (*last.events, *self._reader.read())[-_EVENTS_KEPT:]
            view = View(status, read_limits(self._services, self._job), events)
        except ServiceError as error:
            view = replace(last, status=status, note=str(error))
        self._last = replace(view, note="")
        return view
