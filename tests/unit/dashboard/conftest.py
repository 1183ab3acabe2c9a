"""A dashboard over services in memory, each of which can be away, and a job that was run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.dashboard.app import create_app
from airflow_slurm_provider.dashboard.auth import CSRF_COOKIE, CSRF_HEADER, User
from airflow_slurm_provider.dashboard.cache import JobCache, SharedCache
from airflow_slurm_provider.dashboard.server import OneSite
from airflow_slurm_provider.slurm.array_state import ArrayKey
from slurm_worker.errors import ItemError, ServiceError
from slurm_worker.protocol.keys import JobId
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of

ITEMS = 25
TOKEN = "t" * 24
SAME_ORIGIN = {CSRF_HEADER: TOKEN, "Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}


class AwayRows(MemoryRows):
    """A table that can be away."""

    away = False

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self._answer()
        return super().get(*args, **kwargs)

    def query(self, *args: Any, **kwargs: Any) -> Any:
        self._answer()
        return super().query(*args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        self._answer()
        return super().update(*args, **kwargs)

    def _answer(self) -> None:
        if self.away:
            raise ServiceError("DynamoDB table 't': could not connect")


class AwayObjects(MemoryObjects):
    """A bucket that can be away."""

    away = False

    def get(self, *args: Any, **kwargs: Any) -> Any:
        if self.away:
            raise ServiceError("S3 bucket 'lab': could not connect")
        return super().get(*args, **kwargs)


@dataclass
class AwaySlurm(FakeSlurm):
    """A cluster that can be away."""

    away: bool = False

    def array(self, array: ArrayKey) -> Any:
        if self.away:
            raise ServiceError("login.example: could not connect")
        return super().array(array)

    def together(self, arrays: Sequence[ArrayKey]) -> Any:
        self.array(ArrayKey("", ""))
        return super().together(arrays)


@dataclass
class Doorkeeper:
    """Allows what its fields say."""

    reader: bool = True
    actor_too: bool = True
    asked: int = 0

    async def user(self, request: Request) -> User:
        self.asked += 1
        if not self.reader:
            raise HTTPException(401, "who are you?")
        return User("alice", "" if self.actor_too else "alice may only read")


@dataclass
class Dash:
    """The application, a browser, and what is behind it."""

    services: Services
    rows: AwayRows
    objects: AwayObjects
    slurm: AwaySlurm
    guard: Doorkeeper
    app: FastAPI
    browser: TestClient
    scratch: Path
    errors: dict[int, str] = field(default_factory=lambda: {1: "bad_input", 2: "network"})

    def get(self, path: str, **kwargs: Any) -> Any:
        return self.browser.get(path, **kwargs)

    def post(self, path: str, body: object = None) -> Any:
        """An action, as a page of ours sends it."""
        return self.browser.post(path, json=body, headers=SAME_ORIGIN)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, name: str = "job-1", **changes: Any) -> None:
        config = make_config(self.scratch / name, ITEMS, job_id=name, **changes)
        api.submit(self.services, config, log=lambda _: None, actor="bob")

    def work(self, name: str = "job-1") -> None:
        """Let one worker finish every task."""
        config = make_config(self.scratch / name, ITEMS, job_id=name)
        node = self.scratch / f"node-{len(list(self.scratch.iterdir()))}"
        world_of(self.services, config, node, self._handle).worker().run()

    def forget_answers(self) -> None:
        """Drop what earlier requests have read."""
        state = self.app.state.dashboard
        cache = SharedCache(audit_logs=state.cache.audit_logs)
        self.app.state.dashboard = dataclasses.replace(state, cache=cache)

    def forget_progress(self) -> None:
        """Drop only the progress of the job."""
        JobCache("", self.services, self.app.state.dashboard.cache).forget(JobId("job-1"))

    def _handle(self, item: dict[str, Any], context: Any) -> dict[str, Any]:
        if item["n"] in self.errors:
            raise ItemError(self.errors[item["n"]], f"item {item['n']} is wrong")
        return item


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Dash]:
    """No job yet."""
    rows, objects, slurm, guard = AwayRows(), AwayObjects(), AwaySlurm(), Doorkeeper()
    made = dataclasses.replace(
        services(slurm), rows=rows, objects=objects, bucket=lambda _name: objects
    )
    app = create_app(OneSite(made), guard)
    with TestClient(app, cookies={CSRF_COOKIE: TOKEN}) as browser:
        yield Dash(made, rows, objects, slurm, guard, app, browser, tmp_path)


@pytest.fixture
def done(dash: Dash) -> Dash:
    """A job of which each item has an outcome, two of them failures."""
    dash.submit()
    dash.work()
    return dash
