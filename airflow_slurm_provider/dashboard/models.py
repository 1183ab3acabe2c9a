"""What the JSON API answers, and what it is asked with.

Names are stable. Times are in milliseconds since the epoch unless they say otherwise. A rate
limit is answered as it is read: `coordinator.limits.LimitState`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_slurm_provider.coordinator.status.progress import Standing
from slurm_worker.errors import ErrorClass


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request failed, in one line."""

    detail: str


class JobSummary(BaseModel):
    """A job and how far it is.

    `items` counts those of the input; each is one of `ok`, `failed` and `pending`.
    `running_items` of the pending ones are finished in tasks that are not.
    """

    job_id: str
    state: Standing
    stop: str = Field(description="Why its breaker is tripped; empty where it isn't.")
    paused: str = Field(description="Who paused it; empty where nobody has.")
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
    rate: float = Field(description="Items a second, of late.")
    eta_s: int | None = Field(description="Seconds that are left at this rate; null if unknown.")


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobSummary]
    offset: int
    more: bool


class Round(BaseModel):
    """Tasks that were planned together."""

    number: int
    state: str
    source: str
    tasks: int
    items: int
    retried: dict[str, int] = Field(description="Its items by the class they had failed with.")
    tasks_back: dict[str, int] = Field(description="Failed tasks that it put back, by class.")
    slurm: dict[str, str] = Field(description="Options that its array has of its own.")
    created_ms: int
    opened_ms: int


class Submission(BaseModel):
    """Workers that were submitted together."""

    round: int
    number: int
    state: str
    workers: int
    slurm_job_ids: list[str]
    intent_ms: int
    submitted_ms: int


class Phase(BaseModel):
    """A stretch of the job's life; `end_ms` is null where it lasts."""

    name: str
    start_ms: int
    end_ms: int | None


class TaskTimes(BaseModel):
    """How long tasks took."""

    median_ms: float
    p95_ms: float
    p99_ms: float


class Slow(BaseModel):
    """A task that took long."""

    task: str
    took_ms: int
    worker: str
    node: str


class Event(BaseModel):
    """One line of the audit trail."""

    at_ms: int
    actor: str
    action: str
    detail: dict[str, Any]


class Timeline(BaseModel):
    """What was done over time: column by column, a row per bucket of `width_s` seconds."""

    width_s: int
    start_s: list[int]
    ok: list[int]
    tasks: list[int]
    failed: dict[str, list[int]] = Field(description="By error class.")


class JobDetail(BaseModel):
    """A job with all that its rows in the table say."""

    job: JobSummary
    at_ms: int
    rounds: list[Round]
    submissions: list[Submission]
    phases: list[Phase]
    times: TaskTimes
    slowest: list[Slow]
    lost: int = Field(description="Leases that were lost so far.")
    anomalies: int = Field(description="Alerts so far.")
    requests: dict[str, int] = Field(description="Workers' requests to AWS by kind.")
    timeline: Timeline


class ShareRow(BaseModel):
    """What a node or a worker has done."""

    name: str
    tasks: int
    ok: int
    failed: int
    busy_ms: int
    error_rate: float
    leased: int = Field(description="Tasks that it holds.")


class Workers(BaseModel):
    """Workers as Slurm shows them, and what nodes and workers have done."""

    known: bool = Field(description="Whether Slurm could tell.")
    problem: str = Field(description="Why it couldn't; empty where it could.")
    alive: int
    states: dict[str, int] = Field(description="Elements of the arrays by Slurm's state.")
    slurm_job_ids: list[str]
    nodes: list[ShareRow]
    workers: list[ShareRow]
    worker_count: int = Field(description="All workers; `workers` are the most notable ones.")


class CostLine(BaseModel):
    """Requests to AWS of one kind."""

    kind: str
    requests: int
    dollars: float


class ClusterUse(BaseModel):
    """CPU time and memory that Slurm gave and workers used; null where it can't be told yet."""

    starts: int
    running: int
    cpu_hours_allocated: float
    cpu_hours_used: float
    cpu_efficiency: float | None
    memory_bytes_given: int
    memory_bytes_used: int
    memory_efficiency: float | None


class Cost(BaseModel):
    """What a job has cost so far; see `slurmctl cost`."""

    dollars: float = Field(description="Of AWS requests, counted and estimated, by list price.")
    dollars_expected: float = Field(description="Where no task is tried twice.")
    prices_of: str
    region: str
    lines: list[CostLine]
    cluster: ClusterUse | None
    problem: str = Field(description="Why the cluster's part is not known.")
    advice: list[str]


class FailureExample(BaseModel):
    """One item, or task, that failed."""

    key: str
    message: str


class FailureGroup(BaseModel):
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


class TaskSummary(BaseModel):
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


class TaskList(BaseModel):
    """A page of tasks; `next` goes on, and is empty at the end."""

    tasks: list[TaskSummary]
    next: str


class Part(BaseModel):
    """A result object of a task."""

    key: str
    kind: str
    size: int
    sha256: str


class MarkerView(BaseModel):
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


class HistoryLine(BaseModel):
    """One entry of a task's history."""

    at_ms: int
    text: str


class TaskDetail(BaseModel):
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
    crashes: list[str] = Field(description="Items that brought a worker down.")
    history: list[HistoryLine] = Field(description="Why attempts ended before the task.")
    segment: str
    marker: MarkerView | None


class LogLines(BaseModel):
    """What workers said of a task."""

    lines: list[str]
    more: bool = Field(description="Whether there are more than are shown.")


class Anomaly(BaseModel):
    """One alert, with the numbers that caused it; told once per episode."""

    job_id: str
    id: str
    kind: str
    subject: str = Field(description="The error class, task, node or limit that it is about.")
    message: str
    advice: str
    numbers: dict[str, float]
    at_ms: int
    over_ms: int = Field(description="When its episode was over; 0 while it lasts.")


class RetryAsk(_Asked):
    """Which failures to try again; by the job's retry policy where no class is named."""

    classes: Annotated[list[ErrorClass], Field(max_length=len(ErrorClass))] = []


class RetryPlanView(BaseModel):
    """What a retry would do."""

    round: int | None = Field(description="The new round; null where nothing is to be retried.")
    items: dict[str, int]
    tasks: dict[str, int]
    given_up: dict[str, int]
    missing: int
    slurm: dict[str, str]
    delay_s: int
    notes: list[str]


class RunView(BaseModel):
    """An action that takes long."""

    name: str
    state: Literal["running", "done", "failed"]
    begun: bool = Field(description="False where it ran already and was joined.")
    said: list[str]
    result: dict[str, Any]
    error: str


class WorkersAsk(_Asked):
    """How many workers to add."""

    workers: Annotated[int, Field(ge=1, le=10_000)]


class Done(BaseModel):
    """What an action did."""

    done: str
    detail: dict[str, Any] = {}
