"""Every task of a job at a glance, reading only what may have changed since the last look.

A shard's rows are worked off about in their order, so a look reads on from the first row
that was not done at the last one, and stops where it has seen so many untouched rows that
no worker can have been further; how many are left follows from the round. The sum of what
is done is kept on S3 (`JobPaths.progress`), so that a new process need not read it anew.

    shard   done done done failed done leased done leased ready ready ready … ready
            ├──── in the sum ────┤    ├────── read ──────────────────┤ not read

Requests per look: the job's rows, and at least one query per shard, of a read unit per 4 KB
of rows (consistent: a row that is passed is not read again); one GET at the first look, one
PUT where the sum has grown by a twentieth.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_slurm_provider.coordinator.history import History
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker import keys
from slurm_worker.config import LeaseConfig
from slurm_worker.jobs import JobRow, RoundRow
from slurm_worker.keys import JobId, RoundState, TaskId, TaskState
from slurm_worker.table import TaskRow, TaskTable

_VERSION = 2
_PAGE, _PAGE_GROWTH, _LARGEST_PAGE = 50, 4, 1000
#: Untouched rows in a row, after which nobody has been: a worker picks at random among 20
#: (`finder.py`), among more only where others were quicker. Should one have been further, its
#: task counts as ready until the rows before it are done; the job is never complete too early.
_UNTOUCHED = 100
#: Rows of a shard that are passed over although they are not done; each costs a GET per look.
_MOST_ASIDE = 20
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one moment, or within the second that the look took.

    Args:
        at_ms: when, by AWS's clock.
        done: of all tasks that are done.
        leased: rows of the tasks that are held.
        ended: rows of the tasks that failed or were quarantined.
        ready: tasks that nobody holds; `waiting` of them after a failure.
        lost: leases lost so far, by whatever task.
        rows_read: rows of tasks that this look has read.
    """

    job: JobRow
    rounds: tuple[RoundRow, ...]
    at_ms: int
    done: History
    leased: tuple[TaskRow, ...]
    ended: tuple[TaskRow, ...]
    ready: int
    waiting: int
    lost: int
    rows_read: int

    @property
    def tasks(self) -> dict[str, int]:
        """Number of tasks by state, of the states that there are."""
        quarantined = sum(row.state is TaskState.QUARANTINED for row in self.ended)
        counts = {
            TaskState.DONE: self.done.tasks,
            TaskState.LEASED: len(self.leased),
            TaskState.READY: self.ready,
            TaskState.FAILED: len(self.ended) - quarantined,
            TaskState.QUARANTINED: quarantined,
        }
        return {state.value: count for state, count in counts.items() if count}


def read_snapshot(services: Services, job_id: JobId) -> Snapshot:
    """The job as it stands, reading what may have changed since these services' last look.

    Raises:
        UserError: if there is no such job.
        ServiceError: if the table or the store can't be reached.
    """
    reader: SnapshotReader = services.readers.setdefault(job_id, SnapshotReader(services, job_id))
    return reader.read()


class SnapshotReader:
    """Looks at a job again and again; safe to share between threads.

    Args:
        services: the edges.
        job_id: the job.
    """

    def __init__(self, services: Services, job_id: JobId) -> None:
        self._services = services
        self._job_id = job_id
        self._lock = threading.Lock()
        self._sum: _Sum | None = None
        self._kept = 0

    def read(self) -> Snapshot:
        """One look.

        Raises:
            UserError: if there is no such job.
            ServiceError: if the table can't be reached.
        """
        with self._lock:
            return self._read()

    def _read(self) -> Snapshot:
        services = self._services
        jobs = services.jobs(self._job_id)
        job, rounds = jobs.get(), jobs.rounds()
        if self._sum is None or not self._sum.is_of(job):
            self._sum = self._load(job)
            self._kept = self._sum.done.tasks
        table = TaskTable(services.rows, job.job, job.shards, LeaseConfig(), services.clock)
        looks = [_Look(table, shard, rounds, each) for shard, each in enumerate(self._sum.shards)]
        with ThreadPoolExecutor(min(_THREADS, job.shards)) as pool:
            list(pool.map(_Look.run, looks))
        for shard, look in enumerate(looks):
            self._sum.done.add(look.passed)
            self._sum.shards[shard] = look.cursor
        self._keep()
        return self._snapshot(job, rounds, looks)

    def _snapshot(self, job: JobRow, rounds: list[RoundRow], looks: list[_Look]) -> Snapshot:
        assert self._sum is not None, "a look has just been had"
        done = History()
        done.add(self._sum.done)
        for look in looks:
            done.add(look.beyond)
        rows = [row for look in looks for row in look.open]
        leased = tuple(row for row in rows if row.state is TaskState.LEASED)
        ended = tuple(row for row in rows if row.state.terminal)
        ready = [row for row in rows if row.state is TaskState.READY]
        return Snapshot(
            job=job,
            rounds=tuple(rounds),
            at_ms=int(self._services.clock.now() * 1000),
            done=done,
            leased=leased,
            ended=ended,
            ready=len(ready) + sum(look.unread for look in looks),
            waiting=sum(bool(row.not_before_ms) for row in ready),
            lost=done.lost + sum(row.lost for row in rows),
            rows_read=sum(look.rows_read for look in looks),
        )

    def _load(self, job: JobRow) -> _Sum:
        data = self._services.objects.get(self._services.paths(self._job_id).progress)
        found = None if data is None else _Sum.from_json(data)
        return found if found is not None and found.is_of(job) else _Sum.empty(job)

    def _keep(self) -> None:
        assert self._sum is not None, "a look has just been had"
        if self._sum.done.tasks - self._kept > self._kept // 20:
            # Whoever writes last wins; each sum agrees with its own cursors.
            self._services.objects.put(
                self._services.paths(self._job_id).progress, self._sum.to_json()
            )
            self._kept = self._sum.done.tasks


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far a shard is in the sum: rows up to `after` are, but for those put `aside`."""

    after: str = ""
    aside: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sum:
    """What is done, and up to where in each shard."""

    created_ms: int
    shards: list[_Cursor]
    done: History = field(default_factory=History)

    @classmethod
    def empty(cls, job: JobRow) -> _Sum:
        return cls(job.created_ms, [_Cursor()] * job.shards)

    def is_of(self, job: JobRow) -> bool:
        """Whether it is of this very job, and not of one of the same name before it."""
        return self.created_ms == job.created_ms and len(self.shards) == job.shards

    def to_json(self) -> bytes:
        document: dict[str, Any] = {
            "v": _VERSION,
            "created_ms": self.created_ms,
            "shards": [[each.after, list(each.aside)] for each in self.shards],
            "done": self.done.to_dict(),
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> _Sum | None:
        """Read what `to_json` wrote; None if another release did: it is but a saving."""
        raw = json.loads(data)
        if raw.get("v") != _VERSION:
            return None
        shards = [_Cursor(after, tuple(aside)) for after, aside in raw["shards"]]
        return cls(raw["created_ms"], shards, History.from_dict(raw["done"]))


class _Look:
    """One look at one shard.

    Attributes:
        cursor: how far it is in the sum after this look.
        passed: what is to be added to the sum.
        beyond: of done tasks behind the first that is not.
        open: every other row that was read.
        unread: untouched rows that were not read.
    """

    def __init__(
        self, table: TaskTable, shard: int, rounds: list[RoundRow], cursor: _Cursor
    ) -> None:
        self._table = table
        self._shard = shard
        self._rounds = {each.number: each for each in rounds}
        self.cursor = cursor
        self.passed = History()
        self.beyond = History()
        self.open: list[TaskRow] = []
        self.unread = 0
        self.rows_read = 0

    def run(self) -> None:
        """Look."""
        self._look_aside()
        passing = True
        for row in self._rows(self.cursor.after):
            done = row.state is TaskState.DONE
            passing = passing and self._planned(row) and (done or self._put_aside(row))
            if passing:
                self.cursor = replace(self.cursor, after=row.sk)
            if not done:
                self.open.append(row)
            elif passing:
                self.passed.add_row(row)
            else:
                self.beyond.add_row(row)

    def _planned(self, row: TaskRow) -> bool:
        """Whether no row before this one can still come; a round's halves stand at its end."""
        round_row = self._rounds.get(row.round_no)
        return round_row is not None and round_row.state is RoundState.OPEN

    def _look_aside(self) -> None:
        """Read again the rows that were passed over."""
        left = []
        for sk in self.cursor.aside:
            row = self._table.find(keys.task_id(*_numbers(sk)))
            self.rows_read += 1
            if row is None:
                continue
            if row.state is TaskState.DONE:
                self.passed.add_row(row)
                continue
            left.append(sk)
            self.open.append(row)
        self.cursor = replace(self.cursor, aside=tuple(left))

    def _put_aside(self, row: TaskRow) -> bool:
        """Pass over a row that will hardly change; False if it is to be read again."""
        if not row.state.terminal or len(self.cursor.aside) >= _MOST_ASIDE:
            return False
        self.cursor = replace(self.cursor, aside=(*self.cursor.aside, row.sk))
        return True

    def _rows(self, after: str) -> Iterator[TaskRow]:
        """Rows past `after`, in order, but for those that nobody can have touched."""
        size, untouched = _PAGE, 0
        while True:
            page = self._table.page(self._shard, after, size)
            self.rows_read += len(page)
            for row in page:
                yield row
                after = row.sk
                fresh = row.state is TaskState.READY and not row.attempt
                untouched = untouched + 1 if fresh else 0
                if untouched == _UNTOUCHED and row.sequence < keys.MAX_TASKS:
                    # On to the halves of bisected tasks, and to the next round.
                    self.unread += self._after(row)
                    after, untouched = keys.task_sk(row.round_no, keys.MAX_TASKS), 0
                    break
            else:
                if len(page) < size:
                    return
            size = _PAGE if untouched else min(size * _PAGE_GROWTH, _LARGEST_PAGE)

    def _after(self, row: TaskRow) -> int:
        """Rows of the round behind this one in the shard, halves of bisected tasks aside."""
        round_row = self._rounds.get(row.round_no)
        if round_row is None:
            return 0
        opened = round_row.state is RoundState.OPEN
        last = round_row.tasks if opened else round_row.cursor
        return max(0, (last - 1 - row.sequence) // self._table.shards)


def _numbers(sk: str) -> tuple[int, int]:
    round_no, sequence = sk.split("#")
    return int(round_no), int(sequence)


def task_row(services: Services, job_id: JobId, task: TaskId) -> TaskRow | None:
    """One task's row; None if the job has no such task."""
    job = services.jobs(job_id).get()
    table = TaskTable(services.rows, job_id, job.shards, LeaseConfig(), services.clock)
    return table.find(task)
