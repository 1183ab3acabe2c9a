"""What a worker runs and has done, as its threads see it."""

from __future__ import annotations

from slurm_worker.node.attempts import Attempt
from slurm_worker.node.backoff import Durations, Idle
from slurm_worker.node.context import NodeContext


class Activity:
    """What one worker process runs and has done.

    Attributes:
        running: the attempt whose items run.
        leases: leases whose items were run.
        items_ended: items that have an outcome.
        tasks_done: tasks that this process committed.
    """

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self.running: Attempt | None = None
        self.leases = self.items_ended = self.tasks_done = 0
        self.durations = Durations(context.clock, context.seconds_left)
        self.idle = Idle(
            context.config.lease,
            context.config.max_workers,
            context.clock,
            context.rng,
            context.drain.sleep,
        )

    def must_stop(self) -> bool:
        """Whether no more items may start: a stop is requested, or the lease is in doubt."""
        running = self.running
        return self._context.drain.stop_requested.is_set() or (
            running is not None and not running.held.trusted
        )

    def requeue_before_time_limit(self) -> None:
        """Where the time limit ends this worker, have Slurm start its array element again.

        Not where no item ended although some ran all the time: such items take longer than a
        worker has.
        """
        context = self._context
        if not context.drain.before_time_limit or not context.identity.slurm["array"]:
            return
        ended, running = self.items_ended, self.running
        if running is not None:
            ended += sum(running.held.progress) - running.items_restored
        if self.leases and ended <= 0 and not context.recorder.waited:
            context.logger.error(
                "not requeued: no item finished before the time limit; raise slurm.time, or set "
                "worker.item_timeout"
            )
            return
        error = context.requeue(context.identity.slurm)
        context.logger.info("Slurm is asked to requeue this worker", error=error)
