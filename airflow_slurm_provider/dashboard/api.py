"""The JSON API's queries. `cache.py` has the largest age of each answer."""

from __future__ import annotations

import itertools
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request

from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.logs import Selection, as_text, read_logs
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import models, views
from airflow_slurm_provider.dashboard.dependencies import PROBLEMS, Job, Reader, Site, Task
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.keys import TaskId, TaskState, shard_of
from slurm_worker.protocol.tasks import TaskRow

#: Number of the newest jobs on the page of all anomalies.
_ANOMALY_JOBS = 20
_MOST_LOG_LINES = 1_000
#: Queries of the table for one page of tasks at most, however few rows match, and rows of each.
_MOST_QUERIES = 8
_ROWS_PER_QUERY = 250
_IN_SNAPSHOT = {TaskState.LEASED, TaskState.FAILED, TaskState.QUARANTINED}

router = APIRouter(prefix="/api", responses=PROBLEMS)


def task_of(site: Site, job: Job, task: Task) -> TaskRow:
    """The task's row; 404 where the job has no such task."""
    row = site.services.tasks(site.services.jobs(job).get()).find(TaskId(task))
    if row is None:
        raise HTTPException(404, f"task: {job!r} has no task {task!r}")
    return row


Row = Annotated[TaskRow, Depends(task_of)]


@router.get("/jobs")
def list_jobs(
    site: Site,
    offset: Annotated[int, Query(ge=0, le=1_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=50)] = 20,
) -> models.JobList:
    """Jobs and how far they are, the newest first."""
    found, more = site.newest(offset, limit)
    jobs = [views.job_summary(snapshot) for snapshot in found]
    return models.JobList(jobs=jobs, offset=offset, more=more)


@router.get("/jobs/{job}")
def get_job(site: Site, job: Job) -> models.JobDetail:
    """A job with everything that the table has on it."""
    return views.job_detail(site.snapshot(job), site.submissions(job), site.events(job))


@router.get("/jobs/{job}/workers")
def get_workers(site: Site, job: Job) -> models.WorkersView:
    """Workers as Slurm shows them, and what they have done; also when Slurm can't be reached."""
    snapshot, problem, array = site.snapshot(job), "", None
    try:
        array = site.arrays(job)
    except ServiceError as error:
        problem = " ".join(str(error).split())
    return views.workers(snapshot, array, problem)


@router.get("/jobs/{job}/limits")
def get_limits(site: Site, job: Job) -> list[LimitState]:
    """The job's rate limits and how they are used."""
    return site.limits(job)


@router.get("/jobs/{job}/cost")
def get_cost(site: Site, job: Job) -> models.Cost:
    """What the job has cost so far, and what would make it cheaper."""
    return views.cost(site.cost(job))


@router.get("/jobs/{job}/failures")
def get_failures(site: Site, job: Job) -> list[models.FailureGroupView]:
    """Failures by class and message. Reads the parts of failed items, so call it on demand."""
    return [models.FailureGroupView.model_validate(group.to_dict()) for group in site.failures(job)]


@router.get("/jobs/{job}/events", response_model=list[models.Event])
def get_events(
    site: Site, job: Job, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> list[AuditEvent]:
    """The audit log, the newest events first."""
    return list(site.events(job)[: -limit - 1 : -1])


@router.get("/jobs/{job}/anomalies", response_model=list[models.Anomaly])
def get_job_anomalies(site: Site, job: Job) -> list[Alert]:
    """The job's alerts, the newest first."""
    return site.alerts(job)[::-1]


@router.get("/anomalies", response_model=list[models.Anomaly])
def list_anomalies(site: Site) -> list[Alert]:
    """The alerts of the newest jobs, the newest first."""
    found, _ = site.newest(0, _ANOMALY_JOBS)
    alerts = [alert for snapshot in found for alert in site.alerts(snapshot.job.job)]
    return sorted(alerts, key=lambda alert: -alert.at_ms)


@router.get("/jobs/{job}/tasks")
def list_tasks(
    site: Site,
    job: Job,
    state: TaskState | None = None,
    after: Annotated[
        str, Query(pattern=r"^$|^[0-9]{1,3}:(|[0-9]{3}#[0-9]{8})$", description="A page's `next`.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> models.TaskList:
    """A page of tasks: a shard's in order, then the next shard's.

    Those that failed or are held come out of the job's snapshot, others by queries of the table.
    """
    snapshot, (shard, _, sk) = site.snapshot(job), after.partition(":")
    place = (int(shard or 0), sk)
    if state in _IN_SNAPSHOT:
        rows, following = _tasks_of_snapshot(snapshot, state, place, limit)
    else:
        rows, following = _tasks_of_table(site.services, snapshot, state, place, limit)
    return models.TaskList(tasks=[views.task_summary(row) for row in rows], next=following)


@router.get("/jobs/{job}/tasks/{task}")
def get_task(site: Site, job: Job, row: Row) -> models.TaskDetail:
    """A task's row, its history, and what it committed."""
    segment = site.services.paths(job).segment(row.round_no, row.where.segment)
    return views.task_detail(row, site.services.store(job).marker(row.task), segment)


@router.get("/jobs/{job}/tasks/{task}/log")
def get_task_log(site: Site, job: Job, row: Row) -> models.LogLines:
    """The log lines about a task, worker by worker, those of the latest one last.

    Reads the logs of the workers that have held it, so call it on demand: for each a list per
    thousand chunks of the job's logs, and a GET for each chunk of its own.
    """
    lines = (
        as_text(line)
        for worker in workers_of(row)
        for line in read_logs(site.services, job, Selection(task=row.task, worker=worker))
    )
    found = list(itertools.islice(lines, _MOST_LOG_LINES + 1))
    return models.LogLines(lines=found[:_MOST_LOG_LINES], more=len(found) > _MOST_LOG_LINES)


@router.get("/openapi.json", include_in_schema=False)
def get_openapi(request: Request, _user: Reader) -> dict[str, object]:
    """This API as an OpenAPI document."""
    document: dict[str, object] = request.app.openapi()
    return document


def workers_of(row: TaskRow) -> list[str]:
    """The workers that are known to have held the task, in that order."""
    named = [name for entry in row.history for name in (entry.worker, entry.previous)]
    return list(dict.fromkeys(name for name in (*named, row.owner, row.worker) if name))


def _tasks_of_snapshot(
    snapshot: Snapshot, state: TaskState | None, after: tuple[int, str], limit: int
) -> tuple[list[TaskRow], str]:
    """A page of tasks, and the next page's `after`; empty at the end."""
    places = {
        (shard_of(row.sequence, snapshot.job.shards), row.sk): row
        for row in (*snapshot.leased, *snapshot.ended)
        if row.state is state
    }
    left = sorted(place for place in places if place > after)
    shard, sk = left[limit - 1] if len(left) > limit else ("", "")
    return [places[place] for place in left[:limit]], f"{shard}:{sk}" if sk else ""


def _tasks_of_table(
    services: Services,
    snapshot: Snapshot,
    state: TaskState | None,
    after: tuple[int, str],
    limit: int,
) -> tuple[list[TaskRow], str]:
    """As `_tasks_of_snapshot`."""
    table = services.tasks(snapshot.job)
    shard, sk = after
    found: list[TaskRow] = []
    size = limit + 1 if state is None else _ROWS_PER_QUERY
    for _ in range(_MOST_QUERIES):
        rows = table.page(shard, sk, size)
        for row in rows:
            sk = row.sk
            if state in (None, row.state):
                found.append(row)
            if len(found) == limit:
                return found, f"{shard}:{sk}"
        if len(rows) < size:
            shard, sk = shard + 1, ""
        if shard >= snapshot.job.shards:
            return found, ""
    return found, f"{shard}:{sk}"
