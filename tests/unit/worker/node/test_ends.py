"""A worker whose credentials or clock are refused says so as it ends."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.errors import (
    ExpiredCredentials,
    NoCredentials,
    ServiceError,
    UserError,
    WrongClock,
    WrongSetting,
)
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.protocol.ports import Row
from slurm_worker.testing import MemoryRows
from tests.unit.answers import Answer, s3_refusal, serving
from tests.unit.world import World, numbered

KEY = f"lab/jobs/job-1/config/{hashlib.sha256(b'').hexdigest()}.json"


class Refusing(MemoryRows):
    """A table that refuses the first queries; writes, such as of an event, are accepted."""

    refusals = 9
    error = ServiceError("away")

    def query(self, *args: Any, **options: Any) -> Iterator[Row]:
        if self.refusals:
            self.refusals -= 1
            raise self.error
        return super().query(*args, **options)


@pytest.mark.parametrize(
    ("error", "code", "actions"),
    [
        (
            ExpiredCredentials("they have expired", "renew"),
            WorkerExit.CREDENTIALS,
            ["no_credentials"],
        ),
        (NoCredentials("there are none"), WorkerExit.CREDENTIALS, ["no_credentials"]),
        (WrongClock("an hour behind", "use NTP"), WorkerExit.CLOCK, ["wrong_clock"]),
        (WrongSetting("another region"), WorkerExit.INFRASTRUCTURE, []),
        (ServiceError("away"), WorkerExit.INFRASTRUCTURE, []),
    ],
)
def test_a_worker_that_a_service_refuses_says_why_in_its_exit_code_and_an_event(
    tmp_path: Path, error: ServiceError, code: WorkerExit, actions: list[str]
) -> None:
    rows = MemoryRows()
    world = World(tmp_path, rows=rows)
    world.plan(numbered(20))
    rows.__class__ = Refusing
    rows.error = error  # type: ignore[attr-defined]  # it is a Refusing now
    assert world.worker(world.patient()).run() is code
    rows.__class__ = MemoryRows
    events = [
        event for event in world.jobs.events() if event.action in {"no_credentials", "wrong_clock"}
    ]
    assert [event.action for event in events] == actions
    assert [event.detail["error"] for event in events] == [str(error)] * len(actions)
    assert {(row.lost, row.tries) for row in world.task_rows()} == {(0, 0)}


def test_the_exit_code_of_a_mistake_in_the_job_stays_that_of_the_configuration() -> None:
    assert WorkerExit.after(UserError("handler.entry: no")) is WorkerExit.CONFIG


def run_worker(answer: Answer) -> subprocess.CompletedProcess[str]:
    """A worker process whose store answers so to its first request."""
    with serving(lambda _: answer) as server:
        return subprocess.run(
            [sys.executable, "-m", "slurm_worker", "run", "--config", f"s3://lab/{KEY}"],
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": "an id",
                "AWS_SECRET_ACCESS_KEY": "a secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL_S3": server.url,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (s3_refusal(400, "ExpiredToken"), 77, ("credentials have expired", "renew them")),
        (s3_refusal(403, "RequestTimeTooSkewed"), 78, ("the clock of", "NTP")),
    ],
)
def test_a_worker_that_can_read_nothing_at_its_start_ends_with_the_reason(
    answer: Answer, code: int, words: tuple[str, str]
) -> None:
    ended = run_worker(answer)
    assert ended.returncode == code
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"slurm-worker: s3://lab/{KEY}: ")
    assert all(each in line for each in words)
