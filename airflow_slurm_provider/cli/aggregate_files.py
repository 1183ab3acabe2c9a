"""`slurmctl aggregate PATH... -o DATASET`: files merged without a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_slurm_provider.cli.options import Common
from airflow_slurm_provider.cli.output import emit, number, size_text
from slurm_worker.errors import UserError

if TYPE_CHECKING:
    from slurm_worker.aggregate.files.sources import Sources
    from slurm_worker.protocol.ports import ObjectStore

_S3 = "s3://"


def merge_paths(
    common: Common,
    paths: Sequence[str],
    output: str,
    schema: Path | None,
    sort_by: str,
    partition_by: str,
) -> int:
    """Merge the files at these paths into a dataset, and print what came of it."""
    from slurm_worker.aggregate.files.merge import merge_files
    from slurm_worker.aggregate.options import AggregateOptions

    if not output.strip():
        raise UserError("-o: is empty; name a folder")
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
    size = size_text(sum(each.size for each in dataset.files))
    fields = [
        ("files in", number(dataset.sources)),
        ("rows out", number(dataset.rows)),
        ("files", f"{number(len(dataset.files))}, {size}"),
        ("dataset", output),
    ]
    if left_out := str(sources.left_out):
        fields.append(("left out", left_out))
    document = {**dataset.to_dict(), "dataset": output, "left_out": sources.left_out.to_list()}
    emit(common.as_json, document, fields)
    return 0


class _Buckets:
    """Where paths are; the site is read only if one of them is on S3."""

    def __init__(self, common: Common, stack: ExitStack) -> None:
        self._common = common
        self._stack = stack
        self._bucket: Callable[[str], ObjectStore] | None = None

    def target(self, output: str) -> tuple[ObjectStore, str]:
        """The store of the dataset, and its folder there."""
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
                raise UserError("PATH: is empty; name files, or folders that hold them")
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
            raise UserError(f"{address!r} names no bucket; write s3://bucket/prefix")
        if self._bucket is None:
            self._bucket = self._stack.enter_context(self._common.services()).bucket
        return self._bucket(name), name, key


def _read_schema(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    from airflow_slurm_provider.coordinator.spec.yaml_file import read_yaml

    raw = read_yaml(path, "--schema", "name a YAML file of column: type")
    if not isinstance(raw, dict) or not all(isinstance(each, str) for each in raw.values()):
        raise UserError(f"--schema: {path} holds no mapping of column: type, such as n: int64")
    return {str(name): kind for name, kind in raw.items()}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def _one_line(output: str) -> Iterator[None]:
    """What the operating system refuses, such as a full disk, as a user's error."""
    try:
        yield
    except OSError as error:
        what = error.strerror or " ".join(str(error).split())
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"-o: {output} can't be written: {what}{where}; correct it, or name another folder"
        ) from error


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)
