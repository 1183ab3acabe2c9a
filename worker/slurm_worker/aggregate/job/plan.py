"""The plan of a merge: all markers, checked to be complete, on scratch.

The plan is an SQLite file, so that memory does not grow with the number of tasks. It
holds the committed parts in order of their tasks.

Requests: one GET per marker, one LIST per thousand, one query per page of task rows, one GET
per segment of the retry rounds.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.keys import TaskId, parse_task_id, task_id
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.results.superseded import RetriedItems

ROWS, ERRORS = "rows", "errors"
#: `dataclasses.astuple` copies each value, which takes as long as reading the marker.
PART_FIELDS = attrgetter(*Part.__slots__)
#: Nothing in it must survive a crash: a restart reads the markers again.
_DATABASE = """
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;
CREATE TABLE part (number INTEGER PRIMARY KEY, task, ok, failed, kind, key, size, sha256, rows);
"""


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """What was planned: a round with its numbers of tasks and items."""

    number: int  #: of the round
    tasks: int  #: how many, without the halves of bisected tasks
    items: int  #: of its tasks
    draft: int = 0  #: the draft whose segments hold its items; see `RoundRow`
    #: The task rows, whose slices the markers must match; None for a round without rows
    table: TaskTable | None = None
    appended: bool = False  #: its items were new; those of other rounds after the first are retries

    @property
    def new_items(self) -> int:
        """How many items of the input it has added to the job."""
        return self.items if self.appended or not self.number else 0


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A committed part; `ok` and `failed` (by error class) count the items of its task."""

    task: TaskId
    ok: int
    failed: Mapping[str, int]
    part: Part


@dataclass(slots=True)
class _Round:
    expected: RoundSummary
    seen: bytearray  #: of each task, whether it has a marker
    halves: dict[int, bool] = field(default_factory=dict)  #: the same of halves of bisected tasks
    items: int = 0


class Plan:
    """Reads and checks all markers when it is created; a context manager.

    Raises:
        AggregationError: naming the task that is missing, or whose counts do not agree.
        ForeignMarker: naming a marker that was made from other items than its task's.
    """

    def __init__(self, store: JobStore, expected: Sequence[RoundSummary], scratch: Path) -> None:
        self._store = store
        self._db = sqlite3.connect(scratch / "plan.sqlite", isolation_level=None)
        self._db.executescript(_DATABASE)
        self.retried = RetriedItems(scratch / "retried.sqlite")  #: which items were retried
        self._rounds = {
            summary.number: _Round(summary, bytearray(summary.tasks))
            for summary in expected
            if summary.tasks
        }
        self._sha256 = hashlib.sha256()
        self.tasks = sum(summary.tasks for summary in expected)  #: how many there are, all done
        self.ok = self.rows = 0  #: sums over the markers
        self.retries = 0  #: items of the retry rounds
        self._read_markers()
        self._check_rounds()
        self._read_retried()
        #: Of everything that goes into the dataset, in hex
        self.digest = self._sha256.hexdigest()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_error: object) -> None:
        self._db.close()
        self.retried.close()

    def parts(self, kind: str) -> Iterator[PlannedPart]:
        """The parts of a kind that have rows, in order of their tasks."""
        query = "SELECT * FROM part WHERE kind = ? AND rows ORDER BY number"
        for _, task, ok, failed, *part in self._db.execute(query, (kind,)):
            yield PlannedPart(TaskId(task), ok, json.loads(failed), Part(*part))

    def largest(self, kind: str) -> int:
        """Bytes of the largest part of a kind."""
        query = "SELECT coalesce(max(size), 0) FROM part WHERE kind = ?"
        return int(self._db.execute(query, (kind,)).fetchone()[0])

    def unchanged(self) -> bool:
        """Whether the job still has exactly these markers; one LIST per thousand."""
        halves = sum(len(of_round.halves) for of_round in self._rounds.values())
        markers = self._store.objects.list(self._store.paths.done_folder)
        return sum(1 for _ in markers) == self.tasks + halves

    # --- markers ---------------------------------------------------------------

    def _read_markers(self) -> None:
        keys = self._store.objects.list(self._store.paths.done_folder)
        with closing(prefetch(self._store.objects.get, keys)) as found:
            self._db.execute("BEGIN")
            markers = (_parse(key, data) for key, data in found)
            for number, of_round in groupby(markers, lambda marker: parse_task_id(marker.task)[0]):
                # Each is checked against what was planned, and against its task's row.
                checked: Iterator[Marker] = map(self._check, of_round)
                planned = self._rounds.get(number)
                if planned is not None and planned.expected.table is not None:
                    checked = planned.expected.table.check_markers(checked, number)
                for marker in checked:
                    self._add(marker)
            self._db.execute("COMMIT")

    def _check(self, marker: Marker) -> Marker:
        where = f"aggregate: {self._store.paths.done(marker.task)}"
        round_no, sequence = parse_task_id(marker.task)
        of_round = self._rounds.get(round_no)
        if marker.job != self._store.paths.job:
            raise AggregationError(f"{where} belongs to job {marker.job!r}; remove this marker")
        half = of_round is not None and sequence in of_round.halves
        if of_round is None or (sequence >= of_round.expected.tasks and not half):
            raise AggregationError(
                f"{where} belongs to a task that was never planned; if a retry is being planned, "
                "aggregate again after it, else remove this marker"
            )
        if half:
            of_round.halves[sequence] = True
        else:
            of_round.seen[sequence] = 1
        # A task's halves come after it: their numbers are above those of all tasks.
        of_round.halves.update((parse_task_id(task)[1], False) for task in marker.split)
        of_round.items += marker.items
        failed = sum(marker.failed.values())
        rows = {
            kind: sum(part.rows for part in marker.parts if part.kind == kind)
            for kind in (ROWS, ERRORS)
        }
        if marker.items != marker.ok + failed or rows != {ROWS: marker.rows, ERRORS: failed}:
            raise AggregationError(
                f"{where} has counts that do not agree: {marker.items:,} items, {marker.ok:,} ok, "
                f"{failed:,} failed, {rows[ERRORS]:,} error records, and {rows[ROWS]:,} of "
                f"{marker.rows:,} rows; remove this marker and run the task again"
            )
        return marker

    def _add(self, marker: Marker) -> None:
        self.ok += marker.ok
        self.rows += marker.rows
        failed = json.dumps(marker.failed)
        for part in marker.parts:
            self._sha256.update(f"{marker.task} {part.kind} {part.sha256} {part.rows}\n".encode())
            self._db.execute(
                "INSERT INTO part VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (marker.task, marker.ok, failed, *PART_FIELDS(part)),
            )

    def _check_rounds(self) -> None:
        missing = (
            task_id(number, sequence)
            for number, of_round in sorted(self._rounds.items())
            for sequence, seen in chain(enumerate(of_round.seen), of_round.halves.items())
            if not seen
        )
        first = next(missing, None)
        if first is not None:
            job = self._store.paths.job
            raise AggregationError(
                f"aggregate: {1 + sum(1 for _ in missing):,} of {self.tasks:,} tasks have no .done "
                f"marker, the first is {first}; wait for the job (slurmctl wait {job}), or run "
                f"slurmctl retry {job}"
            )
        for number, of_round in self._rounds.items():
            if of_round.items != of_round.expected.items:
                raise AggregationError(
                    f"aggregate: round {number} was planned with {of_round.expected.items:,} "
                    f"items, but its markers have {of_round.items:,}; compare them with the job's "
                    "input segments"
                )

    def _read_retried(self) -> None:
        rounds = sorted(self._rounds.items())
        drafts = {number: of_round.expected.draft for number, of_round in rounds if number}
        for number, items in self.retried.read(self._store, drafts).items():
            if items != self._rounds[number].expected.items:
                raise AggregationError(
                    f"aggregate: the segments of round {number} under "
                    f"{self._store.paths.segments(number)} have {items:,} different items, but "
                    f"{self._rounds[number].expected.items:,} were planned; restore the missing "
                    "segments"
                )
            self.retries += 0 if self._rounds[number].expected.appended else items


def _parse(key: str, data: bytes | None) -> Marker:
    if data is None:
        raise AggregationError(f"aggregate: {key} was deleted while it was read; aggregate again")
    try:
        marker = Marker.from_json(data)
        if not key.endswith(f"/{marker.task}.done"):
            raise ValueError(f"it belongs to task {marker.task}")
        if task_id(*parse_task_id(marker.task)) != marker.task:
            raise ValueError(f"{marker.task} is not the id of a task")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AggregationError(
            f"aggregate: {key} is not a valid marker ({error}); remove it and run its task again"
        ) from error
    return marker
