"""No value changes when it is written to a column: it fits exactly, or its item is named."""

from __future__ import annotations

import base64
import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_worker.aggregate import AggregationError
from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.inference import Inference
from slurm_worker.aggregate.columns.types import TypeName, parse_schema, parse_type
from slurm_worker.errors import UserError
from tests.unit.worker.aggregate.finished_job import Job, keyed, lines, ok


def infer(*values: Any) -> str:
    """The type of a column with these values, each in a part of its own."""
    inference = Inference()
    for number, value in enumerate(values):
        inference.add_rows([keyed(f"k{number}", x=value)], f"part-{number}")
    return str(inference.schema()["x"])


def convert(declared: str, *values: Any) -> list[Any]:
    converter = Converter(parse_schema({"x": declared}), declared=True)
    rows = [keyed(f"k{number}", x=value) for number, value in enumerate(values)]
    found: list[Any] = converter.table(rows, "part-0").column("x").to_pylist()
    return found


# --- inference -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, -(2**63), 2**63 - 1), "int64"),
        ((None, 1), "int64"),
        ((1, None), "int64"),
        ((None, None), "string"),
        ((1, 0.5), "double"),
        ((0.5, 2**53), "double"),
        ((True, None), "bool"),
        (("2026-11-01", "12"), "string"),
        (([], [1], [None]), "list<int64>"),
        (([], None), "list<string>"),
        (({"a": 1}, {"b": [0.5]}), "struct<a: int64, b: list<double>>"),
        (({"a": {"b": None}}, {"a": {"b": "x"}}, {}), "struct<a: struct<b: string>>"),
    ],
)
def test_the_inferred_type_holds_all_values(values: tuple[Any, ...], expected: str) -> None:
    assert infer(*values) == expected


@pytest.mark.parametrize(
    ("values", "column", "says"),
    [
        ((1, "a"), "x", "a string where others have an int"),
        ((True, 1), "x", "an int where others have a bool"),
        ((0.5, True), "x", "a bool where others have a float"),
        (([1], {"a": 1}), "x", "an object where others have a list"),
        (([1], ["a"]), "x[]", "a string where others have an int"),
        (({"a": 1}, {"a": "b"}), "x.a", "a string where others have an int"),
        (({"a": [[1]]}, {"a": [["b"]]}), "x.a[][]", "a string where"),
        ((1, 2**63), "x", "9223372036854775808, which does not fit into 64 bits"),
        ((1, -(2**63) - 1), "x", "-9223372036854775809, which does not fit into 64 bits"),
        ((0.5, 2**53 + 1), "x", "ints up to 9007199254740993"),
        ((2**53 + 1, 0.5), "x", "ints up to 9007199254740993"),
    ],
)
def test_values_of_mixed_types_are_named(values: tuple[Any, ...], column: str, says: str) -> None:
    with pytest.raises(AggregationError) as caught:
        infer(*values)
    message = str(caught.value)
    assert f"column {column!r}: item 'k1' has" in message
    assert says in message
    assert "part-1" in message


def test_the_item_that_does_not_fit_is_found_inside_its_part() -> None:
    inference = Inference()
    inference.add_rows([keyed("a", x=0.5)], "part-0")
    rows = [keyed("b", x=1), keyed("c", x=None), keyed("d", x=2**60), keyed("e", x=2)]
    with pytest.raises(AggregationError, match="item 'd' has"):
        inference.add_rows(rows, "part-1")


def test_an_int_that_does_not_fit_among_floats_of_a_part_read_ahead_is_named() -> None:
    inference = Inference()
    inference.add_rows([keyed("a", x=1)], "part-0")
    rows = [keyed("c", x=1), keyed("d", x=2**60)]
    add = inference.read_lines(lines(*rows).encode(), 2, lambda _: rows)
    inference.add_rows([keyed("b", x=0.5)], "part-1")
    with pytest.raises(AggregationError, match=r"item 'd' has .*part-2"):
        add("part-2")


def test_a_column_of_empty_objects_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"column 'x' holds only empty objects"):
        infer({}, None)


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(AggregationError, match=r"item 'k0' has more than 2,000 different fields"):
        infer({f"f{n}": n for n in range(3_000)})


# --- declared types --------------------------------------------------------------------

UTC = dt.timezone.utc


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("int32", 2**31 - 1, 2**31 - 1),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("double", 3, 3.0),
        ("double", -(2**53), float(-(2**53))),
        ("decimal(5, 2)", "-12.5", Decimal("-12.50")),
        ("decimal(38,0)", 10**37, Decimal(10**37)),
        ("string", "2026-11-01", "2026-11-01"),
        ("timestamp", "2026-11-01T10:00:00.5Z", dt.datetime(2026, 11, 1, 10, 0, 0, 500000, UTC)),
        ("timestamp", "2026-11-01 10:00:00+02:00", dt.datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("local_timestamp", "2026-11-01T10:00:00", dt.datetime(2026, 11, 1, 10)),
        ("date", "2026-11-01", dt.date(2026, 11, 1)),
        ("binary", base64.b64encode(b"\x00\xff").decode(), b"\x00\xff"),
        ("json", {"b": [1, 0.1, "é"]}, '{"b":[1,0.1,"é"]}'),
        ("json", "text", '"text"'),
        ("list<date>", ["2026-11-01", None], [dt.date(2026, 11, 1), None]),
        ("list<list<int64>>", [[1], None, []], [[1], None, []]),
        ("map<string, double>", {"a": 1, "b": None}, [("a", 1.0), ("b", None)]),
        ("struct<a: int64, b: struct<c: string>>", {"a": 1}, {"a": 1, "b": None}),
    ],
)
def test_a_declared_type_takes_the_value_exactly(declared: str, value: Any, expected: Any) -> None:
    assert convert(declared, None, value, None) == [None, expected, None]


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int64", 1.0),
        ("int64", "1"),
        ("int64", True),
        ("int64", 2**63),
        ("int32", 2**31),
        ("uint64", -1),
        ("double", 2**53 + 1),
        ("double", "0.5"),
        ("double", True),
        ("bool", 1),
        ("bool", "true"),
        ("string", 1),
        ("string", ["a"]),
        ("decimal(5, 2)", "1.234"),
        ("decimal(5, 2)", "1234.5"),
        ("decimal(5, 2)", 0.5),
        ("timestamp", "2026-11-01T10:00:00"),
        ("timestamp", "2026-11-01T10:00:00.1234567Z"),
        ("timestamp", 1_700_000_000),
        ("local_timestamp", "2026-11-01T10:00:00Z"),
        ("date", "2026-02-30"),
        ("date", "01/11/2026"),
        ("date", "2026-11-01T00:00:00"),
        ("binary", "not base64!"),
        ("list<int64>", 1),
        ("list<int64>", [0.5]),
        ("map<string, int64>", {"a": "b"}),
        ("struct<a: int64>", {"a": 1, "b": 2}),
        ("struct<a: int64>", [1]),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_item(declared: str, value: Any) -> None:
    with pytest.raises(AggregationError) as caught:
        convert(declared, None, value)
    message = str(caught.value)
    assert "item 'k1' has " in message
    assert "column 'x" in message
    assert "part-0" in message
    assert "\n" not in message


def test_a_column_that_is_not_in_the_schema_is_refused(job: Job) -> None:
    job.add_round({"a": ok(x=1)}, {"b": ok(x=2, y=3)})
    with pytest.raises(AggregationError, match=r"column 'y': item 'b' has .*000-00000001"):
        job.aggregate(schema={"x": "int64"})


def test_a_declared_column_that_no_row_has_is_null(job: Job) -> None:
    job.add_round({"a": ok(x=1)})
    manifest = job.aggregate(schema={"y": "timestamp", "x": "int64"})
    assert job.dataset(manifest) == [{"_key": "a", "y": None, "x": 1}]
    assert list(manifest.schema) == ["_key", "y", "x"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("str", "'str' is unknown"),
        ("null", "'null' is unknown"),
        ("", "it ends too early"),
        ("list", "'<' is missing"),
        ("list<int64", "'>' is missing"),
        ("int64>", "unexpected '>' at its end"),
        ("map<int64, string>", "the keys of a map must be strings"),
        ("struct<>", "':' is missing"),
        ("struct<a: int64, a: int64>", "it names the field 'a' twice"),
        ("decimal(39, 0)", "1 to 38 digits"),
        ("decimal(x, 0)", "'x' is not a number"),
    ],
)
def test_an_invalid_type_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_type(text, "x")
    assert f"aggregate.schema: x: {text!r} is not a type" in str(caught.value)
    assert says in str(caught.value)


def test_the_key_can_not_be_declared() -> None:
    with pytest.raises(UserError, match="remove it from the schema"):
        parse_schema({"_key": "string"})


@pytest.mark.parametrize(
    "text",
    [
        *sorted({known.value for known in TypeName} - {"null", "list", "struct", "map", "decimal"}),
        "decimal(5, 2)",
        "struct<a: list<map<string, json>>, b: int64>",
    ],
)
def test_a_type_is_printed_as_it_was_written(text: str) -> None:
    assert str(parse_type(text, "x")) == text


# --- random rows -----------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "i": st.integers(-(2**63), 2**63 - 1),
    "f": st.floats(allow_nan=False, allow_infinity=False),
    "mixed": st.one_of(st.integers(-(2**53), 2**53), st.just(0.5)),
    "s": TEXT,
    "b": st.booleans(),
    "l": st.lists(st.none() | st.integers(0, 5), max_size=3),
    "o": st.fixed_dictionaries({"p": st.none() | TEXT, "q": st.lists(TEXT, max_size=2)}),
}
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={name: st.none() | some for name, some in COLUMNS.items()}),
    max_size=4,
)


@given(st.lists(ROWS, min_size=1, max_size=12), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_rows_come_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[dict[str, Any]]], declare: bool
) -> None:
    job = Job(tmp_path_factory.mktemp("job"))
    job.add_round(*({f"k{number}": rows} for number, rows in enumerate(items)))
    declared = {
        "i": "int64",
        "f": "double",
        "mixed": "double",
        "s": "string",
        "b": "bool",
        "l": "list<int64>",
        "o": "struct<p: string, q: list<string>>",
    }
    manifest = job.aggregate(schema=declared if declare else None, rows_per_file=5)
    expected = [{"_key": f"k{number}", **row} for number, rows in enumerate(items) for row in rows]
    found = job.dataset(manifest) if manifest.files else []
    assert len(found) == len(expected)
    for had, wanted in zip(found, expected, strict=True):
        assert {name: value for name, value in had.items() if value is not None} == {
            name: value for name, value in wanted.items() if value is not None
        }
        # -0.0 == 0.0, so equality alone would let a sign get lost.
        assert str(had.get("f")) == str(wanted.get("f"))
