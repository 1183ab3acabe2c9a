"""``python -m tests.simulator.exhaustive``: every schedule of each small world."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.exhaustive.search import Bounds
from tests.simulator.exhaustive.trial import try_world
from tests.simulator.exhaustive.worlds import WORLDS

_MOST, _TURNS = Bounds().most, Bounds().turns


def main() -> int:
    """Read the command line and try the worlds; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.exhaustive")
    parser.add_argument("--world", action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--most", type=_pairs, default=_MOST, help="preemptions and faults, such as 3,0:1,1"
    )
    parser.add_argument("--turns", type=int, default=_TURNS, help="the most turns of a world")
    arguments = parser.parse_args()
    print(
        f"{'world':<28} {'all with at most (preemptions,faults)':<38} {'schedules':>12} "
        f"{'states':>9} {'turns':>9} {'ends':>6} {'CPU s':>6}"
    )
    failed = 0
    for world in WORLDS:
        if arguments.world and world.name not in arguments.world:
            continue
        began = time.process_time()
        trial = try_world(world, bounds=Bounds(arguments.most, arguments.turns))
        found, seconds = trial.found, time.process_time() - began
        tried = " ".join(f"{pair[0]},{pair[1]}" for pair in found.complete)
        print(
            f"{world.name:<28} {tried:<38} {found.schedules:>12,} {found.states:>9,} "
            f"{found.turns:>9,} {found.ends:>6,} {seconds:>6.0f}",
            flush=True,
        )
        if found.broken:
            failed += 1
            print("\n".join(trial.story), flush=True)
    return 1 if failed else 0


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(
        (int(preemptions), int(faults))
        for preemptions, faults in (pair.split(",") for pair in text.split(":"))
    )


if __name__ == "__main__":
    sys.exit(main())
