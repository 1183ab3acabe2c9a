"""What became of a job, counted twice: from its table rows, and from its published files.

The Parquet files are really read; nothing is taken from the manifest's own counts but to
compare it. Uses the project's coordinator only to find things.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pyarrow.parquet as pq

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import Progress, read_progress
from slurm_worker.protocol.keys import JobId


@dataclass(frozen=True, slots=True)
class JobFacts:
    """Counts of one job, for one whose handler returns one row per item.

    Args:
        table: what the task rows say.
        items: items in, as the manifest says.
        rows: rows in the dataset's Parquet files.
        keys: different item keys in them.
        error_rows: rows by error class in the errors' Parquet files.
        error_keys: different item keys in them.
        both: item keys that are in both.
    """

    job_id: str
    table: Progress
    items: int
    rows: int
    keys: int
    error_rows: dict[str, int]
    error_keys: int
    both: int

    @property
    def failed(self) -> int:
        """Items that failed, by the errors dataset."""
        return sum(self.error_rows.values())

    def problems(self) -> list[str]:
        """What does not add up; empty where all does."""
        table = self.table
        checks = [
            (table.items, "items in the table", table.ok + sum(table.failed.values()),
             "ok + failed in the table"),
            (table.items, "items in the table", self.items, "items in the manifest"),
            (self.rows, "rows in the dataset", table.ok, "ok in the table"),
            (self.rows, "rows in the dataset", self.keys, "keys in the dataset"),
            (self.items, "items in", self.keys + self.error_keys, "keys ok + keys failed"),
            (self.both, "keys both ok and failed", 0, "none"),
        ]  # fmt: skip
        found = [
            f"{self.job_id}: {left:,} {left_name} but {right:,} {right_name}"
            for left, left_name, right, right_name in checks
            if left != right
        ]
        if self.error_rows != table.failed:
            found.append(
                f"{self.job_id}: failed by class {self.error_rows} in the errors dataset "
                f"but {table.failed} in the table"
            )
        return found

    def lines(self) -> list[str]:
        """The counts, as the demo prints them."""
        classes = ", ".join(f"{name} {count:,}" for name, count in self.error_rows.items())
        return [
            f"items in   {self.items:>9,}",
            f"ok         {self.table.ok:>9,}",
            f"failed     {self.failed:>9,}{f'   {classes}' if classes else ''}",
            f"rows out   {self.rows:>9,}",
        ]


def job_facts(services: Services, job_id: str) -> JobFacts:
    """Count a published job.

    Raises:
        LookupError: if it has no dataset.
    """
    name = JobId(job_id)
    data = services.objects.get(services.paths(name).manifest)
    if data is None:
        raise LookupError(f"{job_id}: no dataset is published")
    manifest = json.loads(data)
    keys: set[str] = set()
    error_keys: set[str] = set()
    error_rows: dict[str, int] = {}
    rows = 0
    for entry in manifest["files"]:
        column = _columns(services, entry["key"], ["_key"])["_key"]
        rows += len(column)
        keys.update(column)
    for entry in manifest["errors"]:
        columns = _columns(services, entry["key"], ["_key", "class"])
        error_keys.update(columns["_key"])
        for error_class in columns["class"]:
            error_rows[error_class] = error_rows.get(error_class, 0) + 1
    return JobFacts(
        job_id=job_id,
        table=read_progress(services, name),
        items=manifest["items"],
        rows=rows,
        keys=len(keys),
        error_rows=dict(sorted(error_rows.items())),
        error_keys=len(error_keys),
        both=len(keys & error_keys),
    )


def dataset_keys(services: Services, job_id: str) -> list[str]:
    """The item key of every row of the dataset, sorted."""
    data = services.objects.get(services.paths(JobId(job_id)).manifest)
    if data is None:
        raise LookupError(f"{job_id}: no dataset is published")
    found: list[str] = []
    for entry in json.loads(data)["files"]:
        found += _columns(services, entry["key"], ["_key"])["_key"]
    return sorted(found)


def _columns(services: Services, key: str, names: list[str]) -> dict[str, list[str]]:
    data = services.objects.get(key)
    if data is None:
        raise LookupError(f"{key}: the manifest names it and it is not there")
    columns: dict[str, list[str]] = pq.read_table(io.BytesIO(data), columns=names).to_pydict()
    return columns
