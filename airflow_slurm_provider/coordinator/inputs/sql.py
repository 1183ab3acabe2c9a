"""Conditions and queries of SQL over an input's rows, in DuckDB.

DuckDB gets the rows as the table ``input`` and nothing else: it opens no files, loads no
extensions and connects to nothing. It uses one thread, so that the same input gives the same rows
in the same order.

`where` only chooses rows; their values do not pass through DuckDB. A query's values do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from slurm_worker.errors import UserError

TABLE = "input"
#: A column of staged rows: their number, from 0, over all files.
NUMBER = "_row_of_input"
BATCH_ROWS = 8192
_LISTED = 20
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}


class RowFilter:
    """A condition on rows."""

    def __init__(self, where: str) -> None:
        """Parse it.

        Raises:
            UserError: if it is not a condition, or DuckDB is not installed.
        """
        self._connection = connect("input.where")
        # A line of its own: the condition may end in a comment.
        self._query = f"SELECT {NUMBER} FROM {TABLE} WHERE (\n{where}\n)"  # noqa: S608  # the user's own
        quoted = self._query.replace("'", "''")
        found = self._connection.execute(f"SELECT json_serialize_sql('{quoted}')").fetchall()[0][0]
        tree = json.loads(found)
        nodes = [each["node"] for each in tree.get("statements", ())]
        if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE" or nodes[0].get("modifiers"):
            reason = tree.get("error_message", "it is more than a condition")
            raise UserError(
                f"input.where: {where!r} is not a condition of SQL: {reason}; correct it"
            )
        #: The columns that it names, as they are written.
        self.names = frozenset(_columns_of(nodes[0]["where_clause"]))

    def columns_in(self, names: Sequence[str]) -> list[str]:
        """Those of a file's columns that the condition names; DuckDB ignores case."""
        wanted = {name.casefold() for name in self.names}
        found = [name for name in names if name.casefold() in wanted]
        for name in found:
            if twin := next((each for each in found if _twins(name, each)), None):
                raise ValueError(
                    f"has the columns {name!r} and {twin!r}, which SQL can't tell apart"
                )
        return found

    def select(
        self, columns: Mapping[str, pa.Array[Any]], count: int, names: Sequence[str]
    ) -> list[int]:
        """Which of `count` rows meet the condition, from 0.

        `columns` are those that it names, of the file's columns `names`.
        """
        numbers = pa.array(range(count), pa.int64())
        table = pa.table({**columns, NUMBER: numbers})
        with sql_errors("input.where", names):
            self._connection.register(TABLE, table)
            return [row for (row,) in self._connection.execute(self._query).fetchall()]

    def stream(self, source: Any) -> Iterator[int]:
        """The numbers of the rows of `staged` data that meet the condition, rising."""
        last = -1
        with sql_errors("input.where", [each for each in source.schema.names if each != NUMBER]):
            self._connection.register(TABLE, source)
            for batch in _batches(self._connection.sql(self._query)):
                for number in batch.column(0).to_pylist():
                    assert number > last, "one thread keeps the order"
                    last = number
                    yield number


def run_query(query: str, source: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a query over `source`, which Arrow can scan several times.

    Raises:
        UserError: if it is not one SELECT, or can't be carried out.
    """
    connection = connect("input.query")
    twins = [(a, b) for a in source.schema.names for b in source.schema.names if _twins(a, b)]
    if twins:
        raise UserError(
            f"input.query: the input has the columns {twins[0][0]!r} and {twins[0][1]!r}, which "
            "SQL can't tell apart; rename one"
        )
    with sql_errors("input.query", source.schema.names):
        statements = connection.extract_statements(query)
        if [each.type.name for each in statements] not in (["SELECT"], ["SELECT_STATEMENT"]):
            raise UserError(
                "input.query: is not one SELECT; write one query without other commands"
            )
        connection.register(TABLE, source)
        yield from _batches(connection.sql(query))


def _batches(relation: Any) -> Any:
    # Releases of DuckDB name it differently.
    read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
    return iter(read(BATCH_ROWS))


def _twins(name: str, other: str) -> bool:
    return name != other and name.casefold() == other.casefold()


def connect(field: str) -> Any:
    """A connection to DuckDB that reaches only the tables that it is given.

    Raises:
        UserError: if DuckDB is not installed; `field` needs it.
    """
    try:
        # An optional dependency.
        import duckdb
    except ImportError as error:
        raise UserError(
            f"{field} needs DuckDB; run: pip install 'airflow-slurm-provider[sort]'"
        ) from error
    connection = duckdb.connect(":memory:", config=_SETTINGS)
    with contextlib.suppress(duckdb.Error):  # a build without time zones
        connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


@contextlib.contextmanager
def sql_errors(field: str, names: Sequence[str]) -> Iterator[None]:
    """Errors of DuckDB are one line about a field; `names` are the columns."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        # Below the first lines, DuckDB shows the place in the query.
        reason = " ".join(str(error).partition("\n\n")[0].partition("\nCandidate")[0].split())
        if "not found in FROM clause" in reason:
            reason = f"{reason} Columns are {', '.join(names[:_LISTED])}"
        raise UserError(f"{field}: DuckDB refuses it: {reason}; correct it") from error


def _columns_of(node: Any) -> Iterator[str]:
    """The names of columns in a part of a parsed query."""
    if isinstance(node, list):
        for each in node:
            yield from _columns_of(each)
    elif isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            first, *more = node["column_names"]
            yield more[0] if first.casefold() == TABLE and more else first
        for each in node.values():
            yield from _columns_of(each)
