"""Parquet parts hold the rows that handlers returned, and give the same dataset as lines."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.aggregate.job.parquet_part import ParquetColumns, read_rows
from slurm_worker.errors import ErrorClass, ItemError, UserError
from slurm_worker.results.parts import JSONL, PARQUET, SQLITE
from tests.unit.worker.aggregate.finished_job import Fate, Job, ok

SCHEMA = {
    "flag": "bool",
    "n": "int64",
    "x": "double",
    "price": "decimal(10, 2)",
    "name": "string",
    "blob": "binary",
    "any": "json",
    "tags": "list<string>",
    "place": "struct<lat: double, lon: double>",
    "counts": "map<string, int64>",
}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
cents = st.integers(-(10**9), 10**9)
numbers = st.floats(allow_nan=False, allow_infinity=False)
row = st.fixed_dictionaries(
    {
        "flag": st.none() | st.booleans(),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | numbers,
        "price": st.none()
        | cents.map(lambda n: f"{'-' if n < 0 else ''}{abs(n) // 100}.{abs(n) % 100:02}"),
        "name": st.none() | text,
        "blob": st.none() | st.binary(max_size=8).map(lambda b: base64.b64encode(b).decode()),
        "any": st.none() | st.recursive(st.integers() | text, lambda inner: st.lists(inner)),
        "tags": st.none() | st.lists(st.none() | text, max_size=3),
        "place": st.none()
        | st.fixed_dictionaries({"lat": st.none() | numbers, "lon": st.none() | numbers}),
        "counts": st.none() | st.dictionaries(text, st.integers(-9, 9), max_size=3),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.lists(row, max_size=5))
def test_rows_of_a_parquet_part_come_back_unchanged(given_rows) -> None:  # type: ignore[no-untyped-def]
    columns = ParquetColumns(SCHEMA)
    bodies = [columns.to_lines(f"k{n}", row)[1] for n, row in enumerate(given_rows)]
    data = columns.make(iter(bodies))
    assert data is not None
    assert read_rows(data) == [{"_key": f"k{n}", **row} for n, row in enumerate(given_rows)]


def test_times_come_back_as_the_same_moments() -> None:
    columns = ParquetColumns({"at": "timestamp", "wall": "local_timestamp", "day": "date"})
    returned = {
        "at": "2026-11-23T17:00:00+01:00",
        "wall": "2026-11-23T17:00:00",
        "day": "2026-11-23",
    }
    data = columns.make(iter([columns.to_lines("a", returned)[1]]))
    assert data is not None
    assert read_rows(data) == [{"_key": "a", **returned, "at": "2026-11-23T16:00:00+00:00"}]


@pytest.mark.parametrize(
    ("result", "path"),
    [
        ({"n": 1.5}, "n"),
        ({"n": 2**63}, "n"),
        ({"price": "1.234"}, "price"),
        ({"place": {"lat": 1.0, "height": 2}}, "place.height"),
        ([{"n": 1}, {"more": 1}], "more"),
    ],
)
def test_a_result_that_does_not_fit_names_its_column(result: object, path: str) -> None:
    with pytest.raises(ItemError) as caught:
        ParquetColumns(SCHEMA).to_lines("a", result)
    assert caught.value.error_class is ErrorClass.HANDLER_BUG
    assert str(caught.value).startswith(f"column {path!r}")


def test_an_invalid_type_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"aggregate\.schema: n: 'integer'"):
        ParquetColumns({"n": "integer"})


def finished(folder: Path, *formats: str) -> Job:
    folder.mkdir()
    job = Job(folder, formats=formats, columns={"n": "int64", "x": "double"})
    tasks: list[dict[str, Fate]] = [
        {f"k{task}-{n}": ok(n=n, x=math.sqrt(n)) for n in range(5)} for task in range(6)
    ]
    tasks[2]["k2-0"] = ErrorClass.NETWORK
    job.add_round(*tasks)
    return job


@pytest.mark.parametrize("formats", [(PARQUET,), (SQLITE,), (PARQUET, JSONL, SQLITE)])
def test_parts_of_any_format_give_the_same_dataset(tmp_path: Path, formats: list[str]) -> None:
    expected = finished(tmp_path / "lines", JSONL)
    found = finished(tmp_path / "other", *formats)
    schema = found.columns
    one, other = expected.aggregate(schema), found.aggregate(schema)
    assert found.dataset(other) == expected.dataset(one)
    assert found.failures(other) == expected.failures(one)
    assert (other.items, other.ok, other.failed) == (30, 29, {"network": 1})


def test_columns_are_read_as_rows_where_the_declared_schema_has_changed(tmp_path: Path) -> None:
    job = finished(tmp_path / "job", PARQUET)
    manifest = job.aggregate({"x": "double", "n": "decimal(10, 0)", "new": "string"})
    first = job.dataset(manifest)[0]
    assert (str(first["n"]), first["x"], first["new"]) == ("0", 0.0, None)
