"""``python -m tests.simulator``: many seeds, in several processes."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.simulator.backfill import Backfill
from tests.simulator.checks.rows import Violation
from tests.simulator.coverage import Coverage
from tests.simulator.engine.reduction import Reduction
from tests.simulator.engine.shrink import Run, failure_of, shrink, time_line
from tests.simulator.limits import LimitSimulation
from tests.simulator.run import Simulation

_CHUNK = 10
#: With so many seeds, a statement that is seldom applied or refused is an error of the simulator.
_ENOUGH = 2_000


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What happened in all runs of one seed."""

    requests: Counter[str]
    faults: Counter[str]
    lost_leases: int
    coverage: Coverage


def run_seeds(first: int, count: int, jobs: int) -> int:
    """Run `count` seeds from `first` on; print what happened; 1 if a promise was broken."""
    began = time.monotonic()
    seeds = range(first, first + count)
    requests: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    coverage = Coverage()
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
            coverage.add(result.coverage)
            lost += result.lost_leases
            done += 1
            if sys.stderr.isatty() and done % 100 == 0:
                print(f"\r{done:,} seeds", end="", file=sys.stderr)
    print(coverage.table())
    print(
        f"{len(seeds):,} seeds, {len(broken)} violations, {requests.total():,} requests, "
        f"{lost:,} leases lost, {time.monotonic() - began:.0f} s; "
        f"faults: {', '.join(f'{n:,} {name}' for name, n in sorted(faults.items()))}"
    )
    shortfalls = coverage.shortfalls(count)
    print("\n".join(shortfalls))
    if broken:
        explain(int(broken[0].split()[1].rstrip(":")))
    return 1 if broken or (shortfalls and count >= _ENOUGH) else 0


def explain(seed: int) -> None:
    """Print the smallest run that fails as this seed does, and what happens in it."""
    logging.disable(logging.WARNING)
    for kind in (Simulation, Backfill, LimitSimulation):

        def make(reduced: Reduction, kind: Any = kind) -> Run:
            run: Run = kind(seed, reduced=reduced)
            return run

        if failure := failure_of(make):
            smallest = shrink(make, failure)
            print("\n".join(time_line(make, smallest)))
            print(
                f"{kind.__name__} {seed}: {smallest.message}\n"
                f"{len(smallest.events)} of {len(failure.events)} events are enough: "
                f"{', '.join(smallest.events)}; {smallest.reduced.sizes()}"
            )


def run_seed(seed: int) -> SeedReport | str:
    """The result of a seed; a line that begins with the seed if a promise was broken.

    A seed has three runs: the workers of a job under hard faults; a rate limit, whose days are too
    long for a job; and a whole backfill, with its user's commands.
    """
    # The commands warn of a Slurm that does not answer.
    logging.disable(logging.WARNING)
    try:
        runs = [Simulation(seed).run(), Backfill(seed).run()]
        limit = LimitSimulation(seed).run()
    except Violation as violation:
        return f"seed {seed}: {violation}"
    report = SeedReport(limit.requests, limit.faults, 0, limit.coverage)
    for run in runs:
        report.requests.update(run.requests)
        report.faults.update(run.faults)
        report.coverage.add(run.coverage)
    return SeedReport(
        report.requests, report.faults, sum(run.lost_leases for run in runs), report.coverage
    )


def main() -> int:
    """Read the command line and run the seeds."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="number of runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--explain", type=int, help="reduce this seed, and print what happens")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    arguments = parser.parse_args()
    if arguments.explain is not None:
        explain(arguments.explain)
        return 0
    return run_seeds(arguments.first, arguments.seeds, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
