"""One attempt at a task: opened, run, committed, given back.

    open     lease → marker of a former attempt? → slice → checkpoint
    run      every item that has no outcome yet
    commit   part(s) → marker → row: in this order, whatever dies between

Requests per task beside heartbeats: slice, part(s), marker, complete; for a second
attempt a GET of the marker and, where the row notes one, of the checkpoint.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.errors import (
    ErrorClass,
    InvalidRequest,
    ServiceError,
    UserError,
    classify,
    describe,
)
from slurm_worker.node.heartbeat import Heartbeat, HeldLease
from slurm_worker.node.slurm_job import WorkerIdentity
from slurm_worker.protocol import keys
from slurm_worker.protocol.audit_log import RecordEvent, ignore_event
from slurm_worker.protocol.generations import passed
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import TASK_FAILED, Clock, Logger
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.protocol.task_history import MOST_CRASHES, poison_items
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Lease
from slurm_worker.results.checkpoints import Checkpoints, Origin
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import Columns, error_outcome, make_part


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease whose items are here.

    Args:
        hold: the lease, kept.
        items: of the task.
        checkpoints: of this attempt.
        restored: outcomes to start from.
    """

    hold: HeldLease
    items: TaskItems
    checkpoints: Checkpoints
    restored: list[Outcome] = field(default_factory=list)

    @property
    def lease(self) -> Lease:
        """The lease."""
        return self.hold.lease


class Attempts:
    """Opens, commits and gives back the attempts of one worker.

    Args:
        config: the job.
        identity: who we are.
        store: the job's objects.
        table: its tasks.
        heart: keeps the leases.
        clock: AWS time.
        scratch: where parts are written before they are uploaded.
        logger: writes JSON lines.
        rng: jitter.
        columns: writes Parquet parts, where the job wants them and this node can.
        requests: what this worker has asked of AWS; each marker tells of them.
        note: told of a task that is bisected.
    """

    def __init__(
        self,
        config: JobConfig,
        identity: WorkerIdentity,
        store: JobStore,
        table: TaskTable,
        heart: Heartbeat,
        clock: Clock,
        scratch: Path,
        logger: Logger,
        rng: random.Random,
        columns: Columns | None = None,
        requests: RequestCounts | None = None,
        note: RecordEvent = ignore_event,
    ) -> None:
        self._config = config
        self._identity = identity
        self._store = store
        self._table = table
        self._jobs = JobTable(table.rows, table.job, clock)
        self._heart = heart
        self._clock = clock
        self._scratch = scratch
        self._logger = logger
        self._rng = rng
        self._columns = columns
        self._requests = requests or RequestCounts()
        self._note = note

    def open(self, lease: Lease) -> Attempt | None:
        """Bring the task's items; None if there is nothing to run.

        Raises:
            ServiceError: if a service can't be reached; the lease was given back.
        """
        hold = self._heart.hold(lease)
        try:
            attempt = self._open(hold)
        except UserError as error:
            self.give_up(hold, error)
            return None
        except ServiceError as error:
            self._let_go(hold, error)
            raise
        except BaseException:
            self._heart.drop(hold)
            raise
        if attempt is None:
            self._heart.drop(hold)
        return attempt

    def _open(self, hold: HeldLease) -> Attempt | None:
        lease = hold.lease
        if lease.attempt > 1 and (marker := self._store.marker(lease.task)) is not None:
            # A former attempt committed and died before it said so.
            self._finish(lease, marker)
            return None
        if lease.row.winner and not self._config.conditional_put:
            # ... or was decided for, and died before its marker was published.
            self._finish(lease, self._publish(lease, lease.row.winner))
            return None
        if lease.to_bisect(self._config.lease.max_lost):
            self._bisect(lease)
            return None
        if len(lease.row.crashes) > MOST_CRASHES:
            message = f"{len(lease.row.crashes)} worker processes died on this task"
            self._table.fail(lease, ErrorClass.WORKER_CRASH, message, 0.0, final=True)
            return None
        items = self._store.read_slice(lease.row.round_no, lease.row.where)
        checkpoints = Checkpoints(
            self._store,
            Origin(lease.task, lease.row.where.sha256, self._code),
            lease.attempt,
            self._config.worker.checkpoint_s,
        )
        restored = checkpoints.load(lease.row.checkpoint) if lease.row.checkpoint else []
        have = {at + n for at, _, _, _, count in restored for n in range(count)}
        for position, error_class in poison_items(lease.row.crashes).items():
            if position not in have:
                restored.append(self._killer(position, items, error_class))
        return Attempt(hold, items, checkpoints, restored)

    def commit(self, attempt: Attempt, journal: Journal, started: float) -> Marker:
        """Upload, create the marker, complete the row; return the marker that stands.

        Raises:
            ServiceError: if a service can't be reached; the caller gives the lease back, and
                the next holder sees how far this came.
            OSError: if scratch is full.
        """
        lease = attempt.lease
        ours = Marker(
            job=self._config.job_id,
            task=lease.task,
            attempt=lease.attempt,
            worker=self._identity.worker,
            items=lease.row.where.count,
            ok=journal.ok,
            rows=journal.rows,
            failed=journal.failed_by_class(),
            parts=self._upload_parts(lease, journal),
            input_sha256=lease.row.where.sha256,
            handler=self._config.handler.entry or self._config.handler.plugin,
            code_sha256=self._config.handler.code_sha256,
            slurm=self._identity.slurm,
            started=round(started, 3),
            finished=round(self._clock.now(), 3),
            requests=_sum(taken := self._requests.take(), lease.row.requests),
        )
        standing = self._decide(lease, ours, taken)
        self._finish(lease, standing)
        return standing

    def release(self, attempt: Attempt, worked_s: float = 0.0) -> None:
        """Give the lease back, with a checkpoint of what is journaled where that saves work."""
        hold = attempt.hold
        if hold.journal is not None and attempt.checkpoints.worth_saving(worked_s):
            try:
                hold.save()
            except (ServiceError, OSError, sqlite3.Error) as error:
                # Work is lost then; the task is still free for another.
                self._logger.warning("checkpoint failed", task=hold.lease.task, error=str(error))
        hold.stop()
        # Not kept from here on: should the request fail, and this process end, it runs out.
        self._heart.drop(hold)
        taken = self._requests.take()
        if hold.unanswered:
            self._requests.put_back(taken)
            said = self._heart.give_back(hold)
        else:
            said = self._heart.owe(lambda: self._told_release(hold, taken))
        if said:
            self._logger.info("lease released", task=hold.lease.task, items_done=sum(hold.last))

    def _told_release(self, hold: HeldLease, taken: Mapping[str, int]) -> None:
        requests = _sum(taken, hold.lease.row.requests)
        if not self._table.release(hold.lease, hold.note, requests):
            self._requests.put_back(taken)

    def give_back(self, attempt: Attempt, error: ServiceError) -> None:
        """A service failed: the task can be had by others at once, and is not to blame.

        But for one of which it wants no more than the service does at all: its lease runs out,
        which counts, so that it is bisected.
        """
        attempt.hold.stop()
        self._let_go(attempt.hold, error)

    def _let_go(self, hold: HeldLease, error: ServiceError) -> None:
        if isinstance(error, InvalidRequest):
            self._heart.drop(hold)
        else:
            self._heart.give_back(hold)

    def discard(self, attempt: Attempt) -> None:
        """Keep the lease no longer: it is lost, or the task is done."""
        attempt.hold.stop()
        self._heart.drop(attempt.hold)
        if attempt.hold.lost:
            self._logger.warning("the lease was lost", task=attempt.lease.task)

    def give_up(self, hold: HeldLease, error: Exception) -> None:
        """The task can't be run here: say why on its row, for another try elsewhere."""
        lease = hold.lease
        hold.stop()
        self._heart.drop(hold)
        if isinstance(error, UserError):
            error_class = ErrorClass.BAD_INPUT
        elif isinstance(error, sqlite3.Error):
            # The journal is ours: what SQLite can't do, this node's scratch disk can't.
            error_class = ErrorClass.NODE_FAILURE
        else:
            error_class = classify(error, self._config.rules)
        self._logger.error(TASK_FAILED, task=lease.task, error=describe(error), exc_info=error)
        delay = self._rng.uniform(0, min(60.0, 2.0 ** (lease.row.tries + 1)))
        self._heart.owe(lambda: self._table.fail(lease, error_class, describe(error), delay))

    @property
    def _code(self) -> str:
        handler = self._config.handler
        return f"{handler.code_sha256} {handler.entry}{handler.plugin}"

    def _publish(self, lease: Lease, attempt: int) -> Marker:
        return self._store.publish(lease.task, attempt, lease.row.where)

    def _decide(self, lease: Lease, ours: Marker, taken: Mapping[str, int]) -> Marker:
        """Which marker stands: the store decides, or, where it can't, the table.

        Where it isn't ours, or nobody knows, the next marker tells of the requests `taken`.
        """
        told = False
        try:
            if self._config.conditional_put:
                standing = self._store.commit(ours)
            else:
                self._store.propose(ours)
                standing = self._publish(lease, self._table.decide(ours))
            told = standing.attempt == ours.attempt
        finally:
            if not told:
                self._requests.put_back(taken)
        return standing

    def _finish(self, lease: Lease, standing: Marker) -> None:
        """Bring the row to the marker that stands, whoever made it.

        Raises:
            ForeignMarker: if it is not of the task's items: the row is left as it is.
        """
        standing.check(lease.row.where)
        if standing.split:
            self._table.create_halves(lease.row)
            if passed(self._table.find(lease.task)):
                self._jobs.begin_generation()
        self._table.complete(standing)

    def _bisect(self, lease: Lease) -> None:
        """Replace a task that keeps losing its lease by two halves of it."""
        ours = Marker(
            job=self._config.job_id,
            task=lease.task,
            attempt=lease.attempt,
            worker=self._identity.worker,
            items=0,
            ok=0,
            rows=0,
            input_sha256=lease.row.where.sha256,
            slurm=self._identity.slurm,
            finished=round(self._clock.now(), 3),
            split=keys.halves(lease.task) or (),
            requests=_sum(taken := self._requests.take(), lease.row.requests),
        )
        standing = self._decide(lease, ours, taken)
        self._finish(lease, standing)
        self._logger.warning(
            "task bisected: it lost its lease too often",
            task=lease.task,
            lost=lease.row.lost,
            halves=standing.split,
        )
        if standing.split and standing.attempt == lease.attempt:
            self._note(
                "bisected",
                {
                    "task": lease.task,
                    "attempt": lease.attempt,
                    "lost": lease.row.lost,
                    "halves": list(standing.split),
                },
            )

    def _killer(self, position: int, items: TaskItems, error_class: ErrorClass) -> Outcome:
        reason = {
            ErrorClass.TIMEOUT: "did not return, and its process had to be killed",
            ErrorClass.OUT_OF_MEMORY: "ran its process out of memory, again and again",
        }.get(error_class, "killed its process, again and again")
        return error_outcome(
            position,
            items.keys[position],
            error_class,
            f"the handler {reason}",
            tries=1,
            at=self._clock.now(),
            item=items.text(position),
        )

    def _upload_parts(self, lease: Lease, journal: Journal) -> tuple[Part, ...]:
        unique = f"{self._rng.getrandbits(48):012x}"
        parts = []
        for kind in ("rows", "errors"):
            if kind == "errors" and not journal.failed:
                continue
            suffix, data = make_part(
                journal, self._config.part_format, kind, self._scratch, self._columns
            )
            key = self._store.paths.part(lease.task, lease.attempt, unique, suffix)
            rows = journal.rows if kind == "rows" else journal.failed
            parts.append(self._store.upload_part(key, data, kind, rows))
        return tuple(parts)


def _sum(ours: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Requests by kind: of this worker, and of those who gave the task back before."""
    return dict(Counter(ours) + Counter(before))
