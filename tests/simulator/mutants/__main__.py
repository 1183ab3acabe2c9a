"""``python -m tests.simulator.mutants``: every mutant, and how many the simulator finds."""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain

from tests.simulator.coverage import NEVER_REFUSED, statement_names
from tests.simulator.mutants.conditions import Mutant
from tests.simulator.mutants.hunt import Hunt, hunt_condition, hunt_order
from tests.simulator.mutants.ordering import ORDERS
from tests.simulator.mutants.screening import Difference, screen
from tests.simulator.mutants.survivors import EQUIVALENT, UNREACHED

#: The part of the mutants that must be found, of those that are not equivalent.
_ENOUGH = 0.95
_CHUNK = 10
#: Characters of a broken promise.
_WIDTH = 150


def hunt_all(seeds: range, jobs: int, runs: int) -> int:
    """Screen the seeds, run the mutants, print what became of each; 1 if too few were found.

    Args:
        seeds: in which each mutant is tried.
        jobs: number of processes.
        runs: the most runs of a broken condition where it differs.
    """
    began = time.monotonic()
    met: set[Mutant] = set()
    differences: dict[Mutant, list[Difference]] = defaultdict(list)
    hunts: list[Hunt] = []
    broken: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        for screened in pool.map(screen, seeds, chunksize=_CHUNK):
            broken += [screened.broken] if screened.broken else []
            met |= screened.met
            for difference in screened.found:
                differences[difference.mutant].append(difference)
        screened_s = time.monotonic() - began
        conditions = sorted(met, key=str)
        tried = pool.map(
            partial(hunt_condition, most=runs), conditions, map(differences.get, conditions)
        )
        for hunt in chain(tried, pool.map(partial(hunt_order, seeds=seeds), ORDERS)):
            print(_line(hunt), flush=True)
            hunts.append(hunt)
    print(f"{len(seeds):,} seeds, screened in {screened_s:.0f} s, {time.monotonic() - began:.0f} s")
    return _verdict(hunts, met, broken)


def _line(hunt: Hunt) -> str:
    name, tried = f"{hunt.mutant}", f"differs in {hunt.differs:,}"
    if hunt.kind is not None:
        by = hunt.by[:_WIDTH]
        return f"{name:90} {tried:20} found by seed {hunt.seed} ({hunt.kind.value}): {by}"
    what = f"NOT FOUND {UNREACHED.get(name, '')}"
    if name in EQUIVALENT:
        what = f"equivalent: {EQUIVALENT[name]}"
    return f"{name:90} {tried:20} {what}"


def _verdict(hunts: Iterable[Hunt], met: Iterable[Mutant], broken: Sequence[str]) -> int:
    """Print the figures, and what is wrong with them.

    Args:
        hunts: what became of each mutant.
        met: the mutants that were screened.
        broken: seeds in which the unbroken product breaks a promise.
    """
    names = {str(hunt.mutant): hunt for hunt in hunts}
    wrong = [f"without a mutant: {each}" for each in broken]
    wrong += [
        f"{name} is said to be equivalent, and was found"
        for name in EQUIVALENT
        if name in names and names[name].by
    ]
    asked = {mutant.statement for mutant in met}
    unknown = [name for name in EQUIVALENT if name not in names and name.partition(":")[0] in asked]
    wrong += [f"no mutant is named {name}, said to be equivalent" for name in unknown]
    missing = [name for name in statement_names() if name not in asked | NEVER_REFUSED]
    wrong += [f"{name} was never refused: none of its mutants was tried" for name in missing]
    others = [hunt for name, hunt in names.items() if name not in EQUIVALENT]
    found = sum(bool(hunt.by) for hunt in others)
    part = found / max(1, len(others) + len(missing))
    print(
        f"{len(names)} mutants: {found} found, {len(names) - len(others)} equivalent, "
        f"{len(others) - found} not found; {100 * part:.1f} % of those that are not equivalent"
    )
    print("\n".join(wrong))
    return 1 if wrong or part < _ENOUGH else 0


def main() -> int:
    """Read the command line and run the mutants."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="seeds in which each is tried")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--runs", type=int, default=100, help="most runs of a broken condition")
    arguments = parser.parse_args()
    first: int = arguments.first
    return hunt_all(range(first, first + arguments.seeds), arguments.jobs, arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
