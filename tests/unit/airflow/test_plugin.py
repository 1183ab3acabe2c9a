"""The dashboard that Airflow mounts asks Airflow who may what, and leads from runs to jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api import security
from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse
from airflow.plugins_manager import is_valid_plugin
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jwt import InvalidTokenError

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.dashboard.app import create_app
from airflow_slurm_provider.dashboard.auth import CSRF_COOKIE, CSRF_HEADER
from airflow_slurm_provider.dashboard.plugin import SlurmPlugin, guard, mounted
from airflow_slurm_provider.dashboard.plugin.guard import AirflowGuard
from airflow_slurm_provider.dashboard.plugin.mounted import AirflowSites
from airflow_slurm_provider.dashboard.server import OneSite
from airflow_slurm_provider.dashboard_urls import Destination
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId
from tests.unit.coordinator.fakes import services

ROLES = ("admin", "op", "user", "viewer")
CSRF = "x" * 24


class Manager(SimpleAuthManager):
    """Airflow's own rules, with the role's name for a token."""

    async def get_user_from_token(self, token: str) -> SimpleAuthManagerUser:
        if token not in ROLES:
            raise InvalidTokenError
        return SimpleAuthManagerUser(username=f"{token}@lab", role=token)


@pytest.fixture
def edges() -> Services:
    made = services()
    made.jobs(JobId("job-1")).create({}, "config", 8)
    made.jobs(JobId("job-1")).open(1)
    return made


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, edges: Services) -> Iterator[TestClient]:
    """A browser of a stranger."""
    manager = Manager()
    for module in (security, guard):
        monkeypatch.setattr(module, "get_auth_manager", lambda: manager)
    app = create_app(OneSite(edges), AirflowGuard())
    app.include_router(mounted.router)
    server = FastAPI()
    server.mount("/slurm", app)
    with TestClient(server, follow_redirects=False) as browser:
        yield browser


def logged_in(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}"}


def routes() -> list[tuple[str, str]]:
    """Method and path of every route but the static files."""
    app = create_app(OneSite(services()), AirflowGuard())
    app.include_router(mounted.router)
    names = {"job": "job-1", "task": "000-00000000", "path": "x"}
    return [
        (method, re.sub(r"{(\w+)[^}]*}", lambda found: names[found[1]], route.path))
        for route in app.routes
        for method in sorted(getattr(route, "methods", ()))
    ]


def test_there_are_routes_to_try() -> None:
    found = routes()
    assert ("POST", "/api/jobs/job-1/retry") in found
    assert ("GET", "/airflow/task") in found


def test_a_stranger_is_refused_everywhere(client: TestClient) -> None:
    let_in = [
        (method, path, answer.status_code)
        for method, path in routes()
        for headers in ({}, logged_in("nobody"))
        if (answer := client.request(method, f"/slurm{path}", headers=headers)).status_code
        not in (401, 403)
    ]
    assert let_in == []


def test_a_viewer_may_not_act(client: TestClient) -> None:
    client.cookies.set(CSRF_COOKIE, CSRF)
    headers = {**logged_in("viewer"), CSRF_HEADER: CSRF}
    for method, path in routes():
        if method in ("GET", "HEAD"):
            continue
        refused = client.request(method, f"/slurm{path}", headers=headers, json={})
        assert refused.status_code == 403, path
        assert "role" in refused.json()["detail"], path


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_read(client: TestClient, role: str) -> None:
    assert client.get("/slurm/api/jobs", headers=logged_in(role)).status_code == 200


def test_the_login_of_airflows_ui_is_accepted(client: TestClient) -> None:
    client.cookies.set("_token", "user")
    assert client.get("/slurm/api/jobs").status_code == 200


@pytest.mark.parametrize("role", ["admin", "op", "user"])
def test_an_action_is_in_the_audit_log_with_airflows_user(
    client: TestClient, edges: Services, role: str
) -> None:
    client.cookies.set(CSRF_COOKIE, CSRF)
    headers = {**logged_in(role), CSRF_HEADER: CSRF}
    assert client.post("/slurm/api/jobs/job-1/pause", headers=headers).status_code == 200
    (event,) = edges.jobs(JobId("job-1")).events()
    assert (event.actor, event.action) == (f"airflow user {role}@lab", "paused")


def test_a_page_of_another_site_may_not_act_for_an_admin(client: TestClient) -> None:
    client.cookies.set(CSRF_COOKIE, CSRF)
    headers = {**logged_in("admin"), CSRF_HEADER: CSRF, "Origin": "https://evil.example"}
    assert client.post("/slurm/api/jobs/job-1/pause", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/slurm/airflow/run?dag_id=d&run_id=r",
        "/slurm/airflow/task?dag_id=d&run_id=r&task_id=t&map_index=%7BMAP_INDEX%7D",
    ],
)
def test_runs_and_tasks_redirect_to_their_job(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    found = [Destination("older", "slurm"), Destination("job-1", "slurm")]
    monkeypatch.setattr(mounted, "destinations", lambda *_: found)
    answer = client.get(path, headers=logged_in("viewer"))
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/slurm/jobs/job-1?conn=slurm"


def test_a_run_without_a_backfill_is_a_page_with_the_reason(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted, "destinations", lambda *_: [])
    answer = client.get("/slurm/airflow/run?dag_id=d&run_id=r", headers=logged_in("viewer"))
    assert answer.status_code == 404
    assert "no backfill is known here" in answer.text


def test_a_user_who_may_not_read_a_dag_does_not_see_its_jobs(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted, "may_read_xcoms", lambda _user, dag_id: dag_id != "secret")
    answer = client.get("/slurm/airflow/run?dag_id=secret&run_id=r", headers=logged_in("user"))
    assert answer.status_code == 403


def test_the_plugin_is_valid_by_airflows_rules() -> None:
    assert is_valid_plugin(SlurmPlugin)
    plugin = SlurmPlugin()
    views = [ExternalViewResponse.model_validate(view) for view in plugin.external_views]
    assert [view.destination for view in views] == ["nav", "dag_run", "task_instance"]
    assert len({view.url_route for view in views}) == len(views)
    (app,) = plugin.fastapi_apps
    assert (app["url_prefix"], type(app["app"])) == ("/slurm", FastAPI)


def test_a_dashboard_that_cannot_be_made_does_not_keep_airflow_from_starting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow_slurm_provider.dashboard import plugin

    def fails() -> FastAPI:
        raise ImportError("no jinja2")

    monkeypatch.setattr(mounted, "mounted_app", fails)
    plugin.mounted_apps.cache_clear()
    assert SlurmPlugin().fastapi_apps == []
    assert "can't be mounted" in caplog.text
    plugin.mounted_apps.cache_clear()


def test_sites_are_connections_of_type_slurm(
    monkeypatch: pytest.MonkeyPatch, edges: Services
) -> None:
    opened: list[tuple[str, str | None]] = []

    def open_services(hook: SlurmHook, **_: Any) -> Services:
        opened.append((hook.slurm_conn_id, hook.aws_conn_id))
        return edges

    monkeypatch.setattr(SlurmHook, "services", open_services)
    monkeypatch.setenv("AIRFLOW_CONN_GPU", '{"conn_type": "slurm", "extra": {"aws_conn_id": "eu"}}')
    monkeypatch.setenv("AIRFLOW_CONN_HPC", '{"conn_type": "slurm"}')
    monkeypatch.setenv("AIRFLOW_CONN_DB", '{"conn_type": "postgres"}')
    monkeypatch.setenv("AIRFLOW__SLURM_BACKFILLS__CONNECTIONS", "hpc, gpu")
    found = AirflowSites()
    assert found.names() == ["hpc", "gpu"]
    for name in ("", "gpu", "gpu"):
        assert found.services(name) is edges
    assert opened == [("hpc", "aws_default"), ("gpu", "eu")], "the second use opens nothing"
    with pytest.raises(UserError, match="conn: 'db' is not a connection of type slurm"):
        found.services("db")


def test_without_configured_connections_the_sites_are_those_of_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mounted, "stored_connections", lambda: ["a", "b"])
    assert AirflowSites().names() == ["a", "b"]
    monkeypatch.setattr(mounted, "stored_connections", list)
    assert AirflowSites().names() == ["slurm_default"]
