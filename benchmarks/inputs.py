"""Reading an input: many files beside one file, and the listing of very many objects.

`python -m benchmarks.inputs [--rows N] [--objects N] [--write FILE]`. Each measurement is a process
of its own. Reading is what `submit` does before it writes task rows: the input is listed, its rows
become segments in a folder, and its keys are checked. The runs alternate, and each kind's fastest
one counts: other work on the machine can only slow a run down.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.backends.local import FolderObjects
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectInfo
from slurm_worker.testing import MemoryObjects

FILES = 1_000
BUNDLE = 1_000
_GROUP = 100_000
_RUNS = 3


class ManyObjects(MemoryObjects):
    """A bucket with very many objects, which it makes up while it is listed."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        for number in range(self.count):
            key = f"raw/year={number // 100_000:04}/part-{number:09}.parquet"
            if key.startswith(prefix):
                yield ObjectInfo(key, 1 << 20, 1.7e9, f'"{number:032x}"')


def make(folder: Path, rows: int, files: int) -> None:
    """Parquet files that hold so many rows together."""
    folder.mkdir()
    size = rows // files
    for number in range(files):
        first = number * size
        table = pa.table(
            {
                "id": [f"item-{n:09}" for n in range(first, first + size)],
                "n": list(range(first, first + size)),
                "score": [n / 7 for n in range(size)],
                "city": [("Lima", "Oslo", "Pune")[n % 3] for n in range(size)],
            }
        )
        pq.write_table(table, folder / f"{number:05}.parquet", row_group_size=_GROUP)


def read(folder: Path) -> int:
    """Plan the files of a folder as far as a draft; return how many items they have."""
    from airflow_slurm_provider.coordinator.inputs.reader import Input
    from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck
    from airflow_slurm_provider.coordinator.planning.planner import new_draft
    from airflow_slurm_provider.coordinator.spec.input_section import InputSection

    found = Input(InputSection(path=str(folder), key="id"), lambda _: MemoryObjects())
    with tempfile.TemporaryDirectory() as scratch, KeyCheck() as keys:
        store = JobStore(FolderObjects(Path(scratch)), JobPaths("bench", JobId("input")))
        with new_draft(store, 0, keys.watch(found.items()), BUNDLE, lambda _: None) as draft:
            keys.check(found.places)
            return draft.totals.items


def listing(count: int) -> int:
    """List so many objects, and describe them as the plan does."""
    from airflow_slurm_provider.coordinator.inputs.files import InputFiles

    found = InputFiles(("s3://lab/raw",), lambda _: ManyObjects(count))
    return sum(1 for _ in found.described())


def measure(kind: str, argument: str) -> tuple[float, float]:
    """Seconds, and the most memory in MB, of one run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inputs", "--run", kind, argument]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found["seconds"], found["memory"]


def run(kind: str, argument: str) -> dict[str, Any]:
    import airflow_slurm_provider.coordinator.inputs.parquet
    import airflow_slurm_provider.coordinator.planning.planner  # noqa: F401  # its start is not timed

    began = time.perf_counter()
    count = read(Path(argument)) if kind == "read" else listing(int(argument))
    seconds = time.perf_counter() - began
    return {"count": count, "seconds": seconds, "memory": most_memory()}


def most_memory() -> float:
    """The most memory in MB that this process has had; rusage also counts what forked it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def compare(rows: int) -> list[str]:
    """Lines of a table: one file, and `FILES` files of the same rows."""
    best: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for files in (1, FILES):
            make(Path(scratch) / str(files), rows, files)
        for _ in range(_RUNS):
            for files in (1, FILES):
                found = measure("read", str(Path(scratch) / str(files)))
                best[files] = min(found, best.get(files, found))
    ratio = best[1][0] / best[FILES][0]
    rate, memory = rows / best[FILES][0], best[FILES][1]
    target = f"≥ 0.8, {'met' if ratio >= 0.8 else '**not met**'}"
    return [
        "| rows | files | rows/s | of one file | target | memory |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {rows:,} | 1 | {rows / best[1][0]:,.0f} | | | {best[1][1]:.0f} MB |",
        f"| {rows:,} | {FILES:,} | {rate:,.0f} | {ratio:.2f} | {target} | {memory:.0f} MB |",
    ]


def list_many(objects: int) -> list[str]:
    """Lines of a table: the listing of many objects, and of a tenth of them."""
    lines = ["| objects listed | seconds | memory |", "| --- | --- | --- |"]
    for count in (objects // 10, objects):
        seconds, memory = measure("list", str(count))
        lines.append(f"| {count:,} | {seconds:.1f} | {memory:.0f} MB |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--write", type=Path, help="the Markdown file for the results")
    parser.add_argument("--run", nargs=2, metavar=("KIND", "ARGUMENT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run:
        json.dump(run(*given.run), sys.stdout)
        return
    from benchmarks.__main__ import machine

    lines = [*compare(given.rows), "", *list_many(given.objects)]
    print("\n".join(lines))
    if given.write:
        given.write.write_text(
            "# Inputs\n\n"
            f"`make bench-inputs` measured these figures on {machine()}. The files are\n"
            "Parquet, on a local disk. Rows are read, checked for equal keys, and written as\n"
            "segments.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
