"""Conditions and queries: they choose rows, and reach nothing but the input."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.coordinator.inputs.reading import keys, read, refusal


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("id,city,n\n1,Lima,10\n2,Oslo,9\n")
    (tmp_path / "b.csv").write_text("id,city,n\n3,Oslo,2\n4,Bern,\n")
    return tmp_path


def test_a_condition_chooses_rows_and_leaves_their_values(cities: Path) -> None:
    assert read(path=str(cities), key="id", where="n::int > 2 -- as numbers") == [
        ("1", {"id": "1", "city": "Lima", "n": "10"}),
        ("2", {"id": "2", "city": "Oslo", "n": "9"}),
    ]


def test_rows_keep_their_numbers_in_the_file(cities: Path) -> None:
    found = keys(path=str(cities), generate_key="row", where="city = 'Oslo'")
    assert found == ["a.csv:2", "b.csv:1"]


def test_a_condition_knows_the_types_of_parquet_and_the_columns_of_folders(tmp_path: Path) -> None:
    for year in (2020, 2021):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        times = pa.array([0, 86_400], pa.timestamp("s")).cast(pa.timestamp("us"))
        table = pa.table({"id": [year * 10, year * 10 + 1], "t": times})
        pq.write_table(table, folder / "a.parquet")
    where = "year > 2020 and t < date '1970-01-02'"
    assert read(path=str(tmp_path), key="id", where=where, columns=["year"]) == [
        ("20210", {"year": 2021})
    ]


def test_a_condition_sees_one_type_for_each_column_of_json(tmp_path: Path) -> None:
    rows = [
        {"id": n, **({"meta": {"n": n / 2}} if n > 20_000 else {"x": 1})} for n in range(20_010)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(path=str(tmp_path / "a.jsonl"), key="id", where="META.n > 10002")
    assert found == [(str(row["id"]), row) for row in rows[20_005:]]


def test_json_columns_of_several_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id":1,"x":1}\n{"id":2,"x":"b"}\n')
    message = refusal(lambda: read(path=str(tmp_path / "a.jsonl"), key="id", where="x = 1"))
    assert message.startswith("input.where: column 'x' has values of different types")


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("n >", "'n >' is not a condition of SQL"),
        ("zz = 1", '"zz" not found'),
        ("n > 'x' order by 1", "is not a condition of SQL"),
        ("id in (select content from read_text('/etc/hostname'))", "Cannot access file"),
        ("n::int > 5000 or n = 'NA'", "has no rows that the SQL selects"),
    ],
)
def test_a_wrong_condition_is_refused_in_one_line(cities: Path, where: str, says: str) -> None:
    path = str(cities / "a.csv")
    assert says in refusal(lambda: read(path=path, key="id", where=where))


def test_a_query_makes_the_items(cities: Path) -> None:
    query = (
        "SELECT city, count(*) AS n, sum(n::int) AS total FROM input GROUP BY city ORDER BY city"
    )
    assert read(path=str(cities), key="city", query=query) == [
        ("Bern", {"city": "Bern", "n": 1, "total": None}),
        ("Lima", {"city": "Lima", "n": 1, "total": 10}),
        ("Oslo", {"city": "Oslo", "n": 2, "total": 11}),
    ]


def test_a_query_joins_the_input_with_itself(cities: Path) -> None:
    query = (
        "SELECT a.id || '-' || b.id AS id FROM input a JOIN input b USING (city) WHERE a.id < b.id"
    )
    assert keys(path=str(cities), key="id", query=query) == ["2-3"]


def test_a_query_reads_parquet_in_folders(tmp_path: Path) -> None:
    for year in (2020, 2021):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        pq.write_table(pa.table({"id": [year]}), folder / "a.parquet")
    query = "SELECT * FROM input WHERE year = 2021"
    assert read(path=str(tmp_path), key="id", query=query) == [("2021", {"id": 2021, "year": 2021})]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("COPY input TO '{folder}/out.csv'", "is not one SELECT"),
        ("SELECT 1 AS id; SELECT 2 AS id", "is not one SELECT"),
        ("ATTACH '{folder}/x.db'", "is not one SELECT"),
        ("INSTALL httpfs", "is not one SELECT"),
        ("SELECT * FROM '{folder}/b.csv'", "DuckDB refuses it"),
        ("SELECT * FROM read_csv('{folder}/b.csv')", "Cannot access file"),
        ("SELECT * FROM read_csv('http://127.0.0.1:1/b.csv')", "Cannot access file"),
        ("SELECT id FROM inputs", "Table with name inputs does not exist"),
        ("SELEC", "syntax error"),
    ],
)
def test_a_query_reaches_nothing_but_the_input(cities: Path, query: str, says: str) -> None:
    sql = query.format(folder=cities)
    path = str(cities / "a.csv")
    assert says in refusal(lambda: read(path=path, key="id", query=sql))
    assert not (cities / "out.csv").exists()
    assert not (cities / "x.db").exists()


def test_names_that_differ_in_case_only_are_refused_where_sql_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,a,A\n1,2,3\n")
    assert "can't tell apart" in refusal(lambda: read(path=str(path), key="id", where="a = '2'"))
    assert keys(path=str(path), key="id", where="id = '1'") == ["1"]
    query = "SELECT id FROM input"
    assert "can't tell apart" in refusal(lambda: read(path=str(path), key="id", query=query))
