"""Who may read, who may act, and the check that an action comes from a page of this dashboard.

Every route but the static files asks the application's `Guard`: Airflow's asks Airflow's
auth manager, the stand-alone one wants the token that was printed at start. An action must
also prove that a page of this application sent it, and no other site in the same browser:

| check | what it stops |
| --- | --- |
| ``Sec-Fetch-Site`` is ``same-origin``, where the browser sends it | any other site's page |
| ``Origin`` is the host of the request, where it is sent | the same, in older browsers |
| the header ``X-CSRF-Token`` repeats the cookie ``slurm_csrf`` | what can't read our pages |

The token is in the cookie and in the page, not in this process: several may serve one site.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

CSRF_COOKIE = "slurm_csrf"
CSRF_HEADER = "X-CSRF-Token"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,100}")


@dataclass(frozen=True, slots=True)
class User:
    """The user of a request."""

    name: str  #: the name in the audit log
    refusal: str = ""  #: why the user may not act; empty where the user may


class Guard(Protocol):
    """Authenticates and authorises requests."""

    async def user(self, request: Request) -> User:
        """The user; `HTTPException` 401 if unknown, 403 for one who may not read."""


def csrf_token(request: Request) -> str:
    """The token of this browser: its cookie's, or a new one that the page is to set."""
    token = request.cookies.get(CSRF_COOKIE, "")
    return token if _TOKEN.fullmatch(token) else secrets.token_urlsafe(24)


def check_csrf(request: Request) -> None:
    """Refuse an action that no page of this dashboard has sent.

    Raises:
        HTTPException: 403, saying what is missing.
    """
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc not in _hosts(request)
    if foreign or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise HTTPException(403, "this action was sent by a page of another site")
    token = request.cookies.get(CSRF_COOKIE, "")
    given = request.headers.get(CSRF_HEADER, "")
    if not _TOKEN.fullmatch(token) or not secrets.compare_digest(token.encode(), given.encode()):
        raise HTTPException(
            403, f"the header {CSRF_HEADER} must repeat the cookie {CSRF_COOKIE}; reload the page"
        )


def _hosts(request: Request) -> set[str]:
    """The host of the request, also behind a proxy; no page can set these headers."""
    names = (request.headers.get(header, "") for header in ("Host", "X-Forwarded-Host"))
    return {name.strip() for name in names if name}
