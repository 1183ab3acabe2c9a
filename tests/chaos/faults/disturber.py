"""What goes wrong during a chaos round, at moments that the seed chooses.

Workers die, freeze, are requeued and cancelled; daemons of Slurm and of Airflow are killed; a
scratch disk is full. Only processes and array elements of the round's own job are touched, the
stack's own daemons, and disks that the round has mounted.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from tests.chaos.faults.daemons import Daemons
from tests.chaos.faults.disks import Disks
from tests.chaos.faults.tally import Tally
from tests.chaos.faults.workers import WorkerProcess, send, workers_of

_COMMAND_TIMEOUT_S = 30.0
_STEP_S = 0.25
_LATER_S = 2.0


class Disturbance(str, Enum):
    """What may happen to a job and around it; the value is the kind that is counted."""

    KILL = "worker killed"  # SIGKILL of a worker: its lease must run out
    FREEZE = "worker frozen"  # SIGSTOP beyond the lease, then SIGCONT: a zombie
    REQUEUE = "worker requeued"  # scontrol requeue of an element: TERM, then a new life
    CANCEL = "worker cancelled"  # scancel of an element: TERM, drain, release
    SCRATCH = "scratch full"  # no byte can be written on a node's scratch for seconds
    SLURMD = "slurmd killed"  # each daemon: kill -9, and its start some seconds later
    SLURMCTLD = "slurmctld killed"
    SLURMDBD = "slurmdbd killed"
    SCHEDULER = "scheduler killed"
    TRIGGERER = "triggerer killed"


_DAEMONS: Mapping[Disturbance, str] = {
    Disturbance.SLURMD: "slurmd-",
    Disturbance.SLURMCTLD: "slurmctld",
    Disturbance.SLURMDBD: "slurmdbd",
    Disturbance.SCHEDULER: "airflow-scheduler",
    Disturbance.TRIGGERER: "airflow-triggerer",
}
#: Only while a task of Airflow waits is there something that this can disturb.
_WAITING = (Disturbance.SCHEDULER, Disturbance.TRIGGERER)


@dataclass
class Disturber:
    """Carries out seeded schedules of disturbances on one job, in a thread.

    Args:
        job_id: the job whose workers are disturbed.
        daemons: what may be killed besides.
        disks: what may be filled.
        freeze_s: how long a frozen worker stays so.
        rng: chooses the victims.
        tally: counts what was done.
        say: called with a line for each disturbance.
        waits: whether a task of Airflow waits for the job, in the triggerer.
    """

    job_id: str
    daemons: Daemons
    disks: Disks
    freeze_s: float
    rng: random.Random
    tally: Tally
    say: Callable[[str], None]
    waits: Callable[[], bool]
    failure: Exception | None = None
    _schedule: list[tuple[float, Disturbance]] = field(default_factory=list)
    _frozen: list[tuple[float, WorkerProcess]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to carry out the plans."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def plan(self, plan: Mapping[Disturbance, int], first_s: float, last_s: float) -> None:
        """Plan so many of each, within seconds from now."""
        with self._lock:
            self._schedule += make_schedule(self.rng, plan, first_s, last_s)
            self._schedule.sort()

    @property
    def left(self) -> list[str]:
        """The planned disturbances that have not happened yet."""
        return [what.value for _, what in self._schedule]

    def thaw_all(self) -> None:
        """Leave no worker frozen."""
        with self._lock:
            self._thaw(float("inf"))

    def close(self) -> None:
        """Leave nothing frozen or full, and every daemon running.

        Raises:
            StackError: if a daemon can't be started.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.thaw_all()
        self.disks.close()
        self.daemons.close()

    def _run(self) -> None:
        while not self._ended.wait(_STEP_S):
            try:
                self._step()
            except Exception as error:  # whatever it is, the round ends with it
                self.failure = error
                return

    def _step(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._thaw(now)
            self.disks.step()
            self.daemons.step()
            due = [each for each in self._schedule if each[0] <= now]
            for moment, what in due:
                self._schedule.remove((moment, what))
                if did := self._do(what):
                    self.tally.add(what.value, what=did)
                    self.say(f"{what.value}: {did}")
                else:
                    # Nobody to disturb just now: it comes when somebody is there again.
                    self._schedule.append((now + _LATER_S, what))
            self._schedule.sort()

    def _do(self, what: Disturbance) -> str:
        if what in _WAITING and not self.waits():
            return ""
        if what in _DAEMONS:
            return self.daemons.kill(_DAEMONS[what])
        awake = [each for each in workers_of(self.job_id) if not self._is_frozen(each)]
        if not awake:
            return ""
        if what is Disturbance.SCRATCH:
            return self.disks.fill({each.node for each in awake})
        victim = self.rng.choice(awake)
        where = f"{victim.element} (pid {victim.pid})"
        if what is Disturbance.KILL:
            return where if send(victim, self.job_id, signal.SIGKILL) else ""
        if what is Disturbance.FREEZE:
            if not send(victim, self.job_id, signal.SIGSTOP):
                return ""
            self._frozen.append((time.monotonic() + self.freeze_s, victim))
            return f"{where} for {self.freeze_s:.0f} s"
        verb = ["scontrol", "requeue"] if what is Disturbance.REQUEUE else ["scancel"]
        return where if _command([*verb, victim.element]) else ""

    def _thaw(self, now: float) -> None:
        for due, worker in [each for each in self._frozen if each[0] <= now]:
            self._frozen.remove((due, worker))
            if send(worker, self.job_id, signal.SIGCONT):
                self.say(f"thawed {worker.element}")

    def _is_frozen(self, worker: WorkerProcess) -> bool:
        return any(frozen == worker for _, frozen in self._frozen)


def make_schedule(
    rng: random.Random, plan: Mapping[Disturbance, int], first_s: float, last_s: float
) -> list[tuple[float, Disturbance]]:
    """When each planned disturbance is due: one per equal span, at a random moment in it.

    Args:
        rng: decides order and moments.
        plan: how many of each.
        first_s: seconds from now to the first span.
        last_s: seconds from now to the end of the last one.
    """
    chosen = [what for what, count in plan.items() for _ in range(count)]
    rng.shuffle(chosen)
    span = (last_s - first_s) / max(1, len(chosen))
    start = time.monotonic() + first_s
    return [(start + span * (i + rng.random()), what) for i, what in enumerate(chosen)]


def _command(argv: list[str]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(argv, capture_output=True, check=False, timeout=_COMMAND_TIMEOUT_S)
        return ended.returncode == 0
    return False
