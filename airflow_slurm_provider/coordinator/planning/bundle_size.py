"""How many items a task holds, if the job does not say it: by the input's size and the workers.

A task costs about nine requests, however many items it has, so large tasks are cheap. A worker with
few tasks waits for the others at the end. `docs/scale.md` has the figures behind the rule: 32 tasks
per worker, of at most a thousand items. There are fewer where thousands of workers share the
largest number of shards: they read past each other's leases.

Requests: none for a local input, three for one on S3.
"""

from __future__ import annotations

import math
from contextlib import suppress

from airflow_slurm_provider.coordinator.inputs.files import InputFile
from airflow_slurm_provider.coordinator.inputs.finding import Bucket
from airflow_slurm_provider.coordinator.inputs.formats import InputFormat
from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.inputs.text import count_rows
from airflow_slurm_provider.coordinator.services import Log
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError

TASKS_PER_WORKER = 32
#: With more workers than this, `keys.shard_count` adds no shards.
_MAX_WORKERS = 4_096
#: A task of fewer items is mostly requests; smaller ones are made only to give each worker tasks.
SMALLEST = 50
LARGEST = 1_000
_MIN_TASKS_PER_WORKER = 4
_SAMPLE_BYTES = 1 << 20
_PARQUET_END = 8
_ARROW_FILE = b"ARROW1"
#: A guess, for an Arrow file whose first batch is larger than the sample.
_BYTES_OF_A_ROW = 100


def bundle_for(items: int, workers: int) -> int:
    """Items per task, for about so many items and so many processes at the same time."""
    smallest = min(SMALLEST, math.ceil(items / (_MIN_TASKS_PER_WORKER * workers)))
    wanted = items // (TASKS_PER_WORKER * min(workers, _MAX_WORKERS))
    return max(1, smallest, min(LARGEST, wanted))


def with_bundle(spec: JobSpec, bucket: Bucket, log: Log, found: Input | None = None) -> JobSpec:
    """The spec with a bundle: its own, or one that fits the input's size.

    `found` is the input, if it is listed already.
    """
    if spec.bundle is not None:
        return spec
    items = estimate_items(spec.input, bucket, found)
    bundle = bundle_for(items, spec.max_workers)
    if items:  # else the input is empty or can't be read: its reader reports what is wrong
        sizes = (format_count(items, "item"), format_count(spec.workers, "worker"))
        log(f"about {' for '.join(sizes)}: {format_count(bundle, 'item')} per task")
    return spec.model_copy(update={"bundle": bundle})


def bundle_of(spec: JobSpec) -> int:
    """Items per task. The spec of every job in the table has a bundle: see `with_bundle`."""
    assert spec.bundle is not None, "a job gets its bundle before anything of it is written"
    return spec.bundle


def estimate_items(source: InputSection, bucket: Bucket, found: Input | None = None) -> int:
    """About how many items an input has; the same input gives the same number.

    The estimate is made from a Parquet file's footer; from the size of another file and the length
    of its first rows; from a folder's first file and the size of all its files. A condition or a
    query is not taken into account. An input that can't be read counts as empty: the planner, which
    reads all of it, reports what is wrong.
    """
    try:
        found = found or Input(source, bucket)
        if source.database:
            return 0
        first = next(iter(found.files))
        if found.format.is_arrow:
            is_parquet = found.format is InputFormat.PARQUET
            rows = (_rows_of_parquet if is_parquet else _rows_of_arrow)(first)
        else:
            rows = _rows_of_text(first, found.format)
        return math.ceil(rows * found.files.size / max(1, first.size))
    except (OSError, ValueError, UserError):
        return 0


def _rows_of_text(file: InputFile, form: InputFormat) -> int:
    data = file.read(0, _SAMPLE_BYTES) if file.size else b""
    rows = count_rows(data, are_lines=form is not InputFormat.JSON)
    return rows if len(data) >= file.size else math.ceil(file.size * max(1, rows) / len(data))


def _rows_of_arrow(file: InputFile) -> int:
    import pyarrow as pa

    data = file.read(0, _SAMPLE_BYTES) if file.size else b""
    rows = taken = 0
    source = pa.BufferReader(data)
    if data.startswith(_ARROW_FILE):
        source.seek(len(_ARROW_FILE) + 2)  # behind it there is a stream
    with suppress(pa.ArrowException, OSError, StopIteration):
        stream = pa.ipc.open_stream(source)
        while True:
            rows += stream.read_next_batch().num_rows
            taken = source.tell()
    return math.ceil(file.size * rows / taken) if rows else math.ceil(file.size / _BYTES_OF_A_ROW)


def _rows_of_parquet(file: InputFile) -> int:
    # pyarrow takes a third of a second to import; text inputs don't need it.
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
