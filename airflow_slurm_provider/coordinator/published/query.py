"""A published dataset by SQL, read where it is: only the columns and row groups that are needed.

The files are read through the site's own connection to the bucket. DuckDB gets them as the table
``dataset``, and the items that failed as ``errors``, and nothing else: it opens no files, loads no
extensions and connects to nothing. Requests: a GET of the manifest, and two or more for each file
that a query reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.dataset as pads
from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

from airflow_slurm_provider.coordinator.inputs.sql import connect, sql_errors
from airflow_slurm_provider.coordinator.published.manifest import manifest_of, names_of
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.aggregate.dataset.folder import DataFile
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
    """The first `most` rows of the dataset, in its order.

    Raises:
        UserError: if the job has no dataset.
    """
    return query(services, job_id, f"SELECT * FROM {TABLE}", most)  # noqa: S608  # a constant


def query(services: Services, job_id: JobId, sql: str, most: int) -> Rows:
    """The first `most` rows of a query.

    Raises:
        UserError: if the job has no dataset, or DuckDB refuses the query.
        ServiceError: if the store does not answer.
    """
    connection = connect("SQL")
    manifest = manifest_of(services, job_id)
    names_of(manifest)
    files = {TABLE: manifest.files, ERRORS: manifest.errors}
    bucket = _Bucket(services.objects, {file.key: file for each in files.values() for file in each})
    for name, some in files.items():
        if some:
            connection.register(name, _table(bucket, some, manifest.folder))
    try:
        with sql_errors("SQL", list(manifest.schema)):
            statements = connection.extract_statements(sql)
            if [each.type.name for each in statements] not in (["SELECT"], ["SELECT_STATEMENT"]):
                raise UserError("SQL: is not one SELECT; write one query without other commands")
            found = connection.sql(sql)
            rows = found.limit(most + 1).fetchall()
    except UserError:
        if bucket.error is not None:
            raise bucket.error from None
        raise
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
