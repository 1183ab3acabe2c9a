"""Arrow's reader is used only where its result is exactly what the lines say."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.types import parse_schema
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.results.parts import KEY_FIELD, lines_of, parse_lines

SCHEMA = {
    "i": "int64",
    "j": "int32",
    "u": "uint64",
    "d": "double",
    "s": "string",
    "b": "bool",
    "t": "timestamp",
    "c": "decimal(10, 2)",
    "l": "list<int64>",
    "o": "struct<a: double, b: list<string>>",
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**54), 2**54),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(
        ["1", "1.50", "2026-11-23T17:00:00Z", "2026-11-23", "true", "NaN", "\ud800", "\u0000"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "z"]), inner, max_size=3),
    ),
    max_leaves=5,
)


def converter(schema: dict[str, str]) -> Converter:
    return Converter(parse_schema(schema), declared=True)


def to_line(row: dict[str, Any], *, ascii_only: bool) -> bytes:
    text = json.dumps({KEY_FIELD: "k", **row}, ensure_ascii=ascii_only) + "\n"
    return text.encode(errors="backslashreplace")


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEMA)), st.lists(VALUES, min_size=1, max_size=4), st.booleans())
def test_arrow_reads_the_same_values_as_the_strict_converter(
    name: str, values: list[Any], ascii_only: bool
) -> None:
    chosen = converter({name: SCHEMA[name]})
    lines = b"".join(to_line({name: value}, ascii_only=ascii_only) for value in values)
    fast = chosen.read(lines)
    if fast is None:
        return
    slow = chosen.table(parse_lines(lines), "part")
    assert fast.schema.equals(slow.schema)
    assert fast.equals(slow)


@pytest.mark.parametrize(
    ("column_type", "value"),
    [
        ("int64", "1.0"),
        ("int64", "1e3"),
        ("int64", '"5"'),
        ("int64", "true"),
        ("int64", "9223372036854775808"),
        ("int32", "3000000000"),
        ("uint64", "-1"),
        ("double", '"1.5"'),
        ("double", "NaN"),
        ("double", "1e400"),
        ("double", "9007199254740993"),
        ("string", "1"),
        ("string", '"\\ud800"'),
        ("bool", "1"),
        ("decimal(5, 2)", '"12.555"'),
        ("timestamp", '"2026-11-23T17:00:00"'),
        ("list<int64>", "[1.5]"),
        ("struct<a: int64>", '{"a": 1, "b": 2}'),
    ],
)
def test_values_that_arrow_could_change_are_left_to_the_strict_converter(
    column_type: str, value: str
) -> None:
    assert converter({"x": column_type}).read(f'{{"_key": "a", "x": {value}}}\n'.encode()) is None


@pytest.mark.parametrize(
    "lines",
    [
        b'{"x": 1}\n',
        b'{"_key": "a", "y": 1}\n',
        b'{"_key": "a", "x": 1, "x": 2}\n',
        b'{"_key": "a", "x": 1}',
        b'{"_key": "a\xff", "x": 1}\n',
        b"[1]\n",
        b"{}}\n",
    ],
)
def test_lines_that_do_not_fit_the_schema_are_left_to_the_strict_converter(lines: bytes) -> None:
    assert converter({"x": "int64"}).read(lines) is None


@pytest.mark.parametrize("column_type", ["double", "list<double>", "struct<a: double>"])
def test_large_doubles_are_read_if_there_is_no_whole_number_among_them(column_type: str) -> None:
    value: Any = {"double": 1e300, "list<double>": [1e300], "struct<a: double>": {"a": 1e300}}[
        column_type
    ]
    lines = to_line({"x": value}, ascii_only=True)
    table = converter({"x": column_type}).read(lines)
    assert table is not None
    assert table.to_pylist() == [{"_key": "k", "x": value}]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity"])
def test_a_double_that_is_not_finite_is_refused(number: str) -> None:
    lines = f'{{"_key": "a", "x": {number}}}\n'.encode()
    with pytest.raises((AggregationError, ValueError)):
        converter({"x": "double"}).table(parse_lines(lines), "part")


def test_damaged_gzip_raises_the_errors_of_the_standard_library() -> None:
    good = gzip.compress(b"hello\n" * 100)
    for bad in (b"abc", good[:-9], good[:-4] + b"abcd", b"\x1f\x8b" + b"x" * 30):
        with pytest.raises((OSError, EOFError)):
            lines_of(bad, "part.jsonl.gz")
    assert lines_of(good, "part.jsonl.gz") == b"hello\n" * 100


def test_gzip_in_several_members_is_read_to_its_end() -> None:
    member = gzip.compress(b"hello\n" * 100)
    assert lines_of(member + member, "part.jsonl.gz") == b"hello\n" * 200
    with pytest.raises(OSError, match="gzip"):
        lines_of(member + b"more", "part.jsonl.gz")


@pytest.mark.parametrize("garbage", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize("value", [b'"s": "%s"', b'"l": ["a", "%s"]', b'"o": {"t": "%s"}'])
def test_text_that_is_not_utf8_is_left_to_the_strict_converter(
    garbage: bytes, value: bytes
) -> None:
    schema = converter({"s": "string", "l": "list<string>", "o": "struct<t: string>"})
    line = b'{"_key": "a", %s}\n'
    assert schema.read(line % (value % "São".encode())) is not None
    assert schema.read(line % (value % garbage)) is None
    assert schema.read(line % (value % b"a") + b'{"_key": "%s"}\n' % garbage) is None
