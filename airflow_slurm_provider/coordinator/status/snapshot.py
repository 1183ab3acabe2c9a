"""The state of all tasks of a job, from the rows that may have changed since the last snapshot.

Workers process a shard's rows about in order. So a snapshot reads on from the first row that was
not done at the last one. It stops after so many untouched rows in a row that no worker can be
further; the number of rows left follows from the round. The totals of done tasks are kept on S3
(`JobPaths.progress`), so that a new process continues from there. Where the last snapshot is old,
the workers' own totals (`slurm_worker/protocol/shard_progress.py`) are further.

    shard   done done done failed done leased done leased ready ready ready … ready
            ├──── in the sum ────┤    ├────── read ──────────────────┤ not read

Requests per snapshot: the job's rows, and at least one query per shard, two where leases were lost
or an earlier round is not all done. A query takes a read unit per 4 KB of rows (consistent: a row
that is passed is not read again). A process's first snapshot takes a GET, and one per shard. There
is one PUT where the sum has grown by a twentieth.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId, RoundState, TaskState
from slurm_worker.protocol.shard_progress import ShardTotal
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow

_VERSION = 3
_PAGE, _PAGE_GROWTH, _LARGEST_PAGE = 100, 2, 1000
#: After so many untouched rows no worker has been: a worker picks at random among the first 20
#: (`node/task_finder.py`). If one has been further, its task counts as ready until the rows before
#: it are done; the job is never complete too early.
_UNTOUCHED = 20
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one time, or within the second that reading took."""

    job: JobRow
    rounds: tuple[RoundRow, ...]
    at_ms: int  #: when, by AWS's clock
    done: JobTotals  #: totals of all tasks that are done
    leased: tuple[TaskRow, ...]  #: rows of the tasks that are held
    ended: tuple[TaskRow, ...]  #: rows of the tasks that failed or were quarantined
    ready: int  #: tasks that no worker holds; `waiting` of them after a failure
    waiting: int
    lost: int  #: leases lost so far, of all tasks
    rows_read: int  #: task rows that this snapshot has read
    given_back: tuple[TaskRow, ...] = ()  #: rows of ready tasks that a worker has held before

    @property
    def requests_of_open(self) -> Counter[str]:
        """Requests to AWS, by kind, that workers have recorded for tasks that are not done."""
        counts: Counter[str] = Counter()
        for row in (*self.leased, *self.ended, *self.given_back):
            counts.update(row.requests)
        return counts

    @property
    def tasks(self) -> dict[str, int]:
        """Number of tasks by state, without empty states."""
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
    """The job now, from the rows that may have changed since these services' last snapshot.

    Raises:
        UserError: if there is no such job.
        ServiceError: if the table or the store can't be reached.
    """
    reader: SnapshotReader = services.readers.get(
        job_id, math.inf, lambda: SnapshotReader(services, job_id)
    )
    return reader.read()


class SnapshotReader:
    """Reads snapshots of one job; safe to share between threads."""

    def __init__(self, services: Services, job_id: JobId) -> None:
        self._services = services
        self._job_id = job_id
        self._lock = threading.Lock()
        self._totals: _Totals | None = None
        self._kept = 0

    def read(self) -> Snapshot:
        """A snapshot; raises as `read_snapshot`."""
        with self._lock:
            jobs = self._services.jobs(self._job_id)
            job, rounds = jobs.get(), jobs.rounds()
            totals = self._totals
            if totals is None or not totals.is_of(job):
                totals = self._totals = self._load(job)
                self._kept = totals.done.tasks
            table, lost = self._services.tasks(job), totals.done.lost > 0
            scans = [
                _ShardScan(table, shard, rounds, ShardTotal(*cursor), lost)
                for shard, cursor in enumerate(totals.cursors)
            ]
            with ThreadPoolExecutor(min(_THREADS, job.shards)) as pool:
                list(pool.map(_ShardScan.run, scans))
            totals.add([scan.passed for scan in scans])
            self._keep(totals)
            done = JobTotals()
            for part in (totals.done, *(scan.beyond for scan in scans)):
                done.add(part)
        return self._snapshot(job, rounds, done, scans)

    def _snapshot(
        self, job: JobRow, rounds: list[RoundRow], done: JobTotals, scans: list[_ShardScan]
    ) -> Snapshot:
        rows = [row for scan in scans for row in scan.open]
        ready = [row for row in rows if row.state is TaskState.READY]
        return Snapshot(
            job=job,
            rounds=tuple(rounds),
            at_ms=int(self._services.clock.now() * 1000),
            done=done,
            leased=tuple(row for row in rows if row.state is TaskState.LEASED),
            ended=tuple(row for row in rows if row.state.terminal),
            ready=len(ready) + sum(scan.unread for scan in scans),
            waiting=sum(bool(row.not_before_ms) for row in ready),
            lost=done.lost + sum(row.lost for row in rows),
            rows_read=sum(scan.rows_read for scan in scans),
            given_back=tuple(row for row in ready if row.attempt),
        )

    def _load(self, job: JobRow) -> _Totals:
        """The stored totals: of the last snapshot, or of the workers."""
        objects, paths = self._services.objects, self._services.paths(self._job_id)
        kept = _Totals.from_json(objects.get(paths.progress), job)
        with ThreadPoolExecutor(min(_THREADS, job.shards)) as pool:
            shards = list(pool.map(objects.get, map(paths.shard_progress, range(job.shards))))
        by_workers = _Totals.empty(job)
        by_workers.add([ShardTotal.from_json(total, job) for total in shards])
        return max(kept, by_workers, key=lambda candidate: candidate.done.tasks)

    def _keep(self, totals: _Totals) -> None:
        if totals.done.tasks - self._kept > self._kept // 20:
            # The last writer wins; each total agrees with its own cursors.
            path = self._services.paths(self._job_id).progress
            self._services.objects.put(path, totals.to_json())
            self._kept = totals.done.tasks


@dataclass(slots=True)
class _Totals:
    """The totals of done tasks, and up to where in each shard."""

    created_ms: int
    rows_since: str
    #: By shard, `after` and `aside` of a `ShardTotal`
    cursors: list[tuple[str, tuple[str, ...]]]
    done: JobTotals = field(default_factory=JobTotals)

    @classmethod
    def empty(cls, job: JobRow) -> _Totals:
        return cls(job.created_ms, job.rows_since, [("", ())] * job.shards)

    def is_of(self, job: JobRow) -> bool:
        """Whether it belongs to this job, and not to an earlier one of the same name."""
        return self.rows_since == job.rows_since and len(self.cursors) == job.shards

    def add(self, shards: list[ShardTotal]) -> None:
        """Add what was passed in each shard."""
        self.cursors = [(total.after, total.aside) for total in shards]
        for total in shards:
            self.done.add(total.done)

    def to_json(self) -> bytes:
        document: dict[str, Any] = {
            "v": _VERSION,
            "created_ms": self.created_ms,
            "rows_since": self.rows_since,
            "shards": self.cursors,
            "done": self.done.to_dict(),
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes | None, job: JobRow) -> _Totals:
        """Read what `to_json` wrote; empty if there is none of this job and this release."""
        raw: dict[str, Any] = json.loads(data) if data else {}
        if raw.get("v") != _VERSION:
            return cls.empty(job)
        cursors = [(after, tuple(aside)) for after, aside in raw["shards"]]
        done = JobTotals.from_dict(raw["done"])
        found = cls(raw["created_ms"], raw["rows_since"], cursors, done)
        return found if found.is_of(job) else cls.empty(job)


class _ShardScan:
    """Reads one shard; `lost` is whether leases of tasks in the totals were lost."""

    def __init__(
        self, table: TaskTable, shard: int, rounds: list[RoundRow], passed: ShardTotal, lost: bool
    ) -> None:
        self._table = table
        self._shard = shard
        self._rounds = {round_row.number: round_row for round_row in rounds}
        self._lost = lost
        #: How far the totals go, and what this scan adds to them.
        self.passed = passed
        #: Totals of done tasks after the first that is not done.
        self.beyond = JobTotals()
        #: Every other row that was read.
        self.open: list[TaskRow] = []
        #: Untouched rows that were not read.
        self.unread = 0
        self.rows_read = 0

    def run(self) -> None:
        """Read the shard."""
        self._read_aside()
        passing = True
        for row in self._rows(self.passed.after):
            self._lost = self._lost or row.lost > 0
            passing = passing and self.passed.take(row, self._rounds)
            if row.state is not TaskState.DONE:
                self.open.append(row)
            elif not passing:
                self.beyond.add_row(row)

    def _read_aside(self) -> None:
        """Read again the rows that were passed over."""
        left = []
        for sk in self.passed.aside:
            row = self._table.find(keys.task_id(*keys.parse_task_id(sk)))
            self.rows_read += 1
            if row is None:
                continue
            if row.state is TaskState.DONE:
                self.passed.done.add_row(row)
            else:
                left.append(sk)
                self.open.append(row)
                self._lost = self._lost or row.lost > 0
        self.passed.aside = tuple(left)

    def _rows(self, after: str) -> Iterator[TaskRow]:
        """Rows past `after`, in order, except those that no worker can have touched."""
        size, untouched = _PAGE, 0
        while True:
            page = self._table.page(self._shard, after, size)
            self.rows_read += len(page)
            met_fresh = False
            for row in page:
                yield row
                after = row.sk
                fresh = row.state is TaskState.READY and not row.attempt
                met_fresh = met_fresh or fresh
                untouched = untouched + 1 if fresh else 0
                if untouched == _UNTOUCHED and row.sequence < keys.MAX_TASKS:
                    self.unread += self._after(row)
                    if not self._goes_on_behind(row.round_no):
                        return
                    after, untouched = keys.task_sk(row.round_no, keys.MAX_TASKS), 0
                    break
            else:
                if len(page) < size:
                    return
            size = _PAGE if met_fresh else min(size * _PAGE_GROWTH, _LARGEST_PAGE)

    def _goes_on_behind(self, round_no: int) -> bool:
        """Whether rows may follow: halves of tasks that lost their leases, or another round."""
        return self._lost or round_no < max(self._rounds, default=round_no)

    def _after(self, row: TaskRow) -> int:
        """Rows of the round behind this one in the shard, halves of bisected tasks aside."""
        round_row = self._rounds.get(row.round_no)
        if round_row is None:
            return 0
        opened = round_row.state is RoundState.OPEN
        last = round_row.tasks if opened else round_row.cursor
        return max(0, (last - 1 - row.sequence) // self._table.shards)
