"""JSON lines or SQLite files to Parquet, without a job, its markers and its proof.

Reading is as strict as for a job's parts. Files are read in chunks of lines, so that memory
does not grow with them. The dataset's files are named by what they are made of, so that an
interrupted run can continue.

Reads each file twice, for its digest and for its rows; a third time where the schema is
inferred. Each time its digest must be the same: a file that changes meanwhile is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.inference import Inference
from slurm_worker.aggregate.columns.types import Schema, parse_schema
from slurm_worker.aggregate.dataset.folder import DataFile, DatasetFolder, file_sha256, json_sha256
from slurm_worker.aggregate.dataset.writer import DatasetWriter, FileGroup, grouped
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files.database import database_files, database_lines
from slurm_worker.aggregate.files.sources import Source, unreadable
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.results import jsonlines

MANIFEST = "_manifest.json"
#: The first lines are read the slow way, from which the fast way learns the columns.
_FIRST_BYTES = 64 << 10
_BUFFER = 1 << 20
#: A number that is raised with every change of what is written for the same input.
_WRITER = f"loose 2 pyarrow-{pa.__version__}"
#: The names of the files that are written here, in their folders of partitions.
_OWN_FILE = re.compile(r"(?:[^/]+=[^/]*/)*part-[0-9a-f]{16}\.parquet")
_BOM = b"\xef\xbb\xbf"

#: Called with the bytes that were read, and the bytes that there are to read.
Progress = Callable[[int, int], None]
#: Whole lines, and the number of the first in its file.
Chunk = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class MergedFiles:
    """The dataset that was written; the names are those of the manifest."""

    files: tuple[DataFile, ...]
    schema: dict[str, str]
    sources: int  #: how many files it was made of
    inputs: str  #: digest of everything that went into it
    rows: int


def merge_files(
    sources: Sequence[Source],
    objects: ObjectStore,
    folder: str,
    options: AggregateOptions,
    scratch: Path,
    progress: Progress,
    chunk_bytes: int = 4 << 20,
) -> MergedFiles:
    """Merge files into a dataset.

    Its `folder` is a key prefix that ends in a slash, or empty. `scratch` is as for `aggregate`.
    About `chunk_bytes` of lines are read at a time.

    Raises:
        UserError: if the folder holds another dataset.
        AggregationError: naming the file, column or row that can't be read or does not fit.
    """
    passes = _Passes(sources, options, progress, chunk_bytes)
    inputs = json_sha256([_WRITER, passes.digests(), asdict(options)])
    published = objects.get(f"{folder}{MANIFEST}")
    if published is not None and _read_manifest(published).get("inputs") != inputs:
        raise _other_dataset(folder)
    schema = options.schema
    columns = passes.infer() if schema is None else parse_schema(schema, keyed=False)
    options.check(columns, keyed=False)
    path = scratch / "file.parquet"
    target = DatasetFolder(objects, folder, path, leftover=lambda name: f"{folder}{name}")
    files = passes.merge(columns, target, scratch)
    progress(1, 1)
    rows = sum(file.rows for file in files)
    dataset = MergedFiles(files, options.named(columns), len(sources), inputs, rows)
    _publish(objects, folder, dataset)
    return dataset


def _publish(objects: ObjectStore, folder: str, dataset: MergedFiles) -> None:
    """Put the manifest, unless another run has put one of other files meanwhile.

    Then the first one stays, and the files that only this run has written are removed. After
    the manifest is put, files that it does not list are removed: an interrupted run has left
    them, or one whose manifest was removed, and a reader of all files of the folder would take
    them for rows of this dataset.
    """
    key, body = f"{folder}{MANIFEST}", json.dumps(asdict(dataset), indent=1).encode()
    written = {file.key for file in dataset.files}
    present = {
        found for found in objects.list(folder) if _OWN_FILE.fullmatch(found.removeprefix(folder))
    }
    if not written <= present:
        raise AggregationError(
            f"aggregate: {min(written - present)} was written and is missing: another run writes "
            "to this folder, or its file system can't tell A from a; name another folder"
        )
    while not objects.put_new(key, body):
        published = objects.get(key)
        if published is None:
            continue
        found = _read_manifest(published)
        if found.get("inputs") == dataset.inputs:
            objects.put(key, body)
            break
        if found:
            objects.delete_many(sorted(written - {file["key"] for file in found["files"]}))
        raise _other_dataset(folder)
    objects.delete_many(sorted(present - written))


def _read_manifest(manifest: bytes) -> dict[str, Any]:
    """A dataset's manifest; empty where it is not one."""
    try:
        found = json.loads(manifest)
        return found if found.keys() >= {"inputs", "files"} else {}
    except (ValueError, AttributeError):
        return {}


def _other_dataset(folder: str) -> UserError:
    return UserError(
        f"--output: {folder or 'the folder'} holds a dataset of other files or options; name "
        "another folder, or remove that dataset"
    )


@dataclass(slots=True)
class _Passes:
    """The passes over the files; arguments as those of `merge_files`."""

    sources: Sequence[Source]
    options: AggregateOptions
    progress: Progress
    chunk_bytes: int
    bytes_read: int = 0
    digest_of: dict[str, str] = field(default_factory=dict)

    def digests(self) -> list[str]:
        """The SHA-256 of each file."""
        for source in self.sources:
            try:
                with source.open() as path:
                    self.digest_of[source.name] = _digest(source, path)
            except (OSError, ServiceError) as error:
                raise unreadable(source.name, error) from error
            self._add_progress(source)
        return list(self.digest_of.values())

    def infer(self) -> Schema:
        """The schema of all rows."""
        inference = Inference(keyed=False)
        for source in self.sources:
            for add in self._ahead(source, partial(_read_into, inference, source)):
                add(source.name)
        return inference.schema()

    def merge(self, columns: Schema, target: DatasetFolder, scratch: Path) -> tuple[DataFile, ...]:
        """Write the dataset's files."""
        options = self.options
        converter = Converter(columns, declared=options.schema is not None, keyed=False)

        def group_of(sources: Sequence[Source]) -> FileGroup:
            digests = [self.digest_of[source.name] for source in sources]
            return FileGroup(digests, partial(self._tables, sources, converter))

        groups = map(group_of, grouped(self.sources, (attrgetter("size"), options.file_size)))
        writer = DatasetWriter(_WRITER, converter, options)
        files = writer.write(groups, target, scratch, lambda _done, _rows: None)
        return tuple(file for file in files if file.rows)

    def _tables(self, group: Sequence[Source], converter: Converter) -> Iterator[pa.Table]:
        for source in group:
            yield from self._ahead(source, partial(_convert, source, converter))

    def _ahead(self, source: Source, make: Callable[[Chunk], Any]) -> Iterator[Any]:
        """What `make` makes of each chunk of lines, in order, a few of them ahead."""
        cpus = len(os.sched_getaffinity(0))
        with (
            closing(self._chunks(source)) as chunks,
            closing(prefetch(make, chunks, 2 * cpus, cpus)) as made,
        ):
            for _, result in made:
                yield result
        self._add_progress(source)

    def _chunks(self, source: Source) -> Generator[Chunk, None, None]:
        """The lines of a file, which must have the digest that it had before."""
        first = 1
        try:
            with source.open() as path:
                if source.is_database:
                    self._check(source, _digest(source, path))
                    read = database_lines(source.name, path)
                else:
                    read = self._file_lines(source, path)
                for lines in read:
                    yield lines, first
                    first += lines.count(b"\n")
        except (OSError, EOFError, zlib.error, sqlite3.Error, ServiceError) as error:
            raise unreadable(source.name, error) from error

    def _file_lines(self, source: Source, path: Path) -> Iterator[bytes]:
        if source.is_gzip and not path.stat().st_size:
            raise EOFError("it is empty, and an empty file is not a gzip file")
        with path.open("rb", buffering=0) as raw:
            digested = _Digested(raw)
            plain = io.BufferedReader(digested, _BUFFER)
            file = gzip.GzipFile(fileobj=plain) if source.is_gzip else plain
            yield from _line_blocks(file, self.chunk_bytes)
            while plain.read(_BUFFER):
                pass
            self._check(source, digested.digest.hexdigest())

    def _check(self, source: Source, digest: str) -> None:
        if digest != self.digest_of[source.name]:
            raise AggregationError(
                f"aggregate: {source.name} has changed while it was read; merge again when no "
                "program writes to it"
            )

    def _add_progress(self, source: Source) -> None:
        self.bytes_read += source.size
        passes = 2 if self.options.schema else 3
        self.progress(self.bytes_read, passes * sum(map(attrgetter("size"), self.sources)))


class _Digested(io.RawIOBase):
    """A file, and the digest of what was read of it."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        return count


def _digest(source: Source, path: Path) -> str:
    """The SHA-256 of a file, or of a database and what is beside it."""
    files = database_files(path) if source.is_database else [path]
    digests = [file_sha256(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    # Which of the files exist is part of it.
    return json_sha256([[file.name.removeprefix(path.name) for file in files], digests])


def _read_into(inference: Inference, source: Source, chunk: Chunk) -> Callable[[str], None]:
    lines, first = chunk
    return inference.read_lines(lines, None, partial(_parse, source, first))


def _convert(source: Source, converter: Converter, chunk: Chunk) -> pa.Table:
    lines, first = chunk
    table = converter.read(lines)
    if table is not None:
        return table
    rows = _parse(source, first, lines)
    if rows and not any(rows) and not converter.columns:
        raise AggregationError(
            f"aggregate: {source.name} has only empty objects, whose number Parquet can't store; "
            "leave this file out"
        )
    return converter.table(rows, source.name)


def _parse(source: Source, first: int, lines: bytes) -> list[dict[str, Any]]:
    """The rows of these lines, of which the first has this number in its file."""
    try:
        return jsonlines.parse(lines, first=first, exact=True)
    except ValueError as error:
        raise unreadable(source.name, error) from error


def _line_blocks(file: BinaryIO | gzip.GzipFile, chunk_bytes: int) -> Iterator[bytes]:
    """Whole lines, a few of them first, later about `chunk_bytes` at a time."""
    start, size = _BOM, _FIRST_BYTES
    while block := file.read(min(size, chunk_bytes)):
        size *= 2
        # A last line without a line end counts as a whole one, as for most tools.
        block += file.readline()
        block = block.removeprefix(start)
        start = b""
        if block.endswith(b"\r\n"):
            # Arrow's reader, which is the fast one, needs lines that end in `}`.
            block = block.replace(b"\r\n", b"\n")
        yield block if block.endswith(b"\n") else block + b"\n"
