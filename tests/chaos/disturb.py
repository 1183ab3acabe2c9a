"""What goes wrong during a chaos round: workers die, freeze, are requeued; a node daemon dies.

Only processes and array elements of the round's own job are touched, and the stack's own
slurmd. A process is held by a descriptor while it is looked at and signalled, so that a
process id that the system gave away meanwhile is never hit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.stack import slurm
from tests.stack.process import known_services
from tests.stack.settings import Settings

_COMMAND_TIMEOUT_S = 30.0


class Disturbance(str, Enum):
    """What may happen to the job from outside."""

    KILL = "kill"  # SIGKILL of a worker: its lease must run out
    FREEZE = "freeze"  # SIGSTOP beyond the lease, then SIGCONT: a zombie
    REQUEUE = "requeue"  # scontrol requeue of an element: TERM, then a new life
    CANCEL = "cancel"  # scancel of an element: TERM, drain, release
    SLURMD = "slurmd"  # kill -9 of a node's daemon, and its restart


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker of the job, alive when it was found."""

    pid: int
    element: str
    #: Of this very process, which a later one of the same id does not share.
    started: str


def workers_of(job_id: str) -> list[WorkerProcess]:
    """The job's worker processes on this machine, in order of their ids."""
    running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [worker for pid in sorted(running) if (worker := _worker(pid, job_id)) is not None]


def send(worker: WorkerProcess, job_id: str, number: signal.Signals) -> bool:
    """Signal a worker; False if it is no longer there."""
    try:
        descriptor = os.pidfd_open(worker.pid)
    except OSError:
        return False
    try:
        if _worker(worker.pid, job_id) != worker:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


@dataclass
class Disturber:
    """Carries out a seeded schedule of disturbances on one job.

    Args:
        settings: of the stack that is up.
        job_id: the job whose workers are disturbed.
        freeze_s: how long a frozen worker stays so.
        rng: chooses the victims.
        say: called with a line for each disturbance.
        schedule: (seconds on the monotonic clock, what), the next one first.
    """

    settings: Settings
    job_id: str
    freeze_s: float
    rng: random.Random
    say: Callable[[str], None]
    schedule: list[tuple[float, Disturbance]]
    counts: Counter[str] = field(default_factory=Counter)
    _frozen: list[tuple[float, WorkerProcess]] = field(default_factory=list)
    _daemons_due: float | None = None

    def step(self) -> None:
        """Do what is due by now; returns at once where nothing is."""
        now = time.monotonic()
        self._thaw(now)
        if self._daemons_due is not None and now >= self._daemons_due:
            self._restart_daemons()
        while self.schedule and self.schedule[0][0] <= now:
            _, what = self.schedule.pop(0)
            did = self._do(what)
            if did:
                self.counts[what.value] += 1
                self.say(f"{what.value}: {did}")
            else:
                # Nobody to disturb just now: it comes when somebody is there again.
                self.schedule.insert(0, (now + 2.0, what))
                break

    @property
    def frozen(self) -> bool:
        """Whether some worker is stopped now."""
        return bool(self._frozen)

    def thaw_all(self) -> None:
        """Leave no worker frozen."""
        self._thaw(float("inf"))

    def close(self) -> None:
        """Leave nothing frozen, and every daemon running."""
        self.thaw_all()
        if self._daemons_due is not None:
            self._restart_daemons()

    def _do(self, what: Disturbance) -> str:
        if what is Disturbance.SLURMD:
            return self._kill_daemon()
        awake = [each for each in workers_of(self.job_id) if not self._is_frozen(each)]
        if not awake:
            return ""
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

    def _kill_daemon(self) -> str:
        daemons = [
            each
            for each in known_services(self.settings.state)
            if each.name.startswith("slurmd-") and each.alive
        ]
        if not daemons or self._daemons_due is not None:
            return ""
        victim = self.rng.choice(sorted(daemons, key=lambda each: each.name))
        os.kill(victim.pid, signal.SIGKILL)
        self._daemons_due = time.monotonic() + self.rng.uniform(3.0, 8.0)
        return f"{victim.name} (pid {victim.pid})"

    def _restart_daemons(self) -> None:
        self._daemons_due = None
        self.say(f"restarted {', '.join(slurm.start(self.settings)) or 'no daemon'}")

    def _thaw(self, now: float) -> None:
        for due, worker in [each for each in self._frozen if each[0] <= now]:
            self._frozen.remove((due, worker))
            if send(worker, self.job_id, signal.SIGCONT):
                self.say(f"thawed {worker.element}")

    def _is_frozen(self, worker: WorkerProcess) -> bool:
        return any(frozen == worker for _, frozen in self._frozen)


def make_schedule(
    rng: random.Random, plan: dict[Disturbance, int], first_s: float, last_s: float
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
    ended = subprocess.run(argv, capture_output=True, check=False, timeout=_COMMAND_TIMEOUT_S)
    return ended.returncode == 0


def _worker(pid: int, job_id: str) -> WorkerProcess | None:
    """The process, if it is a worker of the job; srun and the batch shell are not."""
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}")
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if not Path(words[0]).name.startswith("python") or f"/jobs/{job_id}/" not in str(words):
            return None
        variables = dict(_pairs((folder / "environ").read_bytes().decode(errors="replace")))
        array = variables.get("SLURM_ARRAY_JOB_ID")
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        if not variables.get("SLURM_JOB_NAME", "").startswith(f"{job_id}.") or not array:
            return None
        if fields[0] in "ZX":
            return None
        return WorkerProcess(pid, f"{array}_{variables['SLURM_ARRAY_TASK_ID']}", fields[19])
    return None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.split("\0"):
        name, separator, value = line.partition("=")
        if separator:
            yield name, value
