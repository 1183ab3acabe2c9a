"""What there is to merge: the markers, checked for completeness, as a plan on scratch.

The plan is an SQLite file, so that memory does not grow with the number of tasks. It
holds the committed parts in order of their tasks.

Requests: one GET per marker, one LIST per thousand, one query per page of task rows, one GET
per segment of the retry rounds.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.keys import TaskId, parse_task_id, task_id
from slurm_worker.protocol.prefetch import ahead
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.results.superseded import RetriedItems

ROWS, ERRORS = "rows", "errors"
_TABLES = """
CREATE TABLE part (
    number INTEGER PRIMARY KEY, kind TEXT, task TEXT, ok INTEGER, failed TEXT,
    key TEXT, size INTEGER, sha256 TEXT, rows INTEGER
);
"""


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """What was planned: a round with so many tasks and items.

    Args:
        number: of the round.
        tasks: without the halves of bisected ones.
        items: of its tasks.
        draft: whose segments hold its items; see `RoundRow`.
        table: its tasks, whose slices the markers must be of; None for a round without rows.
    """

    number: int
    tasks: int
    items: int
    draft: int = 0
    table: TaskTable | None = None


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A committed part and what its task's marker says.

    Args:
        task: whose part it is.
        ok: the task's items that succeeded.
        failed: its items that did not, by error class.
        part: the object.
    """

    task: TaskId
    ok: int
    failed: Mapping[str, int]
    part: Part


@dataclass(slots=True)
class Totals:
    """Sums over the markers; `retried` counts items of the rounds after the first."""

    ok: int = 0
    rows: int = 0
    items: int = 0
    retried: int = 0


@dataclass(slots=True)
class _Round:
    expected: RoundSummary
    seen: bytearray = field(init=False)
    #: The halves of bisected tasks, and whether they are there.
    halves: dict[int, bool] = field(default_factory=dict)
    items: int = 0

    def __post_init__(self) -> None:
        self.seen = bytearray(self.expected.tasks)

    def missing(self) -> Iterator[int]:
        """The numbers of tasks without a marker."""
        for sequence, seen in enumerate(self.seen):
            if not seen:
                yield sequence
        yield from (sequence for sequence, seen in self.halves.items() if not seen)


class Plan:
    """Reads and checks all markers when made; use it as a context manager.

    Args:
        store: the job's objects.
        expected: the job's rounds.
        scratch: a folder on local disk.

    Raises:
        AggregationError: saying which task is missing, or whose counts do not add up.
        ForeignMarker: saying which marker was made from other items than its task's.
    """

    def __init__(self, store: JobStore, expected: Sequence[RoundSummary], scratch: Path) -> None:
        self._store = store
        # Nothing here must survive a crash: a restart reads the markers again.
        self._db = sqlite3.connect(scratch / "plan.sqlite", isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _TABLES)
        self._retried = RetriedItems(scratch / "retried.sqlite")
        self._rounds = {each.number: _Round(each) for each in expected if each.tasks}
        self._digest = hashlib.sha256()
        self.totals = Totals()
        self._read_markers()
        self._check_rounds()
        self._read_retried()

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()
        self._retried.close()

    @property
    def digest(self) -> str:
        """Names everything that goes into the dataset, in hex."""
        return self._digest.hexdigest()

    @property
    def tasks(self) -> int:
        """How many tasks there are, all done."""
        return sum(each.expected.tasks for each in self._rounds.values())

    def parts(self, kind: str) -> Iterator[PlannedPart]:
        """The parts of a kind in order of their tasks."""
        query = (
            "SELECT task, ok, failed, kind, key, size, sha256, rows FROM part "
            "WHERE kind = ? ORDER BY number"
        )
        with closing(self._db.execute(query, (kind,))) as found:
            for task, ok, failed, *part in found:
                yield PlannedPart(TaskId(task), ok, json.loads(failed), Part(*part))

    def largest(self, kind: str) -> int:
        """Bytes of the largest part of a kind."""
        query = "SELECT coalesce(max(size), 0) FROM part WHERE kind = ?"
        largest: int = self._db.execute(query, (kind,)).fetchone()[0]
        return largest

    def superseded(self, key: str, round_no: int) -> bool:
        """Whether the item occurs again in a round after this one."""
        return self._retried.superseded(key, round_no)

    def unchanged(self) -> bool:
        """Whether the job still has exactly these markers; one LIST per thousand."""
        halves = sum(len(each.halves) for each in self._rounds.values())
        standing = self._store.objects.list(self._store.paths.done_folder)
        return sum(1 for _ in standing) == self.tasks + halves

    # --- markers ---------------------------------------------------------------

    def _read_markers(self) -> None:
        keys = self._store.objects.list(self._store.paths.done_folder)
        with closing(ahead(self._store.objects.get, keys)) as found:
            self._db.execute("BEGIN")
            markers = (_parse(key, data) for key, data in found)
            for number, of_round in groupby(markers, lambda each: parse_task_id(each.task)[0]):
                for marker in self._of_their_tasks(number, of_round):
                    self._note(marker)
            self._db.execute("COMMIT")

    def _of_their_tasks(self, number: int, markers: Iterator[Marker]) -> Iterator[Marker]:
        """A round's markers, checked: against what was planned, and each against its task."""
        planned = (self._check(each) for each in markers)
        of_round = self._rounds.get(number)
        table = None if of_round is None else of_round.expected.table
        yield from planned if table is None else table.of_their_tasks(planned, number)

    def _check(self, marker: Marker) -> Marker:
        where = f"aggregate: {self._store.paths.done(marker.task)}"
        round_no, sequence = parse_task_id(marker.task)
        of_round = self._rounds.get(round_no)
        if marker.job != self._store.paths.job:
            raise AggregationError(f"{where} is a marker of job {marker.job!r}; remove it")
        half = of_round is not None and sequence in of_round.halves
        if of_round is None or (sequence >= of_round.expected.tasks and not half):
            raise AggregationError(
                f"{where} is a marker of a task that was never planned; if a retry is being "
                "planned, aggregate when it is done, else remove the marker"
            )
        if half:
            of_round.halves[sequence] = True
        else:
            of_round.seen[sequence] = 1
        # A task's halves come after it: their numbers are above those of all tasks.
        of_round.halves.update((parse_task_id(each)[1], False) for each in marker.split)
        of_round.items += marker.items
        failed = sum(marker.failed.values())
        rows = {
            kind: sum(p.rows for p in marker.parts if p.kind == kind) for kind in (ROWS, ERRORS)
        }
        if marker.items != marker.ok + failed or rows != {ROWS: marker.rows, ERRORS: failed}:
            raise AggregationError(
                f"{where} does not add up: {marker.items:,} items are not {marker.ok:,} ok and "
                f"{failed:,} failed with {rows[ERRORS]:,} errors and {rows[ROWS]:,} of "
                f"{marker.rows:,} rows; remove the marker and run the task again"
            )
        return marker

    def _note(self, marker: Marker) -> None:
        self.totals.items += marker.items
        self.totals.ok += marker.ok
        self.totals.rows += marker.rows
        for part in marker.parts:
            self._digest.update(f"{marker.task} {part.kind} {part.sha256} {part.rows}\n".encode())
            self._db.execute(
                "INSERT INTO part (kind, task, ok, failed, key, size, sha256, rows) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    part.kind,
                    marker.task,
                    marker.ok,
                    json.dumps(marker.failed),
                    part.key,
                    part.size,
                    part.sha256,
                    part.rows,
                ),
            )

    def _check_rounds(self) -> None:
        first: TaskId | None = None
        missing = 0
        for number, each in sorted(self._rounds.items()):
            for sequence in each.missing():
                first = first or task_id(number, sequence)
                missing += 1
        if missing:
            job = self._store.paths.job
            raise AggregationError(
                f"aggregate: {missing:,} of {self.tasks:,} tasks have no .done marker, first "
                f"{first}; wait for the job (slurmctl wait {job}), or run slurmctl retry {job}"
            )
        for number, each in self._rounds.items():
            if each.items != each.expected.items:
                raise AggregationError(
                    f"aggregate: round {number} was planned with {each.expected.items:,} items, "
                    f"its markers have {each.items:,}; compare them with the job's input segments"
                )

    def _read_retried(self) -> None:
        drafts = {each: self._rounds[each].expected.draft for each in sorted(self._rounds) if each}
        found = self._retried.read(self._store, drafts)
        for number, items in found.items():
            if items != self._rounds[number].expected.items:
                raise AggregationError(
                    f"aggregate: the segments of round {number} under "
                    f"{self._store.paths.segments(number)} have {items:,} different items, "
                    f"{self._rounds[number].expected.items:,} were planned; restore what is "
                    "missing there"
                )
            self.totals.retried += items


class Remaining:
    """Counts of the failures that no later round supersedes, by error class."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.failed: Counter[str] = Counter()
        self.superseded = 0

    def keep(self, planned: PlannedPart, key: str, error_class: str) -> bool:
        """Whether this failure is the item's last word."""
        if self._plan.superseded(key, parse_task_id(planned.task)[0]):
            self.superseded += 1
            return False
        self.failed[error_class] += 1
        return True


def _parse(key: str, data: bytes | None) -> Marker:
    if data is None:
        raise AggregationError(f"aggregate: {key} was there and is gone; aggregate again")
    try:
        marker = Marker.from_json(data)
        if not key.endswith(f"/{marker.task}.done"):
            raise ValueError(f"it is of task {marker.task}")
        parse_task_id(marker.task)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AggregationError(
            f"aggregate: {key} is not a marker ({error}); remove it and run its task again"
        ) from error
    return marker
