"""Merging parts into Parquet: rows per second and memory, beside DuckDB and plain pyarrow.

Each tool runs in its own process, reads the same parts from a folder, and knows the columns' types.
Ours reads markers and proves the counts, verifies the digest of each part, checks every value and
uploads the file. The others only read and write.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slurm_worker.backends.local import FolderObjects
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.keys import JobId, task_id
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.slices import pack_slice

PATHS = JobPaths("bench", JobId("merge"))
PLAIN = {"n": "int64", "score": "double", "name": "string", "city": "string", "ok": "bool"}
NESTED = {**PLAIN, "visits": "list<struct<at: string, km: double>>"}
DUCKDB = {
    "int64": "BIGINT",
    "double": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "list<struct<at: string, km: double>>": 'STRUCT("at" VARCHAR, km DOUBLE)[]',
}
_CITIES = ["Lagos", "Lima", "Oslo", "Pune", "Quito", "Riga", "São Paulo", "Tallinn"]


@dataclass(frozen=True)
class Case:
    """A number of rows in a number of parts."""

    rows: int
    parts: int
    nested: bool = False
    form: str = "jsonl.gz"

    @property
    def schema(self) -> dict[str, str]:
        return NESTED if self.nested else PLAIN

    @property
    def name(self) -> str:
        kind = "nested, " if self.nested else ""
        return f"{self.rows:,} rows, {kind}{self.parts:,} {self.form} parts"


@dataclass(frozen=True)
class Run:
    """Speed and memory of one tool."""

    rows_per_s: float
    memory_mb: float


def rows_of(case: Case, number: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(number)
    size = case.rows // case.parts
    for n in range(number * size, (number + 1) * size):
        row: dict[str, Any] = {
            "_key": f"item-{n:09}",
            "n": rng.randrange(10**9),
            "score": rng.random(),
            "name": f"user {rng.randrange(10**6)}",
            "city": _CITIES[n % len(_CITIES)],
            "ok": n % 3 > 0,
        }
        if case.nested:
            row["visits"] = [
                {"at": f"2026-11-{d:02}", "km": rng.random() * 9} for d in range(1, n % 4)
            ]
        yield row


def make(case: Case, folder: Path) -> None:
    """A job's parts and markers."""
    store = JobStore(FolderObjects(folder), PATHS)
    columns = None
    if case.form == "parquet":
        from slurm_worker.aggregate.job.parquet_part import ParquetColumns

        columns = ParquetColumns(case.schema)
    for number in range(case.parts):
        task = task_id(0, number)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(case, number)]
        data = (columns.make(iter(lines)) if columns else None) or gzip.compress(
            "".join(lines).encode(), 3, mtime=0
        )
        part = store.upload_part(PATHS.part(task, 1, "x", case.form), data, "rows", len(lines))
        assert part.sha256 == hashlib.sha256(data).hexdigest()
        store.commit(_marker(task, part))


def _marker(task: Any, part: Part) -> Marker:
    return Marker(PATHS.job, task, 1, "bench", part.rows, part.rows, part.rows, parts=(part,))


def ours(case: Case, folder: Path, scratch: Path) -> None:
    from slurm_worker import aggregate

    options = aggregate.AggregateOptions(schema=case.schema)
    expected = [aggregate.RoundSummary(0, case.parts, case.rows)]
    manifest = aggregate.aggregate(
        FolderObjects(folder), PATHS, expected, options, scratch, lambda _: None
    )
    assert manifest.rows == case.rows


def duckdb(case: Case, folder: Path, scratch: Path) -> None:
    import duckdb as engine

    parts = f"{folder}/{PATHS.parts}**/*.{case.form}"
    columns = {"_key": "VARCHAR", **{n: DUCKDB[kind] for n, kind in case.schema.items()}}
    source = f"read_json('{parts}', format='newline_delimited', columns={columns})"
    if case.form == "parquet":
        source = f"read_parquet('{parts}')"
    db = engine.connect()
    db.execute("SET threads = 2")
    target = scratch / "duckdb.parquet"
    db.execute(f"COPY (SELECT * FROM {source}) TO '{target}' (COMPRESSION zstd)")
    assert db.execute(f"SELECT count(*) FROM '{target}'").fetchone() == (case.rows,)


def pyarrow(case: Case, folder: Path, scratch: Path) -> None:
    """One part at a time, written as simply as possible."""
    import io

    import pyarrow.json as pj
    import pyarrow.parquet as pq

    from slurm_worker.aggregate.columns.converter import Converter
    from slurm_worker.aggregate.columns.types import parse_schema

    schema = Converter(parse_schema(case.schema), declared=True).arrow_schema
    parse = pj.ParseOptions(explicit_schema=schema)
    with pq.ParquetWriter(scratch / "plain.parquet", schema, compression="zstd") as writer:
        for path in sorted((folder / PATHS.parts).rglob(f"*.{case.form}")):
            if case.form == "parquet":
                writer.write_table(pq.read_table(path).cast(schema))
                continue
            text = gzip.decompress(path.read_bytes())
            writer.write_table(pj.read_json(io.BytesIO(text), parse_options=parse).cast(schema))


MODULES = {
    "ours": ["slurm_worker.aggregate", "boto3"],
    "duckdb": ["duckdb"],
    "pyarrow": ["pyarrow.json", "pyarrow.parquet", "slurm_worker.aggregate.columns.converter"],
}
TOOLS: dict[str, Callable[[Case, Path, Path], None]] = {
    "ours": ours,
    "duckdb": duckdb,
    "pyarrow": pyarrow,
}


def measure(tool: str, case: Case, folder: Path) -> Run:
    """Run a tool in its own process."""
    shutil.rmtree(folder / PATHS.dataset, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.merging", "--run", tool, str(folder), scratch]
        ended = subprocess.run(
            [*command, json.dumps(asdict(case))], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise SystemExit(f"{tool}: {ended.stderr}")
    return Run(**json.loads(ended.stdout))


def table(run: Callable[[str, Case], Run]) -> list[str]:
    """The figures as lines of Markdown."""
    base = Case(2_000_000, 400)
    lines = [
        "| what | rows/s | DuckDB | ratio | target | memory | plain pyarrow | target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in (base, Case(2_000_000, 2_000, nested=True), Case(2_000_000, 400, form="parquet")):
        ours_, duck, plain = (run(tool, case) for tool in ("ours", "duckdb", "pyarrow"))
        ratio = ours_.rows_per_s / duck.rows_per_s
        within = ours_.memory_mb <= plain.memory_mb + 100
        lines.append(
            f"| {case.name} | {ours_.rows_per_s:,.0f} | {duck.rows_per_s:,.0f} | {ratio:.2f} | "
            f"≥ 1, {_mark(ratio >= 1)} | {ours_.memory_mb:.0f} MB | "
            f"{plain.rows_per_s:,.0f} rows/s, {plain.memory_mb:.0f} MB | "
            f"≤ +100 MB, {_mark(within)} |"
        )
    lines += ["", "| rows | parts | seconds | rows/s | memory |", "| --- | --- | --- | --- | --- |"]
    for times in (1, 10, 100):
        case = Case(200_000 * times, 40 * times)
        found = run("ours", case)
        lines.append(
            f"| {case.rows:,} | {case.parts:,} | {case.rows / found.rows_per_s:.1f} | "
            f"{found.rows_per_s:,.0f} | {found.memory_mb:.0f} MB |"
        )
    scan = run("retry", Case(5_000_000, 10_000))
    tenth = run("retry", Case(500_000, 1_000))
    planning = (
        "Planning a retry of 100,000 failed items among 5,000,000 in 10,000 tasks: "
        f"{scan.rows_per_s:,.0f} items/s (target ≥ 300,000, {_mark(scan.rows_per_s >= 300_000)}), "
        f"{scan.memory_mb:.0f} MB of memory; with a tenth of the items, {tenth.memory_mb:.0f} MB."
    )
    return [*lines, "", planning]


def report(path: Path) -> None:
    """Measure everything and write the report; takes about ten minutes."""
    from benchmarks.__main__ import machine

    def run(tool: str, case: Case) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            (make_failed if tool == "retry" else make)(case, Path(folder))
            # The better of two runs: other work on the machine can only slow a run down.
            runs = [measure(tool, case, Path(folder)) for _ in range(2)]
        best = max(runs, key=lambda each: each.rows_per_s)
        print(
            f"{case.name}: {tool}: {best.rows_per_s:,.0f} rows/s, {best.memory_mb:.0f} MB",
            flush=True,
        )
        return best

    lines = table(run)
    text = "\n".join(lines)
    path.write_text(
        f"""# Merging

`make bench-merging` measured these figures on {machine()}. Each tool runs in
its own process, reads the same parts on a local disk, and knows the columns' types. Ours also
reads the markers, proves the counts, verifies the SHA-256 of each part, checks every value, and
copies the file into place. DuckDB {_version()} and plain pyarrow (one part at a time) do none of
this.

{text}
"""
    )


def make_failed(case: Case, folder: Path) -> None:
    """A job in which every fiftieth item has failed, after a retry of a tenth of these."""
    store = JobStore(FolderObjects(folder), PATHS)
    size = case.rows // case.parts
    retried = []
    for number in range(case.parts):
        keys = [f"item-{n:09}" for n in range(number * size, (number + 1) * size, 50)]
        _commit_errors(store, task_id(0, number), keys, size)
        retried += keys[::10]
    for number in range(0, len(retried), size):
        keys = retried[number : number + size]
        _commit_errors(store, task_id(1, number // size), keys, len(keys))
    slices = [pack_slice([(key, {}) for key in retried])]
    FolderObjects(folder).put(PATHS.segment(1, 0), b"".join(slices))


def _commit_errors(store: JobStore, task: Any, keys: list[str], items: int) -> None:
    record = {"class": "network", "message": "reset", "tries": 3, "at": 1e9, "item": {"id": 1}}
    lines = "".join(json.dumps({"_key": key, **record}) + "\n" for key in keys)
    data = gzip.compress(lines.encode(), 3, mtime=0)
    part = store.upload_part(PATHS.part(task, 1, "x", "errors.jsonl.gz"), data, "errors", len(keys))
    ok = items - len(keys)
    failed = {"network": len(keys)}
    store.commit(Marker(PATHS.job, task, 1, "bench", items, ok, ok, failed, (part,)))


def retry(case: Case, folder: Path, _scratch: Path) -> None:
    from airflow_slurm_provider.coordinator.planning.retry_round import FailedItems, Selector

    store = JobStore(FolderObjects(folder), PATHS)
    items = FailedItems(store, Selector({"network": 3}), [0, 0])
    assert sum(1 for _ in items) == case.rows // 50


def _mark(met: bool) -> str:
    return "met" if met else "**not met**"


def _version() -> str:
    from importlib.metadata import version

    return version("duckdb")


TOOLS["retry"] = retry
MODULES["retry"] = ["airflow_slurm_provider.coordinator.planning.retry_round"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the Markdown file for the results")
    parser.add_argument("--run", nargs=4, metavar=("TOOL", "FOLDER", "SCRATCH", "CASE"))
    arguments = parser.parse_args()
    if arguments.write:
        report(arguments.write)
        return
    tool, folder, scratch, text = arguments.run
    case = Case(**json.loads(text))
    # Only the work is timed, not the start of the tool.
    for name in MODULES[tool]:
        importlib.import_module(name)
    began = time.perf_counter()
    TOOLS[tool](case, Path(folder), Path(scratch))
    took = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    json.dump(asdict(Run(case.rows / took, memory)), sys.stdout)


if __name__ == "__main__":
    main()
