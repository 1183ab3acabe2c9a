"""The input as a stream of (key, item): rows of files, or of a query over them.

Nothing is changed silently. An item holds the values of the file. `text` and `parquet` say how
values are read that JSON does not have. The files are read one after another, as they were listed:
see `files`. Objects are downloaded to temporary files, some ahead (set TMPDIR to choose their
folder). Memory does not grow with the number of items or files.

Rows are counted from 1 in each file, without a header and without blank lines. CSV, Parquet and
Arrow files have the same columns, unless `input.columns` says which to read.
"""

from __future__ import annotations

import csv
import lzma
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_slurm_provider.coordinator.inputs.files import InputFile, InputFiles
from airflow_slurm_provider.coordinator.inputs.finding import Bucket
from airflow_slurm_provider.coordinator.inputs.formats import InputFormat, format_of, input_format
from airflow_slurm_provider.coordinator.inputs.item_keys import (
    Item,
    Origin,
    key_columns,
    key_rule,
    no_column,
)
from airflow_slurm_provider.coordinator.inputs.text import (
    csv_header,
    csv_rows,
    json_rows,
    jsonl_rows,
)
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError
from slurm_worker.prefetch import prefetch

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.inputs.database import OpenEngine
    from airflow_slurm_provider.coordinator.inputs.sql import RowFilter

#: Errors of reading that the file has caused.
_UNREADABLE = (
    *(OSError, ValueError, OverflowError, RecursionError),
    *(csv.Error, zlib.error, lzma.LZMAError),
)
_AHEAD_BYTES = 256 << 20
_MOST_AHEAD = 32
_DOWNLOADS = 8
_OF_QUERY = Origin("input.query", "query")

Numbered = Iterator[tuple[int, Item]]


class Input:
    """An input whose files are listed."""

    def __init__(
        self, spec: InputSection, bucket: Bucket, engine: OpenEngine | None = None
    ) -> None:
        """List the files; `engine` opens a database.

        Raises:
            UserError: if there is no file, or if a file has an unknown or another format.
        """
        input_format(spec)
        self.spec = spec
        self.files = InputFiles(spec.paths, bucket)
        self.format = InputFormat.PARQUET if spec.database else format_of(spec, self.files)
        self._engine = engine

    def items(self) -> Iterator[tuple[str, Item]]:
        """The (key, item) pairs, in the order of the files.

        Raises:
            UserError: naming the file and the row.
        """
        return ((key, item) for key, item, _, _ in self._keyed())

    def places(self) -> Iterator[tuple[str, str]]:
        """Each key with the place of its row, in the same order."""
        several = self.files.count > 1
        for key, _, origin, number in self._keyed():
            yield key, origin.row(number) if several else f"row {number:,}"

    def _keyed(self) -> Iterator[tuple[str, Item, Origin, int]]:
        key_of, columns = key_rule(self.spec), self.spec.columns
        missing = set(columns)
        empty = True
        for origin, number, row in self._rows():
            item = row
            if columns:
                item = {name: row[name] for name in columns if name in row}
                missing.difference_update(item)
            yield key_of(row, item, origin, number), item, origin, number
            empty = False
        if empty:
            chosen = self.spec.where or self.spec.query
            why = "that the SQL selects; correct the SQL" if chosen else "; add at least one"
            raise UserError(f"input.path: {self.spec.source} has no rows {why}".replace(" ;", ";"))
        if missing:
            raise UserError(
                f"input.columns: no item has the column {min(missing)!r}; correct the name"
            )

    def _rows(self) -> Iterator[tuple[Origin, int, Item]]:
        if self.spec.database:
            yield from self._of_database()
            return
        with tempfile.TemporaryDirectory(prefix="airflow-slurm-input-") as folder:
            scratch = Path(folder)
            if self.spec.query:
                yield from self._of_query(scratch)
            elif self.spec.where and self.format in (InputFormat.JSONL, InputFormat.JSON):
                yield from self._of_json(scratch)
            else:
                yield from self._of_files(scratch, self._filter())

    def _filter(self) -> RowFilter | None:
        if not self.spec.where:
            return None
        from airflow_slurm_provider.coordinator.inputs.sql import RowFilter

        return RowFilter(self.spec.where)

    # --- files ----------------------------------------------------------------------

    def _of_files(
        self, scratch: Path, where: RowFilter | None
    ) -> Iterator[tuple[Origin, int, Item]]:
        columns = _SameColumns(self.spec)
        with closing(_local_files(self.files, scratch)) as files:
            for file, path in files:
                origin = Origin(file.name, file.label)
                rows = self._of_file(file, path, columns, where)
                with closing(_explained(origin, rows, self.format)) as explained:
                    for number, row in explained:
                        yield origin, number, row

    def _of_file(
        self, file: InputFile, path: Path, columns: _SameColumns, where: RowFilter | None
    ) -> Numbered:
        if self.format.is_arrow:
            yield from self._of_arrow(file, path, columns, where)
            return
        if self.format is InputFormat.CSV:
            fields = tuple(file.fields)
            # With a query, the key columns are those of its result.
            keys = () if self.spec.query else self.spec.keys
            keys = tuple(key for key in keys if key not in fields)
            mark, header = csv_header(path, self.spec.csv, keys)
            columns.check(file, header)
            rows = csv_rows(path, self.spec.csv, mark, header)
        else:
            rows = (jsonl_rows if self.format is InputFormat.JSONL else json_rows)(path)
        numbered = enumerate(_with_fields(file, rows), 1)
        yield from numbered if where is None else _filtered(numbered, where)

    def _of_arrow(
        self, file: InputFile, path: Path, columns: _SameColumns, where: RowFilter | None
    ) -> Numbered:
        # pyarrow takes a third of a second to import; the other formats don't need it.
        from airflow_slurm_provider.coordinator.inputs.parquet import ArrowFile, read_rows

        with closing(ArrowFile(path, is_ipc=self.format is InputFormat.ARROW)) as source:
            columns.check(file, source.names)
            read = self._columns_to_read(source.names, where)
            start = 1
            for batch in source.batches(read):
                numbers: Sequence[int] = range(start, start + len(batch))
                start += len(batch)
                if where is not None:
                    chosen = _chosen(where, batch, file)
                    numbers = [numbers[place] for place in chosen]
                    batch = batch.take(_indices(chosen))
                yield from zip(numbers, _with_fields(file, read_rows(batch)), strict=True)

    def _columns_to_read(self, names: list[str], where: RowFilter | None) -> list[str] | None:
        """Those that items, keys and the condition need; None for all."""
        if not self.spec.columns:
            return None
        tested = where.columns_in(names) if where else ()
        wanted = {*self.spec.columns, *key_columns(self.spec, names), *tested}
        return [name for name in names if name in wanted]

    # --- SQL ------------------------------------------------------------------------

    def _of_json(self, scratch: Path) -> Iterator[tuple[Origin, int, Item]]:
        """Rows of JSON files that meet the condition; the files are read twice."""
        from airflow_slurm_provider.coordinator.inputs.staging import stage_rows

        where = self._filter()
        assert where is not None, "there is a condition"
        only = frozenset(name.casefold() for name in where.names)
        staged, files = scratch / "staged", scratch / "files"
        staged.mkdir()
        files.mkdir()
        rows = (row for _, _, row in self._of_files(files, None))
        source = stage_rows(rows, staged, "input.where", only=only, numbered=True)
        where.columns_in(source.schema.names)
        chosen = where.stream(source)
        wanted = next(chosen, None)
        for place, found in enumerate(self._of_files(files, None)):
            if place == wanted:
                yield found
                wanted = next(chosen, None)

    def _of_query(self, scratch: Path) -> Iterator[tuple[Origin, int, Item]]:
        from airflow_slurm_provider.coordinator.inputs.parquet import read_rows
        from airflow_slurm_provider.coordinator.inputs.sql import run_query
        from airflow_slurm_provider.coordinator.inputs.staging import parquet_dataset, stage_rows

        if self.format.is_arrow:
            is_ipc = self.format is InputFormat.ARROW
            source = parquet_dataset(list(_kept_files(self.files, scratch)), is_ipc=is_ipc)
        else:
            staged, files = scratch / "staged", scratch / "files"
            staged.mkdir()
            files.mkdir()
            rows = (row for _, _, row in self._of_files(files, None))
            source = stage_rows(rows, staged, "input.query")
        batches = run_query(self.spec.query, source)
        rows_of = (row for batch in batches for row in _with_integers(batch, read_rows(batch)))
        yield from self._of_rows(rows_of)

    def _of_database(self) -> Iterator[tuple[Origin, int, Item]]:
        from airflow_slurm_provider.coordinator.inputs.database import open_engine, read_query

        engine = (self._engine or open_engine)(self.spec.database)
        yield from self._of_rows(read_query(engine, self.spec.query))

    def _of_rows(self, rows: Iterator[Item]) -> Iterator[tuple[Origin, int, Item]]:
        with closing(_explained(_OF_QUERY, enumerate(rows, 1), self.format)) as explained:
            for number, row in explained:
                yield _OF_QUERY, number, row


def open_input(spec: InputSection, bucket: Bucket) -> Iterator[tuple[str, Item]]:
    """Stream the (key, item) pairs of an input; for errors see `Input`."""
    return Input(spec, bucket).items()


class _SameColumns:
    """Checks that each file has the columns of the first one, or those that the config names."""

    def __init__(self, spec: InputSection) -> None:
        self._spec = spec
        self._first: tuple[str, frozenset[str]] | None = None

    def check(self, file: InputFile, names: Sequence[str]) -> None:
        """Refuse a file whose columns, which have these names, differ."""
        if not names:
            return  # an empty file has no header
        for column in self._spec.columns:
            if column not in names and column not in file.fields:
                raise no_column("input.columns", column, file.name, list(names))
        self._check_keys(file, names)
        if self._spec.columns:
            return
        first, wanted = self._first or (file.name, frozenset(names))
        self._first = (first, wanted)
        if wanted != frozenset(names):
            lacks, has = sorted(wanted - set(names)), sorted(set(names) - wanted)
            what = f"lacks the column {lacks[0]!r}" if lacks else f"has the column {has[0]!r}"
            than = f"which {first} {'has' if lacks else 'lacks'}"
            raise UserError(
                f"input.path: {file.name} {what}, {than}; correct the file, or list the columns to "
                "read in input.columns"
            )

    def _check_keys(self, file: InputFile, names: Sequence[str]) -> None:
        for key in () if self._spec.query else self._spec.keys:
            if not {key, key.partition(".")[0]} & {*names, *file.fields}:
                raise no_column("input.key", key, file.name, list(names))


def _local_files(files: InputFiles, scratch: Path) -> Generator[tuple[InputFile, Path], None, None]:
    """Each file with its path on this machine, where it stays until the next one is asked for."""
    ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES * files.count // max(1, files.size)))

    def fetch(numbered: tuple[int, InputFile]) -> Path:
        number, file = numbered
        return file.local(scratch / f"{number:09}")

    with closing(prefetch(fetch, enumerate(files), ahead, min(ahead, _DOWNLOADS))) as fetched:
        for (_, file), path in fetched:
            yield file, path
            if file.store is not None:
                path.unlink()
            else:
                file.check(path, digest=False)


def _kept_files(files: InputFiles, scratch: Path) -> Iterator[tuple[InputFile, Path]]:
    """Each file with its path on this machine, where it stays."""
    for number, file in enumerate(files):
        yield file, file.local(scratch / f"{number:09}")


def _with_fields(file: InputFile, rows: Iterator[Item]) -> Iterator[Item]:
    if not file.fields:
        return rows
    return (_with_field(row, file.fields.items()) for row in rows)


def _with_field(row: Item, fields: Iterable[tuple[str, object]]) -> Item:
    for name, value in fields:
        if row.setdefault(name, value) != value:
            raise ValueError(f"has {name} = {row[name]!r}, but its folder has {value!r}")
    return row


def _explained(
    origin: Origin, rows: Numbered, form: InputFormat
) -> Generator[tuple[int, Item], None, None]:
    """Pass rows through, and name the row in which reading failed."""
    settings = "input.csv" if form is InputFormat.CSV else "input.format"
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except EOFError as error:
        raise UserError(
            f"input.path: {origin.name}: the file ends too early, after row {number}; copy it again"
        ) from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"input.path: {origin.row(number + 1)}: {reason}; correct the file or {settings}"
        ) from error


def _filtered(rows: Numbered, where: RowFilter) -> Numbered:
    """The rows of a CSV file that meet a condition; all of their columns are text."""
    import pyarrow as pa

    from airflow_slurm_provider.coordinator.inputs.staging import chunks

    for chunk in chunks(rows):
        columns = {
            name: pa.array([row[name] for _, row in chunk])
            for name in where.columns_in(list(chunk[0][1]))
        }
        # A column without values has no type otherwise.
        typed = {
            name: column.cast(pa.string()) if pa.types.is_null(column.type) else column
            for name, column in columns.items()
        }
        yield from (chunk[place] for place in where.select(typed, len(chunk), list(chunk[0][1])))


def _chosen(where: RowFilter, batch: Any, file: InputFile) -> list[int]:
    import pyarrow as pa

    columns: dict[str, Any] = {
        **{name: pa.array([value] * len(batch)) for name, value in file.fields.items()},
        **dict(zip(batch.schema.names, batch.columns, strict=True)),
    }
    names = where.columns_in(list(columns))
    return where.select({name: columns[name] for name in names}, len(batch), list(columns))


def _indices(places: list[int]) -> Any:
    import pyarrow as pa

    return pa.array(places, pa.int64())


def _with_integers(batch: Any, rows: Iterator[Item]) -> Iterator[Item]:
    """Rows of a query with integers where the rule for Parquet gives text: sums, for example."""
    import pyarrow as pa

    whole = [
        field.name
        for field in batch.schema
        if pa.types.is_decimal(field.type) and field.type.scale == 0
    ]
    for row in rows:
        for name in whole:
            row[name] = None if row[name] is None else int(row[name])
        yield row
