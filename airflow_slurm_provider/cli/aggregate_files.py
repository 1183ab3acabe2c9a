"""`slurmctl aggregate-files PATH... -o DATASET`: merge files without a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.rendering.output import emit
from airflow_slurm_provider.units import format_count, format_size
from slurm_worker.errors import UserError

if TYPE_CHECKING:
    from slurm_worker.aggregate.files.sources import Sources
    from slurm_worker.protocol.ports import ObjectStore

_S3 = "s3://"


@click.command(
    epilog="\b\nExample:\n"
    "  slurmctl aggregate-files results/ more.jsonl.gz -o dataset/ --sort-by city,name"
)
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
@common_options
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

    if not output.strip():
        raise UserError("-o: is empty; give a folder")
    options = AggregateOptions(
        schema=_read_schema(schema),
        sort_by=_names(sort_by),
        partition_by=_names(partition_by),
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurmctl-")))
        bucket = _Buckets(common, stack)
        objects, folder = bucket.target(output)
        sources = bucket.sources(paths, output, scratch)
        with _one_line(output):
            dataset = merge_files(
                sources.found,
                objects,
                folder,
                options,
                scratch,
                stack.enter_context(_bar()),
            )
    size = format_size(sum(file.size for file in dataset.files))
    fields = [
        ("files in", format_count(dataset.sources)),
        ("rows out", format_count(dataset.rows)),
        ("files", f"{len(dataset.files):,}, {size}"),
        ("dataset", output),
    ]
    if left_out := str(sources.left_out):
        fields.append(("left out", left_out))
    document = {**dataset.to_dict(), "dataset": output, "left_out": sources.left_out.to_list()}
    return emit(common.as_json, document, fields)


class _Buckets:
    """The places of paths; the site is read only if one of them is on S3."""

    def __init__(self, common: Common, stack: ExitStack) -> None:
        self._common = common
        self._stack = stack
        self._bucket: Callable[[str], ObjectStore] | None = None

    def target(self, output: str) -> tuple[ObjectStore, str]:
        """The store of the dataset, and its folder in it."""
        from slurm_worker.backends.local import FolderObjects

        if not output.startswith(_S3):
            return FolderObjects(Path(output)), ""
        objects, _, key = self._find(output)
        return objects, f"{key.rstrip('/')}/" if key else ""

    def sources(self, paths: Sequence[str], output: str, scratch: Path) -> Sources:
        """The files at these paths, without those of the dataset."""
        from slurm_worker.aggregate.files.sources import Sources

        found = Sources(scratch)
        for path in paths:
            if not path:
                raise UserError("PATH: is empty; give files, or folders that hold them")
            if path.startswith(_S3):
                objects, name, key = self._find(path)
                found.add_stored(objects, name, key, self._below(output, name))
            else:
                found.add_local(Path(path), None if output.startswith(_S3) else Path(output))
        return found

    def _below(self, output: str, bucket: str) -> str | None:
        """The dataset's folder, where it is in this bucket."""
        name, _, key = output.removeprefix(_S3).partition("/")
        if not output.startswith(_S3) or name != bucket or not key:
            return None
        return f"{key.rstrip('/')}/"

    def _find(self, address: str) -> tuple[ObjectStore, str, str]:
        name, _, key = address.removeprefix(_S3).partition("/")
        if not name:
            raise UserError(f"{address!r} has no bucket; write s3://bucket/prefix")
        if self._bucket is None:
            self._bucket = self._stack.enter_context(self._common.services()).bucket
        return self._bucket(name), name, key


def _read_schema(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    from airflow_slurm_provider.coordinator.spec.yaml_file import read_yaml

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
