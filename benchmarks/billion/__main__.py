"""A job of up to a billion items and 10,000 workers, in virtual time.

    make simulate-scale       (writes benchmarks/billion/results.json; 45 minutes on two cores)

See `fleet.py` for what is simulated and `aws.py` for the limits. Nothing is scaled up: of the
largest job each of its million tasks is planned, leased, renewed and committed by the code of the
nodes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from airflow_slurm_provider.coordinator.planning.bundle_size import bundle_for
from benchmarks.billion.fleet import Preemption, Scenario
from benchmarks.billion.report import Outcome, load_table, simulate
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.keys import shard_count

RESULTS = Path(__file__).with_name("results.json")
ITEM_S, _QUICK_S = 0.06, 0.002
SIZES = ((10**6, 100), (10**7, 1_000), (10**8, 10_000), (10**9, 10_000))
#: Where one setting at a time is changed.
ITEMS, WORKERS = 10**7, 1_000


def defaults(items: int, workers: int) -> Scenario:
    """A job with the settings that the coordinator chooses."""
    return Scenario(
        items, bundle_for(items, workers), workers, ITEM_S, shard_count(workers), LeaseConfig()
    )


def scenarios(scale: int = 1) -> Iterator[tuple[str, str, Scenario]]:
    """(group, name, scenario) of every run; `scale` divides items and workers, for a try."""
    for items, workers in SIZES:
        size = defaults(items // scale, max(2, workers // scale))
        yield "sizes", f"10^{len(str(items)) - 1} items", size
    base = defaults(ITEMS // scale, max(2, WORKERS // scale))
    yield "settings", "none: the defaults", base
    for shards in (8, 16, 256):
        name = f"{shards} shards, {base.workers / shards:,.0f} workers each"
        yield "settings", name, replace(base, shards=shards)
    for tasks_each in (4, 16, 128):
        bundle = max(1, base.items // base.workers // tasks_each)
        name = f"bundle {bundle:,}, {tasks_each} tasks for each worker"
        yield "settings", name, replace(base, bundle=bundle)
    for heartbeat_s, ttl_s in ((10.0, 40.0), (60.0, 240.0)):
        lease = LeaseConfig(ttl_s=ttl_s, heartbeat_s=heartbeat_s)
        name = f"heartbeat {heartbeat_s:.0f} s, lease {ttl_s:.0f} s"
        yield "settings", name, replace(base, lease=lease)
    yield "settings", f"tasks of {base.bundle * _QUICK_S:.1f} s", replace(base, item_s=_QUICK_S)
    limited = replace(base, items=base.items // 20, rate=2_000 / scale)
    bundle = bundle_for(limited.items, limited.workers)
    yield "settings", f"a rate limit of {limited.rate:,.0f}/s", replace(limited, bundle=bundle)
    large = replace(defaults(10**8 // scale, max(2, 10_000 // scale)), bundle=1_000)
    yield "preemption", "are not preempted", large
    yield "preemption", "leave in a grace period", replace(large, preemption=Preemption())
    yield "preemption", "are killed", replace(large, preemption=Preemption(notice=False))
    quick = LeaseConfig(ttl_s=40.0, heartbeat_s=10.0)
    yield (
        "preemption",
        "are killed; heartbeat 10 s, lease 40 s",
        replace(large, preemption=Preemption(notice=False), lease=quick),
    )


def run(
    groups: set[str], scale: int, say: Callable[[str], None], processes: int = 1
) -> dict[str, list[Outcome]]:
    """The runs of these groups, so many at a time, those with most tasks first."""
    chosen = [each for each in scenarios(scale) if each[0] in groups]
    # Millions of rows are in no cycle; looking for some is an eighth of the time.
    with ProcessPoolExecutor(processes, initializer=gc.disable) as pool:
        pending = {
            (group, name): pool.submit(simulate, name, scenario)
            for group, name, scenario in sorted(chosen, key=lambda each: -each[2].tasks)
        }
        found: dict[str, list[Outcome]] = {}
        for group, name, _ in chosen:
            found.setdefault(group, []).append(last := pending[group, name].result())
            say(f"{group}: {load_table([last])[-1]} {last.efficiency:.1%}, {last.cpu_s:.0f} s")
    return found


def read_results(path: Path = RESULTS) -> dict[str, list[Outcome]]:
    """What `main` wrote."""
    raw = json.loads(path.read_text())
    return {group: [Outcome(**each) for each in outcomes] for group, outcomes in raw.items()}


def main() -> None:
    """Run, print, and write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", nargs="*", default=["sizes", "settings", "preemption"])
    parser.add_argument("--scale", type=int, default=1, help="divide the sizes, for a try")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    found = run(
        set(arguments.groups),
        arguments.scale,
        lambda line: print(line, flush=True),
        arguments.processes,
    )
    if arguments.write:
        standing = read_results() if RESULTS.exists() else {}
        text = {
            group: [asdict(each) for each in outcomes]
            for group, outcomes in {**standing, **found}.items()
        }
        RESULTS.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
