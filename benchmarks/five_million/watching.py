"""The run, watched from outside: memory and time of its processes, and the kills.

It reads and signals only two kinds of processes. One kind is the steps that it started. The other
has the job's id in the command line and a Slurm array of the job in the environment
(`tests.chaos.faults.workers`).
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.processes import resident_mb
from tests.chaos.faults.workers import WorkerProcess, send, workers_of

SAMPLE_S = 0.5


@dataclass
class Seen:
    """Measurements of one kind of process.

    Args:
        peak_mb: the highest peak of memory of any of them.
        processes: how many there were.
        seconds: the sum of their lifetimes.
    """

    peak_mb: float = 0.0
    processes: int = 0
    seconds: float = 0.0


@dataclass
class Looker:
    """Watches the processes in a thread, twice per second.

    Args:
        job_id: the job of the workers.
        steps: processes that were started here, by name.
    """

    job_id: str
    steps: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    _alive: dict[str, set[object]] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._then = time.monotonic()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Looker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_S):
            self.look()

    def look(self) -> None:
        """Check all processes once."""
        now = time.monotonic()
        passed, self._then = now - self._then, now
        for name, step in list(self.steps.items()):
            if step.poll() is None:
                self._note(name, step.pid, step.pid, passed)
        for worker in workers_of(self.job_id):
            self._note(role_of(worker), (worker.pid, worker.started), worker.pid, passed)

    def _note(self, name: str, identity: object, pid: int, passed: float) -> None:
        peak = resident_mb(pid, "VmHWM")
        if not peak:  # the process has ended
            return
        seen, alive = self.seen.setdefault(name, Seen()), self._alive.setdefault(name, set())
        if identity not in alive:
            alive.add(identity)
            seen.processes += 1
        seen.peak_mb = max(seen.peak_mb, peak)
        seen.seconds += passed


def role_of(worker: WorkerProcess) -> str:
    """``worker``, which runs items, or ``supervisor``, its parent."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1])
        words = Path(f"/proc/{parent}/cmdline").read_bytes()
        ours = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
        return "worker" if words == ours else "supervisor"
    return "worker"


@dataclass
class Killer:
    """Kills random workers at regular points of the job's progress.

    Args:
        job_id: the job of the workers.
        items: items of the job.
        kills: number of kills, spread over the items.
        rng: chooses the worker.
        say: called with a line for each kill.
    """

    job_id: str
    items: int
    kills: int
    rng: random.Random
    say: Callable[[str], None]
    done: int = 0
    roles: Counter[str] = field(default_factory=Counter)

    def due(self, ok: int) -> int:
        """How many kills are due when this number of items is done."""
        return min(self.kills, int((self.kills + 1) * ok / self.items + 0.75))

    def step(self, ok: int) -> None:
        """Carry out the kills that are due; if no worker is running, the next step tries again."""
        while self.done < self.due(ok):
            alive = workers_of(self.job_id)
            if not alive:
                return
            victim = self.rng.choice(alive)
            role = role_of(victim)
            if not send(victim, self.job_id, signal.SIGKILL):
                return
            self.done += 1
            self.roles[role] += 1
            self.say(f"kill -9 of {role} {victim.element} (pid {victim.pid}), number {self.done}")


def share_of(cpu_s: float, seen: Mapping[str, Seen]) -> float:
    """The share of the workers' lifetime in which the handler was on a CPU."""
    lived = seen["worker"].seconds if "worker" in seen else 0.0
    return cpu_s / lived if lived else 0.0
