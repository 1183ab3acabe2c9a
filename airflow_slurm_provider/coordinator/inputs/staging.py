"""Rows of text files as Arrow files on this machine, for SQL: one type for each column.

A column of JSON gets the type that holds all of its values exactly; whole numbers and floats
become floats. Other mixtures are refused. Memory holds some thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs

from airflow_slurm_provider.coordinator.inputs.files import InputFile
from airflow_slurm_provider.coordinator.inputs.sql import BATCH_ROWS, NUMBER
from slurm_worker.errors import UserError


def stage_rows(
    rows: Iterable[dict[str, Any]],
    folder: Path,
    field: str,
    *,
    only: frozenset[str] | None = None,
    numbered: bool = False,
) -> ds.Dataset:
    """Rows as a dataset in a folder.

    Args:
        rows: Rows with values of JSON.
        folder: An empty folder.
        field: The setting that needs it, for messages.
        only: The columns to keep, in small letters; by default all.
        numbered: Whether to add the column `NUMBER`.

    Raises:
        UserError: if a column has values of different types.
    """
    left, first = iter(rows), 0
    paths: list[Path] = []
    schema = pa.schema([pa.field(NUMBER, pa.int64())] if numbered else [])
    schemas: list[pa.Schema] = []
    while chunk := list(islice(left, BATCH_ROWS)):
        names = dict.fromkeys(
            name for row in chunk for name in row if only is None or name.casefold() in only
        )
        columns = {name: _array(name, [row.get(name) for row in chunk], field) for name in names}
        if numbered:
            columns[NUMBER] = pa.array(range(first, first + len(chunk)), pa.int64())
        first += len(chunk)
        table = pa.table(columns)
        schema = _together(schema, table.schema, field)
        schemas.append(table.schema)
        paths.append(folder / f"{len(paths):06}.arrow")
        _write(paths[-1], table)
    for path, own in zip(paths, schemas, strict=True):
        _widen(path, own, schema, field)
    return ds.dataset([str(path) for path in paths], schema=schema, format="ipc")


def parquet_dataset(files: list[tuple[InputFile, Path]], *, is_ipc: bool) -> ds.Dataset:
    """Typed files on this machine as one dataset; the columns of their folders are added.

    Raises:
        UserError: if their columns have different types.
    """
    form: Any = ds.IpcFileFormat()
    if not is_ipc:
        # Arrow reads INT96 as nanoseconds, which end in 2262, and silently wraps later times.
        form = ds.ParquetFileFormat(coerce_int96_timestamp_unit="us")
    disk = fs.LocalFileSystem()
    schema, fragments = pa.schema([]), []
    for file, path in files:
        shown: Any = pc.scalar(value=True)
        added = []
        for name, value in file.fields.items():
            column = pc.field(name)
            shown = (column.is_null() if value is None else column == value) & shown
            added.append(pa.field(name, _type_of(value)))
        try:
            own = form.inspect(str(path), disk)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"input.path: {file.name}: {' '.join(str(error).split())}; correct the file or "
                "input.format"
            ) from error
        schema = _together(schema, pa.schema([*own, *added]), f"input.path: {file.name}")
        expression = shown if file.fields else None
        fragments.append(form.make_fragment(str(path), disk, partition_expression=expression))
    return ds.FileSystemDataset(fragments, schema, form, disk)


def _type_of(value: str | int | None) -> pa.DataType:
    if value is None:
        return pa.null()
    return pa.int64() if isinstance(value, int) else pa.string()


def _array(name: str, values: list[Any], field: str) -> pa.Array[Any]:
    try:
        found: pa.Array[Any] = pa.array(values)
        return found
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise _mixed(f"column {name!r}", error, field) from error


def _together(schema: pa.Schema, other: pa.Schema, field: str) -> pa.Schema:
    try:
        return pa.unify_schemas([schema, other], promote_options="permissive")
    except pa.ArrowException as error:
        raise _mixed("a column", error, field) from error


def _widen(path: Path, own: pa.Schema, schema: pa.Schema, field: str) -> None:
    """Write a file again if another one has a wider type of one of its columns."""
    wanted = pa.schema([schema.field(name) for name in own.names])
    if wanted.equals(own):
        return
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    try:
        _write(path, table.cast(wanted))
    except pa.ArrowException as error:
        raise _mixed("a column", error, field) from error


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _mixed(what: str, error: BaseException, field: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"{field}: {what} has values of different types, which SQL does not take ({reason}); "
        "correct the input"
    )


def chunks(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Rows with their numbers, some thousand at a time."""
    return iter(lambda: list(islice(rows, BATCH_ROWS)), [])
