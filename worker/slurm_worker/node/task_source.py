"""Where a worker's attempts come from: leased while the last task ran, or leased now.

The next task is leased only when the running one is nearly done, so that no worker holds work
that another could begin. Requests per task: one read of the job's row, one page of task rows,
claim; and those of `Attempts.open`.
"""

from __future__ import annotations

from slurm_worker.node.activity import Activity
from slurm_worker.node.attempts import Attempt, Attempts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.task_finder import Finished, Found, TaskFinder
from slurm_worker.node.threads import Pending, Signal
from slurm_worker.protocol.keys import JobState
from slurm_worker.protocol.shard_progress import ShardTotals
from slurm_worker.results.journal import Journal

#: Seconds between two checks whether the running task is nearly done.
CHECK_S = 0.1


class TaskSource:
    """Leases and opens the next task."""

    def __init__(self, context: NodeContext, activity: Activity, attempts: Attempts) -> None:
        self._context, self._jobs, self._logger = context, context.jobs, context.logger
        self._attempts = attempts
        self._durations, self._idle = activity.durations, activity.idle
        self._finder = TaskFinder(
            context.table,
            context.identity.worker,
            context.clock,
            context.rng,
            context.record_event,
            ShardTotals(context.store, context.jobs, context.table).cursor_advanced,
            attempts.disown,
        )
        self._ahead: Pending[Attempt | Finished | None] | None = None

    def next(self) -> Attempt | Finished | None:
        """The next task; None if there is nothing now. After a ServiceError no lease is held."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            found = ahead.result()
            if isinstance(found, Attempt):
                return found
            if found is None and self._idle.should_exit():
                # Thousands leave within a minute at a job's end: one more search of each costs.
                self._logger.info("enough other workers wait for the tasks that are left")
                return Finished()
        return self._find()

    def start_ahead(self, attempt: Attempt, journal: Journal, ran: Signal) -> None:
        """Lease the next task in a thread; see `lease_ahead`."""
        self._ahead = self._context.threads.start(lambda: self.lease_ahead(attempt, journal, ran))

    def lease_ahead(
        self, attempt: Attempt, journal: Journal, ran: Signal
    ) -> Attempt | Finished | None:
        """Wait until the running task is nearly done, or has `ran`; lease and fetch the next."""
        began = self._context.clock.boot_time()
        restored = attempt.items_restored
        left = len(attempt.items) - restored
        while not self._durations.nearly_done(journal.ok + journal.failed - restored, left, began):
            if ran.wait(CHECK_S):
                break
        if self._context.drain.stop_requested.is_set() or not self._durations.another_fits():
            return None
        return self._find()

    def return_ahead(self, *, wait: bool = True) -> None:
        """Give back the task that was leased ahead; without `wait`, only if it is here."""
        ahead = self._ahead
        if ahead is None or not (wait or ahead.done()):
            return
        self._ahead = None
        found = ahead.result()
        if isinstance(found, Attempt):
            self._attempts.release(found)

    def _find(self) -> Attempt | Finished | None:
        job = self._jobs.find(consistent=False)
        if job is not None and job.stop:
            self._logger.warning("the job is stopped", reason=job.stop)
            return Finished()
        if job is not None and job.paused:
            # The nodes are for others until somebody resumes the job, with new workers.
            self._logger.info("the job is paused", by=job.paused)
            return Finished()
        if job is None or job.state is JobState.PLANNING:
            return None
        if not self._durations.another_fits():
            self._context.drain.before_time_limit = True
            self._context.drain.stop_requested.set()
            self._logger.info("no time is left for another task")
            return None
        self._finder.new_generation(job.generation)
        while True:
            found = self._finder.next()
            if isinstance(found, Finished):
                # An eventually consistent read may not have shown the newest generation yet.
                job = self._jobs.find()
                if job is not None and self._finder.new_generation(job.generation):
                    continue
                return found
            if not isinstance(found, Found):
                self._idle.record(found)
                return None
            attempt = self._attempts.open(found.lease)
            if attempt is not None:
                return attempt
