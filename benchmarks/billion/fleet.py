"""Workers in virtual time: the real finder, table, job row, markers and token leases.

The handler only waits. All coordination is the code that runs on the nodes (`TaskFinder`,
`ShardTotals`, `TaskTable`, `JobTable`, `JobStore`, `RateLimiter`), with the timing of
`node/worker.py` and `node/heartbeat.py`:

- the next task is leased five seconds before the current one ends;
- a commit continues while the next task runs;
- one heartbeat per interval, with its jitter;
- checkpoints, idle waits, and the exit of workers when nothing is left.

Logs, the handler's code and the reads of the coordinator are not simulated.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import greenlet

from benchmarks.billion.aws import Client, Services
from benchmarks.claims import Hub, HubClock
from slurm_worker.errors import ServiceError, Throttled
from slurm_worker.failure_budget import FailureBudget
from slurm_worker.node.activity import (
    LEASE_AHEAD_S,
    SERVICE_FAILURES_ALLOWED,
    Idle,
    service_wait_s,
)
from slurm_worker.node.task_finder import Finished, Found, TaskFinder, Waiting
from slurm_worker.node.task_source import CHECK_S
from slurm_worker.node.worker import STARTS_PER_S
from slurm_worker.protocol.job_config import LeaseConfig, LimitConfig
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, TaskState, parse_task_id, task_pk
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.shard_progress import ShardTotals
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Lease
from slurm_worker.rate_limits.limiter import RateLimiter

JOB = JobId("billion")
PATHS = JobPaths("lab", JOB)
_PLANNERS = 32
_FACTORS = 4096
_SAMPLE_S = 5.0


@dataclass(frozen=True)
class Preemption:
    """Workers are removed at once, and come back later.

    Args:
        at: share of the ideal makespan after which it happens.
        share: share of the workers that are removed.
        notice: they are asked to stop and release their tasks; otherwise they are killed.
        back_s: seconds until they are back, at least and at most.
    """

    at: float = 0.4
    share: float = 0.5
    notice: bool = True
    back_s: tuple[float, float] = (60.0, 180.0)


@dataclass(frozen=True)
class Scenario:
    """One job.

    Args:
        items: items of the job.
        bundle: items of a task.
        workers: worker processes.
        item_s: mean seconds of an item.
        shards: task shards.
        lease: times of a lease.
        checkpoint_s: minimum seconds between two checkpoints.
        spread: a task takes between 1 - `spread` and 1 + `spread` times the mean.
        partitions: partitions of the table at the start; a new on-demand table has four.
        preemption: preemption of workers, if any.
        rate: tokens per second of a rate limit, one per item; None for no limit.
    """

    items: int
    bundle: int
    workers: int
    item_s: float
    shards: int
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    checkpoint_s: float = 60.0
    spread: float = 0.3
    partitions: int = 4
    preemption: Preemption | None = None
    rate: float | None = None
    seed: int = 1

    @property
    def tasks(self) -> int:
        return -(-self.items // self.bundle)

    @property
    def ideal_s(self) -> float:
        """The makespan without any coordination: all work, or all tokens, in parallel."""
        by_work = self.items * self.item_s / self.workers
        return max(by_work, self.items / self.rate if self.rate else 0.0)


@dataclass
class Tally:
    """What happened."""

    open_at: float = 0.0
    done_at: float = 0.0
    done: int = 0
    worked_s: float = 0.0
    stolen: int = 0
    last_steal_at: float = 0.0
    lost: int = 0
    left: int = 0
    preempted_at: float = 0.0
    preempted: int = 0
    ended_at: float = 0.0
    claim_s: list[float] = field(default_factory=list)
    #: (virtual time, workers that run items), every five seconds.
    busy: list[tuple[float, int]] = field(default_factory=list)


class Killed(greenlet.GreenletExit):
    """The worker's process was killed."""


class Fleet:
    """One run of a scenario.

    Args:
        scenario: what to run.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.hub = Hub()
        self.clock = HubClock(self.hub)
        self.rng = random.Random(scenario.seed)
        self.services = Services(lambda: self.hub.now, scenario.seed, scenario.partitions)
        self.tally = Tally()
        self.workers: dict[int, SimWorker] = {}
        self.running = 0
        self._started = 0
        self.factors = [self.rng.uniform(-1, 1) for _ in range(_FACTORS)]

    def run(self) -> Tally:
        """Plan the job and work on it until no worker is left."""
        self.hub.spawn(self._plan, 0.0)
        self.hub.run()
        self.tally.ended_at = self.hub.now
        self.tally.done, self.tally.done_at = self.services.markers, self.services.marked_at
        return self.tally

    def table(self, client: Client) -> TaskTable:
        scenario = self.scenario
        return TaskTable(client.rows, JOB, scenario.shards, scenario.lease, self.clock)

    def took(self, sequence: int) -> float:
        """Seconds of work of a task."""
        scenario = self.scenario
        items = min(scenario.bundle, scenario.items - sequence * scenario.bundle)
        factor = self.factors[sequence * 2654435761 % _FACTORS]
        return items * scenario.item_s * (1 + scenario.spread * factor)

    def unfinished(self) -> int:
        """Number of rows that are not done; makes no request."""
        return sum(
            row["state"] != TaskState.DONE.value
            for shard in range(self.scenario.shards)
            for row in self.services.rows.query(task_pk(JOB, shard))
        )

    # --- the coordinator ---------------------------------------------------------

    def _plan(self) -> None:
        client = Client(self.services, self.hub.sleep, self.rng)
        jobs = JobTable(client.rows, JOB, self.clock)
        jobs.create("identity", "config", self.scenario.shards)
        jobs.create_round(0, "simulated")
        left = _PLANNERS

        def write(first: int) -> None:
            nonlocal left
            own = Client(self.services, self.hub.sleep, random.Random(first))
            table = self.table(own)
            for sequence in range(first, self.scenario.tasks, _PLANNERS):
                self._persist(lambda n=sequence: table.create(0, n, _slice(n, self.scenario)))
            left -= 1
            if not left:
                jobs.open_round(0, self.scenario.tasks, self.scenario.items, {})
                jobs.open(1)
                self._open()

        for first in range(_PLANNERS):
            self.hub.spawn(lambda first=first: write(first), 0.0)

    def _persist(self, act: Callable[[], None]) -> None:
        # A repeated `submit` resumes where it stopped; this costs the same requests.
        while True:
            try:
                return act()
            except ServiceError:
                self.hub.sleep(1.0)

    def _open(self) -> None:
        self.tally.open_at = self.hub.now
        for _ in range(self.scenario.workers):
            self.start(self.rng.uniform(0, self.scenario.workers / STARTS_PER_S))
        self.hub.spawn(self._sample, 0.0)
        preemption = self.scenario.preemption
        if preemption is not None:
            self.hub.spawn(lambda: self._preempt(preemption), preemption.at * self.scenario.ideal_s)

    def start(self, delay_s: float) -> None:
        """A worker's process starts."""
        number, self._started = self._started, self._started + 1
        worker = SimWorker(self, number)
        self.workers[number] = worker
        self.hub.spawn(worker.life, delay_s)

    def _preempt(self, preemption: Preemption) -> None:
        victims = self.rng.sample(sorted(self.workers), round(preemption.share * len(self.workers)))
        self.tally.preempted_at, self.tally.preempted = self.hub.now, len(victims)
        for number in victims:
            worker = self.workers.pop(number)
            if preemption.notice:
                worker.asked = True
            else:
                worker.dead = True
            self.start(self.rng.uniform(*preemption.back_s))

    def _sample(self) -> None:
        while self.workers:
            self.tally.busy.append((self.hub.now, self.running))
            self.hub.sleep(_SAMPLE_S)


class SimWorker:
    """One worker process: `slurm_worker.node.worker.Worker`, with a wait for the handler."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        scenario = fleet.scenario
        self.dead = self.asked = False
        self._fleet, self._number = fleet, number
        self._rng = random.Random(scenario.seed * 1_000_003 + number)
        self._name = f"123_{number}-r0-{self._rng.getrandbits(32):08x}"
        self._client = Client(fleet.services, self._sleep, self._rng)
        self._table = fleet.table(self._client)
        self._jobs = JobTable(self._client.rows, JOB, fleet.clock)
        self._store = JobStore(self._client.objects, PATHS)
        sums = ShardTotals(self._store, self._jobs, self._table)
        self._finder = TaskFinder(
            self._table, self._name, fleet.clock, self._rng, self._note, sums.cursor_advanced
        )
        self._idle = Idle(scenario.lease, scenario.workers, fleet.clock, self._rng, self._sleep)
        self._budget = FailureBudget(SERVICE_FAILURES_ALLOWED)
        self._committing = 0
        self._limiter = (
            None
            if scenario.rate is None
            else RateLimiter(
                self._client.rows,
                LimitConfig("api", scenario.rate),
                scenario.workers,
                _WorkerClock(fleet.hub, self._sleep),
                self._rng,
            )
        )

    def life(self) -> None:
        """From the start of the process to its end."""
        try:
            for _ in range(2):  # its configuration and the handler's code
                self._client.objects.get("config")
            self._loop()
        except (Killed, ServiceError):
            self._fleet.tally.left += not self.dead
        finally:
            self._fleet.workers.pop(self._number, None)

    # --- what the worker's process does -------------------------------------------

    def _sleep(self, seconds: float) -> None:
        self._fleet.hub.sleep(seconds)
        if self.dead:
            raise Killed

    def _note(self, action: str, _detail: object) -> None:
        if action == "lease_stolen":
            tally = self._fleet.tally
            tally.stolen += 1
            tally.last_steal_at = self._fleet.hub.now

    def _loop(self) -> None:
        lease: Lease | None = None
        self._idle.reset()
        while not self.asked:
            try:
                found = lease or self._find()
                lease = None
                if isinstance(found, Finished):
                    break
                if found is None:
                    if self._committing:
                        self._finish_commits()
                        continue
                    if not self._idle.wait():
                        break
                    continue
                lease = self._work(found)
                if lease is None and self._idle.should_exit():
                    break  # as `TaskSource.next`: what was found ahead tells
                self._idle.reset()
                self._budget.reset()
            except ServiceError as error:
                # All are throttled requests, for which no worker leaves.
                self._budget.allow(counts=not isinstance(error, Throttled))
                self._sleep(service_wait_s(self._budget.failures, self._rng))
        if lease is not None:
            self._table.release(lease)
        self._finish_commits()

    def _finish_commits(self) -> None:
        while self._committing:
            self._sleep(CHECK_S)

    def _find(self) -> Lease | Finished | None:
        """A task, with its items; as `TaskSource` and `Attempts.open`."""
        began = self._fleet.hub.now
        job = self._jobs.find(consistent=False)
        assert job is not None, "the job exists before its workers"
        self._finder.new_generation(job.generation)
        while True:
            found = self._finder.next()
            if isinstance(found, Waiting):
                self._idle.record(found)
                return None
            if not isinstance(found, Found):
                return found
            self._fleet.tally.claim_s.append(self._fleet.hub.now - began)
            lease = found.lease
            if lease.attempt > 1 and (marker := self._store.marker(lease.task)) is not None:
                self._table.complete(marker)
                continue
            self._client.objects.get("segment")
            if lease.row.checkpoint:
                self._client.objects.get("checkpoint")
            return lease

    def _work(self, lease: Lease) -> Lease | None:
        """Run one task, start its commit in the background, and return the next task."""
        times, hub = self._fleet.scenario.lease, self._fleet.hub
        run = _Run(self, lease)
        self._fleet.running += 1
        began = hub.now
        ahead: Lease | Finished | None = None
        looked = False
        try:
            while not self.asked:
                now = hub.now
                if now >= run.ends:
                    break
                if now >= run.beats:
                    self._beat(run)
                if run.lost or now - run.acknowledged > times.ttl_s - times.margin_s:
                    self._fleet.tally.lost += 1
                    return None
                if not looked and run.ends - now <= LEASE_AHEAD_S:
                    looked = True
                    ahead = self._try_ahead()
                    continue
                due = min(run.ends, run.beats, run.ends if looked else run.ends - LEASE_AHEAD_S)
                if self._limiter is not None:
                    due = min(due, self._paced(run))
                self._sleep(max(0.0, due - hub.now))
        finally:
            self._fleet.running -= 1
            self._fleet.tally.worked_s += hub.now - began
        if self.asked and hub.now < run.ends:
            self._release(run)
        else:
            self._committing += 1
            hub.spawn(lambda: self._commit(lease), 0.0)
        return ahead if isinstance(ahead, Lease) else None

    def _try_ahead(self) -> Lease | Finished | None:
        try:
            return self._find()
        except ServiceError:
            return None

    def _paced(self, run: _Run) -> float:
        """Use the available tokens, one per item; return when to request more."""
        assert self._limiter is not None
        now = self._fleet.hub.now
        if run.token_at > now:
            return run.token_at
        wait_s = self._limiter.reserve()
        while (token := self._limiter.poll()) is not None:
            ahead_s = token.at - self._fleet.clock.now()  # a time of day
            run.token_at = self._fleet.hub.now + max(0.0, ahead_s) + self._fleet.scenario.item_s
            run.items -= 1
        if run.items <= 0:
            run.ends = run.token_at
        return max(run.token_at, now + wait_s)

    def _beat(self, run: _Run) -> None:
        now = self._fleet.hub.now
        try:
            if now - run.saved >= self._fleet.scenario.checkpoint_s:
                self._save(run)
            sent = self._fleet.hub.now
            renewed = self._table.heartbeat(run.lease, 0, 0, checkpoint=run.note)
            if not renewed:
                run.lost = True
            else:
                run.acknowledged = sent
        except ServiceError:
            pass  # the lease is trusted until it is too old, as on nodes
        run.beats = self._next_beat()

    def _save(self, run: _Run) -> None:
        run.saved = self._fleet.hub.now
        self._client.objects.put("checkpoint", b"")
        run.note = f"{run.total_s - (run.ends - run.saved):.3f}"

    def _next_beat(self) -> float:
        return self._fleet.hub.now + self._fleet.scenario.lease.heartbeat_s * self._rng.uniform(
            0.9, 1.1
        )

    def _release(self, run: _Run) -> None:
        try:
            if self._fleet.scenario.checkpoint_s:
                self._save(run)
            self._table.release(run.lease, run.note)
        except ServiceError:
            pass  # its lease expires

    def _commit(self, lease: Lease) -> None:
        try:
            part = self._store.upload_part(
                PATHS.part(lease.task, lease.attempt, "0" * 12, "jsonl.gz"), b"", "rows", 0
            )
            items = lease.row.where.count
            ours = Marker(JOB, lease.task, lease.attempt, self._name, items, items, items)
            standing = self._store.commit(ours)
            self._table.complete(standing)
            assert part.size == 0
        except (ServiceError, Killed):
            pass  # the lease expires, and the next holder finds what was committed
        finally:
            self._committing -= 1


class _Run:
    """A running task: when it ends, its next heartbeat, and its last checkpoint."""

    __slots__ = (
        "acknowledged",
        "beats",
        "ends",
        "items",
        "lease",
        "lost",
        "note",
        "saved",
        "token_at",
        "total_s",
    )

    def __init__(self, worker: SimWorker, lease: Lease) -> None:
        fleet = worker._fleet
        now = fleet.hub.now
        _, sequence = parse_task_id(lease.task)
        self.lease = lease
        self.lost = False
        self.total_s = fleet.took(sequence)
        self.note = lease.row.checkpoint
        self.ends = now + self.total_s - float(self.note or 0.0)
        self.items = lease.row.where.count
        self.token_at = 0.0
        if fleet.scenario.rate is not None:
            self.ends = float("inf")
        self.saved = self.acknowledged = now
        self.beats = worker._next_beat()


class _WorkerClock(HubClock):
    """Virtual time; a wait ends when the worker is killed."""

    def __init__(self, hub: Hub, sleep: Callable[[float], None]) -> None:
        super().__init__(hub)
        self._sleep_in_worker = sleep

    def sleep(self, seconds: float) -> None:
        self._sleep_in_worker(seconds)


def _slice(sequence: int, scenario: Scenario) -> Slice:
    per_segment = max(1, 50_000 // scenario.bundle)
    segment, at = divmod(sequence, per_segment)
    items = min(scenario.bundle, scenario.items - sequence * scenario.bundle)
    return Slice(segment, at * 21_000, 21_000, items, "0" * 64)
