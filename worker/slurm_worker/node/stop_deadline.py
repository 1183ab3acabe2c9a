"""The end of a worker that is asked to stop while an item runs on."""

from __future__ import annotations

import sqlite3

from slurm_worker.errors import ServiceError, describe
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.node.activity import Activity
from slurm_worker.node.attempts import Attempts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.task_source import TaskSource


class StopDeadline:
    """Ends the process in time, in a thread that it starts: Slurm kills about 30 s after it asks.

    The item that runs is given up, and done again by the next holder of the task. If it ends at
    this very moment, both ways out are taken; the table lets one of them release the lease.

    Args:
        context: the worker; `NodeContext.drain_s` is the time that it has.
        activity: tells what runs.
        attempts: gives back.
        source: has the task that was leased ahead.
        throttle: of the rate limits.
    """

    def __init__(
        self,
        context: NodeContext,
        activity: Activity,
        attempts: Attempts,
        source: TaskSource,
        throttle: TokenThrottle,
    ) -> None:
        self._context = context
        self._activity = activity
        self._attempts = attempts
        self._source = source
        self._throttle = throttle
        self._ended = context.threads.signal()
        self._thread = context.threads.start(self._watch)

    def close(self) -> None:
        """The worker has ended by itself."""
        self._ended.set()
        self._context.drain.stop_requested.set()
        self._thread.result()

    def _watch(self) -> None:
        context = self._context
        context.drain.stop_requested.wait()
        if self._ended.wait(context.drain_s):
            return
        running = self._activity.running
        context.logger.warning("an item still runs; the worker exits without it")
        try:
            if running is not None:
                worked_s = context.clock.boot_time() - running.held.saved
                self._attempts.release(running, worked_s)
            self._source.return_ahead(wait=False)
        except (ServiceError, OSError, sqlite3.Error) as error:
            context.logger.warning("not given back; the lease will run out", error=describe(error))
        self._activity.requeue_before_time_limit()
        self._throttle.close()
        context.leave()
