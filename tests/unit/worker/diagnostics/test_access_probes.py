"""What a machine may do with AWS is tried on its own row and object, and the time is asked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from slurm_worker.__main__ import main
from slurm_worker.diagnostics.access_probes import clock_ahead, probe_bucket, probe_table
from slurm_worker.diagnostics.node_report import filesystem_of
from slurm_worker.errors import AccessDenied, ServiceError
from slurm_worker.testing import MemoryObjects, MemoryRows

MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:20 / /tmp rw shared:1 - tmpfs tmpfs rw
23 21 0:21 / /home rw - nfs4 server:/home rw
24 23 8:2 / /home/my\\040scratch rw - xfs /dev/sdb1 rw
25 22 8:3 / /tmp rw - ext4 /dev/sdc1 rw
"""


class ReadOnly(MemoryObjects):
    def put(self, key: str, body: bytes) -> None:
        raise AccessDenied("An error occurred (AccessDenied) when calling the PutObject operation")


class Away(MemoryObjects):
    def list(self, prefix: str) -> Iterator[str]:
        raise ServiceError("the store is away")


def test_every_action_is_tried_and_nothing_is_left_behind() -> None:
    rows, objects = MemoryRows(), MemoryObjects()
    probes = [*probe_table(rows, "u"), *probe_bucket(objects, "lab", "u")]
    assert [probe.action for probe in probes if probe.error] == []
    assert {probe.action for probe in probes} == {
        *("dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem"),
        *("dynamodb:DeleteItem", "s3:ListBucket", "s3:PutObject", "s3:GetObject"),
        "s3:DeleteObject",
    }
    assert rows.get("JOB#doctor.probe", "TRIAL#u") is None
    assert objects.objects == {}


def test_a_denied_action_is_named_and_the_rest_is_tried() -> None:
    probes = {probe.action: probe.error for probe in probe_bucket(ReadOnly(), "lab", "u")}
    assert "AccessDenied" in probes.pop("s3:PutObject")
    assert set(probes.values()) == {""}


def test_a_service_that_is_away_is_tried_once() -> None:
    (probe,) = probe_bucket(Away(), "lab", "u")
    assert probe.error == "the store is away"


@contextmanager
def server_that_says(date: str, status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            if date:
                self.send_header("Date", date)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("status", [200, 403])
def test_clocks_that_agree_are_reported_as_equal(status: int) -> None:
    with server_that_says(formatdate(time.time(), usegmt=True), status) as url:
        # The server's answer is from before the request: ahead by as long as that took.
        ahead_s = clock_ahead(url)
        assert ahead_s is not None
        assert 0 <= ahead_s < 60


@pytest.mark.parametrize("ahead_s", [-300, 300])
def test_a_wrong_clock_is_reported_with_its_difference(ahead_s: int) -> None:
    with server_that_says(formatdate(time.time() - ahead_s, usegmt=True), 200) as url:
        found = clock_ahead(url)
        assert found is not None
        assert abs(found - ahead_s) < 60


def test_a_server_that_gives_no_time_says_nothing_about_the_clock_and_one_away_is_an_error() -> (
    None
):
    with server_that_says("", 200) as url:
        assert clock_ahead(url) is None
    with pytest.raises(ServiceError, match="can't be reached"):
        clock_ahead(url)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp", "ext4"),
        ("/tmp/x", "ext4"),
        ("/home/me", "nfs4"),
        ("/home/my scratch/x", "xfs"),
        ("/homes", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert filesystem_of(Path(path), MOUNTS) == kind


def test_a_missing_scratch_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "absent"))
    assert main(["check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "absent" in found["scratch_error"]
    assert "table" not in found
