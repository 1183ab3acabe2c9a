"""The same no-op items by dask-jobqueue on Slurm; imports nothing of ours.

Run by `benchmarks.peers`. Each bundle makes its items, calls the function for each one, and writes
a JSON line per item to a file on a local disk. So only a range of numbers passes through the
scheduler.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from dask_jobqueue import SLURMCluster
from distributed import Client, wait


def noop(item: dict[str, Any], context: object) -> dict[str, Any]:
    return item


def bundle(first: int, count: int, folder: str) -> int:
    with (Path(folder) / f"{first}.jsonl").open("w") as out:
        for n in range(first, first + count):
            out.write(json.dumps({"_key": f"k{n}", **noop({"n": n}, None)}) + "\n")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--bundle", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    began = time.perf_counter()
    rates = []
    with (
        tempfile.TemporaryDirectory() as folder,
        SLURMCluster(
            cores=1,
            processes=1,
            memory="700MB",
            interface="lo",
            local_directory=folder,
            log_directory=folder,
            job_extra_directives=["--chdir=/tmp"],
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(arguments.processes)
        client.wait_for_workers(arguments.processes, timeout=120)
        ready = time.perf_counter() - began
        for _ in range(arguments.times):
            started = time.perf_counter()
            futures = [
                client.submit(bundle, first, arguments.bundle, folder, pure=False)
                for first in range(0, arguments.items, arguments.bundle)
            ]
            wait(futures)
            done = sum(client.gather(futures))
            rates.append(done / (time.perf_counter() - started))
    print(json.dumps({"ready_s": ready, "items_per_s": rates}))


if __name__ == "__main__":
    main()
