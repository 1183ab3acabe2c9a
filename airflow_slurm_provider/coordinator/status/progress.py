"""A job's progress, from a snapshot of its tasks, and its status, with its array.

Requests: those of `snapshot.py`; for the array one ``squeue`` and one ``sacct``, and as many
again where a submission was interrupted (`arrays.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of, ids_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.array_state import ArrayState, named
from airflow_slurm_provider.slurm.exit_codes import reasons_of
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow, SubmissionRow
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState, TaskState

#: A job's state in one word.
SummaryState = Literal["planning", "running", "paused", "stopped", "complete"]

#: A submitter may still be between the plan and ``sbatch``.
_GRACE_S = 600.0
#: The largest age of a snapshot that another waiting task has read.
_SHARED_S = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's progress."""

    job_id: str
    state: JobState  #: whether all tasks of round 0 have rows
    rounds: int
    tasks: dict[str, int]  #: number of tasks by state
    items: int  #: items of the input: of round 0, and of rounds that have added new ones
    ok: int  #: items that succeeded, in whichever round
    failed: dict[str, int]  #: items whose latest outcome is a failure, by error class
    rows: int  #: rows that the handler returned
    #: Tasks that failed or were quarantined, by error class
    task_errors: dict[str, int] = field(default_factory=dict)
    stop: str = ""
    paused: str = ""

    @property
    def pending(self) -> int:
        """Items without a final outcome."""
        return self.items - self.ok - sum(self.failed.values())

    @property
    def unfinished_tasks(self) -> int:
        """Tasks that are ready or leased."""
        return sum(n for state, n in self.tasks.items() if not TaskState(state).terminal)

    @property
    def complete(self) -> bool:
        """Whether every planned task is in an end state."""
        return self.state is JobState.OPEN and self.unfinished_tasks == 0

    @property
    def summary_state(self) -> SummaryState:
        """The job's state in one word; a state that needs a person comes first."""
        if self.stop:
            return "stopped"
        if self.complete:
            return "complete"
        if self.paused:
            return "paused"
        return "planning" if self.state is JobState.PLANNING else "running"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            **asdict(self),
            "state": self.summary_state,
            "pending": self.pending,
            "complete": self.complete,
        }

    def line(self) -> str:
        """One line for a log."""
        failed = ", ".join(f"{name} {count:,}" for name, count in sorted(self.failed.items()))
        total = sum(self.tasks.values())
        resume = f"; paused by {self.paused}; to continue: slurmctl resume {self.job_id}"
        paused = resume if self.paused else ""
        return (
            f"{self.job_id}: {self.ok:,} of {self.items:,} items ok, "
            f"{sum(self.failed.values()):,} failed{f' ({failed})' if failed else ''}, "
            f"{self.pending:,} pending; {total - self.unfinished_tasks:,} of {total:,} tasks ended"
            f"{paused}"
        )


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job's status for a task that waits for it."""

    progress: Progress
    array: ArrayState | None
    finished: bool  #: every task is in an end state
    problem: str = ""  #: why waiting longer is useless; empty where it is not
    workers_gone: bool = False  #: the reason is that no worker is left; new workers would continue
    snapshot: Snapshot | None = None  #: what `progress` comes from


def read_progress(services: Services, job_id: JobId) -> Progress:
    """The job's progress; raises a UserError if there is no such job."""
    return progress_of(read_snapshot(services, job_id))


def read_status(services: Services, job_id: JobId) -> JobStatus:
    """The job's progress, and whether workers are left to continue it."""
    snapshot = _recent(services, job_id)
    progress = progress_of(snapshot)
    if progress.complete or progress.stop:
        problem = "" if progress.complete else f"the job is stopped: {progress.stop}"
        return JobStatus(progress, None, progress.complete, problem, snapshot=snapshot)
    submissions = services.jobs(job_id).submissions()
    # A cancel leaves an empty submission in each round, also in one without workers yet.
    newest = latest([row for row in submissions if not row.empty]) or latest(submissions)
    # Each of the round's arrays may still be alive: workers may have been added to it.
    of_last = of_round(submissions, newest.round_no) if newest else []
    arrays = arrays_of(services, job_id, of_last)
    if not arrays:
        problem = "" if progress.paused else _never_submitted(services, job_id, newest)
        return JobStatus(progress, None, False, problem, snapshot=snapshot)
    array = services.arrays(arrays)
    if array.unknown or array.alive or progress.paused or _is_under_way(services, newest):
        return JobStatus(progress, array, False, snapshot=snapshot)
    # Workers may have ended just after the rows were read.
    snapshot = read_snapshot(services, job_id)
    progress = progress_of(snapshot)
    if progress.complete:
        return JobStatus(progress, array, True, snapshot=snapshot)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(array.counts().items()))
    left = format_count(progress.unfinished_tasks, "unfinished task")
    problem = f"no worker of {named(ids_of(arrays))} is left ({counts}) for {left}; "
    if canceller := cancelled_by(services.jobs(job_id), of_last):
        problem += f"{canceller} cancelled the workers; to continue: slurmctl resume {job_id}"
    else:
        # A worker that died at its start has no log lines, but Slurm has its output.
        ends = reasons_of(element.exit_code for element in array.elements.values())
        problem += f"{ends}; " if ends else ""
        output = f"slurmctl logs {job_id} --worker {arrays[-1].slurm_job_id}_0 --output"
        problem += f"to see why: slurmctl logs {job_id} --errors, or {output}; "
        problem += "to continue: submit the job again"
    return JobStatus(progress, array, False, problem, workers_gone=True, snapshot=snapshot)


def _recent(services: Services, job_id: JobId) -> Snapshot:
    """The job's snapshot, shared by the tasks that wait for it in this process."""
    if services.shared is None:
        return read_snapshot(services, job_id)
    # Half an interval: so what a waiting task gets is at most 1.5 intervals old.
    recent: TTLCache[Snapshot] = services.shared.progress
    max_age_s = min(_SHARED_S, services.poll_s / 2)
    return recent.get(job_id, max_age_s, lambda: read_snapshot(services, job_id))


def _never_submitted(services: Services, job_id: JobId, intent: SubmissionRow | None) -> str:
    """Why waiting is useless, where a submit was interrupted and not continued."""
    if intent is not None and intent.state is SubmitState.SUBMITTED:
        return "the job was cancelled before Slurm had its workers; submit it again to continue"
    job = services.jobs(job_id).get()
    since_ms = intent.intent_ms if intent else job.created_ms
    if job.state is JobState.PLANNING or services.clock.now() < since_ms / 1000 + _GRACE_S:
        return ""
    return "no array was submitted for the planned tasks; submit the job again to continue"


def _is_under_way(services: Services, submission: SubmissionRow | None) -> bool:
    """Whether a submitter may be between a submission's intent and its ``sbatch``."""
    return (
        submission is not None
        and submission.state is SubmitState.INTENT
        and not submission.refused
        and services.clock.now() < submission.intent_ms / 1000 + _GRACE_S
    )


def of_round(submissions: Iterable[SubmissionRow], number: int) -> list[SubmissionRow]:
    """The submissions of one round."""
    return [submission for submission in submissions if submission.round_no == number]


def open_round_of(job: JobRow, rounds: Iterable[RoundRow]) -> RoundRow | None:
    """The latest round that is planned and open for work."""
    found = (row for row in rounds if row.number < job.rounds and row.state is RoundState.OPEN)
    return max(found, key=lambda row: row.number, default=None)


def tasks_of(round_row: RoundRow) -> int:
    """The number of a round's tasks, with those that it puts back."""
    return round_row.tasks + sum(round_row.tasks_back.values())


def blocked_reason(job: JobRow) -> str:
    """Why the job waits for a resume; empty where it does not."""
    if job.paused:
        return f"is paused by {job.paused}"
    return f"is stopped: {job.stop}" if job.stop else ""


def check_running(job: JobRow) -> None:
    """Raise a UserError, which names what resumes it, for a job that is paused or stopped."""
    if why := blocked_reason(job):
        raise UserError(f"job_id: {job.job!r} {why}; resume it first: slurmctl resume {job.job}")


def current_arrays(submissions: Iterable[SubmissionRow]) -> set[str]:
    """The arrays of the last submission that replaced workers, and of the later ones."""
    made = (submission for submission in submissions if submission.slurm_job_ids)
    by_time = sorted(made, key=lambda row: (row.round_no, row.number))
    needed = [number for number, row in enumerate(by_time) if not row.requested]
    return {array for row in by_time[needed[-1] if needed else 0 :] for array in row.slurm_job_ids}


def latest(submissions: list[SubmissionRow]) -> SubmissionRow | None:
    """The submission of the highest round and number."""
    return max(submissions, key=lambda row: (row.round_no, row.number), default=None)


def cancelled_by(jobs: JobTable, submissions: list[SubmissionRow]) -> str:
    """Who has cancelled the workers since the last were submitted; empty if nobody has."""
    last = latest(submissions)
    if last is None or not last.empty:
        return ""
    cancelled = [event.actor for event in jobs.events() if event.action == "cancelled"]
    return cancelled[-1] if cancelled else "somebody"


def progress_of(snapshot: Snapshot) -> Progress:
    """The progress that a snapshot shows."""
    # An item that is tried again in a later round no longer counts as failed in its first.
    failed = Counter(snapshot.done.failed)
    for round_row in snapshot.rounds:
        failed.subtract(round_row.retried)
    return Progress(
        job_id=snapshot.job.job,
        state=snapshot.job.state,
        rounds=snapshot.job.rounds,
        tasks=snapshot.tasks,
        items=sum(round_row.new_items for round_row in snapshot.rounds),
        ok=snapshot.done.ok,
        failed={name: count for name, count in sorted(failed.items()) if count},
        rows=snapshot.done.rows,
        task_errors=dict(Counter(row.error_class for row in snapshot.ended)),
        stop=snapshot.job.stop,
        paused=snapshot.job.paused,
    )
