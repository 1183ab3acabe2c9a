"""Task rows: each conditional write, and what its refusal means.

Requests per task: one write to create, one to claim, one to complete, one per
heartbeat; reads are the claim pages of `node/task_finder.py`. A row stays under 1 KB, so each
write is one unit. Every method says what it does where the write was applied and its
reply lost, because the client library then repeats the request and is refused.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol import expressions, keys
from slurm_worker.protocol.crashes import Crash
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId, TaskId, TaskState
from slurm_worker.protocol.ports import Applied, Clock, Refused, Rows, Statement, Value, int_of
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import (
    Candidate,
    Claimed,
    GivenUp,
    Held,
    Lease,
    Lost,
    Renewed,
    TaskRow,
)

_MESSAGE_LIMIT = 200


class RowConflict(UserError):
    """A task's row was written by another plan."""


#: Entries of a row's history, of whatever kind, and characters of each: within the 1 KB.
HISTORY_LIMIT = 5
_ENTRY_LIMIT = 80
_SERVICE_FAILED = "a service failed; given back by"


class TaskTable:
    """The task rows of one job.

    Args:
        rows: the table.
        job: the job's id.
        shards: its number of shards, from its META row.
        lease: times of a lease.
        clock: AWS time.
    """

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

        A lost reply is refused when repeated, which is as good: the row is there. A row that
        stands in for a lost one starts from the last `attempt` that is known of.

        Raises:
            RowConflict: if the row that stands is of other items.
        """
        result = self.rows.put_new(
            {
                "pk": self._pk(sequence),
                "sk": keys.task_sk(round_no, sequence),
                "state": TaskState.READY.value,
                "segment": where.segment,
                "offset": where.offset,
                "length": where.length,
                "items": where.count,
                "sha256": where.sha256,
                **({"first": where.first} if where.first else {}),
                **({"attempt": attempt} if attempt else {}),
            }
        )
        if result.row is not None and (standing := TaskRow.from_row(result.row)).where != where:
            raise RowConflict(
                f"job_id: task {standing.task} of {self.job!r} has a row in the table that another "
                "plan has written; give this job another job_id, or delete the rows of the old one"
            )

    def page(self, shard: int, after: str, limit: int) -> list[TaskRow]:
        """Up to `limit` rows of a shard past the sort key `after`, as they are now."""
        return [each.read() for each in self.candidates(shard, after, limit)]

    def candidates(self, shard: int, after: str, limit: int) -> list[Candidate]:
        """As `page`, for whoever looks for one row among them."""
        rows = self.rows.query(
            keys.task_pk(self.job, shard), after=after, limit=limit, consistent=True
        )
        return [Candidate(row) for row in rows]

    def all_rows(self, shard: int) -> Iterator[TaskRow]:
        """Every row of a shard, perhaps a second old: half the price."""
        for row in self.rows.query(keys.task_pk(self.job, shard)):
            yield TaskRow.from_row(row)

    def rows_of_round(self, round_no: int) -> Iterator[TaskRow]:
        """A round's rows in the order of their numbers, halves of bisected tasks last.

        As they are now; a request per page of each shard.
        """
        shards = (self._of_round(shard, round_no) for shard in range(self.shards))
        return heapq.merge(*shards, key=lambda row: row.sequence)

    def check_markers(self, markers: Iterable[Marker], round_no: int) -> Iterator[Marker]:
        """A round's markers, each checked to be made from the items of its task.

        Beside the requests of `of_round` one for each row that came after its page was read.

        Args:
            markers: in the order of their tasks.
            round_no: the round.

        Raises:
            ForeignMarker: naming one that is not, or whose task has no row.
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

    def _of_round(self, shard: int, round_no: int) -> Iterator[TaskRow]:
        after = keys.before_round(round_no)
        for row in self.rows.query(keys.task_pk(self.job, shard), after=after, consistent=True):
            found = TaskRow.from_row(row)
            if found.round_no != round_no:
                return
            yield found

    def find(self, task: TaskId) -> TaskRow | None:
        """One task's row."""
        round_no, sequence = keys.parse_task_id(task)
        row = self.rows.get(self._pk(sequence), keys.task_sk(round_no, sequence))
        return None if row is None else TaskRow.from_row(row)

    def claim(self, row: TaskRow, owner: str, request: str = "") -> Claimed | Held:
        """Lease a ready task. A refusal that carries our request id is our own lost reply.

        Args:
            row: the task, as it was seen.
            owner: who leases it.
            request: an id of this request that no other has; drawn where none is given.
        """
        request, values = self._taking(owner, request)
        return self._taken(row, owner, request, expressions.CLAIM, values)

    def steal(self, row: TaskRow, owner: str, request: str = "") -> Claimed | Held | GivenUp:
        """Lease a task whose lease has run out, as `row` was seen a heartbeat ago.

        A task that has lost its lease `max_lost` times may be what kills its workers. The
        thief bisects it (`Lease.to_bisect`); one that can't be is quarantined here instead.
        Arguments are those of `claim`.
        """
        request, values = self._taking(owner, request)
        values |= {
            "leased": TaskState.LEASED.value,
            "dead": self._ms() - int(self.lease.margin_s * 1000),
            "seen": row.version,
        }
        values["none"] = []
        if row.lost + 1 >= self.lease.max_lost and not row.can_bisect:
            return self._quarantine(row, owner, values)
        values["event"] = self._event(row, f"stolen by {owner} from {row.owner}")
        return self._taken(row, owner, request, expressions.STEAL, values)

    def heartbeat(
        self, lease: Lease, ok: int, failed: int, *, checkpoint: str = ""
    ) -> Renewed | Lost:
        """Renew the lease, note progress and the checkpoint; repeating it does no harm."""
        result = self._held(
            lease,
            expressions.HEARTBEAT,
            {
                "until": self._ms() + int(self.lease.ttl_s * 1000),
                "request": uuid.uuid4().hex,
                "ok": ok,
                "failed": failed,
                "checkpoint": checkpoint,
            },
        )
        if isinstance(result, Applied):
            return Renewed()
        return Lost(TaskRow.from_row(result.row) if result.row else None)

    def complete(self, marker: Marker) -> None:
        """Bring the row to what the marker says, whoever made it.

        Safe to repeat and for anybody to call: the marker has already decided. A refusal
        means that the row is done by the same decision.
        """
        round_no, sequence = keys.parse_task_id(marker.task)
        self.rows.update(
            self._pk(sequence),
            keys.task_sk(round_no, sequence),
            expressions.COMPLETE,
            {
                "done": TaskState.DONE.value,
                "winner": marker.attempt,
                "ok": marker.ok,
                "failed": sum(marker.failed.values()),
                "by": cast("dict[str, Value]", marker.failed),
                "rows": marker.rows,
                "now": self._ms(),
                "worker": marker.worker,
                "node": marker.slurm.get("node", ""),
                "took": max(0, int((marker.finished - marker.started) * 1000)),
                "requests": cast("dict[str, Value]", marker.requests),
            },
        )

    def decide(self, marker: Marker) -> int:
        """The attempt whose marker shall stand, where the store can't decide: the first asked.

        A refusal names the winner; it may be our own first try whose reply was lost.
        """
        round_no, sequence = keys.parse_task_id(marker.task)
        result = self.rows.update(
            self._pk(sequence),
            keys.task_sk(round_no, sequence),
            expressions.DECIDE,
            {"winner": marker.attempt},
        )
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

        Refused after a lost reply, or because the lease was lost: either way it is gone.
        """
        final = final or lease.row.tries + 1 >= self.lease.max_tries
        self._held(
            lease,
            expressions.FAIL,
            {
                "next": (TaskState.FAILED if final else TaskState.READY).value,
                "not_before": self._ms() + int(delay_s * 1000),
                "class": error_class.value,
                "message": message[:_MESSAGE_LIMIT],
                "zero": 0,
                "one": 1,
                "none": [],
                "event": self._event(
                    lease.row, f"{error_class.value} a{lease.attempt} {lease.owner}"
                ),
            },
        )

    def give_back(self, lease: Lease, checkpoint: str = "") -> None:
        """Give the lease back by no fault of its task, or excuse a loss that came before this.

        For a holder that lives and could not go on, because a service failed or the lease ran
        out meanwhile. What it has committed, the next holder finds. One write, or two.
        """
        what = f"{_SERVICE_FAILED} {lease.owner}"
        # A service that fails for minutes must not fill the history: the first time tells.
        told = any(_SERVICE_FAILED in entry for entry in lease.row.history)
        if not self._owned(lease, "" if told else what, checkpoint):
            self.excuse_loss(lease)

    def excuse_loss(self, lease: Lease) -> None:
        """Say that the holder from whom this lease was stolen lives: the loss does not count.

        Refused means that nothing was stolen, or that this was said before.
        """
        values: dict[str, Value] = {
            "leased": TaskState.LEASED.value,
            "ready": TaskState.READY.value,
            "attempt": lease.attempt,
            "zero": 0,
            "one": 1,
        }
        self.rows.update(self._pk(lease.row.sequence), lease.row.sk, expressions.EXCUSE, values)

    def undo_claim(self, row: TaskRow, owner: str, request: str) -> None:
        """Give back what a claim, or a steal, of `row` may have got whose answer never came.

        Refused means that it got nothing, or that this was said before. Of what the same worker
        has leased since by another request nothing is given back, however late this is said.
        """
        values = self._released(row, f"released by {owner}", row.checkpoint, row.requests)
        values |= {"leased": TaskState.LEASED.value, "taking": request}
        self.rows.update(self._pk(row.sequence), row.sk, expressions.DISOWN, values)

    def release(
        self, lease: Lease, checkpoint: str = "", requests: Mapping[str, int] | None = None
    ) -> bool:
        """Give the lease back without counting a try; False if it is gone anyway.

        Args:
            lease: the lease.
            checkpoint: names what is saved of it.
            requests: made of AWS for the task so far, by kind, for the marker to come.
        """
        return self._owned(lease, f"released by {lease.owner}", checkpoint, requests)

    def record_crash(self, task: TaskId, attempt: int, owner: str, crash: Crash) -> bool:
        """Say on which item the process that held the lease died, and give the lease back.

        False if the lease is gone: it ran out first, or this was said before.
        """
        values: dict[str, Value] = {
            "ready": TaskState.READY.value,
            "crash": [crash.to_text()],
            "none": [],
            "event": [f"{self._ms()} crashed: {crash.to_text()}"[:_ENTRY_LIMIT]],
        }
        result = self._held_by(owner, task, attempt, expressions.CRASHED, values)
        return isinstance(result, Applied)

    def abandon(self, task: TaskId, attempt: int, owner: str) -> bool:
        """Say that the holder of a lease is dead: the lease ends now, as if it had run out.

        False if the lease is gone. A request that the dead have sent may still arrive and
        renew it; then it runs out by itself.
        """
        result = self._held_by(owner, task, attempt, expressions.ABANDON, {"zero": 0})
        return isinstance(result, Applied)

    def create_halves(self, row: TaskRow) -> None:
        """Write the rows of a bisected task's halves; those that exist stay."""
        for half in halves_of(row):
            self.create(half.round_no, half.sequence, half.where)

    def reopen(self, row: TaskRow, round_no: int) -> bool:
        """Make a failed or quarantined task ready again, for a retry's round.

        False if the round has done so before, or somebody else has since `row` was read. Only
        `generations.open_round` may call this: a task that comes back has to be found.
        """
        result = self.rows.update(
            self._pk(row.sequence),
            row.sk,
            expressions.REOPEN,
            {
                "ready": TaskState.READY.value,
                "was": row.state.value,
                "attempt": row.attempt,
                "round": round_no,
                "zero": 0,
                "one": 1,
                "none": [],
                "event": [f"{self._ms()} reopened: retry round {round_no}"[:_ENTRY_LIMIT]],
            },
        )
        return isinstance(result, Applied)

    def record_cause(self, row: TaskRow, error_class: ErrorClass, message: str) -> bool:
        """Say why the workers of a quarantined task died; False if somebody else has."""
        result = self.rows.update(
            self._pk(row.sequence),
            row.sk,
            expressions.ATTRIBUTE,
            {
                "quarantined": TaskState.QUARANTINED.value,
                "attempt": row.attempt,
                "unknown": ErrorClass.WORKER_CRASH.value,
                "class": error_class.value,
                "message": message[:_MESSAGE_LIMIT],
            },
        )
        return isinstance(result, Applied)

    def _pk(self, sequence: int) -> str:
        return keys.task_pk(self.job, keys.shard_of(sequence, self.shards))

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)

    def _event(self, row: TaskRow, what: str) -> list[Value]:
        """An entry for the history, none where it is full.

        The history changes only in writes that end the lease under which `row` was read,
        so its length is what it was then.
        """
        if len(row.history) >= HISTORY_LIMIT:
            return []
        return [f"{self._ms()} {what}"[:_ENTRY_LIMIT]]

    def _taking(self, owner: str, request: str) -> tuple[str, dict[str, Value]]:
        request = request or uuid.uuid4().hex
        now = self._ms()
        return request, {
            "ready": TaskState.READY.value,
            "leased": TaskState.LEASED.value,
            "owner": owner,
            "request": request,
            "until": now + int(self.lease.ttl_s * 1000),
            "now": now,
            "zero": 0,
            "one": 1,
        }

    def _taken(
        self,
        row: TaskRow,
        owner: str,
        request: str,
        statement: Statement,
        values: dict[str, Value],
    ) -> Claimed | Held:
        result = self.rows.update(self._pk(row.sequence), row.sk, statement, values)
        if result.row is None:
            return Held(None)
        standing = TaskRow.from_row(result.row)
        if isinstance(result, Applied) or result.row.get("request") == request:
            return Claimed(Lease(standing, owner))
        return Held(standing)

    def _quarantine(self, row: TaskRow, owner: str, values: dict[str, Value]) -> Held | GivenUp:
        """Give a task up; a refusal whose row holds our entry is our own lost reply."""
        entry = f"{self._ms()} quarantined by {owner}"[:_ENTRY_LIMIT]
        result = self.rows.update(
            self._pk(row.sequence),
            row.sk,
            expressions.QUARANTINE,
            values
            | {
                "quarantined": TaskState.QUARANTINED.value,
                "class": ErrorClass.WORKER_CRASH.value,
                "message": f"the lease was lost {row.lost + 1} times, last by {row.owner}",
                "event": [entry],
            },
        )
        history = cast("list[Value]", (result.row or {}).get("history") or [])
        return GivenUp() if isinstance(result, Applied) or entry in history else Held(None)

    def _owned(
        self,
        lease: Lease,
        what: str,
        checkpoint: str,
        requests: Mapping[str, int] | None = None,
    ) -> bool:
        """Let a lease go without counting a try; False if it is ours no more."""
        values = self._released(lease.row, what, checkpoint, requests or lease.row.requests)
        return isinstance(self._held(lease, expressions.RELEASE, values), Applied)

    def _released(
        self, row: TaskRow, what: str, checkpoint: str, requests: Mapping[str, int]
    ) -> dict[str, Value]:
        return {
            "ready": TaskState.READY.value,
            "checkpoint": checkpoint,
            "requests": cast("dict[str, Value]", dict(requests)),
            "none": [],
            "event": self._event(row, what) if what else [],
        }

    def _held(
        self, lease: Lease, statement: Statement, values: dict[str, Value]
    ) -> Applied | Refused:
        return self._held_by(lease.owner, lease.task, lease.attempt, statement, values)

    def _held_by(
        self,
        owner: str,
        task: TaskId,
        attempt: int,
        statement: Statement,
        values: dict[str, Value],
    ) -> Applied | Refused:
        """A write that only the holder of this lease, or whoever follows it, is granted."""
        round_no, sequence = keys.parse_task_id(task)
        return self.rows.update(
            self._pk(sequence),
            keys.task_sk(round_no, sequence),
            statement,
            values | {"leased": TaskState.LEASED.value, "owner": owner, "attempt": attempt},
        )


def halves_of(row: TaskRow) -> tuple[TaskRow, TaskRow]:
    """The rows that a task is bisected into, as they are created."""
    halves = keys.halves(row.task)
    if halves is None:
        raise ValueError(f"{row.task} is a half already")
    middle = row.where.count // 2
    first, second = row.where.first, row.where.first + middle
    one, other = (keys.parse_task_id(each) for each in halves)
    return (
        TaskRow(*one, TaskState.READY, replace(row.where, first=first, count=middle)),
        TaskRow(
            *other,
            TaskState.READY,
            replace(row.where, first=second, count=row.where.count - middle),
        ),
    )
