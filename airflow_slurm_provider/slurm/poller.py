"""One status query per cluster, shared by all tasks that wait for it.

However many tasks wait, a process runs one ``squeue`` and one ``sacct`` per interval, the
shortest interval that a task wants. The first task that finds the last result too old queries
all arrays that were requested recently; the other tasks get the same result. Several triggerers
poll independently. A restart loses nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection

from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from slurm_worker.errors import ServiceError

#: An array that was not requested for this time, in seconds, is no longer queried.
_FORGET_S = 3600.0


class ArrayPoller:
    """Queries again when the last result is too old; safe to share between threads.

    `query` is `SlurmClient.arrays`. `rng` gives jitter, so that several triggerers don't query at
    the same moment.
    """

    def __init__(
        self,
        query: Callable[[Collection[ArrayKey]], dict[ArrayKey, ArrayState]],
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._query = query
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._requested: dict[ArrayKey, float] = {}
        self._states: dict[ArrayKey, ArrayState] = {}
        self._failure: ServiceError | None = None
        self._queried: float | None = None
        self._jitter = 1.0

    def array(self, array: ArrayKey, max_age_s: float) -> ArrayState:
        """The array's last known state; unknown where no query has included it yet.

        `max_age_s` is the greatest age of a result in seconds, with a tenth of jitter.

        Raises:
            ServiceError: if the last query failed; the next one comes when it is due.
        """
        with self._lock:
            now = self._clock()
            self._requested[array] = now
            if self._queried is None or now >= self._queried + max_age_s * self._jitter:
                oldest = now - _FORGET_S
                self._requested = {k: at for k, at in self._requested.items() if at >= oldest}
                try:
                    self._states, self._failure = self._query(self._requested.keys()), None
                except ServiceError as error:
                    self._failure = error
                self._queried, self._jitter = self._clock(), self._rng.uniform(0.9, 1.1)
            if self._failure is not None:
                raise ServiceError(str(self._failure)) from self._failure
            return self._states.get(array) or ArrayState(
                array.slurm_job_id or array.name, unknown=True
            )
