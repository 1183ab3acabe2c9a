"""The task rows of one round, repaired from segments and markers.

Several at a time; memory grows with the number of tasks by an entry in a set. Requests: a
query per page of rows, a list per thousand markers; where rows are missing a GET per segment;
per repaired row one GET and two writes; a HEAD for each done task whose marker is not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

from airflow_slurm_provider.coordinator.maintenance.repair.context import FixedClock, RepairContext
from slurm_worker.errors import ServiceError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import ForeignMarker, Marker
from slurm_worker.protocol.keys import TaskId, TaskState
from slurm_worker.protocol.task_table import TaskTable, halves_of
from slurm_worker.protocol.tasks import TaskRow

_ATTEMPT = re.compile(r"a(\d+)")


class TaskRepair:
    """The task rows of one round that is open.

    Workers may be running. Rows are read before markers are listed, and rows that seem broken are
    read again, so that a task that has just changed is not taken for broken.

    With `strict`, a marker that was made from other items raises `ForeignMarker`, instead of being
    reported.
    """

    def __init__(
        self, context: RepairContext, table: TaskTable, round_row: RoundRow, *, strict: bool
    ) -> None:
        self._context = context
        self._store = context.store
        self._result = context.result
        self._table = table
        self._round = round_row
        self._strict = strict
        self._done: set[TaskId] = set()
        self._present: set[int] = set()

    def run(self) -> None:
        """Make rows agree with their markers, and create missing rows."""
        undone, whole = self._scan()
        split = []
        before = self._result.tasks
        with closing(prefetch(self._rebuild, self._missing())) as rebuilt:
            for row, marker in rebuilt:
                self._present.add(row.sequence)
                self._result.tasks += 1
                self._result.completed += marker is not None
                if marker is not None and marker.split:
                    split.append((row, marker))
        if self._result.tasks > before:
            lost = self._result.tasks - before
            self._context.log(f"round {self._round.number}: {lost:,} tasks had no row")
        with closing(prefetch(self._catch_up, undone)) as settled:
            caught_up = [found for _, found in settled if found is not None]
        self._result.completed += len(caught_up)
        split += [(row, marker) for row, marker in caught_up if marker.split]
        with closing(prefetch(self._marker, whole)) as markers:
            split += [(row, marker) for row, marker in markers if marker and marker.split]
        for row, marker in split:
            self._halve(row, marker)

    def _scan(self) -> tuple[list[TaskId], list[TaskRow]]:
        """Tasks that aren't done and have a marker; rows of tasks that may be bisected."""
        undone, done, whole = [], [], []
        for row in self._table.rows_of_round(self._round.number):
            self._present.add(row.sequence)
            if row.state is not TaskState.DONE:
                undone.append(row.task)
                continue
            done.append(row.task)
            if row.where.count > 1 and not row.items_ok and not row.items_failed:
                whole.append(row)
        # Only now: a row is done after its marker, so the marker of every done row is listed.
        folder = self._store.paths.done_folder
        self._done = {
            TaskId(key.removeprefix(folder).removesuffix(".done"))
            for key in self._store.objects.list(f"{folder}{self._round.number:03}-")
        }
        for task in done:
            if task in self._done:
                continue
            # A store's list may be behind; the object decides.
            if self._store.objects.size(self._store.paths.done(task)) is None:
                self._result.unrepaired.append(
                    f"task {task} is done, but {self._store.paths.done(task)} is missing from the "
                    "bucket; restore that object"
                )
            else:
                self._done.add(task)
        kept = [row for row in whole if row.task in self._done]
        return [task for task in undone if task in self._done], kept

    def _missing(self) -> Iterator[TaskRow]:
        """Rows that should be there, as they were planned."""
        if all(number in self._present for number in range(self._round.tasks)):
            return
        planned = 0
        slices = self._store.planned_slices(self._round.number, self._round.draft)
        for planned, where in enumerate(slices, 1):
            if planned - 1 not in self._present:
                yield TaskRow(self._round.number, planned - 1, TaskState.READY, where)
        if planned < self._round.tasks:
            self._result.unrepaired.append(
                f"tasks {planned:,} to {self._round.tasks - 1:,} of round {self._round.number} "
                f"have no slice below {self._store.paths.segments(self._round.number)}; repair "
                "again, or restore its segments"
            )

    def _rebuild(self, row: TaskRow) -> Marker | None:
        """Create a row; return the marker by which it is done, if it is."""
        done = row.task in self._done
        if self._context.write:
            attempt = 0 if done else self._last_attempt(row.task)
            self._table.create(row.round_no, row.sequence, row.where, attempt)
        return self._settle(row) if done else None

    def _catch_up(self, task: TaskId) -> tuple[TaskRow, Marker] | None:
        """Mark a row as done; None where its worker has, or the marker belongs to other items."""
        row = self._table.find(task)
        if row is None or row.state is TaskState.DONE:
            return None
        marker = self._settle(row)
        return None if marker is None else (row, marker)

    def _settle(self, row: TaskRow) -> Marker | None:
        """Make a row done, by its marker; of a bisected task, the halves come first."""
        marker = self._marker(row)
        if marker is not None and not marker.split and self._context.write:
            _at(self._table, marker.finished).complete(marker)
        return marker

    def _marker(self, row: TaskRow) -> Marker | None:
        """The task's marker; None where it is not of the task's items."""
        marker = self._store.marker(row.task)
        if marker is None:
            key = self._store.paths.done(row.task)
            raise ServiceError(f"{key} was listed and can't be read; try again")
        try:
            marker.check(row.where)
        except ForeignMarker as error:
            if self._strict:
                raise
            self._result.unrepaired.append(str(error))
            return None
        return marker

    def _last_attempt(self, task: TaskId) -> int:
        """The highest attempt that left an object; the next attempt must be above it."""
        paths = self._store.paths
        folders = (f"{paths.parts}{task}/", paths.checkpoints(task), f"{paths.all_proposed}{task}/")
        names = (
            key.removeprefix(folder)
            for folder in folders
            for key in self._store.objects.list(folder)
        )
        found = filter(None, map(_ATTEMPT.match, names))
        return max((int(match.group(1)) for match in found), default=0)

    def _halve(self, row: TaskRow, marker: Marker) -> None:
        """Make the halves of a bisected task done, and then the whole."""
        lost = [
            half
            for half in halves_of(row)
            if half.sequence not in self._present and self._table.find(half.task) is None
        ]
        self._result.tasks += len(lost)
        if lost and self._context.write:
            self._table.create_halves(row)
        for half in lost:
            if half.task in self._done and self._settle(half) is not None:
                self._result.completed += 1
        if row.state is not TaskState.DONE and self._context.write:
            _at(self._table, marker.finished).complete(marker)


def _at(table: TaskTable, at: float) -> TaskTable:
    return TaskTable(table.rows, table.job, table.shards, table.lease, FixedClock(at))
