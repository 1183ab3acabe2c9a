"""One look at a cluster for all who wait on it.

However many tasks wait, a process runs one ``squeue`` and one ``sacct`` per interval, the
shortest that one of them wants: whoever finds the last look too old looks for all the
arrays that were asked for lately, and the others are told what that look saw. Several
triggerers look independently. It keeps nothing that a restart would lose.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from slurm_worker.errors import ServiceError

#: An array that nobody asked for during so many seconds is no longer looked at.
_FORGET_S = 3600.0


class Arrays(Protocol):
    """Tells the state of arrays; `SlurmClient`, as far as it is used here."""

    def arrays(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        """See `SlurmClient.arrays`."""


class ArrayPoller:
    """Looks when the last look is too old for who asks; safe to share between threads.

    Args:
        client: looks at the cluster.
        clock: seconds.
        rng: jitter, so that several triggerers don't look at the same moment.
    """

    def __init__(
        self,
        client: Arrays,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._asked: dict[ArrayKey, float] = {}
        self._seen: dict[ArrayKey, ArrayState] = {}
        self._failure: ServiceError | None = None
        self._looked: float | None = None
        self._jitter = 1.0

    def array(self, array: ArrayKey, max_age_s: float) -> ArrayState:
        """The array as the last look saw it; unknown where that was before it was asked for.

        Args:
            array: the array.
            max_age_s: how old a look may be, with a tenth of jitter.

        Raises:
            ServiceError: if the last look failed; the next one comes when it is due.
        """
        with self._lock:
            now = self._clock()
            self._asked[array] = now
            if self._looked is None or now >= self._looked + max_age_s * self._jitter:
                self._look(now)
            if self._failure is not None:
                raise ServiceError(str(self._failure)) from self._failure
            return self._seen.get(array) or ArrayState(
                array.slurm_job_id or array.name, unknown=True
            )

    def _look(self, now: float) -> None:
        self._asked = {key: when for key, when in self._asked.items() if when >= now - _FORGET_S}
        try:
            self._seen = self._client.arrays(self._asked.keys())
            self._failure = None
        except ServiceError as error:
            self._failure = error
        self._looked = self._clock()
        self._jitter = self._rng.uniform(0.9, 1.1)
