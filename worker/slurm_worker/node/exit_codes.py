"""How a worker process ends, and the signals that stop it."""

from __future__ import annotations

import signal
from enum import IntEnum


class WorkerExit(IntEnum):
    """The exit codes that a worker process chooses; every other end is a crash."""

    OK = 0
    CONFIG = 3  #: nothing of this job can run on this node: a mistake in the job
    INFRASTRUCTURE = 75  #: the node or a service failed; another worker may succeed
    NO_PROGRESS = 76  #: several leases in a row finished no item: see the worker's log


#: Slurm sends them before a time limit, on cancel and on preemption; Ctrl-C sends SIGINT.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
