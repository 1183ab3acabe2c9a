"""The cost of `slurmctl status` on a job of 100,000 tasks, and of the next call.

make bench-status         (make stack-up first: objects and Slurm are the stack's)

The rows of the job are written to a separate DynamoDB (moto, in its own process). Half of the tasks
are done: the task finders of 200 workers leased and finished them in memory, with shard cursors and
sums. The time is measured from outside, as a user sees it, and is the median of five runs:

- the first status, without any earlier call;
- a second one right after it;
- one after a further 1,000 tasks are done;
- the first one again, as if workers wrote no sums;
- for comparison, reading every row once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site, parse_site
from airflow_slurm_provider.coordinator.status.snapshot import SnapshotReader
from slurm_worker.node.task_finder import Found, TaskFinder
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, TaskState
from slurm_worker.protocol.shard_progress import ShardTotals
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.stack.aws import create_table
from tests.stack.settings import LOOPBACK, REGION, ROOT

TASKS = 100_000
DONE = 50_000
MORE = 1_000
PER_TASK = 500
TRIES = 5
JOB = JobId("bench-status")
WORKERS = 200
SHARDS = keys.shard_count(WORKERS)
_TABLE = "bench"
_SLURMCTL = Path(sys.executable).with_name("slurmctl")


@contextmanager
def table() -> Iterator[str]:
    """A DynamoDB with an empty table; its endpoint."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stack.dynamodb", "-H", LOOPBACK, "-p", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://{LOOPBACK}:{port}"
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex((LOOPBACK, port)):
            if time.monotonic() > deadline:
                raise SystemExit("status: the table's server did not come up within 30 s")
            time.sleep(0.1)
        client = boto3.client("dynamodb", endpoint_url=url, region_name=REGION)
        create_table(client, _TABLE)
        yield url
    finally:
        server.kill()
        server.wait()


def plan(services: Services) -> None:
    """The job with its rows, the first ones done: made in memory, then copied."""
    for key in list(services.objects.list(services.paths(JOB).root)):
        services.objects.delete(key)
    rows = MemoryRows()
    jobs = JobTable(rows, JOB, services.clock)
    jobs.create("bench", "bench", SHARDS)
    jobs.create_round(0, "bench")
    tasks = TaskTable(rows, JOB, SHARDS, LeaseConfig(), services.clock)
    for number in range(TASKS):
        tasks.create(0, number, Slice(number // 100, 0, 9, PER_TASK, "0" * 64))
    jobs.open_round(0, TASKS, TASKS * PER_TASK, {})
    jobs.open(1)
    work(services, jobs, tasks, DONE)
    partitions = [keys.job_pk(JOB), keys.JOBS_PK]
    partitions += [keys.task_pk(JOB, shard) for shard in range(SHARDS)]
    every = [row for pk in partitions for row in rows.query(pk)]
    table = boto3.resource(
        "dynamodb", endpoint_url=services.site.aws.dynamodb_endpoint_url, region_name=REGION
    ).Table(_TABLE)
    with table.batch_writer() as batch:
        for row in every:
            batch.put_item(Item=row)


def work(services: Services, jobs: JobTable, tasks: TaskTable, count: int) -> None:
    """Let workers lease and finish this number of tasks, as on nodes."""
    sums = ShardTotals(JobStore(services.objects, services.paths(JOB)), jobs, tasks)
    rng = random.Random(0)
    workers = []
    for number in range(WORKERS):
        workers.append(
            TaskFinder(tasks, f"w{number}", services.clock, rng, moved=sums.cursor_advanced)
        )
        workers[-1].new_generation(jobs.get().generation)
    for turn in range(count):
        found = workers[turn % WORKERS].next()
        assert isinstance(found, Found)
        tasks.complete(marker(found.lease.row.sequence, services.clock.now()))


def marker(number: int, now: float) -> Marker:
    """The marker that a worker writes for a finished task."""
    return Marker(
        job=JOB,
        task=keys.task_id(0, number),
        attempt=1,
        worker=f"100_{number % WORKERS}-r0",
        items=PER_TASK,
        ok=PER_TASK - 1,
        rows=PER_TASK - 1,
        failed={"network": 1},
        slurm={"node": f"node{number % 20}"},
        started=now - 60 - number % 7_919 / 100,
        finished=now,
        requests={"s3_put": 3, "dynamo_write": 2, "dynamo_query": 3},
    )


def status(site: Path, environment: Mapping[str, str]) -> tuple[float, dict[str, Any]]:
    """The seconds that the command takes, and its output."""
    before = time.monotonic()
    ended = subprocess.run(
        [str(_SLURMCTL), "status", JOB, "--json", "--site", str(site)],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return time.monotonic() - before, json.loads(ended.stdout)


def kept(services: Services) -> Iterator[str]:
    """Keys of the stored sums, of workers and of earlier status calls."""
    return services.objects.list(services.paths(JOB).progress.removesuffix(".json"))


def apart(services: Services) -> Services:
    """The same services, but nothing that they write is kept."""
    objects = MemoryObjects()
    for key in kept(services):
        objects.put(key, services.objects.get(key) or b"")
    return replace(services, objects=objects)


def measure(say: Any) -> list[tuple[str, float, int]]:
    """(what, seconds, rows read) of each call."""
    own = load_site(os.environ["SLURMCTL_CONFIG"]).model_dump(mode="json")
    with table() as url, tempfile.TemporaryDirectory(prefix="bench-status-") as folder:
        own["storage"]["table"] = _TABLE
        own["aws"]["dynamodb_endpoint_url"] = url
        site = Path(folder) / "site.yaml"
        site.write_text(yaml.safe_dump(own))
        environment = {
            name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL_DYNAMODB"
        }
        services = open_services(parse_site(own, "bench"))
        say(f"writing {TASKS:,} rows")
        plan(services)
        tasks = TaskTable(services.rows, JOB, SHARDS, LeaseConfig(), services.clock)
        say("reading the status")
        found = []
        before = time.monotonic()
        rows = sum(1 for shard in range(SHARDS) for _ in tasks.all_rows(shard))
        found.append(("reading every row", time.monotonic() - before, rows))
        for what, done in (
            ("first", DONE),
            ("next", DONE),
            (f"after {MORE:,} more", DONE + MORE),
            ("first, if workers wrote no sums", DONE + MORE),
        ):
            if what.startswith("after"):
                work(services, services.jobs(JOB), tasks, MORE)
            if what.endswith("sums"):
                services.objects.delete_many(list(kept(services)))
            # A call in this process shows how many rows the command has to read.
            rows = SnapshotReader(apart(services), JOB).read().rows_read
            times = []
            for _ in range(TRIES):
                if what.startswith("first"):
                    services.objects.delete(services.paths(JOB).progress)
                took, document = status(site, environment)
                assert document["tasks"] == {
                    TaskState.DONE.value: done,
                    TaskState.READY.value: TASKS - done,
                }
                times.append(took)
            found.append((f"slurmctl status, {what}", median(times), rows))
        services.close()
    return found


def main() -> None:
    """Measure, print, and write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the table there")
    arguments = parser.parse_args()
    lines = [
        "# Status",
        "",
        f"`make bench-status` measured these figures on {os.cpu_count()} cores. The job has",
        f"{TASKS:,} tasks ({TASKS * PER_TASK:,} items) in moto, and {DONE:,} tasks are done.",
        "`slurmctl status` is timed as a whole process with its start. Each time is the median",
        f"of {TRIES} runs.",
        "",
        "| what | seconds | rows of tasks read |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {what} | {took:.1f} | {rows:,} |" for what, took, rows in measure(print)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
