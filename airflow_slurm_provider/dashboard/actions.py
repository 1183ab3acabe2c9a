"""The JSON API that acts. Each answer says what was done, and the audit trail says by whom.

Every action is safe to ask for again. A retry reads the job's failures, so it runs in a
thread (`background_jobs.py`) and is asked about by the job's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from airflow_slurm_provider.coordinator import api as verbs
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.submission.control import ControlResult
from airflow_slurm_provider.dashboard import models, views
from airflow_slurm_provider.dashboard.background_jobs import Run
from airflow_slurm_provider.dashboard.cache import JobCache
from airflow_slurm_provider.dashboard.dependencies import PROBLEMS, Actor, Job, Site, state_of
from slurm_worker.protocol.keys import JobId

router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.post("/jobs/{job}/retry/plan")
def plan_retry(
    site: Site,
    _actor: Actor,
    job: Job,
    ask: models.RetryAsk,
) -> models.RetryPlanView:
    """What a retry would do now; it does nothing."""
    job_id = _known(site, job)
    plan = verbs.plan_retry(site.services, job_id, _classes(ask))
    return models.RetryPlanView.model_validate(plan.to_dict())


@router.post("/jobs/{job}/retry", status_code=202)
def retry(
    request: Request, site: Site, actor: Actor, job: Job, ask: models.RetryAsk
) -> models.RunView:
    """Try failed items and tasks again in a new round; GET the same address for how it goes."""
    job_id = _known(site, job)
    classes = _classes(ask)

    def act(say: Callable[[str], None]) -> dict[str, Any]:
        try:
            done = verbs.retry(site.services, job_id, classes, log=say, actor=actor.name)
        finally:
            site.forget(job_id)
        return done.to_dict()

    # One retry of a job at a time: a second one would join the same round anyway.
    run, begun = state_of(request).runs.start(_name(site, job), act)
    return _run(run, begun=begun)


@router.get("/jobs/{job}/retry")
def get_retry(request: Request, site: Site, job: Job) -> models.RunView:
    """How the job's last retry that was asked for here goes."""
    run = state_of(request).runs.get(_name(site, job))
    if run is None:
        raise HTTPException(404, "no retry was asked for here lately; see the audit trail")
    return _run(run, begun=False)


@router.post("/jobs/{job}/pause")
def pause(site: Site, actor: Actor, job: Job) -> models.Done:
    """Have workers finish the task they hold and leave."""
    job_id = _known(site, job)
    steered = control.pause(site.services, job_id, actor=actor.name)
    done = "paused: workers finish the task they hold, and leave"
    was = f"nothing: the job is paused by {steered.paused} already"
    return _done(site, job_id, done if steered.changed else was, steered.to_dict())


@router.post("/jobs/{job}/resume")
def resume(site: Site, actor: Actor, job: Job) -> models.Done:
    """Undo a pause, reset a breaker, and replace the workers that left."""
    job_id = _known(site, job)
    said: list[str] = []
    steered = control.resume(site.services, job_id, log=said.append, actor=actor.name)
    done = f"resumed{_workers(steered)}"
    if not steered.changed and not steered.workers:
        done = "nothing: the job is neither paused nor stopped"
    return _done(site, job_id, done, {**steered.to_dict(), "said": said})


@router.post("/jobs/{job}/workers")
def add_workers(site: Site, actor: Actor, job: Job, ask: models.WorkersAsk) -> models.Done:
    """Submit more workers beside those that are at work, as far as there is work for them."""
    job_id = _known(site, job)
    said: list[str] = []
    steered = control.add_workers(
        site.services, job_id, ask.workers, log=said.append, actor=actor.name
    )
    done = f"added{_workers(steered)}" if steered.workers else "nothing was added"
    return _done(site, job_id, done, {**steered.to_dict(), "said": said})


@router.post("/jobs/{job}/cancel")
def cancel(site: Site, actor: Actor, job: Job) -> models.Done:
    """Cancel the job's arrays; what is committed stays, and submitting again goes on."""
    job_id = _known(site, job)
    cancelled = control.cancel(site.services, job_id, actor=actor.name)
    done = f"cancelled {', '.join(cancelled)}" if cancelled else "nothing: no array is alive"
    return _done(site, job_id, done, {"cancelled": cancelled})


def _known(site: JobCache, job: str) -> JobId:
    """The job's id, if there is such a job."""
    return site.snapshot(JobId(job)).job.job


def _classes(ask: models.RetryAsk) -> list[str] | None:
    return [name.value for name in ask.classes] or None


def _name(site: JobCache, job: str) -> str:
    return f"retry {job}" + (f" at {site.conn}" if site.conn else "")


def _workers(steered: ControlResult) -> str:
    arrays = ", ".join(steered.slurm_job_ids)
    return f": {steered.workers:,} workers in {arrays}" if steered.workers else ""


def _done(site: JobCache, job_id: JobId, done: str, detail: dict[str, Any]) -> models.Done:
    site.forget(job_id)
    return models.Done(done=done, detail=detail)


def _run(run: Run, *, begun: bool) -> models.RunView:
    return views.view(models.RunView, run, begun=begun)
