"""The heartbeat of the leases that a worker holds, in one thread.

A worker holds up to three: the task that it runs, the next one, and the last one while
it is committed. One write per lease and interval renews it, notes progress and, where one
is due, names the checkpoint. The running task's heart beats only while items finish, so
that a hung worker loses its lease. Each hold knows when the last answer is too old for
the lease to be trusted (timed on the boot-time clock from when the request was sent).

A lease that is lost without a word counts against its task. So a worker that a service has failed
says what became of each of its leases; where the table does not answer, the heart says it later.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable

from slurm_worker.errors import ServiceError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node.threads import Pending, Signal, Threads
from slurm_worker.protocol.ports import Clock, Logger
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Lease, Lost
from slurm_worker.results.checkpoints import Checkpoints
from slurm_worker.results.journal import Journal

_TICK_S = 0.5


class HeldLease:
    """One lease, kept.

    Args:
        lease: what is kept.
        ttl_s: for how long an answer can be trusted.
        clock: boot time.
    """

    def __init__(self, lease: Lease, ttl_s: float, clock: Clock) -> None:
        self.lease = lease
        self.lost = False
        #: The task's items stand still, so that losing it is the task's fault.
        self.stalled = False
        #: The table has not answered since it last renewed the lease: losing it is not.
        self.unanswered = False
        self._ttl_s = ttl_s
        self._clock = clock
        self.acknowledged = clock.boot_time()
        self.journal: Journal | None = None
        self.checkpoints: Checkpoints | None = None
        #: Boot times: when items began to run, when the last of them ended, when the
        #: last checkpoint was made.
        self.began = self.moved = self.saved = clock.boot_time()
        self.last = (0, 0)
        self.note = lease.row.checkpoint
        self._lock = threading.Lock()

    def start(self, journal: Journal, checkpoints: Checkpoints) -> None:
        """Items begin to run."""
        self.journal, self.checkpoints = journal, checkpoints
        self.began = self.moved = self.saved = self._clock.boot_time()
        self.last = self.progress

    def stop(self) -> None:
        """Items have run: what is left needs no progress and no checkpoint."""
        with self._lock:
            self.last = self.progress
            self.journal = self.checkpoints = None

    def save(self) -> None:
        """Upload what is journaled, and have the next write to the row name it."""
        checkpoints = self.checkpoints
        # The journal is used for another task as soon as `stop` has returned.
        with self._lock:
            outcomes = self.journal.snapshot() if self.journal else []
        if checkpoints is None:
            return
        began = self._clock.boot_time()
        note = checkpoints.save(outcomes)
        self.saved = self._clock.boot_time()
        checkpoints.took(self.saved - began)
        self.note = note or self.note

    @property
    def progress(self) -> tuple[int, int]:
        """Items (ok, failed) so far."""
        journal = self.journal
        return (journal.ok, journal.failed) if journal else self.last

    @property
    def trusted(self) -> bool:
        """Whether the lease is still ours for sure."""
        return not self.lost and self._clock.boot_time() - self.acknowledged < self._ttl_s


class Heartbeat:
    """Keeps the worker's leases.

    Args:
        table: the job's tasks, and the times of a lease.
        clock: boot time.
        rng: jitter.
        logger: told of leases that are lost.
        threads: where the heart beats.
        recorder: told which leases are kept, for whoever finds the process dead.
    """

    def __init__(
        self,
        table: TaskTable,
        clock: Clock,
        rng: random.Random,
        logger: Logger,
        threads: Threads,
        recorder: Recorder | None = None,
    ) -> None:
        self._table = table
        self._recorder = recorder or Recorder()
        self._clock = clock
        self._rng = rng
        self._logger = logger
        self._holds: dict[HeldLease, float] = {}
        #: What the table did not answer when it was to be said.
        self._owed: list[Callable[[], None]] = []
        self._pay_at = 0.0
        self._lock = threading.Lock()
        self._end: Signal = threads.signal()
        self._thread: Pending[None] = threads.start(self._beat)

    def hold(self, lease: Lease) -> HeldLease:
        """Keep a lease from now on."""
        times = self._table.lease
        hold = HeldLease(lease, times.ttl_s - times.margin_s, self._clock)
        self._recorder.hold(lease.task, lease.attempt)
        with self._lock:
            self._holds[hold] = self._next_beat()
        return hold

    def drop(self, hold: HeldLease) -> None:
        """Keep it no longer."""
        self._recorder.drop(hold.lease.task, hold.lease.attempt)
        with self._lock:
            self._holds.pop(hold, None)

    def give_back(self, hold: HeldLease) -> bool:
        """Keep it no longer, and say that its task is not to blame; False if that is to follow.

        The next holder finds what was committed. Of a task that stands still nothing is said.
        """
        self.drop(hold)
        if hold.stalled:
            return True
        return self.owe(lambda: self._table.give_back(hold.lease, hold.note))

    def owe(self, write: Callable[[], None]) -> bool:
        """Make a write to a task's row, now or as soon as the table answers; False if later.

        Args:
            write: does no harm if it is late, or made twice.
        """
        try:
            write()
        except ServiceError as error:
            self._logger.warning("the table is told later", error=str(error))
            with self._lock:
                self._owed.append(write)
            return False
        return True

    def close(self) -> None:
        """Stop beating; what is owed is tried once more."""
        self._end.set()
        self._thread.result()
        self._pay()

    def _pay(self) -> None:
        """Make the writes that are owed, up to the first that is not answered."""
        with self._lock:
            owed, self._owed = self._owed, []
        for number, write in enumerate(owed, 1):
            if not self.owe(write):
                with self._lock:
                    self._owed += owed[number:]
                return

    def _next_beat(self) -> float:
        return self._clock.boot_time() + self._table.lease.heartbeat_s * self._rng.uniform(0.9, 1.1)

    def _beat(self) -> None:
        tick_s = min(_TICK_S, self._table.lease.heartbeat_s / 4)
        while not self._end.wait(tick_s):
            now = self._clock.boot_time()
            with self._lock:
                due = [hold for hold, when in self._holds.items() if when <= now]
            for hold in due:
                self._renew(hold)
                with self._lock:
                    if hold in self._holds:
                        self._holds[hold] = self._next_beat()
            if self._owed and self._pay_at <= now:
                # No more often than a beat: during an outage each takes as long as the SDK waits.
                self._pay()
                self._pay_at = self._next_beat()

    def _renew(self, hold: HeldLease) -> None:
        sent = self._clock.boot_time()
        progress = hold.progress
        waited = self._recorder.waited > hold.moved
        if progress != hold.last or waited or hold.journal is None:
            hold.last, hold.moved = progress, sent
        elif sent - hold.moved > self._table.lease.stall_s:
            self._logger.error(
                "no item finished within the stall limit; the lease is let go",
                task=hold.lease.task,
                stall_s=self._table.lease.stall_s,
            )
            hold.lost = hold.stalled = True
            return
        try:
            if hold.checkpoints and hold.checkpoints.due(sent - hold.saved):
                hold.save()
        except (ServiceError, OSError, sqlite3.Error) as error:
            self._logger.warning("checkpoint failed", task=hold.lease.task, error=str(error))
        sent = self._clock.boot_time()
        try:
            result = self._table.heartbeat(hold.lease, *progress, checkpoint=hold.note)
        except ServiceError as error:
            # `trusted` turns false by itself when this goes on for too long.
            self._logger.warning("heartbeat failed", task=hold.lease.task, error=str(error))
            hold.unanswered = True
            return
        if isinstance(result, Lost):
            hold.lost = True
            # Where nothing kept the heart from beating in time, its task may have.
            if hold.unanswered:
                self.owe(lambda: self._table.excuse_loss(hold.lease))
        else:
            hold.acknowledged, hold.unanswered = sent, False
