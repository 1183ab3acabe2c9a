"""`slurmctl aggregate-files PATH... -o DATASET`: merge files without a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, command
from airflow_slurm_provider.cli.rendering.output import emit
from airflow_slurm_provider.units import format_count, format_size
from slurm_worker.errors import UserError

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from slurm_worker.aggregate.files.sources import Sources

_S3 = "s3://"


@command("slurmctl aggregate-files results/ more.jsonl.gz -o dataset/ --sort-by city,name")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DATASET", required=True, help="Folder of the dataset.")
@click.option(
    "--schema",
    type=click.Path(path_type=Path),
    help="A YAML file of column: type. Without it, types are inferred from all rows.",
)
@click.option("--sort-by", metavar="COLUMNS", default="", help="Columns, separated by commas.")
@click.option(
    "--partition-by",
    metavar="COLUMNS",
    default="",
    help="Columns, separated by commas, one folder per value.",
)
def aggregate_files(
    common: Common,
    paths: Sequence[str],
    output: str,
    schema: Path | None,
    sort_by: str,
    partition_by: str,
) -> int:
    """Merge files into one Parquet dataset with a manifest, without a job.

    Takes JSON lines, also compressed, and SQLite. Each PATH is a file or a folder, local or
    s3://. The dataset may be local or on s3://, too. Running it again changes nothing.
    """
    from slurm_worker.aggregate.files.merge import merge_files
    from slurm_worker.aggregate.options import AggregateOptions
    from slurm_worker.backends.local import FolderObjects

    if not output.strip():
        raise UserError("-o: is empty; give a folder")
    options = AggregateOptions(
        schema=_read_schema(schema), sort_by=_names(sort_by), partition_by=_names(partition_by)
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurmctl-")))
        # The site is read only for the first bucket.
        services = cache(lambda: stack.enter_context(common.services()))
        bucket, key = _bucket_and_key(output)
        objects = services().bucket(bucket) if bucket else FolderObjects(Path(output))
        folder = f"{key.rstrip('/')}/" if bucket and key else ""
        sources = _find_sources(paths, output, scratch, services)
        with _one_line(output):
            bar = stack.enter_context(_bar())
            dataset = merge_files(sources.found, objects, folder, options, scratch, bar)
    size = format_size(sum(file.size for file in dataset.files))
    fields = [
        ("files in", format_count(dataset.sources)),
        ("rows out", format_count(dataset.rows)),
        ("files", f"{len(dataset.files):,}, {size}"),
        ("dataset", output),
    ]
    if left_out := str(sources.left_out):
        fields.append(("left out", left_out))
    document = {**asdict(dataset), "dataset": output, "left_out": sources.left_out.to_list()}
    return emit(common.as_json, document, fields)


def _bucket_and_key(address: str) -> tuple[str, str]:
    """The parts of an ``s3://`` address; an empty bucket for a local path."""
    if not address.startswith(_S3):
        return "", address
    name, _, key = address.removeprefix(_S3).partition("/")
    if not name:
        raise UserError(f"{address!r} has no bucket; write s3://bucket/prefix")
    return name, key


def _find_sources(
    paths: Sequence[str], output: str, scratch: Path, services: Callable[[], Services]
) -> Sources:
    """The files at these paths, without those of the dataset."""
    from slurm_worker.aggregate.files.sources import Sources

    found = Sources(scratch)
    own_bucket, own_key = _bucket_and_key(output)
    for path in paths:
        if not path:
            raise UserError("PATH: is empty; give files, or folders that hold them")
        bucket, key = _bucket_and_key(path)
        if bucket:
            own = f"{own_key.rstrip('/')}/" if bucket == own_bucket and own_key else None
            found.add_stored(services().bucket(bucket), bucket, key, own)
        else:
            found.add_local(Path(path), None if own_bucket else Path(output))
    return found


def _read_schema(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    from airflow_slurm_provider.coordinator.spec.validation import read_yaml

    raw = read_yaml(path, "--schema", "give a YAML file of column: type")
    if not isinstance(raw, dict) or not all(isinstance(kind, str) for kind in raw.values()):
        raise UserError(f"--schema: {path} is not a mapping of column: type, such as n: int64")
    return {str(name): kind for name, kind in raw.items()}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def _one_line(output: str) -> Iterator[None]:
    """Turn errors of the operating system, such as a full disk, into a user's error."""
    try:
        yield
    except OSError as error:
        what = error.strerror or " ".join(str(error).split())
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"-o: {output} can't be written: {what}{where}; fix it, or give another folder"
        ) from error


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; nothing without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)
