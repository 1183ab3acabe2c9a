"""One seed of a whole backfill: the user's commands, the cluster, the workers, and the promises.

The commands are the coordinator's own (`coordinator/api.py` and its neighbours), over services that
lose, repeat and delay requests. A command may be cut off or stand still after any request; then its
user repeats it. The workers are the nodes' own code, started by a twin of Slurm.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.maintenance.repair.job import repair
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass, ItemError, ServiceError, UserError
from slurm_worker.execution.context import Context
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerExit, WorkerIdentity
from slurm_worker.node.supervisor import Death
from slurm_worker.node.worker import Worker, read_config
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, TaskId, TaskState, split_s3_uri
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.task_history import Crash
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.simulator.chance import seeded
from tests.simulator.cluster import ArrayElement, ClusterRules, Controller
from tests.simulator.faults import FaultRates, Network, Seen, SimObjects, SimRows
from tests.simulator.login_node import LoginNode, SimTransport, SlurmFaults
from tests.simulator.run import Report, Violation
from tests.simulator.schedule import (
    Host,
    Killed,
    Overrun,
    Schedule,
    SimClock,
    SimSignal,
    SimThreads,
)

JOB = JobId("simulated")
_SITE = {
    "storage": {"table": "t", "prefix": "s3://lab/lab"},
    "cluster": {"transport": "local", "worker_command": "slurm-worker"},
}
_INPUT = "input/items.jsonl"
_UNTIL_S = 60_000.0
#: A job without faults has ended after this time; otherwise its user submits it again.
_PATIENCE_S = 900.0
_MOST_SUBMISSIONS = 6
#: A command is cut off or stands still after at most so many requests.
_MOST_REQUESTS = 80
_MOST_PROCESSES = 20
_TTL_S = 20.0
#: What handlers do with an item, by its number modulo the length of the list.
_OUTCOMES = ("ok", "ok", "bad_input", "ok", "flaky", "ok", "ok", "crash", "ok", "ok", "ok")


@dataclass(eq=False)
class Command:
    """One process of the user."""

    name: str
    host: Host
    ended: SimSignal
    value: Any = None
    error: Exception | None = None
    done: bool = False


@dataclass
class Backfill:
    """One run; `seed` decides everything."""

    seed: int

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.schedule = Schedule(_UNTIL_S)
        self.rows, self.objects, self.seen = MemoryRows(), MemoryObjects(), Seen()
        self.calm = rng.random() < 0.1
        self.items = rng.randint(6, 40)
        self.bundle = rng.choice((None, 2, 3, 5, 8))
        self.workers = rng.randint(1, 4)
        self.item_s = rng.choice((0.3, 1.5))
        self.retries = rng.choice((0, 1, 1, 2))
        worst = 0.0 if self.calm else rng.choice((0.0, 0.01, 0.03))
        chances = (rng.uniform(0, worst) for _ in range(4))
        self.rates = FaultRates(*chances, until=0.0 if self.calm else rng.uniform(60, 900))
        self.until = self.rates.until
        slurm = rng.choice((0.0, 0.1))
        rules = ClusterRules(
            slots=rng.choice((1, 2, 64)),
            accounting=rng.random() < 0.8,
            account_s=rng.choice((1.0, 5.0, 60.0)),
            purge_s=rng.choice((20.0, 300.0)),
            max_array_size=rng.choice((2, 1001)),
            submit_limit=rng.choice((3, 10_000)),
        )
        self.controller = Controller(self.schedule, random.Random(rng.random()), rules, self._launch)
        self.node = LoginNode(
            self.schedule,
            random.Random(rng.random()),
            self.controller,
            SlurmFaults(slurm, slurm, self.until),
        )
        self.calls: Counter[str] = Counter()
        self.under_way: set[Command] = set()
        self.started = 0
        self.cancelled = False
        self.scratch = Path()
        self.log: list[str] = []

    def run(self) -> Report:
        """Run it and check every promise.

        Raises:
            Violation: naming the promise.
        """
        memory = "/dev/shm"
        base = memory if os.access(memory, os.W_OK) else None
        self.scratch = Path(tempfile.mkdtemp(prefix="simulate-", dir=base))
        try:
            with seeded(self.seed), _registered(self):
                self.schedule.run(Host("main"), self._main)
                self._check()
        except Overrun as error:
            raise Violation(f"the job does not end: {error}; {self._states()}") from error
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return Report(
            self.seed,
            self.schedule.now,
            self.seen.requests,
            self.seen.faults,
            sum(row.lost for row in self._task_rows()),
        )

    # --- what happens -----------------------------------------------------------

    def _main(self) -> None:
        lines = [f'{{"id": "k{n}", "n": {n}}}\n' for n in range(self.items)]
        self.objects.put(_INPUT, "".join(lines).encode())
        self._until_done("submit", self._submit)
        self._wait()
        for _ in range(self.retries):
            self._until_done("retry", self._retry)
            self._wait()
        if self.rng.random() < 0.5:
            self._begin("gc", self._collect, disturbed=True)
        self._until_done("aggregate", self._aggregate)
        while self.under_way:
            self.schedule.sleep(10.0)
        self._until_done("aggregate", self._aggregate)
        # Late attempts may still be under way; what they do must change nothing.
        self.schedule.sleep(3 * _TTL_S)

    def _wait(self) -> None:
        """Until every task has ended; meanwhile things happen, and the user does something."""
        since, submissions = self.schedule.now, 0
        while not self._complete():
            self.schedule.sleep(self.rng.expovariate(1 / 6.0))
            if self.schedule.now < self.until:
                self._trouble()
                since = self.schedule.now
            if self.schedule.now > since + _PATIENCE_S and not self.under_way:
                submissions += 1
                if submissions > _MOST_SUBMISSIONS:
                    raise Violation(f"the job does not end: {self._states()}; {self.log[-5:]}")
                self._until_done("resume", self._resume)
                self._until_done("submit", self._submit)
                since = self.schedule.now

    def _trouble(self) -> None:
        kind = self.rng.choices(list(_TROUBLES), list(_TROUBLES.values()))[0]
        if kind in _VERBS:
            self.seen.faults[kind] += 1
            self._begin(kind, getattr(self, f"_{kind.replace(' ', '_')}"), disturbed=True)
        elif kind == "slurmctld":
            self.controller.down_until = self.schedule.now + self.rng.uniform(1, 120)
        elif kind == "slurmdbd":
            self.controller.accounting_down_until = self.schedule.now + self.rng.uniform(1, 120)
        elif kind == "login node":
            self.node.restart()
        elif running := self.controller.running():
            self.seen.faults[kind] += 1
            self._hurt(kind, self.rng.choice(running))

    def _hurt(self, kind: str, element: ArrayElement) -> None:
        if kind == "node fails":
            requeued = self.rng.random() < 0.7
            self.controller.kill(element, ElementState.NODE_FAIL, requeued=requeued)
        elif kind == "out of memory":
            self.controller.kill(element, ElementState.OUT_OF_MEMORY)
        elif kind == "preempted":
            self.controller.requeue(element)
        elif kind == "pause":
            for host in element.hosts:
                self.schedule.pause(host, self.rng.uniform(1, 4 * _TTL_S))
        elif kind == "process dies":
            self.schedule.kill(element.hosts[-1])
        elif kind == "all pause":
            for other in self.controller.running():
                for host in other.hosts:
                    self.schedule.pause(host, 3 * _TTL_S)

    # --- the user's commands ----------------------------------------------------

    def _until_done(self, name: str, verb: Callable[[Services], Any]) -> Any:
        """The user repeats a command until it succeeds, as its messages say."""
        unlucky = 0 if self.calm else self.rng.randint(0, 3)
        while True:
            if not self.calm and self.rng.random() < 0.15:
                self._begin(name, verb, disturbed=True)
            command = self._begin(name, verb, disturbed=unlucky > 0)
            unlucky -= 1
            command.ended.wait(self.rng.choice((30.0, 600.0)) if unlucky >= 0 else None)
            if command.done:
                return command.value
            if isinstance(command.error, UserError):
                raise Violation(f"{name}: {command.error}; {self._states()}")
            self.schedule.sleep(self.rng.uniform(1, 30))

    def _begin(self, name: str, verb: Callable[[Services], Any], *, disturbed: bool) -> Command:
        host, rng = Host(name, self.rng.uniform(-2, 2)), random.Random(self.rng.random())
        command = Command(name, host, SimSignal(self.schedule))
        services = self._services(host, rng, self._disturbed(host, rng) if disturbed else _nothing)

        def run() -> None:
            self.under_way.add(command)
            try:
                command.value = verb(services)
                command.done = True
            except (ServiceError, UserError) as error:
                command.error = error
                self.log.append(f"{self.schedule.now:.0f} {name}: {error}")
            finally:
                self.under_way.discard(command)
                command.ended.set()

        self.schedule.spawn(host, run)
        return command

    def _disturbed(self, host: Host, rng: random.Random) -> Callable[[str], None]:
        """A call is interrupted, or pauses, after its n-th request was answered."""
        kind, left = rng.choice(("cut", "sleep")), int(_MOST_REQUESTS ** rng.random())

        def disturb(_name: str) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            self.seen.faults[kind] += 1
            if kind == "cut":
                raise Killed
            self.schedule.pause(host, rng.uniform(1, 600))

        return disturb

    def _services(
        self, host: Host, rng: random.Random, answered: Callable[[str], None]
    ) -> Services:
        network = Network(self.schedule, rng, self.rates, self.seen, answered=answered)
        objects = SimObjects(self.objects, network, self.seen)
        transport = SimTransport(self.schedule, self.node, network)
        slurm = SlurmClient(
            transport, ".airflow-slurm", lambda: self.schedule.now, self.schedule.sleep
        )
        return Services(
            site=parse_site(_SITE, "site"),
            rows=SimRows(self.rows, network, self.seen),
            objects=objects,
            slurm=slurm,
            clock=SimClock(self.schedule, host),
            bucket=lambda _name: objects,
            sts=lambda: None,
        )

    def _config(self) -> Config:
        raw: dict[str, Any] = {
            "job_id": JOB,
            "input": {"path": f"s3://lab/{_INPUT}", "key": "id"},
            "handler": {"entry": f"{__name__}:handle", "params": {"seed": self.seed}},
            "workers": self.workers,
            "lease": {"ttl": _TTL_S, "heartbeat": 5, "margin": 3, "max_lost": 4},
            "worker": {"tries": 2, "backoff": 0.1, "checkpoint": 6},
        }
        if self.bundle is not None:
            raw["bundle"] = self.bundle
        return parse_config(raw, raw)

    def _submit(self, services: Services) -> Any:
        return api.submit(services, self._config(), log=self._log)

    def _retry(self, services: Services) -> Any:
        classes = [error_class.value for error_class in ErrorClass]
        return api.retry(services, JOB, classes, log=self._log)

    def _aggregate(self, services: Services) -> Any:
        return api.aggregate(services, JOB, log=self._log)

    def _collect(self, services: Services) -> Any:
        return gc.collect(services, JOB, log=self._log)

    def _pause(self, services: Services) -> Any:
        return control.pause(services, JOB)

    def _resume(self, services: Services) -> Any:
        return control.resume(services, JOB, log=self._log)

    def _add_workers(self, services: Services) -> Any:
        return control.add_workers(services, JOB, 1, log=self._log)

    def _cancel(self, services: Services) -> Any:
        return control.cancel(services, JOB)

    def _repair(self, services: Services) -> Any:
        return repair(services, JOB, log=self._log)

    def _status(self, services: Services) -> Any:
        return api.poll(services, JOB)

    def _resubmit(self, services: Services) -> Any:
        status = api.poll(services, JOB)
        if status.workers_gone:
            return api.resubmit(services, JOB, max_resubmits=100, log=self._log)
        return None

    def _log(self, line: str) -> None:
        self.log.append(f"{self.schedule.now:.0f} {line}")

    # --- the workers ------------------------------------------------------------

    def _launch(self, element: ArrayElement) -> int:
        """The script of an element: the supervisor and its process, until they end."""
        if self.node.files.get(f"{element.array.place}/id", b"").strip() == b"cancelled":
            return 143
        words = shlex.split(element.array.script.rstrip().splitlines()[-1])
        options = dict(zip(words[-6::2], words[-5::2], strict=True))
        death: Death | None = None
        assert element.stop is not None, "it runs"
        for _ in range(_MOST_PROCESSES):
            code, death = self._process(element, options, death)
            if code is not None:
                return code
            if element.stop.is_set():
                break
        return int(WorkerExit.INFRASTRUCTURE)

    def _process(
        self, element: ArrayElement, options: dict[str, str], death: Death | None
    ) -> tuple[int | None, Death | None]:
        """One worker process: its exit code, or what it was doing when it died."""
        self.started += 1
        number = self.started
        host = Host(f"{element.name}.{number}", self.rng.uniform(-2, 2))
        element.hosts = [element.hosts[0], host]
        ended, recorder, rng = SimSignal(self.schedule), Recorder(), random.Random(self.rng.random())
        codes: list[int] = []

        def run() -> None:
            try:
                codes.append(self._work(element, options, death, host, recorder, rng, number))
            except ServiceError:
                codes.append(int(WorkerExit.INFRASTRUCTURE))
            except UserError as error:
                self.log.append(f"{self.schedule.now:.0f} worker: {error}")
                codes.append(int(WorkerExit.CONFIG))
            finally:
                ended.set()

        self.schedule.spawn(host, run)
        ended.wait()
        if codes:
            return codes[0], None
        record = recorder.read()
        leases = tuple(lease for lease in record.leases if lease != (record.task, record.attempt))
        if not record.task and not leases:
            return None, None
        crash = Crash(ErrorClass.WORKER_CRASH, record.position)
        return None, Death(record.owner, record.task, record.attempt, crash, leases)

    def _work(
        self,
        element: ArrayElement,
        options: dict[str, str],
        death: Death | None,
        host: Host,
        recorder: Recorder,
        rng: random.Random,
        number: int,
    ) -> int:
        network = Network(self.schedule, rng, self.rates, self.seen)
        objects = SimObjects(self.objects, network, self.seen)
        _, key = split_s3_uri(options["--config"], "--config")
        config = read_config(objects.get(key), key)
        rows, clock = SimRows(self.rows, network, self.seen), SimClock(self.schedule, host)
        threads = SimThreads(self.schedule, host)
        table = TaskTable(rows, JOB, config.shards, config.lease, clock)
        if death is not None:
            _report(death, table)
        scratch = self.scratch / f"{number}"
        scratch.mkdir()
        assert element.stop is not None, "it runs"
        identity = WorkerIdentity(
            f"{element.name}-r{element.restarts}-{number:08x}",
            options["--submission"],
            {
                "array": str(element.array.slurm_job_id),
                "element": str(element.number),
                "restart": str(element.restarts),
                "node": "n1",
            },
        )
        context = NodeContext(
            config=config,
            identity=identity,
            store=JobStore(objects, JobPaths(config.prefix, JOB)),
            jobs=JobTable(rows, JOB, clock),
            table=table,
            buckets=lambda _: objects,
            clock=clock,
            scratch=scratch,
            logger=_Silent(),
            threads=threads,
            drain=Drain(element.stop),
            rng=rng,
            recorder=recorder,
            leave=lambda: self._leave(host),
            requeue=lambda _slurm: self._requeued(element),
        )
        return int(Worker(context).run())

    def _leave(self, host: Host) -> None:
        self.schedule.kill(host)
        raise Killed

    def _requeued(self, element: ArrayElement) -> str:
        self.controller.requeue(element)
        return ""

    def handle(self, item: dict[str, Any]) -> dict[str, Any]:
        """What the user's handler does with an item."""
        key = item["id"]
        self.calls[key] += 1
        self.schedule.sleep(self.rng.expovariate(1 / self.item_s))
        outcome = _OUTCOMES[(item["n"] + self.seed) % len(_OUTCOMES)]
        if outcome == "bad_input":
            raise ItemError(ErrorClass.BAD_INPUT, "bad")
        if outcome == "flaky" and self.calls[key] < 4:
            raise ConnectionError("flaky")
        if outcome == "crash" and self.calls[key] < 3 and not self.calm:
            self._leave(self.schedule.current.host)
        return {"n": item["n"]}

    # --- what must hold -----------------------------------------------------------

    @property
    def _paths(self) -> JobPaths:
        return JobPaths("lab", JOB)

    def _shards(self) -> int:
        found = JobTable(self.rows, JOB, SimClock(self.schedule, Host("checker"))).find()
        return found.shards if found else 0

    def _task_rows(self) -> list[TaskRow]:
        return list(self._each_row())

    def _each_row(self) -> Iterator[TaskRow]:
        clock = SimClock(self.schedule, Host("checker"))
        jobs = JobTable(self.rows, JOB, clock)
        job = jobs.find()
        if job is None:
            return
        lease = self._config().spec.resolve_lease()
        table = TaskTable(self.rows, JOB, job.shards, lease, clock)
        for shard in range(job.shards):
            yield from table.all_rows(shard)

    def _complete(self) -> bool:
        rows = self._task_rows()
        return bool(rows) and all(row.state.terminal for row in rows)

    def _states(self) -> str:
        return ", ".join(f"{row.task} {row.state.value}" for row in self._task_rows())

    def _check(self) -> None:
        rows = {row.task: row for row in self._task_rows()}
        markers = {marker.task: marker for marker in JobStore(self.objects, self._paths).markers()}
        for key, bodies in self.seen.markers.items():
            if len(bodies) > 1:
                raise Violation(f"{key} had {len(bodies)} different contents")
        for task, row in rows.items():
            if not row.state.terminal:
                raise Violation(f"{task} is {row.state.value} at the end")
            if row.state is TaskState.DONE and task not in markers:
                raise Violation(f"{task} is done without a marker")
        self._check_dataset(markers)

    def _check_dataset(self, markers: dict[TaskId, Marker]) -> None:
        import json

        import pyarrow.parquet as pq

        data = self.objects.get(self._paths.manifest)
        if data is None:
            raise Violation("no dataset was published")
        manifest = json.loads(data)
        found: Counter[str] = Counter()
        for file in manifest["files"]:
            body = self.objects.get(file["key"])
            if body is None:
                raise Violation(f"the manifest names {file['key']}, which does not exist")
            import io

            table = pq.read_table(io.BytesIO(body))
            names = [name for name in table.column_names if name in ("_key", "id")]
            found.update(table.column(names[0]).to_pylist())
        if max(found.values(), default=0) > 1:
            raise Violation(f"items are published twice: {found}")


_TROUBLES = {
    "node fails": 3,
    "out of memory": 1,
    "preempted": 2,
    "pause": 3,
    "process dies": 3,
    "all pause": 1,
    "slurmctld": 1,
    "slurmdbd": 1,
    "login node": 1,
    "pause": 1,
    "resume": 2,
    "submit": 2,
    "add workers": 1,
    "cancel": 1,
    "repair": 1,
    "status": 2,
    "resubmit": 2,
}
_VERBS = ("resume", "submit", "add workers", "cancel", "repair", "status", "resubmit")


def handle(item: dict[str, Any], context: Context) -> object:
    """The simulated user's handler."""
    return _RUNS[context.params["seed"]].handle(item)


#: The runs of this process; parameters of handlers are JSON.
_RUNS: dict[int, Backfill] = {}


@contextmanager
def _registered(run: Backfill) -> Iterator[None]:
    _RUNS[run.seed] = run
    try:
        yield
    finally:
        del _RUNS[run.seed]


def _report(death: Death, table: TaskTable) -> None:
    if death.task:
        table.record_crash(TaskId(death.task), death.attempt, death.owner, death.crash)
    for task, attempt in death.leases:
        table.abandon(TaskId(task), attempt, death.owner)


def _nothing(_name: str) -> None:
    """Let a call continue."""


@dataclass
class _Silent:
    """A logger that discards all lines."""

    lines: list[str] = field(default_factory=list)

    def info(self, event: str, **fields: Any) -> None:
        """Drop the line."""

    debug = warning = error = exception = info
