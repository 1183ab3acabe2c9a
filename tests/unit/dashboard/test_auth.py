"""Nobody who is not let in sees or does anything."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from airflow_slurm_provider.dashboard.auth import CSRF_HEADER
from tests.unit.dashboard.conftest import SAME_ORIGIN, Dash

PLACES = {"{job}": "job-1", "{task}": "000-00000000"}


def routes(dash: Dash, method: str) -> list[str]:
    """The addresses of all routes, with names filled in."""
    found = []
    for route in dash.app.routes:
        if isinstance(route, APIRoute) and method in route.methods:
            path = route.path
            for place, value in PLACES.items():
                path = path.replace(place, value)
            found.append(path)
    return found


def test_every_address_but_static_files_is_a_guarded_route(dash: Dash) -> None:
    others = [route for route in dash.app.routes if not isinstance(route, APIRoute)]
    assert [getattr(each, "path", "") for each in others] == ["/static"]


def test_a_stranger_is_refused_at_every_route(done: Dash) -> None:
    done.guard.reader = False
    for path in routes(done, "GET"):
        assert done.get(path).status_code == 401, path
    for path in routes(done, "POST"):
        assert done.post(path, {}).status_code == 401, path


def test_a_user_who_may_only_read_can_not_act(done: Dash) -> None:
    done.guard.actor_too = False
    acting = routes(done, "POST")
    assert len(acting) == 6
    for path in acting:
        assert done.post(path, {"workers": 1}).status_code == 403, path
    assert done.json("/api/jobs")["jobs"][0]["job_id"] == "job-1"
    assert [each.action for each in done.services.jobs("job-1").events()] == [  # type: ignore[arg-type]
        "planned",
        "submitted",
    ]


def test_a_user_who_may_only_read_is_offered_no_action(done: Dash) -> None:
    assert "do-retry" in done.get("/jobs/job-1").text
    done.guard.actor_too = False
    assert "do-retry" not in done.get("/jobs/job-1").text


@pytest.mark.parametrize(
    "change",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {CSRF_HEADER: "x" * 24},
        {CSRF_HEADER: ""},
    ],
)
def test_an_action_that_no_page_of_ours_sent_is_refused(done: Dash, change: dict[str, str]) -> None:
    for path in routes(done, "POST"):
        answer = done.browser.post(path, json={"workers": 1}, headers={**SAME_ORIGIN, **change})
        assert answer.status_code == 403, path
    assert not done.services.jobs("job-1").get().paused  # type: ignore[arg-type]


def test_an_action_without_a_cookie_is_refused(done: Dash) -> None:
    done.browser.cookies.clear()
    assert done.post("/api/jobs/job-1/pause").status_code == 403


def test_a_page_behind_a_proxy_may_act(done: Dash) -> None:
    headers = {
        **SAME_ORIGIN,
        "Origin": "https://airflow.example",
        "X-Forwarded-Host": "airflow.example",
    }
    assert done.browser.post("/api/jobs/job-1/pause", headers=headers).status_code == 200


def test_a_page_gives_its_token_to_the_browser_and_to_its_scripts(dash: Dash) -> None:
    dash.browser.cookies.clear()
    answer = dash.get("/")
    token = answer.cookies["slurm_csrf"]
    assert f'<meta name="csrf-token" content="{token}">' in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_pages_run_only_our_own_files(dash: Dash) -> None:
    answer = dash.get("/")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    for page in ("/", "/anomalies", "/nothing-here"):
        text = dash.get(page).text
        assert text.count("<script") == text.count("<script src") + text.count(
            '<script type="module" src'
        ) + text.count("<script defer src")
        assert " style=" not in text
        assert " onclick=" not in text


def test_answers_with_data_are_not_cached_by_the_browser(done: Dash) -> None:
    for path in ("/", "/api/jobs", "/metrics"):
        assert done.get(path).headers["cache-control"] == "no-store"
    static = done.get("/static/app.css")
    assert static.headers["cache-control"] == "no-cache"
    again = done.get("/static/app.css", headers={"If-None-Match": static.headers["etag"]})
    assert again.status_code == 304
