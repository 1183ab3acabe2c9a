"""The product's own code as programs of processes: workers, and the user's commands."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.slurm.client import SlurmClient
from slurm_worker.errors import ErrorClass, ItemError, ServiceError, UserError
from slurm_worker.execution.context import Context
from slurm_worker.node import worker as worker_module
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerExit, WorkerIdentity
from slurm_worker.node.worker import Worker, read_config
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, split_s3_uri
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.results.journal import Journal
from tests.simulator.exhaustive.history import Program
from tests.simulator.exhaustive.ports import Slurm, Store, Table
from tests.simulator.exhaustive.process import Clock, FixedChance, LateThreads, Process
from tests.simulator.fleet import Silent

JOB = JobId("small")
BUCKET, PREFIX, INPUT = "lab", "lab", "input/items.jsonl"
PATHS = JobPaths(PREFIX, JOB)
_SITE = parse_site(
    {
        "storage": {"table": "t", "prefix": f"s3://{BUCKET}/{PREFIX}"},
        "cluster": {"transport": "local", "worker_command": "slurm-worker"},
    },
    "site",
)
#: What a command does.
Verb = Callable[[Services], Any]


def command(name: str, verb: Verb, *, conditional: bool = True) -> Program:
    """A process of the user, which runs a command once."""

    def main(process: Process) -> str:
        store = Store(process, conditional=conditional)
        services = Services(
            site=_SITE,
            rows=Table(process),
            objects=store,
            slurm=cast("SlurmClient", Slurm(process)),
            clock=Clock(process),
            bucket=lambda _name: store,
            sts=lambda: None,
        )
        try:
            verb(services)
        except (ServiceError, UserError) as error:
            return f"error: {error}"
        return "done"

    return Program(name, main)


@dataclass(frozen=True, slots=True)
class Edges:
    """What a worker reaches the services by; others break the protocol on purpose."""

    store: type[Store] = Store
    table: Callable[[Store], type[TaskTable]] = lambda _store: TaskTable


def worker(name: str, options: dict[str, str], edges: Edges, *, conditional: bool) -> Program:
    """A worker process of an array's element, such as ``100_0``."""

    def main(process: Process) -> str:
        store = edges.store(process, conditional=conditional)
        try:
            return str(
                int(Worker(_context(process, name, options, edges.table(store), store)).run())
            )
        except ServiceError:
            return str(int(WorkerExit.INFRASTRUCTURE))

    return Program(name, main)


def _context(
    process: Process, name: str, options: dict[str, str], table: type[TaskTable], store: Store
) -> NodeContext:
    _, key = split_s3_uri(options["--config"], "--config")
    config = read_config(store.get(key), key)
    # Leases are short: they run out while another worker waits for the second time.
    config = replace(config, lease=replace(config.lease, ttl_s=0.5))
    rows, clock, threads = Table(process), Clock(process), LateThreads(process)
    array_id, _, element = name.partition("_")
    slurm = {"array": array_id, "element": element, "restart": "0", "node": "n1"}
    return NodeContext(
        config=config,
        identity=WorkerIdentity(f"{name}-r0-00000001", options["--submission"], slurm),
        store=JobStore(store, JobPaths(config.prefix, JOB)),
        jobs=JobTable(rows, JOB, clock),
        table=table(rows, JOB, config.shards, config.lease, clock),
        buckets=lambda _: store,
        clock=clock,
        scratch=_SCRATCH,
        logger=Silent(),
        threads=threads,
        drain=Drain(threads.signal()),
        rng=FixedChance(process),
        requeue=lambda _slurm: "",
    )


#: Nothing is written there: journals are in memory.
_SCRATCH = Path(tempfile.gettempdir()) / f"exhaustive-{os.getpid()}"


def in_memory() -> Any:
    """Keep the workers' journals in memory: a file of SQLite takes longer than all the rest."""

    def make(_path: Path) -> Journal:
        return Journal(Path(":memory:"))

    return mock.patch.object(worker_module, "Journal", make)


def handle(item: dict[str, Any], _context: Context) -> object:
    """The user's handler: an item is squared, or fails."""
    if item.get("bad"):
        raise ItemError(ErrorClass.BAD_INPUT, "bad")
    return {"square": item["n"] * item["n"]}
