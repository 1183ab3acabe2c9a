"""Rows of CSV and JSON files on this machine, compressed or not. A ValueError says what is wrong.

    CSV       each value is the string in the file; an empty field is None. The delimiter is the
              first of comma, tab, semicolon and bar with which the header has the key column
    JSON      unchanged; NaN, infinity, a number that a double can't hold exactly, half of a
              surrogate pair and a duplicate name are refused

The first bytes show a compression: gzip, zstd, bzip2 or xz. Memory holds one row, and at least a
megabyte of a JSON array.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeAlias, cast

from airflow_slurm_provider.coordinator.spec.input_section import CsvSection
from slurm_worker.results import jsonlines

Item: TypeAlias = dict[str, Any]

#: A quote that is never closed makes the rest of the file one field; this bounds the memory.
_MOST_FIELD_BYTES = 1 << 30
_CHUNK = 1 << 20
#: Of a sample, as much is decompressed, in such steps.
_MOST_SAMPLED = 64 << 20
_SAMPLED = 16 << 10
_DELIMITERS = ",\t;|"
_UTF8 = "utf-8"
#: The longest text that a literal of JSON may be cut within: half of a surrogate pair's escape.
_LITERAL = 16


# --- CSV ----------------------------------------------------------------------------


def csv_header(path: Path, dialect: CsvSection, keys: tuple[str, ...]) -> tuple[str, list[str]]:
    """The delimiter of a CSV file, and the names of its columns.

    Its header has the columns `keys`, which shows the delimiter.
    """
    csv.field_size_limit(_MOST_FIELD_BYTES)
    marks = dialect.delimiter or _DELIMITERS
    headers = {mark: _first_row(path, dialect, mark) for mark in marks}

    def fits(mark: str) -> bool:
        names = headers[mark]
        return all(key in names for key in keys) if keys else len(names) > 1

    if dialect.header:
        mark = next((mark for mark in marks if len(headers[mark]) == len(dialect.header)), marks[0])
        return mark, list(dialect.header)
    mark = next((mark for mark in marks if fits(mark)), marks[0])
    header = headers[mark]
    if duplicates := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"the header has the column {duplicates[0]!r} twice")
    return mark, header


def csv_rows(path: Path, dialect: CsvSection, delimiter: str, header: list[str]) -> Iterator[Item]:
    """The rows of a CSV file, by what `csv_header` has found."""
    nulls = frozenset(dialect.null_values)
    with _lines(path, newline="", encoding=dialect.encoding) as lines:
        reader = _reader(lines, dialect, delimiter)
        rows = (values for values in reader if values)
        if not dialect.header:
            next(rows, None)
        for values in rows:
            if len(values) != len(header):
                sizes = f"{len(values)} fields, but the header has {len(header)}"
                raise ValueError(f"(line {reader.line_num}) has {sizes}")
            yield {
                name: None if value in nulls else value
                for name, value in zip(header, values, strict=True)
            }


def _first_row(path: Path, dialect: CsvSection, delimiter: str) -> list[str]:
    with _lines(path, newline="", encoding=dialect.encoding) as lines:
        try:
            return next(filter(None, _reader(lines, dialect, delimiter)), [])
        except csv.Error:
            return []  # with another delimiter it may be valid


def _reader(lines: Iterator[str], dialect: CsvSection, delimiter: str) -> Any:
    if not dialect.quote:
        return csv.reader(lines, strict=True, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, strict=True, delimiter=delimiter, quotechar=dialect.quote)


# --- JSON ---------------------------------------------------------------------------


def jsonl_rows(path: Path) -> Iterator[Item]:
    """The objects of a file with one on each line."""
    with _lines(path, newline="\n") as lines:
        for line in lines:
            if not line.isspace():
                yield jsonlines.decode_row(line)


def json_rows(path: Path) -> Iterator[Item]:
    """The objects of a JSON array, or objects one after another."""
    with _text(path, newline="\n") as text:
        values = _Values(text)
        is_array = values.take("[")
        count = 0
        while True:
            if values.next_character() == ("]" if is_array else ""):
                break
            if is_array and count and not values.take(","):
                raise ValueError("is not JSON: there is no comma before it")
            yield jsonlines.decode_row(_decoded(values.value()))
            count += 1
        if is_array and (not values.take("]") or values.next_character()):
            raise ValueError("is not JSON: there is text behind the array")


class _Values:
    """The text of a file, value by value."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next character that is not a space, which stays; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def take(self, mark: str) -> bool:
        """Pass over the next character, if it is this one."""
        found = self.next_character() == mark
        self._at += found
        return found

    def value(self) -> str:
        """The text of the next value."""
        if not self.next_character():
            raise ValueError("is not JSON: the array has no end")
        while True:
            try:
                end = self._decoder.raw_decode(self._buffer, self._at)[1]
            except json.JSONDecodeError as error:
                left = len(self._buffer) - error.pos
                is_cut = left < _LITERAL or error.msg.startswith("Unterminated string")
                if is_cut and len(self._buffer) < _MOST_FIELD_BYTES and self._read_more():
                    continue
                raise ValueError(f"is not JSON: {error.msg}") from error
            found, self._at = self._buffer[self._at : end], end
            return found

    def _read_more(self) -> bool:
        # As much as there is, so that a long value is not decoded many times.
        chunk = self._text.read(max(_CHUNK, len(self._buffer) - self._at))
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)


def count_rows(sample: bytes, *, are_lines: bool) -> int:
    """About how many rows there are in the first bytes of a file, which may be compressed."""
    plain, text = _plain(io.BytesIO(sample)), b""
    with suppress(EOFError, OSError, zlib.error, lzma.LZMAError):  # the rest is missing
        while len(text) < _MOST_SAMPLED and (chunk := plain.read(_SAMPLED)):
            text += chunk
    if are_lines:
        return text.count(b"\n") + (not text.endswith(b"\n")) if text else 0
    values = _Values(io.StringIO(text.decode(errors="replace")))
    values.take("[")
    rows = 0
    with suppress(ValueError, RecursionError):
        while values.next_character() not in ("", "]"):
            values.value()
            values.take(",")
            rows += 1
    return rows


# --- text ---------------------------------------------------------------------------


@contextmanager
def _lines(path: Path, newline: str, encoding: str = _UTF8) -> Iterator[Iterator[str]]:
    with _text(path, newline, encoding) as text:
        yield (line if line.isascii() else _decoded(line, encoding) for line in text)


@contextmanager
def _text(path: Path, newline: str, encoding: str = _UTF8) -> Iterator[TextIO]:
    """The text of a file, which may be compressed."""
    is_utf8 = encoding.lower().replace("_", "-") in (_UTF8, "utf8")
    with path.open("rb") as raw:
        plain = _plain(raw)
        # Wrong bytes become surrogates: a strict decoder would report the first row of its block.
        with io.TextIOWrapper(
            plain, "utf-8-sig" if is_utf8 else encoding, "surrogateescape", newline
        ) as text:
            yield text


def _plain(raw: BinaryIO) -> BinaryIO:
    start = raw.read(max(map(len, _COMPRESSIONS)))
    raw.seek(0)
    opened = next((of for mark, of in _COMPRESSIONS.items() if start.startswith(mark)), None)
    return raw if opened is None else cast("BinaryIO", opened(raw))


def _zstd(raw: BinaryIO) -> object:
    # pyarrow takes a third of a second to import; nothing else here needs it.
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(cast("io.IOBase", raw), mode="r"), "zstd")


#: How a compressed file begins, and what reads it.
_COMPRESSIONS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _decoded(line: str, encoding: str = _UTF8) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        wrong = ord(line[error.start]) - 0xDC00
        name = "UTF-8" if encoding == _UTF8 else encoding
        raise ValueError(
            f"is not {name}: can't decode byte 0x{wrong:02x} "
            f"(character {error.start + 1} of its line)"
        ) from None
    return line
