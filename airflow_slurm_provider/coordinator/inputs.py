"""The input file as a stream of (key, item): Parquet, CSV and JSON lines, local or on S3.

Nothing is changed silently. What an item holds is what the file holds, except for what
JSON can't say, by these rules:

    CSV       every value is the string that stands there; an empty field is None
    JSONL     as it stands; NaN, infinity and a name that stands twice are refused
    Parquet   see `parquet_input.py`: dates as ISO text, decimals as text, NaN as None

CSV and JSONL may be gzipped, which their first bytes tell. An object on S3 is first
downloaded to a temporary file (set TMPDIR to choose where), so that one version of it is
read from beginning to end. Memory does not grow with the number of items.

Rows are counted from 1, without a header and without blank lines.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeAlias

from slurm_worker.errors import UserError
from slurm_worker.keys import split_s3_uri
from slurm_worker.ports import ObjectStore

Item: TypeAlias = dict[str, Any]

MAX_KEY_BYTES = 1024
_LISTED = 20
_MOST_HASHED_BYTES = 64 * 1024 * 1024
#: What reading a file raises where the file is at fault.
_UNREADABLE = (
    OSError,
    ValueError,
    OverflowError,
    RecursionError,
    csv.Error,
    zlib.error,
)


class InputFormat(str, Enum):
    """The formats of an input file."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Where the items are.

    Args:
        path: a local file, or ``s3://bucket/key``.
        key: the column that names each item; its values are strings or integers.
        format: an `InputFormat`; told from the path's suffix where None.
    """

    path: str
    key: str
    format: str | None = None


def open_input(spec: InputSpec, bucket: Callable[[str], ObjectStore]) -> Iterator[tuple[str, Item]]:
    """Stream the (key, item) pairs in the order of the file.

    Args:
        spec: where the items are.
        bucket: opens a bucket by its name.

    Raises:
        UserError: in one line, naming the file, the row and the mend; for the format at
            once, for the rest as the rows are read.
    """
    return _items(spec, input_format(spec), bucket)


def input_format(spec: InputSpec) -> InputFormat:
    """The input's format: the one that is named, or by the path's suffix."""
    known = ", ".join(each.value for each in InputFormat)
    if spec.format is not None:
        name = spec.format.lower().removesuffix(".gz")
        if name not in [each.value for each in InputFormat]:
            raise UserError(f"input.format: {spec.format!r} is not a format; use {known}")
        return InputFormat(name)
    path = spec.path.lower().removesuffix(".gz")
    for each in InputFormat:
        if path.endswith(f".{each.value}"):
            return each
    raise UserError(
        f"input.path: the suffix of {spec.path} tells no format; set input.format: {known}"
    )


def version_of(spec: InputSpec, bucket: Callable[[str], ObjectStore]) -> str:
    """What tells that the input was written anew; empty if it isn't there.

    A digest of a small file, since copies of it differ in their times; else size and time. On S3
    a list request.
    """
    if not spec.path.startswith("s3://"):
        try:
            path = Path(spec.path)
            found = path.stat()
            if found.st_size <= _MOST_HASHED_BYTES:
                return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError:
            return ""
        return f"{found.st_size} {found.st_mtime:.0f}"
    name, key = split_s3_uri(spec.path, "input.path")
    try:
        entry = next(iter(bucket(name).entries(key)), None)
    except UserError:
        return ""  # a bucket that isn't there is told by who reads it
    return f"{entry.size} {entry.modified:.0f}" if entry and entry.key == key else ""


def _items(
    spec: InputSpec, form: InputFormat, bucket: Callable[[str], ObjectStore]
) -> Iterator[tuple[str, Item]]:
    with (
        tempfile.TemporaryDirectory(prefix="airflow-slurm-input-") as folder,
        closing(_numbered(spec, _READERS[form](_find(spec, bucket, Path(folder))))) as rows,
    ):
        number = 0
        for number, item in rows:
            if spec.key not in item:
                raise _no_column(spec, number, item)
            yield _key_of(item[spec.key], spec, number), item
        if not number:
            raise UserError(f"input.path: {spec.path} holds no rows; give it at least one item")


def _numbered(spec: InputSpec, rows: Iterator[Item]) -> Generator[tuple[int, Item], None, None]:
    """Count the rows, and say in which of them reading failed."""
    number = 0
    try:
        for row in rows:
            number += 1
            yield number, row
    except EOFError as error:
        raise UserError(
            f"input.path: {spec.path}: the file ends too early, after row {number}; copy it again"
        ) from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"input.path: {spec.path}: row {number + 1}: {reason}; correct the file or input.format"
        ) from error


def _find(spec: InputSpec, bucket: Callable[[str], ObjectStore], folder: Path) -> Path:
    """The input as a local file."""
    if not spec.path.startswith("s3://"):
        path = Path(spec.path)
        if path.is_file():
            return path
        if path.is_dir():
            raise UserError(f"input.path: {spec.path} is a folder; name one file in it")
        near = [str(each) for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"input.path: there is no file {spec.path}; {_hint(spec.path, near)}")
    name, key = split_s3_uri(spec.path, "input.path")
    objects = bucket(name)
    if not _is_there(spec, objects, name, key):
        raise _no_object(spec, objects, name, key)
    path = folder / "input"
    objects.download(key, str(path))
    return path


def _is_there(spec: InputSpec, objects: ObjectStore, name: str, key: str) -> bool:
    try:
        if key and objects.size(key) is not None:
            return True
        # Some stores answer the same for a missing object and a missing bucket.
        objects.verify()
    except UserError as error:
        raise UserError(
            f"input.path: {spec.path}: there is no bucket {name!r}, or no access to it; "
            "correct the path or the credentials"
        ) from error
    return False


def _no_object(spec: InputSpec, objects: ObjectStore, name: str, key: str) -> UserError:
    parent = key.rpartition("/")[0]
    listed = islice(objects.list(f"{parent}/" if parent else ""), 1000)
    near = [f"s3://{name}/{each}" for each in listed]
    return UserError(f"input.path: there is no object {spec.path}; {_hint(spec.path, near)}")


def _hint(wanted: str, near: Iterable[str]) -> str:
    found = difflib.get_close_matches(wanted, list(near), 1, cutoff=0.8)
    return f"did you mean {found[0]}?" if found else "correct the path"


def _no_column(spec: InputSpec, number: int, item: Item) -> UserError:
    names = list(item)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    near = difflib.get_close_matches(spec.key, names, 1)
    mend = f"did you mean {near[0]!r}?" if near else "name one of them"
    return UserError(
        f"input.key: {spec.path}: row {number} has no column {spec.key!r}; "
        f"it has {', '.join(names[:_LISTED]) or 'none'}{more}; {mend}"
    )


def _key_of(value: object, spec: InputSpec, number: int) -> str:
    where = f"input.key: {spec.path}: row {number}: {spec.key!r}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise UserError(f"{where} is empty; give each row a key of its own")
    if not isinstance(value, str):
        raise UserError(
            f"{where} is {str(value)[:60]} ({type(value).__name__}); keys are strings or integers, "
            "convert the column or choose another"
        )
    size = len(value.encode())
    if size > MAX_KEY_BYTES:
        raise UserError(
            f"{where} is {size:,} bytes long, from {value[:40]!r}; "
            f"use keys of at most {MAX_KEY_BYTES:,} bytes"
        )
    return value


def decode_json(text: str) -> Any:
    """A JSON document; refuses what could not be written again as it stands.

    Raises:
        ValueError: if it is none, names a field twice, or holds NaN or infinity.
    """
    return _DECODER.decode(text)


# --- readers: a local file to rows; a ValueError is told with the row's number -------


def read_parquet(path: Path) -> Iterator[Item]:
    """Rows of a Parquet file; see `parquet_input.py`."""
    # pyarrow takes a third of a second to import, for which no other format should wait.
    from airflow_slurm_provider.coordinator.parquet_input import read_parquet as read

    yield from read(path)


def read_csv(path: Path) -> Iterator[Item]:
    """Rows of a CSV file in UTF-8 with a header; values stay strings, an empty one is None."""
    with _text(path, newline="") as text:
        reader = csv.reader(text, strict=True)
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValueError(f"the header names {twice[0]!r} twice")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise ValueError(
                    f"(line {reader.line_num}) has {len(values)} fields where the header has "
                    f"{len(header)}"
                )
            yield {name: value or None for name, value in zip(header, values, strict=True)}


def read_jsonl(path: Path) -> Iterator[Item]:
    """Rows of a file with one JSON object a line."""
    with _text(path, newline="\n") as text:
        for line in text:
            if line.isspace():
                continue
            try:
                row = decode_json(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(row, dict):
                raise ValueError(f"is a JSON {type(row).__name__}, not an object")
            # A lone surrogate ("\ud800") is text to Python and to no one else.
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()
            yield row


_READERS: dict[InputFormat, Callable[[Path], Iterator[Item]]] = {
    InputFormat.PARQUET: read_parquet,
    InputFormat.CSV: read_csv,
    InputFormat.JSONL: read_jsonl,
}


@contextmanager
def _text(path: Path, newline: str) -> Iterator[TextIO]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain: BinaryIO = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]  # reads like one
        with io.TextIOWrapper(plain, encoding="utf-8-sig", newline=newline) as text:
            yield text


def _no_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON; write null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text}, which is beyond a 64-bit float; write it as a string")
    return value


def _once(pairs: list[tuple[str, Any]]) -> Item:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"names {twice[0]!r} twice")
    return row


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once
)
