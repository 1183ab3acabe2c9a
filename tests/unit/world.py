"""A job in memory: plan items, run real workers on them, look at what came out."""

from __future__ import annotations

import gzip
import json
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.planning.planner import Planner
from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerIdentity
from slurm_worker.node.threads import PooledThreads
from slurm_worker.node.worker import Worker
from slurm_worker.protocol.job_config import (
    HandlerConfig,
    JobConfig,
    LeaseConfig,
    LimitConfig,
    WorkerConfig,
)
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore, Rows
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import ManualClock, MemoryObjects, MemoryRows

JOB = JobId("job-1")


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    debug = warning = error = exception = info


class Passing:
    """A signal for whose timed waits the clock is advanced: they take no real time."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._event = threading.Event()
        self.set, self.is_set = self._event.set, self._event.is_set

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return self._event.wait()
        if not self._event.is_set():
            self._clock.advance(timeout)
        return self._event.is_set()


@dataclass
class World:
    scratch: Path
    handle: Callable[[dict[str, Any], Any], object] = lambda item, context: dict(item)
    setup: Callable[[Any], object] | None = None
    teardown: Callable[[Any], object] | None = None
    bundle: int = 10
    rows: Rows = field(default_factory=MemoryRows)
    objects: ObjectStore = field(default_factory=MemoryObjects)
    clock: ManualClock = field(default_factory=ManualClock)
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    worker_config: WorkerConfig = field(default_factory=lambda: WorkerConfig(tries=2))
    limits: tuple[LimitConfig, ...] = ()
    shards: int = 8
    log: list[str] = field(default_factory=list)
    logger: Lines = field(default_factory=lambda: Lines())
    workers: int = 0
    job: JobId = JOB
    module: str = "handler_under_test"
    module_file: str = ""
    conditional_put: bool = True
    part_format: str = "jsonl.gz"
    columns: dict[str, str] = field(default_factory=dict)
    seconds_left: float | None = None
    requests: RequestCounts = field(default_factory=RequestCounts)

    @property
    def paths(self) -> JobPaths:
        return JobPaths("lab", self.job)

    @property
    def store(self) -> JobStore:
        return JobStore(self.objects, self.paths)

    @property
    def jobs(self) -> JobTable:
        return JobTable(self.rows, self.job, self.clock)

    @property
    def table(self) -> TaskTable:
        return TaskTable(self.rows, self.job, self.shards, self.lease, self.clock)

    def patient(self) -> Drain:
        """The drain of a worker whose waits take no real time, as they advance the clock."""
        return Drain(Passing(self.clock))

    def planner(self) -> Planner:
        return Planner(self.store, self.table, self.jobs, self.log.append)

    def plan(self, items: Iterable[tuple[str, dict[str, Any]]], round_no: int = 0) -> RoundRow:
        self.jobs.create("identity", "config", self.shards)
        round_row = self.jobs.create_round(round_no, "test")
        planned = self.planner().plan(round_row, items, self.bundle)
        self.jobs.open(round_no + 1)
        return planned

    def worker(self, drain: Drain | None = None, **changes: Any) -> Worker:
        return Worker(self.context(drain, **changes))

    def context(self, drain: Drain | None = None, **changes: Any) -> NodeContext:
        """A worker's context; `changes` replace fields of it."""
        self.workers += 1
        threads = PooledThreads()
        module = types.ModuleType(self.module)
        module.__file__ = self.module_file or None
        module.handle = self.handle  # type: ignore[attr-defined]  # a module made here
        if self.setup:
            module.setup = self.setup  # type: ignore[attr-defined]
        if self.teardown:
            module.teardown = self.teardown  # type: ignore[attr-defined]
        sys.modules[self.module] = module
        name = f"w{self.workers}"
        scratch = self.scratch / name
        scratch.mkdir(parents=True)
        config = JobConfig(
            job_id=self.job,
            table="t",
            bucket="b",
            prefix="lab",
            shards=self.shards,
            handler=HandlerConfig(f"{self.module}:handle", params={"p": 1}),
            conditional_put=self.conditional_put,
            part_format=self.part_format,
            columns=self.columns,
            limits=self.limits,
            lease=self.lease,
            worker=self.worker_config,
        )
        context = NodeContext(
            config=config,
            identity=WorkerIdentity(
                name, "000-1", {"array": "", "element": "", "restart": "", "node": "n"}
            ),
            store=self.store,
            jobs=self.jobs,
            table=self.table,
            buckets=lambda _name: self.objects,
            clock=self.clock,
            scratch=scratch,
            logger=self.logger,
            threads=threads,
            drain=drain or Drain(threads.signal()),
            rng=random.Random(7),
            seconds_left=self.seconds_left,
            requests=self.requests,
        )
        return replace(context, **changes)

    def task_rows(self) -> list[TaskRow]:
        rows = [row for shard in range(self.shards) for row in self.table.all_rows(shard)]
        return sorted(rows, key=lambda row: row.sk)

    def markers(self) -> list[Marker]:
        return list(self.store.markers())

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Every line of every committed part of a kind."""
        found = []
        for marker in self.markers():
            for part in marker.parts:
                if part.kind == kind:
                    data = gzip.decompress(self.store.read_part(part))
                    found += [json.loads(line) for line in data.splitlines()]
        return found


def numbered(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Items k0, k1, …, each with its number."""
    return [(f"k{n}", {"n": n}) for n in range(count)]
