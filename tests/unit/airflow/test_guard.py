"""The dashboard finds its user as each release of Airflow finds its own users."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request

from airflow_slurm_provider.dashboard.plugin import guard


def request() -> Request:
    return Request({"type": "http", "method": "GET", "headers": []})


async def scheme(_: Request) -> str:
    return "the token"


def test_airflow_30_takes_the_token_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_user(token: str) -> Any:
        return f"owner of {token}"

    found = SimpleNamespace(get_user=get_user, oauth2_scheme=scheme)
    monkeypatch.setattr(guard, "security", found)
    assert asyncio.run(guard.airflow_user(request())) == "owner of the token"  # type: ignore[comparison-overlap]  # a twin of a user


def test_later_releases_read_the_cookie_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_user(asked: Request, oauth: None, bearer: str) -> Any:
        return asked, oauth, bearer

    found = SimpleNamespace(get_user=get_user, bearer_scheme=scheme, oauth2_scheme=scheme)
    monkeypatch.setattr(guard, "security", found)
    asked = request()
    assert asyncio.run(guard.airflow_user(asked)) == (asked, None, "the token")  # type: ignore[comparison-overlap]  # the same
