"""``python -m tests.simulator.old_faults``: the first seed that finds each fault, from zero."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulator.old_faults import NOT_REACHED, OLD_FAULTS
from tests.simulator.old_faults.fault import MOST_SEEDS

_WIDTH = 66


def search(number: int) -> tuple[int, str]:
    """The first seed that finds a fault, and what it says; -1 where none does.

    A seed that finds something else than the fault's promise counts: the fault was noticed.
    """
    logging.disable(logging.WARNING)
    fault = OLD_FAULTS[number]
    for seed in range(MOST_SEEDS):
        if found := fault.violation(seed):
            return seed, found
    return -1, ""


def main() -> int:
    """Search for each fault, and print the table; 1 if one was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.old_faults")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    arguments = parser.parse_args()
    began, missed = time.monotonic(), 0
    print(f"{'fault':{_WIDTH}} {'seed':>5}  promise that it breaks")
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for fault, (seed, found) in zip(
            OLD_FAULTS, pool.map(search, range(len(OLD_FAULTS))), strict=True
        ):
            missed += seed < 0
            as_named = re.search(fault.promise, found)
            what = found[:90] if as_named or seed < 0 else f"(another promise) {found[:90]}"
            print(f"{fault.name:{_WIDTH}} {seed if seed >= 0 else 'none':>5}  {what}", flush=True)
    print("\nnot reached by the simulator:")
    for part, reason in NOT_REACHED.items():
        print(f"  {part}: {reason}")
    print(f"\n{len(OLD_FAULTS)} faults, {missed} not found, {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
