"""Any JSON lines or SQLite files to Parquet: without a job, its markers and its proof.

The same strict reading as of a job's parts. Files are read in chunks of lines, so that memory
does not grow with them, and named by what they are made of, so that a run that was cut short
is continued.

Reads each file twice, for its digest and for its rows; a third time where the schema is
inferred. Each time its digest must be the same: a file that is being written is refused.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.inference import Inference
from slurm_worker.aggregate.columns.types import Schema, parse_schema
from slurm_worker.aggregate.dataset.naming import file_name, renamed
from slurm_worker.aggregate.dataset.sorting import sort_files, write_merged
from slurm_worker.aggregate.dataset.version import DataFile, Version
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files.database import database_files, database_lines
from slurm_worker.aggregate.files.sources import Source
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.protocol.prefetch import ahead
from slurm_worker.results import jsonlines

MANIFEST = "_manifest.json"
_CHUNK_BYTES = 4 << 20
#: The first lines are read the slow way, by which the fast one learns what there is.
_FIRST_BYTES = 64 << 10
_BUFFER = 1 << 20
#: A number that is raised with every change of what is written for the same input.
_WRITER = f"loose 2 pyarrow-{pa.__version__}"
#: The names of the files that are written here, in their folders of partitions.
_OURS = re.compile(r"(?:[^/]+=[^/]*/)*part-[0-9a-f]{16}\.parquet")
_BOM = b"\xef\xbb\xbf"

#: Told of bytes that were read and bytes that there are to read.
Progress = Callable[[int, int], None]
Parse = Callable[[bytes], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Whole lines, and the number of the first."""

    lines: bytes
    first: int


@dataclass(frozen=True, slots=True)
class LooseDataset:
    """What was written."""

    files: tuple[DataFile, ...]
    schema: dict[str, str]
    sources: int
    inputs: str

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(each.rows for each in self.files)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "rows": self.rows, "files": [asdict(each) for each in self.files]}


def merge_files(
    sources: Sequence[Source],
    objects: ObjectStore,
    folder: str,
    options: AggregateOptions,
    scratch: Path,
    progress: Progress,
) -> LooseDataset:
    """Merge files into a dataset.

    Args:
        sources: the files.
        objects: where the dataset goes.
        folder: its key prefix there, ending in a slash, or empty.
        options: how it is laid out.
        scratch: a folder on local disk with room for one file of the dataset; where it is
            sorted or partitioned, for the dataset twice.
        progress: told of progress.

    Raises:
        UserError: if the folder holds another dataset, or a file can't be read as it is.
        AggregationError: naming column, row and file that do not fit.
    """
    work = _Work(sources, options, progress)
    inputs = _hash([_WRITER, work.digests(), asdict(options)])
    standing = objects.get(f"{folder}{MANIFEST}")
    if standing is not None and _read_manifest(standing).get("inputs") != inputs:
        raise _other_dataset(folder)
    columns = work.infer() if options.schema is None else parse_schema(options.schema, keyed=False)
    options.check(columns, keyed=False)
    version = Version(
        objects,
        folder,
        scratch / "file.parquet",
        lambda _line: None,
        left=lambda name: f"{folder}{name}",
    )
    files = work.merge(columns, version, scratch)
    progress(1, 1)
    names = options.names
    dataset = LooseDataset(
        tuple(files),
        {names.get(name, name): str(each) for name, each in columns.items()},
        len(sources),
        inputs,
    )
    _publish(objects, folder, dataset)
    return dataset


def _publish(objects: ObjectStore, folder: str, dataset: LooseDataset) -> None:
    """Put the manifest, unless another run has put one of other files meanwhile.

    Then the first one stands, and what this run has written beside it is removed. With the
    manifest go files that none lists: a run that was cut short has left them, or one whose
    manifest was removed, and who reads all files of the folder would take them for rows of
    this dataset.
    """
    key, body = f"{folder}{MANIFEST}", json.dumps(dataset.to_dict(), indent=1).encode()
    written = {each.key for each in dataset.files}
    ours = {each for each in objects.list(folder) if _OURS.fullmatch(each.removeprefix(folder))}
    if not written <= ours:
        raise AggregationError(
            f"aggregate: {min(written - ours)} was written and is not there: another run writes to "
            "this folder, or its file system does not tell A from a; name another folder"
        )
    while not objects.put_new(key, body):
        standing = objects.get(key)
        if standing is None:
            continue
        found = _read_manifest(standing)
        if found.get("inputs") == dataset.inputs:
            objects.put(key, body)
            break
        if found:
            objects.delete_many(sorted(written - {each["key"] for each in found["files"]}))
        raise _other_dataset(folder)
    objects.delete_many(sorted(ours - written))


def _read_manifest(manifest: bytes) -> dict[str, Any]:
    """A dataset's manifest; empty where it is none."""
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


class _Work:
    """The passes over the files."""

    def __init__(
        self, sources: Sequence[Source], options: AggregateOptions, progress: Progress
    ) -> None:
        self._sources = sources
        self._options = options
        self._progress = progress
        passes = 2 if options.schema else 3
        self._total = passes * sum(each.size for each in sources)
        self._done = 0
        self._digests: dict[str, str] = {}

    def digests(self) -> list[str]:
        """The SHA-256 of each file."""
        for each in self._sources:
            try:
                with each.open() as path:
                    self._digests[each.name] = _digest(each, path)
            except (OSError, ServiceError) as error:
                raise _unreadable(each.name, error) from error
            self._read(each)
        return list(self._digests.values())

    def infer(self) -> Schema:
        """The schema of all rows."""
        inference = Inference(keyed=False)
        for each in self._sources:

            def read(chunk: _Chunk, each: Source = each) -> Callable[[str], None]:
                return inference.read_lines(chunk.lines, None, _parser(each, chunk))

            for look in self._made(each, read):
                look(each.name)
            self._read(each)
        return inference.schema()

    def merge(self, columns: Schema, version: Version, scratch: Path) -> list[DataFile]:
        """Write the files."""
        options = self._options
        converter = Converter(columns, declared=options.schema is not None, keyed=False)
        schema = renamed(converter.arrow_schema, options)
        files: list[DataFile] = []
        merged: list[Path] = []
        for group in self._groups():
            tables = self._tables(group, converter, schema)
            if options.sorted:
                merged.append(scratch / f"merged-{len(merged):05}.parquet")
                write_merged(merged[-1], schema, tables, options.row_group_size)
                continue
            inputs = [self._digests[each.name] for each in group]
            name = file_name(_WRITER, converter.columns, options, inputs)
            found = version.find(name, None, schema)
            files.append(found or version.write(name, schema, tables, options.row_group_size))
        if merged:
            files = list(sort_files(merged, schema, options, version, scratch))
        return [each for each in files if each.rows]

    def _groups(self) -> Iterator[list[Source]]:
        group: list[Source] = []
        size = 0
        for each in self._sources:
            group.append(each)
            size += each.size
            if size >= self._options.file_size:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _tables(
        self, group: Sequence[Source], converter: Converter, schema: pa.Schema
    ) -> Iterator[pa.Table]:
        for each in group:

            def convert(chunk: _Chunk, each: Source = each) -> pa.Table:
                exact = converter.read(chunk.lines)
                if exact is None:
                    rows = _parser(each, chunk)(chunk.lines)
                    if rows and not any(rows) and not schema.names:
                        raise AggregationError(
                            f"aggregate: {each.name} has only empty objects, of which Parquet "
                            "can't keep the number; leave it out"
                        )
                    exact = converter.table(rows, each.name)
                return exact.rename_columns(schema.names)

            yield from self._made(each, convert)
            self._read(each)

    def _made(self, source: Source, make: Callable[[_Chunk], Any]) -> Iterator[Any]:
        """What `make` makes of each chunk of lines, in order, a few of them ahead."""
        cpus = len(os.sched_getaffinity(0))
        with (
            closing(self._chunks(source)) as chunks,
            closing(ahead(make, chunks, 2 * cpus, cpus)) as made,
        ):
            for _, each in made:
                yield each

    def _chunks(self, source: Source) -> Generator[_Chunk, None, None]:
        """The lines of a file, which must be what its digest was made of."""
        first = 1
        try:
            with source.open() as path:
                if source.is_database:
                    self._check(source, _digest(source, path))
                    read = database_lines(source.name, path)
                else:
                    read = self._file_lines(source, path)
                for lines in read:
                    yield _Chunk(lines, first)
                    first += lines.count(b"\n")
        except (OSError, EOFError, zlib.error, sqlite3.Error, ServiceError) as error:
            raise _unreadable(source.name, error) from error

    def _file_lines(self, source: Source, path: Path) -> Iterator[bytes]:
        if source.is_gzip and not path.stat().st_size:
            raise EOFError("it is empty, which gzip makes of no file")
        with path.open("rb", buffering=0) as raw:
            digested = _Digested(raw)
            plain = io.BufferedReader(digested, _BUFFER)
            yield from _line_blocks(gzip.GzipFile(fileobj=plain) if source.is_gzip else plain)
            while plain.read(_BUFFER):
                pass
            self._check(source, digested.digest.hexdigest())

    def _check(self, source: Source, digest: str) -> None:
        if digest != self._digests[source.name]:
            raise AggregationError(
                f"aggregate: {source.name} has changed while it was read; aggregate again when "
                "nothing writes to it"
            )

    def _read(self, source: Source) -> None:
        self._done += source.size
        self._progress(self._done, self._total)


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
    digests = [_digest_of(each) for each in files]
    if len(digests) == 1:
        return digests[0]
    # Which of the files are there is part of it.
    return _hash([[each.name.removeprefix(path.name) for each in files], digests])


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BUFFER):
            digest.update(block)
    return digest.hexdigest()


def _parser(source: Source, chunk: _Chunk) -> Parse:
    def parse(lines: bytes) -> list[dict[str, Any]]:
        try:
            return jsonlines.parse(lines, first=chunk.first, exact=True)
        except ValueError as error:
            raise _unreadable(source.name, error) from error

    return parse


def _line_blocks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Whole lines, a few of them first, later some megabytes at a time."""
    start, size = _BOM, _FIRST_BYTES
    while block := file.read(min(size, _CHUNK_BYTES)):
        size *= 2
        # A last line without its end counts as a whole one, as most tools have it.
        block += file.readline()
        block = block.removeprefix(start)
        start = b""
        if block.endswith(b"\r\n"):
            # Arrow's reader, which is the fast one, is given lines that end in `}`.
            block = block.replace(b"\r\n", b"\n")
        yield block if block.endswith(b"\n") else block + b"\n"


def _unreadable(name: str, error: Exception) -> AggregationError:
    reason = " ".join(str(error).split())[:200]
    return AggregationError(
        f"aggregate: {name} can't be read: {reason}; correct it, or leave it out"
    )


def _hash(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
