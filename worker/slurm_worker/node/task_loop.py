"""The loop of a worker: lease a task, run it, commit it, take the next; stop when asked to.

Three parts of a task overlap with those of its neighbours:

    lease, fetch   ─A──B────────C────────D─
    run items      ────A═══════B════════C══
    commit         ────────────A────────B──
"""

from __future__ import annotations

import sqlite3

from structlog.contextvars import bound_contextvars

from slurm_worker.errors import FatalError, ServiceError, Throttled, describe
from slurm_worker.execution.calls import Calls
from slurm_worker.execution.runner import make_runner
from slurm_worker.failure_budget import FailureBudget
from slurm_worker.node.activity import (
    FRUITLESS_LEASES_ALLOWED,
    SERVICE_FAILURES_ALLOWED,
    Activity,
    fruitless_wait_s,
    service_wait_s,
)
from slurm_worker.node.attempts import Attempt, Attempts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.node.task_finder import Finished
from slurm_worker.node.task_source import TaskSource
from slurm_worker.node.threads import Pending, Signal
from slurm_worker.protocol.job_store import ForeignMarker
from slurm_worker.results.journal import Journal


class TaskLoop:
    """Runs tasks until nothing is left, or until the worker is asked to stop.

    The two `journals` are used in turn: while one task is committed, the next has the other.
    """

    def __init__(
        self,
        context: NodeContext,
        activity: Activity,
        calls: Calls,
        journals: list[Journal],
        attempts: Attempts,
        source: TaskSource,
    ) -> None:
        self._context, self._clock, self._logger = context, context.clock, context.logger
        self._activity, self._idle = activity, activity.idle
        self._journals, self._attempts, self._source = journals, attempts, source
        self._service_budget = FailureBudget(SERVICE_FAILURES_ALLOWED)
        self._lease_budget = FailureBudget(FRUITLESS_LEASES_ALLOWED)
        self._commit = _BackgroundCommit(context, activity, attempts, self._service_budget)
        self._runner, self._isolated = make_runner(calls), make_runner(calls, isolated=True)

    def run(self) -> WorkerExit:
        """Run tasks; return the exit code."""
        self._idle.reset()
        code = WorkerExit.OK
        try:
            code = self._run_tasks()
        finally:
            code = self._wind_up(code)
            self._runner.close()
            self._isolated.close()
        return code

    def _run_tasks(self) -> WorkerExit:
        while not self._context.drain.stop_requested.is_set():
            try:
                code = self._step()
            except FatalError:
                return WorkerExit.CONFIG
            except ServiceError as error:
                code = self._after_failure(error)
            except (OSError, sqlite3.Error) as error:
                # This node's scratch: every further task would fail here too.
                self._logger.error("scratch failed", error=describe(error))
                return WorkerExit.INFRASTRUCTURE
            if code is not None:
                return code
        return WorkerExit.OK

    def _step(self) -> WorkerExit | None:
        """Run one task, or wait; an exit code ends the worker."""
        attempt = self._source.next()
        if isinstance(attempt, Finished):
            return WorkerExit.OK
        if attempt is not None:
            progressed = self._run(attempt, self._journals[0])
            self._journals.reverse()
            # A worker that is asked to stop gives back what it has: the lease is not to blame.
            stops = self._context.drain.stop_requested.is_set()
            code = self._count_lease(progressed=progressed or stops)
            self._idle.reset()
            return code
        # Our own last task may be all that is left.
        if not self._commit.finish() and not self._idle.wait():
            self._logger.info("live workers hold what is left")
            return WorkerExit.OK
        return None

    def _after_failure(self, error: ServiceError) -> WorkerExit | None:
        """Wait after a service failed; exit where one has been away too often.

        The current task, if any, was given back; its next holder sees whether its marker exists.
        Only a commit shows that the services work for this worker: one that can lease and run
        tasks but not commit them would otherwise never stop. A service that throttles does work:
        if its workers left, they would be missing once it has capacity again.
        """
        allowed = self._service_budget.allow(counts=not isinstance(error, Throttled))
        failures = self._service_budget.failures
        self._logger.warning("a service failed", error=str(error), in_a_row=failures)
        if not allowed:
            return self._context.record_end(error)
        self._context.drain.sleep(service_wait_s(failures, self._context.rng))
        return None

    def _count_lease(self, *, progressed: bool) -> WorkerExit | None:
        """Wait after a lease that finished no item; exit after too many in a row.

        Whatever the cause (lease times that are too short, a clock that jumps, a node that
        freezes), a worker that leases and gives back forever costs requests and does nothing.
        """
        budget, context = self._lease_budget, self._context
        if progressed:
            budget.reset()
            return None
        if budget.allow():
            context.drain.sleep(fruitless_wait_s(budget.failures, context.rng))
            return None
        reason = f"{budget.failures} leases in a row finished no item"
        self._logger.error("no progress: the worker exits", error=reason)
        node = context.identity.slurm.get("node", "")
        context.record_event("no_progress", {"leases": budget.failures, "node": node})
        return WorkerExit.NO_PROGRESS

    def _run(self, attempt: Attempt, journal: Journal) -> bool:
        """Run one task, and start its commit; False if none of its items ended.

        Raises:
            FatalError: if the handler stopped the job.
            ServiceError, OSError, sqlite3.Error: if a service or scratch failed; the lease was
                given back.
        """
        began, started = self._clock.boot_time(), self._clock.now()
        ran = self._context.threads.signal()
        try:
            todo = self._prepare(attempt, journal)
            self._run_items(attempt, journal, todo, ran)
        except FatalError as error:
            self._stop_job(error, attempt)
            raise
        except (ServiceError, OSError, sqlite3.Error) as error:
            self._attempts.give_up(attempt.held, error)
            raise
        finally:
            ran.set()
            self._activity.running = None
            self._context.recorder.task()
        ended = journal.ok + journal.failed - (len(attempt.items) - len(todo))
        self._after_items(attempt, journal, self._clock.boot_time() - began, started)
        self._activity.items_ended += ended
        return not todo or ended > 0

    def _prepare(self, attempt: Attempt, journal: Journal) -> list[int]:
        """Make the journal ready; return the positions of the items to run."""
        # A task in between was lost or given back, so nobody has waited for this commit yet.
        self._commit.finish(journal)
        journal.begin()
        journal.restore(attempt.restored)
        have = journal.positions() if attempt.restored else set()
        return [position for position in range(len(attempt.items)) if position not in have]

    def _run_items(self, attempt: Attempt, journal: Journal, todo: list[int], ran: Signal) -> None:
        lease = attempt.lease
        self._activity.leases += 1
        attempt.held.start(journal, attempt.checkpoints)
        self._activity.running = attempt
        self._context.recorder.task(lease.task, lease.attempt)
        self._source.start_ahead(attempt, journal, ran)
        # One item at a time, so that the next death can be traced to its item.
        runner = self._isolated if lease.row.crashes else self._runner
        with bound_contextvars(task=lease.task, attempt=lease.attempt):
            runner.run(attempt.items, todo, lease.attempt, journal)
        journal.flush()

    def _after_items(
        self, attempt: Attempt, journal: Journal, took_s: float, started: float
    ) -> None:
        """Commit a task whose items have all run; else give it back."""
        held = attempt.held
        if held.lost:
            self._attempts.discard(attempt)
        elif journal.ok + journal.failed < len(attempt.items):
            self._attempts.release(attempt, self._clock.boot_time() - held.saved)
        else:
            held.stop()
            self._activity.durations.add(took_s)
            try:
                self._commit.finish()
            finally:
                self._commit.start(attempt, journal, started)

    def _stop_job(self, error: FatalError, attempt: Attempt) -> None:
        """Stop the job, then give its task back: if that fails, the lease runs out unused.

        Raises:
            ServiceError: if the job can't be stopped; the lease was given back. The next holder of
                the task meets the same error.
        """
        reason = describe(error)
        try:
            self._context.jobs.stop(f"{reason} (worker {self._context.identity.worker})")
        except ServiceError as failed:
            self._attempts.give_up(attempt.held, failed)
            raise
        self._context.record_event("stopped", {"reason": reason})
        self._logger.error("the handler stopped the job", error=reason)
        self._attempts.release(attempt)

    def _wind_up(self, code: WorkerExit) -> WorkerExit:
        """Commit what has run, give back what has not; return the exit code."""
        for step in (
            self._commit.finish,
            self._source.return_ahead,
            self._activity.requeue_before_time_limit,
        ):
            try:
                step()
            except (ServiceError, OSError, sqlite3.Error) as error:
                message = "not all is given back; the lease will run out"
                self._logger.warning(message, error=describe(error))
                code = code or WorkerExit.INFRASTRUCTURE
        return code


class _BackgroundCommit:
    """Commits a task that has run in another thread, beside the run of the next task.

    `budget` is that of service failures: a commit shows that the services work, and resets it.
    """

    def __init__(
        self, context: NodeContext, activity: Activity, attempts: Attempts, budget: FailureBudget
    ) -> None:
        self._logger, self._threads = context.logger, context.threads
        self._activity, self._attempts, self._budget = activity, attempts, budget
        self._thread: Pending[None] | None = None
        self._journal: Journal | None = None

    def start(self, attempt: Attempt, journal: Journal, started: float) -> None:
        """Commit a task that has run, from its journal; `started` is a time of day."""
        self._thread = self._threads.start(lambda: self._commit(attempt, journal, started))
        self._journal = journal

    def finish(self, journal: Journal | None = None) -> bool:
        """Wait for the commit, with a journal only for one from that; False if there is none.

        Raises:
            ServiceError, OSError, sqlite3.Error: if it failed; its lease was given back.
        """
        if self._thread is None or journal not in (None, self._journal):
            return False
        thread, self._thread, self._journal = self._thread, None, None
        thread.result()
        return True

    def _commit(self, attempt: Attempt, journal: Journal, started: float) -> None:
        try:
            winner = self._attempts.commit(attempt, journal, started)
            self._budget.reset()
        except ForeignMarker as error:
            self._attempts.give_up(attempt.held, error)
            return
        except (ServiceError, OSError, sqlite3.Error) as error:
            self._attempts.give_up(attempt.held, error)
            raise
        finally:
            self._attempts.discard(attempt)
        won = winner.attempt == attempt.lease.attempt and not winner.split
        self._activity.tasks_done += won
        self._logger.info(
            "task committed" if won else "another attempt had committed this task",
            task=attempt.lease.task,
            attempt=attempt.lease.attempt,
            items_ok=winner.ok,
            failed=winner.failed,
            rows=winner.rows,
        )
