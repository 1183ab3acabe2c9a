"""Counts a worker's requests to AWS by kind; each kind has its own price.

The SDK calls the counter right before each request is sent, so its own retries count too. Each
task's marker has the counts since the worker's last marker, and the task's row repeats them: the
counts cost no request. Cost: a dictionary look-up under a lock per request, some microseconds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any


class RequestKind(str, Enum):
    """The kinds of requests, for counts and prices."""

    DYNAMO_WRITE = "dynamo_write"  #: a row written, or a write refused by its condition
    DYNAMO_GET = "dynamo_get"  #: one row read
    DYNAMO_QUERY = "dynamo_query"  #: one page of rows read
    S3_PUT = "s3_put"  #: an object, or a part of a large one, written or copied
    S3_LIST = "s3_list"  #: a thousand keys listed
    S3_GET = "s3_get"  #: an object, or a range of one, read; or its size read
    S3_DELETE = "s3_delete"  #: an object deleted


_OF_LARGE_OBJECTS = (
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
)
#: The operations of each kind; no two services have one of the same name.
_OPERATIONS = {
    RequestKind.DYNAMO_WRITE: ("PutItem", "UpdateItem", "DeleteItem"),
    RequestKind.DYNAMO_GET: ("GetItem",),
    RequestKind.DYNAMO_QUERY: ("Query",),
    RequestKind.S3_PUT: ("PutObject", "CopyObject", *_OF_LARGE_OBJECTS),
    RequestKind.S3_LIST: ("ListObjectsV2",),
    RequestKind.S3_GET: ("GetObject", "HeadObject", "HeadBucket"),
    RequestKind.S3_DELETE: ("DeleteObject",),
}


class RequestCounts:
    """Counts requests until `take` is called; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def watch(self, client: Any) -> None:
        """Count the requests of a boto3 client from now on; operations without a kind are not."""
        service = client.meta.service_model.service_name
        for kind, operations in _OPERATIONS.items():
            for operation in operations:
                client.meta.events.register(
                    f"before-send.{service}.{operation}", lambda kind=kind, **_: self.count(kind)
                )

    def count(self, kind: RequestKind) -> None:
        """Count one request."""
        with self._lock:
            self._counts[kind.value] += 1

    def take(self) -> dict[str, int]:
        """The counts since the last call, by kind."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)

    def put_back(self, counts: Mapping[str, int]) -> None:
        """Count again what was taken and could not be recorded."""
        with self._lock:
            self._counts.update(counts)
