"""The folder of one dataset: files are written once, found again, copied inside the store.

Each version of a job's dataset has a folder of its own, in which one process writes. A file's
name is the hash of everything that decides its content, so it is never taken for another. A file
that another version has is copied by the store itself. Any file of another version may be deleted
at any moment: then it is written again.

Requests per file: its upload; or a HEAD and a copy; or a GET and a copy of one that an
interrupted run has left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate.dataset.parquet_file import write_parquet
from slurm_worker.errors import Missing
from slurm_worker.protocol.ports import ObjectStore


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a dataset."""

    key: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """Where the files of one dataset go."""

    objects: ObjectStore  #: the bucket
    folder: str  #: the folder's key, ending in a slash
    path: Path  #: a file on local disk
    #: Called with a line about each damaged file
    progress: Callable[[str], None] = lambda _line: None
    #: Files of other versions, by their names in the folder
    known: Mapping[str, DataFile] = field(default_factory=dict)
    #: The key of a file that may exist, and whose digest is not known, by its name
    leftover: Callable[[str], str | None] = lambda _name: None

    def find(self, name: str, rows: int | None, schema: pa.Schema) -> DataFile | None:
        """The file of this name, from another version or from an interrupted run.

        `rows` is how many it must have; None where that is not known.
        """
        found, key = self._copied(self.known.get(name), name), self.leftover(name)
        if found is not None or key is None:
            return found
        return self._copied(self._checked(key, rows, schema), name)

    def write(
        self, name: str, schema: pa.Schema, tables: Iterable[pa.Table], size: int
    ) -> DataFile:
        """Write a file of row groups of about `size` rows; without rows, nothing is uploaded."""
        key = self.folder + name
        rows = write_parquet(self.path, schema, tables, size)
        # The digest takes about as long as the upload to a store nearby.
        with ThreadPoolExecutor(1) as beside:
            described = beside.submit(self._describe, key, rows)
            if rows:
                self.objects.upload(key, str(self.path))
        self.path.unlink()
        return described.result()

    def keep(self, rows: int, folder: str) -> DataFile:
        """Upload the file at `path`, named by its content, unless it can be copied."""
        described = self._describe("", rows)
        name = f"{folder}part-{described.sha256[:16]}.parquet"
        key = self.folder + name
        leftover = self.leftover(name)
        same = self.known.get(name) or (replace(described, key=leftover) if leftover else None)
        if self._copied(same, name) is None:
            self.objects.upload(key, str(self.path))
        self.path.unlink()
        return replace(described, key=key)

    def _copied(self, file: DataFile | None, name: str) -> DataFile | None:
        """A file of another version in this folder; None if it does not exist any more."""
        key = self.folder + name
        if file is None or self.objects.size(file.key) != file.size:
            return None
        if file.key == key:
            return file
        try:
            self.objects.copy(file.key, key)
        except Missing:
            return None
        return replace(file, key=key)

    def _checked(self, key: str, rows: int | None, schema: pa.Schema) -> DataFile | None:
        """What an interrupted run has left; None if it can't be used."""
        try:
            self.objects.download(key, str(self.path))
            with pq.ParquetFile(self.path) as file:
                found: int = file.metadata.num_rows
                if rows not in (None, found) or not file.schema_arrow.equals(schema):
                    return None
            return self._describe(key, found)
        except Missing:
            return None
        except (pa.ArrowException, OSError) as error:
            self.progress(f"{key} is damaged ({error}); writing it again")
            return None
        finally:
            self.path.unlink(missing_ok=True)

    def _describe(self, key: str, rows: int) -> DataFile:
        return DataFile(key, rows, self.path.stat().st_size, file_sha256(self.path))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a local file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def part_name(content: list[Any]) -> str:
    """The name of a file with this content."""
    return f"part-{json_sha256(content)[:16]}.parquet"


def json_sha256(value: list[Any]) -> str:
    """The SHA-256 of a value's JSON text, in hex."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
