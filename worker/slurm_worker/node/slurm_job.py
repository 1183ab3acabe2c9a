"""The worker as a Slurm job: its identity, exit codes, time limit, signals and requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from slurm_worker.errors import NoCredentials, ServiceError, UserError, WrongClock
from slurm_worker.node.slurm_variables import cleaned
from slurm_worker.node.threads import Signal

#: Slurm sends them before a time limit, on cancel and on preemption; Ctrl-C sends SIGINT.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class WorkerExit(IntEnum):
    """The exit codes that a worker process chooses; every other end is a crash."""

    OK = 0
    CONFIG = 3  #: nothing of this job can run on this node: a mistake in the job
    INFRASTRUCTURE = 75  #: the node or a service failed; another worker may succeed
    NO_PROGRESS = 76  #: several leases in a row finished no item: see the worker's log
    CREDENTIALS = 77  #: the node's AWS credentials are missing or have expired
    CLOCK = 78  #: a service refuses requests because the node's clock is wrong

    @classmethod
    def after(cls, error: UserError | ServiceError) -> WorkerExit:
        """The exit code of a worker that an error ends.

        Some errors have a code of their own, because the worker can't write its reason anywhere.
        """
        if isinstance(error, NoCredentials):
            return cls.CREDENTIALS
        if isinstance(error, WrongClock):
            return cls.CLOCK
        return cls.CONFIG if isinstance(error, UserError) else cls.INFRASTRUCTURE


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Names one worker process; new with each start, so a requeued twin differs."""

    worker: str
    submission: str  #: that started it, such as ``000-1``
    slurm: dict[str, str]  #: Slurm's ids and the node

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], submission: str, host: str
    ) -> WorkerIdentity:
        """Read Slurm's variables; outside Slurm the host name takes their place."""
        array = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
        element = environment.get("SLURM_ARRAY_TASK_ID", "0")
        restart = environment.get("SLURM_RESTART_COUNT") or "0"
        name = f"{array}_{element}-r{restart}" if array else host[:31]
        slurm = {
            "array": array,
            "element": element if array else "",
            "restart": restart if array else "",
            "node": environment.get("SLURMD_NODENAME", host),
        }
        return cls(f"{name}-{uuid.uuid4().hex[:8]}", submission, slurm)


class Drain:
    """The request to stop, `stop_requested`, set by the first signal.

    A separate thread learns of them through a pipe, into which the interpreter writes
    each signal's number at once. So the request arrives even while the main thread is inside
    a long call, and no lock is taken in a signal handler: Slurm and the supervisor often
    signal at the same moment, and a handler interrupted by itself would wait for itself.
    """

    def __init__(self, stop_requested: Signal) -> None:
        self.stop_requested = stop_requested
        self.before_time_limit = False

    def sleep(self, seconds: float) -> None:
        """Wait so many seconds, or less where a stop is requested."""
        self.stop_requested.wait(seconds)

    def install(self) -> None:
        """Listen to TERM (cancel, preemption) and USR1 (the time limit is near)."""
        numbers, pipe = os.pipe()
        os.set_blocking(pipe, False)
        signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(numbers,), name="signals", daemon=True).start()

    def _listen(self, numbers: int) -> None:
        while True:
            for number in os.read(numbers, 64):
                if number == signal.SIGUSR1:
                    self.before_time_limit = True
                if number in STOP_SIGNALS:
                    self.stop_requested.set()


def array_size(environment: Mapping[str, str]) -> int | None:
    """The number of elements of this worker's array; None where Slurm does not say."""
    stated = environment.get("SLURM_ARRAY_TASK_COUNT", "")
    return int(stated) if stated.isdigit() else None


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """Seconds until Slurm ends this job; None outside Slurm, or where that is not known.

    Slurm before 23.02 does not set the variable on a job's first start, so `squeue` is run.
    """
    stated, job = environment.get("SLURM_JOB_END_TIME", ""), environment.get("SLURM_JOB_ID", "")
    if stated.isdigit():
        return int(stated) - time.time()
    if not job.isdigit():
        return None
    try:
        ended = _run("squeue", "-h", "-j", job, "-o", "%e")
        ended.check_returncode()
        # Slurm prints local time, as this node has it.
        return datetime.fromisoformat(ended.stdout.split()[0]).timestamp() - time.time()
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def requeue(slurm: Mapping[str, str]) -> str:
    """Have Slurm start this array element again; return its error text, empty on success."""
    try:
        ended = _run("scontrol", "requeue", f"{slurm['array']}_{slurm['element']}")
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ended.stderr.strip() if ended.returncode else ""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = cleaned(os.environ)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=10.0, env=environment
    )
