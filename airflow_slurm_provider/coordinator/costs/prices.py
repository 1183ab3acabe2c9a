"""What requests to AWS cost, and how many a job of a given shape takes: pure functions.

Prices are the public ones of us-east-1, per million requests, as of 24 November 2026, from
aws.amazon.com/dynamodb/pricing/on-demand (unchanged since the cut of 1 November 2024) and
aws.amazon.com/s3/pricing (S3 Standard). Not in them: storage, traffic out of the region,
free tiers, discounts, and requests of a handler's own clients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator.planning.planner import SEGMENT_ITEMS
from slurm_worker.backends.request_counter import RequestKind
from slurm_worker.rate_limits.slices import reservation_of

PRICES_OF = "2026-11-24"
REGION = "us-east-1"

_WRITE_UNIT, _READ_UNIT = 0.625, 0.125
#: Dollars of a million requests, by kind.
PRICES: Mapping[RequestKind, float] = {
    RequestKind.DYNAMO_WRITE: _WRITE_UNIT,  # rows stay under 1 KB; a refused write costs as much
    RequestKind.DYNAMO_GET: _READ_UNIT,  # rows under 4 KB; half where a second's age will do
    RequestKind.DYNAMO_QUERY: 3 * _READ_UNIT,  # 20 task rows of about 500 bytes, as it is now
    RequestKind.S3_PUT: 5.0,  # also copies, and each part of a large object
    RequestKind.S3_LIST: 5.0,  # a thousand keys
    RequestKind.S3_GET: 0.4,  # also HEAD
    RequestKind.S3_DELETE: 0.0,
}

#: Of each submit: code, configuration, the draft's summary, and two to test conditional PUT.
_SUBMIT_PUTS = 5
#: Job, register, round, its opening and the job's, intent, arrays, two events of the audit log.
_ROUND_WRITES = 9
_ROUND_READS = 2
_ROWS_PER_CURSOR = 2_000
#: A worker reads configuration, code, the files of `setup`, and its shard.
_START_GETS, _START_READS = 4, 2
#: At the job's end a worker reads four shards, two pages each, and uploads its log.
_END_QUERIES, _END_PUTS = 8, 1


@dataclass(frozen=True, slots=True)
class Bill:
    """Requests by kind, and what they cost."""

    requests: dict[str, int]

    @property
    def by_kind(self) -> dict[str, float]:
        """Dollars by kind."""
        return {
            kind.value: self.requests[kind.value] * PRICES[kind] / 1e6
            for kind in RequestKind
            if kind.value in self.requests
        }

    @property
    def dollars(self) -> float:
        """All of it."""
        return sum(self.by_kind.values())

    def __add__(self, other: Bill) -> Bill:
        """Both together."""
        return bill_of(Counter(self.requests) + Counter(other.requests))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "requests": self.requests,
            "dollars_by_kind": {kind: round(dollars, 8) for kind, dollars in self.by_kind.items()},
            "dollars": round(self.dollars, 8),
        }


def bill_of(requests: Mapping[str, int]) -> Bill:
    """The bill for requests by kind, such as `JobTotals.requests`."""
    order = [kind.value for kind in RequestKind]
    return Bill({kind: requests[kind] for kind in order if requests.get(kind)})


def planning_bill(tasks: int, items: int, rounds: int = 1) -> Bill:
    """The coordinator's requests to plan and submit so many tasks, with their rows."""
    segments, cursors = math.ceil(items / SEGMENT_ITEMS), math.ceil(tasks / _ROWS_PER_CURSOR)
    return bill_of(
        {
            RequestKind.DYNAMO_WRITE: tasks + cursors + rounds * _ROUND_WRITES,
            RequestKind.DYNAMO_GET: rounds * _ROUND_READS,
            RequestKind.DYNAMO_QUERY: rounds,
            # And the list of the input's files.
            RequestKind.S3_PUT: segments + 1 + rounds * _SUBMIT_PUTS,
            RequestKind.S3_LIST: rounds,
            RequestKind.S3_GET: rounds,
        }
    )


def working_bill(
    tasks: int,
    workers: int,
    *,
    busy_s: float = 0.0,
    heartbeat_s: float = 30.0,
    reservations: int = 0,
) -> Bill:
    """The requests of so many worker processes, if no task is tried twice.

    All tasks together take `busy_s` seconds; `reservations` are slices of rate limits.
    """
    beats = int(busy_s / heartbeat_s)
    return bill_of(
        {
            # Claim and complete.
            RequestKind.DYNAMO_WRITE: 2 * tasks + beats + reservations,
            RequestKind.DYNAMO_GET: tasks + workers * _START_READS,
            RequestKind.DYNAMO_QUERY: tasks,
            # Rows, errors (where items fail) and the marker.
            RequestKind.S3_PUT: 3 * tasks,
            RequestKind.S3_GET: tasks + workers * _START_GETS,
        }
    ) + ending_bill(workers)


def ending_bill(workers: int) -> Bill:
    """The workers' requests after their last marker, which no marker counts."""
    return bill_of(
        {
            RequestKind.DYNAMO_WRITE: workers,
            RequestKind.DYNAMO_QUERY: workers * _END_QUERIES,
            RequestKind.S3_PUT: workers * _END_PUTS,
        }
    )


def merging_bill(tasks: int) -> Bill:
    """The requests to publish the dataset: every marker and part is read once."""
    return bill_of(
        {
            RequestKind.DYNAMO_WRITE: 1,
            RequestKind.S3_LIST: math.ceil(tasks / 1000),
            RequestKind.S3_GET: 3 * tasks,
            RequestKind.S3_PUT: 4,
        }
    )


def reservations_of(rate: float, items: int, workers: int, quota: int | None = None) -> int:
    """Writes to a limit's row for one token an item; `quota` is per day."""
    return math.ceil(items / reservation_of(rate, workers, quota))
