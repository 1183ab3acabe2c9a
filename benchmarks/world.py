"""A job in memory for the benchmarks: the real worker, and services that answer at once or late."""

from __future__ import annotations

import hashlib
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slurm_worker.backends.clock import boot_time
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerIdentity
from slurm_worker.node.threads import PooledThreads
from slurm_worker.node.worker import Worker
from slurm_worker.protocol.job_config import HandlerConfig, JobConfig, LeaseConfig, WorkerConfig
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore, Rows
from slurm_worker.protocol.slices import Slice, pack_slice
from slurm_worker.protocol.task_table import TaskTable

JOB = JobId("benchmark")
SHARDS = 8
SEGMENT = 50_000


class WallClock:
    """Real time."""

    def now(self) -> float:
        return time.time()

    boot_time = staticmethod(boot_time)

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


class Late:
    """Any service, with this number of seconds added to each call."""

    def __init__(self, edge: Any, seconds: float) -> None:
        self._edge = edge
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._edge, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(self._seconds)
            result = method(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result

        return call


class Silent:
    def info(self, event: str, **fields: Any) -> None:
        pass

    debug = warning = error = exception = info


def items(first: int, count: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"k{n}", {"n": n}) for n in range(first, first + count)]


def plan(rows: Rows, objects: ObjectStore, count: int, bundle: int) -> None:
    """Segments of 50,000 items and their task rows; one segment at a time is in memory."""
    clock = WallClock()
    jobs = JobTable(rows, JOB, clock)
    jobs.create("identity", "config", SHARDS)
    jobs.create_round(0, "benchmark")
    table = TaskTable(rows, JOB, SHARDS, LeaseConfig(), clock)
    sequence = 0
    for segment, start in enumerate(range(0, count, SEGMENT)):
        body = bytearray()
        for at in range(start, min(start + SEGMENT, count), bundle):
            some = items(at, min(bundle, count - at))
            data = pack_slice(some)
            digest = hashlib.sha256(data).hexdigest()
            where = Slice(segment, len(body), len(data), len(some), digest)
            table.create(0, sequence, where)
            body += data
            sequence += 1
        objects.put(JobPaths("lab", JOB).segment(0, segment), bytes(body))
    jobs.open(1)


def worker(
    rows: Rows,
    objects: ObjectStore,
    handle: Callable[..., Any],
    scratch: Path,
    options: WorkerConfig | None = None,
) -> Worker:
    module = types.ModuleType("benchmark_handler")
    module.handle = handle  # type: ignore[attr-defined]  # a module made here
    sys.modules["benchmark_handler"] = module
    threads = PooledThreads()
    clock = WallClock()
    config = JobConfig(
        job_id=JOB,
        table="t",
        bucket="b",
        prefix="lab",
        shards=SHARDS,
        handler=HandlerConfig("benchmark_handler:handle"),
        worker=options or WorkerConfig(),
    )
    context = NodeContext(
        config=config,
        identity=WorkerIdentity(
            "w1", "000-1", {"array": "", "element": "", "restart": "", "node": "n"}
        ),
        store=JobStore(objects, JobPaths(config.prefix, JOB)),
        jobs=JobTable(rows, JOB, clock),
        table=TaskTable(rows, JOB, SHARDS, config.lease, clock),
        buckets=lambda _: objects,
        clock=clock,
        scratch=scratch,
        logger=Silent(),
        threads=threads,
        drain=Drain(threads.signal()),
        rng=random.Random(1),
    )
    return Worker(context)
