"""How the coordinator's work grows with a job: time, AWS requests and memory of each verb.

    make bench-growth         (writes benchmarks/growth.csv and docs/images/growth.png)

The coordinator's own code over services in a folder (rows in SQLite, objects as files, a cluster
that takes every array), each verb in a fresh process. The job: `BUNDLE` items a task, one item in
fifty has failed, every task is done; for the status half of them are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.costs import dry_run
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status
from benchmarks.folder_services import CountedObjects, SqliteRows
from benchmarks.world import WallClock
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.keys import JobId, shard_of, task_id
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.task_table import TaskTable
from tests.unit.coordinator.fakes import SITE, FakeSlurm

BUNDLE = 500
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
SHORT = (1_000, 2_000)
FAILED_EVERY = 50
JOB = JobId("growth")
CSV = Path(__file__).with_suffix(".csv")
PLOT = Path(__file__).parents[1] / "docs" / "images" / "growth.png"
#: At most so much a factor of ten in items may cost in time or requests: linear, and the noise.
LINEAR = 1.1
#: What takes less than this tells nothing by how it grows.
_QUICK_S = 0.25
#: Megabytes that a factor of ten may cost in memory.
FLAT_MB = 24.0
_COLUMNS = (
    "seconds",
    "requests",
    "memory",
    "time grows as",
    "requests grow as",
    "more memory for ten times the items",
)


@dataclass(frozen=True)
class Cost:
    """What one verb took at one size.

    Args:
        seconds: wall time.
        requests: to the table and the bucket, a page or a thousand keys each.
        peak_mb: the process's peak resident memory; `start_mb` of it before the verb.
    """

    verb: str
    items: int
    tasks: int
    seconds: float
    requests: int
    peak_mb: float
    start_mb: float


def services(folder: Path) -> Services:
    """A site whose table and bucket are files."""
    objects = CountedObjects(folder / "bucket")
    return Services(
        site=parse_site(SITE, "growth"),
        rows=SqliteRows(folder / "rows.sqlite"),
        objects=objects,
        slurm=FakeSlurm(),  # type: ignore[arg-type]  # it has the verbs
        clock=WallClock(),
        bucket=lambda _: objects,
        sts=lambda: None,
    )


def config(folder: Path) -> Config:
    """The job, with its input in the folder."""
    return load_config(
        {
            "job_id": JOB,
            "input": {"path": str(folder / "items.parquet"), "key": "id"},
            "handler": {"entry": "handler:handle", "code": str(folder / "code")},
            "bundle": BUNDLE,
            "workers": 16,
            "aggregate": {"schema": {"n": "int64", "square": "int64"}},
        }
    )


def make_input(folder: Path, items: int) -> None:
    """A Parquet file of so many items, and a handler."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "code").mkdir(parents=True)
    (folder / "code" / "handler.py").write_text("def handle(item, context):\n    return item\n")
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())])
    with pq.ParquetWriter(folder / "items.parquet", schema) as writer:
        for first in range(0, items, 100_000):
            numbers = range(first, min(items, first + 100_000))
            ids = [f"item-{n:010}" for n in numbers]
            writer.write_table(pa.table([ids, list(numbers)], schema=schema))


def finish(folder: Path, items: int, numbers: Iterable[int]) -> None:
    """Have these tasks done, as workers would leave them."""
    edges = services(folder)
    store = JobStore(edges.objects, JobPaths(edges.site.prefix, JOB))
    standing = edges.jobs(JOB).get()
    table = TaskTable(edges.rows, JOB, standing.shards, LeaseConfig(), edges.clock)
    for sequence in numbers:
        span = range(sequence * BUNDLE, min(items, (sequence + 1) * BUNDLE))
        row = table.find(task_id(0, sequence))
        assert row is not None, "it was planned"
        table.complete(_commit(store, sequence, span, row.where.sha256))
    edges.rows.close()  # type: ignore[attr-defined]  # it is SQLite's


def _commit(store: JobStore, sequence: int, span: range, digest: str) -> Marker:
    task = task_id(0, sequence)
    failed = span[::FAILED_EVERY]
    ok = [n for n in span if n % FAILED_EVERY]
    rows = "".join(f'{{"_key":"item-{n:010}","n":{n},"square":{n * n}}}\n' for n in ok)
    errors = "".join(
        f'{{"_key":"item-{n:010}","class":"network","message":"reset","tries":3,"at":1.7e9,'
        f'"item":{{"id":"item-{n:010}","n":{n}}}}}\n'
        for n in failed
    )
    parts = tuple(
        store.upload_part(
            store.paths.part(task, 1, "0" * 12, suffix),
            gzip.compress(text.encode(), 1, mtime=0),
            kind,
            count,
        )
        for kind, suffix, text, count in (
            ("rows", "jsonl.gz", rows, len(ok)),
            ("errors", "errors.jsonl.gz", errors, len(failed)),
        )
    )
    now = time.time()
    marker = Marker(
        job=JOB,
        task=task,
        attempt=1,
        worker=f"100_{shard_of(sequence, 16)}-r0-aaaa",
        items=len(span),
        ok=len(ok),
        rows=len(ok),
        failed={"network": len(failed)},
        parts=parts,
        input_sha256=digest,
        slurm={"node": "node1"},
        started=now - 60,
        finished=now,
    )
    return store.commit(marker)


# --- the verbs ------------------------------------------------------------------


def _plan_aggregation(edges: Services, _: Config) -> None:
    from slurm_worker import aggregate
    from slurm_worker.aggregate.job.plan import Plan

    table = edges.tasks(edges.jobs(JOB).get())
    expected = [
        aggregate.RoundSummary(each.number, each.tasks, each.items, each.draft, table)
        for each in edges.jobs(JOB).rounds()
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        Plan(edges.store(JOB), expected, Path(scratch)) as plan,
    ):
        assert plan.tasks == expected[0].tasks


def _submit(edges: Services, spec: Config) -> None:
    api.submit(edges, spec, log=_silent)


def _silent(_line: str) -> None:
    pass


VERBS: dict[str, Callable[[Services, Config], object]] = {
    "plan": dry_run.estimate,
    "submit": _submit,
    "status, cold": lambda edges, _: read_progress(edges, JOB),
    "status, warm": lambda edges, _: read_progress(edges, JOB),
    "poll": lambda edges, _: read_status(edges, JOB),
    "retry planning": lambda edges, _: api.plan_retry(edges, JOB),
    "aggregation planning": _plan_aggregation,
    "aggregation": lambda edges, _: api.aggregate(edges, JOB, log=_silent),
}


def measure(verb: str, folder: Path, items: int) -> Cost:
    """Run a verb in this process."""
    edges, spec = services(folder), config(folder)
    if verb == "aggregation" or verb == "aggregation planning":
        import slurm_worker.aggregate  # noqa: F401  the start of a process is not the verb
    if verb == "poll":
        read_status(edges, JOB)  # a waiting process's second query is measured
    rows, objects = edges.rows, edges.objects
    assert isinstance(rows, SqliteRows)
    assert isinstance(objects, CountedObjects)
    rows.requests = objects.requests = 0
    start_mb, began = _memory_mb("VmRSS"), time.perf_counter()
    VERBS[verb](edges, spec)
    seconds = time.perf_counter() - began
    requests = rows.requests + objects.requests
    tasks = math.ceil(items / BUNDLE)
    peak_mb = _memory_mb("VmHWM")
    rows.close()
    return Cost(verb, items, tasks, round(seconds, 4), requests, peak_mb, start_mb)


def _memory_mb(field: str) -> float:
    # VmHWM is of this very program; `ru_maxrss` also remembers the one that started it.
    text = Path("/proc/self/status").read_text()
    (line,) = (each for each in text.splitlines() if each.startswith(f"{field}:"))
    return round(int(line.split()[1]) / 1024, 1)


def in_fresh_process(verb: str, folder: Path, items: int) -> Cost:
    """`measure`, elsewhere."""
    command = [sys.executable, "-m", "benchmarks.growth", "--measure", verb, str(folder)]
    ended = subprocess.run(
        [*command, str(items)], capture_output=True, text=True, check=False, cwd=PLOT.parents[2]
    )
    if ended.returncode:
        raise SystemExit(f"growth: {verb} at {items:,} items: {ended.stderr}")
    return Cost(**json.loads(ended.stdout))


def grow(
    items: int,
    run: Callable[[str, Path, int], Cost] = in_fresh_process,
    say: Callable[[str], None] = _silent,
) -> list[Cost]:
    """Every verb at one size."""
    found = []

    def step(verb: str) -> None:
        found.append(run(verb, folder, items))
        each = found[-1]
        say(
            f"{items:>11,} items: {verb}: {each.seconds:.2f} s, {each.requests:,} requests, "
            f"{each.peak_mb:.0f} MB"
        )

    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        make_input(folder, items)
        for verb in ("plan", "submit"):
            step(verb)
        tasks = math.ceil(items / BUNDLE)
        finish(folder, items, range(tasks // 2))
        for verb in ("status, cold", "status, warm", "poll"):
            step(verb)
        finish(folder, items, range(tasks // 2, tasks))
        for verb in ("retry planning", "aggregation planning", "aggregation"):
            step(verb)
    return found


# --- the report -----------------------------------------------------------------


def slopes(costs: list[Cost]) -> dict[str, tuple[float, float, float]]:
    """By verb, over the two largest sizes: exponents of time and requests, and MB per decade."""
    of_verb: defaultdict[str, list[Cost]] = defaultdict(list)
    for each in sorted(costs, key=lambda each: each.items):
        of_verb[each.verb].append(each)
    found = {}
    for verb, (*_, before, last) in of_verb.items():
        decades = math.log10(last.items / before.items)
        time_, requests = (
            math.log10(max(b, 1e-9) / max(a, 1e-9)) / decades
            for a, b in (
                (before.seconds, last.seconds),
                (before.requests, last.requests),
            )
        )
        found[verb] = (time_, requests, (last.peak_mb - before.peak_mb) / decades)
    return found


def table(costs: list[Cost]) -> list[str]:
    """Markdown: each verb's figures at the largest size, and how they grow up to there."""
    largest = max(each.items for each in costs)
    lines = [
        f"| {largest:,} items | {' | '.join(_COLUMNS)} |",
        "|" + " --- |" * (1 + len(_COLUMNS)),
    ]
    growth = slopes(costs)
    for each in costs:
        if each.items == largest:
            time_, requests, memory = growth[each.verb]
            lines.append(
                f"| {each.verb} | {each.seconds:,.1f} | {each.requests:,} | {each.peak_mb:.0f} MB "
                f"| n^{time_:.2f} | n^{requests:.2f} | {memory:+.0f} MB |"
            )
    return lines


def too_steep(costs: list[Cost]) -> list[str]:
    """What is neither linear nor flat, in words."""
    found = []
    slowest = {verb: max(e.seconds for e in costs if e.verb == verb) for verb in slopes(costs)}
    for verb, (time_, requests, memory) in slopes(costs).items():
        for what, slope in (("time", time_), ("requests", requests)):
            if slope > LINEAR and (what != "time" or slowest[verb] > _QUICK_S):
                found.append(f"{verb}: {what} grow as n^{slope:.2f}")
        if memory > FLAT_MB:
            found.append(f"{verb}: {memory:.0f} MB of memory more with ten times the items")
    return found


def write_csv(costs: list[Cost], path: Path) -> None:
    """All figures."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([each.name for each in fields(Cost)])
        writer.writerows(asdict(each).values() for each in costs)


def read_csv(path: Path) -> list[Cost]:
    """What `write_csv` wrote."""
    with path.open(newline="") as file:
        return [
            Cost(
                row["verb"],
                int(row["items"]),
                int(row["tasks"]),
                float(row["seconds"]),
                int(row["requests"]),
                float(row["peak_mb"]),
                float(row["start_mb"]),
            )
            for row in csv.DictReader(file)
        ]


def plot(costs: list[Cost], path: Path) -> None:
    """Three log-log panels over the number of items."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    of_verb: defaultdict[str, list[Cost]] = defaultdict(list)
    for each in costs:
        of_verb[each.verb].append(each)
    for panel, (title, value) in zip(
        panels,
        (
            ("seconds", lambda each: each.seconds),
            ("AWS requests", lambda each: max(1, each.requests)),
            ("peak memory, MB", lambda each: each.peak_mb),
        ),
        strict=True,
    ):
        for verb, found in of_verb.items():
            panel.loglog([e.items for e in found], [value(e) for e in found], "o-", label=verb)
        panel.set(title=title, xlabel="items")
        panel.grid(visible=True, which="both", alpha=0.25)
    low, high = min(e.items for e in costs), max(e.items for e in costs)
    panels[0].loglog([low, high], [1e-2, 1e-2 * high / low], "k:", label="linear")
    panels[2].set_ylim(10, 2_000)
    panels[0].legend(fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes")
    parser.add_argument("--largest", type=float, default=SIZES[-1], help="leave out larger sizes")
    parser.add_argument("--write", action="store_true", help=f"write {CSV.name} and the plot")
    parser.add_argument("--plot", action="store_true", help="only draw the CSV's figures again")
    parser.add_argument("--measure", nargs=3, metavar=("VERB", "FOLDER", "ITEMS"))
    arguments = parser.parse_args()
    if arguments.measure:
        verb, folder, items = arguments.measure
        json.dump(asdict(measure(verb, Path(folder), int(items))), sys.stdout)
        return
    if arguments.plot:
        plot(read_csv(CSV), PLOT)
        return
    costs: list[Cost] = []
    for size in SHORT if arguments.short else SIZES:
        if size <= arguments.largest:
            costs += grow(size, say=lambda line: print(line, flush=True))
    print("\n".join(table(costs)))
    for line in too_steep(costs):
        print(f"not linear or not flat: {line}")
    if arguments.write:
        write_csv(costs, CSV)
        plot(costs, PLOT)


if __name__ == "__main__":
    main()
