"""The application: routes, the guard in front of them, and what an error becomes.

| error | answer |
| --- | --- |
| an unknown user; a user without the permission | 401; 403 |
| no such job, task or page | 404 |
| a mistake in the request | 400 or 422, with one line |
| the table, the store or the cluster can't be reached | 503, with its name |

The JSON API answers ``{"detail": "…"}``, pages a page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_slurm_provider import __version__
from airflow_slurm_provider.dashboard import actions, api, metrics, pages
from airflow_slurm_provider.dashboard.auth import Guard
from airflow_slurm_provider.dashboard.cache import NoSuchJobError
from airflow_slurm_provider.dashboard.dependencies import SitesSource, State, current_user
from slurm_worker.errors import ServiceError, UserError

#: No inline script or style, nothing from elsewhere, framed by pages of the same origin only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(sites: SitesSource, guard: Guard) -> FastAPI:
    """The dashboard, to be served alone or mounted below a path."""
    app = FastAPI(
        title="Slurm backfills",
        description="Jobs of airflow-slurm-provider: how far they are, and what is wrong.",
        version=__version__,
        dependencies=[Depends(current_user)],
        # Their pages load scripts from elsewhere; the document itself is a guarded route.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.dashboard = State(sites, guard)
    for router in (api.router, actions.router, metrics.router, pages.router):
        app.include_router(router)
    static = str(resources.files("airflow_slurm_provider.dashboard") / "static")
    app.mount("/static", StaticFiles(directory=static), name="static")
    app.middleware("http")(_add_headers)
    for error in (StarletteHTTPException, RequestValidationError, UserError, ServiceError):
        app.exception_handler(error)(_answer_error)
    return app


async def _add_headers(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    # Routing into the static files changes it.
    root = pages.note_root(request)
    is_static = request.url.path.startswith(f"{root}/static/")
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    # Files are revalidated by their ETag; whatever holds data is kept nowhere.
    response.headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
    return response


async def _answer_error(request: Request, error: Exception) -> Response:
    """The answer to an error that a route has raised; see the table above."""
    if isinstance(error, StarletteHTTPException):
        detail = str(error.detail or HTTPStatus(error.status_code).phrase)
        return _problem(request, error.status_code, detail, dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return _problem(request, 422, f"{where}: {first['msg']}")
    # An unreachable login node is a UserError too; here it counts as unreachable.
    if isinstance(error, ServiceError):
        return _problem(request, 503, str(error), {"Retry-After": "5"})
    return _problem(request, 404 if isinstance(error, NoSuchJobError) else 400, str(error))


def _problem(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None
) -> Response:
    line = " ".join(detail.split())
    if pages.wants_page(request):
        return pages.error_page(request, status, line, headers)
    return JSONResponse({"detail": line}, status, headers)
