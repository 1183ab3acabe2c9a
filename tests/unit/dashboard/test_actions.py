"""Actions: what they do, that they can be repeated, and that the audit log has the user."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from airflow_slurm_provider.dashboard.background_jobs import Runs
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId
from tests.unit.dashboard.conftest import Dash

JOB = JobId("job-1")


def until_ended(dash: Dash) -> Any:
    """The retry, once it has ended."""
    deadline = time.monotonic() + 60
    while True:
        run = dash.json("/api/jobs/job-1/retry")
        if run["state"] != "running":
            return run
        assert time.monotonic() < deadline, run


def actors(dash: Dash, action: str) -> list[str]:
    return [each.actor for each in dash.services.jobs(JOB).events() if each.action == action]


def test_the_plan_of_a_retry_reports_what_it_would_do_and_changes_nothing(done: Dash) -> None:
    plan = done.post("/api/jobs/job-1/retry/plan", {"classes": ["network"]}).json()
    assert (plan["round"], plan["items"]) == (1, {"network": 1})
    assert plan["given_up"] == {"bad_input": 1}
    assert len(done.services.jobs(JOB).rounds()) == 1


def test_a_retry_creates_one_round_and_the_audit_log_has_the_user(done: Dash) -> None:
    answer = done.post("/api/jobs/job-1/retry", {"classes": ["network"]})
    assert answer.status_code == 202
    run = until_ended(done)
    assert run["state"] == "done", run
    assert (run["result"]["round"], run["result"]["items"]) == (1, {"network": 1})
    assert run["said"]
    assert actors(done, "retried") == ["alice"]
    job = done.json("/api/jobs/job-1")["job"]
    assert (job["state"], job["rounds"], job["failed"]) == ("running", 2, {"bad_input": 1})


def test_a_retry_that_is_requested_twice_creates_one_round(done: Dash) -> None:
    for _ in range(2):
        assert done.post("/api/jobs/job-1/retry", {"classes": ["network"]}).status_code == 202
        until_ended(done)
    assert len(done.services.jobs(JOB).rounds()) == 2
    assert actors(done, "retried") == ["alice"]


def test_a_refused_retry_reports_the_reason(dash: Dash) -> None:
    dash.submit()
    dash.post("/api/jobs/job-1/retry", {})
    run = until_ended(dash)
    assert run["state"] == "failed"
    assert "unfinished tasks" in run["error"]


@pytest.mark.parametrize("classes", [["nonsense"], "network", [1]])
def test_an_unknown_error_class_is_refused(done: Dash, classes: object) -> None:
    for path in ("/api/jobs/job-1/retry", "/api/jobs/job-1/retry/plan"):
        answer = done.post(path, {"classes": classes})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("classes")


def test_pause_and_resume_show_at_once_and_can_be_repeated(dash: Dash) -> None:
    dash.submit()
    for _ in range(2):
        answer = dash.post("/api/jobs/job-1/pause")
        assert answer.status_code == 200
        assert dash.json("/api/jobs/job-1")["job"]["paused"] == "alice"
    assert "already" in answer.json()["done"]
    assert dash.post("/api/jobs/job-1/resume").json()["done"].startswith("resumed")
    assert dash.json("/api/jobs/job-1")["job"]["state"] == "running"
    assert actors(dash, "paused") == ["alice"]
    assert actors(dash, "resumed") == ["alice"]


def test_workers_are_added_only_while_there_is_work(dash: Dash) -> None:
    dash.submit()
    answer = dash.post("/api/jobs/job-1/workers", {"workers": 2})
    assert answer.json()["done"] == "added: 2 workers in 101"
    refused = dash.post("/api/jobs/job-1/workers", {"workers": 0})
    assert refused.status_code == 422
    dash.work()
    dash.forget_answers()
    nothing = dash.post("/api/jobs/job-1/workers", {"workers": 2})
    assert nothing.status_code == 400
    assert "needs no workers" in nothing.json()["detail"]


def test_cancel_ends_the_arrays(dash: Dash) -> None:
    dash.submit()
    assert dash.post("/api/jobs/job-1/cancel").json()["detail"] == {"cancelled": ["100"]}
    assert dash.slurm.cancelled == ["100"]
    assert actors(dash, "cancelled") == ["alice"]


def test_an_action_on_a_cluster_that_is_away_is_503(dash: Dash) -> None:
    dash.submit()
    dash.slurm.away = True
    for path, body in (("cancel", None), ("workers", {"workers": 1})):
        answer = dash.post(f"/api/jobs/job-1/{path}", body)
        assert answer.status_code == 503
        assert "login.example" in answer.json()["detail"]


def test_an_action_on_an_unknown_job_is_404(dash: Dash) -> None:
    for path in ("pause", "resume", "cancel", "workers", "retry", "retry/plan"):
        assert (
            dash.post(
                f"/api/jobs/nothing/{path}", {"workers": 1} if path == "workers" else {}
            ).status_code
            == 404
        )


def test_a_second_request_joins_the_action_that_still_runs() -> None:
    runs, go, begun = Runs(), threading.Event(), threading.Event()

    def act(say: Any) -> dict[str, Any]:
        begun.set()
        assert go.wait(30)
        say("half way")
        return {"n": 1}

    first = runs.start("a", act)
    assert begun.wait(30)
    second = runs.start("a", act)
    assert (first.begun, second.begun) == (True, False)
    assert first.state == second.state == "running"
    go.set()
    run = ended(runs, "a")
    assert (run.state, run.said, run.result) == ("done", ("half way",), {"n": 1})


def test_a_failed_action_reports_the_reason_and_can_be_started_again() -> None:
    runs = Runs()

    def fail(say: Any) -> dict[str, Any]:
        raise UserError("two\nlines")

    runs.start("a", fail)
    assert ended(runs, "a").error == "two lines"
    runs.start("a", lambda _: {})
    assert ended(runs, "a").state == "done"


def ended(runs: Runs, name: str) -> Any:
    deadline = time.monotonic() + 30
    while True:
        run = runs.get(name)
        assert run is not None
        if run.state != "running":
            return run
        assert time.monotonic() < deadline
