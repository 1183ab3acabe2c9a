"""A mass start: thousands of workers lease their tasks, over the real finder and table.

    python -m benchmarks.claims [--short] [--json]

Time is simulated: each request takes 8 ms, each task about a minute. Units are as in DynamoDB's
documentation: 4 KB of a consistent Query are one read unit, and a write of a row under 1 KB is one
write unit. A partition serves 1,000 write and 3,000 read units per second.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import greenlet

from slurm_worker.node.task_finder import Found, TaskFinder
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId, shard_count
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.testing import MemoryRows

JOB = JobId("benchmark")
LATENCY_S = 0.008
TASK_S = 60.0
STARTS_PER_S = 500
ROW_BYTES = 436
WRITE_LIMIT, READ_LIMIT = 1000, 3000


class Hub:
    """Simulated time; each worker is a greenlet that yields instead of waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, greenlet.greenlet]] = []
        self._order = itertools.count()
        self._main = greenlet.getcurrent()

    def spawn(self, function: Any, delay: float) -> None:
        made = greenlet.greenlet(function, parent=self._main)
        heapq.heappush(self._queue, (self.now + delay, next(self._order), made))

    def sleep(self, seconds: float) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), greenlet.getcurrent()))
        self._main.switch()

    def run(self) -> None:
        while self._queue:
            self.now, _, worker = heapq.heappop(self._queue)
            worker.switch()


class HubClock:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def now(self) -> float:
        return 1.7e9 + self._hub.now

    def boot_time(self) -> float:
        return self._hub.now

    def sleep(self, seconds: float) -> None:
        self._hub.sleep(seconds)


class CountedRows:
    """The table in memory; it counts the time and the units of requests."""

    def __init__(self, hub: Hub, rng: random.Random) -> None:
        self.rows = MemoryRows()
        self.refused = self.claimed = 0
        self.writes: Counter[tuple[str, int]] = Counter()
        self.reads: Counter[tuple[str, int]] = Counter()
        self._hub = hub
        self._rng = rng

    def _wait(self) -> None:
        self._hub.sleep(self._rng.uniform(0.1, 0.9) * LATENCY_S)

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        self._wait()
        self.writes[pk, int(self._hub.now)] += 1
        result = self.rows.update(pk, sk, statement)
        if statement.name == "claim":
            self.claimed += isinstance(result, Applied)
            self.refused += isinstance(result, Refused)
        self._wait()
        return result

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        self._wait()
        found = list(
            self.rows.query(
                pk, after=after, limit=limit, consistent=consistent, backwards=backwards
            )
        )
        units = max(1, -(-len(found) * ROW_BYTES // 4096))
        self.reads[pk, int(self._hub.now)] += units
        self._wait()
        yield from found

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        return self.rows.get(pk, sk, consistent=consistent)

    def put_new(self, row: Row) -> Applied | Refused:
        return self.rows.put_new(row)

    def delete(self, pk: str, sk: str) -> None:
        self.rows.delete(pk, sk)


def simulate(workers: int, tasks_each: int, seed: int = 1) -> dict[str, Any]:
    """One job from its mass start to its end; no worker dies."""
    hub, rng = Hub(), random.Random(seed)
    rows, clock = CountedRows(hub, rng), HubClock(hub)
    shards = shard_count(workers)
    table = TaskTable(rows, JOB, shards, LeaseConfig(), clock)
    tasks = workers * tasks_each
    for sequence in range(tasks):
        table.create(0, sequence, Slice(0, 0, 1000, 500, "0" * 64))
    took: list[float] = []

    def work(name: str, own: random.Random) -> None:
        finder = TaskFinder(table, name, clock, own)
        while True:
            began = hub.now
            found = finder.next()
            if not isinstance(found, Found):
                return
            took.append(hub.now - began)
            hub.sleep(own.uniform(0.7, 1.3) * TASK_S)
            table.complete(Marker(JOB, found.lease.task, found.lease.attempt, name, 1, 1, 1))

    for number in range(workers):
        own = random.Random(rng.random())
        hub.spawn(
            lambda number=number, own=own: work(f"w{number}", own),
            rng.uniform(0, workers / STARTS_PER_S),
        )
    hub.run()
    assert rows.claimed == tasks
    return {
        "workers": workers,
        "shards": shards,
        "tasks": tasks,
        "failed_claims_per_claim": round(rows.refused / rows.claimed, 4),
        "writes_per_task": round(rows.writes.total() / tasks, 2),
        "read_units_per_task": round(rows.reads.total() / tasks, 2),
        "claim_p99_ms": round(1000 * sorted(took)[int(0.99 * len(took))], 1),
        "most_writes_of_a_shard_per_s": max(rows.writes.values()),
        "most_read_units_of_a_shard_per_s": max(rows.reads.values()),
    }


def figures(*, short: bool) -> list[dict[str, Any]]:
    return [simulate(100, 3)] if short else [simulate(1_000, 3), simulate(10_000, 3)]


def show(description: str | None, measure: Callable[[bool], list[dict[str, Any]]]) -> None:
    """Parse the common options and print one line per measurement."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for each in measure(arguments.short):
        line = ", ".join(f"{name} {value}" for name, value in each.items())
        print(json.dumps(each) if arguments.json else line)


if __name__ == "__main__":
    show(__doc__, lambda short: figures(short=short))
