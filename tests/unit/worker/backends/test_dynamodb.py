"""What the table's client tells beside rows: AWS's time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from tests.unit.cli.conftest import empty_aws


class Observed:
    """A clock that remembers when the requests were sent that it was told of."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def observe(self, _date: str, sent: float, _received: float) -> None:
        self.sent.append(sent)


def test_a_reply_is_timed_from_its_own_request_whatever_other_threads_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty_aws(monkeypatch)
    times = iter([10.0, 13.0, 14.0])
    monkeypatch.setattr("slurm_worker.backends.dynamodb.boot_time", lambda: next(times))
    clock: Any = Observed()
    rows: Any = DynamoRows(dynamo_client(), "t", clock)
    rows._note_sent()
    other = threading.Thread(target=rows._note_sent)
    other.start()
    other.join()
    rows._observe({"ResponseMetadata": {"HTTPHeaders": {"date": "now"}}})
    assert clock.sent == [10.0]
