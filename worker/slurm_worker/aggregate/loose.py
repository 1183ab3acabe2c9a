"""Any JSON lines or SQLite files to Parquet: without a job, its markers and its proof.

The same strict reading as of a job's parts. Files are read in chunks of lines, so that memory
does not grow with them, and named by what they are made of, so that a run that was cut short
is continued.

Reads each file twice, for its digest and for its rows; a third time where the schema is
inferred.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from slurm_worker.aggregate.convert import Converter
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files import DataFile, Version, write_parquet
from slurm_worker.aggregate.infer import Inference
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.aggregate.sorting import sort_files
from slurm_worker.aggregate.types import Schema, parse_schema
from slurm_worker.ahead import ahead
from slurm_worker.errors import UserError
from slurm_worker.parts import parse_lines
from slurm_worker.ports import ObjectStore

MANIFEST = "_manifest.json"
LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
DATABASES = (".sqlite", ".sqlite3", ".db")
_CHUNK_BYTES = 4 << 20
_CHUNK_ROWS = 10_000
_WRITER = f"loose 1 pyarrow-{pa.__version__}"

#: Told of bytes that were read and bytes that there are to read.
Progress = Callable[[int, int], None]
Parse = Callable[[bytes], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Source:
    """One file, which `open` brings to local disk while it is read."""

    name: str
    size: int
    open: Callable[[], Any]


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


def local_sources(paths: Sequence[Path]) -> list[Source]:
    """The files at or below these paths that are of a known form, in order.

    Raises:
        UserError: if there is none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"PATH: there is no {path}; name files, or folders that hold them")
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [each for each in below if each.is_file() and is_known(each.name)]
    if not found:
        raise _nothing(", ".join(map(str, paths)))
    return [Source(str(each), each.stat().st_size, partial(_local, each)) for each in found]


def stored_sources(objects: ObjectStore, bucket: str, prefix: str, scratch: Path) -> list[Source]:
    """The objects under a prefix that are of a known form, in order.

    Raises:
        UserError: if there is none.
    """
    keys = [key for key in objects.list(prefix) if is_known(key)]
    if not keys:
        raise _nothing(f"s3://{bucket}/{prefix}")

    @contextmanager
    def fetched(key: str) -> Iterator[Path]:
        path = scratch / f"fetched-{quote(key, safe='')[-150:]}"
        objects.download(key, str(path))
        try:
            yield path
        finally:
            path.unlink()

    return [
        Source(f"s3://{bucket}/{key}", objects.size(key) or 0, partial(fetched, key))
        for key in keys
    ]


def is_known(name: str) -> bool:
    """Whether a file's name says that it holds JSON lines or an SQLite database."""
    return name.endswith((*LINES, *DATABASES))


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
    columns = work.infer() if options.schema is None else parse_schema(options.schema)
    options.check(columns)
    converter = Converter(columns, declared=options.schema is not None, keyed=False)
    names = options.names
    schema = pa.schema(
        [each.with_name(names.get(each.name, each.name)) for each in converter.arrow_schema]
    )
    version = Version(
        objects,
        folder,
        scratch / "file.parquet",
        lambda _line: None,
        left=lambda name: f"{folder}{name}",
    )
    files = work.merge(converter, schema, version, scratch)
    progress(1, 1)
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

    Then the first one stands, and what this run has written beside it is removed.
    """
    key, body = f"{folder}{MANIFEST}", json.dumps(dataset.to_dict(), indent=1).encode()
    while not objects.put_new(key, body):
        standing = objects.get(key)
        if standing is None:
            continue
        found = _read_manifest(standing)
        if found.get("inputs") == dataset.inputs:
            objects.put(key, body)
            return
        if found:
            named = {each["key"] for each in found["files"]}
            objects.delete_many(each.key for each in dataset.files if each.key not in named)
        raise _other_dataset(folder)


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
            digest = hashlib.sha256()
            try:
                with each.open() as path, path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise _unreadable(each.name, error) from error
            self._digests[each.name] = digest.hexdigest()
            self._read(each)
        return list(self._digests.values())

    def infer(self) -> Schema:
        """The schema of all rows."""
        inference = Inference(keyed=False)
        for each in self._sources:
            parse = _parser(each)

            def read(lines: bytes, parse: Parse = parse) -> Callable[[str], None]:
                return inference.read_lines(lines, None, parse)

            for look in self._made(each, read):
                look(each.name)
            self._read(each)
        return inference.schema()

    def merge(
        self, converter: Converter, schema: pa.Schema, version: Version, scratch: Path
    ) -> list[DataFile]:
        """Write the files."""
        files: list[DataFile] = []
        merged: list[Path] = []
        size = self._options.row_group_size
        for group in self._groups():
            tables = self._tables(group, converter, schema)
            if self._options.sorted:
                merged.append(scratch / f"merged-{len(merged):05}.parquet")
                write_parquet(merged[-1], schema, tables, size)
                continue
            inputs = [self._digests[each.name] for each in group]
            name = f"part-{_hash([_WRITER, str(schema), size, inputs])[:16]}.parquet"
            files.append(
                version.find(name, None, schema) or version.write(name, schema, tables, size)
            )
        if merged:
            files = list(sort_files(merged, schema, self._options, version, scratch))
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

            def convert(lines: bytes, each: Source = each) -> pa.Table:
                exact = converter.read(lines)
                if exact is None:
                    exact = converter.table(_parser(each)(lines), each.name)
                return exact.rename_columns(schema.names)

            yield from self._made(each, convert)
            self._read(each)

    def _made(self, source: Source, make: Callable[[bytes], Any]) -> Iterator[Any]:
        """What `make` makes of each chunk of lines, in order, a few of them ahead."""
        cpus = len(os.sched_getaffinity(0))
        with source.open() as path:
            chunks = _chunks(source.name, path)
            with closing(ahead(make, chunks, 2 * cpus, cpus)) as made:
                for _, each in made:
                    yield each

    def _read(self, source: Source) -> None:
        self._done += source.size
        self._progress(self._done, self._total)


def _parser(source: Source) -> Parse:
    def parse(lines: bytes) -> list[dict[str, Any]]:
        try:
            return parse_lines(lines, keyed=False)
        except (ValueError, RecursionError) as error:
            raise _unreadable(source.name, error) from error

    return parse


def _chunks(name: str, path: Path) -> Iterator[bytes]:
    """Whole lines, some megabytes of them at a time."""
    try:
        if name.endswith(DATABASES):
            yield from _database_chunks(name, path)
            return
        with path.open("rb") as plain:
            file = gzip.GzipFile(fileobj=plain) if name.endswith(".gz") else plain
            while block := file.read(_CHUNK_BYTES):
                # A last line without its end counts as a whole one, as most tools have it.
                block += file.readline()
                yield block if block.endswith(b"\n") else block + b"\n"
    except (OSError, EOFError, zlib.error, sqlite3.Error) as error:
        raise _unreadable(name, error) from error


def _database_chunks(name: str, path: Path) -> Iterator[bytes]:
    if path.with_name(f"{path.name}-wal").exists():
        raise AggregationError(
            f"aggregate: {name} has changes in a -wal file beside it; let its writer close it, or "
            "run sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'"
        )
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        if len(tables) != 1:
            raise AggregationError(
                f"aggregate: {name} has the tables {', '.join(tables) or '(none)'}; one is expected"
            )
        quoted = tables[0].replace('"', '""')
        rows = db.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608  the name is quoted
        names = [each[0] for each in rows.description]
        while found := rows.fetchmany(_CHUNK_ROWS):
            if names == ["number", "key", "line"]:  # a worker's part
                yield "".join(f"{line}\n" for _, _, line in found).encode()
            else:
                yield b"".join(_line(name, dict(zip(names, row, strict=True))) for row in found)


def _line(name: str, row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise AggregationError(
            f"aggregate: {name} has a row that JSON can't hold ({error}); store BLOBs as base64"
        ) from error


@contextmanager
def _local(path: Path) -> Iterator[Path]:
    yield path


def _unreadable(name: str, error: Exception) -> AggregationError:
    reason = " ".join(str(error).split())[:200]
    return AggregationError(f"aggregate: {name} can't be read: {reason}; mend it, or leave it out")


def _nothing(where: str) -> UserError:
    return UserError(f"PATH: {where} has no file that ends in {', '.join((*LINES, *DATABASES))}")


def _hash(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
