"""Wait for a job from a terminal: one look at a growing interval, and what it says.

A look costs what one of `coordinator.watch` costs: a few reads of the table and one squeue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import click

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.formatting import waited_fields
from airflow_slurm_provider.cli.options import Common
from airflow_slurm_provider.cli.output import Fields, emit, say
from slurm_worker.errors import ServiceError
from slurm_worker.printable import printable
from slurm_worker.protocol.keys import JobId, TaskState

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.progress import JobStatus

F = TypeVar("F", bound=Callable[..., int])

FIRST_INTERVAL_S = 1.0
GROWTH = 1.5
#: Looks in a row that may fail because a service is away, before the wait gives up.
TOLERATED_FAILURES = 5


def wait_options(function: F) -> F:
    """Give a command ``--wait`` and what limits it."""
    return click.option("--wait", is_flag=True, help="Wait until nothing is left to run.")(
        wait_limits(function)
    )


def wait_limits(function: F) -> F:
    """Give a command ``--interval``, ``--timeout`` and ``--max-failed-items``."""
    interval = click.option(
        "--interval",
        metavar="SECONDS",
        type=click.FloatRange(min=0.1),
        default=10.0,
        show_default=True,
        help="Longest time between two looks while waiting.",
    )
    timeout = click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        help="Stop waiting after this time, with exit code 3; the job goes on.",
    )
    most_failed = click.option(
        "--max-failed-items",
        metavar="N",
        type=click.IntRange(min=0),
        help="Exit code 1 where more items than this have failed; any number may without it.",
    )
    return interval(timeout(most_failed(function)))


def wait_until_finished(
    services: Services,
    job_id: JobId,
    *,
    interval: float,
    timeout: float | None,
    show: Callable[[JobStatus], None] | None = None,
) -> JobStatus:
    """Look until every task has ended, or until there is a problem that waiting can't cure.

    Args:
        services: the job's table, bucket and cluster.
        job_id: the job.
        interval: seconds between two looks, at most; the first ones follow faster.
        timeout: seconds to wait at all; None for as long as it takes.
        show: shows a look; a bar or lines on stderr where None.

    Raises:
        ServiceError: if the time is up, or a service is away at the first look or stays away.
    """
    from airflow_slurm_provider.coordinator.watcher import Watcher

    clock = services.clock
    watcher = Watcher(services, job_id, say, clock=clock.boot_time, report_progress=False)
    deadline = None if timeout is None else clock.boot_time() + timeout
    pause, failures = min(FIRST_INTERVAL_S, interval), TOLERATED_FAILURES
    with nullcontext(show) if show else _shown() as show_look:
        while True:
            try:
                poll = watcher.poll()
            except ServiceError as error:
                failures += 1
                if failures > TOLERATED_FAILURES:
                    raise
                say(f"{error}; looking again in {pause:.0f} s")
            else:
                failures = 0
                show_look(poll)
                if poll.finished or poll.problem:
                    return poll
            if deadline is not None and clock.boot_time() + pause > deadline:
                raise ServiceError(
                    f"{job_id}: not finished after {timeout:g} s; it goes on by itself, "
                    f"look again with: slurmctl wait {job_id}"
                )
            clock.sleep(pause)
            pause = min(pause * GROWTH, interval)


def report_wait(
    common: Common,
    poll: JobStatus,
    max_failed_items: int | None,
    document: Mapping[str, object] | None = None,
    fields: Fields = (),
) -> int:
    """Print what a wait came to, after what the command did before it; return the exit code.

    Failed items alone are no failure of the job, unless the user has said how many may be: they
    are counted, and can be tried again.
    """
    result = {**(document or {}), "progress": poll.progress.to_dict(), "problem": poll.problem}
    known = {label for label, _ in fields}
    found = [each for each in waited_fields(poll) if each[0] not in known]
    emit(common.as_json, result, [*fields, *found])
    tasks = poll.progress.tasks
    gave_up = tasks.get(TaskState.FAILED.value, 0) + tasks.get(TaskState.QUARANTINED.value, 0)
    failed = sum(poll.progress.failed.values())
    if max_failed_items is not None and failed > max_failed_items:
        say(f"--max-failed-items: {failed:,} have failed, and {max_failed_items:,} may")
        return ExitCode.JOB_FAILED
    return ExitCode.JOB_FAILED if poll.problem or gave_up else ExitCode.OK


@contextmanager
def _shown() -> Iterator[Callable[[JobStatus], None]]:
    """A progress bar on a terminal; else a line on stderr whenever something changed."""
    if not sys.stderr.isatty():
        yield _line_on_change()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=None)

        def show(poll: JobStatus) -> None:
            progress = poll.progress
            bar.update(
                shown,
                description=printable(progress.line()),
                total=progress.items,
                completed=progress.items - progress.pending,
            )

        yield show


def _line_on_change() -> Callable[[JobStatus], None]:
    said = ""

    def show(poll: JobStatus) -> None:
        nonlocal said
        line = poll.progress.line()
        if line != said:
            said = line
            say(line)

    return show
