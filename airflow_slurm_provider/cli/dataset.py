"""`slurmctl fetch`, `head` and `query`: a job's published dataset for its readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, command, job_argument
from airflow_slurm_provider.cli.rendering.output import emit, say
from airflow_slurm_provider.units import format_size
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.published.query import Rows

_NULL = "NULL"
_WIDEST = 60


@command("slurmctl fetch flights-2013 dataset/")
@job_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def fetch(common: Common, job: JobId, folder: Path) -> int:
    """Download the dataset of JOB into DIR, and verify it.

    Run it again to continue after an interruption, or to get a newer version: only files that
    changed are downloaded. DIR is created. It holds one job's dataset and nothing else.
    """
    from airflow_slurm_provider.coordinator.published.fetch import fetch as fetch_dataset

    with common.services() as services:
        found = fetch_dataset(services, job, folder, log=say)
    fields = [
        ("job", job),
        ("folder", found.folder),
        ("files", f"{found.files:,}, {format_size(found.bytes)}"),
        ("downloaded", f"{found.downloaded:,}"),
    ]
    return emit(common.as_json, found.to_dict(), fields)


@command("slurmctl head flights-2013 -n 20")
@job_argument
@click.option("-n", "--rows", type=click.IntRange(1), default=10, show_default=True, help="Rows.")
def head(common: Common, job: JobId, rows: int) -> int:
    """Show the first rows of the dataset of JOB."""
    from airflow_slurm_provider.coordinator.published.query import head as head_of

    with common.services() as services:
        found = head_of(services, job, rows)
    return emit(common.as_json, found.to_dict(), _table(found, note=False))


@command('slurmctl query flights-2013 "SELECT carrier, count(*) FROM dataset GROUP BY ALL"')
@job_argument
@click.argument("sql", metavar="SQL")
@click.option(
    "--limit", type=click.IntRange(1), default=1000, show_default=True, help="Most rows to print."
)
def query(common: Common, job: JobId, sql: str, limit: int) -> int:
    """Run one SELECT over the dataset of JOB, in DuckDB.

    The table `dataset` has the rows, and `errors` the items that failed. Only the columns that the
    query needs are read from the bucket.
    """
    from airflow_slurm_provider.coordinator.published.query import query as query_dataset

    with common.services() as services:
        found = query_dataset(services, job, sql, limit)
    return emit(common.as_json, found.to_dict(), _table(found, note=True))


def _table(found: Rows, *, note: bool) -> str:
    """Columns side by side, below their names."""
    names = [name for name, _ in found.columns]
    rows = [names, *([_shown(value) for value in row] for row in found.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if note and found.more:
        lines.append(f"(the first {len(found.rows):,} rows; for more, use --limit)")
    return "\n".join(lines)


def _shown(value: object) -> str:
    text = _NULL if value is None else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
