"""One attempt at a task: opened, run, committed, given back.

    open     lease → marker of a former attempt? → slice → checkpoint
    run      every item that has no outcome yet
    commit   part(s) → marker → row: always in this order, whatever dies between

Requests per task beside heartbeats: slice, part(s), marker, complete; for a second
attempt a GET of the marker and, where the row names one, of the checkpoint.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slurm_worker import errors
from slurm_worker.errors import ErrorClass, InvalidRequest, ServiceError, UserError, describe
from slurm_worker.node.context import NodeContext
from slurm_worker.node.heartbeat import Heartbeat, HeldLease
from slurm_worker.protocol import keys
from slurm_worker.protocol.generations import passed
from slurm_worker.protocol.job_store import Marker, Part
from slurm_worker.protocol.ports import TASK_FAILED, Value
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.protocol.task_history import MOST_CRASHES, poison_items
from slurm_worker.protocol.tasks import Lease, TaskRow
from slurm_worker.results.checkpoints import Checkpoints
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import Columns, error_outcome, make_part

_CRASH_TEXT = {
    ErrorClass.TIMEOUT: "the handler did not return, and its process had to be killed",
    ErrorClass.OUT_OF_MEMORY: "the handler ran its process out of memory, again and again",
    ErrorClass.WORKER_CRASH: "the handler killed its process, again and again",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease whose items are here."""

    held: HeldLease
    items: TaskItems
    checkpoints: Checkpoints
    restored: list[Outcome] = field(default_factory=list)  #: the outcomes to start from

    @property
    def lease(self) -> Lease:
        """The lease."""
        return self.held.lease

    @property
    def items_restored(self) -> int:
        """Items that have an outcome from the start."""
        return sum(outcome.items for outcome in self.restored)


class Attempts:
    """Opens, commits and gives back the attempts of one worker.

    `columns` writes Parquet parts, where the job wants them and this node can.
    """

    def __init__(
        self, context: NodeContext, heartbeat: Heartbeat, columns: Columns | None = None
    ) -> None:
        self._context, self._config = context, context.config
        self._store, self._table = context.store, context.table
        self._logger, self._requests = context.logger, context.requests
        self._heartbeat, self._columns = heartbeat, columns

    def open(self, lease: Lease) -> Attempt | None:
        """Fetch the task's items; None if there is nothing to run.

        Raises:
            ServiceError: if a service can't be reached; the lease was given back.
        """
        held, attempt = self._heartbeat.hold(lease), None
        try:
            attempt = self._open(held)
        except (UserError, ServiceError) as error:
            self.give_up(held, error)
            if not isinstance(error, UserError):
                raise
        finally:
            if attempt is None:
                self._heartbeat.drop(held)
        return attempt

    def _open(self, held: HeldLease) -> Attempt | None:
        lease = held.lease
        if lease.attempt > 1 and (marker := self._store.marker(lease.task)) is not None:
            # A former attempt committed and died before it completed the row.
            self._finish(lease, marker)
            return None
        if lease.row.winner and not self._config.conditional_put:
            # ... or won the row's decision and died before its marker was published.
            self._finish(lease, self._store.publish(lease.task, lease.row.winner, lease.row.where))
            return None
        if lease.to_bisect(self._config.lease.max_lost):
            self._bisect(lease)
            return None
        if len(lease.row.crashes) > MOST_CRASHES:
            message = f"{len(lease.row.crashes)} worker processes died on this task"
            self._table.fail(lease, ErrorClass.WORKER_CRASH, message, 0.0, final=True)
            return None
        items = self._store.read_slice(lease.row.round_no, lease.row.where)
        handler = self._config.handler
        code = f"{handler.code_sha256} {handler.entry}{handler.plugin}"
        checkpoints = Checkpoints(self._store, lease, code, self._config.worker.checkpoint_s)
        restored = checkpoints.load(lease.row.checkpoint) if lease.row.checkpoint else []
        have = {at + n for at, _, _, _, count in restored for n in range(count)}
        for position, error_class in poison_items(lease.row.crashes).items():
            if position not in have:
                restored.append(self._poisoned(position, items, error_class))
        return Attempt(held, items, checkpoints, restored)

    def commit(self, attempt: Attempt, journal: Journal, started: float) -> Marker:
        """Upload, create the marker, complete the row; return the marker that won.

        Raises:
            ServiceError: if a service can't be reached; the caller gives the lease back, and
                the next holder continues from what was written.
            OSError: if scratch is full.
        """
        lease, handler = attempt.lease, self._config.handler
        parts = self._upload_parts(lease, journal)
        ours = replace(
            self._marker(lease),
            items=lease.row.where.count,
            ok=journal.ok,
            rows=journal.rows,
            failed=journal.failed_by_class(),
            parts=parts,
            handler=handler.entry or handler.plugin,
            code_sha256=handler.code_sha256,
            started=round(started, 3),
        )
        return self._settle(lease, ours)

    def release(self, attempt: Attempt, worked_s: float = 0.0) -> None:
        """Give the lease back, with a checkpoint of what is journaled where that saves work."""
        held = attempt.held
        if held.journal is not None and attempt.checkpoints.due(worked_s, released=True):
            try:
                held.save()
            except (ServiceError, OSError, sqlite3.Error) as error:
                # The work is lost then; the task is still free for another worker.
                self._logger.warning("checkpoint failed", task=held.lease.task, error=str(error))
        # Not renewed from here on: if the request fails and this process ends, it runs out.
        self._heartbeat.drop(held)
        requests = self._requests.take()
        if held.unanswered:
            self._requests.put_back(requests)
            released = self._heartbeat.give_back(held)
        else:
            released = self._heartbeat.write_or_defer(lambda: self._release(held, requests))
        if released:
            self._logger.info("lease released", task=held.lease.task, items_done=sum(held.last))

    def _release(self, held: HeldLease, requests: Mapping[str, int]) -> None:
        total = _sum(requests, held.lease.row.requests)
        if not self._table.release(held.lease, held.checkpoint_ref, total):
            self._requests.put_back(requests)

    def disown(self, row: TaskRow, request: str) -> None:
        """Give back a lease that we may have got without an answer to the request."""
        worker = self._context.identity.worker
        self._heartbeat.write_or_defer(lambda: self._table.undo_claim(row, worker, request))

    def discard(self, attempt: Attempt) -> None:
        """Renew the lease no longer: it is lost, or the task is done."""
        self._heartbeat.drop(attempt.held)
        if attempt.held.lost:
            self._logger.warning("the lease was lost", task=attempt.lease.task)

    def give_up(self, held: HeldLease, error: Exception) -> None:
        """The task can't be run or committed here: free it for other workers.

        Where a service failed, the task is not to blame. Where the service can never do such a
        request, as for a part that is too large, the lease runs out, which counts, so that the task
        is bisected. Any other reason is written to the task's row, for a try elsewhere.
        """
        self._heartbeat.drop(held)
        if isinstance(error, InvalidRequest):
            return
        if isinstance(error, ServiceError):
            self._heartbeat.give_back(held)
            return
        lease = held.lease
        if isinstance(error, UserError):
            error_class = ErrorClass.BAD_INPUT
        elif isinstance(error, sqlite3.Error):
            # The journal is ours: what SQLite can't do, this node's scratch disk can't.
            error_class = ErrorClass.NODE_FAILURE
        else:
            error_class = errors.classify(error, self._config.rules)
        message = describe(error)
        self._logger.error(TASK_FAILED, task=lease.task, error=message, exc_info=error)
        delay = self._context.rng.uniform(0, min(60.0, 2.0 ** (lease.row.tries + 1)))
        self._heartbeat.write_or_defer(lambda: self._table.fail(lease, error_class, message, delay))

    def _marker(self, lease: Lease) -> Marker:
        """A marker of this attempt that counts no items yet."""
        identity = self._context.identity
        return Marker(
            job=self._config.job_id,
            task=lease.task,
            attempt=lease.attempt,
            worker=identity.worker,
            items=0,
            ok=0,
            rows=0,
            input_sha256=lease.row.where.sha256,
            slurm=identity.slurm,
            finished=round(self._context.clock.now(), 3),
        )

    def _settle(self, lease: Lease, ours: Marker) -> Marker:
        """Offer our marker, and complete the row with the one that wins, which is returned.

        The store decides, or, where it can't, the table. Where another marker wins, or that is
        not known, the next marker reports the requests of this one.
        """
        requests, reported = self._requests.take(), False
        ours = replace(ours, requests=_sum(requests, lease.row.requests))
        try:
            if self._config.conditional_put:
                winner = self._store.commit(ours)
            else:
                self._store.propose(ours)
                attempt = self._table.decide(ours)
                winner = self._store.publish(lease.task, attempt, lease.row.where)
            reported = winner.attempt == ours.attempt
        finally:
            if not reported:
                self._requests.put_back(requests)
        self._finish(lease, winner)
        return winner

    def _finish(self, lease: Lease, winner: Marker) -> None:
        """Write the marker that won to the row; raises a `ForeignMarker` for one of other items."""
        winner.check(lease.row.where)
        if winner.split:
            self._table.create_halves(lease.row)
            if passed(self._table.find(lease.task)):
                self._context.jobs.begin_generation()
        self._table.complete(winner)

    def _bisect(self, lease: Lease) -> None:
        """Replace a task that keeps losing its lease by two halves of it."""
        ours = replace(self._marker(lease), split=keys.halves(lease.task) or ())
        winner = self._settle(lease, ours)
        detail: dict[str, Value] = {"task": lease.task, "attempt": lease.attempt}
        detail |= {"lost": lease.row.lost, "halves": list(winner.split)}
        self._logger.warning("task bisected: it lost its lease too often", **detail)
        if winner.split and winner.attempt == lease.attempt:
            self._context.record_event("bisected", detail)

    def _poisoned(self, position: int, items: TaskItems, error_class: ErrorClass) -> Outcome:
        message = _CRASH_TEXT.get(error_class, _CRASH_TEXT[ErrorClass.WORKER_CRASH])
        key, item, now = items.keys[position], items.text(position), self._context.clock.now()
        return error_outcome(position, key, error_class, message, tries=1, at=now, item=item)

    def _upload_parts(self, lease: Lease, journal: Journal) -> tuple[Part, ...]:
        unique = f"{self._context.rng.getrandbits(48):012x}"
        parts = []
        for kind, rows in (("rows", journal.rows), ("errors", journal.failed)):
            if kind == "errors" and not rows:
                continue
            made, scratch = self._config.part_format, self._context.scratch
            suffix, data = make_part(journal, made, kind, scratch, self._columns)
            key = self._store.paths.part(lease.task, lease.attempt, unique, suffix)
            parts.append(self._store.upload_part(key, data, kind, rows))
        return tuple(parts)


def _sum(ours: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Requests by kind: of this worker, and of those that gave the task back before."""
    return dict(Counter(ours) + Counter(before))
