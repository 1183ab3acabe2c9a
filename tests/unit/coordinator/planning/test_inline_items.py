"""Items that are passed are the rows that were meant, or are refused in one line."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from airflow_slurm_provider.coordinator.planning.inline_items import (
    as_list,
    config_with_items,
    path_or_items,
    put_items,
)
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId
from tests.unit.coordinator.fakes import services


def written(edges: Services, items: Any, key: str | None = None) -> list[dict[str, Any]]:
    """The items as they are read again when the job is planned."""
    path = put_items(edges, JobId("job-1"), items, key)["path"]
    data = edges.objects.get(path.removeprefix("s3://lab/"))
    assert data is not None
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


ROWS = [
    {"id": "a", "n": 1, "x": 1.5, "day": "2026-01-02", "price": "1.50"},
    {"id": "b", "n": 2, "x": None, "day": None, "price": "2.00"},
]
COLUMNS = {
    "id": ["a", "b"],
    "n": [1, 2],
    "x": [1.5, float("nan")],
    "day": [dt.date(2026, 1, 2), None],
    "price": [Decimal("1.50"), Decimal("2.00")],
}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS, index=[7, 9]),
        pd.DataFrame(COLUMNS).set_index("id"),
        pl.DataFrame(COLUMNS),
        pa.table(COLUMNS),
        pa.record_batch(COLUMNS),
    ],
    ids=["pandas", "with an index", "with a named index", "polars", "arrow", "arrow batch"],
)
def test_a_table_gives_its_rows(table: Any) -> None:
    assert written(services(), table) == ROWS


def test_a_table_gives_the_same_items_as_its_parquet_file() -> None:
    moments = pd.DataFrame({"id": [1, 2], "at": pd.to_datetime(["2026-01-02T03:04:05", None])})
    assert written(services(), moments) == [
        {"id": 1, "at": "2026-01-02T03:04:05"},
        {"id": 2, "at": None},
    ]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pd.DataFrame({"id": [1], "x": [float("inf")]}), "'x' holds inf"),
        (pd.DataFrame({"id": [1], "x": [pd.Timedelta(1)]}), "'x'"),
        (pd.DataFrame({"id": [1], "x": [{"a": 1}]}), "'x' holds dicts"),
        (pd.DataFrame({"id": [1, 2], "x": [1, "a"]}), "can't be read"),
        (pd.DataFrame([[1, 2]], columns=["id", "id"]), "id"),
        (pa.table([[1], [2]], names=["id", "id"]), "two columns named 'id'"),
        (pl.LazyFrame({"id": [1]}), "LazyFrame"),
        (pd.DataFrame({"id": []}), "the list is empty"),
        (pd.DataFrame({"id": [1], "x": [pd.Period("2026")]}), "'x' is of the type pandas.period"),
        (pd.DataFrame({"id": [1], "x": [pd.Interval(0, 1)]}), "'x' is of the type pandas.interval"),
        (pl.DataFrame({"id": [1], "x": pl.Series([object()], dtype=pl.Object)}), "Python objects"),
        (
            pa.table({"id": [1], "x": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}),
            "'x' holds a MonthDayNano",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
@pytest.mark.filterwarnings("ignore::polars.exceptions.PerformanceWarning")
def test_a_table_that_cannot_become_json_is_refused(table: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        put_items(services(), JobId("job-1"), table)
    assert "\n" not in str(told.value)


def test_categories_of_polars_are_their_texts() -> None:
    table = pl.DataFrame({"id": [1], "x": pl.Series(["a"], dtype=pl.Categorical)})
    assert written(services(), table) == [{"id": 1, "x": "a"}]


class Point(NamedTuple):
    """One row, and no list of two."""

    id: int
    x: int


@pytest.mark.parametrize("given", [np.array(5), np.array({"id": 1}, object), Point(1, 2)])
def test_a_value_that_is_not_a_list_of_items_is_refused(given: object) -> None:
    with pytest.raises(UserError, match="items: is "):
        put_items(services(), JobId("job-1"), given)


@pytest.mark.parametrize(
    "column",
    [
        np.array([3, 4]),
        [np.int64(3), np.uint8(4)],
        pd.Series([3, 4], index=[5, 6]),
        pl.Series([3, 4]),
        pa.array([3, 4]),
        pa.chunked_array([[3], [4]]),
    ],
    ids=lambda each: type(each).__module__,
)
def test_a_column_gives_its_values(column: Any) -> None:
    assert written(services(), column) == [{"id": 3, "value": 3}, {"id": 4, "value": 4}]


def test_numpy_values_in_an_object_are_pythons_own() -> None:
    item = {
        "id": np.int64(3),
        "on": np.bool_(True),
        "x": np.float32(0.5),
        "name": np.str_("é"),
        "inner": [np.array([[1, 2], [3, 4]])],
    }
    assert written(services(), [item]) == [
        {"id": 3, "on": True, "x": 0.5, "name": "é", "inner": [[[1, 2], [3, 4]]]}
    ]


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2026-01-01", "ns"),
        np.timedelta64(1, "s"),
        np.complex64(1j),
        np.float64("nan"),
        np.array([1.0, np.inf]),
        dt.date(2026, 1, 1),
        {1},
        b"x",
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="items: number 1 is not JSON"):
        put_items(services(), JobId("job-1"), [{"id": 1, "x": value}])


def test_text_in_brackets_is_json_and_other_text_is_a_path() -> None:
    assert path_or_items('[{"id": 1}, {"id": 2}]') == [{"id": 1}, {"id": 2}]
    assert path_or_items("s3://lab/a.csv") == "s3://lab/a.csv"
    assert as_list("[7]") == [7]
    for text in ("s3://lab/a.csv", "7", "null", "abc", '"abc"'):
        with pytest.raises(UserError, match="items: "):
            as_list(text)


def test_an_operators_items_follow_the_same_rules() -> None:
    config = config_with_items(services(), {"handler": {"entry": "h:f"}}, "job-1", '["a"]', None)
    assert config.spec.input.format == "jsonl"
    with pytest.raises(UserError, match=r"items: 's3://lab/a\.csv' is text"):
        config_with_items(
            services(), {"handler": {"entry": "h:f"}}, "job-1", "s3://lab/a.csv", None
        )


def test_params_with_two_keys_that_json_makes_equal_are_refused() -> None:
    params = {"codes": {1: "a", "1": "b"}}
    with pytest.raises(UserError, match=r"handler\.params: .*become one name, '1'"):
        config_with_items(
            services(), {"handler": {"entry": "h:f", "params": params}}, "job-1", [1], None
        )
