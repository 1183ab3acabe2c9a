"""Parts to Parquet: a part at a time, in order of the tasks, verified on the way.

A file's name is the hash of what it is made of: its parts, the schema and this writer.
Memory holds one row group and the parts that are read ahead.

Requests: one GET per part (two where the schema is inferred), and those of `dataset.folder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from operator import attrgetter

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.inference import Inference
from slurm_worker.aggregate.columns.types import Schema, parse_schema
from slurm_worker.aggregate.dataset.writer import DatasetWriter, FileGroup, grouped
from slurm_worker.aggregate.job.parts import Fetched, PartReader, is_columns
from slurm_worker.aggregate.job.plan import ROWS, Plan, PlannedPart
from slurm_worker.aggregate.options import AggregateOptions

#: A number that is raised with every change of what is written for the same parts.
WRITER = f"4 pyarrow-{pa.__version__}"


class PartMerger(DatasetWriter):
    """Makes files of parts, here or on a node; `columns` are the schema without the key.

    Raises:
        UserError: if an option names no column.
    """

    def __init__(self, reader: PartReader, columns: Schema, options: AggregateOptions) -> None:
        options.check(columns)
        self._reader = reader
        self._converter = Converter(columns, declared=options.schema is not None)
        super().__init__(WRITER, self._converter, options)

    def group(self, parts: Sequence[PlannedPart]) -> FileGroup:
        """The parts of one file; reading raises an AggregationError that names what is wrong."""
        return FileGroup(
            [planned.part.sha256 for planned in parts],
            lambda: self._reader.tables(parts, self._converter),
            sum(planned.part.rows for planned in parts),
        )


def groups_of(plan: Plan, kind: str, options: AggregateOptions) -> Iterator[list[PlannedPart]]:
    """The parts of each file, where rows stay in the input's order."""
    return grouped(
        plan.parts(kind),
        (attrgetter("part.rows"), options.rows_per_file),
        (attrgetter("part.size"), options.file_size),
    )


def schema_of(reader: PartReader, plan: Plan, options: AggregateOptions) -> Schema:
    """The declared schema; without one, that of all rows, from a full pass over them.

    Raises:
        UserError: if a declared type is not a type.
        AggregationError: naming a value that does not fit one schema with the others.
    """
    if options.schema is not None:
        return parse_schema(options.schema)
    inference = Inference()
    parts = ([planned] for planned in plan.parts(ROWS))
    largest = plan.largest(ROWS)
    with closing(
        reader.ahead(parts, largest, lambda batch: _read_into(inference, batch[0]))
    ) as read:
        for (planned,), add in read:
            add(planned.part.key)
    return inference.schema()


def _read_into(inference: Inference, fetched: Fetched) -> Callable[[str], None]:
    """See `Inference.read_lines`."""
    if is_columns(fetched.part):
        rows = fetched.rows()
        return lambda part: inference.add_rows(rows, part)
    return inference.read_lines(fetched.lines(), fetched.part.rows, fetched.parse)
