"""What a worker runs and has done; when it waits between tasks, and when it exits instead.

Makes no requests.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from slurm_worker.node.attempts import Attempt
from slurm_worker.node.context import NodeContext
from slurm_worker.node.task_finder import Waiting
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.ports import Clock

#: Waits so many seconds, or less where the worker is asked to stop.
Sleep = Callable[[float], object]
#: Service failures in a row without a commit that a worker tolerates; throttling does not count.
SERVICE_FAILURES_ALLOWED = 4
#: Leases in a row without one finished item that a worker tolerates.
FRUITLESS_LEASES_ALLOWED = 4
#: The next task is leased when this one has about so long to go.
LEASE_AHEAD_S = 5.0
_IDLE_FIRST_S = 0.2
_IDLE_MOST_S = 5.0
_STANDBY = 8
#: The longest wait after a failure is 2 to the power of this, in seconds.
_MOST_DOUBLINGS = 6
_REMEMBERED_TASKS = 20


def service_wait_s(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many service failures in a row: full jitter, a minute at most."""
    return rng.uniform(0, 2.0 ** min(failures, _MOST_DOUBLINGS))


def fruitless_wait_s(leases: int, rng: random.Random) -> float:
    """Seconds to wait after so many leases in a row that finished no item: 1, 2, 4, 8."""
    return 2.0 ** (leases - 1) * rng.uniform(0.8, 1.2)


class Durations:
    """How long tasks have taken here: whether another one fits, when this one is nearly done.

    `seconds_left` are those until Slurm ends this job; None if that is not known.
    """

    def __init__(self, clock: Clock, seconds_left: float | None) -> None:
        self._clock = clock
        self._ends = None if seconds_left is None else clock.boot_time() + seconds_left
        self._took: deque[float] = deque(maxlen=_REMEMBERED_TASKS)

    def add(self, took_s: float) -> None:
        """Record a task that was run whole."""
        self._took.append(took_s)

    def another_fits(self) -> bool:
        """Whether a task like the last ones would end before Slurm ends this job."""
        if self._ends is None or not self._took:
            return True
        likely_s = sorted(self._took)[int(0.9 * (len(self._took) - 1))]
        return self._clock.boot_time() + likely_s < self._ends

    def nearly_done(self, done: int, total: int, began: float) -> bool:
        """Whether a task that began then, with so many items done since, ends soon."""
        worked_s = self._clock.boot_time() - began
        if done and worked_s:
            return (total - done) * worked_s / done < LEASE_AHEAD_S
        return bool(self._took) and max(self._took) < LEASE_AHEAD_S


class Idle:
    """Waits, with `sleep`, while some of `max_workers` hold what is left; one for each worker."""

    def __init__(
        self, lease: LeaseConfig, max_workers: int, clock: Clock, rng: random.Random, sleep: Sleep
    ) -> None:
        self._clock, self._rng, self._sleep = clock, rng, sleep
        self._max_workers = max_workers
        # Leases may run out; when none has in this time, live workers must hold them.
        self._longest_s = lease.ttl_s + lease.margin_s + 2 * lease.heartbeat_s
        self._rank = rng.random()
        self._waiting: Waiting | None = None
        self._since = clock.boot_time()
        self._next_s = _IDLE_FIRST_S

    def reset(self) -> None:
        """There is something to do."""
        self._since = self._clock.boot_time()
        self._next_s = _IDLE_FIRST_S

    def record(self, waiting: Waiting) -> None:
        """The last search found nothing to lease, and this much that other workers hold."""
        self._waiting = waiting

    def should_exit(self) -> bool:
        """Whether the last search showed enough other workers; each search answers once.

        At the end of a job thousands of idle workers would search every shard again and
        again. One for each ten leases, and a few more, are enough to take over from the dead.
        A worker ranks itself by a number that it drew at its start.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return False
        wanted = max(_STANDBY, waiting.later + waiting.leased / 10)
        return self._rank * self._max_workers > wanted

    def wait(self) -> bool:
        """Sleep, longer each time; False, at once, where there is no reason to wait longer."""
        if self._clock.boot_time() - self._since > self._longest_s or self.should_exit():
            return False
        self._sleep(self._next_s * self._rng.uniform(0.8, 1.2))
        self._next_s = min(self._next_s * 1.5, _IDLE_MOST_S)
        return True


class Activity:
    """What one worker process runs and has done, as its threads see it."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        #: The attempt whose items run.
        self.running: Attempt | None = None
        self.leases = 0  #: whose items were run
        self.items_ended = 0  #: that have an outcome
        self.tasks_done = 0  #: that this process committed
        self.durations = Durations(context.clock, context.seconds_left)
        config, sleep = context.config, context.drain.sleep
        # Workers of other arrays may have left long ago. If those of this array ranked themselves
        # among all that the job may have, the few that replace them would leave at once.
        workers = min(config.max_workers, context.array_size or config.max_workers)
        self.idle = Idle(config.lease, workers, context.clock, context.rng, sleep)

    def must_stop(self) -> bool:
        """Whether no more items may start: a stop is requested, or the lease is in doubt."""
        running = self.running
        return self._context.drain.stop_requested.is_set() or (
            running is not None and not running.held.trusted
        )

    def requeue_before_time_limit(self) -> None:
        """Where the time limit ends this worker, have Slurm start its array element again.

        Not where items ran all the time and none ended: they take longer than a worker has.
        """
        context = self._context
        if not context.drain.before_time_limit or not context.identity.slurm["array"]:
            return
        ended, running = self.items_ended, self.running
        if running is not None:
            ended += sum(running.held.progress) - running.items_restored
        if self.leases and ended <= 0 and not context.recorder.waited:
            message = "not requeued: no item finished before the time limit"
            context.logger.error(f"{message}; raise slurm.time, or set worker.item_timeout")
            return
        error = context.requeue(context.identity.slurm)
        context.logger.info("Slurm is asked to requeue this worker", error=error)
