"""The heartbeat of one lease, in a thread of its own.

One write per interval renews the lease and notes progress. The heart beats only while
the main loop makes progress, so that a hung worker loses its lease, and it knows when
the last answer is too old for the lease to be trusted (timed on the boot-time clock
from when the request was sent).
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from slurm_worker.errors import ServiceError
from slurm_worker.ports import Clock
from slurm_worker.table import Lease, Lost, TaskTable


class Heart:
    """Keeps one lease; a context manager around the work on its task.

    Args:
        table: the job's tasks.
        lease: what to keep.
        progress: items (ok, failed) so far.
        stall_s: without progress for this long, the lease is let go.
    """

    def __init__(
        self,
        table: TaskTable,
        lease: Lease,
        progress: Callable[[], tuple[int, int]],
        clock: Clock,
        rng: random.Random,
        logger: logging.Logger,
        stall_s: float,
    ) -> None:
        self._table = table
        self._lease = lease
        self._progress = progress
        self._clock = clock
        self._rng = rng
        self._logger = logger
        self._stall_s = stall_s
        self._acknowledged = clock.boot_time()
        self._moved = clock.boot_time()
        self._last = progress()
        self._lost = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def holds(self) -> bool:
        """Whether the lease can still be trusted to be ours."""
        age = self._clock.boot_time() - self._acknowledged
        times = self._table.lease
        return not self._lost.is_set() and age < times.ttl_s - times.margin_s

    def _beat(self) -> None:
        interval = self._table.lease.heartbeat_s
        while not self._end.wait(interval * self._rng.uniform(0.9, 1.1)):
            sent = self._clock.boot_time()
            progress = self._progress()
            if progress != self._last:
                self._last, self._moved = progress, sent
            elif sent - self._moved > self._stall_s:
                self._logger.error(
                    "no item finished within the stall limit; the lease is let go",
                    extra={"stall_s": self._stall_s},
                )
                self._lost.set()
                return
            try:
                result = self._table.heartbeat(self._lease, *progress)
            except ServiceError as error:
                # `holds` turns false by itself when this goes on for too long.
                self._logger.warning("heartbeat failed", extra={"error": str(error)})
                continue
            if isinstance(result, Lost):
                self._lost.set()
                return
            self._acknowledged = sent
