"""The input as a stream of (key, item): Parquet, CSV and JSON lines, local or on S3.

Nothing is changed silently. An item holds the values of the file. Values that JSON does not have
follow these rules:

    CSV       each value is the string in the file; an empty field is None. The delimiter is the
              first of comma, tab, semicolon and bar with which the header has the key column
    JSONL     unchanged; NaN, infinity, a number that a double can't hold exactly, half of a
              surrogate pair and a duplicate name are refused
    Parquet   see `parquet.py`: dates as ISO text, decimals as text, NaN as None

CSV and JSONL may be gzipped; the first bytes show it. The files of a folder are read one after
another. An object on S3 is first downloaded to a temporary file (set TMPDIR to choose its folder),
so that one version of it is read from beginning to end. Memory does not grow with the number of
items. Rows are counted from 1 in each file, without a header and without blank lines.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import tempfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from airflow_slurm_provider.coordinator.inputs.files import Bucket, InputFile, find_files
from airflow_slurm_provider.coordinator.spec.job_spec import InputSection
from slurm_worker.errors import UserError
from slurm_worker.results import jsonlines

Item: TypeAlias = dict[str, Any]

_MAX_KEY_BYTES = 1024
_LISTED = 20
#: A quote that is never closed makes the rest of the file one field; this bounds the memory.
_MOST_FIELD_BYTES = 1 << 30
#: Errors of reading that the file has caused.
_UNREADABLE = (OSError, ValueError, OverflowError, RecursionError, csv.Error, zlib.error)


class InputFormat(str, Enum):
    """The formats of an input file."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


_BY_NAME = {form.value: form for form in InputFormat}
_BY_SUFFIX = {**_BY_NAME, "tsv": InputFormat.CSV, "ndjson": InputFormat.JSONL}
_FORMATS = ", ".join(_BY_NAME)
_DELIMITERS = ",\t;|"


def open_input(spec: InputSection, bucket: Bucket) -> Iterator[tuple[str, Item]]:
    """Stream the (key, item) pairs in the order of the files.

    Raises:
        UserError: naming the file and the row; at once for the format, else during reading.
    """
    input_format(spec)
    return _items(spec, bucket)


def find_input(spec: InputSection, bucket: Bucket) -> tuple[InputFormat, list[InputFile]]:
    """The input's format, and its files in the order in which they are read.

    Raises:
        UserError: if there is no file, or if a file has an unknown or another format.
    """
    form = input_format(spec)
    files = find_files(spec.path, bucket)
    for file in files if spec.format is None else ():
        found = _by_suffix(file.name)
        if found is None and len(file.parts) == len(files) == 1:
            raise _no_format(file.name)
        form = form or found
        if found is not form or form is None:
            kind = form.value if form else "data"
            raise UserError(
                f"input.path: {spec.path} contains {file.name}, which is not a {kind} file; "
                "move it out of the folder, or set input.format"
            )
    assert form is not None, "there is at least one file"
    return form, files


def input_format(spec: InputSection) -> InputFormat | None:
    """The format by `input.format` or the path's suffix; None if the files' suffixes decide."""
    if spec.format is not None:
        found = _BY_NAME.get(spec.format.lower().removesuffix(".gz"))
        if found is None:
            raise UserError(f"input.format: {spec.format!r} is not a format; use {_FORMATS}")
        return found
    found = _by_suffix(spec.path)
    if found is None and Path(spec.path.rstrip("/")).suffix and not Path(spec.path).is_dir():
        raise _no_format(spec.path)
    return found


def _by_suffix(path: str) -> InputFormat | None:
    return _BY_SUFFIX.get(Path(path.lower().removesuffix(".gz")).suffix[1:])


def _no_format(path: str) -> UserError:
    return UserError(
        f"input.path: the suffix of {path} is not a known format; set input.format to one of "
        f"{_FORMATS}"
    )


def _items(spec: InputSection, bucket: Bucket) -> Iterator[tuple[str, Item]]:
    form, files = find_input(spec, bucket)
    empty = True
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-input-") as folder:
        for file in files:
            rows = _rows(form, file.local(Path(folder)), spec.key)
            with closing(_numbered(file, _with_fields(file, rows))) as numbered:
                for number, item in numbered:
                    empty = False
                    if spec.key not in item:
                        raise _no_column(spec, file, number, item)
                    yield _key_of(item[spec.key], spec, file, number), item
    if empty:
        raise UserError(f"input.path: {spec.path} has no rows; add at least one")


def _with_fields(file: InputFile, rows: Iterator[Item]) -> Iterator[Item]:
    for row in rows:
        for name, value in file.fields.items():
            if row.setdefault(name, value) != value:
                raise ValueError(f"has {name} = {row[name]!r}, but its folder has {value!r}")
        yield row


def _numbered(file: InputFile, rows: Iterator[Item]) -> Generator[tuple[int, Item], None, None]:
    """Count the rows, and name the row in which reading failed."""
    number = 0
    try:
        for row in rows:
            number += 1
            yield number, row
    except EOFError as error:
        raise UserError(
            f"input.path: {file.name}: the file ends too early, after row {number}; copy it again"
        ) from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"input.path: {file.name}: row {number + 1}: {reason}; correct the file or input.format"
        ) from error


def _no_column(spec: InputSection, file: InputFile, number: int, item: Item) -> UserError:
    names = list(item)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    near = difflib.get_close_matches(spec.key, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else "name one of them"
    return UserError(
        f"input.key: {file.name}: row {number} has no column {spec.key!r}; "
        f"it has {', '.join(names[:_LISTED]) or 'none'}{more}; {hint}"
    )


def _key_of(value: object, spec: InputSection, file: InputFile, number: int) -> str:
    where = f"input.key: {file.name}: row {number}: {spec.key!r}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise UserError(f"{where} is empty; each row needs a key of its own")
    if not isinstance(value, str):
        raise UserError(
            f"{where} is {str(value)[:60]} ({type(value).__name__}); keys must be strings or "
            "integers: convert the column, or choose another"
        )
    if (size := len(value.encode())) > _MAX_KEY_BYTES:
        raise UserError(
            f"{where} is {size:,} bytes long, from {value[:40]!r}; "
            f"use keys of at most {_MAX_KEY_BYTES:,} bytes"
        )
    return value


# --- readers: from a local file to rows; a ValueError is reported with the row's number ---


def _rows(form: InputFormat, path: Path, key: str) -> Iterator[Item]:
    if form is not InputFormat.PARQUET:
        return _csv_rows(path, key) if form is InputFormat.CSV else _jsonl_rows(path)
    # pyarrow takes a third of a second to import; the other formats don't need it.
    from airflow_slurm_provider.coordinator.inputs.parquet import read_parquet

    return read_parquet(path)


def _csv_rows(path: Path, key: str) -> Iterator[Item]:
    """Rows of a CSV file in UTF-8; its header has the column `key`, which shows the delimiter."""
    csv.field_size_limit(_MOST_FIELD_BYTES)
    delimiter = next((mark for mark in _DELIMITERS if key in _header(path, mark)), ",")
    with _lines(path, newline="") as lines:
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        rows = (values for values in reader if values)
        header = next(rows, [])
        if duplicates := [name for name, count in Counter(header).items() if count > 1]:
            raise ValueError(f"the header has the column {duplicates[0]!r} twice")
        for values in rows:
            if len(values) != len(header):
                sizes = f"{len(values)} fields, but the header has {len(header)}"
                raise ValueError(f"(line {reader.line_num}) has {sizes}")
            yield {name: value or None for name, value in zip(header, values, strict=True)}


def _header(path: Path, delimiter: str) -> list[str]:
    with _lines(path, newline="") as lines:
        try:
            return next(filter(None, csv.reader(lines, strict=True, delimiter=delimiter)), [])
        except csv.Error:
            return []  # with another delimiter it may be valid


def _jsonl_rows(path: Path) -> Iterator[Item]:
    with _lines(path, newline="\n") as lines:
        for line in lines:
            if not line.isspace():
                yield jsonlines.decode_row(line)


@contextmanager
def _lines(path: Path, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a text file in UTF-8, which may be gzipped."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain: BinaryIO = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]  # reads like one
        # Wrong bytes become surrogates: a strict decoder would report the first row of its block.
        with io.TextIOWrapper(plain, "utf-8-sig", "surrogateescape", newline) as text:
            yield (line if line.isascii() else _utf8(line) for line in text)


def _utf8(line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        wrong = ord(line[error.start]) - 0xDC00
        raise ValueError(
            f"is not UTF-8: can't decode byte 0x{wrong:02x} "
            f"(character {error.start + 1} of its line)"
        ) from None
    return line
