"""Pages: what a browser gets before any script has run, below whatever path."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airflow_slurm_provider.dashboard.app import create_app
from airflow_slurm_provider.dashboard.server import OneSite
from slurm_worker.errors import UserError
from tests.unit.dashboard.conftest import Dash, Doorkeeper

PAGES = ["/", "/anomalies", "/jobs/job-1", "/jobs/job-1/tasks/000-00000000"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_a_title_landmarks_and_one_heading(done: Dash, path: str) -> None:
    text = done.get(path).text
    assert "<title>" in text
    assert text.count("<h1>") == 1
    assert '<main id="main"' in text
    assert 'lang="en"' in text
    assert 'class="skip" href="#main"' in text


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("prefix", ["", "/slurm"])
def test_every_address_in_a_page_exists_below_the_prefix(
    done: Dash, path: str, prefix: str
) -> None:
    outer = FastAPI()
    outer.mount(prefix or "/", done.app)
    browser = TestClient(outer)
    text = browser.get(prefix + path).text
    found = re.findall(r'(?:href|src)="(/[^"]*)"', text)
    assert len(found) > 4
    for address in found:
        assert address.startswith(f"{prefix}/")
        assert browser.get(address).status_code == 200, address
    assert f'data-root="{prefix}"' in text


def test_the_token_cookie_is_sent_to_the_prefix_only(done: Dash) -> None:
    outer = FastAPI()
    outer.mount("/slurm", done.app)
    cookie = TestClient(outer).get("/slurm/").headers["set-cookie"]
    assert "Path=/slurm;" in cookie


def test_every_module_that_a_script_imports_exists(dash: Dash) -> None:
    seen, left = set[str](), ["jobs.js", "job.js", "task.js", "anomalies.js", "conn.js"]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = dash.get(f"/static/js/{name}")
        assert answer.status_code == 200, name
        assert "javascript" in answer.headers["content-type"]
        left += re.findall(r'from "\./([\w.]+)"', answer.text)
    assert {"lib.js", "charts.js", "actions.js"} <= seen


def test_every_element_that_a_script_uses_is_in_its_page(done: Dash) -> None:
    ours = ["job.js", "actions.js", "failures.js", "tasks.js"]
    scripts = "".join(done.get(f"/static/js/{name}").text for name in ours)
    page = done.get("/jobs/job-1").text
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', scripts)) | set(
        re.findall(r'\btext\("([\w-]+)"', scripts)
    )
    assert len(wanted) > 30
    assert {each for each in wanted if f'id="{each}"' not in page} == set()


def test_a_strange_name_is_shown_as_text(dash: Dash) -> None:
    answer = dash.get("/?conn=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>alert" not in answer.text


def test_the_page_of_an_unknown_job_links_to_the_list(dash: Dash) -> None:
    answer = dash.get("/jobs/nothing")
    assert answer.status_code == 404
    assert "there is no job" in answer.text
    assert 'href="/"' in answer.text


def test_an_unknown_address_is_an_error_page(dash: Dash) -> None:
    for path in ("/nothing", "/jobs/UPPER", "/jobs/job-1/tasks/7"):
        answer = dash.get(path)
        assert 400 <= answer.status_code < 500, path
        assert answer.headers["content-type"].startswith("text/html"), path


def test_a_job_whose_table_is_away_has_its_page_and_shows_the_problem_there(done: Dash) -> None:
    done.rows.away = True
    assert done.get("/jobs/job-1").status_code == 200
    assert done.get("/api/jobs/job-1").status_code == 503


def test_connections_are_offered_where_there_are_several(done: Dash) -> None:
    class Two(OneSite):
        def names(self) -> list[str]:
            return ["lab", "cloud"]

        def services(self, conn: str):  # type: ignore[no-untyped-def]
            if conn not in ("", "lab", "cloud"):
                raise UserError(f"conn: {conn!r} is unknown")
            return done.services

    browser = TestClient(create_app(Two(done.services), Doorkeeper()))
    text = browser.get("/jobs/job-1?conn=cloud").text
    assert '<option value="cloud" selected>' in text
    assert 'href="/?conn=cloud"' in text
    assert browser.get("/jobs/job-1?conn=other").status_code == 400
    assert browser.get("/api/jobs?conn=other").json() == {"detail": "conn: 'other' is unknown"}
