"""What Slurm has of a job, asked while the job is disturbed: never two live arrays of one name."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from tests.chaos.faults.workers import workers_of

_EVERY_S = 1.0
_TIMEOUT_S = 30.0
#: An element whose process has not begun, or has just ended, is none.
GHOST_S = 15.0
_LIVE = "PENDING,RUNNING,SUSPENDED,CONFIGURING"


def live_arrays(job_id: str) -> dict[str, set[str]] | None:
    """The arrays that wait or run, by the name of their submission; None without an answer."""
    rows = _ask(["squeue", "-h", "-t", _LIVE, "-o", "%F|%j"])
    return None if rows is None else _by_name(rows, job_id)


def all_arrays(job_id: str) -> dict[str, set[str]] | None:
    """The arrays that Slurm has ever had, by the name of their submission."""
    queue = _ask(["squeue", "-h", "-t", "all", "-o", "%F|%j"])
    records = _ask(["sacct", "-nXDP", "-a", "-S", "now-1days", "-o", "JobID,JobName"])
    return None if queue is None or records is None else _by_name(queue + records, job_id)


def live_elements(job_id: str, states: str = _LIVE) -> list[str] | None:
    """The elements of these states, such as ``12_3``; None without an answer."""
    rows = _ask(["squeue", "-h", "-r", "-t", states, "-o", "%i|%j"])
    if rows is None:
        return None
    found = (row.partition("|") for row in rows)
    return sorted(element for element, _, name in found if name.startswith(f"{job_id}."))


@dataclass
class Ghosts:
    """Elements that run only in Slurm's memory, which are cancelled as an administrator would.

    A slurmctld that is killed forgets the ends of the last seconds. By itself, it asks its nodes
    only after many minutes.

    Args:
        job_id: of the elements.
        cancelled: how many there were.
    """

    job_id: str
    cancelled: int = 0
    _since: dict[str, float] = field(default_factory=dict)

    def look(self) -> int | None:
        """How many elements run, in Slurm and as a process; None if Slurm does not answer."""
        running = live_elements(self.job_id, "RUNNING")
        if running is None:
            return None
        workers = {worker.element for worker in workers_of(self.job_id)}
        now = time.monotonic()
        self._since = {
            element: self._since.get(element, now) for element in running if element not in workers
        }
        ghosts = [element for element, since in self._since.items() if now - since > GHOST_S]
        if ghosts and _ask(["scancel", *ghosts]) is not None:
            self.cancelled += len(ghosts)
        return len(workers.intersection(running))


@dataclass
class QueueWatch:
    """Asks every second, in a thread; `seen` has what must not be."""

    job_id: str
    seen: set[str] = field(default_factory=set)
    answers: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            found = live_arrays(self.job_id)
            self.answers += found is not None
            for name, arrays in (found or {}).items():
                if len(arrays) > 1:
                    self.seen.add(f"{name} has the live arrays {', '.join(sorted(arrays))}")


def _ask(command: list[str]) -> list[str] | None:
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None
    return said.stdout.splitlines() if said.returncode == 0 else None


def _by_name(lines: list[str], job_id: str) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        number, _, name = line.partition("|")
        if name.startswith(f"{job_id}."):
            found[name].add(number.partition("_")[0])
    return dict(found)
