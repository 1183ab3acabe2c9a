"""The workers of a job as processes of this machine, and signals to them.

Only processes of the job's own array elements are touched. A process is held by a descriptor
while it is looked at and signalled, so that a process id that the system gave away meanwhile is
never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker of the job, alive when it was found."""

    pid: int
    element: str
    node: str
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
        element = f"{array}_{variables['SLURM_ARRAY_TASK_ID']}"
        return WorkerProcess(pid, element, variables.get("SLURMD_NODENAME", ""), fields[19])
    return None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.split("\0"):
        name, separator, value = line.partition("=")
        if separator:
            yield name, value
