"""The rate of a job is that of the last minutes; an unknown rate is not shown."""

from __future__ import annotations

import pytest

from airflow_slurm_provider.coordinator.status.eta import eta_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.units import format_duration
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId, JobState, RoundState, TaskState
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import TaskRow

NOW_MS = 1_700_000_000_000
ITEMS = 10


def task(sequence: int, state: TaskState, **changes: int) -> TaskRow:
    return TaskRow(0, sequence, state, Slice(0, 0, 1, ITEMS, ""), **changes)  # type: ignore[arg-type]  # numbers only


def snapshot(ages_s: list[float], held: list[TaskRow], tasks: int = 1_000) -> Snapshot:
    """A job whose tasks were done so many seconds ago, and whose other tasks are held or ready."""
    done = JobTotals()
    for number, age_s in enumerate(ages_s):
        finished_ms = int(NOW_MS - age_s * 1000)
        done.add_row(
            task(number, TaskState.DONE, items_ok=ITEMS, finished_ms=finished_ms, took_ms=1)
        )
    return Snapshot(
        JobRow(JobId("job-1"), JobState.OPEN, 1, "", "", 1, "", 0),
        (RoundRow(0, RoundState.OPEN, "input", {}, tasks, tasks * ITEMS, tasks, 0, 0),),
        NOW_MS,
        done,
        tuple(held),
        (),
        ready=tasks - len(ages_s) - len(held),
        waiting=0,
        lost=0,
        rows_read=0,
    )


HELD = task(999, TaskState.LEASED, started_ms=NOW_MS - 10_000)


def test_rate_and_time_left_come_from_the_last_minutes() -> None:
    # A task in ten seconds at first, then, for the last five minutes, one in each second.
    slow = [300.0 + 10 * number for number in range(100)]
    quick = [0.5 + number for number in range(300)]
    seen = eta_of(snapshot(slow + quick, [HELD]))
    assert seen.rate == pytest.approx(ITEMS, rel=0.05)
    assert seen.eta_s == pytest.approx(600, rel=0.05)
    assert seen.line() == f"{seen.rate:.1f} items/s, about {format_duration(seen.eta_s or 0)} left"


def test_before_the_first_task_ends_the_rate_is_that_of_its_items() -> None:
    running = task(0, TaskState.LEASED, started_ms=NOW_MS - 10_000, items_ok=5)
    seen = eta_of(snapshot([], [running], tasks=1))
    assert (seen.rate, seen.eta_s, seen.running_items) == (0.5, 10, 5)
    assert seen.line() == "0.5 items/s, about 0:00:10 left"


@pytest.mark.parametrize(
    "seen",
    [
        snapshot([], []),
        snapshot([], [HELD]),
        snapshot([1.0, 2.0, 3.0], []),
        snapshot([1.0, 2.0, 3.0], [], tasks=3),
    ],
    ids=["nobody works", "nothing is done", "nobody works any more", "all is done"],
)
def test_an_unknown_rate_gives_no_time_left(seen: Snapshot) -> None:
    assert eta_of(seen).line() == ""
