"""A job in virtual time: real rows and real snapshots, and modelled workers.

Workers lease, renew, complete and take over through `TaskTable`, and `read_snapshot` makes every
snapshot. Only what runs between (how long an item takes, whether it fails, which worker dies) is
drawn from a seed. An hour of a hundred workers takes a second or two.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from airflow_slurm_provider.coordinator.anomalies.baseline import Observation
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import LimitSection
from airflow_slurm_provider.coordinator.status.rate_limits import limit_states
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId, TaskId
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Claimed, Lease
from slurm_worker.testing import ManualClock, MemoryRows
from tests.unit.coordinator.fakes import services as new_services

LEASE = LeaseConfig(ttl_s=120.0, heartbeat_s=30.0, margin_s=15.0, max_lost=100)
SHARDS = 8
#: A worker whose task takes forever.
FOREVER = 1e9
#: What a task was to cost, in dollars: a job of 400 costs 20.
_PER_TASK = 0.05


@dataclass
class Plan:
    """What a job is like, and what goes wrong with it.

    Args:
        seconds: a task's time at the median; `spread` is its log-normal sigma.
        failing: share of items that fail, by class, given the node and the time.
        slowness: factor on a task's time, given worker, node and time.
        dies: whether a worker dies at the moment it would renew, given the same.
        gives_back: whether a worker gives a task back at once, given the same.
        dollars: what a task costs, if anybody counts.
        started_s: seconds over which the workers start.
    """

    tasks: int = 400
    bundle: int = 100
    workers: int = 10
    nodes: int = 2
    seconds: float = 30.0
    spread: float = 0.4
    failing: Callable[[str, float], dict[str, float]] = lambda node, t: {"not_found": 0.01}
    slowness: Callable[[int, str, float], float] = lambda worker, node, t: 1.0
    dies: Callable[[int, str, float], bool] = lambda worker, node, t: False
    gives_back: Callable[[int, str, float], bool] = lambda worker, node, t: False
    limits: dict[str, LimitSection] = field(default_factory=dict)
    limit_row: Callable[[float], dict[str, int]] | None = None
    dollars: float | None = None
    started_s: float = 20.0
    most_s: float = 4 * 3600.0
    interval_s: float = 20.0
    seed: int = 1


@dataclass(order=True)
class _Turn:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Fleet:
    """The job; `looks` runs it."""

    def __init__(self, plan: Plan, services: Services | None = None) -> None:
        self.plan = plan
        self.services = services or new_services()
        self.job = JobId("fleet")
        self.rng = random.Random(plan.seed)
        assert isinstance(self.services.clock, ManualClock)
        assert isinstance(self.services.rows, MemoryRows)
        self.clock, self.rows = self.services.clock, self.services.rows
        self.began = self.clock.now()
        self.table = TaskTable(self.rows, self.job, SHARDS, LEASE, self.clock)
        self.ready: list[TaskId] = []
        self.held: dict[TaskId, Lease] = {}
        self.dead: set[int] = set()
        self.done = 0
        self._turns: list[_Turn] = []
        self._numbers = 0
        self._create()

    def observations(self) -> Iterator[Observation]:
        """Observation after look until the job is done, or its time is over."""
        for worker in range(self.plan.workers):
            self._after(self.rng.uniform(0, self.plan.started_s), lambda w=worker: self._lease(w))
        next_look = self.plan.interval_s
        while next_look <= self.plan.most_s:
            while self._turns and self._turns[0].at <= next_look:
                turn = heapq.heappop(self._turns)
                self._go_to(turn.at)
                turn.act()
            self._go_to(next_look)
            next_look += self.plan.interval_s
            observation = self.observe()
            yield observation
            if observation.finished:
                return

    def observe(self) -> Observation:
        """One observation."""
        if self.plan.limit_row is not None:
            self._set_limits(self.plan.limit_row(self.elapsed))
        plan, alive = self.plan, self.plan.workers - len(self.dead)
        return Observation(
            read_snapshot(self.services, self.job),
            finished=self.done == self.plan.tasks,
            workers=alive,
            nodes={f"{self.name(w)}-": self.node(w) for w in range(self.plan.workers)},
            dollars=None if plan.dollars is None else plan.dollars * self.done,
            estimate=_PER_TASK * plan.tasks,
            lease=LEASE,
            limits=tuple(limit_states(self.services, self.plan.limits)),
        )

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return self.clock.now() - self.began

    def name(self, worker: int) -> str:
        """The beginning of a worker's name."""
        return f"100_{worker}"

    def node(self, worker: int) -> str:
        """The node on which a worker runs."""
        return f"node{worker % self.plan.nodes + 1}"

    def _create(self) -> None:
        jobs = self.services.jobs(self.job)
        jobs.create("identity", "config", SHARDS)
        jobs.create_round(0, "test")
        where = Slice(0, 0, 1, self.plan.bundle, "0" * 64)
        for number in range(self.plan.tasks):
            self.table.create(0, number, where)
            self.ready.append(keys.task_id(0, number))
        self.ready.reverse()
        jobs.open_round(0, self.plan.tasks, self.plan.tasks * self.plan.bundle, {})
        jobs.open(1)

    def _lease(self, worker: int) -> None:
        lease = self._claim(worker) if self.ready else self._steal(worker)
        if lease is None:
            if self.done < self.plan.tasks:
                self._after(5.0, lambda: self._lease(worker))
            return
        if self.plan.gives_back(worker, self.node(worker), self.elapsed):
            self.table.release(lease)
            self.ready.append(lease.task)
            self._after(5.0, lambda: self._lease(worker))
            return
        self.held[lease.task] = lease
        factor = self.plan.slowness(worker, self.node(worker), self.elapsed)
        took = self.plan.seconds * factor * math.exp(self.rng.gauss(0, self.plan.spread))
        self._work(worker, lease, self.clock.now(), took)

    def _claim(self, worker: int) -> Lease | None:
        row = self.table.find(self.ready.pop())
        assert row is not None
        claimed = self.table.claim(row, f"{self.name(worker)}-r0-aaaa")
        assert isinstance(claimed, Claimed)
        return claimed.lease

    def _steal(self, worker: int) -> Lease | None:
        dead = (self.clock.now() - LEASE.margin_s) * 1000
        for task in list(self.held):
            row = self.table.find(task)
            assert row is not None
            if row.lease_until_ms < dead:
                stolen = self.table.steal(row, f"{self.name(worker)}-r0-aaaa")
                assert isinstance(stolen, Claimed)
                return stolen.lease
        return None

    def _work(self, worker: int, lease: Lease, began: float, took: float) -> None:
        """Renew until the task's time is over, then complete it."""
        if self.held.get(lease.task) != lease:
            return  # stolen meanwhile
        spent = self.clock.now() - began
        if self.plan.dies(worker, self.node(worker), self.elapsed):
            self.dead.add(worker)
            return
        if spent >= took:
            self._complete(worker, lease, began)
            return
        ended = 0 if took >= FOREVER else int(self.plan.bundle * spent / took)
        self.table.heartbeat(lease, ended, 0)
        pause = max(0.001, min(LEASE.heartbeat_s, took - spent))
        self._after(pause, lambda: self._work(worker, lease, began, took))

    def _complete(self, worker: int, lease: Lease, began: float) -> None:
        failed = {}
        left = self.plan.bundle
        for name, share in self.plan.failing(self.node(worker), self.elapsed).items():
            count = sum(self.rng.random() < share for _ in range(left))
            left -= count
            if count:
                failed[name] = count
        self.table.complete(
            Marker(
                self.job,
                lease.task,
                lease.attempt,
                lease.owner,
                self.plan.bundle,
                left,
                left,
                failed,
                slurm={"node": self.node(worker)},
                started=began,
                finished=self.clock.now(),
            )
        )
        del self.held[lease.task]
        self.done += 1
        self._lease(worker)

    def _set_limits(self, attributes: dict[str, int]) -> None:
        for name, limit in self.plan.limits.items():
            pk, sk = keys.limit_pk(limit.scope, name), keys.LIMIT_SK
            self.rows.delete(pk, sk)
            self.rows.put_new({"pk": pk, "sk": sk, **attributes})

    def _go_to(self, elapsed: float) -> None:
        self.clock.advance(max(0.0, elapsed - self.elapsed))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._turns, _Turn(self.elapsed + seconds, self._numbers, act))


def with_seed(plan: Plan, seed: int) -> Plan:
    """The same job with another seed."""
    return replace(plan, seed=seed)
