"""A backfill on the real stack, from input to published Parquet, with workers that are killed.

    make bench-5m             (make stack-up first; ITEMS=100000 KILLS=3 for a short one)

The input is Parquet in S3 and Slurm runs over SSH. The handler takes some tens of microseconds, and
there is no rate limit. Each step is a separate process; memory and time are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.five_million.report import Run, markdown
from benchmarks.five_million.watching import Killer, Looker

RESULT = Path(__file__).parents[1] / "FIVE_MILLION.md"
_STEPS = [sys.executable, "-m", "benchmarks.five_million.steps"]
_SHOWN_S = 10.0


class Steps:
    """Starts the steps, and passes on their messages.

    Args:
        looker: watches the processes.
    """

    def __init__(self, looker: Looker) -> None:
        self._looker = looker

    def run(self, name: str, *arguments: object, role: str = "") -> Iterator[dict[str, Any]]:
        """The messages of a step, as they come; ends the run if the step fails."""
        step = subprocess.Popen(
            [*_STEPS, name, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        self._looker.steps[role or name] = step
        assert step.stdout is not None
        try:
            for line in step.stdout:
                yield json.loads(line)
        finally:
            if step.poll() is None and sys.exc_info()[0] is not None:
                step.terminate()
            code = step.wait()
        if code:
            raise SystemExit(f"five_million: the step {name!r} exited with code {code}")

    def last(self, name: str, *arguments: object, role: str = "") -> dict[str, Any]:
        """The last message of a step."""
        *_, found = self.run(name, *arguments, role=role)
        return found


def run(items: int, kills: int, bundle: int, workers: int, say: Callable[[str], None]) -> Run:
    """The whole run."""
    job_id = f"bench-5m-{uuid.uuid4().hex[:8]}"
    moments = {"begun": time.time()}
    with Looker(job_id) as looker:
        steps = Steps(looker)
        say(f"{job_id}: writing {items:,} items")
        moments["input written"] = steps.last("input", items)["at"]
        killer = Killer(job_id, items, kills, random.Random(job_id), say)
        finished = _coordinate(steps, killer, moments, (job_id, items, bundle, workers), say)
        say("merging")
        published = steps.last("aggregate", job_id, role="aggregator")
        moments["published"] = published["at"]
        say("verifying")
        verified = steps.last("verify", job_id, items)
        moments["verified"] = verified["at"]
    return Run(
        items=items,
        tasks=finished["tasks"],
        bundle=bundle,
        workers=workers,
        kills=kills,
        killed=killer.roles,
        lost=finished["lost"],
        moments=moments,
        seen={name: each for name, each in looker.seen.items() if name not in ("input", "verify")},
        requests={
            "coordinator": finished["requests"],
            "workers": finished["workers_requests"],
            "aggregator": published["requests"],
        },
        published=published["rows"],
        verified=verified,
        machine=machine(),
    )


def _coordinate(
    steps: Steps,
    killer: Killer,
    moments: dict[str, float],
    arguments: tuple[str, int, int, int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Submit and wait, and kill workers; return the last message of the coordinator."""
    told: dict[str, Any] = {}
    shown = 0.0
    for told in steps.run("coordinate", *arguments, role="coordinator"):
        if told["event"] == "log":
            say(told["line"])
        elif told["event"] == "submitted":
            moments["planned and submitted"] = told["at"]
        elif told["event"] == "progress":
            killer.step(told["ok"])
            if told["ok"]:
                moments.setdefault("first items done", told["at"])
            if told["at"] - shown > _SHOWN_S:
                shown = told["at"]
                say(f"{told['ok']:,} items done")
    moments["last task done"] = told["at"]
    return told


def main() -> None:
    """Run, print, and write the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--bundle", type=int, default=0, help="items per task; 0: chosen from the number of items"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    bundle = arguments.bundle or max(500, min(10_000, arguments.items // 100))
    found = run(
        arguments.items,
        arguments.kills,
        bundle,
        arguments.workers,
        lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True),
    )
    text = markdown(found)
    print(text)
    if found.problems():
        raise SystemExit(1)
    if arguments.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
