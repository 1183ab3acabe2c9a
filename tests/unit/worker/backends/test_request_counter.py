"""Each request to AWS is counted when it is sent, and recorded in one marker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.request_counter import RequestCounts, RequestKind
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import ServiceError
from slurm_worker.node.slurm_job import Drain
from slurm_worker.node.threads import PooledThreads
from slurm_worker.testing import MemoryObjects
from tests.unit.world import World, numbered

SESSION = boto3.Session("id", "secret", region_name="us-east-1")


class Raw:
    """The body of a reply."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self) -> Any:
        yield self.body


class Answers:
    """Answers requests before they leave, each with the next status; then with the last."""

    def __init__(self, *statuses: int, body: bytes) -> None:
        self.body = body
        self.statuses = list(statuses)
        self.asked = 0

    def __call__(self, request: Any, **_: object) -> AWSResponse:
        self.asked += 1
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return AWSResponse(request.url, status, {}, Raw(self.body))  # type: ignore[arg-type]


def test_repeats_of_the_sdk_are_counted_too() -> None:
    client, counts, answers = dynamo_client(SESSION), RequestCounts(), Answers(500, 200, body=b"{}")
    counts.watch(client)
    client.meta.events.register("before-send.dynamodb", answers)
    rows = DynamoRows(client, "t", AwsClock())
    assert rows.get("a", "b") is None
    assert (answers.asked, counts.take()) == (2, {"dynamo_get": 2})


def test_each_kind_has_its_own_count() -> None:
    client, counts = s3_client(SESSION), RequestCounts()
    counts.watch(client)
    client.meta.events.register("before-send.s3", Answers(200, body=b""))
    objects = S3Objects(client, "b")
    objects.put("k", b"1")
    objects.put_new("k", b"1")
    objects.delete("k")
    assert counts.take() == {"s3_put": 2, "s3_delete": 1}
    assert counts.take() == {}, "a request is counted once"


def test_a_marker_counts_the_workers_requests_since_its_last_marker(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=1)

    def handle(item: dict[str, Any], _context: Any) -> dict[str, Any]:
        for _ in range(item["n"]):
            world.requests.count(RequestKind.S3_GET)
        return item

    world.handle = handle
    world.plan(numbered(4))
    world.worker().run()
    told = {row.task: row.requests for row in world.task_rows()}
    assert {marker.task: marker.requests for marker in world.markers()} == told
    assert sum(each.get("s3_get", 0) for each in told.values()) == 0 + 1 + 2 + 3
    assert world.requests.take() == {}


class RefusesMarkers(MemoryObjects):
    """Away when the first marker is to be written; ends the worker after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.markers = 0
        self.drain = Drain(PooledThreads().signal())

    def put_new(self, key: str, body: bytes) -> bool:
        if key.endswith(".done"):
            self.markers += 1
            if self.markers == 1:
                raise ServiceError("away")
            self.drain.stop_requested.set()
        return super().put_new(key, body)


def test_requests_that_a_marker_could_not_record_are_in_the_next_marker(tmp_path: Path) -> None:
    objects = RefusesMarkers()
    world = World(tmp_path, objects=objects)
    world.plan(numbered(20))
    world.requests.count(RequestKind.DYNAMO_WRITE)
    world.worker(objects.drain).run()
    assert [row.requests for row in world.task_rows() if row.requests] == [{"dynamo_write": 1}]


@pytest.mark.parametrize("kind", list(RequestKind))
def test_counts_that_are_put_back_are_added_to_newer_counts(kind: RequestKind) -> None:
    counts = RequestCounts()
    counts.count(kind)
    taken = counts.take()
    counts.count(kind)
    counts.put_back(taken)
    assert counts.take() == {kind.value: 2}
