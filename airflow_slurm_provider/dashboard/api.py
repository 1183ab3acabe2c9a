"""The JSON API's queries. `cache.py` has the largest age of each answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request

from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.dashboard import models, pagination, views
from airflow_slurm_provider.dashboard.dependencies import PROBLEMS, Job, Reader, Site, Task
from airflow_slurm_provider.dashboard.task_logs import read_task_log
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.keys import JobId, TaskId, TaskState
from slurm_worker.protocol.tasks import TaskRow

#: Number of the newest jobs on the page of all anomalies.
_ANOMALY_JOBS = 20

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.get("/jobs")
def list_jobs(
    site: Site,
    offset: Annotated[int, Query(ge=0, le=1_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=50)] = 20,
) -> models.JobList:
    """Jobs and how far they are, the newest first."""
    found, more = site.newest(offset, limit)
    return models.JobList(
        jobs=[views.job_summary(snapshot) for snapshot in found], offset=offset, more=more
    )


@router.get("/jobs/{job}")
def get_job(site: Site, job: Job) -> models.JobDetail:
    """A job with everything that the table has on it."""
    job_id = JobId(job)
    return views.job_detail(site.snapshot(job_id), site.submissions(job_id), site.events(job_id))


@router.get("/jobs/{job}/workers")
def get_workers(site: Site, job: Job) -> models.Workers:
    """Workers as Slurm shows them, and what they have done; also when Slurm can't be reached."""
    job_id = JobId(job)
    snapshot = site.snapshot(job_id)
    problem, array = "", None
    try:
        array = site.arrays(job_id)
    except ServiceError as error:
        problem = " ".join(str(error).split())
    return models.Workers(
        known=array is not None and not array.unknown,
        problem=problem,
        alive=0 if array is None else array.alive,
        states={} if array is None else array.counts(),
        slurm_job_ids=[] if array is None else array.slurm_job_id.split(","),
        nodes=views.nodes(snapshot),
        workers=views.workers(snapshot),
        worker_count=len({*snapshot.done.workers, *views.held_by(snapshot)}),
    )


@router.get("/jobs/{job}/limits")
def get_limits(site: Site, job: Job) -> list[LimitState]:
    """The job's rate limits and how they are used."""
    job_id = JobId(job)
    site.snapshot(job_id)
    return site.limits(job_id)


@router.get("/jobs/{job}/cost")
def get_cost(site: Site, job: Job) -> models.Cost:
    """What the job has cost so far, and what would make it cheaper."""
    job_id = JobId(job)
    site.snapshot(job_id)
    return views.cost(site.cost(job_id))


@router.get("/jobs/{job}/failures")
def get_failures(site: Site, job: Job) -> list[models.FailureGroup]:
    """Failures by class and message. Reads the parts of failed items, so call it on demand."""
    groups = site.failures(JobId(job))
    return [models.FailureGroup.model_validate(group.to_dict()) for group in groups]


@router.get("/jobs/{job}/events", response_model=list[models.Event])
def get_events(
    site: Site, job: Job, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> list[AuditEvent]:
    """The audit log, the newest events first."""
    job_id = JobId(job)
    site.snapshot(job_id)
    return list(site.events(job_id)[: -limit - 1 : -1])


@router.get("/jobs/{job}/anomalies", response_model=list[models.Anomaly])
def get_job_anomalies(site: Site, job: Job) -> list[Alert]:
    """The job's alerts, the newest first."""
    job_id = JobId(job)
    site.snapshot(job_id)
    return site.alerts(job_id)[::-1]


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
    """A page of tasks, shard by shard."""
    snapshot = site.snapshot(JobId(job))
    return pagination.page_of_tasks(site.services, snapshot, state, after, limit)


@router.get("/jobs/{job}/tasks/{task}")
def get_task(site: Site, job: Job, task: Task) -> models.TaskDetail:
    """A task's row, its history, and what it committed."""
    job_id = JobId(job)
    row = _task_row(site, job_id, task)
    segment = site.services.paths(job_id).segment(row.round_no, row.where.segment)
    return views.task_detail(row, site.services.store(job_id).marker(row.task), segment)


@router.get("/jobs/{job}/tasks/{task}/log")
def get_task_log(site: Site, job: Job, task: Task) -> models.LogLines:
    """The log lines about a task. Reads the workers' logs, so call it on demand."""
    job_id = JobId(job)
    return read_task_log(site.services, job_id, _task_row(site, job_id, task))


@router.get("/openapi.json", include_in_schema=False)
def get_openapi(request: Request, _user: Reader) -> dict[str, object]:
    """This API as an OpenAPI document."""
    document: dict[str, object] = request.app.openapi()
    return document


def _task_row(site: Site, job_id: JobId, task: str) -> TaskRow:
    site.snapshot(job_id)
    row = site.services.tasks(site.services.jobs(job_id).get()).find(TaskId(task))
    if row is None:
        raise HTTPException(404, f"task: {job_id!r} has no task {task!r}")
    return row
