"""The commit of a task that has run, beside the run of the next task."""

from __future__ import annotations

import sqlite3

from slurm_worker.errors import ServiceError
from slurm_worker.failure_budget import FailureBudget
from slurm_worker.node.activity import Activity
from slurm_worker.node.attempts import Attempt, Attempts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.threads import Pending
from slurm_worker.protocol.job_store import ForeignMarker
from slurm_worker.results.journal import Journal


class BackgroundCommit:
    """Commits one task at a time, in another thread.

    `budget` is that of service failures: a commit shows that the services work, and resets it.
    """

    def __init__(
        self, context: NodeContext, activity: Activity, attempts: Attempts, budget: FailureBudget
    ) -> None:
        self._logger = context.logger
        self._threads = context.threads
        self._activity = activity
        self._attempts = attempts
        self._budget = budget
        self._thread: Pending[None] | None = None
        self._journal: Journal | None = None

    @property
    def pending(self) -> bool:
        """Whether a commit has begun that nobody has waited for."""
        return self._thread is not None

    def start(self, attempt: Attempt, journal: Journal, started: float) -> None:
        """Commit a task that has run, from its journal; `started` is a time of day."""
        self._thread = self._threads.start(lambda: self._commit(attempt, journal, started))
        self._journal = journal

    def finish(self, journal: Journal | None = None) -> None:
        """Wait for the commit, if there is one; with a journal, only for a commit from that.

        Raises:
            ServiceError, OSError, sqlite3.Error: if it failed; its lease was given back.
        """
        if journal is not None and journal is not self._journal:
            return
        thread, self._thread, self._journal = self._thread, None, None
        if thread is not None:
            thread.result()

    def _commit(self, attempt: Attempt, journal: Journal, started: float) -> None:
        try:
            winner = self._attempts.commit(attempt, journal, started)
            self._budget.reset()
        except ForeignMarker as error:
            self._attempts.give_up(attempt.held, error)
            return
        except ServiceError as error:
            self._attempts.give_back(attempt.held, error)
            raise
        except (OSError, sqlite3.Error) as error:
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
