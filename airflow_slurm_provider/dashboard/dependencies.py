"""What routes depend on: the user, the actor, and the cached queries of the named site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, HTTPException, Path, Query, Request

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.dashboard.auth import Guard, User, check_csrf
from airflow_slurm_provider.dashboard.background_jobs import Runs
from airflow_slurm_provider.dashboard.cache import JobCache, SharedCache
from airflow_slurm_provider.dashboard.models import Problem
from slurm_worker.protocol.keys import JobId, TaskId


class SitesSource(Protocol):
    """Gives services to requests, which name a site by ``?conn=``."""

    def names(self) -> Sequence[str]:
        """What ``?conn=`` may be, the default first; the choice is shown where there are two."""

    def services(self, conn: str) -> Services:
        """The services of a site, one of `names`; of the default where empty.

        They are the same ones as long as possible, because they cache snapshots. They are shared
        between threads, and nobody closes them.

        Raises:
            UserError: if there is no such site, or its settings are wrong.
        """


@dataclass(frozen=True, slots=True)
class State:
    """What the application keeps."""

    sites: SitesSource
    guard: Guard
    cache: SharedCache = field(default_factory=SharedCache)
    runs: Runs = field(default_factory=Runs)


def state_of(request: Request) -> State:
    """The application's."""
    state: State = request.app.state.dashboard
    return state


async def current_user(request: Request) -> User:
    """The user; every route depends on it."""
    return await state_of(request).guard.user(request)


async def current_actor(request: Request, user: Reader) -> User:
    """The user of an action, which a page of this dashboard has sent."""
    check_csrf(request)
    if user.refusal:
        raise HTTPException(403, user.refusal)
    return user


def job_cache(
    request: Request,
    _user: Reader,
    conn: Annotated[
        str, Query(max_length=250, description="The site; the default where empty.")
    ] = "",
) -> JobCache:
    """The request's cached queries."""
    state = state_of(request)
    return JobCache(conn, state.sites.services(conn), state.cache)


def known_job(site: Site, job: JobName) -> JobId:
    """The job's id; 404 where there is no such job."""
    return site.snapshot(job).job.job


Reader = Annotated[User, Depends(current_user)]
Actor = Annotated[User, Depends(current_actor)]
Site = Annotated[JobCache, Depends(job_cache)]
JobName = Annotated[JobId, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="A job's id.")]
Job = Annotated[JobId, Depends(known_job)]
Task = Annotated[TaskId, Path(pattern=r"^[0-9]{3}-[0-9]{8}$", description="A task's id.")]

#: Errors of every route of the API, for its OpenAPI document.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request can't be done; the text has the reason."},
    401: {"model": Problem, "description": "The user is not known."},
    403: {"model": Problem, "description": "The user lacks the permission."},
    404: {"model": Problem, "description": "There is no such job, task or action."},
    422: {"model": Problem, "description": "A parameter is wrong; the text names the field."},
    503: {"model": Problem, "description": "A service can't be reached; the text names it."},
}
