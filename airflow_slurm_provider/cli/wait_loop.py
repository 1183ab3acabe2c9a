"""Wait for a job from a terminal, with status queries at a growing interval.

A query costs a few reads of the table and one squeue: see `coordinator.watcher`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.options import Common, count, seconds
from airflow_slurm_provider.cli.rendering.fields import waited_fields
from airflow_slurm_provider.cli.rendering.output import Fields, emit, say
from slurm_worker.errors import ServiceError
from slurm_worker.printable import printable
from slurm_worker.protocol.keys import JobId, TaskState

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.progress import JobStatus

FIRST_INTERVAL_S = 1.0
GROWTH = 1.5
#: Status queries in a row that may fail because a service is away, before the wait gives up.
TOLERATED_FAILURES = 5


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """The options of a wait."""

    interval_s: float  #: longest time between two status queries; the first pauses are shorter
    timeout_s: float | None = None
    max_failed_items: int | None = None


def wait_limits(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command ``--interval``, ``--timeout`` and ``--max-failed-items`` as its `limits`."""
    most_failed = "Exit with 1 if more items than this have failed. Default: no limit."

    @seconds(
        "--interval", "Query the status at least every SECONDS while waiting.", 10.0, least=0.1
    )
    @seconds("--timeout", "Stop waiting after this time, with exit code 3. The job continues.")
    @count("--max-failed-items", most_failed, least=0)
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> int:
        names = ("interval", "timeout", "max_failed_items")
        limits = WaitLimits(*(options.pop(name) for name in names))
        return function(*args, limits=limits, **options)

    return run


def wait_for(
    services: Services,
    job_id: JobId,
    limits: WaitLimits,
    show: Callable[[JobStatus], None] | None = None,
) -> JobStatus:
    """Poll until every task has ended, or until there is a problem that waiting can't fix.

    Without `show`, the status is a bar or lines on stderr.

    Raises:
        ServiceError: if the time is up, a service is away at the first query, or stays away.
    """
    from airflow_slurm_provider.coordinator.watcher import Watcher

    clock, timeout_s = services.clock, limits.timeout_s
    watcher = Watcher(services, job_id, say, clock=clock.boot_time, report_progress=False)
    deadline = None if timeout_s is None else clock.boot_time() + timeout_s
    pause, failures = min(FIRST_INTERVAL_S, limits.interval_s), TOLERATED_FAILURES
    with nullcontext(show) if show else _shown() as show_status:
        while True:
            try:
                status = watcher.poll()
            except ServiceError as error:
                failures += 1
                if failures > TOLERATED_FAILURES:
                    raise
                say(f"{error}; next try in {pause:.0f} s")
            else:
                failures = 0
                show_status(status)
                if status.finished or status.problem:
                    return status
            if deadline is not None and clock.boot_time() + pause > deadline:
                raise ServiceError(
                    f"{job_id}: not finished after {timeout_s:g} s; the job continues; "
                    f"to wait again: slurmctl wait {job_id}"
                )
            clock.sleep(pause)
            pause = min(pause * GROWTH, limits.interval_s)


def report_wait(
    common: Common,
    status: JobStatus,
    limits: WaitLimits,
    document: Mapping[str, object] | None = None,
    fields: Fields = (),
) -> int:
    """Print the result of a wait, after that of the command before it; return the exit code.

    Failed items can be tried again. They alone do not fail the job, unless the user gave a limit.
    """
    result = {**(document or {}), "progress": status.progress.to_dict(), "problem": status.problem}
    known = {label for label, _ in fields}
    found = [field for field in waited_fields(status) if field[0] not in known]
    emit(common.as_json, result, [*fields, *found])
    tasks = status.progress.tasks
    gave_up = tasks.get(TaskState.FAILED.value, 0) + tasks.get(TaskState.QUARANTINED.value, 0)
    failed = sum(status.progress.failed.values())
    most = limits.max_failed_items
    if most is not None and failed > most:
        say(f"--max-failed-items: {failed:,} items failed; the limit is {most:,}")
        return ExitCode.JOB_FAILED
    return ExitCode.JOB_FAILED if status.problem or gave_up else ExitCode.OK


@contextmanager
def _shown() -> Iterator[Callable[[JobStatus], None]]:
    """A progress bar on a terminal; otherwise a line on stderr at every change."""
    if not sys.stderr.isatty():
        yield _line_on_change()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=None)

        def show(status: JobStatus) -> None:
            progress = status.progress
            bar.update(
                shown,
                description=printable(progress.line()),
                total=progress.items,
                completed=progress.items - progress.pending,
            )

        yield show


def _line_on_change() -> Callable[[JobStatus], None]:
    shown = ""

    def show(status: JobStatus) -> None:
        nonlocal shown
        line = status.progress.line()
        if line != shown:
            shown = line
            say(line)

    return show
