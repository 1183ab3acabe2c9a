"""Groups of input to the files of a dataset, in the input's order or sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.dataset.folder import DataFile, DatasetFolder, part_name
from slurm_worker.aggregate.dataset.sorting import sort_files, write_merged
from slurm_worker.aggregate.options import AggregateOptions

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileGroup:
    """The input of one file, or of one of those that are sorted together."""

    digests: Sequence[str]  #: of what it is made of, in order
    read: Callable[[], Iterator[pa.Table]]  #: its tables, with the converter's columns
    rows: int | None = None  #: how many it has; None where that is not known


class DatasetWriter:
    """Writes groups as files; `writer` names the code, for the names of the files."""

    def __init__(self, writer: str, converter: Converter, options: AggregateOptions) -> None:
        self._options = options
        names = {name: options.names.get(name, name) for name in converter.columns}
        schema = converter.arrow_schema
        self._schema = pa.schema([field.with_name(names[field.name]) for field in schema])
        # The declared types and not Arrow's: `json` and `string` are the same to Arrow, and are
        # written differently.
        types = [[name, names[name], of.to_list()] for name, of in converter.columns.items()]
        self._layout = [writer, types, options.row_group_size]

    def write(
        self,
        groups: Iterable[FileGroup],
        folder: DatasetFolder,
        scratch: Path,
        progress: Callable[[str, int], None],
    ) -> list[DataFile]:
        """Write the dataset's files.

        A dataset that is sorted needs `scratch`, on local disk, to hold it twice. `progress` is
        called with what was done ("merged" or "sorted"), and with how many rows.
        """
        done = "merged"
        written: Iterator[DataFile] = (self.write_file(group, folder) for group in groups)
        if self._options.sorted:
            merged = self._merge(groups, scratch, progress)
            done = "sorted"
            written = sort_files(merged, self._schema, self._options, folder, scratch)
        files: list[DataFile] = []
        rows = 0
        for file in written:
            files.append(file)
            rows += file.rows
            progress(done, rows)
        return files

    def write_file(self, group: FileGroup, folder: DatasetFolder) -> DataFile:
        """The file of one group: found, or written."""
        name = self.file_name(group)
        return folder.find(name, group.rows, self._schema) or folder.write(
            name, self._schema, self._tables(group), self._options.row_group_size
        )

    def file_name(self, group: FileGroup) -> str:
        """The name of the file of one group: a digest of all that decides its content."""
        return part_name([*self._layout, list(group.digests)])

    def _merge(
        self, groups: Iterable[FileGroup], scratch: Path, progress: Callable[[str, int], None]
    ) -> list[Path]:
        """Files to sort, in the input's order."""
        merged: list[Path] = []
        rows = 0
        for group in groups:
            merged.append(scratch / f"merged-{len(merged):05}.parquet")
            size = self._options.row_group_size
            rows += write_merged(merged[-1], self._schema, self._tables(group), size)
            progress("merged", rows)
        return merged

    def _tables(self, group: FileGroup) -> Iterator[pa.Table]:
        """The tables by the dataset's names."""
        return (table.rename_columns(self._schema.names) for table in group.read())


def grouped(items: Iterable[_T], *limits: tuple[Callable[[_T], int], int]) -> Iterator[list[_T]]:
    """Neighbouring items together, until the sum of one of the measures reaches its limit."""
    group: list[_T] = []
    sums = [0] * len(limits)
    for item in items:
        group.append(item)
        full = False
        for number, (measure, limit) in enumerate(limits):
            sums[number] += measure(item)
            full |= sums[number] >= limit
        if full:
            yield group
            group, sums = [], [0] * len(limits)
    if group:
        yield group
