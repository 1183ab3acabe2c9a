"""A published dataset by SQL, read where it is: only the columns and row groups that are needed.

The files are read through the site's own connection to the bucket. DuckDB gets them as the table
``dataset``, and the items that failed as ``errors``, and nothing else: it opens no files, loads no
extensions and connects to nothing. Requests: a GET of the manifest, and two or more for each file
that a query reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow.dataset as pads
from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

from airflow_slurm_provider.coordinator.inputs.sql import connect, sql_errors
from airflow_slurm_provider.coordinator.published.manifest import manifest_of, names_of
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.job.publish import Manifest
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import ObjectStore

TABLE, ERRORS = "dataset", "errors"


@dataclass(frozen=True, slots=True)
class Rows:
    """The first rows of a result."""

    job_id: str
    columns: tuple[tuple[str, str], ...]  #: name and type
    rows: tuple[tuple[object, ...], ...]  #: values of Python
    more: bool  #: whether there are more rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what JSON does not have becomes text."""
        return {
            "job_id": self.job_id,
            "columns": [{"name": name, "type": kind} for name, kind in self.columns],
            "rows": [[_plain(value) for value in row] for row in self.rows],
            "more": self.more,
        }


def head(services: Services, job_id: JobId, most: int) -> Rows:
    """The first `most` rows of the dataset, in its order; reads no more than it needs.

    Raises:
        UserError: if the job has no dataset.
        ServiceError: if the store does not answer.
    """
    manifest = manifest_of(services, job_id)
    with _opened(services, manifest) as (connection, tables):
        dataset = tables.get(TABLE)
        if dataset is not None:
            # A scan reads ahead, many row groups of several files.
            ahead = {"batch_readahead": 0, "fragment_readahead": 0}
            connection.register(TABLE, dataset.head(most + 1, batch_size=most + 1, **ahead))
            return _first(job_id, connection.sql(f"SELECT * FROM {TABLE}"), most)  # noqa: S608  # a constant
    return Rows(job_id, tuple(manifest.schema.items()), (), more=False)


def query(services: Services, job_id: JobId, sql: str, most: int) -> Rows:
    """The first `most` rows of a query.

    Raises:
        UserError: if the job has no dataset, or DuckDB refuses the query.
        ServiceError: if the store does not answer.
    """
    with _opened(services, manifest_of(services, job_id)) as (connection, tables):
        for name, table in tables.items():
            connection.register(name, table)
        statements = connection.extract_statements(sql)
        if [each.type.name for each in statements] not in (["SELECT"], ["SELECT_STATEMENT"]):
            raise UserError("SQL: is not one SELECT; write one query without other commands")
        return _first(job_id, connection.sql(sql), most)


@contextmanager
def _opened(services: Services, manifest: Manifest) -> Iterator[tuple[Any, dict[str, Any]]]:
    """DuckDB, and the tables of a dataset that have files; errors of either are one line."""
    names_of(manifest)
    files = {TABLE: manifest.files, ERRORS: manifest.errors}
    bucket = _Bucket(services.objects, {file.key: file for each in files.values() for file in each})
    connection = connect("SQL")
    try:
        with sql_errors("SQL", list(manifest.schema)):
            yield (
                connection,
                {
                    name: _table(bucket, some, manifest.folder)
                    for name, some in files.items()
                    if some
                },
            )
    except (UserError, OSError, ServiceError):
        if bucket.error is not None:
            raise bucket.error from None
        raise
    finally:
        connection.close()


def _first(job_id: JobId, found: Any, most: int) -> Rows:
    rows = found.limit(most + 1).fetchall()
    kinds = zip(found.columns, (str(kind) for kind in found.types), strict=True)
    return Rows(job_id, tuple(kinds), tuple(rows[:most]), len(rows) > most)


def _table(bucket: _Bucket, files: Sequence[DataFile], folder: str) -> Any:
    """The files as one table, with the columns that their folders are named after."""
    return pads.dataset(
        [file.key for file in files],
        filesystem=bucket,
        format="parquet",
        partitioning=pads.partitioning(flavor="hive"),
        partition_base_dir=folder,
    )


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _Bucket(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of one dataset, read only."""

    cachable = False

    def __init__(self, objects: ObjectStore, files: dict[str, DataFile]) -> None:
        super().__init__()
        self.objects, self.files = objects, files
        self.error: ServiceError | None = None

    def info(self, path: str, **_: object) -> dict[str, object]:
        """Name, size and type of a file."""
        return {"name": path, "size": self.files[path].size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: object) -> AbstractBufferedFile:
        return _File(self, path, mode, cache_type="none", size=self.files[path].size)


class _File(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of the bucket: each read is one request for a range."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            data: bytes | None = self.fs.objects.get(self.path, start=start, length=end - start)
            if data is None:
                raise ServiceError(
                    f"dataset: {self.path} was deleted meanwhile; another version may have been "
                    "published; try again"
                )
        except ServiceError as error:
            # What comes out of DuckDB is another error.
            self.fs.error = error
            raise
        return data
