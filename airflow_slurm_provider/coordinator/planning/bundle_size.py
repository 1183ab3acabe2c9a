"""How many items go into a task, where the job does not say: by the input's size and the workers.

A task costs about nine requests however many items it has, so large tasks are cheap; a worker
that has few of them waits for the others at the end. `docs/scale.md` has the figures behind the
rule: 32 tasks for each worker, of a thousand items at most; fewer where thousands of workers
share the most shards that there are, and so read past each other's leases.

Requests: none for a local input, three for one on S3.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

from airflow_slurm_provider.coordinator.inputs.files import InputFile
from airflow_slurm_provider.coordinator.inputs.reader import InputFormat, InputSpec, find_input
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from slurm_worker.errors import UserError
from slurm_worker.protocol.ports import ObjectStore

TASKS_EACH = 32
#: Workers for which there are shards enough: `keys.shard_count` has no more for more of them.
_MOST_SERVED = 4_096
#: Below this a task is mostly requests, unless workers would go without.
SMALLEST = 50
LARGEST = 1_000
_FEWEST_EACH = 4
_SAMPLE_BYTES = 1 << 20
_PARQUET_END = 8
_GZIP = b"\x1f\x8b"


def bundle_for(items: int, workers: int) -> int:
    """Items of a task.

    Args:
        items: in the job; about will do.
        workers: worker processes that may run at the same time.
    """
    least = min(SMALLEST, math.ceil(items / (_FEWEST_EACH * workers)))
    return max(1, least, min(LARGEST, items // (TASKS_EACH * min(workers, _MOST_SERVED))))


def sized(
    spec: JobSpec, bucket: Callable[[str], ObjectStore], log: Callable[[str], None]
) -> JobSpec:
    """The spec with a bundle: its own, or one by the input's size."""
    if spec.bundle is not None:
        return spec
    items = about(spec.source, bucket)
    bundle = bundle_for(items, spec.max_workers)
    log(f"about {items:,} items for {spec.workers:,} workers: bundles of {bundle:,}")
    return spec.model_copy(update={"bundle": bundle})


def bundle_of(spec: JobSpec) -> int:
    """Items of a task of a job whose spec is sized, as that of every job in the table is."""
    assert spec.bundle is not None, "a job is sized before anything of it is written"
    return spec.bundle


def about(source: InputSpec, bucket: Callable[[str], ObjectStore]) -> int:
    """About how many items an input has; the same input gives the same number.

    Of a Parquet file its footer tells; of a text, its size and the length of its first lines; of a
    folder, its first file and the size of all.
    An input that can't be read counts as empty: who reads it all says what is wrong with it.
    """
    try:
        form, files = find_input(source, bucket)
        first = files[0]
        rows = _rows_of_parquet(first) if form is InputFormat.PARQUET else _lines(first)
        return math.ceil(rows * sum(each.size for each in files) / max(1, first.size))
    except (OSError, ValueError, UserError, zlib.error):
        return 0


def _lines(file: InputFile) -> int:
    data = file.read(0, _SAMPLE_BYTES) if file.size else b""
    taken = len(data)
    if data.startswith(_GZIP):
        data = zlib.decompressobj(wbits=31).decompress(data)
    lines = data.count(b"\n")
    if taken >= file.size:
        return lines + (not data.endswith(b"\n")) if data else 0
    return math.ceil(file.size * max(1, lines) / taken)


def _rows_of_parquet(file: InputFile) -> int:
    # pyarrow takes a third of a second to import, for which no text should wait.
    import pyarrow as pa
    import pyarrow.parquet as pq

    length = min(file.size, _SAMPLE_BYTES)
    end = file.read(file.size - length, length)
    footer = int.from_bytes(end[-_PARQUET_END:-4], "little") + _PARQUET_END
    if footer > len(end):
        end = file.read(file.size - footer, footer)
    try:
        return int(pq.read_metadata(pa.BufferReader(end)).num_rows)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
