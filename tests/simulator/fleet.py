"""Worker processes on the cluster: an element's script, its supervisor, the nodes' own code."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass, ServiceError, UserError
from slurm_worker.execution.flight_recorder import HangDetector, Record, Recorder
from slurm_worker.node.context import NodeContext
from slurm_worker.node.process import hang_limits
from slurm_worker.node.slurm_job import Drain, WorkerExit, WorkerIdentity
from slurm_worker.node.supervisor import Death
from slurm_worker.node.worker import Worker, read_config
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import TaskId, split_s3_uri
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.task_history import Crash
from slurm_worker.protocol.task_table import TaskTable
from tests.simulator.engine.schedule import Killed, SimClock, SimSignal, SimThreads
from tests.simulator.slurm.cluster import ArrayElement
from tests.simulator.stores.rows import SimRows
from tests.simulator.world import JOB, World

_CANCELLED_EXIT = 143
_MOST_PROCESSES = 20
#: Part of the processes that die after a request, and the names of the requests.
_SHORT_LIVES = 0.15
_POINTS = ("object put", "complete", "decide", "put", "claim", "steal", "heartbeat", "cursor")
#: Seconds between two checks of a supervisor whether a process hangs.
_LOOK_S = 1.0


class Fleet:
    """Runs the elements of the world's arrays."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._started = 0
        #: What Slurm tells a worker of the size of its array
        self.array_size: Callable[[ArrayElement], int | None] = lambda element: len(
            element.array.elements
        )
        #: Called when the first process of an element begins.
        self.on_start: Callable[[ArrayElement], None] = lambda _element: None

    def launch(self, element: ArrayElement) -> int:
        """The script of an element: the supervisor and its process, until they end."""
        files = self._world.node.files
        if files.get(f"{element.array.place}/id", b"").strip() == b"cancelled":
            return _CANCELLED_EXIT
        self.on_start(element)
        words = shlex.split(element.array.script.rstrip().splitlines()[-1])
        options = dict(zip(words[-6::2], words[-5::2], strict=True))
        death: Death | None = None
        for _ in range(_MOST_PROCESSES):
            self._started += 1
            size = self.array_size(element)
            process = _Process(self._world, element, options, self._started, death, size)
            code, death = process.run()
            if code is not None:
                return code
            if element.stop.is_set():
                break
        return int(WorkerExit.INFRASTRUCTURE)


class _Process:
    """One worker process of an element."""

    def __init__(
        self,
        world: World,
        element: ArrayElement,
        options: dict[str, str],
        number: int,
        death: Death | None,
        array_size: int | None,
    ) -> None:
        self._world = world
        self._array_size = array_size
        self._element = element
        self._options = options
        self._number = number
        self._death = death
        self._recorder = Recorder()
        self._host = world.host(f"{element.array.name} {element.number}")
        self._rng = world.seen.rng_of(self._host.name)
        self._records: list[Record] = []
        self._host.when_killed = lambda: self._records.append(self._recorder.read())
        self._stop = SimSignal(world.schedule)
        self._codes: list[int] = []
        self._hung = False

    def run(self) -> tuple[int | None, Death | None]:
        """Its exit code, or what it was doing when it died."""
        element, schedule = self._element, self._world.schedule
        element.hosts = [element.hosts[0], self._host]
        self._world.elements[self._host] = element
        ended = SimSignal(schedule)
        codes = self._codes

        def live() -> None:
            try:
                codes.append(self._work())
            except ServiceError:
                codes.append(int(WorkerExit.INFRASTRUCTURE))
            except UserError as error:
                self._world.say(f"{self._host.name}: {error}")
                codes.append(int(WorkerExit.CONFIG))
            finally:
                ended.set()

        schedule.spawn(self._host, live)
        schedule.spawn(self._host, self._forward)
        if self._world.endless:
            schedule.spawn(element.hosts[0], self._kill_if_hung)
        ended.wait()
        if not self._records:
            return codes[0], None
        self._world.say(f"{self._host.name} died")
        record = self._records[0]
        self._world.died(record.task, record.position, hung=self._hung)
        return None, _death(record, hung=self._hung)

    def _kill_if_hung(self) -> None:
        """The supervisor kills a process whose item, or whose every item, takes too long."""
        watch, schedule = HangDetector(), self._world.schedule
        while not self._codes and not self._host.dead:
            if watch.hangs(self._recorder.read(), schedule.now):
                self._hung = True
                self._world.seen.faults["hung process killed"] += 1
                schedule.kill(self._host)
                return
            schedule.sleep(_LOOK_S)

    def _forward(self) -> None:
        """The supervisor passes SIGTERM on to its process."""
        self._element.stop.wait()
        self._stop.set()

    def _work(self) -> int:
        world, element = self._world, self._element
        network = world.network(self._rng, self._disturbance(), self._host)
        objects = world.store(network)
        _, key = split_s3_uri(self._options["--config"], "--config")
        config = read_config(objects.get(key), key)
        self._recorder.limits(*hang_limits(config))
        rows, clock = SimRows(world.rows, network, world.seen), SimClock(world.schedule, self._host)
        table = TaskTable(rows, JOB, config.shards, config.lease, clock)
        if self._death is not None:
            _report(self._death, table)
        scratch = world.scratch / f"{self._number}"
        scratch.mkdir()
        slurm = {
            "array": str(element.array.slurm_job_id),
            "element": str(element.number),
            "restart": str(element.restarts),
            "node": "n1",
        }
        name = f"{element.name}-r{element.restarts}-{self._number:08x}"
        world.owners[name] = self._host
        context = NodeContext(
            config=config,
            identity=WorkerIdentity(name, self._options["--submission"], slurm),
            store=JobStore(objects, JobPaths(config.prefix, JOB)),
            jobs=JobTable(rows, JOB, clock),
            table=table,
            buckets=lambda _: objects,
            clock=clock,
            scratch=scratch,
            logger=Silent(),
            threads=SimThreads(world.schedule, self._host),
            drain=Drain(self._stop),
            rng=self._rng,
            recorder=self._recorder,
            array_size=self._array_size,
            leave=self._leave,
            requeue=self._requeue,
        )
        return int(Worker(context).run())

    def _disturbance(self) -> Callable[[str], None]:
        """What happens to some processes after one of their requests was answered: they die.

        Most accidents come at any time, and hardly ever between two requests of a commit.
        """
        rng = self._world.seen.rng_of(f"{self._host.name} request")
        ends, point, left = rng.random() < _SHORT_LIVES, rng.choice(_POINTS), rng.randint(1, 4)
        node = rng.random() < 0.5

        def disturb(name: str) -> None:
            nonlocal left
            world = self._world
            left -= name == point
            if left or name != point or world.schedule.now > world.rates.until:
                return
            kind = "node fails" if node else "process dies"
            if not world.seen.happens(f"{self._host.name} after {name}", kind):
                return
            if node:
                world.controller.kill(self._element, ElementState.NODE_FAIL, requeued=True)
            else:
                world.schedule.kill(self._host)
            raise Killed

        return disturb if ends else _nothing

    def _leave(self) -> None:
        self._codes.append(int(WorkerExit.OK))
        self._host.when_killed = None
        self._world.schedule.kill(self._host)
        raise Killed

    def _requeue(self, _slurm: object) -> str:
        self._world.controller.requeue(self._element)
        return ""


def _death(record: Record, *, hung: bool) -> Death | None:
    leases = tuple(lease for lease in record.leases if lease != (record.task, record.attempt))
    if not record.task and not leases:
        return None
    error_class = ErrorClass.TIMEOUT if hung else ErrorClass.WORKER_CRASH
    crash = Crash(error_class, record.position)
    return Death(record.owner, record.task, record.attempt, crash, leases)


def _report(death: Death, table: TaskTable) -> None:
    if death.task:
        table.record_crash(TaskId(death.task), death.attempt, death.owner, death.crash)
    for task, attempt in death.leases:
        table.abandon(TaskId(task), attempt, death.owner)


def _nothing(_name: str) -> None:
    """Let the process continue."""


@dataclass
class Silent:
    """A logger that discards all lines."""

    def info(self, event: str, **fields: Any) -> None:
        """Drop the line."""

    debug = warning = error = exception = info
