"""A finished job in memory, written as workers write it: first parts, then markers."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate import AggregateOptions, Manifest, RoundSummary, aggregate
from slurm_worker.aggregate.job.parquet_part import ParquetColumns
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.keys import JobId, TaskId, parse_task_id, task_id
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.slices import pack_slice
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import (
    JSONL,
    KEY_FIELD,
    PARQUET,
    error_outcome,
    make_part,
    ok_outcome,
)
from slurm_worker.testing import MemoryObjects

Row = dict[str, Any]
#: The outcome of an item: its rows, or the class of its failure.
Fate = list[Row] | ErrorClass


@dataclass
class Job:
    scratch: Path
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    rounds: list[RoundSummary] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    #: Formats of the tasks' parts, in turn; `columns` is for Parquet.
    formats: Sequence[str] = (JSONL,)
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> JobPaths:
        return JobPaths("lab", JobId("job-1"))

    @property
    def store(self) -> JobStore:
        return JobStore(self.objects, self.paths)

    def add_round(self, *tasks: dict[str, Fate]) -> None:
        """Plan a round and finish it; each task is its items' outcomes by key."""
        number = len(self.rounds)
        self.rounds.append(RoundSummary(number, len(tasks), sum(map(len, tasks))))
        items = [(key, {"of": key}) for task in tasks for key in task]
        self.objects.put(self.paths.segment(number, 0), pack_slice(items))
        for sequence, outcomes in enumerate(tasks):
            self.finish(task_id(number, sequence), outcomes)

    def finish(self, task: TaskId, outcomes: dict[str, Fate]) -> None:
        rows, errors = "", ""
        failed: Counter[str] = Counter()
        for key, outcome in outcomes.items():
            if isinstance(outcome, ErrorClass):
                failed[outcome.value] += 1
                errors += error_outcome(
                    0, key, outcome, f"no {key}", tries=3, at=1e9, item=json.dumps({"of": key})
                ).body
            else:
                rows += ok_outcome(0, key, outcome).body
        parts = [self.part(task, "rows", rows)]
        if errors:
            parts.append(self.part(task, "errors", errors))
        self.commit(
            Marker(
                job="job-1",
                task=task,
                attempt=1,
                worker="w",
                items=len(outcomes),
                ok=len(outcomes) - failed.total(),
                rows=rows.count("\n"),
                failed=dict(failed),
                parts=tuple(parts),
            )
        )

    def part(self, task: TaskId, kind: str, lines: str) -> Part:
        journal = Journal(self.scratch / "journal.sqlite")
        journal.add(Outcome(0, "x" if kind == "errors" else "", lines.count("\n"), lines))
        part_format = self.formats[parse_task_id(task)[1] % len(self.formats)]
        columns = ParquetColumns(self.columns) if part_format == PARQUET else None
        suffix, data = make_part(journal, part_format, kind, self.scratch, columns)
        journal.close()
        key = self.paths.part(task, 1, kind, suffix)
        return self.store.upload_part(key, data, kind, lines.count("\n"))

    def commit(self, marker: Marker) -> None:
        self.objects.put(self.paths.done(marker.task), marker.to_json())

    def change_marker(self, task: str, **changes: Any) -> None:
        marker = self.store.marker(TaskId(task))
        assert marker is not None
        self.commit(replace(marker, **changes))

    def replace_rows(self, task: str, lines: str, rows: int | None = None) -> None:
        """Another rows part with a marker that matches it, as from a faulty worker."""
        part = self.part(TaskId(task), "rows", lines)
        if rows is not None:
            part = replace(part, rows=rows)
        self.change_marker(task, parts=(part,), rows=part.rows)

    def aggregate(self, schema: dict[str, str] | None = None, **options: int) -> Manifest:
        folder = self.scratch / f"aggregate-{len(list(self.scratch.iterdir()))}"
        folder.mkdir()
        return aggregate(
            self.objects,
            self.paths,
            self.rounds,
            AggregateOptions(schema=schema, **options),
            folder,
            self.log.append,
        )

    def table(self, files: Sequence[Any]) -> pa.Table:
        """The published files as one table."""
        return pa.concat_tables(
            [pq.read_table(io.BytesIO(self.objects.objects[file.key])) for file in files]
        )

    def dataset(self, manifest: Manifest) -> list[Row]:
        return self.table(manifest.files).to_pylist()

    def failures(self, manifest: Manifest) -> list[Row]:
        return self.table(manifest.errors).to_pylist()


def ok(**row: Any) -> Fate:
    return [row]


def lines(*rows: Row) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def keyed(key: str, **row: Any) -> Row:
    return {KEY_FIELD: key, **row}
