"""Items from a database: the values of a query, and nothing is written."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from airflow_slurm_provider.coordinator.inputs.database import open_engine
from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from tests.unit.coordinator.inputs.reading import no_bucket, read, refusal


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "lab.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE visits (id INTEGER, city TEXT, share REAL, raw BLOB)")
        connection.execute(
            "INSERT INTO visits VALUES (1, 'Lima', 0.5, x'00ff'), (2, NULL, 1, NULL)"
        )
    connection.close()
    return f"sqlite:///{path}"


def test_the_rows_of_a_query_are_items(database: str) -> None:
    query = "-- all\nSELECT * FROM visits WHERE city IS NULL OR city LIKE 'L%' ORDER BY id"
    assert read(database=database, query=query, key="id") == [
        ("1", {"id": 1, "city": "Lima", "share": 0.5, "raw": "AP8="}),
        ("2", {"id": 2, "city": None, "share": 1.0, "raw": None}),
    ]
    assert [key for key, _ in read(database=database, query=query, generate_key="row")] == [
        "query:1",
        "query:2",
    ]


def test_an_engine_may_be_given_by_another_name(database: str) -> None:
    def engine(name: str) -> Any:
        assert name == "lab_db"
        return sqlalchemy.create_engine(database)

    spec = InputSection(database="lab_db", query="SELECT id FROM visits", key="id")
    assert dict(Input(spec, no_bucket, engine).items()) == {"1": {"id": 1}, "2": {"id": 2}}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("DELETE FROM visits", "input.query: does not only read"),
        ("/* SELECT */ DROP TABLE visits", "input.query: does not only read"),
        ("SELECT 1 AS id, 2 AS id", "has two columns 'id'"),
        ("SELECT id FROM visit", "refuses the query: no such table: visit"),
        ("SELECT id FROM visits WHERE id > 5", "has no rows"),
    ],
)
def test_a_wrong_query_is_refused_in_one_line(database: str, query: str, says: str) -> None:
    assert says in refusal(lambda: read(database=database, query=query, key="id"))
    assert len(read(database=database, query="SELECT id FROM visits", key="id")) == 2


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://ada:secret@host/lab", "holds a password"),
        ("postgresql://ada:$NO_SUCH@host/lab", "variable 'NO_SUCH' is not set"),
        ("lab", "is not the URL of a database"),
        ("nosuch://host/lab", "install the database's driver"),
        ("sqlite:////no/such.db", "the file /no/such.db does not exist"),
    ],
)
def test_a_wrong_address_is_refused_and_no_password_is_shown(address: str, says: str) -> None:
    message = refusal(lambda: open_engine(address))
    assert says in message
    assert "secret" not in message


def test_secrets_come_from_the_environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DB", database)
    assert len(read(database="$LAB_DB", query="SELECT id FROM visits", key="id")) == 2


@pytest.mark.parametrize(
    "more", [{}, {"query": "SELECT 1", "path": "a.csv"}, {"query": "SELECT 1", "format": "csv"}]
)
def test_a_database_needs_a_query_and_no_file(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has a database, which needs query"):
        InputSection(database="sqlite:////a.db", key="id", **more)
