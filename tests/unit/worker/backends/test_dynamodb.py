"""AWS's time, which the table's client reads from each reply."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse

from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client


class Observed:
    """A clock that remembers when the requests were sent whose replies it observes."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def observe(self, _date: str, sent: float, _received: float) -> None:
        self.sent.append(sent)


class Body(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()


def test_a_reply_is_timed_from_its_own_request_whatever_other_threads_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([10.0, 13.0, 14.0, 15.0])
    monkeypatch.setattr("slurm_worker.backends.dynamodb.boot_time", lambda: next(times))
    session = boto3.Session("an id", "a secret", region_name="eu-central-1")
    client, clock = dynamo_client(session, "http://localhost:1"), Observed()
    rows = DynamoRows(client, "t", clock)  # type: ignore[arg-type]  # a clock that only observes
    main = threading.current_thread()

    def reply(request: Any, **_: object) -> AWSResponse:
        if threading.current_thread() is main:
            other = threading.Thread(target=rows.get, args=("p", "s"))
            other.start()
            other.join()
        return AWSResponse(request.url, 200, {"date": "now"}, Body(b"{}"))

    client.meta.events.register_last("before-send.dynamodb", reply)
    assert rows.get("p", "s") is None
    assert clock.sent == [13.0, 10.0]
