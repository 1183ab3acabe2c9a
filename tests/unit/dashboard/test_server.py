"""The dashboard without Airflow: loopback, a token, a cookie."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from airflow_slurm_provider.dashboard.server import standalone_app
from tests.unit.coordinator.fakes import services

SECRET = "s" * 43
COMMAND = [str(Path(sys.executable).with_name("slurmctl")), "dashboard"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def browser() -> TestClient:
    app = standalone_app(services(), SECRET, "slurmctl alice@login")
    return TestClient(app, base_url="http://127.0.0.1:8077")


def test_without_the_token_nothing_is_shown(browser: TestClient) -> None:
    for path in ("/", "/api/jobs", "/metrics", "/api/openapi.json", "/?token=wrong"):
        answer = browser.get(path)
        assert answer.status_code == 401, path
        assert "slurmctl dashboard" in answer.text


def test_the_address_that_was_printed_is_exchanged_for_a_cookie(browser: TestClient) -> None:
    answer = browser.get(f"/jobs/x?conn=&token={SECRET}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/jobs/x?conn="
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert SECRET not in cookie
    assert browser.get("/api/jobs").status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example", "//evil.example%5c@x/"])
def test_the_exchange_never_redirects_to_another_site(path: str) -> None:
    app = standalone_app(services(), SECRET, "slurmctl alice@login")
    scope_path = path.replace("%5c", "\\")

    async def with_path(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": scope_path, "raw_path": path.encode()}, receive, send)

    browser = TestClient(with_path, base_url="http://127.0.0.1:8077")
    answer = browser.get(f"/?token={SECRET}", follow_redirects=False)
    assert answer.status_code == 303
    assert urljoin("http://127.0.0.1:8077/", answer.headers["location"]).startswith(
        "http://127.0.0.1:8077/"
    )


def test_another_start_does_not_accept_the_cookie(browser: TestClient) -> None:
    browser.get(f"/?token={SECRET}")
    other = standalone_app(services(), "o" * 43, "bob")
    stranger = TestClient(other, base_url="http://127.0.0.1:8078", cookies=browser.cookies)
    assert stranger.get("/api/jobs").status_code == 401


def test_a_scraper_sends_the_token_in_a_header(browser: TestClient) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert browser.get("/metrics", headers=headers).status_code == 200
    assert browser.get("/metrics", headers={"Authorization": "Bearer x"}).status_code == 401
    assert browser.get("/metrics", headers={"Authorization": SECRET}).status_code == 401


def test_a_foreign_host_name_that_resolves_to_loopback_is_refused(browser: TestClient) -> None:
    headers = {"Host": "evil.example", "Authorization": f"Bearer {SECRET}"}
    assert browser.get("/api/jobs", headers=headers).status_code == 400


def test_the_user_is_named(browser: TestClient) -> None:
    browser.get(f"/?token={SECRET}")
    assert "slurmctl alice@login" in browser.get("/").text


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose services are nowhere."""
    file = tmp_path / "site.yaml"
    file.write_text(
        "storage: {table: t, prefix: s3://lab/lab}\n"
        "aws: {region: us-east-1, dynamodb_endpoint_url: 'http://127.0.0.1:9'}\n"
        "cluster: {transport: local}\n"
    )
    return file


def test_the_command_serves_on_loopback_until_it_is_interrupted(site: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--site", str(site), "--port", "0", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["url"]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{40,}", address)
        page = open_page(address)
        assert "<h1>Jobs</h1>" in page
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_a_port_in_use_is_reported_in_one_line(site: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [*COMMAND, "--site", str(site), "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"slurmctl: --port: {port} can't be used")


def open_page(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    deadline = time.monotonic() + 60
    while True:
        try:
            with opener.open(address, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline
