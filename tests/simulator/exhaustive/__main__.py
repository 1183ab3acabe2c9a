"""``python -m tests.simulator.exhaustive``: every schedule of each small world."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.exhaustive.trial import try_world
from tests.simulator.exhaustive.worlds import WORLDS


def main() -> int:
    """Read the command line and try the worlds; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.exhaustive")
    parser.add_argument("--world", action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--most", help="preemptions and faults in place of the worlds' own: 3,0 or 3,0:1,1"
    )
    arguments = parser.parse_args()
    most = arguments.most and tuple(
        (int(pair.split(",")[0]), int(pair.split(",")[1])) for pair in arguments.most.split(":")
    )
    print(
        f"{'world':<28} {'preemptions, faults':<20} {'schedules':>20} {'states':>10} "
        f"{'steps':>10} {'ends':>7} {'CPU s':>7}"
    )
    failed = 0
    for world in WORLDS:
        if arguments.world and world.name not in arguments.world:
            continue
        began = time.process_time()
        trial = try_world(world, most=most)
        found, seconds = trial.found, time.process_time() - began
        tried = " ".join(f"{pair[0]},{pair[1]}" for pair in most or world.most)
        print(
            f"{world.name:<28} {tried:<20} {found.schedules:>20,} {found.states:>10,} "
            f"{found.turns:>10,} {found.ends:>7,} {seconds:>7.0f}",
            flush=True,
        )
        if found.broken:
            failed += 1
            print("\n".join(trial.story), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
