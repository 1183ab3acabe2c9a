"""Another engine beside ours: the same items, the same number of processes, the same machine.

python -m benchmarks.peers [--short]          (make stack-up first: it runs on Slurm)

Ours has its table and store in its own process, dask-jobqueue its scheduler beside it; so
this compares what the engines themselves cost. The peer is installed apart, by uv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine import Figure

_PEER = Path(__file__).with_name("dask_peer.py")
_PACKAGES = ("dask-jobqueue==0.9.0", "distributed==2026.8.0")
_OURS = "from benchmarks.engine import noop, run_worker; print(run_worker(noop, {items}))"
PROCESSES = 2


def ours(items: int, processes: int) -> float:
    """Items a second of so many workers at the same time."""
    program = _OURS.format(items=items // processes)
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    rates = [float(each.communicate()[0]) for each in running]
    # Each has the same to do, so the slowest says when all is done.
    return processes * min(rates)


def dask_jobqueue(items: int, times: int) -> dict[str, Any]:
    """Its rates, and the seconds until its workers were there."""
    packages = [part for each in _PACKAGES for part in ("--with", each)]
    uv = shutil.which("uv") or sys.exit("peers: uv is not on PATH; it installs the peer")
    command = [uv, "run", "--quiet", "--no-project", "--python", sys.executable, *packages]
    command += ["python", str(_PEER), "--items", str(items), "--processes", str(PROCESSES)]
    ended = subprocess.run(
        [*command, "--times", str(times)], stdout=subprocess.PIPE, text=True, check=True
    )
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


def figures(*, short: bool) -> list[Figure]:
    if "SLURM_CONF" not in os.environ:
        sys.exit("peers: no Slurm; use: make bench")
    items, times = (40_000, 2) if short else (400_000, 5)
    theirs = dask_jobqueue(items, times)
    steady = statistics.median(theirs["items_per_s"][1:])
    rate = statistics.median(ours(items, PROCESSES) for _ in range(times))
    return [
        Figure(
            f"engine: {PROCESSES} processes, no-op, bundles of 500",
            f"{rate:,.0f} items/s",
            f"{steady:,.0f} items/s, dask-jobqueue once it runs",
            rate / steady,
            1.5,
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    print(json.dumps([asdict(each) for each in figures(short=parser.parse_args().short)]))


if __name__ == "__main__":
    main()
