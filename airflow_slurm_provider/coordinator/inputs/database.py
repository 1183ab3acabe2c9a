"""Rows of a query over a database, by SQLAlchemy.

Rows are read in one transaction, which is never committed. Values follow the rules for Parquet
files: see `parquet`. Memory does not grow with their number where the driver streams.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, TypeAlias

from slurm_worker.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

#: Gives a database's engine for `input.database`.
OpenEngine: TypeAlias = "Callable[[str], Engine]"

_ROWS_AHEAD = 1000
_COMMENT = re.compile(r"\s+|--[^\n]*(\n|$)|/\*.*?\*/", re.S)
_READS = re.compile(r"(select|with|values|table|from)\b|\(", re.I)


def open_engine(address: str) -> Engine:
    """The engine of a database by its URL; ``$NAME`` in it is an environment variable.

    Raises:
        UserError: if it is not a URL, holds a password, or needs a package that is not here.
    """
    try:
        import sqlalchemy
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    except ImportError as error:
        raise UserError(
            "input.database needs SQLAlchemy; run: pip install 'airflow-slurm-provider[sql]'"
        ) from error
    try:
        url = sqlalchemy.make_url(address if "://" in address else _filled(address))
        url = _with_secrets(url, "://" in address)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise UserError(f"input.database: the file {url.database} does not exist")
        return sqlalchemy.create_engine(url)
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"input.database: {' '.join(str(error).split())}; install the database's driver"
        ) from error
    except ArgumentError as error:
        raise UserError(
            "input.database: is not the URL of a database; write it as postgresql://user@host/name"
        ) from error


def read_query(engine: Engine, query: str) -> Iterator[dict[str, Any]]:
    """The rows of a query.

    Raises:
        UserError: if it does not only read, or the database refuses it.
        ValueError: naming a column that can't be written as JSON.
    """
    from sqlalchemy.exc import SQLAlchemyError

    # pyarrow takes a third of a second to import, and the hook imports this module.
    from airflow_slurm_provider.coordinator.inputs.parquet import as_json

    if not _READS.match(_without_comments(query)):
        raise UserError("input.query: does not only read; write a SELECT")
    options: dict[str, Any] = {
        "stream_results": True,
        "yield_per": _ROWS_AHEAD,
        "no_parameters": True,  # a "%" in it is text
    }
    try:
        with engine.connect() as connection:
            result = connection.execution_options(**options).exec_driver_sql(query)
            names = [str(name) for name in result.keys()]  # noqa: SIM118  # of the columns, not of rows
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"input.query: has two columns {twice[0]!r}; rename one")
            for row in result:
                values = zip(names, row, strict=True)
                yield {name: as_json(value, name) for name, value in values}
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UserError(
            f"input.database: {engine.url.render_as_string()} refuses the query: {reason}; correct "
            "input.query, or check the database"
        ) from error


def _without_comments(query: str) -> str:
    start = 0
    while found := _COMMENT.match(query, start):
        start = found.end()
    return query[start:]


def _with_secrets(url: URL, is_written: bool) -> URL:
    """The URL with variables filled in; one that is `is_written` in the config has no password."""
    if is_written and url.password and "$" not in str(url.password):
        raise UserError(
            "input.database: holds a password, which would be stored with the job; write $NAME, "
            "and put it into that environment variable"
        )
    if is_written:
        # Only now: a password may have characters that mean something else in a URL.
        return url.set(
            username=_filled(url.username or "") or None,
            password=_filled(str(url.password or "")) or None,
            host=_filled(url.host or "") or None,
        )
    return url


def _filled(text: str) -> str:
    try:
        return Template(text).substitute(os.environ)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"input.database: the environment variable {error} is not set; export it"
        ) from error
