"""One seed: a job, its workers, what goes wrong, and whether the promises held."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from slurm_worker.errors import ItemError, ServiceError
from slurm_worker.execution.context import Context
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerIdentity
from slurm_worker.node.worker import Worker
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.job_config import (
    HandlerConfig,
    JobConfig,
    LeaseConfig,
    LimitConfig,
    WorkerConfig,
)
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import (
    MAX_TASKS,
    JobId,
    TaskId,
    TaskState,
    job_pk,
    shard_of,
    task_pk,
)
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore, Rows
from slurm_worker.protocol.slices import Slice, pack_slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import MemoryObjects
from tests.simulator.accidents import Accidents
from tests.simulator.checks.rows import Violation, check_decisions, check_ended, check_rules
from tests.simulator.coordinator import Cluster, Coordinator, OpenRound
from tests.simulator.coverage import Coverage
from tests.simulator.engine.chance import scratch
from tests.simulator.engine.reduction import WHOLE, Reduction
from tests.simulator.engine.schedule import Host, Killed, Overrun, Schedule, SimClock, SimThreads
from tests.simulator.engine.seen import Seen
from tests.simulator.fleet import Silent
from tests.simulator.stores.network import Network
from tests.simulator.stores.objects import SimObjects
from tests.simulator.stores.outages import FaultRates, Outage, Outages
from tests.simulator.stores.rows import SimRows, WatchedRows, remember

_JOB = JobId("simulated")
#: With more than eight, workers tell each other which have nothing left.
_SHARDS = (4, 16)
_LEASE = LeaseConfig(ttl_s=20.0, heartbeat_s=5.0, margin_s=3.0, max_lost=4, max_tries=2)
_LIMIT = LimitConfig("api", rate=100.0, burst=1, send_window_s=0.1)
_UNTIL_S = 20_000.0
_WINDOWS_S = (0.05, 0.2, 1.0, 5.0)
#: What does not answer in an outage; `table …` is the partition of the job's rows or of a shard.
_AWAY = ("", "table", "store", "store put", f"table {job_pk(_JOB)}", f"table {task_pk(_JOB, 1)}")
#: The time that a worker may run without an answer: five requests that time out, each after a task
#: that was run without a commit and a wait, and the worker's last requests.
_BUDGET_S = 400.0
#: A job without faults has ended after this time; otherwise its user submits it again.
_PATIENCE_S = 500.0
_MOST_SUBMISSIONS = 4
#: Requests of a retry; it may be interrupted after any of them.
_POINTS = ("query", "put", "round open", "get", "reopen", "job open", "sbatch", "submitted")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way to break the protocol, to check that the simulator detects it.

    Args:
        objects: replaces a worker's object store.
        paths: replaces the job's keys.
        limit: replaces the rate limit.
        open_round: replaces how a retry's round is opened.
        generation: whether new workers start a generation if others have left tasks.
        table: replaces a worker's task rows.
    """

    objects: Callable[[ObjectStore], ObjectStore] = lambda objects: objects
    paths: Callable[[JobPaths], JobPaths] = lambda paths: paths
    limit: Callable[[LimitConfig], LimitConfig] = lambda limit: limit
    open_round: OpenRound = open_round
    generation: bool = True
    table: type[TaskTable] = TaskTable


@dataclass(frozen=True, slots=True)
class Load:
    """The kind of work of a run.

    Args:
        items: minimum and maximum number of items.
        bundles: items per task, to choose from.
        item_s: mean seconds of an item.
        hurt_s: mean seconds between two kills or pauses.
        skew_s: maximum error of a clock.
        troubles: what happens to the workers; an entry that occurs twice is twice as likely.
    """

    items: tuple[int, int]
    bundles: tuple[int, ...]
    item_s: float
    hurt_s: float
    skew_s: float
    troubles: tuple[str, ...]


#: Long items, for leases; and short ones that keep a rate limit busy.
_USUAL = ("kill", "pause", "long pause", "freeze")
_SLOW = Load(
    (12, 40),
    (3, 5, 8),
    1.5,
    5.0,
    2.0,
    (*_USUAL * 3, "row lost", *["cut off"] * 3, *["late commit"] * 4),
)
#: Many tasks in few shards, so that workers share how far shards are processed.
_MANY = Load((100, 200), (1,), 0.1, 5.0, 2.0, (*_USUAL, *["late commit"] * 2))
_BUSY = Load((300, 600), (50, 100), 0.0005, 1.5, 0.02, ("kill", "pause", *["freeze"] * 4))


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one seed.

    Args:
        simulated_s: simulated seconds.
        requests: by name.
        faults: by name, with crashes and pauses.
        lost_leases: leases that ran out.
        coverage: what became of the statements.
    """

    seed: int
    simulated_s: float
    requests: Counter[str]
    faults: Counter[str]
    lost_leases: int
    coverage: Coverage


@dataclass
class Simulation:
    """One run.

    Args:
        seed: decides everything.
        mutation: what is broken on purpose.
        reduced: how the run is smaller than the seed says.
    """

    seed: int
    mutation: Mutation = field(default_factory=Mutation)
    reduced: Reduction = WHOLE

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.schedule = Schedule(_UNTIL_S)
        self.rows, self.objects = WatchedRows(), MemoryObjects()
        self.seen = Seen(self.seed, self.reduced.keep, lambda: self.schedule.now)
        self.rows.on_broken = lambda rule: self.schedule.fail(Violation(rule))
        remember(self.rows, self.seen, self.schedule)
        self.limited = self.rng.random() < 0.3
        self.load = _BUSY if self.limited else _SLOW
        self.items = min(self.rng.randint(*self.load.items), self.reduced.items)
        self.bundle = self.rng.choice(self.load.bundles)
        self.shards = self.rng.choice(_SHARDS)
        self.hosts = min(self.rng.randint(2, 5), self.reduced.workers)
        self.calm = self.rng.random() < 0.1
        self.checkpoints = self.rng.random() < 0.4
        self.conditional_put = self.rng.random() < 0.85
        self.rates = FaultRates() if self.calm else self._rates()
        self.sends: list[float] = []
        self.calls: Counter[str] = Counter()
        self.live: set[Host] = set()
        self.started = 0
        # Drawn last, so that the rest of a seed's run does not depend on these.
        retries = 0 if self.calm or self.limited else self.rng.choice((0, 1, 2))
        self.retries = min(retries, self.reduced.retries)
        self.outages = Outages() if self.calm or self.rng.random() < 0.7 else self._outages()
        self.rows.say = self.seen.say
        self._moments = 0
        if self.retries and self.rng.random() < 0.4:
            self.load, self.bundle, self.shards = _MANY, 1, self.rng.choice((1, 4))
            self.items = min(self.rng.randint(*self.load.items), self.reduced.items)
        self.tasks = -(-self.items // self.bundle)
        #: Tasks whose slice can't be read, so that they fail in each round.
        self.ill = set(self.rng.sample(range(self.tasks), min(self.tasks, 2)))
        if not self.retries:
            self.ill.clear()
        # Without NTP, a lease that is renewed may look as if it had run out.
        wrong = not (self.limited or self.calm) and self.seen.rng_of("clocks").random() < 0.25
        self.skew_s = 60.0 if wrong else self.load.skew_s
        self.cluster = Cluster(self._start_workers)
        self.scratch = Path()
        #: Interrupted or paused calls of the user, and running ones.
        self.cut = self.under_way = 0
        self.lives: list[tuple[float, float]] = []
        self.accidents = Accidents(
            self.schedule, self.seen, self.objects, self._paths, _LEASE, self._task_rows
        )
        self.rows.watchers.append(self.accidents.leased)

    def run(self) -> Report:
        """Run it and check every promise.

        Raises:
            Violation: naming the promise.
        """
        try:
            with scratch() as self.scratch:
                self.schedule.run(Host("main"), self._main)
        except Overrun as error:
            raise Violation(f"the job does not end: {error}; {self._states()}") from error
        finally:
            _CALLS.clear()
        check_rules(self.rows)
        self._check()
        return Report(
            self.seed,
            self.schedule.now,
            self.seen.requests,
            self.seen.faults,
            sum(row.lost for row in self._task_rows()),
            Coverage.of(self.rows, self.seen),
        )

    # --- what happens -----------------------------------------------------------

    def _rates(self) -> FaultRates:
        worst = self.rng.choice((0.01, 0.04, 0.1))
        requests, replies, throttles, slow, late = (self.rng.uniform(0, worst) for _ in range(5))
        until, stale_s = self.rng.uniform(60, 600), self.rng.choice((0.0, 2.0))
        return FaultRates(requests, replies, throttles, slow, late, until, stale_read_s=stale_s)

    def _outages(self) -> Outages:
        """Services that do not answer for minutes, without other faults."""
        self.rates = FaultRates()
        found, at, of_table = Outages(), self.rng.uniform(0, 20), 0
        for _ in range(self.rng.randint(1, 3)):
            # A worker that exits while the table is away can report nothing; see `_check_blame`.
            what = self.rng.choice(_AWAY if of_table < _LEASE.max_lost - 2 else _AWAY[2:4])
            of_table += not what.startswith("store")
            end = at + self.rng.uniform(60, 900)
            fault = self.rng.choice(("lost_request", "lost_reply"))
            if self.seen.happens(f"outage {at:.0f}", fault):
                found.append(Outage(at, end, what, fault))
            at = end + self.rng.uniform(30, 300)
        return found

    def _main(self) -> None:
        self._plan()
        self._start_workers()
        self._work_off(0)
        for number in range(1, self.retries + 1):
            self._retry(number)
            self._work_off(number)
        self._wait_for_late_attempts()
        while not self._complete():
            self._work_off(self.retries)
            self._wait_for_late_attempts()

    def _wait_for_late_attempts(self) -> None:
        """Late attempts may still be under way, also of workers that stand still.

        One that continues may stand still again before its commit. Then it may bisect a task that
        was given up meanwhile.
        """
        self.schedule.sleep(3 * _LEASE.ttl_s)
        while (resumes := max((each.resumes for each in self.live), default=0.0)) > (
            now := self.schedule.now
        ):
            self.schedule.sleep(resumes - now + 3 * _LEASE.ttl_s)

    @property
    def _faults_end(self) -> float:
        ends: list[float] = [each.end for each in (*self.outages, *self.accidents.cuts)]
        return max([self.rates.until, self.accidents.late_until, *ends])

    def _work_off(self, round_no: int) -> None:
        """Slurm keeps the workers running until every task has ended."""
        since, submissions = self.schedule.now, 1
        while not self._complete() or self.under_way:
            self._moments += 1
            rng = self.seen.rng_of(f"moment {self._moments}")
            self.schedule.sleep(rng.expovariate(1 / self.load.hurt_s))
            if not self.calm and not self.outages and self.schedule.now < self.rates.until:
                self._hurt(rng)
            if not self._complete():
                self._start_workers()
            since = max(since, self._faults_end)
            if self.schedule.now > since + _PATIENCE_S and not self.under_way:
                submissions += 1
                self._submit_again(round_no, submissions)
                since = self.schedule.now

    def _submit_again(self, round_no: int, submission: int) -> None:
        """The user's last resort if the workers have left tasks."""
        if not self.cut or submission > _MOST_SUBMISSIONS:
            raise Violation(f"the job does not end: nobody finds what is left: {self._states()}")
        self.seen.faults["submitted again"] += 1
        rng = self.seen.rng_of(f"again {round_no} {submission}")
        call = self._coordinator(Host("user"), rng, _nothing)
        call.submit_again(round_no, submission, generation=self.mutation.generation)

    def _retry(self, number: int) -> None:
        """The user repeats the command until it succeeds, as its messages say."""
        done: list[bool] = []
        chance = self.seen.rng_of(f"retry {number}")
        unlucky = chance.randint(0, 3)
        while not done:
            host, rng = Host(f"user {number}"), random.Random(chance.random())
            disturbed = self._disturbed(host, rng) if unlucky > 0 else _nothing
            unlucky -= 1

            def call(
                host: Host = host,
                rng: random.Random = rng,
                disturbed: Callable[[str], None] = disturbed,
            ) -> None:
                self.under_way += 1
                try:
                    self._coordinator(host, rng, disturbed).retry(number)
                    done.append(True)
                except ServiceError:
                    self.cut += 1
                finally:
                    self.under_way -= 1

            self.schedule.spawn(host, call)
            # Its workers may have ended when the user comes back.
            self.schedule.sleep(chance.choice((1.0, 60.0, 300.0)))

    def _disturbed(self, host: Host, rng: random.Random) -> Callable[[str], None]:
        """A call is interrupted, or pauses, after a request of some name was answered."""
        kind, point = rng.choice(("cut", "sleep")), rng.choice(_POINTS)

        def disturb(name: str) -> None:
            nonlocal kind
            if name != point or not kind:
                return
            if not self.seen.happens(f"{host.name} after {point}", kind):
                return
            self.cut += 1
            if kind == "cut":
                raise Killed
            kind = ""
            self.schedule.pause(host, rng.uniform(1, 600))

        return disturb

    def _coordinator(
        self, host: Host, rng: random.Random, answered: Callable[[str], None]
    ) -> Coordinator:
        def met(name: str) -> None:
            if name == "query":
                self.accidents.retried()
            answered(name)

        network = Network(self.schedule, rng, self.rates, self.seen, self.outages, met)
        rows, clock = SimRows(self.rows, network, self.seen), SimClock(self.schedule, host)
        return Coordinator(
            JobTable(rows, _JOB, clock),
            TaskTable(rows, _JOB, self.shards, _LEASE, clock),
            network,
            self.cluster,
            self.mutation.open_round,
            sees_why=rng.random() < 0.5,
        )

    def _plan(self) -> None:
        clock = SimClock(self.schedule, Host("planner"))
        jobs = JobTable(self.rows, _JOB, clock)
        jobs.create("identity", "config", self.shards)
        row = jobs.create_round(0, "simulated")
        items: list[tuple[str, dict[str, Any]]] = [(f"k{n}", {"n": n}) for n in range(self.items)]
        table = TaskTable(self.rows, _JOB, self.shards, _LEASE, clock)
        body = b""
        bundles = [items[at : at + self.bundle] for at in range(0, len(items), self.bundle)]
        for sequence, bundle in enumerate(bundles):
            data = pack_slice(bundle)
            digest = "ill" if sequence in self.ill else hashlib.sha256(data).hexdigest()
            table.create(0, sequence, Slice(0, len(body), len(data), len(bundle), digest))
            body += data
        self.objects.put(self._paths.segment(0, 0), body)
        jobs.open_round(row.number, len(bundles), len(items), {})
        jobs.open(1)

    def _hurt(self, rng: random.Random) -> None:
        if not self.live:
            return
        host = rng.choice(sorted(self.live, key=lambda each: each.name))
        kind = rng.choice(self.load.troubles)
        if not self.seen.happens(f"moment {self._moments}", kind):
            return
        _TROUBLES[kind](self, host, rng)

    def kill(self, host: Host, _rng: random.Random) -> None:
        """End a process."""
        self.live.discard(host)
        self.schedule.kill(host)

    def pause(self, host: Host, rng: random.Random) -> None:
        """A process stands still, for less than a lease."""
        self.schedule.pause(host, rng.uniform(0, _LEASE.ttl_s))

    def pause_long(self, host: Host, rng: random.Random) -> None:
        """A process stands still, longer than a lease."""
        self.schedule.pause(host, rng.uniform(1, 4) * _LEASE.ttl_s)

    def freeze(self, _host: Host, rng: random.Random) -> None:
        """All stand still at once, as when a node or a cluster is suspended."""
        seconds = rng.uniform(0.5, 5.0)
        for each in self.live:
            self.schedule.pause(each, seconds)

    def cut_off(self, _host: Host, rng: random.Random) -> None:
        """See `Accidents.cut_off`."""
        self.accidents.cut_off(self.live, rng)

    def commit_late(self, host: Host, _rng: random.Random) -> None:
        """See `Accidents.commit_late`."""
        self.accidents.commit_late(host)

    def lose_row(self, _host: Host, rng: random.Random) -> None:
        """The row of a task that is leased is lost, and made again by a repair.

        Its holder lives. The new row knows only the attempts that have left objects. So it may give
        an attempt's number again, to another owner.
        """
        leased = [row for row in self._task_rows() if row.state is TaskState.LEASED]
        if not self.conditional_put:
            # Two attempts of one number would propose the same marker. And what the table has
            # decided is lost with the row, so that two attempts would publish.
            leased = [
                row
                for row in leased
                if not row.winner and self._last_attempt(row.task) == row.attempt
            ]
        if not leased:
            return
        row, host = rng.choice(leased), Host("repair")
        self.rows.delete(task_pk(_JOB, shard_of(row.sequence, self.shards)), row.sk)
        self.seen.attempts.pop(row.sk, None)

        def repair() -> None:
            # Before the holder's next heartbeat, or when it has left.
            self.schedule.sleep(rng.uniform(0, rng.choice((0.5, 2 * _LEASE.ttl_s))))
            self._coordinator(host, rng, _nothing).rebuild(row, self._last_attempt(row.task))
            self.under_way -= 1

        self.under_way += 1
        self.schedule.spawn(host, repair)

    def _last_attempt(self, task: TaskId) -> int:
        """As `coordinator.maintenance.repair` finds it."""
        paths = self._paths
        folders = f"{paths.parts}{task}/", paths.checkpoints(task)
        names = (key.rpartition("/")[2] for each in folders for key in self.objects.list(each))
        return max((int(name[1:].partition("-")[0]) for name in names), default=0)

    def _start_workers(self) -> None:
        while len(self.live) < self.hosts:
            self._start_worker()

    def _start_worker(self) -> None:
        self.started += 1
        scratch, began = self.scratch / f"{self.started}", self.schedule.now
        rng = self.seen.rng_of(f"w{self.started}")
        host = Host(f"w{self.started}", rng.uniform(-1, 1) * self.skew_s)
        self.live.add(host)

        def run() -> None:
            try:
                scratch.mkdir()
                self._worker(host, scratch, rng).run()
            except ServiceError:
                pass  # as a process that ends with an exit code; Slurm starts another
            finally:
                self.live.discard(host)
                self.lives.append((began, self.schedule.now))

        self.schedule.spawn(host, run)

    def _worker(self, host: Host, scratch: Path, rng: random.Random) -> Worker:
        network = Network(
            self.schedule,
            rng,
            self.rates,
            self.seen,
            self.outages or self.accidents.cuts,
            before_put=partial(self.accidents.before_put, host),
        )
        clock, threads = SimClock(self.schedule, host), SimThreads(self.schedule, host)
        rows: Rows = SimRows(self.rows, network, self.seen)
        objects = self.mutation.objects(SimObjects(self.objects, network, self.seen))
        limits = (self.mutation.limit(_LIMIT),) if self.limited else ()
        config = JobConfig(
            job_id=_JOB,
            table="t",
            bucket="b",
            prefix="lab",
            shards=self.shards,
            handler=HandlerConfig(
                f"{__name__}:handle", params={"call": _known(lambda item: self._handle(item, rng))}
            ),
            max_workers=self.hosts,
            limits=limits,
            lease=_LEASE,
            conditional_put=self.conditional_put,
            worker=WorkerConfig(
                tries=2, backoff_s=0.1, checkpoint_s=6.0 if self.checkpoints else 0.0
            ),
        )
        context = NodeContext(
            config=config,
            identity=WorkerIdentity(
                host.name, "000-1", {"array": "", "element": "", "restart": "", "node": "n"}
            ),
            store=JobStore(objects, self.mutation.paths(self._paths)),
            jobs=JobTable(rows, _JOB, clock),
            table=self.mutation.table(rows, _JOB, self.shards, _LEASE, clock),
            buckets=lambda _: objects,
            clock=clock,
            scratch=scratch,
            logger=Silent(),
            threads=threads,
            drain=Drain(threads.signal()),
            rng=rng,
        )
        return Worker(context)

    def _handle(self, item: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        self.calls[f"k{item['n']}"] += 1
        if self.limited:
            self.sends.append(self.schedule.now)
        self.schedule.sleep(rng.expovariate(1 / self.load.item_s))
        if item["n"] % 7 == 3:
            raise ItemError("bad_input", "every seventh")
        # Two attempts at an item differ, as a live API's answers would.
        return {"n": item["n"], "answer": rng.random()}

    # --- what must hold -----------------------------------------------------------

    @property
    def _paths(self) -> JobPaths:
        return JobPaths("lab", _JOB)

    def _task_rows(self) -> list[TaskRow]:
        clock = SimClock(self.schedule, Host("checker"))
        table = TaskTable(self.rows, _JOB, self.shards, _LEASE, clock)
        return [row for shard in range(self.shards) for row in table.all_rows(shard)]

    def _complete(self) -> bool:
        return all(TaskState(state).terminal for state in self.rows.tasks.values())

    def _states(self) -> str:
        return ", ".join(f"{row.task} {row.state.value}" for row in self._task_rows())

    def _check(self) -> None:
        rows = {row.task: row for row in self._task_rows()}
        markers = {marker.task: marker for marker in JobStore(self.objects, self._paths).markers()}
        check_decisions(self.seen)
        check_ended(rows, markers)
        self._check_items(rows, markers)
        self._check_sends()
        if self.outages:
            self._check_blame(rows, markers)
            self._check_budget_of_failures()
        if self.calm:
            self._check_budget(rows)

    def _check_blame(self, rows: dict[Any, TaskRow], markers: dict[Any, Marker]) -> None:
        """No worker has died, so no task is to blame.

        A lost lease counts if the worker could not report it: at most one for each outage of
        the table.
        """
        for task, row in rows.items():
            if row.state is TaskState.QUARANTINED:
                raise Violation(f"{task} was given up although no worker died: {row.history}")
            if task in markers and markers[task].split:
                raise Violation(f"{task} was bisected although no worker died: {row.history}")

    def _check_budget_of_failures(self) -> None:
        """A worker exits if services do not answer, unless it does not need that partition."""
        for outage in self.outages:
            if outage.what.startswith("table J"):
                continue
            for began, ended in self.lives:
                within = min(ended, outage.end) - max(began, outage.start)
                if within > _BUDGET_S:
                    raise Violation(f"a worker stayed for {within:.0f} s of {outage}")

    def _check_items(self, rows: dict[Any, TaskRow], markers: dict[Any, Marker]) -> None:
        found: Counter[str] = Counter()
        for marker in markers.values():
            for part in marker.parts:
                data = self.objects.get(part.key)
                if data is None:
                    raise Violation(f"{marker.task}: part {part.key} is not there")
                if hashlib.sha256(data).hexdigest() != part.sha256:
                    raise Violation(f"{marker.task}: part {part.key} is not what was committed")
                lines = gzip.decompress(data).splitlines()
                found.update(json.loads(line)["_key"] for line in lines)
        expected = Counter({f"k{n}": 1 for n in range(self.items)})
        for row in rows.values():
            # A late attempt may have committed what was given up meanwhile.
            if row.state is not TaskState.DONE and row.task not in markers:
                first = row.sequence % MAX_TASKS * self.bundle + row.where.first
                expected.subtract(f"k{first + n}" for n in range(row.where.count))
        if found != +expected:
            raise Violation(
                f"items lost {expected - found}, items twice or more {found - expected}"
            )

    def _check_sends(self) -> None:
        """N(T) <= R*(T + L + burst/R + 2*eps) + n, for windows that begin at each send."""
        sends = sorted(self.sends)
        tokens = max(1, round(_LIMIT.rate / self.hosts))
        for window in _WINDOWS_S:
            bound = tokens + _LIMIT.rate * (
                window + _LIMIT.send_window_s + _LIMIT.burst / _LIMIT.rate + 2 * self.load.skew_s
            )
            for first, when in enumerate(sends):
                count = bisect_right(sends, when + window) - first
                if count > bound:
                    raise Violation(
                        f"{count} requests within {window:g} s of {when:.1f}, {bound:.1f} allowed"
                    )

    def _check_budget(self, rows: dict[Any, TaskRow]) -> None:
        """Where nothing goes wrong: one claim and one complete per task, each item once."""
        tasks = len(rows)
        requests = self.seen.requests
        claims = requests["claim"] - requests["claim refused"]
        if claims != tasks or requests["complete"] != tasks or requests["steal"]:
            raise Violation(f"{tasks} tasks took {dict(requests)}")
        if max(self.calls.values()) > 1:
            raise Violation("an item was run twice although nothing went wrong")


def handle(item: dict[str, Any], context: Context) -> object:
    """The simulated user's handler."""
    return _CALLS[context.params["call"]](item)


#: What the handlers of this process's simulated workers do; parameters are JSON.
_CALLS: list[Callable[[dict[str, Any]], object]] = []


def _known(call: Callable[[dict[str, Any]], object]) -> int:
    _CALLS.append(call)
    return len(_CALLS) - 1


def _nothing(_name: str) -> None:
    """Let a call continue."""


#: What happens to a worker, or to all.
_TROUBLES: dict[str, Callable[[Simulation, Host, random.Random], None]] = {
    "kill": Simulation.kill,
    "pause": Simulation.pause,
    "long pause": Simulation.pause_long,
    "freeze": Simulation.freeze,
    "row lost": Simulation.lose_row,
    "cut off": Simulation.cut_off,
    "late commit": Simulation.commit_late,
}
