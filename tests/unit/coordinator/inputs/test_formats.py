"""Dialects of CSV, JSON arrays, Arrow files and compressions: the file's value, or one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.inputs.text import json_rows
from tests.unit.coordinator.inputs.reading import keys, open_, read, refusal


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
def test_compressed_files_are_read(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    text = b"id\n" + b"".join(b"%d\n" % number for number in range(10_000))
    path = tmp_path / f"a.csv.{suffix}"
    path.write_bytes(compress(text))
    assert len(keys(path=str(path), key="id")) == 10_000
    path.write_bytes(compress(text)[:-20])
    message = refusal(lambda: read(path=str(path), key="id"))
    assert "ends too early" in message or "Truncated" in message


def test_a_csv_file_is_read_by_its_dialect(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("1^'é^x'^NA\n2^^-\n".encode("latin-1"))
    dialect: dict[str, Any] = {
        "delimiter": "^",
        "quote": "'",
        "encoding": "latin-1",
        "null_values": ["NA", "-"],
        "header": ["id", "name", "n"],
    }
    assert read(path=str(path), key="id", csv=dialect) == [
        ("1", {"id": "1", "name": "é^x", "n": None}),
        ("2", {"id": "2", "name": "", "n": None}),
    ]


def test_quotes_are_text_where_no_field_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,x\n1,"a\n2,b"c"\n')
    found = read(path=str(tmp_path / "a.csv"), key="id", csv={"quote": ""})
    assert [item["x"] for _, item in found] == ['"a', 'b"c"']


def test_a_csv_file_of_another_encoding_is_refused_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{number},x" for number in range(1, 200)]
    rows[90] = "91,café"
    path.write_bytes("\n".join(["id,x", *rows]).encode("latin-1"))
    message = refusal(lambda: read(path=str(path), key="id"))
    assert f"{path}: row 91: is not UTF-8" in message
    assert "correct the file or input.csv" in message
    found = dict(read(path=str(path), key="id", csv={"encoding": "latin-1"}))
    assert found["91"]["x"] == "café"


def test_a_json_array_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [{"id": number, "text": 'a]},"\\ é' * number} for number in range(300)]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
        found = read(path=str(tmp_path / "a.json"), key="id")
        assert [item for _, item in found] == rows


def test_a_json_file_may_hold_objects_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"id": 1}\n{"id":\n 2}\n\n')
    assert keys(path=str(tmp_path / "a.json"), key="id") == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"id":1},{"id":2]', "row 2: is not JSON"),
        ('[{"id":1} {"id":2}]', "row 2: is not JSON: there is no comma"),
        ('[{"id":1}', "row 2: is not JSON"),
        ('[{"id":1}]x', "row 2: is not JSON: there is text behind the array"),
        ('[{"id":1},', "row 2: is not JSON: the array has no end"),
        ('[{"id":1},5]', "row 2: is a number; a row is an object"),
        ('[{"id":1},{"id":"x', "row 2: is not JSON: Unterminated string"),
        ('[{"id":1},{"id":2,"id":3}]', "row 2: names 'id' twice"),
        ('[{"id":1},{"id":2,"x":NaN}]', "row 2: holds NaN"),
        ("[]", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_a_bad_json_file_is_refused_by_its_row(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert says in refusal(lambda: read(path=str(path), key="id"))


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=3)))
def test_any_json_array_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows))
    assert list(json_rows(path)) == rows


TABLE = pa.table({"id": [1, 2], "t": pa.array([0, 1], pa.timestamp("us", "UTC"))})


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams_are_read_as_parquet_is(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, writer(sink, TABLE.schema) as file:
        file.write_table(TABLE)
    assert read(path=str(path), key="id") == [
        ("1", {"id": 1, "t": "1970-01-01T00:00:00+00:00"}),
        ("2", {"id": 2, "t": "1970-01-01T00:00:00.000001+00:00"}),
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1 is not Arrow"])
def test_what_is_not_arrow_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.feather"
    path.write_bytes(content)
    assert f"{path}: row 1: " in refusal(lambda: read(path=str(path), key="id"))


def test_a_column_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "x": 2}\n{"id": 2}\n')
    assert read(path=str(path), key="id", columns=["x"]) == [("1", {"x": 2}), ("2", {})]
    message = refusal(lambda: read(path=str(path), key="id", columns=["y"]))
    assert message == "input.columns: no item has the column 'y'; correct the name"
    (tmp_path / "a.csv").write_text("id,x\n1,2\n")
    message = refusal(lambda: read(path=str(tmp_path / "a.csv"), key="id", columns=["xx"]))
    assert "has no column 'xx'; it has id, x; did you mean 'x'?" in message


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert "set input.format" in refusal(lambda: open_(path=str(tmp_path / "a.xlsx"), key="id"))
