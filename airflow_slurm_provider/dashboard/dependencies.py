"""What routes depend on: the user, the actor, and the cached queries of the named site."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request

from airflow_slurm_provider.dashboard.auth import Guard, User, check_csrf
from airflow_slurm_provider.dashboard.background_jobs import Runs
from airflow_slurm_provider.dashboard.cache import JobCache, SharedCache
from airflow_slurm_provider.dashboard.models import Problem
from airflow_slurm_provider.dashboard.sites import SitesSource


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


async def current_actor(request: Request) -> User:
    """The user of an action, which a page of this dashboard has sent."""
    check_csrf(request)
    return await state_of(request).guard.actor(request)


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


Reader = Annotated[User, Depends(current_user)]
Actor = Annotated[User, Depends(current_actor)]
Site = Annotated[JobCache, Depends(job_cache)]
Job = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="The job's id.")]
Task = Annotated[str, Path(pattern=r"^[0-9]{3}-[0-9]{8}$", description="The task's id.")]

#: Errors of every route of the API, for its OpenAPI document.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request can't be done; the text has the reason."},
    401: {"model": Problem, "description": "The user is not known."},
    403: {"model": Problem, "description": "The user lacks the permission."},
    404: {"model": Problem, "description": "There is no such job, task or action."},
    422: {"model": Problem, "description": "A parameter is wrong; the text names the field."},
    503: {"model": Problem, "description": "A service can't be reached; the text names it."},
}
