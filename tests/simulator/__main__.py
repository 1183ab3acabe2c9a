"""``python -m tests.simulator``: many seeds, in several processes."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from tests.simulator.limits import LimitSimulation
from tests.simulator.run import Report, Simulation, Violation

_CHUNK = 20


def run_seeds(first: int, count: int, jobs: int) -> int:
    """Run `count` seeds from `first` on; print what happened; 1 if a promise was broken."""
    began = time.monotonic()
    seeds = range(first, first + count)
    requests: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    lost = done = 0
    broken: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(run_seed, seeds, chunksize=_CHUNK):
            if isinstance(result, str):
                broken.append(result)
                print(result, flush=True)
                continue
            requests.update(result.requests)
            faults.update(result.faults)
            lost += result.lost_leases
            done += 1
            if sys.stderr.isatty() and done % 100 == 0:
                print(f"\r{done:,} seeds", end="", file=sys.stderr)
    print(
        f"{len(seeds):,} seeds, {len(broken)} violations, {requests.total():,} requests, "
        f"{lost:,} leases lost, {time.monotonic() - began:.0f} s; "
        f"faults: {', '.join(f'{n:,} {name}' for name, n in sorted(faults.items()))}"
    )
    return 1 if broken else 0


def run_seed(seed: int) -> Report | str:
    """The result of a seed; a line that begins with the seed if a promise was broken.

    A seed has a job and, separately, a rate limit, because the limit's days are too long for a job.
    """
    try:
        limit, report = LimitSimulation(seed).run(), Simulation(seed).run()
        return replace(
            report,
            requests=report.requests + limit.requests,
            faults=report.faults + limit.faults,
        )
    except Violation as violation:
        return f"seed {seed}: {violation}"


def main() -> int:
    """Read the command line and run the seeds."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="number of runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    arguments = parser.parse_args()
    return run_seeds(arguments.first, arguments.seeds, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
