"""The cost of the worker per item, how well it hides latency, and its memory.

python -m benchmarks.engine [--short] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.world import Late, items, plan, worker
from slurm_worker.protocol.job_config import WorkerConfig
from slurm_worker.testing import MemoryObjects, MemoryRows

BUNDLE = 500


@dataclass(frozen=True)
class Figure:
    """One measured ratio; `at_least` says which side of the target is good."""

    name: str
    measured: str
    baseline: str
    ratio: float
    target: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def noop(item: dict[str, Any], context: object) -> dict[str, Any]:
    return item


def run_worker(
    handle: Callable[..., Any],
    count: int,
    bundle: int = BUNDLE,
    late_s: float = 0.0,
    options: WorkerConfig | None = None,
) -> float:
    """Items a second from the first lease to the last commit."""
    rows, objects = MemoryRows(), MemoryObjects()
    plan(rows, objects, count, bundle)
    with tempfile.TemporaryDirectory() as scratch:
        made = worker(
            Late(rows, late_s) if late_s else rows,
            Late(objects, late_s) if late_s else objects,
            handle,
            Path(scratch),
            options,
        )
        began = time.perf_counter()
        assert made.run() == 0
        took = time.perf_counter() - began
    assert made.tasks_done == -(-count // bundle)
    return count / took


def plain_loop(count: int) -> float:
    """Items a second of the simplest program: call, encode, write a line."""
    given = items(0, count)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with (Path(folder) / "out.jsonl").open("w") as out:
            for key, item in given:
                out.write(json.dumps({"_key": key, **noop(item, None)}) + "\n")
        return count / (time.perf_counter() - began)


def engine(count: int, times: int) -> Figure:
    """The median of the ratios of pairs: the machine's speed drifts within a run."""
    pairs = [(run_worker(noop, count), plain_loop(count)) for _ in range(times)]
    ours, loop = sorted(pairs, key=lambda pair: pair[0] / pair[1])[times // 2]
    return Figure(
        "engine: no-op handler, bundles of 500",
        f"{ours:,.0f} items/s",
        f"{loop:,.0f} items/s, plain loop",
        ours / loop,
        0.4,
    )


def latency(count: int) -> Figure:
    def handle(item: dict[str, Any], context: object) -> dict[str, Any]:
        time.sleep(0.002)
        return item

    prompt = run_worker(handle, count)
    late = run_worker(handle, count, late_s=0.02)
    return Figure(
        "latency hiding: 2 ms handler, 20 ms per AWS call",
        f"{late:,.0f} items/s",
        f"{prompt:,.0f} items/s without latency",
        late / prompt,
        0.95,
    )


def coroutines(count: int) -> Figure:
    async def handle(item: dict[str, Any], context: object) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return item

    rate = run_worker(handle, count, bundle=4000, options=WorkerConfig(concurrency=200))
    return Figure(
        "coroutines: 200 calls of 50 ms at a time",
        f"{rate:,.0f} items/s",
        "4,000 items/s, ideal",
        rate / 4000,
        0.9,
    )


def memory(count: int) -> list[Figure]:
    """Peak memory of a process that runs a whole job, by the size of the job."""

    def peak(many: int) -> float:
        program = f"from benchmarks.engine import peak_mb; print(peak_mb({many}))"
        return float(subprocess.check_output([sys.executable, "-c", program], text=True))

    small, large = peak(count), peak(10 * count)
    return [
        Figure(
            "memory: peak of a worker process",
            f"{large:.0f} MB",
            "120 MB",
            large / 120,
            1.0,
            at_least=False,
        ),
        Figure(
            f"memory: {10 * count:,} items against {count:,}",
            f"{large:.1f} MB",
            f"{small:.1f} MB",
            large / small,
            1.1,
            at_least=False,
        ),
    ]


class DiskObjects(MemoryObjects):
    """Objects as files, so that stored objects do not count as memory of the worker."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "%")

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        path = self._path(key)
        if not path.exists():
            return None
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def put(self, key: str, body: bytes) -> None:
        self._path(key).write_bytes(body)

    def put_new(self, key: str, body: bytes) -> bool:
        if self._path(key).exists():
            return False
        self.put(key, body)
        return True


def peak_mb(count: int) -> float:
    """Run a job with its objects on disk, SDK loaded as on a node; peak resident MB."""
    from slurm_worker.backends.dynamodb import dynamo_client
    from slurm_worker.backends.s3 import s3_client

    clients: list[object] = []
    import boto3

    session = boto3.Session("test", "testtest", region_name="us-east-1")
    clients += [
        dynamo_client(session, "http://127.0.0.1:9"),
        s3_client(session, "http://127.0.0.1:9"),
    ]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        rows, objects = MemoryRows(), DiskObjects(Path(folder))
        plan(rows, objects, count, BUNDLE)
        assert worker(rows, objects, noop, Path(scratch)).run() == 0
    # Not getrusage: its maximum begins with the parent's memory.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024


def figures(*, short: bool) -> list[Figure]:
    scale = 10 if short else 1
    return [
        engine(200_000 // scale, 1 if short else 15),
        latency(10_000 // scale),
        coroutines(40_000 // scale),
        *memory(20_000 // scale),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = figures(short=arguments.short)
    if arguments.json:
        print(json.dumps([{**asdict(each), "met": each.met} for each in found]))
        return
    for each in found:
        sign = "≥" if each.at_least else "≤"
        print(
            f"{each.name:52} {each.measured:>18}   {each.baseline:32} "
            f"ratio {each.ratio:.2f} (target {sign} {each.target:g})"
        )


if __name__ == "__main__":
    main()
