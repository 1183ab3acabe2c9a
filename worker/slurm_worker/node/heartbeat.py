"""The heartbeat of the leases that a worker holds, in one thread.

A worker holds up to three leases: of the task that it runs, of the next one, and of the last
one while that is committed. One write per lease and interval renews it, records progress and,
where one is due, names the checkpoint. The running task's lease is renewed only while items
finish, so that a hung worker loses it. Each held lease knows when the last answer is too old to
trust it (timed on the boot-time clock from when the request was sent).

A lease that runs out counts against its task. So a worker whose service has failed writes what
became of each of its leases; where the table does not answer, that write is made later.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

from slurm_worker.errors import ServiceError
from slurm_worker.node.context import NodeContext
from slurm_worker.node.threads import Pending, Signal
from slurm_worker.protocol.ports import Clock
from slurm_worker.protocol.tasks import Lease
from slurm_worker.results.checkpoints import Checkpoints
from slurm_worker.results.journal import Journal

_TICK_S = 0.5


class HeldLease:
    """One lease that the heartbeat renews; an answer can be trusted for `ttl_s` seconds."""

    def __init__(self, lease: Lease, ttl_s: float, clock: Clock) -> None:
        self.lease = lease
        self.lost = False
        #: The task's items stand still, so that losing the lease is the task's fault.
        self.stalled = False
        #: The table has not answered since it last renewed the lease: losing it is not.
        self.unanswered = False
        self._ttl_s, self._clock = ttl_s, clock
        self.acknowledged = clock.boot_time()
        self.journal: Journal | None = None
        self._begun = 0
        self.checkpoints: Checkpoints | None = None
        #: Boot times: when the last item ended, when the last checkpoint was made.
        self.moved = self.saved = clock.boot_time()
        self.last = (0, 0)
        self.checkpoint_ref = lease.row.checkpoint

    def start(self, journal: Journal, checkpoints: Checkpoints) -> None:
        """Items begin to run."""
        self.journal, self._begun, self.checkpoints = journal, journal.begun, checkpoints
        self.moved = self.saved = self._clock.boot_time()
        self.last = self.progress

    def stop(self) -> None:
        """Items have run: from here on the lease needs no progress and no checkpoint."""
        self.last = self.progress
        self.journal = self.checkpoints = None

    def save(self) -> None:
        """Upload what is journaled, and have the next write to the row name it."""
        journal, checkpoints = self.journal, self.checkpoints
        if journal is None or checkpoints is None:
            return
        # Another task may use the journal by now.
        outcomes = journal.snapshot(self._begun)
        began = self._clock.boot_time()
        self.checkpoint_ref = checkpoints.save(outcomes) or self.checkpoint_ref
        self.saved = self._clock.boot_time()
        checkpoints.cost_s = self.saved - began

    @property
    def progress(self) -> tuple[int, int]:
        """Items (ok, failed) so far."""
        journal = self.journal
        return (journal.ok, journal.failed) if journal else self.last

    @property
    def trusted(self) -> bool:
        """Whether the lease is certainly still ours."""
        return not self.lost and self._clock.boot_time() - self.acknowledged < self._ttl_s


class Heartbeat:
    """Renews the worker's leases, in a thread that it starts."""

    def __init__(self, context: NodeContext) -> None:
        self._table, self._recorder = context.table, context.recorder
        self._clock, self._rng, self._logger = context.clock, context.rng, context.logger
        self._held: dict[HeldLease, float] = {}
        #: Writes that the table did not answer.
        self._deferred: list[Callable[[], None]] = []
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self._end: Signal = context.threads.signal()
        self._thread: Pending[None] = context.threads.start(self._run)

    def hold(self, lease: Lease) -> HeldLease:
        """Renew a lease from now on."""
        times = self._table.lease
        held = HeldLease(lease, times.ttl_s - times.margin_s, self._clock)
        self._recorder.hold(lease.task, lease.attempt)
        with self._lock:
            self._held[held] = self._next_beat()
        return held

    def drop(self, held: HeldLease) -> None:
        """Renew it no longer; its items do not run any more."""
        held.stop()
        self._recorder.drop(held.lease.task, held.lease.attempt)
        with self._lock:
            self._held.pop(held, None)

    def give_back(self, held: HeldLease) -> bool:
        """Renew it no longer, and write that its task is not to blame; False if written later.

        The next holder finds what was committed. A task that stands still gets no such write.
        """
        self.drop(held)
        if held.stalled:
            return True
        return self.write_or_defer(lambda: self._table.give_back(held.lease, held.checkpoint_ref))

    def write_or_defer(self, write: Callable[[], None]) -> bool:
        """Make a write to a task's row, now or as soon as the table answers; False if later.

        It must do no harm if it is late, or made twice.
        """
        try:
            write()
        except ServiceError as error:
            self._logger.warning("a write to the table is made later", error=str(error))
            with self._lock:
                self._deferred.append(write)
            return False
        return True

    def write_deferred(self) -> None:
        """Make the writes that were deferred, up to the first that is not answered."""
        with self._lock:
            writes, self._deferred = self._deferred, []
        for number, write in enumerate(writes, 1):
            if not self.write_or_defer(write):
                with self._lock:
                    self._deferred += writes[number:]
                return

    def close(self) -> None:
        """Stop; deferred writes are tried once more."""
        self._end.set()
        self._thread.result()
        self.write_deferred()

    def renew(self, held: HeldLease) -> None:
        """Write one heartbeat, with a checkpoint before it where one is due."""
        if not self._moves(held):
            self._logger.error(
                "no item finished within the stall limit; the worker lets the lease run out",
                task=held.lease.task,
                stall_s=self._table.lease.stall_s,
            )
            held.lost = held.stalled = True
            return
        try:
            if held.checkpoints and held.checkpoints.due(self._clock.boot_time() - held.saved):
                held.save()
        except (ServiceError, OSError, sqlite3.Error) as error:
            self._logger.warning("checkpoint failed", task=held.lease.task, error=str(error))
        sent = self._clock.boot_time()
        try:
            renewed = self._table.heartbeat(held.lease, *held.last, checkpoint=held.checkpoint_ref)
        except ServiceError as error:
            # `trusted` becomes false by itself when this lasts too long.
            self._logger.warning("heartbeat failed", task=held.lease.task, error=str(error))
            held.unanswered = True
            return
        if not renewed:
            held.lost = True
            # Where the table answered each heartbeat in time, the task may be the cause.
            if held.unanswered:
                self.write_or_defer(lambda: self._table.excuse_loss(held.lease))
        else:
            held.acknowledged, held.unanswered = sent, False

    def _moves(self, held: HeldLease) -> bool:
        """Whether items finish, wait on purpose, or need not run; records the progress."""
        now, progress = self._clock.boot_time(), held.progress
        waited = self._recorder.waited > held.moved
        if progress != held.last or waited or held.journal is None:
            held.last, held.moved = progress, now
        return now - held.moved <= self._table.lease.stall_s

    def _next_beat(self) -> float:
        return self._clock.boot_time() + self._table.lease.heartbeat_s * self._rng.uniform(0.9, 1.1)

    def _run(self) -> None:
        tick_s = min(_TICK_S, self._table.lease.heartbeat_s / 4)
        while not self._end.wait(tick_s):
            now = self._clock.boot_time()
            with self._lock:
                due = [held for held, when in self._held.items() if when <= now]
            for held in due:
                self.renew(held)
                with self._lock:
                    if held in self._held:
                        self._held[held] = self._next_beat()
            if self._deferred and self._retry_at <= now:
                # Once per beat: during an outage each try takes as long as the SDK waits.
                self.write_deferred()
                self._retry_at = self._next_beat()
