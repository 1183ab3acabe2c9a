"""What one simulated backfill consists of: table, store, cluster, time; and clients of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.slurm.client import SlurmClient
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_rows import JobRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, TaskState
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.engine.schedule import Host, Schedule, SimClock
from tests.simulator.engine.seen import Seen
from tests.simulator.slurm.cluster import ArrayElement, Controller
from tests.simulator.slurm.login_node import LoginNode, SimTransport
from tests.simulator.stores.credentials import ROLE, Signer, Sts
from tests.simulator.stores.network import Network
from tests.simulator.stores.objects import SimObjects, WatchedObjects
from tests.simulator.stores.outages import FaultRates, Outages
from tests.simulator.stores.rows import SimRows, WatchedRows, remember

JOB = JobId("simulated")
BUCKET, PREFIX, INPUT = "lab", "lab", "input/items.jsonl"
_SITE = {
    "storage": {"table": "t", "prefix": f"s3://{BUCKET}/{PREFIX}"},
    "cluster": {"transport": "local", "worker_command": "slurm-worker"},
}
#: The most that a clock is wrong, in seconds.
SKEW_S = 2.0


@dataclass
class World:
    """Everything that outlives the processes."""

    schedule: Schedule
    seen: Seen
    controller: Controller
    node: LoginNode
    rates: FaultRates
    outages: Outages = field(default_factory=Outages)
    conditional_put: bool = True  #: whether the store heeds ``If-None-Match``
    conditional_replace: bool = True  #: whether it heeds ``If-Match``
    skew_s: float = SKEW_S  #: the most that a clock is wrong
    role: bool = False  #: whether the nodes get credentials of a role, which expire
    rows: WatchedRows = field(default_factory=WatchedRows)
    objects: WatchedObjects = field(default_factory=WatchedObjects)
    #: Called with the process of each command that has succeeded.
    command_done: Callable[[Host], None] = lambda _host: None
    scratch: Path = Path()
    started: Counter[str] = field(default_factory=Counter)  #: processes, by name
    calls: Counter[str] = field(default_factory=Counter)  #: of the handler, by item
    elements: dict[Host, ArrayElement] = field(default_factory=dict)  #: by worker process
    owners: dict[str, Host] = field(default_factory=dict)  #: worker processes, by their name
    endless: bool = False  #: whether calls of the handler may never return
    #: Deaths of processes, by the task and the position of the item that ran
    deaths: Counter[tuple[str, int]] = field(default_factory=Counter)
    #: Those whose supervisor has killed them because the item did not end
    hangs: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        remember(self.rows, self.seen, self.schedule)

    def host(self, name: str) -> Host:
        """A process whose clock is wrong; its name gets a number."""
        self.started[name] += 1
        name = f"{name} {self.started[name]}"
        return Host(name, self.seen.rng_of(name).uniform(-1, 1) * self.skew_s)

    def say(self, line: str) -> None:
        """Append a line to the record, with the time."""
        self.seen.say(line)

    def died(self, task: str, position: int | None, *, hung: bool) -> None:
        """A worker process has died."""
        if task and position is not None:
            self.deaths[task, position] += 1
            if hung:
                self.hangs.add((task, position))

    def network(
        self,
        rng: random.Random,
        answered: Callable[[str], None] = lambda _name: None,
        node: Host | None = None,
    ) -> Network:
        """A process's connection to the services; `node` is a worker process."""
        signer = self.signer(node) if node is not None and self.role else None
        authorize = _nothing if signer is None else signer.check
        return Network(self.schedule, rng, self.rates, self.seen, self.outages, answered, authorize)

    def signer(self, host: Host) -> Signer:
        """The credentials of a worker process."""
        clock, right = SimClock(self.schedule, host), SimClock(self.schedule, Host("AWS"))
        return Signer(self.node.files, clock.now, right.now, self._expired)

    def _expired(self) -> None:
        self.seen.faults["credentials expired"] += 1

    def store(self, network: Network) -> SimObjects:
        """The object store, as a process sees it."""
        return SimObjects(
            self.objects,
            network,
            self.seen,
            conditional_put=self.conditional_put,
            conditional_replace=self.conditional_replace,
        )

    def services(self, host: Host, network: Network) -> Services:
        """A command's services."""
        objects = self.store(network)
        slurm = SlurmClient(
            SimTransport(self.schedule, self.node, network),
            ".airflow-slurm",
            lambda: self.schedule.now,
            self.schedule.sleep,
        )
        return Services(
            site=parse_site(
                _SITE | {"aws": {"node_role_arn": ROLE}} if self.role else _SITE, "site"
            ),
            rows=SimRows(self.rows, network, self.seen),
            objects=objects,
            slurm=slurm,
            clock=SimClock(self.schedule, host),
            bucket=lambda _name: objects,
            sts=lambda: Sts(SimClock(self.schedule, Host("AWS")).now),
        )

    # --- the truth, without a network -------------------------------------------

    @property
    def paths(self) -> JobPaths:
        """The job's keys."""
        return JobPaths(PREFIX, JOB)

    @property
    def truth(self) -> JobStore:
        """The job's objects as they are."""
        return JobStore(self.objects, self.paths)

    @property
    def jobs(self) -> JobTable:
        """The job's rows as they are."""
        return JobTable(self.rows, JOB, SimClock(self.schedule, Host("checker")))

    def job(self) -> JobRow | None:
        """The job's row."""
        return self.jobs.find()

    def task_rows(self) -> Iterator[TaskRow]:
        """All task rows."""
        job = self.job()
        if job is not None:
            table = TaskTable(self.rows, JOB, job.shards, LeaseConfig(), self.jobs.clock)
            for shard in range(job.shards):
                yield from table.all_rows(shard)

    def complete(self) -> bool:
        """Whether every task that has a row has ended."""
        states = self.rows.tasks.values()
        return bool(states) and all(TaskState(state).terminal for state in states)

    def states(self) -> str:
        """The tasks that have not ended, for a message."""
        rows = [row for row in self.task_rows() if not row.state.terminal]
        return ", ".join(f"{row.task} {row.state.value}" for row in rows) or "all tasks have ended"


def _nothing() -> None:
    """The node's own credentials do not expire."""
