"""The live view shows what a query has found, ends like a wait, and leaves the job alone."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.rendering.watch_screen import View, render
from airflow_slurm_provider.coordinator.status.eta import stragglers
from airflow_slurm_provider.coordinator.status.progress import JobStatus, progress_of
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.protocol.job_rows import AuditEvent, JobRow, RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId, JobState, RoundState, TaskState
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import TaskRow
from tests.unit.cli.conftest import Cli

NOW_MS = 1_700_000_000_000
JOB = JobRow(JobId("job-1"), JobState.OPEN, 1, "", "", 1, "", NOW_MS - 600_000)


def task(sequence: int, state: TaskState, **changes: Any) -> TaskRow:
    return TaskRow(0, sequence, state, Slice(0, 0, 1, 10, ""), **changes)


def snapshot(done_tasks: int = 50, job: JobRow = JOB) -> Snapshot:
    """A job of 100 tasks of 10 items, ten minutes old, half of it done, one task held long."""
    done = JobTotals()
    for number in range(done_tasks):
        done.add_row(
            task(
                number,
                TaskState.DONE,
                items_ok=9,
                failed_by={"network": 1},
                rows=9,
                worker=f"7_{number % 2}",
                node=f"n{number % 2}",
                took_ms=20_000,
                finished_ms=NOW_MS - 5_000 * number,
            )
        )
    held = (
        task(60, TaskState.LEASED, owner="7_0-r0-a", attempt=1, started_ms=NOW_MS - 5_000),
        task(61, TaskState.LEASED, owner="7_1-r0-b", attempt=2, started_ms=NOW_MS - 90_000),
    )
    opened = NOW_MS - 600_000
    first = RoundRow(0, RoundState.OPEN, "input", {}, 100, 1000, 100, opened, opened)
    return Snapshot(
        job, (first,), NOW_MS, done, held, (), ready=98 - done_tasks, waiting=0, lost=1, rows_read=9
    )


def poll(seen: Snapshot, **changes: Any) -> JobStatus:
    running = Element(ElementState.RUNNING, node="n0")
    waiting = Element(ElementState.PENDING)
    array = ArrayState("7", {0: running, 1: replace(running, node="n1"), 2: waiting}, 3)
    return replace(JobStatus(progress_of(seen), array, finished=False, snapshot=seen), **changes)


def text(view: View, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render(view))
    return console.export_text()


def test_the_screen_shows_everything_of_a_status_query() -> None:
    limits = [LimitState("api", "job-1", 10.0, 7.0, 2, 1.5, 1234, 86_400)]
    events = [AuditEvent(NOW_MS, "me", "submitted", {"workers": 3}, "m")]
    seen = text(View(poll(snapshot()), limits, events))
    for expected in (
        "job-1  running  22:13:20 UTC",
        "50.0% of 1,000 items",
        "450 ok, 50 failed, 500 pending; 2.",
        "48 ready, 2 leased",
        "3 alive of array 7 (2 RUNNING, 1 PENDING)",
        "50 network",
        "n0          1          25       225      25     10.0%",
        "000-00000061   0:01:30        2  7_1-r0-b",
        "95 of 100 tasks took at most",
        "1,234 of 86,400 today",
        "2023-11-14T22:13:20.000Z me: submitted (workers=3)",
    ):
        assert expected in seen, seen
    assert "000-00000060" not in seen, "held for no longer than is usual"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_fits_the_terminal(width: int) -> None:
    events = [AuditEvent(NOW_MS, "me", "submitted", {"arrays": "1234567, " * 50}, "m")]
    lines = text(View(poll(snapshot()), (), events), width).splitlines()
    assert max(map(len, lines)) <= width


def test_a_job_without_any_task_can_be_drawn() -> None:
    fresh = replace(snapshot(0), leased=(), rounds=(), ready=0, lost=0)
    seen = text(View(JobStatus(progress_of(fresh), None, finished=False, snapshot=fresh)))
    assert "0.0% of 0 items" in seen
    assert "not submitted" in seen


def test_a_pause_a_problem_and_an_error_are_shown() -> None:
    paused = snapshot(job=replace(JOB, paused="me"))
    assert "paused by me" in text(View(poll(paused)))
    assert "no worker is left" in text(View(poll(snapshot(), problem="no worker is left")))
    assert "table: away" in text(View(poll(snapshot()), note="table: away"))


def test_long_lists_of_nodes_and_slow_tasks_are_cut_and_the_rest_counted() -> None:
    seen = snapshot()
    for number in range(20):
        seen.done.add_row(task(number, TaskState.DONE, node=f"m{number:02}", took_ms=20_000))
    slow = tuple(replace(seen.leased[1], sequence=200 + number) for number in range(9))
    shown = text(View(poll(replace(seen, leased=slow))))
    assert "and 14 more nodes" in shown
    assert "and 4 more slow tasks" in shown


def test_no_task_counts_as_slow_while_too_few_have_ended() -> None:
    assert stragglers(snapshot(9)) == []
    assert [row.sequence for row in stragglers(snapshot(10))] == [61]


def test_without_a_terminal_watch_prints_lines_and_ends_like_wait(cli: Cli) -> None:
    cli.submit()
    cli.clock.events = [cli.work]
    ended = cli("watch", "job-1", "--json")
    assert ended.code == ExitCode.OK
    assert ended.json["progress"]["complete"]
    assert "23 of 25 items ok" in ended.err


def test_watch_ends_with_exit_code_1_if_no_worker_is_left(cli: Cli) -> None:
    cli.submit()
    cli.clock.events = [lambda: cli.slurm.end("101", "NODE_FAIL")]
    assert cli("watch", "job-1").code == ExitCode.JOB_FAILED


def test_watch_uses_the_alternate_screen_and_leaves_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    cli.submit()
    cli.clock.events = [cli.work]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ended = cli("watch", "job-1")
    assert ended.code == ExitCode.OK
    screen, _, after = ended.out.partition("\x1b[?1049l")
    assert screen.startswith("\x1b[?1049h")
    assert "slurmctl" in screen
    assert "submitted" in screen, "the audit log is on it"
    assert "items in" in after


@pytest.mark.parametrize("terminal", [True, False])
def test_interrupting_watch_does_not_change_the_job(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    cli.submit()
    before = cli("status", "job-1", "--json").json

    def interrupt() -> None:
        raise KeyboardInterrupt

    cli.clock.events = [interrupt]
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: terminal)
        ended = cli("watch", "job-1")
    assert ended.code == ExitCode.INTERRUPTED
    assert ended.err.endswith("job-1 continues; to watch it again: slurmctl watch job-1\n")
    assert ("\x1b[?1049l" in ended.out) == terminal, "the terminal is as it was"
    assert cli("status", "job-1", "--json").json == before
