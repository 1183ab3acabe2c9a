"""The steps of the run; each is a separate process with its own memory and requests.

A step prints events as JSON lines, with the time (seconds since the epoch) in ``at``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from airflow_slurm_provider.coordinator.watcher import Watcher
from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.protocol.keys import JobId

HANDLER = Path(__file__).with_name("handler")
_MODULUS = 1 << 128
_POLL_S = 1.0
_RESUBMISSIONS = 100
_INPUT_ROWS = 250_000
_SAMPLED = 1_000


def tell(event: str, **fields: Any) -> None:
    """Print a line for the process that started this step."""
    print(json.dumps({"event": event, "at": time.time(), **fields}), flush=True)


def key_of(number: int) -> str:
    """The key of an item."""
    return f"user-{number:09}"


def digest_of(keys: Iterable[str]) -> int:
    """A sum over keys, in any order; two multisets of equal size and sum are equal."""
    total = 0
    for key in keys:
        total += int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    return total % _MODULUS


def open_site() -> tuple[Services, RequestCounts]:
    """The services of the stack, with counts of the AWS requests of this process."""
    path = os.environ.get("SLURMCTL_CONFIG")
    if not path:
        raise SystemExit("five_million: the stack is not up; run make stack-up, then make bench-5m")
    services, counts = open_services(load_site(path)), RequestCounts()
    for edge in (services.rows, services.objects):
        # The counts are of the requests that the adapters' own clients send.
        counts.watch(getattr(edge, "client", None) or getattr(edge, "_client"))  # noqa: B009
    return services, counts


def input_key(services: Services, items: int) -> str:
    """The key of the input in the bucket."""
    return f"{services.site.prefix}/bench/items-{items}.parquet"


def config_of(services: Services, job_id: str, items: int, bundle: int, workers: int) -> Config:
    """The job."""
    return load_config(
        {
            "job_id": job_id,
            "input": {
                "path": f"s3://{services.site.bucket}/{input_key(services, items)}",
                "key": "id",
            },
            "handler": {"entry": "handler:handle", "code": str(HANDLER)},
            "bundle": bundle,
            "workers": workers,
            "slurm": {"mem": "1G", "time": "04:00:00", "cpus_per_task": 1},
            "aggregate": {"schema": {"chain": "string", "cpu_ns": "int64"}},
        }
    )


def make_input(items: int) -> None:
    """Write the items to the bucket as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    services, _ = open_site()
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for first in range(0, items, _INPUT_ROWS):
                numbers = list(range(first, min(items, first + _INPUT_ROWS)))
                table = pa.table([[key_of(n) for n in numbers], numbers], schema=schema)
                writer.write_table(table)
        services.objects.upload(input_key(services, items), str(path))
        tell("input", bytes=path.stat().st_size)
    services.close()


def coordinate(job_id: str, items: int, bundle: int, workers: int) -> None:
    """Submit the job and wait for it; submit new workers if all have ended."""
    services, counts = open_site()
    tell("begun")
    config = config_of(services, job_id, items, bundle, workers)
    submitted = api.submit(services, config, log=lambda line: tell("log", line=line))
    tell("submitted", tasks=submitted.tasks, items=submitted.items)
    watcher = Watcher(
        services,
        JobId(job_id),
        lambda line: tell("log", line=line),
        max_resubmissions=_RESUBMISSIONS,
    )
    while True:
        seen = watcher.poll()
        tell("progress", ok=seen.progress.ok, failed=sum(seen.progress.failed.values()))
        if seen.finished:
            break
        if seen.problem:
            tell("failed", problem=seen.problem)
            raise SystemExit(1)
        time.sleep(_POLL_S)
    done = read_snapshot(services, JobId(job_id)).done
    tell(
        "finished",
        requests=counts.take(),
        workers_requests=dict(done.requests),
        lost=done.lost,
        tasks=done.tasks,
    )
    services.close()


def aggregate(job_id: str) -> None:
    """Publish the dataset."""
    services, counts = open_site()
    tell("begun")
    manifest = api.aggregate(services, JobId(job_id), log=lambda line: tell("log", line=line))
    tell("published", rows=manifest["rows"], requests=counts.take())
    services.close()


def verify(job_id: str, items: int) -> None:
    """Read the published files, and compare them with the items of the input."""
    services, _ = open_site()
    sys.path.insert(0, str(HANDLER))
    import handler  # type: ignore[import-not-found]  # the folder that is shipped to the nodes

    rows = total = cpu_ns = 0
    sample: list[tuple[str, str]] = []
    rng = random.Random(1)
    for keys, chains, times in _published(services, job_id):
        rows += len(keys)
        total = (total + digest_of(keys)) % _MODULUS
        cpu_ns += sum(times)
        sample += rng.sample(list(zip(keys, chains, strict=True)), min(20, len(keys)))
    wrong = sum(handler.chain(key) != chain for key, chain in sample[:_SAMPLED])
    tell(
        "verified",
        rows=rows,
        same_keys=total == digest_of(map(key_of, range(items))),
        wrong=wrong,
        cpu_s=cpu_ns / 1e9,
        disk=_disk(services, job_id),
    )
    services.close()


def _published(services: Services, job_id: str) -> Iterator[tuple[list[str], list[str], list[int]]]:
    """Columns of the dataset, one batch at a time."""
    import pyarrow.parquet as pq

    manifest = services.objects.get(services.paths(JobId(job_id)).manifest)
    assert manifest is not None, "it was published by the step before"
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(json.loads(manifest)["files"]):
            path = Path(folder) / f"{number}.parquet"
            services.objects.download(each["key"], str(path))
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["_key", "chain", "cpu_ns"]):
                    yield tuple(column.to_pylist() for column in batch.columns)  # type: ignore[misc]
            path.unlink()


def _disk(services: Services, job_id: str) -> dict[str, int]:
    """Bytes of the job in the bucket, by folder."""
    root = services.paths(JobId(job_id)).root
    found: dict[str, int] = {}
    for each in services.objects.entries(root):
        folder = each.key.removeprefix(root).partition("/")[0]
        found[folder] = found.get(folder, 0) + each.size
    return found


def main(argv: list[str]) -> None:
    """Run one step: its name, and its arguments."""
    name, *arguments = argv
    if name == "input":
        make_input(int(arguments[0]))
    elif name == "coordinate":
        job_id, *sizes = arguments
        coordinate(job_id, *map(int, sizes))
    elif name == "aggregate":
        aggregate(arguments[0])
    elif name == "verify":
        verify(arguments[0], int(arguments[1]))
    else:
        raise SystemExit(f"five_million: unknown step {name!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
