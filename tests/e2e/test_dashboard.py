"""The dashboard in Airflow, as people use it: by a browser, logged in, on a job that runs.

With SCREENSHOTS=docs/images in the environment the pages are pictured there, in both colours.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Page, expect, sync_playwright

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.keys import JobId
from tests.e2e.conftest import Slurmctl, arrays_of, write_yaml
from tests.stack.airflow_api import AirflowApi, DagRun, failing_tasks
from tests.stack.settings import ROOT
from tests.stack.site import ROLES

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DAG_ID = "watched_backfill"
CSRF = "c" * 32
_CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
_DEADLINE_MS = 90_000


def items_to_watch() -> list[dict[str, Any]]:
    """200 that fail at once, more than half, and 100 that take a while."""
    failing = [{"id": f"f{n:03}", "s": 0.02, "fails": True} for n in range(200)]
    return [*failing, *({"id": f"k{n:03}", "s": 0.3, "fails": False} for n in range(100))]


@pytest.fixture
def cure() -> Iterator[Path]:
    """Once this file is there, failing items fail no more."""
    path = Path(tempfile.gettempdir()) / f"cure-{uuid.uuid4().hex[:8]}"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def api(environment: Mapping[str, str]) -> AirflowApi:
    return AirflowApi.of_stack(environment)


@pytest.fixture
def page(environment: Mapping[str, str]) -> Iterator[Page]:
    """A browser's page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=list(_CHROMIUM)
        )
        context = browser.new_context(
            base_url=environment["AIRFLOW_API_URL"], viewport={"width": 1440, "height": 1000}
        )
        context.set_default_timeout(_DEADLINE_MS)
        yield context.new_page()
        browser.close()


@pytest.fixture
def picture(page: Page) -> Callable[[str], None]:
    """Picture the page, where pictures are asked for."""
    folder = os.environ.get("SCREENSHOTS", "")

    def take(name: str) -> None:
        for colours in ("light", "dark") if folder else ():
            page.emulate_media(color_scheme=colours)
            page.wait_for_timeout(300)
            page.screenshot(path=ROOT / folder / f"airflow-{name}-{colours}.png")
        page.emulate_media(color_scheme="light")

    return take


def test_a_user_follows_a_job_to_its_end_and_retries_what_failed(
    api: AirflowApi,
    environment: Mapping[str, str],
    services: Services,
    page: Page,
    picture: Callable[[str], None],
    cure: Path,
    tmp_path: Path,
) -> None:
    expect.set_options(timeout=_DEADLINE_MS)
    job_id = JobId(f"airflow-{uuid.uuid4().hex[:8]}")
    told = tmp_path / "told"

    # From the nav to the job, which appears among the others once it is planned.
    log_in(page, "op", environment["AIRFLOW_API_PASSWORD"])
    page.get_by_role("link", name="Slurm").click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="Jobs")).to_be_visible()
    run = start(api, job_id, cure, told)
    frame.get_by_role("link", name=job_id, exact=True).click()

    # To its end, with numbers that change on a page that is not loaded again.
    expect(frame.get_by_role("heading", name=job_id)).to_be_visible()
    expect(frame.locator("#percent.bone")).to_have_count(0)
    frame.locator("html").evaluate("page => { page.dataset.mark = 'kept' }")
    seen = set()
    while frame.locator("#state").inner_text() != "complete":
        seen.add(frame.locator("#percent").inner_text())
        page.wait_for_timeout(200)
    seen.add(frame.locator("#percent").inner_text())
    expect(frame.locator("#n-ok")).to_have_text("100")
    expect(frame.locator("#n-failed")).to_have_text("200")
    assert len(seen) > 2, f"the numbers did not move: {seen}"
    assert frame.locator("html").get_attribute("data-mark") == "kept"
    picture("job")

    # Why a task failed.
    frame.get_by_role("tab", name="All").click()
    frame.locator("#tasks tr", has=page.locator("td.failing")).first.get_by_role("link").click()
    expect(frame.locator("#log")).to_contain_text("connection of f0")
    picture("task")
    frame.get_by_role("link", name=job_id).click()

    # Again, now that the network is back.
    cure.touch()
    retry_network(frame, picture)
    expect(frame.locator("#n-ok")).to_have_text("300")
    expect(frame.locator("#n-failed")).to_have_text("0")
    expect(frame.locator("#rounds")).to_contain_text("network 200")
    assert [each.retried for each in services.jobs(job_id).rounds()] == [{}, {"network": 200}]
    actors = {each.actor for each in services.jobs(job_id).events() if each.action == "retried"}
    assert actors == {"airflow user op"}

    frame.get_by_role("link", name="Jobs").first.click()
    frame.get_by_role("link", name=job_id, exact=True).wait_for()
    picture("jobs")

    # What Airflow itself shows.
    ended = end_of(api, run)
    check_views(page, job_id, ended, picture)
    check_task(api, job_id, ended)
    assert told.read_text().startswith("error_rate: "), "one alert, told to the DAG's notifier"
    assert told.read_text().count("\n") == 1


def start(api: AirflowApi, job_id: str, cure: Path, told: Path) -> str:
    """Start a run of the DAG; its id."""
    api.wait_for_dag(DAG_ID)
    conf = {"job_id": job_id, "items": items_to_watch(), "cure": str(cure), "told": str(told)}
    return api.trigger(DAG_ID, conf)


def end_of(api: AirflowApi, run_id: str, dag_id: str = DAG_ID) -> DagRun:
    """The run at its end, which is to be a good one."""
    run = api.follow({dag_id: run_id}, timeout=120)[dag_id]
    logs = "\n".join(api.log_tail(run, task) for task in failing_tasks(run))
    assert run.state == "success", f"{run.summary()}\n{logs}"
    return run


def log_in(page: Page, user: str, password: str) -> None:
    page.goto("/")
    page.locator("input[name=username]").fill(user)
    page.locator("input[name=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()


def retry_network(frame: FrameLocator, picture: Callable[[str], None]) -> None:
    """By the page's button: choose the class, see the plan, start it."""
    frame.get_by_role("button", name="Retry failures").click()
    frame.get_by_role("checkbox", name="network").check()
    frame.get_by_role("button", name="Show the plan").click()
    expect(frame.locator("#plan")).to_contain_text("200: network 200")
    picture("plan")
    frame.get_by_role("button", name="Start the retry").click()
    expect(frame.locator("#dialog")).to_contain_text("Round 1: 200 items")
    frame.get_by_role("button", name="Close").click()


def check_views(page: Page, job_id: str, run: DagRun, picture: Callable[[str], None]) -> None:
    """The run's and the task's page have a tab that shows the job."""
    for name, where in (("run", ""), ("task-instance", "/tasks/wait")):
        view = "slurm-run" if name == "run" else "slurm-task"
        page.goto(f"/dags/{run.dag_id}/runs/{run.run_id}{where}")
        page.locator(f"a[href$='plugin/{view}']").click()
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("heading", name=job_id)).to_be_visible()
        expect(frame.locator("#n-ok")).to_have_text("300")
        picture(name)


def check_task(api: AirflowApi, job_id: str, run: DagRun) -> None:
    """Links and rendered templates of the run's tasks."""
    for task_id in ("submit", "wait"):
        assert api.links(run, task_id)["Backfill"] == f"/slurm/jobs/{job_id}?conn=slurm"
    script = api.rendered(run, "submit")["batch_script"]
    assert script.startswith("#!/bin/bash")
    assert f"--job-name={job_id}." in script
    assert "--array=0-1" in script


def test_without_a_login_nothing_answers_and_a_viewer_or_another_site_changes_nothing(
    environment: Mapping[str, str], services: Services, job_id: str
) -> None:
    url, password = environment["AIRFLOW_API_URL"], environment["AIRFLOW_API_PASSWORD"]
    tokens = {role: AirflowApi(url, role, password).token for role in ROLES}
    routes = mounted_routes(f"{url}/slurm", tokens["viewer"], job_id)
    assert ("post", f"/api/jobs/{job_id}/retry") in routes
    assert ("get", f"/jobs/{job_id}") in routes
    csrf = {"X-CSRF-Token": CSRF, "Cookie": f"slurm_csrf={CSRF}"}
    for method, path in routes:
        assert answer(url, method, path) in (401, 403), f"{method} {path} for a stranger"
        assert answer(url, method, path, token="forged") in (401, 403)
        if method == "get":
            continue
        assert answer(url, method, path, token=tokens["viewer"], **csrf) == 403
        for site in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert answer(url, method, path, token=tokens["admin"], **csrf, **site) == 403
        # A browser sends the cookie of the login to any site's form, but not our header.
        login = f"_token={tokens['admin']}; slurm_csrf={CSRF}"
        assert answer(url, method, path, Cookie=login) == 403
        # The same by a page of ours gets through, to a job that there is not.
        assert answer(url, method, path, token=tokens["user"], **csrf) in (400, 404, 422)
    assert services.jobs(JobId(job_id)).find() is None


def mounted_routes(root: str, token: str, job_id: str) -> list[tuple[str, str]]:
    """Method and path of everything below the mount but the static files."""
    request = urllib.request.Request(f"{root}/api/openapi.json")
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as reply:
        document = json.load(reply)
    told = [(method, path) for path, verbs in document["paths"].items() for method in verbs]
    pages = ("/", "/anomalies", "/jobs/{job}", "/jobs/{job}/tasks/{task}", "/api/openapi.json")
    ours = ("/airflow/run?dag_id=d&run_id=r", "/airflow/task?dag_id=d&run_id=r&task_id=t")
    found = {*told, *(("get", path) for path in (*pages, *ours))}
    names = {"job": job_id, "task": "000-00000000"}
    return sorted(
        (method, re.sub(r"{(\w+)}", lambda match: names[match[1]], path)) for method, path in found
    )


def answer(url: str, method: str, path: str, token: str = "", **headers: str) -> int:
    """The status of a request to the mounted application."""
    request = urllib.request.Request(f"{url}/slurm{path}", method=method.upper())
    for name, value in headers.items():
        request.add_header(name, value)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if method == "post":
        request.data = b"{}"
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_clearing_tasks_repeats_no_work_and_metrics_tell_how_far_it_is(
    api: AirflowApi,
    environment: Mapping[str, str],
    services: Services,
    slurmctl: Slurmctl,
    cure: Path,
    tmp_path: Path,
) -> None:
    job_id = submit_failing(slurmctl, cure, tmp_path)
    dag_id = "finishes_a_backfill"
    api.wait_for_dag(dag_id)
    cure.touch()
    with metrics_server(environment) as metrics:
        run = end_of(api, api.trigger(dag_id, {"job_id": job_id}), dag_id)
    results = {task: api.return_value(run, task) for task in ("retry", "aggregate")}
    assert (results["retry"]["rounds"], results["retry"]["cured"]) == ([1], {"network": 5})
    assert results["aggregate"]["rows"] == 20
    assert f"airflow.slurm_backfill.items_ok,backfill={job_id}:20|g" in metrics

    api.clear(run, "retry", "aggregate")
    again = end_of(api, run.run_id, dag_id)
    assert all(task.try_number == 2 for task in again.tasks)
    retried = api.return_value(again, "retry")
    assert (retried["rounds"], retried["cured"]) == ([], {"network": 5}), "nothing is left to try"
    assert api.return_value(again, "aggregate") == results["aggregate"], "the dataset stands"
    assert len(services.jobs(job_id).rounds()) == 2
    assert len(arrays_of(services, job_id)) == 2


@contextmanager
def metrics_server(environment: Mapping[str, str]) -> Iterator[set[str]]:
    """Listens where the stack's Airflow sends its metrics; what was told so far."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(
            (
                environment["AIRFLOW__METRICS__STATSD_HOST"],
                int(environment["AIRFLOW__METRICS__STATSD_PORT"]),
            )
        )
        server.settimeout(0.2)
        found: set[str] = set()
        over = threading.Event()

        def listen() -> None:
            # All the time: what the socket's buffer can't hold is lost.
            while not over.is_set():
                with suppress(TimeoutError):
                    found.update(server.recv(65_536).decode().splitlines())

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield found
        finally:
            over.set()
            listener.join()


def submit_failing(slurmctl: Slurmctl, cure: Path, folder: Path) -> JobId:
    """A job of which 5 of 20 items have failed."""
    job_id = JobId(f"airflow-{uuid.uuid4().hex[:8]}")
    items = [{"id": f"k{n:02}", "s": 0, "fails": n < 5} for n in range(20)]
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in items))
    code = Path(__file__).with_name("dags") / "watched"
    config = {
        "job_id": job_id,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 10,
        "workers": 1,
        "handler": {"entry": "handler:handle", "code": str(code), "params": {"cure": str(cure)}},
        "worker": {"tries": 1},
        "slurm": {"mem": "300M", "time": "00:10:00"},
        "retry": {"network": {"backoff": 0}},
    }
    slurmctl("submit", write_yaml(folder / "job.yaml", config), "--wait")
    return job_id
