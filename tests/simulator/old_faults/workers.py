"""Old faults of workers: tasks that nobody finds, blame, times, and tokens that are thrown away."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from airflow_slurm_provider.coordinator.spec import job_spec
from slurm_worker.node import task_loop, worker
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import Rows
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Lease, TaskRow
from slurm_worker.rate_limits.limiter import RateLimiter
from slurm_worker.rate_limits.quota import NO_QUOTA
from slurm_worker.rate_limits.slices import SliceSize, slice_of
from tests.simulator.limits import LimitSimulation
from tests.simulator.old_faults.fault import OldFault
from tests.simulator.run import Mutation, Simulation

_NEVER = 10**9


def _simulation(mutation: Mutation) -> Callable[[int], object]:
    return lambda seed: Simulation(seed, mutation).run()


# --- 6: rows that come back where nobody looks --------------------------------------------------

_ROUNDS = itertools.count(1)


def reopens_late(
    jobs: JobTable, table: TaskTable, round_no: int, failed: Callable[[], Iterable[TaskRow]]
) -> int:
    """Each call puts back what has failed, in a round that may be open."""
    # A round of its own for each call: the row did not remember in which round it came back.
    back = sum(table.reopen(row, next(_ROUNDS)) for row in failed())
    jobs.open(round_no + 1)
    return back


# --- 12: an outage of minutes -------------------------------------------------------------------


class NeverDisowns(TaskTable):
    """A worker that leaves its leases to run out when a service fails."""

    def give_back(self, lease: Lease, checkpoint: str = "") -> None:
        """Say nothing."""

    def excuse_loss(self, lease: Lease) -> None:
        """Say nothing."""


def _stays() -> mock._patch[int]:
    """The count of failures began again with each task that was run: it was never used up."""
    return mock.patch.object(task_loop, "SERVICE_FAILURES_ALLOWED", _NEVER)


# --- 14: times that can't work ------------------------------------------------------------------


@contextmanager
def _accepts_any_times() -> Iterator[None]:
    with ExitStack() as patches:
        for module in (job_spec, worker):
            patches.enter_context(mock.patch.object(module, "check_times"))
        patches.enter_context(mock.patch.object(task_loop, "FRUITLESS_LEASES_ALLOWED", _NEVER))
        patches.enter_context(mock.patch.object(task_loop, "fruitless_wait_s", return_value=0.0))
        yield


# --- 11: tokens that are thrown away --------------------------------------------------------------


class ChargesWhatPasses(RateLimiter):
    """Charges the quota for each slot, used or not, in slices of one size."""

    def __init__(self, rows: Rows, config: LimitConfig, workers: int, *args: Any) -> None:
        super().__init__(rows, config, workers, *args)
        self._share = config.quota_per_day or NO_QUOTA
        self._size = SliceSize(*[slice_of(config.rate, workers)] * 2)

    def _take(self, first: int, tokens: int, step: float, charge: int) -> None:
        self._allotment.empty()
        super()._take(first, tokens, step, charge)

    def _wanted(self, due: float) -> int:
        self._allotment.empty()
        return super()._wanted(due)


class GivesNoBurst(RateLimiter):
    """Begins its schedule now, however long nobody has called."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._burst_s = 0.0


def _limits(seed: int) -> object:
    return LimitSimulation(seed).run()


WORKER_FAULTS = (
    OldFault(
        "a retry that is repeated puts tasks back in a round that is open",
        "tasks behind the shared cursor, which no worker ever found",
        "nobody finds what is left",
        11,
        run=_simulation(Mutation(open_round=reopens_late, generation=False)),
        sound=_simulation(Mutation()),
    ),
    OldFault(
        "a quota is charged for slots that pass unused",
        "most of a day's quota, where calls are slow",
        "with a quota of|charged, at most",
        5,
        run=lambda seed: LimitSimulation(seed, ChargesWhatPasses).run(),
        sound=_limits,
    ),
    OldFault(
        "no burst after an idle time",
        "the calls that may be sent at once",
        "at once after an idle time",
        8,
        run=lambda seed: LimitSimulation(seed, GivesNoBurst).run(),
        sound=_limits,
    ),
    OldFault(
        "leases are left to run out while a service is away",
        "tasks that were not at fault, bisected or given up",
        "although no worker died",
        34,
        run=_simulation(Mutation(table=NeverDisowns)),
        sound=_simulation(Mutation()),
    ),
    OldFault(
        "workers count failures of a service from zero with each task",
        "nodes, on which workers stayed through an outage",
        "a worker stayed for",
        16,
        put_back=_stays,
        run=_simulation(Mutation()),
        sound=_simulation(Mutation()),
    ),
    OldFault(
        "lease times that can't work are accepted",
        "the whole job: workers leased and released forever",
        "was leased .* times|does not end",
        24,
        put_back=_accepts_any_times,
    ),
)
