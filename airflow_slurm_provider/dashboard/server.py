"""The dashboard of one site without Airflow: on loopback only, behind a token.

A new token is made at each start and printed in the address to open. That address
exchanges it for a cookie that no script can read, and leaves it out of the address bar.
Prometheus and scripts send ``Authorization: Bearer TOKEN`` instead.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from airflow_slurm_provider.coordinator.services import Services, SharedPolling
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.dashboard.app import create_app
from airflow_slurm_provider.dashboard.auth import User
from airflow_slurm_provider.dashboard.cache import CLUSTER_S
from airflow_slurm_provider.slurm.poller import ArrayPoller
from slurm_worker.errors import UserError

ADDRESS = "127.0.0.1"
#: Requests for other host names are refused: a foreign name may resolve to loopback.
_HOSTS = [ADDRESS, "localhost"]
_STRANGER = "open the address that slurmctl dashboard printed at its start"


@dataclass(frozen=True, slots=True)
class OneSite:
    """The one site of a stand-alone dashboard; see `dependencies.SitesSource`."""

    opened: Services

    def names(self) -> Sequence[str]:
        """There is no choice."""
        return ()

    def services(self, conn: str) -> Services:
        """The one site's; any other name is a mistake."""
        if conn:
            raise UserError(f"conn: {conn!r} is unknown; this dashboard has one site, without name")
        return self.opened


class TokenGuard:
    """Lets in users with the token; they may do what the account of the dashboard may do.

    `name` is the user's in the audit log.
    """

    def __init__(self, token: str, name: str) -> None:
        self._token = token.encode()
        self._user = User(name)
        digest = hashlib.sha256(token.encode()).hexdigest()
        #: Of this start: cookies of one host are shared by all its ports.
        self.cookie = f"slurmctl_{digest[:8]}"
        self.session = digest[8:]

    async def user(self, request: Request) -> User:
        """The user, if the request has the cookie or the token."""
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        by_header = scheme.lower() == "bearer" and self.is_token(bearer.strip())
        cookie = request.cookies.get(self.cookie, "")
        if not by_header and not secrets.compare_digest(cookie.encode(), self.session.encode()):
            raise HTTPException(401, _STRANGER, {"WWW-Authenticate": "Bearer"})
        return self._user

    def is_token(self, given: str) -> bool:
        """Whether it is the secret."""
        return secrets.compare_digest(given.encode(), self._token)


def standalone_app(services: Services, token: str, actor: str) -> FastAPI:
    """The application for one site, with the exchange of the token for a cookie.

    The services stay open; `actor` is the user's name in the audit log.
    """
    guard = TokenGuard(token, actor)
    shared = SharedPolling(ArrayPoller(services.slurm.arrays), TTLCache())
    app = create_app(OneSite(replace(services, shared=shared, poll_s=CLUSTER_S)), guard)

    @app.middleware("http")
    async def exchange(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.query_params.get("token")
        if given is None or request.method != "GET" or not guard.is_token(given):
            return await call_next(request)
        target = request.url.remove_query_params("token")
        # A browser takes "//host/" for an address elsewhere.
        path = f"/{target.path.lstrip('/')}"
        response = RedirectResponse(f"{path}{'?' if target.query else ''}{target.query}", 303)
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        response.set_cookie(guard.cookie, guard.session, httponly=True, samesite="strict")
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)
    return app


def serve(services: Services, port: int, actor: str, announce: Callable[[str], None]) -> None:
    """Serve until interrupted, on this port of loopback; 0 for any that is free.

    `announce` gets the address to open, once connections are accepted.

    Raises:
        UserError: if the port is not free.
    """
    token = secrets.token_urlsafe(32)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(
                f"--port: {port} can't be used ({error.strerror}); choose another, or 0 for any"
            ) from error
        listener.listen()
        announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/?token={token}")
        # No access log: the address that holds the token would be in it.
        config = uvicorn.Config(
            standalone_app(services, token, actor), access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run(sockets=[listener])
