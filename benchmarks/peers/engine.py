"""The cost of the engines alone: a no-op handler and the same number of processes.

Ours has table and store in the worker process; dask-jobqueue has a separate scheduler.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.engine import Figure
from benchmarks.peers.contenders import PEERS, WORKERS, Peer

_OURS = "from benchmarks.engine import noop, run_worker; print(run_worker(noop, {items}))"
_DASK = Peer(
    "dask-jobqueue",
    "engine_dask.py",
    "",
    next(each.packages for each in PEERS if each.name == "dask-jobqueue"),
)


def ours(items: int, processes: int) -> float:
    """Items per second of this number of workers at the same time."""
    program = _OURS.format(items=items // processes)
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    rates = [float(each.communicate()[0]) for each in running]
    # All have the same amount of work, so the slowest decides when everything is done.
    return processes * min(rates)


def dask_jobqueue(items: int, times: int) -> dict[str, Any]:
    """The rates of dask-jobqueue, and the seconds until its workers had started."""
    _DASK.prepare()
    ended = subprocess.run(
        [*_DASK.program_with(f"--items={items}", f"--processes={WORKERS}", f"--times={times}")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


def figures(*, short: bool) -> list[Figure]:
    """Ours against dask-jobqueue."""
    items, times = (40_000, 2) if short else (400_000, 5)
    theirs = dask_jobqueue(items, times)
    steady = statistics.median(theirs["items_per_s"][1:])
    rate = statistics.median(ours(items, WORKERS) for _ in range(times))
    return [
        Figure(
            f"engine: {WORKERS} processes, no-op, bundles of 500",
            f"{rate:,.0f} items/s",
            f"{steady:,.0f} items/s, dask-jobqueue once it runs",
            rate / steady,
            1.5,
        )
    ]
