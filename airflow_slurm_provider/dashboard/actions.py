"""The JSON API's actions. Each answer reports what was done; the audit log has the user's name.

Every action can be repeated safely. A retry reads the job's failures, so it runs in a thread
(`background_jobs.py`), and its state is read by the job's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from airflow_slurm_provider.coordinator import api as verbs
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.submission.control import ControlResult
from airflow_slurm_provider.dashboard import models
from airflow_slurm_provider.dashboard.background_jobs import Run
from airflow_slurm_provider.dashboard.cache import JobCache
from airflow_slurm_provider.dashboard.dependencies import (
    PROBLEMS,
    Actor,
    Job,
    JobName,
    Site,
    state_of,
)
from slurm_worker.protocol.keys import JobId

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.post("/jobs/{job}/retry/plan")
def plan_retry(site: Site, _actor: Actor, job: Job, body: models.RetryBody) -> models.RetryPlanView:
    """What a retry would do now. It changes nothing."""
    plan = verbs.plan_retry(site.services, job, body.names())
    return models.RetryPlanView.model_validate(plan.to_dict())


@router.post("/jobs/{job}/retry", status_code=202)
def retry(request: Request, site: Site, actor: Actor, job: Job, body: models.RetryBody) -> Run:
    """Try failed items and tasks again in a new round; GET the same address for its state."""

    def act(log: Callable[[str], None]) -> dict[str, Any]:
        try:
            done = verbs.retry(site.services, job, body.names(), log=log, actor=actor.name)
        finally:
            site.forget(job)
        return done.to_dict()

    # One retry of a job at a time: a second one would join the same round anyway.
    return state_of(request).runs.start(_name(site, job), act)


@router.get("/jobs/{job}/retry")
def get_retry(request: Request, site: Site, job: JobName) -> Run:
    """The state of the job's last retry that was started here."""
    run = state_of(request).runs.get(_name(site, job))
    if run is None:
        raise HTTPException(404, "no retry was started here in the last hour; see the audit log")
    return run


@router.post("/jobs/{job}/pause")
def pause(site: Site, actor: Actor, job: Job) -> models.Done:
    """Pause the job: workers finish their current task, then exit."""
    result = control.pause(site.services, job, actor=actor.name)
    done = "paused: workers finish their current task, then exit"
    unchanged = f"nothing changed: the job is already paused by {result.paused}"
    return _done(site, job, done if result.changed else unchanged, result.to_dict())


@router.post("/jobs/{job}/resume")
def resume(site: Site, actor: Actor, job: Job) -> models.Done:
    """Undo a pause or a stop, and submit new workers for those that have exited."""
    said: list[str] = []
    result = control.resume(site.services, job, log=said.append, actor=actor.name)
    done = f"resumed{_workers(result)}"
    if not result.changed and not result.workers:
        done = "nothing changed: the job is neither paused nor stopped"
    return _done(site, job, done, {**result.to_dict(), "said": said})


@router.post("/jobs/{job}/workers")
def add_workers(site: Site, actor: Actor, job: Job, body: models.WorkersBody) -> models.Done:
    """Submit more workers beside the running ones, at most as many as there is work for."""
    said: list[str] = []
    log = said.append
    result = control.add_workers(site.services, job, body.workers, log=log, actor=actor.name)
    done = f"added{_workers(result)}" if result.workers else "no workers were added"
    return _done(site, job, done, {**result.to_dict(), "said": said})


@router.post("/jobs/{job}/cancel")
def cancel(site: Site, actor: Actor, job: Job) -> models.Done:
    """Cancel the job's arrays; committed results stay, and a new submit continues the job."""
    arrays = control.cancel(site.services, job, actor=actor.name)
    unchanged = "nothing changed: no array is running or waiting"
    done = f"cancelled {', '.join(arrays)}" if arrays else unchanged
    return _done(site, job, done, {"cancelled": arrays})


def _name(site: JobCache, job: JobId) -> str:
    return f"retry {job}" + (f" at {site.conn}" if site.conn else "")


def _workers(result: ControlResult) -> str:
    arrays = ", ".join(result.slurm_job_ids)
    return f": {result.workers:,} workers in {arrays}" if result.workers else ""


def _done(site: JobCache, job: JobId, done: str, detail: dict[str, Any]) -> models.Done:
    site.forget(job)
    return models.Done(done=done, detail=detail)
