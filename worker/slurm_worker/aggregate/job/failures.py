"""The dataset of failures: a row for each item whose last attempt in any round failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.dataset.folder import DataFile, DatasetFolder, part_name
from slurm_worker.aggregate.dataset.writer import grouped
from slurm_worker.aggregate.errors import one_line
from slurm_worker.aggregate.job.merge import WRITER, groups_of
from slurm_worker.aggregate.job.parts import PartReader, part_error
from slurm_worker.aggregate.job.plan import ERRORS, Plan, PlannedPart
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import with_place
from slurm_worker.printable import encodable
from slurm_worker.protocol.keys import parse_task_id
from slurm_worker.results.parts import KEY_FIELD, message_of

#: Rows of a table of failures, of which a part has few.
_ROWS_AT_ONCE = 1_000
_FIELDS: list[pa.Field[Any]] = [
    pa.field(KEY_FIELD, pa.string(), nullable=False),
    pa.field("class", pa.string(), nullable=False),
    pa.field("message", pa.string()),
    pa.field("tries", pa.int64()),
    pa.field("at", pa.timestamp("us", "UTC")),
    pa.field("round", pa.int64(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("item", pa.string()),  # its JSON text
]
ERRORS_SCHEMA = pa.schema(_FIELDS)
_Kept = tuple[PlannedPart, list[dict[str, Any]]]
_NO_RECORDS = (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException)


@dataclass(slots=True)
class FailureMerger:
    """Merges the errors parts of a plan, and counts the failures."""

    reader: PartReader
    plan: Plan
    options: AggregateOptions
    #: Failures that no later round supersedes, by error class
    failed: Counter[str] = field(default_factory=Counter)
    superseded: int = 0  #: failures whose item occurs again in a later round

    def merge(self, folder: DatasetFolder) -> list[DataFile]:
        """Write the files of the failures that no later round supersedes.

        Raises:
            AggregationError: if an errors part is not what was committed.
        """
        files = []
        for number, parts in enumerate(groups_of(self.plan, ERRORS, self.options)):
            name = part_name([WRITER, self.plan.digest, asdict(self.options), number])
            # A table takes longer to set up than a part's few failures to write into it.
            together = grouped(self._kept(parts), (lambda kept: len(kept[1]), _ROWS_AT_ONCE))
            tables = map(self._table, together)
            file = folder.write(name, ERRORS_SCHEMA, tables, self.options.row_group_size)
            if file.rows:
                files.append(file)
        return files

    def _kept(self, parts: Sequence[PlannedPart]) -> Iterator[_Kept]:
        """Each part, and the rows of its failures that no later round supersedes."""
        batches = ([planned] for planned in parts)
        largest = self.plan.largest(ERRORS)
        for (planned,), records in self.reader.ahead(batches, largest, lambda b: b[0].rows()):
            with self._named(planned):
                if Counter(record["class"] for record in records) != planned.failed:
                    raise ValueError("its error classes are not those of its marker")
                kept = [_row(planned, record) for record in records if self._keep(planned, record)]
            yield planned, kept

    def _keep(self, planned: PlannedPart, record: dict[str, Any]) -> bool:
        """Count a failure; tell whether no later round has its item."""
        if self.plan.retried.superseded(record[KEY_FIELD], parse_task_id(planned.task)[0]):
            self.superseded += 1
            return False
        self.failed[record["class"]] += 1
        return True

    def _table(self, parts: Sequence[_Kept]) -> pa.Table:
        try:
            together = [row for _, kept in parts for row in kept]
            return pa.Table.from_pylist(together, schema=ERRORS_SCHEMA)
        except _NO_RECORDS:
            for planned, kept in parts:  # find the part to name
                with self._named(planned):
                    pa.Table.from_pylist(kept, schema=ERRORS_SCHEMA)
            raise

    @contextmanager
    def _named(self, planned: PlannedPart) -> Iterator[None]:
        """Name the part whose records are not valid."""
        try:
            yield
        except _NO_RECORDS as error:
            problem = f"has invalid error records ({type(error).__name__}: {one_line(error)})"
            raise part_error(self.reader.store, planned.task, planned.part, problem) from error


def _row(planned: PlannedPart, record: dict[str, Any]) -> dict[str, Any]:
    return {
        KEY_FIELD: record[KEY_FIELD],
        "class": record["class"],
        "message": with_place(*message_of(record)),
        "tries": record["tries"],
        "at": round(record["at"] * 1_000_000),
        "round": parse_task_id(planned.task)[0],
        "task": planned.task,
        "item": encodable(json.dumps(record["item"], ensure_ascii=False)),
    }
