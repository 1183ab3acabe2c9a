"""Answers and requests of the JSON API.

Names are stable. Times are in milliseconds since the epoch unless stated otherwise. A rate
limit is a `coordinator.status.rate_limits.LimitState`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_slurm_provider.coordinator.status.progress import SummaryState
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_store import Part
from slurm_worker.protocol.job_totals import SlowTask


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Answer(BaseModel):
    #: Nested rows and dataclasses are read by the names of their attributes.
    model_config = ConfigDict(from_attributes=True)


class Problem(_Answer):
    """Why a request failed, in one line."""

    detail: str


class JobSummary(_Answer):
    """A job and its progress.

    `items` counts those of the input; each is one of `ok`, `failed` and `pending`.
    `running_items` of the pending ones are finished in tasks that are not.
    """

    job_id: str
    state: SummaryState
    stop: str = Field(description="Why the job is stopped; empty where it is not.")
    paused: str = Field(description="The user who paused it; empty where it is not paused.")
    created_ms: int
    rounds: int
    items: int
    ok: int
    failed: dict[str, int] = Field(description="Failed items by error class.")
    pending: int
    running_items: int
    rows: int = Field(description="Rows that the handler returned.")
    tasks: dict[str, int] = Field(description="Tasks by state.")
    task_errors: dict[str, int] = Field(description="Tasks that were given up, by error class.")
    rate: float = Field(description="Items a second in the last minutes.")
    eta_s: int | None = Field(description="Seconds left at this rate; null if unknown.")


class JobList(_Answer):
    """Jobs, the newest first."""

    jobs: list[JobSummary]
    offset: int
    more: bool


class Round(_Answer):
    """A round: tasks that were planned together."""

    number: int
    state: str
    source: str
    tasks: int
    items: int
    retried: dict[str, int] = Field(description="Retried items by their former error class.")
    tasks_back: dict[str, int] = Field(description="Failed tasks that were put back, by class.")
    slurm: dict[str, str] = Field(description="The array's own Slurm options.")
    created_ms: int
    opened_ms: int


class Submission(_Answer):
    """Workers that were submitted together."""

    round: int = Field(validation_alias="round_no")
    number: int
    state: str
    workers: int
    slurm_job_ids: list[str]
    intent_ms: int
    submitted_ms: int


class Phase(_Answer):
    """A stretch of the job's life; `end_ms` is null where it lasts."""

    name: str
    start_ms: int
    end_ms: int | None


class TaskTimes(_Answer):
    """How long tasks took."""

    median_ms: float
    p95_ms: float
    p99_ms: float


class Event(_Answer):
    """One event of the audit log."""

    at_ms: int
    actor: str
    action: str
    detail: dict[str, Any]


class TimelineView(_Answer):
    """What was done over time: column by column, a row per bucket of `width_s` seconds."""

    width_s: int
    start_s: list[int]
    ok: list[int]
    tasks: list[int]
    failed: dict[str, list[int]] = Field(description="By error class.")


class JobDetail(_Answer):
    """A job with everything that the table has on it."""

    job: JobSummary
    at_ms: int
    rounds: list[Round]
    submissions: list[Submission]
    phases: list[Phase]
    times: TaskTimes
    slowest: list[SlowTask]
    lost: int = Field(description="Leases that were lost so far.")
    anomalies: int = Field(description="Alerts so far.")
    requests: dict[str, int] = Field(description="Workers' requests to AWS by kind.")
    timeline: TimelineView


class ShareRow(_Answer):
    """What one node or worker has done."""

    name: str
    tasks: int
    ok: int
    failed: int
    busy_ms: int
    error_rate: float
    leased: int = Field(description="Tasks that it holds now.")


class WorkersView(_Answer):
    """Workers as Slurm shows them, and what nodes and workers have done."""

    known: bool = Field(description="Whether Slurm has answered.")
    problem: str = Field(description="Why not; empty where it has.")
    alive: int
    states: dict[str, int] = Field(description="Elements of the arrays by Slurm's state.")
    slurm_job_ids: list[str]
    nodes: list[ShareRow]
    workers: list[ShareRow]
    worker_count: int = Field(description="All workers; `workers` are the most notable ones.")


class CostLine(_Answer):
    """Requests to AWS of one kind."""

    kind: str
    requests: int
    dollars: float


class ClusterUse(_Answer):
    """CPU time and memory that Slurm gave and workers used; null where not known yet."""

    starts: int
    running: int
    cpu_hours_allocated: float
    cpu_hours_used: float
    cpu_efficiency: float | None
    memory_bytes_given: int
    memory_bytes_used: int
    memory_efficiency: float | None


class Cost(_Answer):
    """What a job has cost so far; see `slurmctl cost`."""

    dollars: float = Field(description="AWS requests, counted and estimated, at list prices.")
    dollars_expected: float = Field(description="The same if no task is tried twice.")
    prices_of: str
    region: str
    lines: list[CostLine]
    cluster: ClusterUse | None
    problem: str = Field(description="Why the use of the cluster is not known.")
    advice: list[str]


class FailureExample(_Answer):
    """One item, or task, that failed."""

    key: str
    message: str


class FailureGroupView(_Answer):
    """Failures of one class whose messages differ only in numbers and names."""

    of: Literal["item", "task"]
    error_class: str
    message: str
    count: int
    superseded: int = Field(description="Further ones that were tried again since.")
    examples: list[FailureExample]
    nodes: dict[str, int]
    first: float = Field(description="Seconds since the epoch; 0 where unknown.")
    last: float


class TaskSummary(_Answer):
    """A task in a list."""

    task: str
    state: str
    items: int
    ok: int
    failed: int
    attempt: int
    lost: int
    worker: str
    node: str
    started_ms: int
    took_ms: int
    error_class: str
    error: str


class TaskList(_Answer):
    """A page of tasks; `next` is the next page's `after`, and empty at the end."""

    tasks: list[TaskSummary]
    next: str


class MarkerView(_Answer):
    """What was committed."""

    attempt: int
    worker: str
    node: str
    rows: int
    ok: int
    failed: dict[str, int]
    parts: list[Part]
    started_ms: int
    finished_ms: int
    split: list[str] = Field(description="The halves of a task that was bisected.")
    requests: dict[str, int]


class HistoryLine(_Answer):
    """One entry of a task's history."""

    at_ms: int
    text: str


class TaskDetail(_Answer):
    """A task: its row, its history, and what it committed."""

    task: TaskSummary
    round: int
    tries: int
    reopened: int
    failed_by: dict[str, int]
    rows: int
    lease_until_ms: int
    not_before_ms: int
    finished_ms: int
    checkpoint: str
    crashes: list[str] = Field(description="Items that crashed a worker.")
    history: list[HistoryLine] = Field(description="Why earlier attempts ended without a result.")
    segment: str
    marker: MarkerView | None


class LogLines(_Answer):
    """Log lines about a task."""

    lines: list[str]
    more: bool = Field(description="Whether there are more lines than these.")


class Anomaly(_Answer):
    """One alert, with the numbers that caused it; one per episode."""

    job_id: str
    id: str
    kind: str
    subject: str = Field(description="The error class, task, node or limit that it is about.")
    message: str
    advice: str
    numbers: dict[str, float]
    at_ms: int
    over_ms: int = Field(description="When its episode ended; 0 while it lasts.")


class RetryBody(_Body):
    """The classes to retry; without any, the job's retry policy decides."""

    classes: Annotated[list[ErrorClass], Field(max_length=len(ErrorClass))] = []

    def names(self) -> list[str] | None:
        """The classes; None where the policy decides."""
        return [error_class.value for error_class in self.classes] or None


class RetryPlanView(_Answer):
    """What a retry would do."""

    round: int | None = Field(description="The new round; null where there is nothing to retry.")
    items: dict[str, int]
    tasks: dict[str, int]
    given_up: dict[str, int]
    missing: int
    slurm: dict[str, str]
    delay_s: int
    notes: list[str]


class WorkersBody(_Body):
    """How many workers to add."""

    workers: Annotated[int, Field(ge=1, le=10_000)]


class Done(_Answer):
    """What an action did."""

    done: str
    detail: dict[str, Any] = {}
