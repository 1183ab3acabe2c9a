"""The pages: frames that a browser gets at once, and fills from the JSON API.

Links are made from the path below which the application is mounted (``root_path``), so that
they hold alone and below Airflow's.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape

from airflow_slurm_provider.dashboard.auth import CSRF_COOKIE, User, csrf_token
from airflow_slurm_provider.dashboard.cache import NoSuchJobError
from airflow_slurm_provider.dashboard.dependencies import JobName, Reader, Site, Task, state_of
from slurm_worker.errors import ErrorClass, ServiceError
from slurm_worker.protocol.keys import JobId

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

_templates = Environment(
    loader=PackageLoader("airflow_slurm_provider.dashboard"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
_ROOT = "slurm_dashboard_root"
_API = ("/api/", "/metrics", "/static/")


@router.get("/")
def jobs_page(request: Request, user: Reader) -> Response:
    """All jobs."""
    return _page(request, user, "jobs.html")


@router.get("/anomalies")
def anomalies_page(request: Request, user: Reader) -> Response:
    """Alerts of the newest jobs."""
    return _page(request, user, "anomalies.html")


@router.get("/jobs/{job}")
def job_page(request: Request, user: Reader, site: Site, job: JobName) -> Response:
    """One job."""
    _check_known(site, job)
    return _page(request, user, "job.html", job=job, classes=[name.value for name in ErrorClass])


@router.get("/jobs/{job}/tasks/{task}")
def task_page(request: Request, user: Reader, site: Site, job: JobName, task: Task) -> Response:
    """One task of a job."""
    _check_known(site, job)
    return _page(request, user, "task.html", job=job, task=task)


def note_root(request: Request) -> str:
    """Store the path below which the application is mounted, before anything is routed."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    request.scope[_ROOT] = root
    return root


def wants_page(request: Request) -> bool:
    """Whether the address is one of a page, so that an error is one too."""
    path = str(request.scope["path"]).removeprefix(_root(request))
    return not path.startswith(_API)


def error_page(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A page that says what is wrong; it holds no data, since unknown users see it too."""
    phrase, template = HTTPStatus(status).phrase, _templates.get_template("error.html")
    content = template.render(root=_root(request), status=status, phrase=phrase, detail=detail)
    return HTMLResponse(content, status, headers)


def _page(request: Request, user: User, template: str, **values: Any) -> Response:
    conn = request.query_params.get("conn", "")
    token = csrf_token(request)
    content = _templates.get_template(template).render(
        root=_root(request),
        conn=conn,
        conns=state_of(request).sites.names(),
        query=f"?{urlencode({'conn': conn}, quote_via=quote)}" if conn else "",
        csrf=token,
        user=user,
        **values,
    )
    response = HTMLResponse(content)
    response.set_cookie(
        CSRF_COOKIE,
        token,
        path=_root(request) or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def _check_known(site: Site, job: JobId) -> None:
    """404 for an unknown job; the page itself reports a table that can't be reached."""
    try:
        found = site.services.jobs(job).find(consistent=False)
    except ServiceError:
        return
    if found is None:
        raise NoSuchJobError(
            f"there is no job {job!r} in this table; check the spelling, or choose one of the list"
        )


def _root(request: Request) -> str:
    return str(request.scope.get(_ROOT) or "")
