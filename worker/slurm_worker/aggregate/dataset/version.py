"""The files of one version of a dataset: written once, found again, copied where they stand.

Each version of a dataset has its own folder, in which one process writes. A file's name says
what it is made of; one that another version has is copied by the store itself. Any file of
another version may be deleted at any moment: then it is made anew.

Requests per file: its upload; or a HEAD and a copy; or a GET and a copy of one that a run which
was cut short has left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slurm_worker.aggregate.columns.line_reader import leaves
from slurm_worker.errors import Missing
from slurm_worker.protocol.ports import ObjectStore

#: A dictionary pays where each value occurs about so often.
_REPEATED = 4
_LOOKED_AT = 16_384
#: Tables that wait as they are. A table of ten rows takes kilobytes, and a row group thousands of
#: them: so many are copied into one.
_MOST_SMALL = 128


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a dataset."""

    key: str
    rows: int
    size: int
    sha256: str


class Version:
    """The folder of one version.

    Args:
        objects: the bucket.
        folder: the folder's key, ending in a slash.
        path: a file on local disk.
        progress: told of what is found damaged.
        before: files of other versions, by their names in the folder.
        left: the key of a file that may be there, and whose digest is not known, by its name.
    """

    def __init__(
        self,
        objects: ObjectStore,
        folder: str,
        path: Path,
        progress: Callable[[str], None],
        before: Mapping[str, DataFile] | None = None,
        left: Callable[[str], str | None] = lambda _name: None,
    ) -> None:
        self._objects = objects
        self._folder = folder
        self._path = path
        self._progress = progress
        self._before = before or {}
        self._left = left

    def find(self, name: str, rows: int | None, schema: pa.Schema) -> DataFile | None:
        """The file of this name, from another version or from a run that was cut short.

        `rows` is how many it must have; None where that is not known.
        """
        found = self._copied(self._before.get(name), name)
        if found is not None:
            return found
        key = self._left(name)
        return None if key is None else self._copied(self._checked(key, rows, schema), name)

    def write(
        self, name: str, schema: pa.Schema, tables: Iterable[pa.Table], size: int
    ) -> DataFile:
        """Write a file of row groups of about `size` rows; without rows, nothing is uploaded."""
        key = self._folder + name
        rows = write_parquet(self._path, schema, tables, size)
        # The digest takes about as long as the upload to a store nearby.
        with ThreadPoolExecutor(1) as beside:
            described = beside.submit(self._describe, key, rows, unlink=False)
            if rows:
                self._objects.upload(key, str(self._path))
        self._path.unlink()
        return described.result()

    def keep(self, path: Path, rows: int, folder: str = "") -> DataFile:
        """Upload a file that was written, named by what is in it, unless it can be copied."""
        path.replace(self._path)
        described = self._describe("", rows, unlink=False)
        name = f"{folder}part-{described.sha256[:16]}.parquet"
        key = self._folder + name
        left = self._left(name)
        same = self._before.get(name) or (replace(described, key=left) if left else None)
        if self._copied(same, name) is None:
            self._objects.upload(key, str(self._path))
        self._path.unlink()
        return replace(described, key=key)

    def _copied(self, file: DataFile | None, name: str) -> DataFile | None:
        """A file of another version in this one's folder; None if it is not there any more."""
        key = self._folder + name
        if file is None or self._objects.size(file.key) != file.size:
            return None
        if file.key == key:
            return file
        try:
            self._objects.copy(file.key, key)
        except Missing:
            return None
        return replace(file, key=key)

    def _checked(self, key: str, rows: int | None, schema: pa.Schema) -> DataFile | None:
        """What a run that was cut short has left; None if it can't be used."""
        try:
            self._objects.download(key, str(self._path))
            with pq.ParquetFile(self._path) as file:
                found: int = file.metadata.num_rows
                if rows not in (None, found) or not file.schema_arrow.equals(schema):
                    return None
        except Missing:
            return None
        except (pa.ArrowException, OSError) as error:
            self._progress(f"{key} stands and is damaged ({error}); writing it again")
            return None
        return self._describe(key, found)

    def _describe(self, key: str, rows: int, *, unlink: bool = True) -> DataFile:
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        size = self._path.stat().st_size
        if unlink:
            self._path.unlink()
        return DataFile(key, rows, size, digest.hexdigest())


def names_in(folder: str, files: Sequence[DataFile]) -> dict[str, DataFile]:
    """A version's files by their names in its folder."""
    return {each.key.removeprefix(folder): each for each in files}


def write_parquet(
    path: Path | BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table], size: int
) -> int:
    """Write tables in row groups of about `size` rows; return how many rows there were."""
    rows = 0
    with _Writer(path, schema) as writer:
        for group in row_groups(tables, size):
            # Up to twice the size in one group, rather than a small one behind each.
            writer.write(group, 2 * size)
            rows += group.num_rows
            pa.default_memory_pool().release_unused()
    return rows


def row_groups(
    tables: Iterable[pa.Table], size: int, most_bytes: int = 128 << 20
) -> Iterator[pa.Table]:
    """Join small tables up to `size` rows, or fewer where rows are large."""
    waiting: list[pa.Table] = []
    small: list[pa.Table] = []
    rows = volume = 0
    for table in tables:
        small.append(table)
        rows += table.num_rows
        volume += table.get_total_buffer_size()
        if rows >= size or volume >= most_bytes:
            yield pa.concat_tables([*waiting, *small])
            waiting, small, rows, volume = [], [], 0, 0
        elif len(small) == _MOST_SMALL:
            waiting.append(pa.concat_tables(small).combine_chunks())
            small = []
    if rows:
        yield pa.concat_tables([*waiting, *small])


class _Writer:
    """Writes row groups; the first decides how, so that the same rows give the same bytes."""

    def __init__(self, path: Path | BinaryIO, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        (self._writer or self._open([])).close()

    def write(self, group: pa.Table, size: int) -> None:
        """Append a table in row groups of at most `size` rows."""
        self._writer = self._writer or self._open(_repetitive(group))
        self._writer.write_table(group, row_group_size=size)

    def _open(self, dictionaries: list[str]) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            self._path,
            self._schema,
            version="2.6",
            compression="zstd",
            use_dictionary=dictionaries,  # type: ignore[arg-type]  # a list will do
            write_page_index=True,
        )


def _repetitive(table: pa.Table) -> list[str]:
    """The columns for which a dictionary pays; building one in vain takes longer than writing."""
    found = []
    first = table.slice(0, _LOOKED_AT)
    for name, column in zip(first.column_names, first.columns, strict=True):
        for path, leaf in leaves(column.combine_chunks(), name):
            if len(leaf) and pc.count_distinct(leaf).as_py() * _REPEATED <= len(leaf):
                found.append(path)
    return found
