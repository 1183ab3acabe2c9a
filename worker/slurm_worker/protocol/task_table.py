"""Task rows: each conditional write, and what its refusal means.

Requests per task: one write to create, one to claim, one to complete, one per
heartbeat; reads are the claim pages of `node/task_finder.py`. A row stays under 1 KB, so each
write is one unit. Every method says what it does if the write was applied and its
reply lost, because the client library then repeats the request and is refused.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId, TaskId, TaskState
from slurm_worker.protocol.ports import Applied, Clock, Refused, Row, Rows, Statement, int_of
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.statements import tasks as task_statements
from slurm_worker.protocol.task_history import Crash, HistoryEntry, TaskEvent, read_history
from slurm_worker.protocol.tasks import Candidate, Claimed, GivenUp, Lease, TaskRow

_MESSAGE_LIMIT = 200
#: Entries of a row's history, and characters of a worker's name in each: within the 1 KB.
HISTORY_LIMIT = 5
_NAME_LIMIT = 40


class RowConflict(UserError):
    """A task's row was written by another plan."""


class TaskTable:
    """The task rows of one job, whose META row has the number of `shards`."""

    def __init__(
        self, rows: Rows, job: JobId, shards: int, lease: LeaseConfig, clock: Clock
    ) -> None:
        self.rows = rows
        self.job = job
        self.shards = shards
        self.lease = lease
        self.clock = clock

    def create(self, round_no: int, sequence: int, where: Slice, attempt: int = 0) -> None:
        """Write a new row; a row that exists (a restarted planner's) is left as it is.

        A write that is repeated after a lost reply is refused, and the row is there. A row that
        replaces a lost one starts from the last known `attempt`.

        Raises:
            RowConflict: if the existing row has other items.
        """
        row = TaskRow(round_no, sequence, TaskState.READY, where, attempt)
        key: Row = {"pk": self._pk(sequence), "sk": row.sk}
        result = self.rows.put_new({**key, **row.to_row()})
        if result.row is not None and (standing := TaskRow.from_row(result.row)).where != where:
            raise RowConflict(
                f"job_id: task {standing.task} of {self.job!r} has a row in the table that another "
                "plan has written; give this job another job_id, or delete the rows of the old one"
            )

    def page(self, shard: int, after: str, limit: int) -> list[TaskRow]:
        """Up to `limit` rows of a shard past the sort key `after`, as they are now."""
        return [candidate.read() for candidate in self.candidates(shard, after, limit)]

    def candidates(self, shard: int, after: str, limit: int) -> list[Candidate]:
        """As `page`, for a choice of one row among them."""
        rows = self.rows.query(
            keys.task_pk(self.job, shard), after=after, limit=limit, consistent=True
        )
        return [Candidate(row) for row in rows]

    def all_rows(self, shard: int) -> Iterator[TaskRow]:
        """Every row of a shard, perhaps a second old, for half the price."""
        return map(TaskRow.from_row, self.rows.query(keys.task_pk(self.job, shard)))

    def rows_of_round(self, round_no: int) -> Iterator[TaskRow]:
        """A round's rows in the order of their numbers, halves of bisected tasks last.

        As they are now; a request per page of each shard.
        """
        after = keys.before_round(round_no)

        def of_shard(shard: int) -> Iterator[TaskRow]:
            rows = self.rows.query(keys.task_pk(self.job, shard), after=after, consistent=True)
            return takewhile(lambda row: row.round_no == round_no, map(TaskRow.from_row, rows))

        return heapq.merge(*map(of_shard, range(self.shards)), key=lambda row: row.sequence)

    def check_markers(self, markers: Iterable[Marker], round_no: int) -> Iterator[Marker]:
        """A round's markers, after a check that each was made from the items of its task.

        The markers come in the order of their tasks. The requests are those of `rows_of_round`,
        and one for each row that was written after its page was read.

        Raises:
            ForeignMarker: naming a marker of other items, or whose task has no row.
        """
        rows = self.rows_of_round(round_no)
        row = next(rows, None)
        for marker in markers:
            _, sequence = keys.parse_task_id(marker.task)
            while row is not None and row.sequence < sequence:
                row = next(rows, None)
            found = row if row is not None and row.sequence == sequence else self.find(marker.task)
            marker.check(None if found is None else found.where)
            yield marker

    def find(self, task: TaskId) -> TaskRow | None:
        """One task's row."""
        round_no, sequence = keys.parse_task_id(task)
        row = self.rows.get(self._pk(sequence), keys.task_sk(round_no, sequence))
        return None if row is None else TaskRow.from_row(row)

    def claim(self, row: TaskRow, owner: str, request: str = "") -> Claimed | None:
        """Lease a ready task; None if another worker was quicker, or it is not claimable.

        A refusal that carries our request id is our own lost reply. The `request` id, which no
        other request has, is drawn where none is given.
        """
        request = request or uuid.uuid4().hex
        now = self._ms()
        statement = task_statements.claim(owner, request, now, self._until(now))
        return self._lease(row, owner, request, statement)

    def steal(self, row: TaskRow, owner: str, request: str = "") -> Claimed | GivenUp | None:
        """Lease a task whose lease has expired, as `row` was seen a heartbeat ago.

        A task that has lost its lease `max_lost` times may be what kills its workers. The
        worker that steals it bisects it (`Lease.to_bisect`); one that can't be bisected is
        quarantined here instead. Arguments are those of `claim`.
        """
        now = self._ms()
        dead = now - int(self.lease.margin_s * 1000)
        if row.lost + 1 >= self.lease.max_lost and not row.can_bisect:
            return self._quarantine(row, owner, dead)
        request = request or uuid.uuid4().hex
        history = _unless_full(row, self._entry(TaskEvent.STOLEN, owner, row.owner))
        until = self._until(now)
        statement = task_statements.steal(
            owner, request, now, until, dead=dead, seen=row.version, history=history
        )
        return self._lease(row, owner, request, statement)

    def heartbeat(self, lease: Lease, ok: int, failed: int, *, checkpoint: str = "") -> bool:
        """Renew the lease for another ttl, record progress (in items) and the checkpoint.

        Repeating it does no harm. False if the lease is lost: stop, discard, take the next task.
        """
        until, version = self._until(self._ms()), uuid.uuid4().hex
        statement = task_statements.heartbeat(
            lease.owner, lease.attempt, version, until, ok=ok, failed=failed, checkpoint=checkpoint
        )
        return isinstance(self._update(lease.task, statement), Applied)

    def complete(self, marker: Marker) -> None:
        """Bring the row to what the marker says, whichever worker made it.

        Safe to repeat, and for any worker to call: the marker has already decided. A refusal
        means that the row is done by the same decision.
        """
        self._update(marker.task, task_statements.complete(marker, self._ms()))

    def decide(self, marker: Marker) -> int:
        """The attempt whose marker counts, where the store can't decide: the first to ask.

        A refusal names the winner; it may be our own first try whose reply was lost.
        """
        result = self._update(marker.task, task_statements.decide(marker.attempt))
        return int_of(result.row or {}, "winner")

    def fail(
        self,
        lease: Lease,
        error_class: ErrorClass,
        message: str,
        delay_s: float,
        *,
        final: bool = False,
    ) -> None:
        """Give a task that could not be run back, or fail it: at once, or after `max_tries`.

        Refused after a lost reply, or because the lease was lost: in both cases it has ended.
        """
        final = final or lease.row.tries + 1 >= self.lease.max_tries
        entry = self._entry(TaskEvent.FAILED, lease.owner)
        entry = replace(entry, attempt=lease.attempt, error_class=error_class.value)
        statement = task_statements.fail(
            lease.owner,
            lease.attempt,
            next_state=TaskState.FAILED if final else TaskState.READY,
            not_before=self._ms() + int(delay_s * 1000),
            error_class=error_class,
            message=message[:_MESSAGE_LIMIT],
            history=_unless_full(lease.row, entry),
        )
        self._update(lease.task, statement)

    def give_back(self, lease: Lease, checkpoint: str = "") -> None:
        """Give the lease back by no fault of its task, or excuse a loss that came before this.

        For a live holder that could not continue, because a service failed or the lease
        expired meanwhile. The next holder finds what it has committed. One write, or two.
        """
        # A service that fails for minutes must not fill the history: the first entry is enough.
        recorded = any(entry.event is TaskEvent.SERVICE_FAILED for entry in lease.row.history)
        event = None if recorded else TaskEvent.SERVICE_FAILED
        if not self.release(lease, checkpoint, event=event):
            self.excuse_loss(lease)

    def excuse_loss(self, lease: Lease) -> None:
        """Report that the holder from whom this lease was stolen lives: the loss does not count.

        Refused means that nothing was stolen, or that this was reported before.
        """
        self._update(lease.task, task_statements.excuse_loss(lease.attempt))

    def undo_claim(self, row: TaskRow, owner: str, request: str) -> None:
        """Give back what a claim, or a steal, of `row` may have leased whose reply never came.

        Refused means that it leased nothing, or that this was done before. What the same
        worker has leased since by another request stays leased, however late this arrives.
        """
        statement = task_statements.undo_claim(
            request,
            checkpoint=row.checkpoint,
            requests=row.requests,
            history=_unless_full(row, self._entry(TaskEvent.RELEASED, owner)),
        )
        self._update(row.task, statement)

    def release(
        self,
        lease: Lease,
        checkpoint: str = "",
        requests: Mapping[str, int] | None = None,
        event: TaskEvent | None = TaskEvent.RELEASED,
    ) -> bool:
        """Give the lease back without counting a try; False if it was lost already.

        `requests` were made of AWS for the task so far, by kind, for the marker to come. The
        `event` is for the history; None records nothing.
        """
        entries = [] if event is None else [self._entry(event, lease.owner)]
        statement = task_statements.release(
            lease.owner,
            lease.attempt,
            checkpoint=checkpoint,
            requests=requests or lease.row.requests,
            history=_unless_full(lease.row, *entries),
        )
        return isinstance(self._update(lease.task, statement), Applied)

    def record_crash(self, task: TaskId, attempt: int, owner: str, crash: Crash) -> bool:
        """Record on which item the process that held the lease died, and give the lease back.

        False if the lease has ended: it expired first, or this was recorded before.
        """
        entry = self._entry(TaskEvent.CRASHED, owner)
        entry = replace(entry, error_class=crash.error_class.value, position=crash.position)
        statement = task_statements.record_crash(owner, attempt, crash, entry)
        return isinstance(self._update(task, statement), Applied)

    def abandon(self, task: TaskId, attempt: int, owner: str) -> bool:
        """Report that the holder of a lease is dead: the lease ends now, as if it had expired.

        False if the lease has ended. A request that the dead process has sent may still arrive
        and renew it; then it expires by itself.
        """
        return isinstance(self._update(task, task_statements.abandon(owner, attempt)), Applied)

    def create_halves(self, row: TaskRow) -> None:
        """Write the rows of a bisected task's halves; those that exist stay."""
        for half in halves_of(row):
            self.create(half.round_no, half.sequence, half.where)

    def reopen(self, row: TaskRow, round_no: int) -> bool:
        """Make a failed or quarantined task ready again, for a retry's round.

        False if the round has done so before, or another has since `row` was read. Only
        `generations.open_round` may call this: workers must look for a task that comes back.
        """
        entry = HistoryEntry(self._ms(), TaskEvent.REOPENED, round_no=round_no)
        statement = task_statements.reopen(row.state, row.attempt, round_no, entry)
        return isinstance(self._update(row.task, statement), Applied)

    def record_cause(self, row: TaskRow, error_class: ErrorClass, message: str) -> bool:
        """Record why the workers of a quarantined task died; False if it is recorded already."""
        statement = task_statements.record_cause(row.attempt, error_class, message[:_MESSAGE_LIMIT])
        return isinstance(self._update(row.task, statement), Applied)

    def _pk(self, sequence: int) -> str:
        return keys.task_pk(self.job, keys.shard_of(sequence, self.shards))

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)

    def _until(self, now: int) -> int:
        return now + int(self.lease.ttl_s * 1000)

    def _update(self, task: TaskId, statement: Statement) -> Applied | Refused:
        round_no, sequence = keys.parse_task_id(task)
        return self.rows.update(self._pk(sequence), keys.task_sk(round_no, sequence), statement)

    def _entry(self, event: TaskEvent, worker: str, previous: str = "") -> HistoryEntry:
        return HistoryEntry(self._ms(), event, worker[:_NAME_LIMIT], previous[:_NAME_LIMIT])

    def _lease(
        self, row: TaskRow, owner: str, request: str, statement: Statement
    ) -> Claimed | None:
        standing = self._update(row.task, statement).row
        if standing is None or standing.get("request") != request:
            return None
        return Claimed(Lease(TaskRow.from_row(standing), owner))

    def _quarantine(self, row: TaskRow, owner: str, dead: int) -> GivenUp | None:
        """Give a task up; a refusal whose row holds our entry is our own lost reply."""
        entry = self._entry(TaskEvent.QUARANTINED, owner, row.owner)
        message = f"the lease was lost {row.lost + 1} times, last by {row.owner}"
        statement = task_statements.quarantine(
            dead=dead, seen=row.version, message=message, history=entry
        )
        result = self._update(row.task, statement)
        ours = isinstance(result, Applied) or entry in read_history(result.row or {})
        return GivenUp() if ours else None


def _unless_full(row: TaskRow, *entries: HistoryEntry) -> Sequence[HistoryEntry]:
    """The entries for the history, none where it is full.

    The history changes only in writes that end the lease under which `row` was read, so its
    length is what it was then.
    """
    return entries if len(row.history) < HISTORY_LIMIT else ()


def halves_of(row: TaskRow) -> tuple[TaskRow, TaskRow]:
    """The rows that a task is bisected into, as they are created."""
    halves = keys.halves(row.task)
    if halves is None:
        raise ValueError(f"{row.task} is a half already")
    where, middle = row.where, row.where.count // 2
    one = replace(where, count=middle)
    other = replace(where, first=where.first + middle, count=where.count - middle)
    first, second = map(keys.parse_task_id, halves)
    return TaskRow(*first, TaskState.READY, one), TaskRow(*second, TaskState.READY, other)
